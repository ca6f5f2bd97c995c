# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The modules of `evaluate`: loaded from their folders, they give what the functions behind them give."""

import ast
import json
import re
from pathlib import Path

import pytest
import yaml
from evaluating import FILES, tiny_bert

from transformers_valley.evaluation import scores
from transformers_valley.evaluation.bertscore import bertscore_f1


evaluate = pytest.importorskip("evaluate")
METRICS = Path(scores.__file__).parent / "metrics"


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluate.config.HF_MODULES_CACHE", str(folder / "modules"))
        yield lambda name: evaluate.load(str(METRICS / name), cache_dir=str(folder), experiment_id=name)


NAMES = ("meme_bertscore", "scienceqa_accuracy", "video_qa_judge", "videobench")


def test_every_folder_is_a_metric():
    found = sorted(path.name for path in METRICS.iterdir() if path.is_dir() and not path.name.startswith("_"))
    assert found == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_folder_is_a_space(name):
    _, about, text = (METRICS / name / "README.md").read_text().split("---\n", 2)
    about = yaml.safe_load(about)
    assert about["tags"] == ["evaluate", "metric"] and about["sdk"] == "gradio" and about["sdk_version"][0] == "6"
    app = (METRICS / name / about["app_file"]).read_text()
    assert f'"{name}.py"' in app and (METRICS / name / "requirements.txt").read_text().startswith(
        "transformers-valley[eval] @ git+"
    )
    assert len(about["description"]) > 20 and f'evaluate.load("{name}")' in text


@pytest.mark.parametrize("name", NAMES[1:])  # the first downloads an encoder
def test_example_of_a_readme(name, load, capsys):
    code, told = re.findall(r"```(?:python|text)\n(.*?)```", (METRICS / name / "README.md").read_text(), re.DOTALL)[:2]
    exec(code.replace("evaluate.load(", "load("), {"load": load})
    assert ast.literal_eval(capsys.readouterr().out) == pytest.approx(ast.literal_eval(told))


def test_page_of_a_metric():
    gradio = pytest.importorskip("gradio")
    from transformers_valley.evaluation.metric_app import metric_app

    app = metric_app(METRICS / "scienceqa_accuracy/scienceqa_accuracy.py")
    question = {"answer": 1, "subject": "natural science", "grade": "grade8", "hint": "", "image": ""}
    assert app.fn("[1]", json.dumps([question]))["Average"] == 100
    with pytest.raises(gradio.Error, match="JSONDecodeError"):
        app.fn("[1", "[]")


def test_video_qa_judge(load):
    verdicts = [{"pred": "yes", "score": 4.8}, {"pred": "no", "score": 1}]
    found = load("video_qa_judge").compute(predictions=verdicts)
    assert found == scores.video_qa_scores(verdicts) and found["score"] == 2.5


def test_scienceqa_accuracy(load):
    problems = json.loads((FILES / "science_qa/problems.json").read_text())
    results = json.loads((FILES / "science_qa/published.json").read_text())["llava"]
    references = [
        {key: problems[pid][key] or "" for key in ("subject", "grade", "hint", "image")}
        | {"answer": problems[pid]["answer"]}
        for pid in results
    ]
    found = load("scienceqa_accuracy").compute(predictions=list(results.values()), references=references)
    assert found["Average"] == pytest.approx(90) and found["IMG"] == pytest.approx(100 * 43 / 51)


def test_videobench(load):
    names = [name for group in scores.video_bench_columns([])[1:4] for name in [group.name]]
    sets = ["TVQA", "MV", "NBA"]
    references = [{"letter": "A", "data_set": name} for name in sets]
    found = load("videobench").compute(predictions=["A", "B", "B"], references=references)
    assert found == {"Prior-Knowledge": pytest.approx(100 / 3)} and "Prior-Knowledge" in names


def test_meme_bertscore(load, tmp_path):
    bert, texts, references = tiny_bert(tmp_path), ["a dog runs", ""], [["the dog", "a dog barks"], ["cars"]]
    found = load("meme_bertscore").compute(predictions=texts, references=references, model=bert, layer=2)
    assert found == bertscore_f1(texts, references, model=bert, layer=2) and found["empty"] == 1
