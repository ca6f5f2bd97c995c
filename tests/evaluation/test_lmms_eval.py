# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Valley in lmms-eval: its tasks ask and count as `valley evaluate` does, and its model answers the same."""

import importlib
import importlib.metadata
import json
import logging
import runpy
from functools import partial
from statistics import fmean

import pytest
from clips import write_clip
from evaluating import FILES, write_json
from PIL import Image

from transformers_valley.evaluation.benchmarks import load_benchmark
from transformers_valley.evaluation.predict import predict, read_predictions
from transformers_valley.lmms_eval_plugin import TASKS, questions


MSVD = [("a", "who runs?", "dog"), ("b", "what is it?", "bus"), ("gone", "who is it?", "man"), ("a", "how?", "fast")]


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
    """A folder as `VALLEY_BENCHMARKS` names it; one clip of MSVD-QA is missing."""
    folder = tmp_path_factory.mktemp("benchmarks")
    for name in ("msvd_qa", "msrvtt_qa"):
        rows = [{"question": q, "video_name": clip, "answer": a} for clip, q, a in MSVD]
        write_json(folder / name / f"{name}.json", rows)
        for i, clip in enumerate("ab"):
            write_clip(folder / name / f"{clip}.mp4", 30 + 20 * i, fps=10)
    meme = {"title": "Monday", "img_captions": ["a cat sits"], "img_fname": "m.png", "post_id": "m"}
    write_json(folder / "meme_cap/memes-test.json", [{**meme, "meme_captions": ["tired", "it is tired"]}])
    Image.new("RGB", (40, 30), "red").save(folder / "meme_cap/m.png")
    problems = json.loads((FILES / "science_qa/problems.json").read_text())
    answered = json.loads((FILES / "science_qa/published.json").read_text())["llava"]
    write_json(folder / "science_qa/problems.json", problems)
    write_json(folder / "science_qa/pid_splits.json", {"test": list(answered)})
    for pid in (pid for pid in answered if problems[pid]["image"]):
        (folder / "science_qa/test" / pid).mkdir(parents=True)
        Image.new("RGB", (20, 20), "blue").save(folder / "science_qa/test" / pid / problems[pid]["image"])
    return folder


@pytest.fixture(autouse=True)
def environment(benchmarks, monkeypatch):
    monkeypatch.setenv("VALLEY_BENCHMARKS", str(benchmarks))


def test_entry_point_is_there_without_lmms_eval(capsys):
    (point,) = importlib.metadata.entry_points(group="lmms_eval.models", name="valley")
    assert callable(point.load())
    runpy.run_module("transformers_valley.lmms_eval_plugin", run_name="__main__")
    assert capsys.readouterr().out.strip() == str(TASKS)


def test_questions_are_those_of_valley_evaluate(benchmarks):
    for name in ("msvd_qa", "msrvtt_qa", "meme_cap"):
        loaded, docs = load_benchmark(name, benchmarks / name).samples, getattr(questions, name)(None)
        assert [doc["id"] for doc in docs] == [sample.id for sample in loaded]
        assert [questions.doc_to_text(doc) for doc in docs] == [sample.question for sample in loaded]
        assert [questions.doc_to_target(doc) for doc in docs] == [sample.answers[0] for sample in loaded]
        block, text = loaded[0].messages[0]["content"]
        asked = [{"type": block["type"], "url": block["path"]}, text]
        assert questions.doc_to_messages(docs[0]) == [{"role": "user", "content": asked}]
    (image,) = questions.doc_to_visual(questions.meme_cap(None)[0])
    assert image.size == (40, 30)


def test_numbers_are_those_of_valley_evaluate():
    first = questions.msvd_qa(None)[0]
    assert questions.match_words(first, ["The dog."]) == {"exact_match": 1, "contained": 1}
    assert questions.match_words(first, ["a dog runs"]) == {"exact_match": 0, "contained": 1}
    # An answer of LLaVA that is published with the score that it got.
    docs = {doc["id"]: doc for doc in questions.science_qa(None)}
    results = json.loads((FILES / "science_qa/published.json").read_text())["llava"]
    counted = [questions.match_choice(docs[pid], [f"The answer is {'ABCDE'[n]}."]) for pid, n in results.items()]
    assert fmean(each["Average"] for each in counted) == pytest.approx(0.9)
    assert fmean(each["IMG"] for each in counted if "IMG" in each) == pytest.approx(43 / 51)


def test_a_folder_that_is_not_named(monkeypatch):
    monkeypatch.delenv("VALLEY_BENCHMARKS")
    with pytest.raises(SystemExit, match="Set VALLEY_BENCHMARKS to the folder .* in a folder msvd_qa"):
        questions.msvd_qa(None)
    monkeypatch.setenv("VALLEY_BENCHMARKS", str(FILES))
    with pytest.raises(SystemExit, match="There is no .*msvd_qa, where the questions"):
        questions.msvd_qa(None)


# --- where lmms-eval is installed ------------------------------------------------------------------------------------


@pytest.fixture
def lmms_eval(monkeypatch, tmp_path):
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path))
    pytest.importorskip("lmms_eval")
    return importlib.import_module("lmms_eval.evaluator")


def ask(lmms_eval, checkpoint, tasks, **model_args):
    from lmms_eval.tasks import TaskManager

    from transformers_valley.lmms_eval_plugin.model import Valley

    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    model = Valley(checkpoint, **model_args)
    return lmms_eval.simple_evaluate(model, tasks=tasks, task_manager=manager, batch_size=2, bootstrap_iters=0)


def test_lmms_eval_finds_the_model(lmms_eval):
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    from transformers_valley.lmms_eval_plugin import register
    from transformers_valley.lmms_eval_plugin.model import Valley

    registry = ModelRegistryV2()
    registry.register_manifest(register())
    assert registry.get_model_class("valley") is Valley


def test_both_ways_give_the_same_predictions(lmms_eval, checkpoint, benchmarks, tmp_path, caplog, monkeypatch):
    from transformers_valley.lmms_eval_plugin import model

    monkeypatch.setattr(logging.getLogger("transformers_valley"), "propagate", True)
    monkeypatch.setattr(model, "GREEDY", {**model.GREEDY, "max_new_tokens": 6})
    found = ask(lmms_eval, checkpoint, ["msvd_qa"], batch_size=2, num_frames=3)
    data = load_benchmark("msvd_qa", benchmarks / "msvd_qa")
    predict(
        checkpoint, data, tmp_path / "run", batch_size=2, generation={"max_new_tokens": 6}, sampling={"num_frames": 3}
    )
    ours = [record["answer"] or "" for record in read_predictions(tmp_path / "run")]
    theirs = [sample["resps"][0][0] for sample in found["samples"]["msvd_qa"]]
    assert theirs == ours and len(ours) == 4 and any(ours)
    assert "1 of 4 requests were not answered, msvd_qa:2 for one" in caplog.text
    assert {"exact_match,none", "contained,none"} <= found["results"]["msvd_qa"].keys()


def test_every_task_is_asked(lmms_eval, checkpoint, monkeypatch):
    from transformers_valley.lmms_eval_plugin import model

    monkeypatch.setattr(model, "GREEDY", {**model.GREEDY, "max_new_tokens": 2})
    monkeypatch.setattr(questions, "load_benchmark", partial(load_benchmark, limit=5))
    monkeypatch.setattr(questions, "bertscore_f1", lambda texts, references: {"f1": len(texts) + len(references[0])})
    found = ask(lmms_eval, checkpoint, ["msrvtt_qa", "meme_cap", "scienceqa_by_class"], batch_size=2)["results"]
    assert found["meme_cap"]["bertscore_f1,none"] == 0.03
    assert "Average,none" in found["scienceqa_by_class"] and "exact_match,none" in found["msrvtt_qa"]


def test_generation_settings_of_other_models_are_left_out(lmms_eval):
    from transformers_valley.lmms_eval_plugin.model import read_generation

    greedy = {"do_sample": False, "num_beams": 1}
    asked = {"until": ["\n\n"], "temperature": 0, "top_p": 1.0, "max_new_tokens": 16, "image_aspect_ratio": "pad"}
    assert read_generation(asked) == {**greedy, "max_new_tokens": 16}
    assert read_generation({"temperature": 0.7}) == {"do_sample": True, "num_beams": 1, "temperature": 0.7}
    assert read_generation({"temperature": 0.7, "do_sample": False}) == greedy
