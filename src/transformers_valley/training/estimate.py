# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What a recipe of `examples/sft.py` costs, before it runs: memory per GPU under every launcher, and time.

Input: a recipe. Output: weights, gradients and optimizer states, counted on a model of shapes alone, which neither
downloads nor allocates weights; activations and operations of a step by formula, from the sizes in the config; how a
launcher spreads these, by the rules of DDP and DeepSpeed, which stand here with their source.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoModelForImageTextToText
from trl import ModelConfig, SFTConfig, get_peft_config

from ..configuration_valley import ValleyConfig
from ..tables import format_table
from .activations import count_step
from .arguments import ValleyArguments, read_arguments
from .checks import check_adapter_names, check_options, check_trained
from .model_configs import KNOWN_CONFIGS, read_model_config
from .parameters import count_parameters, set_trainable
from .stages import NEVER_QUANTIZED


GIB = 2**30


class GPU(NamedTuple):
    """Memory in GiB, and bfloat16 operations per second, dense, with float32 sums."""

    memory: float
    flops: float


# From NVIDIA's data sheets; those of H100, H200 and L40S print the rate with sparsity, which is twice the dense one.
# SXM: on PCIe, H100 and H200 are slower. An L40S of 48 GB shows 46,068 MiB, as error correction takes the rest.
GPUS = {
    "A100-40GB": GPU(40, 312e12),
    "A100-80GB": GPU(80, 312e12),
    "H100-SXM": GPU(80, 989e12),
    "H200-SXM": GPU(141, 989e12),
    "L40S": GPU(45, 362e12),
    "RTX4090": GPU(24, 165e12),
}


# Bytes that AdamW's two moments take for each weight, without the scales of their blocks. `None`: the weight's own.
STATE_BYTES = {
    "adamw_torch": None,
    "adamw_torch_fused": None,
    "paged_adamw_32bit": 8,
    "adamw_bnb_8bit": 2,
    "adamw_8bit": 2,
    "paged_adamw_8bit": 2,
    "adamw_torch_8bit": 2,
    "adamw_torch_4bit": 1,
}


class Parameters(NamedTuple):
    """How many weights a part has, and how many of them train."""

    total: int
    trained: int


class Memory(NamedTuple):
    """Bytes on one GPU. Activations are those of a step, with the language model's layers recomputed or kept."""

    weights: float
    gradients: float
    optimizer: float
    buffers: float
    recomputed: float
    kept: float

    def total(self, recompute: bool) -> float:
        """All of it at the peak of a step, with `gradient_checkpointing` on or off."""
        return sum(self[:4]) + (self.recomputed if recompute else self.kept)


@dataclass
class Estimate:
    """What [`estimate`] found: counts of weights, rows and positions, bytes, floating point operations."""

    parameters: dict[str, Parameters]  # by part of the model
    memory: dict[str, Memory]  # by launcher
    positions: tuple[int, int, int]  # of one row: patches, frames, text
    rows_per_gpu: int  # at a time
    rows_per_step: int  # on all GPUs, accumulated batches too
    flops: float  # of a step on one GPU, with nothing recomputed
    recompute_flops: float  # what recomputing adds to it
    recompute: bool  # whether the recipe does


def read_recipe(argv: Sequence[str]) -> tuple[ValleyArguments, SFTConfig, ModelConfig]:
    """The arguments of a run as a machine with GPUs reads them, see [`read_arguments`]."""
    return read_arguments([*argv, "--use_cpu", "true"])  # this one may have none


def estimate(
    valley_args: ValleyArguments,
    training_args: SFTConfig,
    model_args: ModelConfig,
    num_gpus: int = 8,
    num_frames: int = 8,
    text_tokens: int = 256,
) -> Estimate:
    """
    Memory and arithmetic of a recipe in which every row has one clip.

    Args:
        valley_args ([`ValleyArguments`]), training_args (`trl.SFTConfig`), model_args (`trl.ModelConfig`):
            The recipe, see [`read_recipe`].
        num_gpus (`int`, *optional*, defaults to 8):
            Processes, each on a GPU of its own.
        num_frames (`int`, *optional*, defaults to 8):
            Frames of a clip.
        text_tokens (`int`, *optional*, defaults to 256):
            Positions of a row that hold no feature, as many as `max_length` leaves. Half of them are learnt.

    Raises:
        ValueError: if `examples/sft.py` would refuse the recipe, the model has no config, a clip is longer than
            `max_length`, or what the optimizer or the decoder holds is not known.
    """
    _check_recipe(valley_args, training_args, model_args)
    config, accumulated = read_model_config(valley_args, model_args), training_args.gradient_accumulation_steps
    if training_args.max_length is not None:
        text_tokens = min(text_tokens, training_args.max_length - config.num_patches - num_frames)
    if text_tokens < 2:
        raise ValueError(
            f"max_length={training_args.max_length} leaves no room for text beside a clip of {config.num_patches} + "
            f"{num_frames} positions. Raise max_length, or estimate with fewer frames."
        )
    rows = training_args.per_device_train_batch_size
    half = training_args.bf16 or training_args.fp16
    states = _state_bytes(training_args.optim.value, torch.float32)  # ZeRO keeps weights in it

    model = _build(config, valley_args, model_args)
    parameters = {part: Parameters(sum(pair), pair[0]) for part, pair in count_parameters(model).items()}
    trained = sum(part.trained for part in parameters.values())
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = sum(parameter.numel() * parameter.element_size() for parameter in learnt)
    own_states = sum(p.numel() * _state_bytes(training_args.optim.value, p.dtype) for p in learnt)
    step = count_step(model, rows, num_frames, text_tokens, half, accumulated > 1)
    # DDP copies gradients into buckets (torch: DistributedDataParallel, `gradient_as_bucket_view`).
    buckets = gradients if num_gpus > 1 else 0
    stored = _bytes(model, model_args)
    memory = {"DDP" if num_gpus > 1 else "one GPU": Memory(stored, gradients, own_states, buckets, *step[:2])}
    if half:
        for parameter in model.parameters():  # DeepSpeed casts the whole model
            parameter.data = parameter.data.to(torch.bfloat16)
    cast, cast_step = _bytes(model, model_args), count_step(model, rows, num_frames, text_tokens)
    is_quantized = model_args.load_in_4bit or model_args.load_in_8bit
    for stage in (1, 2, 3) if num_gpus > 1 else ():
        if stage == 3 and is_quantized:  # bitsandbytes' weights are not spread
            continue
        memory[f"ZeRO-{stage}"] = Memory(
            cast / (num_gpus if stage == 3 else 1),
            # As in DeepSpeed's `estimate_zero2_model_states_mem_needs`: those of the pass, and their part in float32.
            # Stage 3 takes the latter in pieces (`sub_group_size`).
            2 * trained / (1 if stage == 1 else num_gpus)
            + 4 * min(trained / num_gpus, 1e9 if stage == 3 else math.inf),
            (4 + states) * trained / num_gpus,  # float32 weights, too
            # DeepSpeed's `reduce_bucket_size`, and in stage 3 a second one, as communication overlaps there, and the
            # weights that are gathered at a time (`stage3_max_live_parameters`).
            2 * min(5e8, trained) + (2 * min(5e8, trained) + min(2e9, cast) if stage == 3 else 0),
            *cast_step[:2],
        )
    return Estimate(
        parameters=parameters,
        memory=memory,
        positions=(config.num_patches, num_frames, text_tokens),
        rows_per_gpu=rows,
        rows_per_step=rows * accumulated * num_gpus,
        flops=step.flops * accumulated,
        recompute_flops=step.recompute_flops * accumulated,
        recompute=training_args.gradient_checkpointing,
    )


def _check_recipe(valley_args: ValleyArguments, training_args: SFTConfig, model_args: ModelConfig) -> None:
    """Refuse arguments that `examples/sft.py` refuses, or that are not counted here."""
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        if (value := getattr(training_args, name)) < 1:
            raise ValueError(f"{name}={value}, expected at least 1.")
    if training_args.activation_offloading:
        raise ValueError("What activation_offloading moves to the CPU is not counted here. Leave it out.")
    check_options(training_args)
    check_trained(valley_args, model_args)


def _build(config: ValleyConfig, valley_args: ValleyArguments, model_args: ModelConfig) -> nn.Module:
    """The model as `examples/sft.py` trains it, of shapes alone."""
    peft_config, is_quantized = get_peft_config(model_args), model_args.load_in_4bit or model_args.load_in_8bit
    dtype = torch.float32 if model_args.dtype in (None, "auto") else getattr(torch, model_args.dtype)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
        if peft_config is None:
            set_trainable(model, valley_args.trainable_modules)
            return model
        check_adapter_names(model, peft_config)
        model = get_peft_model(model, peft_config)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:  # TRL trains in bfloat16 beside quantized weights
            parameter.data = parameter.data.to(torch.bfloat16 if is_quantized else torch.float32)
        elif ".original_module." in name:  # what is trained whole is float32 before peft copies it
            parameter.data = parameter.data.float()
    return model


def _bytes(model: nn.Module, model_args: ModelConfig) -> float:
    """Bytes of all weights and buffers. bitsandbytes takes the frozen matrices of the decoder in fewer bits."""
    total = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    if not (model_args.load_in_4bit or model_args.load_in_8bit):
        return total
    # Four bits come with a float32 scale for each 64 weights (QLoRA, arXiv 2305.14314), or an 8-bit one.
    scale = 1 / 64 + 4 / (64 * 256) if model_args.use_bnb_nested_quant else 4 / 64
    wanted = 0.5 + scale if model_args.load_in_4bit else 1
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not any(part in f"{name}." for part in NEVER_QUANTIZED):
            if not module.weight.requires_grad:
                total += module.weight.numel() * (wanted - module.weight.element_size())
    return total


def _state_bytes(optimizer: str, dtype: torch.dtype) -> int:
    """Bytes that an optimizer keeps for each weight of this dtype."""
    if optimizer not in STATE_BYTES:
        raise ValueError(
            f"What optim={optimizer!r} holds per weight is not known here; known are {', '.join(STATE_BYTES)}."
        )
    return STATE_BYTES[optimizer] or 2 * dtype.itemsize


def format_estimate(
    found: Estimate, gpu: str, memory: float | None = None, utilization: float = 0.4, rows: int = 100_000
) -> str:
    """
    An estimate as text, its tables in Markdown.

    `gpu` is a name in `GPUS`; `memory` in GiB wins over the one there. `utilization` is the share of the GPU's peak
    arithmetic that training reaches, an assumption, with recomputed layers as work. `rows` are those of an epoch.
    """
    memory = GPUS[gpu].memory if memory is None else memory
    patches, frames, text = found.positions
    counts = found.parameters | {"all": map(sum, zip(*found.parameters.values(), strict=True))}
    rows_of_parts = [(part, *(f"{count:,}" for count in pair)) for part, pair in counts.items()]
    lines = [format_table([("part", "weights", "trained"), *rows_of_parts], "lrr"), ""]

    lines.append(
        f"A row: {patches} + {frames} positions of a clip of {frames} frames, and {text} of text. "
        f"{found.rows_per_gpu} on a GPU at a time, {found.rows_per_step} in a step."
    )
    lines += [
        "",
        "GiB on each GPU, with the activations of the language model's layers recomputed (`gradient_checkpointing`) "
        f"or kept. What fits takes at most 90% of {memory:g} GiB.",
        "",
    ]
    columns = ("weights", "gradients", "optimizer", "buffers", "activations", "sum", "fits")
    uses = [("launcher", *columns)]
    for launcher, use in found.memory.items():
        sums = [use.total(recompute) / GIB for recompute in (True, False)]
        cells = [f"{part / GIB:.1f}" for part in use[:4]]
        cells.append(f"{use.recomputed / GIB:.1f} or {use.kept / GIB:.1f}")
        cells.append(" or ".join(f"{total:.1f}" for total in sums))
        cells.append(" or ".join("yes" if total <= 0.9 * memory else "no" for total in sums))
        uses.append((launcher, *cells))
    lines.append(format_table(uses, "l" + "r" * len(columns)))

    work = found.flops + (found.recompute_flops if found.recompute else 0)
    seconds = work / (GPUS[gpu].flops * utilization)
    minutes = rows / found.rows_per_step * seconds / 60
    duration = f"{minutes:.0f} minutes" if minutes < 100 else f"{minutes / 60:.1f} hours"
    lines += [
        "",
        f"A step: {found.flops / 1e12:.1f} TFLOP on each GPU"
        + (f", and {found.recompute_flops / 1e12:.1f} of layers recomputed" if found.recompute else "")
        + f". At {utilization:.0%} of the {GPUS[gpu].flops / 1e12:g} TFLOP/s of an {gpu}, which is an assumption: "
        f"{seconds:.2f} s, and {duration} for {rows:,} rows.",
    ]
    return "\n".join(lines)


__all__ = [
    "GPU",
    "GPUS",
    "KNOWN_CONFIGS",
    "STATE_BYTES",
    "Estimate",
    "Memory",
    "Parameters",
    "estimate",
    "format_estimate",
    "read_model_config",
    "read_recipe",
]
