# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What `valley train estimate` says, against what a real run of the same recipe takes."""

import functools
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import sft
import torch
from clips import write_clip
from test_docs import ROOT, tables
from test_stages import CONFIGS, arguments
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from transformers import CLIPVisionConfig, LlamaConfig
from typer.testing import CliRunner

from transformers_valley import ValleyConfig
from transformers_valley.cli import app
from transformers_valley.training import estimate as estimating
from transformers_valley.training.estimate import GIB, GPUS, estimate, format_estimate, read_model_config, read_recipe


JOINED = ["--vision_model_name_or_path", "openai/clip-vit-large-patch14", "--model_name_or_path"]
VICUNA = ["--config", str(CONFIGS / "stage2_instruct.yaml"), *JOINED, "lmsys/vicuna-13b-v1.5"]


def table(page):
    """Rows of the page's table of what recipes take."""
    (found,) = (rows for rows in tables(ROOT / page) if rows[0][:2] == ["recipe", "language model"])
    return found[1:]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Rows of one length, each with a clip of two frames."""
    folder = tmp_path_factory.mktemp("rows")
    clip = write_clip(folder / "clip.mp4", 30, fps=10)
    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "Bars."}]
    (folder / "rows.json").write_text(json.dumps([{"video": clip, "conversations": turns}] * 4))
    return folder / "rows.json"


@pytest.fixture(scope="module")
def found(checkpoint):
    """Stage 2 on four GPUs, with everything trained."""
    flags = ["--config", str(CONFIGS / "stage2_instruct.yaml"), "--model_name_or_path", checkpoint]
    flags += ["--trainable_modules", "model", "lm_head"]
    return estimate(*read_recipe(flags), num_gpus=4, num_frames=2, text_tokens=8)


@pytest.mark.parametrize("config", ["stage1_align.yaml", "stage2_instruct.yaml", "stage2_lora.yaml"])
def test_an_estimate_agrees_with_a_run(config, checkpoint, rows, tmp_path):
    flags = arguments(config, checkpoint, rows, tmp_path / "out", vision_model_name_or_path="", lora_r=4)
    trainer = sft.main([*flags, "--gradient_checkpointing", "false"])
    batch = next(iter(trainer.get_train_dataloader()))
    # What the trainer's own forward pass keeps for its backward pass.
    real = saved_bytes(trainer.model, lambda: trainer.compute_loss(trainer.model, batch))
    text = batch["input_ids"].shape[1] - 6  # 4 patches and 2 frames
    valley_args, training_args, model_args = read_recipe(flags)
    found = estimate(valley_args, training_args, model_args, num_gpus=1, num_frames=2, text_tokens=text)

    kept = [p for name, p in trainer.model.named_parameters() if "original_module" not in name]
    assert sum(part.total for part in found.parameters.values()) == sum(p.numel() for p in kept)
    trained = [p for p in kept if p.requires_grad]
    assert sum(part.trained for part in found.parameters.values()) == sum(p.numel() for p in trained)
    (memory,) = found.memory.values()
    assert memory.gradients == sum(p.numel() * p.element_size() for p in trained)
    states = [value for state in trainer.optimizer.state.values() for value in state.values()]
    assert memory.optimizer == sum(value.numel() * value.element_size() for value in states if value.ndim)
    model = estimating._build(read_model_config(valley_args, model_args), valley_args, model_args)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu").train()
        assert saved_bytes(model, lambda: estimating._forward(model, (4, 2, text), None)) == pytest.approx(
            real, rel=0.2
        )


def saved_bytes(model, run):
    """Bytes that a forward pass keeps, each storage once, without the weights."""
    weights = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        loss = run()
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in kept}
    assert loss.requires_grad
    return sum(size for storage, size in storages.items() if storage not in weights)


MEASURE = """
    import ctypes, gc, json, sys, torch
    from types import SimpleNamespace
    from pathlib import Path
    from transformers_valley import ValleyForConditionalGeneration
    from transformers_valley.training import estimate as estimating, set_trainable

    def kilobytes(field):
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
        return int(line.split()[1])

    torch.set_num_threads(1)
    recipe = estimating.read_recipe(sys.argv[1:])
    found = estimating.estimate(*recipe, num_gpus=1)
    (memory,) = found.memory.values()
    model = ValleyForConditionalGeneration(estimating.read_model_config(recipe[0], recipe[2]))
    set_trainable(model, recipe[0].trainable_modules)
    data = {name: getattr(torch, name) for name in ("autocast", "stack", "cat", "long")}
    estimating.torch = SimpleNamespace(**data, empty=torch.zeros)  # tokens have to be tokens
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    model.train()
    for recompute in (True, False):
        model.gradient_checkpointing_enable() if recompute else model.gradient_checkpointing_disable()
        estimating._forward(model, (1, 1, 8), None).backward()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = kilobytes("VmRSS")
        estimating._forward(model, (4, 8, 256), None).backward()
        print(json.dumps([memory.total(recompute) - sum(memory[:4]), (kilobytes("VmHWM") - before) * 1024]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
@pytest.mark.parametrize("config", ["stage1_align", "stage2_instruct"])
def test_estimated_activations_agree_with_resident_memory(config, tmp_path):
    vision = dict(hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=6)
    text = dict(hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8, vocab_size=8000)
    vision = CLIPVisionConfig(**vision, patch_size=14, image_size=224)
    ValleyConfig(vision_config=vision, text_config=LlamaConfig(**text)).save_pretrained(tmp_path)
    flags = ["--config", CONFIGS / f"{config}.yaml", "--model_name_or_path", tmp_path, "--dtype", "float32"]
    flags += ["--vision_model_name_or_path", "", "--bf16", "false", "--per_device_train_batch_size", "4"]
    # Small pieces go back to the system at once, too: what is resident is what is in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), *map(str, flags)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    for computed, measured in map(json.loads, result.stdout.splitlines()[-2:]):
        assert computed == pytest.approx(measured, rel=0.25)


def test_arithmetic_is_that_of_the_rule_of_thumb(tmp_path):
    """Two operations per weight and token forward, two for gradients of activations, two for those of weights."""
    text = LlamaConfig(vocab_size=100, hidden_size=256, intermediate_size=1024, num_hidden_layers=4)
    sizes = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    vision = CLIPVisionConfig(**sizes, image_size=28, patch_size=14)
    ValleyConfig(vision_config=vision, text_config=text, temporal_intermediate_size=8).save_pretrained(tmp_path)
    tokens = 2 * (4 + 1 + 27)
    for config, factor in (("stage1_align", 4), ("stage2_instruct", 6)):
        flags = ["--config", str(CONFIGS / f"{config}.yaml"), "--vision_model_name_or_path", ""]
        valley_args, _, model_args = read_recipe([*flags, "--model_name_or_path", str(tmp_path)])
        model = estimating._build(read_model_config(valley_args, model_args), valley_args, model_args)
        weights = sum(p.numel() for p in model.model.language_model.layers.parameters())
        with FakeTensorMode(allow_non_fake_inputs=True):
            flops, recomputed = estimating._count_flops(model.to_empty(device="cpu"), (2, 1, 27), None)
        assert recomputed == pytest.approx(2 * weights * tokens, rel=0.05)
        assert flops == pytest.approx(factor * weights * tokens, rel=0.05)


def test_weights_are_spread_as_deepspeed_says(found):
    zero2 = pytest.importorskip("deepspeed.runtime.zero.stage_1_and_2")
    total = sum(part.total for part in found.parameters.values())
    _, expected = zero2.estimate_zero2_model_states_mem_needs(total, num_gpus_per_node=4, cpu_offload=False)
    assert sum(found.memory["ZeRO-2"][:3]) == pytest.approx(expected, rel=0.01)  # it leaves out buffers
    assert found.memory["ZeRO-3"].weights == found.memory["ZeRO-2"].weights / 4
    assert found.memory["ZeRO-1"].gradients > found.memory["ZeRO-2"].gradients
    assert found.memory["DDP"].weights > found.memory["ZeRO-2"].weights  # float32 there, bfloat16 here


def test_quantized_weights_take_four_bits(checkpoint):
    flags = ["--config", str(CONFIGS / "stage2_lora.yaml"), "--model_name_or_path", checkpoint, "--lora_r", "4"]
    found = []
    for value in ("false", "true"):
        valley_args, _, model_args = read_recipe([*flags, "--load_in_4bit", value])
        model = estimating._build(read_model_config(valley_args, model_args), valley_args, model_args)
        found.append(estimating._bytes(model, model_args))
    adapters = sum(p.numel() for p in model.parameters() if p.requires_grad)  # which are bfloat16 then, too
    config = ValleyConfig.from_pretrained(checkpoint).text_config
    mlp = 3 * config.hidden_size * config.intermediate_size
    attention = 2 * config.hidden_size * (config.num_attention_heads + config.num_key_value_heads) * config.head_dim
    spared = (2 - 0.5 - 4 / 64) * config.num_hidden_layers * (mlp + attention)
    assert found[0] - found[1] == spared + 2 * adapters


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model_name_or_path", "outputs/nowhere"], "No config was found for 'outputs/nowhere'.*Known without"),
        (["--model_name_or_path", "lmsys/vicuna-7b-v1.5"], "is a llama and no Valley. Name the vision model"),
        ([*JOINED, "lmsys/vicuna-7b-v1.5", "--max_length", "200"], "max_length=200 leaves no room for text"),
        ([*JOINED, "lmsys/vicuna-7b-v1.5", "--trainable_modules", "model.projector"], "has no such module"),
    ],
)
def test_what_cannot_be_estimated_is_said_in_one_line(flags, message):
    recipe = str(CONFIGS / "stage2_instruct.yaml")
    result = CliRunner().invoke(app, ["train", "estimate", "--config", recipe, *flags])
    assert result.exit_code == 1
    assert re.search(message, result.stderr), result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_an_unknown_optimizer_is_refused(checkpoint):
    flags = ["--config", str(CONFIGS / "stage2_instruct.yaml"), "--model_name_or_path", checkpoint]
    with pytest.raises(ValueError, match="What optim='adafactor' holds"):
        estimate(*read_recipe([*flags, "--optim", "adafactor"]), num_gpus=1, num_frames=2, text_tokens=8)


@pytest.mark.parametrize("name", [name for name in estimating.KNOWN_CONFIGS if "clip" not in name])
def test_known_decoders_have_the_weights_they_are_named_after(name):
    recipe = read_recipe(["--config", str(CONFIGS / "stage1_align.yaml"), *JOINED, name])
    with torch.device("meta"):
        counts = estimating._count(estimating._build(read_model_config(recipe[0], recipe[2]), recipe[0], recipe[2]))
    billions = (counts["language_model"].total + counts["lm_head"].total) / 1e9
    expected = {"vicuna-7b": 6.74, "vicuna-13b": 13.02, "Llama-3-8B": 8.03, "Qwen3-8B": 8.19}
    assert billions == pytest.approx(next(size for part, size in expected.items() if part in name), abs=0.01)


@functools.cache
def estimate_once(recipe, model):
    return estimate(*read_recipe(["--config", str(CONFIGS / f"{recipe}.yaml"), *JOINED, model]))


@pytest.mark.slow
@pytest.mark.parametrize("row", table("docs/how-to/train_both_stages.md"), ids=" ".join)
def test_what_the_docs_say_a_recipe_takes(row):
    recipe, model, launcher, gibibytes, seconds, hours = row
    found = estimate_once(recipe, model)
    assert found.memory[launcher].total(recompute=True) / GIB == pytest.approx(float(gibibytes), abs=0.5)
    step = (found.flops + found.recompute_flops) / GPUS["A100-80GB"].flops / 0.4
    assert step == pytest.approx(float(seconds), rel=0.02)
    rows = 1_297_000 if recipe == "stage1_align" else 702_000
    assert rows / found.rows_per_step * step / 3600 == pytest.approx(float(hours), rel=0.03)


def test_the_command_prints_tables(checkpoint):
    command = ["train", "estimate", "--config", str(CONFIGS / "stage2_instruct.yaml")]
    command += ["--num-gpus", "2", "--gpu", "H100", "--frames", "2", "--rows", "1000", "--utilization", "0.5"]
    result = CliRunner().invoke(app, [*command, "--model_name_or_path", checkpoint])
    assert result.exit_code == 0, result.stderr
    for word in (
        "| vision_tower |",
        "| DDP |",
        "| ZeRO-3 |",
        "4 + 2 positions",
        "minutes for 1,000 rows",
        "assumption",
    ):
        assert word in result.stdout
    assert "50% of the 989 TFLOP/s of a H100" in result.stdout


def test_what_does_not_fit_says_no(found):
    memory = found.memory["ZeRO-2"]
    enough = memory.total(recompute=True) / GIB / 0.9
    for share, answer in ((1.001, "yes or no"), (0.999, "no or no")):
        (line,) = (x for x in format_estimate(found, "H100", memory=enough * share).splitlines() if "ZeRO-2" in x)
        assert line.endswith(f"| {answer} |")
