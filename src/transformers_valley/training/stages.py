# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What a stage starts from, and which modules it trains (paper, Section 4.3).

Stage 1 (align) trains the projector, and the temporal module where it has weights. Stage 2 (instruct) trains the
language model as well. The vision tower is frozen in both.
"""

import copy

from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.quantizers import AutoQuantizationConfig

from ..modeling_valley import ValleyForConditionalGeneration
from ..processing_valley import ValleyProcessor


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


__all__ = ["NEVER_QUANTIZED", "load_model_and_processor"]
