# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The commands people type, as they type them."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from clips import write_clip
from moving_shapes import clear_output
from transformers import AutoModelForImageTextToText


EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize("file", sorted((EXAMPLES / "accelerate").iterdir()), ids=lambda file: file.stem)
def test_accelerate_reads_its_configs(file):
    config = load_config_from_file(str(file))
    expected = {"cpu": "NO", "ddp_cpu": "MULTI_GPU", "multi_gpu": "MULTI_GPU"}.get(file.stem, "DEEPSPEED")
    assert config.distributed_type.value == expected
    assert config.use_cpu == file.stem.endswith("cpu")
    if expected == "DEEPSPEED":
        assert config.deepspeed_config["zero_stage"] == int(file.stem[-1])


def test_sft_stays_short():
    assert len((EXAMPLES / "sft.py").read_text().splitlines()) <= 100


@pytest.mark.slow
def test_quickstart_learns_what_it_promises(tmp_path):
    command = [sys.executable, str(EXAMPLES / "quickstart.py"), "--output", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["accuracy"] >= 0.9 > report["chance"]
    for kind in ("colour", "motion", "turn", "first colour", "last colour", "appear", "shape"):
        row = report["by_question"][kind]
        assert row["accuracy"] > row["chance"] and row["count"] > 50
    assert all(values[-1] < values[0] for values in report["losses"].values()) and len(report["losses"]) == 2
    assert report["seconds"] > 0
    assert (tmp_path / "report.png").stat().st_size > 10_000

    clip = write_clip(tmp_path / "clip.mp4", 20, fps=10)
    result = subprocess.run([*command, "--video", clip], capture_output=True, text=True)
    assert "8 frames, at 0.00" in result.stdout and "knows coloured shapes and nothing else" in result.stdout
    assert (tmp_path / "video.png").exists()
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    result = subprocess.run([*command, "--video", str(tmp_path / "broken.mp4")], capture_output=True, text=True)
    assert result.returncode == 1 and "broken.mp4" in result.stderr.splitlines()[-1]


def test_own_answers_become_preferences_and_are_learnt(checkpoint, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    example = importlib.import_module("fewer_hallucinations")
    captions = example.make_clips(tmp_path, "some", 4)
    monkeypatch.setattr(
        example, "describe", lambda _, clips, **how: ["a red bar", captions[clips[0]]] * (len(clips) // 2)
    )
    pairs = example.make_pairs(Path(checkpoint), captions, 2, tmp_path)
    assert {path.name for path in tmp_path.glob("*.*")} <= example.WRITTEN
    records = [json.loads(line) for line in pairs.read_text().splitlines()]
    made_up = {"red", "bar"} - set(captions[records[0]["video"]].split())
    assert made_up and records[0]["rejected"] == "a red bar" and records[0]["chosen"] == captions[records[0]["video"]]
    learnt = AutoModelForImageTextToText.from_pretrained(example.learn(Path(checkpoint), pairs, tmp_path / "out", 1))
    assert learnt.config.model_type == "valley"


@pytest.mark.slow
def test_accelerate_launch_trains_and_saves(checkpoint, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", 20, fps=10)
    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "Bars."}]
    (tmp_path / "rows.json").write_text(json.dumps([{"video": clip, "conversations": turns}] * 4))
    config = yaml.safe_load((EXAMPLES / "configs" / "stage2_instruct.yaml").read_text())
    config |= {
        "model_name_or_path": checkpoint,
        "data": [str(tmp_path / "rows.json")],
        "output_dir": str(tmp_path / "out"),
        "dtype": "float32",
        "bf16": False,
        "use_cpu": True,
        "num_train_epochs": 1,
        "report_to": "none",
        "dataloader_num_workers": 2,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(EXAMPLES / "accelerate" / "cpu.yaml")]
    command += [str(EXAMPLES / "sft.py"), "--config", str(tmp_path / "config.yaml")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "loss" in (tmp_path / "out" / "trainer_state.json").read_text()
    AutoModelForImageTextToText.from_pretrained(tmp_path / "out")


@pytest.mark.slow
def test_datatrove_packs_as_the_command_does(tmp_path):
    pytest.importorskip("datatrove", reason="datatrove is not installed: pip install 'transformers-valley[scale]'")
    rows = [{"video": f"{number}.mp4", "question": "What?", "answer": "Bars."} for number in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for row in rows:
        write_clip(tmp_path / row["video"], 50, fps=10)
    script = [sys.executable, str(EXAMPLES / "pack_with_datatrove.py"), "--tasks", "2", "--logs", "logs"]  # of all
    command = [sys.executable, "-m", "valley_cli", "data", "pack", "--num-shards", "2"]
    for words, output in ((script, "other"), (script, "tasks"), (command, "shards")):
        environment = os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "cache")}
        words = [*words, "rows.jsonl", "-o", output, "--media-root", "."]
        subprocess.run(words, cwd=tmp_path, env=environment, check=True, capture_output=True)
    files = [{file.name: file.read_bytes() for file in (tmp_path / name).glob("*.*")} for name in ("tasks", "shards")]
    for made in files:
        assert b"What cannot be passed on" in made.pop("README.md")  # with another command in it
    assert files[0] == files[1] and len(files[0]) == 3


def test_an_example_empties_the_folder_that_it_made(tmp_path):
    folder = tmp_path / "new" / "output"
    for _ in range(2):
        clear_output(folder, "quickstart", {"clips", "report.json"})
        assert [path.name for path in folder.iterdir()] == [".made-by-quickstart"]
        (folder / "clips").mkdir()
        (folder / "clips" / "0.mp4").write_text("a clip")
        (folder / "report.json").write_text("{}")


@pytest.mark.parametrize("name", ["clips/mine.mp4", "report.json", ".git/HEAD", "thesis.tex"])
def test_a_folder_that_an_example_did_not_make_is_left_alone(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("years of work")
    for example in ("quickstart", "fewer_hallucinations"):
        with pytest.raises(SystemExit, match=rf"is not empty, .* \.made-by-{example} .* Delete the folder, or"):
            clear_output(tmp_path, example, {"clips", "report.json"})
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]


@pytest.mark.parametrize("name", ["video.mp4", "thesis.tex", ".git", ".made-by-fewer_hallucinations"])
def test_what_an_example_did_not_write_is_not_deleted(tmp_path, name):
    clear_output(tmp_path, "quickstart", {"video.png"})
    (tmp_path / "video.png").write_text("a picture")
    (tmp_path / name).write_text("years of work")
    with pytest.raises(SystemExit, match=f"holds '{name}', which would be deleted. Name another folder"):
        clear_output(tmp_path, "quickstart", {"video.png"})
    assert (tmp_path / name).exists() and (tmp_path / "video.png").exists()


def test_output_has_to_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="file is a file, expected a folder"):
        clear_output(tmp_path / "file", "quickstart", set())


def test_links_in_an_output_are_not_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.mp4").write_text("a clip")
    for _ in range(2):
        clear_output(tmp_path / "output", "quickstart", {"clips"})
        (tmp_path / "output" / "clips").symlink_to(tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "mine.mp4").exists()


def test_quickstart_refuses_a_folder_with_clips_of_ones_own(tmp_path):
    clip = write_clip(tmp_path / "video.mp4", 20, fps=10)
    command = [sys.executable, str(EXAMPLES / "quickstart.py"), "--output", str(tmp_path), "--video", clip]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1 and "is not empty" in result.stderr.splitlines()[-1]
    assert [str(path) for path in tmp_path.iterdir()] == [clip]
