# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`valley train`: which recipe is meant, what its flags become, how it is launched."""

import re
import sys

import pytest
from typer.testing import CliRunner

from transformers_valley import training
from transformers_valley.data.mixtures import read_mixture
from valley_cli import train
from valley_cli.app import app


RECIPES = ["fine_tune_lora", "small_align", "small_instruct", "stage1_align", "stage2_instruct", "stage2_lora"]

ON_CPU = ["--use-cpu", "true", "--bf16", "false"]


@pytest.fixture
def trained(monkeypatch):
    """What would be trained."""
    runs = []
    monkeypatch.setattr(training, "train", runs.append)
    return runs


@pytest.fixture
def launched(monkeypatch):
    commands = []

    def replace_process(program, command):
        commands.append((program, command))
        raise SystemExit

    monkeypatch.setattr(train.os, "execv", replace_process)
    return commands


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_found_by_name(name, trained):
    result = CliRunner().invoke(app, ["train", name])
    assert result.exit_code == 0, result.output
    ((key, path),) = trained
    assert key == "--config" and path.endswith(f"{name}.yaml")
    assert "model_name_or_path" in open(path).read()


def test_outside_of_a_clone_a_recipe_trains_on_the_mixture_of_the_package(tmp_path, monkeypatch, trained, launched):
    monkeypatch.chdir(tmp_path)
    CliRunner().invoke(app, ["train", "stage2_lora", "--max-steps", "3"])
    (flags,) = trained
    assert flags[2:5] == ["--max_steps", "3", "--data"] and len(flags) == 6
    assert [source.name for source in read_mixture(flags[5])][0] == "valley_instruct_65k"
    for given in (["--data", "rows.jsonl"], ["--dataset=owner/name"]):
        CliRunner().invoke(app, ["train", "stage2_lora", *given])
        assert trained[-1][2:] == given
    CliRunner().invoke(app, ["train", "stage2_lora", "--accelerate-config", "cpu"])
    assert launched[-1][1][-2:] == flags[4:]
    (tmp_path / "examples" / "mixtures").mkdir(parents=True)
    (tmp_path / "examples" / "mixtures" / "stage2.yaml").touch()
    CliRunner().invoke(app, ["train", "stage2_lora"])
    assert len(trained[-1]) == 2


def test_a_file_comes_before_a_name(tmp_path, monkeypatch, trained):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stage1_align").write_text("data: [rows.jsonl]\n")
    CliRunner().invoke(app, ["train", "stage1_align"])
    assert trained == [["--config", "stage1_align"]]


def test_flags_are_kebab_case_or_as_in_the_recipe(trained):
    words = ["--learning-rate", "1e-4", "--output_dir=my-runs/a-b", "--lora-alpha=8", "--data", "a-b.jsonl", "-c"]
    CliRunner().invoke(app, ["train", "stage1_align", *words])
    assert trained[0][2:] == [
        *["--learning_rate", "1e-4", "--output_dir=my-runs/a-b", "--lora_alpha=8", "--data", "a-b.jsonl", "-c"]
    ]


@pytest.mark.parametrize("name", ["zero2", "zero3", "multi_gpu", "cpu", "ddp_cpu"])
def test_it_launches_itself_by_accelerate(name, launched, trained, monkeypatch):
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 8)
    CliRunner().invoke(app, ["train", "stage1_align", "--accelerate-config", name, "--max-steps", "3"])
    ((program, command),) = launched
    assert program == sys.executable and command[1:3] == ["-m", "accelerate.commands.launch"]
    assert command[4].endswith(f"{name}.yaml") and command[5:8] == ["-m", "valley_cli", "train"]
    assert command[8].endswith("stage1_align.yaml") and command[9:] == ["--max_steps", "3"]
    assert not trained


def test_it_launches_as_many_processes_as_one_says(launched, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 4)
    words = ["train", "stage1_align", "--accelerate-config", "zero2"]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 1 and not launched
    assert "zero2.yaml starts 8 processes on GPUs, and torch finds 4 here. Add --num-processes 4" in refused.stderr
    CliRunner().invoke(app, [*words, "--num-processes", "4"])
    assert launched[-1][1][5:8] == ["--num_processes", "4", "-m"]
    CliRunner().invoke(app, [*words, "--num_processes", "3"])
    assert launched[-1][1][5:8] == ["--num_processes", "3", "-m"]
    assert CliRunner().invoke(app, [*words, "--use-cpu", "false"]).exit_code == 1
    CliRunner().invoke(app, [*words, "--use-cpu", "true"])
    assert launched[-1][1][-2:] == ["--use_cpu", "true"]
    recipe = tmp_path / "cpu.yaml"
    recipe.write_text("use_cpu: true\n")
    CliRunner().invoke(app, ["train", str(recipe), *words[2:]])
    assert launched[-1][1][-1] == str(recipe)
    for text in (
        "mixed_precision: bf16\n",
        "distributed_type: 'NO'\nnum_processes: 9\n",
        "distributed_type: MULTI_GPU\nnum_machines: 2\n",
    ):
        (tmp_path / "launcher.yaml").write_text(text)
        CliRunner().invoke(app, [*words[:3], str(tmp_path / "launcher.yaml")])
        assert launched.pop()[1][4] == str(tmp_path / "launcher.yaml")


@pytest.mark.parametrize(
    "words, message",
    [
        (["train", "stage3"], "There is no recipe stage3: neither a file, nor one .* stage1_align, stage2_instruct"),
        (["train", "gone.yaml"], "There is no recipe gone.yaml"),
        (["train", "stage1_align", "--accelerate-config", "zero9"], "no config of Accelerate zero9: .* zero2, zero3"),
        (
            ["train", "stage1_align", *ON_CPU, "stray"],
            r"\['stray'\] follow no flag: write --name before each value",
        ),
        (
            ["train", "stage1_align", "--num-processes", "2"],
            "--num-processes needs a launcher: add --accelerate-config",
        ),
        (["train", "estimate", "stage3"], "There is no recipe stage3"),
        (["train", "stage1_align", "--use-cpu", "true", "--nonsense"], "There is no argument nonsense\\.$"),
        (
            ["train", "stage1_align", *ON_CPU, "--learn-rate", "1e-3"],
            "no argument learn_rate; did you mean learning_rate?",
        ),
        (
            ["train", "stage1_align", *ON_CPU, "--learning-rat", "1e-3"],
            "no argument learning_rat; did you mean learning_rate?",
        ),
        (["train", "stage1_align", "--learning-rate", "fast"], "invalid float value: 'fast'"),
    ],
)
def test_mistakes_are_said_in_one_line(words, message):
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert re.search(message, result.stderr), result.stderr


@pytest.mark.parametrize("words", [["train", "FILE"], ["train", "stage1_align", "--accelerate-config", "FILE"]])
@pytest.mark.parametrize(
    "text, message",
    [
        (b"", "settings.yaml holds nothing, expected settings, lines such as `learning_rate: 1e-4`."),
        (b"- model\n", "settings.yaml holds a list, expected settings"),
        (b"data: [rows", "settings.yaml is not YAML: while parsing a flow sequence"),
        (b"\xff\xfe", "settings.yaml is not YAML: 'utf-8' codec can't decode"),
    ],
)
def test_a_file_without_settings_is_named(words, text, message, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_bytes(text)
    result = CliRunner().invoke(app, [str(file) if word == "FILE" else word for word in words])
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1 and message in result.stderr
