# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`examples/reproduce.sh` and the recipe for clips of one's own, on tiny models."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import sft
from accelerate.commands.launch import launch_command_parser
from clips import write_clip
from test_stages import arguments
from tiny import tiny_text, tiny_tokenizer, tiny_vision
from transformers import AutoModelForImageTextToText, CLIPImageProcessor, pipeline
from trl import ModelConfig, SFTConfig, TrlParser

from transformers_valley.training import ValleyArguments


ROOT = Path(sft.__file__).parent.parent
SCRIPT = ROOT / "examples" / "reproduce.sh"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("my_clips")
    clip = write_clip(folder / "clip.mp4", 30, fps=10)
    lines = []
    for index in range(8):
        question = [{"type": "video", "path": Path(clip).name}, {"type": "text", "text": "What happens?"}]
        answer = {"role": "assistant", "content": f"Bar {index} moves."}
        lines.append(json.dumps({"messages": [{"role": "user", "content": question}, answer]}))
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return folder / "rows.jsonl"


def reproduce(*flags, **variables):
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    return subprocess.run([SCRIPT, *flags], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("gpus", [8, 4, 1])
def test_reproduce_keeps_the_papers_batches(gpus, monkeypatch):
    result = reproduce("--report_to", "none", DRY_RUN=1, GPUS=gpus)
    assert result.returncode == 0, result.stderr
    commands = [shlex.split(line) for line in result.stdout.splitlines() if line.startswith("accelerate")]
    monkeypatch.chdir(ROOT)
    stages = []
    for _, _, *words in commands:
        launch = launch_command_parser().parse_args(words)
        assert launch.num_processes == gpus and Path(launch.config_file).exists()
        parser = TrlParser((ValleyArguments, SFTConfig, ModelConfig))
        stages.append(parser.parse_args_and_config([*launch.training_script_args, "--use_cpu", "true"]))
        assert stages[-1][1].report_to == []
    batches = [args.per_device_train_batch_size * args.gradient_accumulation_steps * gpus for _, args, _ in stages]
    assert batches == [128, 32]
    (begin, first, text), (_, _, start) = stages
    assert begin.vision_model_name_or_path and text.model_name_or_path == "lmsys/vicuna-13b-v1.5"
    assert start.model_name_or_path == first.output_dir


def test_reproduce_refuses_what_would_change_the_batch():
    result = reproduce(DRY_RUN=1, GPUS=3)
    assert result.returncode == 1 and "GPUS=3 does not divide 8" in result.stderr and not result.stdout


@pytest.mark.slow
def test_reproduce_runs_both_stages_and_none_twice(rows, tmp_path):
    size, crop_size = {"shortest_edge": 28}, {"height": 28, "width": 28}
    for part in (tiny_vision(), CLIPImageProcessor(size=size, crop_size=crop_size)):
        part.save_pretrained(tmp_path / "vision")
    for part in (tiny_text(), tiny_tokenizer()):
        part.save_pretrained(tmp_path / "text")
    places = {"VISION": tmp_path / "vision", "TEXT": tmp_path / "text", "OUTPUT": tmp_path / "outputs"}
    places |= {"GPUS": 1, "LAUNCHER": ROOT / "examples" / "accelerate" / "cpu.yaml"}
    flags = ["--use_cpu", "true", "--bf16", "false", "--dtype", "float32", "--report_to", "none"]
    flags += ["--per_device_train_batch_size", "1", "--dataloader_num_workers", "1", "--num_train_epochs", "1"]
    flags += ["--data", str(rows), "--media_root", str(rows.parent)]
    result = reproduce(*flags, **places)
    assert result.returncode == 0, result.stderr
    AutoModelForImageTextToText.from_pretrained(tmp_path / "outputs" / "stage2_instruct")
    again = reproduce(*flags, **places)
    assert again.returncode == 0 and again.stdout.count("is done") == 2


def test_a_valley_is_fine_tuned_on_clips_of_ones_own(checkpoint, rows, tmp_path):
    options = {"media_root": rows.parent, "per_device_train_batch_size": 1, "lora_r": 4, "learning_rate": 0.01}
    options |= {"num_train_epochs": 3, "gradient_accumulation_steps": 2}
    trainer = sft.main(arguments("fine_tune_lora.yaml", checkpoint, rows, tmp_path / "out", **options))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 12 and losses[-1] < losses[0] - 0.5
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "multi_modal_projector" in name for name in trained)
    pipe = pipeline("video-text-to-text", model=str(tmp_path / "out"))
    (answer,) = pipe(str(rows.parent / "clip.mp4"), "What happens?", max_new_tokens=4, return_full_text=False)
    assert answer["generated_text"]
