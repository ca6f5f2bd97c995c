# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What `valley train estimate` says, against what a real run of the same recipe takes."""

import copy
import functools
import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import get_args

import click
import pytest
import sft
import torch
import typer
from clips import write_clip
from launching import CONFIGS, arguments
from peft import LoraConfig, get_peft_model
from test_docs import PAGES, ROOT, commands, tables
from test_stages import STAGE1, STAGE2
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    Trainer,
    TrainingArguments,
)
from typer.main import get_command
from typer.testing import CliRunner

from transformers_valley import ValleyConfig, ValleyForConditionalGeneration
from transformers_valley.training import estimate as estimating
from transformers_valley.training import set_trainable
from transformers_valley.training.activations import count_step
from transformers_valley.training.estimate import GIB, GPUS, estimate, format_estimate, read_model_config, read_recipe
from transformers_valley.training.parameters import count_parameters
from valley_cli import train
from valley_cli.app import app


JOINED = ["--vision_model_name_or_path", "openai/clip-vit-large-patch14", "--model_name_or_path"]
ADAPTED = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
VICUNA = ["--config", str(CONFIGS / "stage2_instruct.yaml"), *JOINED, "lmsys/vicuna-13b-v1.5"]


def table(page, *header):
    """Rows of the page's table that begins with these column names."""
    (found,) = (rows for rows in tables(ROOT / page) if rows[0][: len(header)] == list(header))
    return found[1:]


def write_config(folder, **text):
    """Of a model without a temporal module, and with the smallest vision tower."""
    sizes = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    parts = dict(vision_config=CLIPVisionConfig(**sizes, image_size=28, patch_size=14))
    parts["text_config"] = LlamaConfig(**{"vocab_size": 100, "num_attention_heads": 4, **text})
    ValleyConfig(**parts, temporal_module="mean").save_pretrained(folder)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Rows of one length, each with a clip of two frames."""
    folder = tmp_path_factory.mktemp("rows")
    clip = write_clip(folder / "clip.mp4", 30, fps=10)
    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "Bars."}]
    (folder / "rows.json").write_text(json.dumps([{"video": clip, "conversations": turns}] * 2))
    return folder / "rows.json"


@pytest.fixture(scope="module")
def found(checkpoint):
    """Stage 2 on four GPUs, with everything trained."""
    flags = ["--config", str(CONFIGS / "stage2_instruct.yaml"), "--model_name_or_path", checkpoint]
    flags += ["--trainable_modules", "model", "lm_head"]
    return estimate(*read_recipe(flags), num_gpus=4, num_frames=2, text_tokens=8)


@pytest.mark.parametrize(
    ("config", "flags"),
    [
        ("stage1_align", {"vision_model_name_or_path": ""}),
        pytest.param("stage2_instruct", {}, marks=pytest.mark.slow),
        ("stage2_lora", {"lora_r": 4, "dtype": "bfloat16", "bf16": True}),
    ],
)
def test_an_estimate_agrees_with_a_run(config, flags, checkpoint, rows, tmp_path):
    flags = {"per_device_train_batch_size": 2, **flags}
    flags = arguments(f"{config}.yaml", checkpoint, rows, tmp_path / "out", **flags)
    trainer = sft.main([*flags, "--gradient_checkpointing", "false"])
    found = estimate(*read_recipe(flags), num_gpus=1, num_frames=2, text_tokens=8)

    kept = [p for name, p in trainer.model.named_parameters() if "original_module" not in name]
    assert sum(part.total for part in found.parameters.values()) == sum(p.numel() for p in kept)
    trained = [p for p in kept if p.requires_grad]
    assert sum(part.trained for part in found.parameters.values()) == sum(p.numel() for p in trained)
    (memory,) = found.memory.values()
    stored = [*trainer.model.parameters(), *trainer.model.buffers()]
    assert memory.weights == sum(tensor.numel() * tensor.element_size() for tensor in stored)
    assert memory.gradients == sum(p.numel() * p.element_size() for p in trained)
    states = [value for state in trainer.optimizer.state.values() for value in state.values()]
    assert memory.optimizer == sum(value.numel() * value.element_size() for value in states if value.ndim)


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
    from pathlib import Path
    from transformers_valley import ValleyForConditionalGeneration
    from transformers_valley.training import estimate as estimating, set_trainable

    def kilobytes(field):
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
        return int(line.split()[1])

    def step(rows, num_frames, text_tokens):
        frames = torch.zeros(rows, num_frames, 3, 224, 224)
        embeds = model.get_input_embeddings()(torch.zeros(rows, text_tokens, dtype=torch.long))
        clips = torch.stack(model.get_video_features(frames).pooler_output)
        hidden = model.model.language_model(
            inputs_embeds=torch.cat([clips, embeds], dim=1), use_cache=False
        ).last_hidden_state
        learnt = hidden[:, -(text_tokens // 2) :].flatten(0, 1)
        tile = torch.zeros(len(learnt), 32768)  # TRL's fused head holds the logits of so many words at a time
        tile[:, : len(model.lm_head.weight)] = (learnt @ model.lm_head.weight.T).detach()
        del tile
        (learnt.sum() + model.lm_head.weight.sum()).backward()

    torch.set_num_threads(1)
    recipe = estimating.read_recipe(sys.argv[1:])
    found = estimating.estimate(*recipe, num_gpus=1)
    (memory,) = found.memory.values()
    model = ValleyForConditionalGeneration(estimating.read_model_config(recipe[0], recipe[2]))
    set_trainable(model, recipe[0].trainable_modules)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    model.train()
    for recompute in (True, False):
        model.gradient_checkpointing_enable() if recompute else model.gradient_checkpointing_disable()
        step(1, 1, 8)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = kilobytes("VmRSS")
        step(4, 8, 256)
        print(json.dumps([memory.total(recompute), sum(memory[:4]) + (kilobytes("VmHWM") - before) * 1024]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
@pytest.mark.parametrize("config", ["stage1_align", "stage2_instruct"])
def test_an_estimate_agrees_with_resident_memory(config, tmp_path):
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
        assert computed == pytest.approx(measured, rel=0.1)


def test_arithmetic_is_that_of_the_rule_of_thumb(tmp_path):
    """Two operations per weight and token forward, two for gradients of activations, two for those of weights."""
    write_config(tmp_path, hidden_size=256, intermediate_size=1024, num_hidden_layers=2)
    tokens = 4 + 1 + 27
    for config, factor in (("stage1_align", 4), ("stage2_instruct", 6)):
        flags = ["--config", str(CONFIGS / f"{config}.yaml"), "--vision_model_name_or_path", ""]
        recipe = read_recipe([*flags, "--model_name_or_path", str(tmp_path), "--per_device_train_batch_size", "1"])
        found = estimate(*recipe, num_gpus=1, num_frames=1, text_tokens=27)
        model = AutoModelForImageTextToText.from_config(ValleyConfig.from_pretrained(tmp_path))
        weights = sum(p.numel() for p in model.model.language_model.layers.parameters())
        assert found.recompute_flops == pytest.approx(2 * weights * tokens, rel=0.05)
        assert found.flops == pytest.approx(factor * weights * tokens, rel=0.05)


def test_operations_are_those_that_torch_counts():
    """Of a whole step but for attention, which torch does not count on a CPU."""
    config = valley_config("llama", layers=2)
    for trained in (STAGE1, STAGE2):
        model = ValleyForConditionalGeneration(config).train()
        set_trainable(model, trained)
        with FlopCounterMode(display=False) as counter:
            forward(model, rows=2, num_frames=4, text_tokens=32).backward()
        assert count_step(model, 2, 4, 32).flops == pytest.approx(counter.get_total_flops(), rel=0.1)


def valley_config(kind, layers):
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=1, image_size=28
    )
    sizes = dict(hidden_size=256, intermediate_size=704, num_attention_heads=8, num_key_value_heads=4)
    text = AutoConfig.for_model(kind, **sizes, num_hidden_layers=layers, head_dim=32, vocab_size=64)
    vision.patch_size = 14
    return ValleyConfig(vision_config=vision, text_config=text, temporal_intermediate_size=64)


def forward(model, rows, num_frames, text_tokens, autocast=False):
    """The loss on half of the text, of rows of one clip each."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    size = model.config.vision_config.image_size
    tokens = torch.zeros(rows, text_tokens, dtype=torch.long)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        clips = torch.stack(base.get_video_features(torch.zeros(rows, num_frames, 3, size, size)).pooler_output)
        embeds = base.get_input_embeddings()(tokens)
        embeds = torch.cat([clips.to(embeds.dtype), embeds], dim=1)
        hidden = base.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        return base.lm_head(hidden[:, -(text_tokens // 2) :]).sum()


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize(
    ("trained", "dtype", "autocast"),
    [
        (STAGE1, torch.bfloat16, True),
        (STAGE1, torch.float32, False),
        (STAGE2, torch.bfloat16, True),
        (STAGE2, torch.float32, False),
        (STAGE2, torch.bfloat16, False),
        (LoraConfig(r=16, target_modules=ADAPTED), torch.bfloat16, True),
        (LoraConfig(r=16, target_modules=ADAPTED), torch.float32, False),
    ],
    ids=["stage 1", "stage 1, float32", "stage 2", "stage 2, float32", "stage 2, ZeRO", "LoRA", "LoRA, float32"],
)
def test_a_layer_keeps_what_the_formula_says(kind, trained, dtype, autocast):
    """Each further layer of a real model; what is there once is compared with resident memory."""
    counted, real = [], []
    for layers in (1, 2):
        model = ValleyForConditionalGeneration(valley_config(kind, layers)).to(dtype)
        if isinstance(trained, LoraConfig):
            model = get_peft_model(model, copy.deepcopy(trained))
        else:
            set_trainable(model, trained)
            if not autocast:
                model.to(dtype)
        model.train()
        counted.append(count_step(model, 2, 4, 250, autocast).kept)
        real.append(saved_bytes(model, lambda: forward(model, 2, 4, 250, autocast)))  # noqa: B023
    assert counted[1] - counted[0] == pytest.approx(real[1] - real[0], rel=0.02)


def test_weights_are_spread_as_deepspeed_says(found):
    zero2 = pytest.importorskip("deepspeed.runtime.zero.stage_1_and_2")
    total = sum(part.total for part in found.parameters.values())
    _, expected = zero2.estimate_zero2_model_states_mem_needs(total, num_gpus_per_node=4, cpu_offload=False)
    assert sum(found.memory["ZeRO-2"][:3]) == pytest.approx(expected, rel=0.01)  # it leaves out buffers
    assert found.memory["ZeRO-3"].weights == found.memory["ZeRO-2"].weights / 4
    assert found.memory["ZeRO-1"].gradients > found.memory["ZeRO-2"].gradients
    assert found.memory["DDP"].weights > found.memory["ZeRO-2"].weights  # float32 there, bfloat16 here


def test_buffers_are_those_of_ddp_and_deepspeed(found, tmp_path):
    trained = sum(part.trained for part in found.parameters.values())
    cast = found.memory["ZeRO-2"].weights  # all of them are gathered at a time
    expected = {"DDP": 4 * trained, "ZeRO-1": 2 * trained, "ZeRO-2": 2 * trained, "ZeRO-3": 4 * trained + cast}
    assert {launcher: memory.buffers for launcher, memory in found.memory.items()} == expected

    # DeepSpeed: buckets of 5e8 values, twice in stage 3, and 1e9 weights gathered
    write_config(tmp_path, hidden_size=8192, intermediate_size=32768, num_hidden_layers=2)
    flags = ["--config", str(CONFIGS / "stage2_instruct.yaml"), "--model_name_or_path", str(tmp_path)]
    big = estimate(*read_recipe(flags))
    assert [big.memory[f"ZeRO-{stage}"].buffers for stage in (1, 2, 3)] == [1e9, 1e9, 4e9]


def test_accumulated_batches_are_a_step(checkpoint):
    flags = ["--config", str(CONFIGS / "stage2_instruct.yaml"), "--model_name_or_path", checkpoint]
    once, found = (
        estimate(*read_recipe([*flags, "--gradient_accumulation_steps", str(count)]), num_gpus=2, num_frames=2)
        for count in (1, 3)
    )
    assert (found.rows_per_gpu, found.rows_per_step) == (4, 4 * 3 * 2)
    assert (found.flops, found.recompute_flops) == (3 * once.flops, 3 * once.recompute_flops)
    # Under autocast, copies of weights lie beside the gradients of the batch before; DeepSpeed needs none.
    before, after = once.memory.pop("DDP"), found.memory.pop("DDP")
    assert after.recomputed > before.recomputed and after[:4] == before[:4]
    assert found.memory == once.memory


@pytest.mark.parametrize(
    ("gpu", "memory", "teraflops"),
    [
        ("A100-40GB", 40, 312),
        ("A100-80GB", 80, 312),
        ("H100-SXM", 80, 989),
        ("H200-SXM", 141, 989),
        ("L40S", 45, 362),
        ("RTX4090", 24, 165),
    ],
)
def test_gpus_are_those_of_the_data_sheets(gpu, memory, teraflops):
    assert GPUS[gpu] == (memory, teraflops * 1e12)


def test_code_command_and_page_name_the_same_gpus():
    choices = get_args(get_args(inspect.signature(train.estimate).parameters["gpu"].annotation)[0])
    (row,) = (row for rows in tables(ROOT / "docs/reference/command_line.md") for row in rows if row[0] == "--gpu")
    named = re.findall(r"\b(?:A|H|L|RTX)\d[\w-]+", row[2])
    assert list(GPUS) == list(choices) == named


SLOW = [name for name in estimating.STATE_BYTES if name.startswith("adamw_torch_") and name.endswith("bit")]  # compile


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in estimating.STATE_BYTES]
)
def test_optimizers_hold_what_the_table_says(name, dtype, tmp_path):
    pytest.importorskip("torchao" if name in SLOW else "torch" if name.startswith("adamw_torch") else "bitsandbytes")
    layer = torch.nn.Linear(256, 1024, bias=False, dtype=dtype)
    args = TrainingArguments(output_dir=tmp_path, optim=name, use_cpu=True)
    optimizer, options = Trainer.get_optimizer_cls_and_kwargs(args, layer)
    optimizer = optimizer(layer.parameters(), **options)
    layer.weight.grad = torch.ones_like(layer.weight)
    optimizer.step()
    (state,) = optimizer.state.values()
    held = sum(tensor_bytes(value) for value in state.values() if isinstance(value, torch.Tensor))
    assert held / layer.weight.numel() == pytest.approx(estimating._state_bytes(name, dtype), rel=0.05)


def tensor_bytes(tensor):
    if isinstance(tensor, torch._C.TensorBase) and hasattr(tensor, "__tensor_flatten__"):  # torchao's
        return sum(tensor_bytes(getattr(tensor, part)) for part in tensor.__tensor_flatten__()[0])
    return tensor.numel() * tensor.element_size()


@pytest.mark.parametrize(("optimizer", "bytes_per_weight"), [("adamw_torch_fused", 4), ("adamw_8bit", 2)])
def test_adapters_beside_quantized_weights_have_bfloat16_states(optimizer, bytes_per_weight, checkpoint):
    flags = ["--config", str(CONFIGS / "stage2_lora.yaml"), "--model_name_or_path", checkpoint, "--lora_r", "4"]
    found = estimate(*read_recipe([*flags, "--load_in_4bit", "true", "--optim", optimizer]), num_gpus=1, num_frames=2)
    trained = sum(part.trained for part in found.parameters.values())
    assert found.memory["one GPU"].optimizer == bytes_per_weight * trained
    assert found.memory["one GPU"].gradients == 2 * trained


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


LORA = ["--config", str(CONFIGS / "stage2_lora.yaml")]  # the last one counts


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model_name_or_path", "outputs/nowhere"], "No config was found for 'outputs/nowhere'.*Known without"),
        (["--model_name_or_path", "lmsys/vicuna-7b-v1.5"], "is a llama and no Valley. Name the vision model"),
        ([*JOINED, "lmsys/vicuna-7b-v1.5", "--max_length", "200"], "max_length=200 leaves no room for text"),
        ([*JOINED, "lmsys/vicuna-7b-v1.5", "--max_length", "0"], "max_length=0 leaves no room for text"),
        ([*JOINED, "lmsys/vicuna-7b-v1.5", "--trainable_modules", "model.projector"], "has no such module"),
        (["--load_in_4bit", "true"], "set use_peft: true"),
        (["--packing", "true"], "packing is for text only"),
        (["--activation_offloading", "true"], "activation_offloading .* is not counted here"),
        (["--gradient_accumulation_steps", "0"], "gradient_accumulation_steps=0, expected at least 1"),
        (["--per_device_train_batch_size", "0"], "per_device_train_batch_size=0, expected at least 1"),
        (["--use_peft", "true"], "With LoRA, name the modules trained whole in lora_modules_to_save"),
        ([*LORA, "--lora_r", "abc"], "argument --lora_r/--lora-r: invalid int value: 'abc'"),
        (
            [*JOINED, "lmsys/vicuna-7b-v1.5", *LORA, "--temporal_module", "mean"]
            + ["--lora_modules_to_save", "temporal_module"],
            "names temporal_module, which has no weights",
        ),
        (["--optim", "adafactor"], "What optim='adafactor' holds"),
        (["--optim", "galore_adamw_8bit"], "What optim='galore_adamw_8bit' holds"),
    ],
)
def test_what_cannot_be_estimated_is_said_in_one_line(flags, message, checkpoint):
    recipe = "stage2_instruct"
    if "--config" in flags:
        recipe = flags[flags.index("--config") + 1]
        flags = [flag for flag in flags if flag not in ("--config", recipe)]
    names = [] if "--model_name_or_path" in flags else ["--model_name_or_path", checkpoint]
    result = CliRunner().invoke(app, ["train", "estimate", recipe, "--frames", "2", *names, *flags])
    assert result.exit_code == 1
    assert re.search(message, result.stderr), result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_an_adapter_is_to_be_merged_first(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    recipe = read_recipe(["--config", str(CONFIGS / "stage2_lora.yaml"), "--model_name_or_path", str(tmp_path)])
    with pytest.raises(ValueError, match="is a LoRA adapter: merge it") as error:
        estimate(*recipe)
    page, title = re.search(r"(docs/\S+) shows how, under '(.*)'", str(error.value)).groups()
    assert re.search(rf"^## \d. {title}$", (ROOT / page).read_text(), re.MULTILINE)


def test_a_valley_is_not_joined_again(checkpoint):
    recipe = read_recipe(["--config", str(CONFIGS / "stage1_align.yaml"), "--model_name_or_path", checkpoint])
    with pytest.raises(ValueError, match="is a Valley already: leave vision_model_name_or_path"):
        estimate(*recipe)


@pytest.mark.parametrize("memory", ["0", "-8"])
def test_a_gpu_without_memory_is_refused(memory):
    command = ["train", "estimate", "stage2_instruct", "--gpu-memory", memory]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2 and "--gpu-memory" in result.stderr


@pytest.mark.parametrize(
    "name", [n for n, config in estimating.KNOWN_CONFIGS.items() if hasattr(config, "vocab_size")]
)
def test_known_decoders_have_the_weights_they_are_named_after(name):
    recipe = read_recipe(["--config", str(CONFIGS / "stage1_align.yaml"), *JOINED, name])
    model = estimating._build(read_model_config(recipe[0], recipe[2]), recipe[0], recipe[2])
    counts = count_parameters(model)
    billions = (sum(counts["language_model"]) + sum(counts.get("lm_head", (0, 0)))) / 1e9
    # Of their model cards. 0.6B and 360M share one matrix between embeddings and head.
    expected = {"7b": 6.74, "13b": 13.02, "Llama-3-8B": 8.03, "Qwen3-8B": 8.19, "0.6B": 0.596, "360M": 0.362}
    assert billions == pytest.approx(next(size for part, size in expected.items() if part in name), rel=0.002)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("openai/clip-vit-large-patch14", 303.2),
        ("openai/clip-vit-base-patch16", 85.8),
        ("google/siglip2-base-patch16-224", 92.9),
    ],
)
def test_known_towers_have_the_weights_they_are_named_after(name, millions):
    with torch.device("meta"):
        tower = AutoModel.from_config(estimating.KNOWN_CONFIGS[name])
    assert tower.num_parameters() / 1e6 == pytest.approx(millions, rel=0.002)


def test_a_mixture_of_experts_is_not_estimated(tmp_path):
    text = AutoConfig.for_model("mixtral", hidden_size=32, intermediate_size=32, num_hidden_layers=1)
    ValleyConfig(vision_config=CLIPVisionConfig(), text_config=text).save_pretrained(tmp_path)
    flags = ["--config", str(CONFIGS / "stage2_instruct.yaml"), "--model_name_or_path", str(tmp_path)]
    with pytest.raises(ValueError, match="a mixture of experts .mixtral. keeps of a step is not counted"):
        estimate(*read_recipe(flags))


@functools.cache
def estimate_once(recipe, model):
    return estimate(*read_recipe(["--config", str(CONFIGS / f"{recipe}.yaml"), *JOINED, model]))


@pytest.mark.slow
@pytest.mark.parametrize("row", table("docs/how-to/train_both_stages.md", "recipe"), ids=" ".join)
def test_what_the_docs_say_a_recipe_takes(row):
    recipe, model, launcher, gibibytes, seconds, hours = row
    found = estimate_once(recipe, model)
    assert found.memory[launcher].total(recompute=True) / GIB == pytest.approx(float(gibibytes), abs=0.5)
    step = (found.flops + found.recompute_flops) / GPUS["A100-80GB"].flops / 0.4
    assert step == pytest.approx(float(seconds), rel=0.02)
    rows = 1_297_000 if recipe == "stage1_align" else 702_000
    assert rows / found.rows_per_step * step / 3600 == pytest.approx(float(hours), rel=0.03)


@pytest.mark.slow
def test_steps_on_a_gpu_took_what_is_estimated(tmp_path):
    """Those of the page on speed, which `benchmarks/on_gpu.py` measured with 7 billion weights on an H200."""
    text = LlamaConfig(max_position_embeddings=65536, vocab_size=32006)
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14
    )
    ValleyConfig(vision_config=vision, text_config=text).save_pretrained(tmp_path)
    recipes = {
        "stage 1": ("stage1_align", "adamw_torch_fused"),
        "stage 2, LoRA": ("stage2_lora", "adamw_torch_fused"),
        "stage 2, AdamW in 8 bits": ("stage2_instruct", "adamw_bnb_8bit"),
        "stage 2": ("stage2_instruct", "adamw_torch_fused"),
    }

    def gibibytes(name, rows, text, **more):
        file, optimizer = recipes[name]
        flags = dict(config=CONFIGS / f"{file}.yaml", model_name_or_path=tmp_path, vision_model_name_or_path="")
        flags |= dict(optim=optimizer, per_device_train_batch_size=rows) | more
        argv = [part for flag, value in flags.items() for part in (f"--{flag}", str(value))]
        found = estimate(*read_recipe(argv), num_gpus=1, num_frames=8, text_tokens=text)
        return found.memory["one GPU"].total(recompute=True) / GIB

    rows = table("docs/explanation/speed_of_training.md", "recipe", "rows a step")
    for (name, count, way, *padded), (_, _, other, *packed) in zip(rows[::2], rows[1::2], strict=True):
        assert (way, other) == ("padded", "packed")
        for (*_, took, expected), text_tokens in ((padded, 448), (packed, 256)):
            found = gibibytes(name, count, text_tokens)
            assert found == pytest.approx(float(expected), abs=0.06)
            assert found == pytest.approx(float(took), rel=0.03)
    assert [name for name, *_ in rows[::2]] == list(recipes)
    # Gradients of the batch before lie beside the copies that autocast makes of all weights.
    assert gibibytes("stage 2", 4, 256, gradient_accumulation_steps=2) > found + 10


@functools.cache
def estimate_fine_tuning(quantized):
    flags = ["--config", str(CONFIGS / "fine_tune_lora.yaml"), *JOINED, "lmsys/vicuna-7b-v1.5"]
    return estimate(*read_recipe([*flags, "--load_in_4bit", quantized]), num_gpus=1)


@pytest.mark.slow
@pytest.mark.parametrize("row", table("docs/how-to/fine_tune_on_your_clips.md", "GPU"), ids=" ".join)
def test_what_the_docs_say_fine_tuning_takes(row):
    gpu, quantized, gibibytes, minutes = row
    found = estimate_fine_tuning(quantized)
    assert found.memory["one GPU"].total(recompute=True) / GIB == pytest.approx(float(gibibytes), abs=0.5)
    step = (found.flops + found.recompute_flops) / GPUS[gpu].flops / 0.4
    assert 600 / found.rows_per_step * step / 60 == pytest.approx(float(minutes), abs=0.5)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_valley_parse(page):
    for program, *words in commands(page):
        if Path(program).name == "valley":
            context = typer.Context(get_command(app))
            command, name, words = context.command, "valley", list(words)
            while isinstance(command, click.Group):
                name, *words = words
                command = command.commands[name]
            context = command.make_context(name, words, resilient_parsing=False)
            if name == "estimate":
                recipe, flags = context.params["recipe"], train.with_underscores(context.args)
                read_recipe(["--config", str(train.find_file("recipe", recipe)), *flags])


def test_the_command_prints_tables(found, tmp_path):
    write_config(tmp_path, hidden_size=32, intermediate_size=32, num_hidden_layers=1)
    command = ["train", "estimate", "stage1_align"]
    command += ["--model-name-or-path", str(tmp_path)]
    command += ["--vision_model_name_or_path", "", "--per_device_train_batch_size", "2", "--frames", "2"]
    command += ["--num-gpus", "1", "--gpu", "H100-SXM", "--gpu-memory", "20", "--utilization", "0.5"]
    result = CliRunner().invoke(app, [*command, "--rows", "1000"])
    assert result.exit_code == 0, result.stderr
    for words in (
        "| vision_tower ",
        "| one GPU ",
        "4 + 2 positions",
        "90% of 20 GiB",
        "minutes for 1,000 rows",
        "50% of the 989 TFLOP/s of an H100-SXM, which is an assumption",
    ):
        assert words in result.stdout
    printed = format_estimate(found, "A100-80GB")
    assert all(f"| {launcher} " in printed for launcher in ("DDP", "ZeRO-1", "ZeRO-2", "ZeRO-3"))


def test_what_does_not_fit_says_no(found):
    memory = found.memory["ZeRO-2"]
    enough = memory.total(recompute=True) / GIB / 0.9
    for share, answer in ((1.001, "yes or no"), (0.999, "no or no")):
        (line,) = (x for x in format_estimate(found, "H100-SXM", memory=enough * share).splitlines() if "ZeRO-2" in x)
        assert line.endswith(f"| {answer} |")
