# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What a stage starts from, and which modules it trains (paper, Section 4.3).

Stage 1 (align) trains the projector, and the temporal module where it has weights. Stage 2 (instruct) trains the
language model as well. The vision tower is frozen in both.
"""

import copy
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.quantizers.auto import AutoQuantizationConfig

from ..modeling_valley import ValleyForConditionalGeneration
from ..processing_valley import ValleyProcessor


@dataclass
class ValleyArguments:
    """Arguments of `examples/sft.py` beside those of TRL's `SFTConfig` and `ModelConfig`."""

    data: list[str] = field(metadata={"help": "JSON or JSONL files of training rows."})
    media_root: str | None = field(
        default=None, metadata={"help": "Folder that relative paths of clips and images start from."}
    )
    trainable_modules: list[str] = field(
        default_factory=list,
        metadata={"help": "Names of the modules that are trained, all others are frozen. Not used with LoRA."},
    )
    vision_model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Vision model to join with the language model `model_name_or_path`, to begin stage 1. Empty to "
            "begin from a Valley checkpoint."
        },
    )
    temporal_module: Literal["mean", "importance", "transformer"] = field(
        default="transformer", metadata={"help": "v1, v2 or v3 of the paper, for a model that is newly joined."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read the rows while training instead of before; needs max_steps."}
    )
    on_bad_sample: Literal["raise", "skip"] = field(
        default="raise",
        metadata={
            "help": "A row that cannot be read ends the run, or is replaced by the next good one and written down."
        },
    )
    max_bad_share: float = field(
        default=0.05,
        metadata={"help": "Share of bad rows above which `on_bad_sample: skip` ends the run all the same."},
    )
    on_long_row: Literal["cut", "drop"] = field(
        default="cut",
        metadata={"help": "Cut rows longer than max_length after their last visual, or drop them."},
    )
    pack_batches: bool = field(
        default=False, metadata={"help": "Join the rows of a batch into one instead of padding them."}
    )
    cache_vision_features: str | None = field(
        default=None,
        metadata={"help": "Folder to keep what the frozen vision tower makes of clips and images, for later epochs."},
    )
    eval_data: list[str] = field(
        default_factory=list,
        metadata={"help": "JSON or JSONL files of held-out rows. Each has a loss of its own, named by the file."},
    )
    preview_data: list[str] = field(
        default_factory=list,
        metadata={"help": "Files whose rows are answered on the way, to see the model learn. Empty: `eval_data`."},
    )
    preview_steps: int = field(
        default=500, metadata={"help": "Steps between sample answers, 0 for none; first and last step have them, too."}
    )
    num_previews: int = field(default=4, metadata={"help": "How many rows are answered, spread over their files."})


# What sees the clip is small, and is trained whole beside an adapter.
NEVER_QUANTIZED = ["model.vision_tower", "model.temporal_module", "model.multi_modal_projector", "lm_head"]


def load_model_and_processor(
    name_or_path: str,
    vision_model_name_or_path: str | None = None,
    temporal_module: str = "transformer",
    **model_kwargs,
) -> tuple[ValleyForConditionalGeneration, ValleyProcessor]:
    """
    The model and processor that a stage starts from: a Valley checkpoint, or a vision and a language model joined.

    Args:
        name_or_path (`str`):
            A Valley checkpoint; with `vision_model_name_or_path` a causal language model.
        vision_model_name_or_path (`str`, *optional*):
            Vision model to join it with; empty or `None` for none.
        temporal_module (`str`, *optional*, defaults to `"transformer"`):
            Of the joined model; a checkpoint has its own.
        **model_kwargs:
            Passed to `from_pretrained` of a checkpoint (`dtype`, `attn_implementation`, `revision`, …); a joined model
            takes the first two. A `quantization_config` of bitsandbytes that names no modules to leave out leaves out
            all but the language model; that of another method is passed on as it is.

    Raises:
        ValueError: if a joined model is to be quantised, made of a revision, or joined under DeepSpeed ZeRO-3.
    """
    model_kwargs = {name: value for name, value in model_kwargs.items() if value is not None}
    quantization = model_kwargs.get("quantization_config")
    if isinstance(quantization, dict):
        quantization = AutoQuantizationConfig.from_dict(dict(quantization))
    if getattr(quantization, "llm_int8_skip_modules", ...) is None:  # bitsandbytes alone has it
        model_kwargs["quantization_config"] = quantization = copy.copy(quantization)  # the caller's stays as it is
        quantization.llm_int8_skip_modules = list(NEVER_QUANTIZED)
    revision = model_kwargs.get("revision")
    if not vision_model_name_or_path:
        model = AutoModelForImageTextToText.from_pretrained(name_or_path, **model_kwargs)
        if is_deepspeed_zero3_enabled():
            # Without ZeRO-3, transformers keeps those conversions of names that a checkpoint needed, and reverts them
            # when it saves. With it, 5.23 keeps all, and would save under names that were never read.
            model._weight_conversions = [used for used in model._weight_conversions if used.was_used()]
        return model, AutoProcessor.from_pretrained(name_or_path, revision=revision)
    if not (model_kwargs.keys() <= {"dtype", "attn_implementation", "revision"}) or revision not in (None, "main"):
        raise ValueError(
            f"Models are joined from their main revision and unquantised, got {model_kwargs}. Join and save them "
            "first, then start from the saved folder."
        )
    if is_deepspeed_zero3_enabled():
        raise ValueError(
            "Two models cannot be joined under DeepSpeed ZeRO-3, which has spread their weights already. Join and "
            "save them first, then start from the saved folder with vision_model_name_or_path empty."
        )
    parts = (vision_model_name_or_path, name_or_path)
    model = ValleyForConditionalGeneration.from_vision_text_pretrained(
        *parts, dtype=model_kwargs.get("dtype"), temporal_module=temporal_module
    )
    if "attn_implementation" in model_kwargs:
        model.set_attn_implementation(model_kwargs["attn_implementation"])
    return model, ValleyProcessor.from_vision_text_pretrained(*parts)


def set_trainable(model: nn.Module, names: list[str]) -> None:
    """
    Freeze a model but for the named modules.

    Trainable weights become float32: with bfloat16 masters most updates at these rates round to nothing.

    Args:
        model (`nn.Module`):
            The model.
        names (`list[str]`):
            Module names as in `model.named_modules()`, such as `model.multi_modal_projector`.

    Raises:
        ValueError: if a name is unknown, or nothing is left to train.
    """
    modules = dict(model.named_modules())
    if unknown := [name for name in names if not name or name not in modules]:
        top = [name for name in modules if name and name.count(".") <= 1]
        raise ValueError(
            f"trainable_modules has no such module: {unknown}. This model has {top} and their submodules."
        )
    model.requires_grad_(False)
    for name in names:
        for parameter in modules[name].parameters():
            parameter.data = parameter.data.to(torch.float32)
            parameter.requires_grad_(True)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"trainable_modules={names} leaves nothing to train: name a module that has weights.")


__all__ = ["ValleyArguments", "load_model_and_processor", "set_trainable"]
