# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Questions to answers: complete, resumable, the same on one process and on two, here and from a server."""

import gc
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from evaluating import kill_when, lines_in, write_jsonl, write_questions
from openai_server import Answer, openai_server, said
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText, pipeline

from transformers_valley import ValleyForConditionalGeneration
from transformers_valley.endpoint import EndpointError
from transformers_valley.evaluation.asking import COT
from transformers_valley.evaluation.benchmark import Sample, chat_about
from transformers_valley.evaluation.benchmarks import load_benchmark
from transformers_valley.evaluation.models import digest_weights
from transformers_valley.evaluation.predict import predict, read_predictions
from transformers_valley.evaluation.records import read_json


SHORT = {"max_new_tokens": 6}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    return write_questions(tmp_path_factory.mktemp("questions"))


@pytest.fixture(scope="module")
def data(questions):
    return load_benchmark("own", questions)


@pytest.fixture(scope="module")
def finished(checkpoint, data, tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("finished")
    predict(checkpoint, data, folder, views=("clip", "blind"), generation=SHORT, batch_size=4)
    return folder


def content(folder) -> str:
    return (folder / "predictions.jsonl").read_text()


def test_every_question_is_answered_once_in_order(finished, data):
    records = read_predictions(finished)
    ids = [sample.id for sample in data.samples]
    assert [(r["view"], r["id"]) for r in records] == [(view, name) for view in ("clip", "blind") for name in ids]
    assert all(isinstance(r["answer"], str) and r["error"] is None for r in records)
    assert not list(finished.glob("*part*"))


def test_record_holds_all_that_is_needed_to_ask_again(finished, data, checkpoint):
    record = read_predictions(finished)[1]
    assert record["messages"] == data.samples[1].messages and record["question"] == "What is 1?"
    (shown,) = record["shown"]
    assert shown["num_frames"] == len(shown["times"]) == 2 and shown["times"][0] == 0
    assert (finished / shown["strip"]).exists()
    settings = read_json(finished / "run.json")
    assert settings["model"]["weights"] == digest_weights(checkpoint)
    assert settings["versions"]["transformers"] == transformers.__version__
    assert settings["generation"]["max_new_tokens"] == 6 and settings["benchmark"]["questions"] == 10
    assert settings["model"]["video_processor"]["fps"] == 0.5


def test_answers_are_those_of_the_pipeline(finished, checkpoint):
    pipe = pipeline("video-text-to-text", model=checkpoint)
    records = [r for r in read_predictions(finished) if r["view"] == "clip"][:4]
    answers = pipe([r["messages"] for r in records], return_full_text=False, do_sample=False, batch_size=4, **SHORT)
    assert [r["answer"] for r in records] == [answer[0]["generated_text"] for answer in answers]
    blind = [r for r in read_predictions(finished) if r["view"] == "blind"][0]
    asked = [{"role": "user", "content": [{"type": "text", "text": "What is 0?"}]}]
    assert blind["shown"] == [] and blind["messages"] == records[0]["messages"]
    assert isinstance(pipe(asked, return_full_text=False, **SHORT)[0]["generated_text"], str)


def test_run_that_was_killed_ends_as_one_that_was_not(checkpoint, data, finished, tmp_path):
    def run():
        predict(checkpoint, data, tmp_path, views=("clip", "blind"), generation=SHORT, batch_size=4)

    kill_when(run, lambda: lines_in(tmp_path, "predictions.part-*") >= 8)
    assert 8 <= lines_in(tmp_path, "predictions.part-*") < 20
    part = next(tmp_path.glob("predictions.part-*"))
    part.write_bytes(part.read_bytes()[:-9])  # the last line is torn as well
    run()
    assert content(tmp_path) == content(finished)


def test_what_is_answered_is_not_asked_again(checkpoint, data, finished, monkeypatch):
    before = content(finished)
    monkeypatch.setattr("transformers_valley.evaluation.models.pipeline", None)  # the weights are not even loaded
    predict(checkpoint, data, finished, views=("clip", "blind"), generation=SHORT, batch_size=4)
    assert content(finished) == before


def test_shares_of_processes_that_are_gone_are_counted(checkpoint, data, finished, tmp_path):
    """Killed on three processes, it goes on with one."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    lines = content(tmp_path).splitlines(keepends=True)
    (tmp_path / "predictions.jsonl").unlink()
    for process in range(3):
        (tmp_path / f"predictions.part-{process}.jsonl").write_text("".join(lines[process : 15 + process : 3]))
    predict(checkpoint, data, tmp_path, views=("clip", "blind"), generation=SHORT, batch_size=4)
    assert content(tmp_path) == content(finished)


TWO = """
import sys
from transformers_valley.evaluation import load_benchmark, predict
data = load_benchmark("own", sys.argv[2])
predict(sys.argv[1], data, sys.argv[3], views=("clip", "blind"), generation={"max_new_tokens": 6}, batch_size=4)
"""


@pytest.mark.slow
def test_two_processes_give_what_one_gives(checkpoint, questions, finished, tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    command += ["--config_file", str(ROOT / "examples/accelerate/ddp_cpu.yaml"), str(script), checkpoint]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(questions), str(tmp_path / "run")], check=True, env=environment, timeout=600)
    assert content(tmp_path / "run") == content(finished)


# --- What fails, and what is refused -------------------------------------------------------------------------------


def test_clip_that_cannot_be_read_is_counted_and_asked_again_when_it_is_there(checkpoint, tmp_path, caplog):
    file = write_questions(tmp_path / "q", count=6)
    clip = tmp_path / "q/1.mp4"
    good = clip.read_bytes()
    clip.write_bytes(good[:200])
    data = load_benchmark("own", file)
    with caplog.at_level(logging.WARNING, logger="transformers_valley"):
        predict(checkpoint, data, tmp_path / "run", generation=SHORT)
    failed = [r for r in read_predictions(tmp_path / "run") if r["error"]]
    assert [r["id"] for r in failed] == ["questions:1", "questions:4"] and all(r["answer"] is None for r in failed)
    assert "1.mp4" in failed[0]["error"] and "2 of 6 questions were not answered" in caplog.text
    clip.write_bytes(good)
    predict(checkpoint, data, tmp_path / "run", generation=SHORT)
    predict(checkpoint, data, tmp_path / "other", generation=SHORT)
    assert content(tmp_path / "run") == content(tmp_path / "other")


def test_prompt_that_is_too_long_is_counted(checkpoint, tmp_path):
    row = {"image": "a.png", "question": "Who? " * 3000, "answer": "dog"}
    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    predict(checkpoint, load_benchmark("own", write_jsonl(tmp_path / "q.jsonl", [row])), tmp_path / "run")
    (record,) = read_predictions(tmp_path / "run")
    assert "tokens, and the model reads 4096" in record["error"]


def test_answer_that_is_cut_off_is_told(finished):
    assert {r["is_cut"] for r in read_predictions(finished)} == {True}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"generation": {"max_new_tokens": 7}}, "generation.max_new_tokens was 6, now 7"),
        ({"cot": True}, "cot was False, now True"),
        ({"sampling": {"num_frames": 3}}, "sampling.num_frames was None, now 3"),
        ({"batch_size": 2}, "batch_size was 4, now 2"),
    ],
)
def test_folder_of_another_run_is_refused_with_the_settings_that_differ(checkpoint, data, finished, change, told):
    before = content(finished)
    with pytest.raises(ValueError, match="holds another run") as caught:
        predict(checkpoint, data, finished, **{"generation": SHORT, "batch_size": 4, **change})
    assert told in str(caught.value) and content(finished) == before


def test_other_questions_and_other_weights_are_another_run(checkpoint, questions, data, finished, tmp_path):
    with pytest.raises(ValueError, match="benchmark.questions was 10, now 5"):
        predict(checkpoint, load_benchmark("own", questions, limit=5), finished, generation=SHORT, batch_size=4)
    shutil.copytree(checkpoint, tmp_path / "changed")
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    model.lm_head.weight.data += 1
    model.generation_config.max_new_tokens = 5
    model.save_pretrained(tmp_path / "changed")
    with pytest.raises(ValueError, match="holds another run: model.weights was [^;]*, now [^;]*$"):
        predict(str(tmp_path / "changed"), data, finished, generation=SHORT, batch_size=4)


def test_checkpoint_that_is_not_there(checkpoint, data, tmp_path):
    with pytest.raises(OSError, match="Cannot load 'no/such'"):
        predict("no/such", data, tmp_path)
    shutil.copytree(checkpoint, tmp_path / "half", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(FileNotFoundError, match="no weights in"):
        predict(str(tmp_path / "half"), data, tmp_path)


def test_view_and_number_of_answers_that_make_no_sense(checkpoint, data, tmp_path):
    with pytest.raises(ValueError, match="no view 'backwards' here; there are clip, blind, shuffled, one_frame"):
        predict(checkpoint, data, tmp_path, views=("backwards",))
    with pytest.raises(ValueError, match="one answer"):
        predict(checkpoint, data, tmp_path, generation={"num_return_sequences": 2})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"dtype": "bflot16"}, "no dtype 'bflot16'"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
        ({"device": "99"}, "device 99 cannot be used"),
        ({"sampling": {"fps": -1.0}}, "fps"),
    ],
)
def test_setting_that_makes_no_sense_leaves_the_folder_free(checkpoint, data, tmp_path, setting, message):
    with pytest.raises(ValueError, match=message):
        predict(checkpoint, data, tmp_path / "run", **setting)
    assert not (tmp_path / "run").exists()


def test_label_of_an_older_run_is_replaced(checkpoint, data, finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    predict(checkpoint, data, tmp_path, views=("clip", "blind"), generation=SHORT, batch_size=4, label="second")
    assert read_json(tmp_path / "run.json")["label"] == "second" and content(tmp_path) == content(finished)


def test_rows_say_how_their_clips_are_sampled(checkpoint, questions, tmp_path):
    row = {"video": str(questions.parent / "0.mp4"), "question": "Who?", "answer": "a dog"}
    settings = [{"num_frames": 3}, {"fps": 5.0, "max_frames": 2}, {"start": 0.5, "num_frames": 1}, {}]
    file = write_jsonl(tmp_path / "rows.jsonl", [row | each for each in settings])
    data, expected = load_benchmark("own", file), [3, 2, 1, 4]
    predict(checkpoint, data, tmp_path / "run", generation=SHORT, sampling={"num_frames": 4})
    assert [r["shown"][0]["num_frames"] for r in read_predictions(tmp_path / "run")] == expected
    with openai_server(lambda *_: "yes", models=("valley",)) as server:
        predict(None, data, tmp_path / "served", server=server.url)
    sent = [request["messages"][0]["content"][0]["video_url"] for request in server.requests]
    kept = [{name: value for name, value in each.items() if name != "url"} for each in sent]
    assert sorted(kept, key=str) == sorted(settings, key=str)


def test_weights_are_gone_after_the_last_answer(checkpoint, data, tmp_path):
    """A judge on the same GPU needs their room."""
    gc.collect()
    gc.disable()
    try:
        predict(checkpoint, data, tmp_path, generation=SHORT)
        models = [each for each in gc.get_objects() if type(each) is ValleyForConditionalGeneration]
        assert not [each for each in models if each.name_or_path == str(checkpoint)]
    finally:
        gc.enable()


def test_example_that_is_asked_as_well_is_refused(checkpoint, data, tmp_path):
    with pytest.raises(ValueError, match="'questions:0' is one of the questions"):
        predict(checkpoint, data, tmp_path, shots=data.samples[:1])
    other = Sample("other", data.samples[0].messages, ("dog",))
    with pytest.raises(ValueError, match="or about a clip of one"):
        predict(checkpoint, data, tmp_path, shots=[other])


# --- Ways to ask ---------------------------------------------------------------------------------------------------


def test_chain_of_thought_and_examples_reach_the_model(checkpoint, data, questions, tmp_path):
    clip = tmp_path / "shot.mp4"
    shutil.copy(questions.parent / "0.mp4", clip)
    shot = Sample("shot", chat_about("Before?", video=str(clip)), ("a cat",))
    predict(checkpoint, data, tmp_path / "run", cot=True, shots=[shot], generation=SHORT)
    messages = read_predictions(tmp_path / "run")[0]["messages"]
    system, before, answer, question = messages
    assert system["content"][0]["text"].startswith("You are Valley") and system["content"][0]["text"].endswith(COT)
    assert before["content"][1]["text"] == "Before?" and answer["content"][0]["text"] == "a cat"
    assert read_json(tmp_path / "run/run.json")["shots"] == ["shot"]


def test_shuffled_and_single_frames(checkpoint, data, tmp_path):
    predict(checkpoint, data, tmp_path, views=("shuffled", "one_frame"), generation=SHORT, sampling={"num_frames": 4})
    records = read_predictions(tmp_path)
    shuffled = [r["shown"][0] for r in records if r["view"] == "shuffled"]
    assert all(sorted(s["order"]) == [0, 1, 2, 3] != s["order"] for s in shuffled)
    assert {len(s["times"]) for s in shuffled} == {4}
    assert {r["shown"][0]["num_frames"] for r in records if r["view"] == "one_frame"} == {1}


def test_view_is_added_to_a_finished_run(checkpoint, data, finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    predict(checkpoint, data, tmp_path, views=("one_frame",), generation=SHORT, batch_size=4)
    assert content(tmp_path).startswith(content(finished).split('{"view": "blind"')[0])
    assert {r["view"] for r in read_predictions(tmp_path)} == {"clip", "blind", "one_frame"}


def test_adapter_is_asked_and_its_base_counts(checkpoint, data, tmp_path):
    model = get_peft_model(
        AutoModelForImageTextToText.from_pretrained(checkpoint), LoraConfig(target_modules=["q_proj"])
    )
    shutil.copytree(checkpoint, tmp_path / "adapter", ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    model.save_pretrained(tmp_path / "adapter")
    predict(str(tmp_path / "adapter"), load_benchmark("own", data_file(data)), tmp_path / "run", generation=SHORT)
    assert all(r["answer"] for r in read_predictions(tmp_path / "run"))
    assert digest_weights(tmp_path / "adapter") != digest_weights(checkpoint)


def data_file(data) -> Path:
    return Path(data.samples[0].messages[0]["content"][0]["path"]).parent / "questions.jsonl"


# --- A server ------------------------------------------------------------------------------------------------------


def test_server_answers_instead(data, tmp_path):
    def respond(request, count):
        is_long = "3" in said(request)
        return Answer(f"answer to {said(request)}", finish_reason="length" if is_long else "stop")

    with openai_server(respond, models=("valley",)) as server:
        predict(None, data, tmp_path, server=server.url, views=("clip", "blind"), sampling={"num_frames": 4})
        asked = len(server.requests)
        predict(None, data, tmp_path, server=server.url, views=("clip", "blind"), sampling={"num_frames": 4})
        assert len(server.requests) == asked == 20
    records = read_predictions(tmp_path)
    assert [r["answer"] for r in records[:2]] == ["answer to What is 0?", "answer to What is 1?"]
    assert [r["id"] for r in records if r["is_cut"]] == ["questions:3"] * 2
    request = server.requests[0]
    assert request["chat_template_kwargs"] == {"num_frames": 4} and request["temperature"] == 0
    assert request["model"] == "valley" and request["max_tokens"] == 256
    shows = ["video_url" in json.dumps(request) for request in server.requests]
    assert shows.count(True) == 10 and records[0]["shown"][0]["times"] is None


def test_server_is_not_asked_to_think_step_by_step_in_place_of_its_own_prompt(data, tmp_path):
    with openai_server(lambda *_: "yes") as server, pytest.raises(ValueError, match="a server does not tell its own"):
        predict(None, data, tmp_path, server=server.url, cot=True)


def test_server_that_fails_a_question_is_asked_again(data, tmp_path):
    with openai_server(lambda r, n: Answer(status=400, body="{}") if "4" in said(r) else "yes") as server:
        predict(None, data, tmp_path, server=server.url)
    assert [r["id"] for r in read_predictions(tmp_path) if r["error"]] == ["questions:4"]
    with openai_server(lambda *_: "yes") as server:
        predict(None, data, tmp_path, server=server.url)
        assert len(server.requests) == 1
    assert not [r for r in read_predictions(tmp_path) if r["error"]]


def test_run_through_a_server_that_was_killed_asks_little_again(data, tmp_path):
    with openai_server(lambda r, _: Answer(f"answer to {said(r)}", delay=0.03)) as server:

        def run():
            predict(None, data, tmp_path, server=server.url, batch_size=2)

        kill_when(run, lambda: len(server.requests) >= 5)
        run()
    assert len(server.requests) <= 10 + 2
    assert [r["answer"] for r in read_predictions(tmp_path)] == [f"answer to What is {i}?" for i in range(10)]


def test_what_a_server_cannot_do_is_refused(data, tmp_path):
    with openai_server(lambda *_: "yes") as server:
        with pytest.raises(ValueError, match="no view 'shuffled' here; there are clip, blind"):
            predict(None, data, tmp_path, server=server.url, views=("shuffled",))
        with pytest.raises(ValueError, match=r"not \['top_k'\]"):
            predict(None, data, tmp_path, server=server.url, generation={"top_k": 3})
    with pytest.raises(EndpointError, match="cannot be reached"):
        predict(None, data, tmp_path, server=server.url)
