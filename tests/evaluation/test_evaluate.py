# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""All three stages in one call, and in one command."""

import shutil
from pathlib import Path

import pytest
from evaluating import ten, tiny_bert, write_json, write_jsonl, write_questions, write_run, write_verdicts
from openai_server import openai_server, said
from PIL import Image
from tiny import tiny_judge
from typer.testing import CliRunner

from transformers_valley.evaluation import evaluate, load_benchmark, predict
from transformers_valley.evaluation.asking import VIEWS
from transformers_valley.evaluation.judge import DEFAULT_JUDGE
from transformers_valley.evaluation.predict import read_predictions
from transformers_valley.evaluation.records import read_json
from valley_cli.app import app


SHORT = {"max_new_tokens": 4}


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    return write_questions(tmp_path_factory.mktemp("questions"), count=4, clips=2)


def valley(*words):
    return CliRunner().invoke(app, ["evaluate", *map(str, words)])


def test_command_ends_in_tables_pictures_and_a_page(checkpoint, questions, tmp_path):
    result = valley(checkpoint, "--data", questions, "-o", tmp_path / "run", "--max-new-tokens", 4, "--label", "mine")
    assert result.exit_code == 0, result.stderr
    *_, last = result.stdout.splitlines()
    assert last == f"Read every answer beside its frames: {tmp_path / 'run/report/index.html'}"
    assert "### mine on own questions: does it look?" in result.stdout and "blind" in result.stdout
    assert (tmp_path / "run/report/index.html").stat().st_size > 10_000
    again = valley(checkpoint, "--data", questions, "-o", tmp_path / "run", "--max-new-tokens", 4)
    assert again.exit_code == 0 and "mine on own questions" in again.stdout  # what it was called stays


def test_views_options_and_sampling_reach_the_run(checkpoint, questions, tmp_path):
    words = [checkpoint, "--data", questions, "-o", tmp_path, "--view", "clip", "--view", "one-frame", "--cot"]
    assert valley(*words, "--num-frames", 2, "--max-new-tokens", 3, "--limit", 2, "--batch-size", 1).exit_code == 0
    settings = read_json(tmp_path / "run.json")
    assert settings["sampling"] == {"num_frames": 2} and settings["cot"] and settings["batch_size"] == 1
    assert settings["generation"]["max_new_tokens"] == 3 and settings["benchmark"]["questions"] == 2
    saved = read_json(tmp_path / "report/results.json")["runs"][0]
    assert list(saved["views"]) == ["clip", "one_frame"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "none.jsonl"], "Nobody answers: give a checkpoint, or --server URL."),
        (["CKPT", "--data", "none.jsonl"], "There is no none.jsonl, where the questions of own were looked for."),
        (["no/such/folder", "--data", "QUESTIONS"], "Cannot load 'no/such/folder': there is no such folder."),
        (
            ["CKPT", "--data", "QUESTIONS", "--view", "x"],
            "There is no view 'x' here; there are clip, blind,",
        ),
        (["CKPT", "--data", "QUESTIONS", "--view", "blind"], "all numbers are of answers with the clips shown."),
        (["CKPT", "--data", "QUESTIONS", "--option", "fast"], "own has no option fast; it has none."),
        (["CKPT", "--data", "QUESTIONS", "--fps", "1", "--num-frames", "2"], "--num-frames and --fps exclude each"),
        (["CKPT", "--data", "QUESTIONS", "--judge", "no/such"], "The judge 'no/such' cannot be loaded"),
        (["CKPT", "--data", "QUESTIONS", "--judge-server", "http://127.0.0.1:9/v1"], "cannot be reached"),
        (["CKPT", "--data", "QUESTIONS", "--benchmark", "msvd_qa"], "msvd_qa needs test_qa.json"),
        (["CKPT", "--data", "QUESTIONS", "--compare-with", "nope"], "nope holds no run of valley evaluate: there is"),
        (["CKPT", "--data", "QUESTIONS", "--compare-with", "CKPT"], "valley evaluate: there is no run.json"),
    ],
)
def test_error_is_one_line_before_anything_is_asked(checkpoint, questions, tmp_path, words, message):
    names = {"CKPT": checkpoint, "QUESTIONS": str(questions)}
    result = valley(*[names.get(word, word) for word in words], "-o", tmp_path / "run")
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1 and message in result.stderr
    assert not (tmp_path / "run/predictions.jsonl").exists()


def test_judge_on_this_machine_and_on_a_server(checkpoint, questions, tmp_path):
    reply = "{'pred':'yes','score':4}"
    options = {"views": ["clip"], "generation": SHORT}
    local = evaluate(checkpoint, questions, tmp_path / "a", judge=tiny_judge(tmp_path / "judge", reply), **options)
    with openai_server(lambda *_: reply) as server:
        served = evaluate(checkpoint, questions, tmp_path / "b", judge_server=server.url, **options)
        assert len(server.requests) == len({said(request) for request in server.requests}) <= 4
    for result in (local, served):
        assert result.runs[0].columns["judge: right"].count == 4


def test_second_checkpoint_is_compared_with_the_first(checkpoint, questions, tmp_path):
    predict(checkpoint, load_benchmark("own", questions), tmp_path / "a", generation=SHORT, label="A")
    compared = {"views": ["clip"], "generation": SHORT, "compare_with": [tmp_path / "a"]}
    other = evaluate(checkpoint, questions, tmp_path / "b", label="B", **compared)
    (comparison,) = [table for table in other.tables if table.name == "comparison1"]
    assert comparison.header[0] == "against A" and comparison.rows[0][0] == "B: right"


def test_runs_that_cannot_be_compared_are_refused_before_anything_is_asked(checkpoint, questions, tmp_path):
    judge = tiny_judge(tmp_path / "judge", "{'pred':'yes','score':4}")
    other = write_verdicts(write_run(tmp_path / "a", ten(9), label="A"), "one")

    def refused(match, label="B", error=ValueError, **options):
        with pytest.raises(error, match=match):
            evaluate(checkpoint, questions, tmp_path / "b", label=label, compare_with=[other], **options)
        assert not (tmp_path / "b").exists()

    refused(r"different questions of own questions \(10 and 4\)")
    refused("was not judged by 'judge'; judges there: one", error=FileNotFoundError, judge=judge)
    with openai_server(lambda *_: "") as server:
        refused("were judged differently", judge="one", judge_server=server.url)
    settings = read_json(other / "run.json")
    settings["benchmark"] = load_benchmark("own", questions).describe()
    write_json(other / "run.json", settings)
    refused("a was judged, and .*b was not")
    shutil.rmtree(other / "judge-one")
    refused("both called 'A': repeat the command of one of them", label="A")
    settings["label"] = Path(checkpoint).name
    write_json(other / "run.json", settings)
    refused("both called", label=None)


def test_what_judged_a_run_before_judges_it_when_it_is_compared(checkpoint, questions, tmp_path):
    reply = "{'pred':'yes','score':4}"
    options = {"views": ["clip"], "generation": SHORT}
    judge = tiny_judge(tmp_path / "judge", reply)
    for label in "ab":
        evaluate(checkpoint, questions, tmp_path / label, label=label, judge=judge, **options)
    again = evaluate(checkpoint, questions, tmp_path / "b", compare_with=[tmp_path / "a"], **options)
    assert [run.name for run in again.runs] == ["a", "b"]
    shutil.rmtree(tmp_path / "a/judge-judge")
    with pytest.raises(ValueError, match="b was judged, and .*a was not"):
        evaluate(checkpoint, questions, tmp_path / "b", compare_with=[tmp_path / "a"], **options | {"views": VIEWS})
    assert {record["view"] for record in read_predictions(tmp_path / "b")} == {"clip"}


def test_the_default_judge_has_its_name_on_a_server(checkpoint, questions, tmp_path):
    model, revision = DEFAULT_JUDGE["model"], DEFAULT_JUDGE["revision"]
    with openai_server(lambda *_: "{'pred':'yes','score':4}", models=(model,)) as server:
        run = evaluate(
            *(checkpoint, questions, tmp_path / "run"),
            **{"views": ["clip"], "generation": SHORT, "judge": "default", "judge_server": server.url},
        ).runs[0]
    assert (run.judge["judge"]["model"], run.judge["judge"]["revision"]) == (model, revision)


def test_memecap_is_scored_by_an_encoder(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers_valley.evaluation.bertscore.LAYERS", {str(tmp_path): 2, "roberta-large": 17})
    tiny_bert(tmp_path)
    meme = {"post_id": "a", "title": "t", "img_captions": ["c"], "meme_captions": ["a dog"], "img_fname": "a.png"}
    write_json(tmp_path / "data/memes-test.json", [meme | {"metaphors": []}])
    Image.new("RGB", (20, 20)).save(tmp_path / "data/a.png")
    with pytest.raises(FileNotFoundError, match="The encoder 'roberta-large' cannot be loaded"):  # without a network
        evaluate(checkpoint, tmp_path / "data", tmp_path / "run", benchmark="meme_cap", judge="default")
    result = evaluate(
        *(checkpoint, tmp_path / "data", tmp_path / "run"),
        **{"benchmark": "meme_cap", "generation": SHORT, "judge": str(tmp_path)},
    )
    assert result.runs[0].columns["BERT F1-score"].count == 1 and result.tables[0].name == "table4"


def test_examples_come_from_other_questions(checkpoint, questions, tmp_path):
    shutil.copy(questions.parent / "0.mp4", tmp_path / "shot.mp4")
    shot = {"video": str(tmp_path / "shot.mp4"), "question": "?", "answer": "ok"}
    pool = write_jsonl(tmp_path / "pool.jsonl", [shot])
    settings = {"views": ["clip"], "generation": SHORT, "shots": 1, "shots_data": pool}
    result = evaluate(checkpoint, questions, tmp_path / "run", label="v", **settings)
    assert result.runs[0].name == "v, one-shot"
    with pytest.raises(ValueError, match="2 examples were asked for, and .* has 1"):
        evaluate(checkpoint, questions, tmp_path / "other", **settings | {"shots": 2})
    with pytest.raises(ValueError, match="is one of the questions"):
        evaluate(checkpoint, questions, tmp_path / "other", shots=1)
