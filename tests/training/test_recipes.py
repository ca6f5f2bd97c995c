# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`examples/reproduce.sh` and the recipe for clips of one's own, on tiny models."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import sft
from accelerate.commands.launch import launch_command_parser
from clips import write_clip
from launching import arguments
from tiny import tiny_text, tiny_tokenizer, tiny_vision
from transformers import AutoModelForImageTextToText, CLIPImageProcessor, pipeline
from trl import ModelConfig, SFTConfig, TrlParser

from transformers_valley.training import ValleyArguments
from transformers_valley.training.checks import check_arguments


ROOT = Path(sft.__file__).parent.parent
SCRIPT = ROOT / "examples" / "reproduce.sh"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("my_clips")
    clip = write_clip(folder / "clip.mp4", 30, fps=10)
    lines = []
    for index in range(10):
        question = [{"type": "video", "path": Path(clip).name}, {"type": "text", "text": "What happens?"}]
        answer = {"role": "assistant", "content": f"Bar {index} moves."}
        lines.append(json.dumps({"messages": [{"role": "user", "content": question}, answer]}))
    (folder / "rows.jsonl").write_text("\n".join(lines[:8]))
    (folder / "held_out.jsonl").write_text("\n".join(lines[8:]))
    return folder / "rows.jsonl"


def reproduce(*flags, programs=Path(sys.executable).parent, **variables):
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    environment["PATH"] = f"{programs}:{environment['PATH']}"
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


@pytest.mark.parametrize("gpus", [0, 3, 16])
def test_reproduce_refuses_what_would_change_the_batch(gpus):
    result = reproduce(DRY_RUN=1, GPUS=gpus)
    assert result.returncode == 1 and not result.stdout
    assert re.search(rf"GPUS={gpus} does not divide 8. Print .* with DRY_RUN=1.*--num_processes {gpus}", result.stderr)


def test_reproduce_goes_on_with_a_stage_that_was_killed(tmp_path):
    """`config.json` is written before the weights, `trainer_state.json` after them."""
    (tmp_path / "accelerate").write_text("#!/bin/sh\n")
    (tmp_path / "accelerate").chmod(0o755)
    for folder, files in (
        ("stage1_align", ["config.json", "trainer_state.json"]),
        ("stage2_instruct", ["config.json"]),
    ):
        (tmp_path / folder).mkdir()
        for file in files:
            (tmp_path / folder / file).touch()
    result = reproduce(OUTPUT=tmp_path, programs=tmp_path)
    assert result.returncode == 0 and "# stage1_align is done" in result.stdout
    (command,) = (line for line in result.stdout.splitlines() if line.startswith("accelerate"))
    assert "stage2_instruct.yaml" in command and "--resume_from_checkpoint auto" in command


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
    (tmp_path / "outputs" / "stage2_instruct" / "trainer_state.json").unlink()  # killed just before the end
    again = reproduce(*flags, **places)
    assert again.returncode == 0 and again.stdout.count("is done") == 1
    assert "Resuming from" in again.stdout


def test_a_valley_is_fine_tuned_on_clips_of_ones_own(checkpoint, rows, tmp_path):
    options = {"media_root": rows.parent, "per_device_train_batch_size": 1, "lora_r": 4, "learning_rate": 0.01}
    options |= {"num_train_epochs": 3, "gradient_accumulation_steps": 2, "eval_data": rows.parent / "held_out.jsonl"}
    options |= {"preview_steps": 0}  # which take longer than all steps
    trainer = sft.main(arguments("fine_tune_lora.yaml", checkpoint, rows, tmp_path / "out", **options))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 12 and losses[-1] < losses[0] - 0.5
    held_out = [entry["eval_held_out_loss"] for entry in trainer.state.log_history if "eval_held_out_loss" in entry]
    assert len(held_out) == 3 and held_out[-1] < held_out[0]
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "multi_modal_projector" in name for name in trained)
    pipe = pipeline("video-text-to-text", model=str(tmp_path / "out"))
    (answer,) = pipe(str(rows.parent / "clip.mp4"), "What happens?", max_new_tokens=4, return_full_text=False)
    assert answer["generated_text"]


def test_the_small_recipes_join_align_and_instruct(rows, tmp_path):
    """On parts of the same kinds as theirs: a CLIP and a Qwen3."""
    size, crop_size = {"shortest_edge": 28}, {"height": 28, "width": 28}
    for part in (tiny_vision(), CLIPImageProcessor(size=size, crop_size=crop_size)):
        part.save_pretrained(tmp_path / "vision")
    for part in (tiny_text("qwen3"), tiny_tokenizer()):
        part.save_pretrained(tmp_path / "text")
    options = {"media_root": rows.parent, "max_steps": 2, "gradient_accumulation_steps": 1}
    vision = {"vision_model_name_or_path": tmp_path / "vision"}
    sft.main(arguments("small_align.yaml", tmp_path / "text", rows, tmp_path / "aligned", **options, **vision))
    sft.main(arguments("small_instruct.yaml", tmp_path / "aligned", rows, tmp_path / "out", **options))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert model.config.text_config.model_type == "qwen3" and model.config.temporal_module == "transformer"
    pipe = pipeline("video-text-to-text", model=str(tmp_path / "out"))
    (answer,) = pipe(str(rows.parent / "clip.mp4"), "What happens?", max_new_tokens=4, return_full_text=False)
    assert answer["generated_text"]


@pytest.mark.parametrize("recipe", ["stage1_align", "stage2_instruct", "stage2_lora"])
def test_the_lines_that_switch_watching_on_are_right(recipe, checkpoint, tmp_path):
    text = (ROOT / "examples" / "configs" / f"{recipe}.yaml").read_text()
    text, number = re.subn(r"^# (?=(eval|preview)_\w+: )", "", text, flags=re.MULTILINE)
    assert number == 4
    (tmp_path / "recipe.yaml").write_text(text)
    flags = ["--model_name_or_path", checkpoint, "--vision_model_name_or_path", "", "--use_cpu", "true"]
    parser = TrlParser((ValleyArguments, SFTConfig, ModelConfig))
    recipe = parser.parse_args_and_config(["--config", str(tmp_path / "recipe.yaml"), *flags])
    check_arguments(*recipe)
    assert recipe[0].eval_data == recipe[0].preview_data and recipe[1].eval_steps == recipe[1].save_steps
