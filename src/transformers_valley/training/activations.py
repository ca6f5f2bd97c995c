# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Activations and operations of a training step, by formula.

Input: a model of shapes alone and the size of a batch. Output: bytes that a step adds to weights, gradients and
optimizer at its peak, and floating point operations. The decoder is of the kind of Llama: two RMS norms,
attention and a gated feed-forward network in each layer. Tests compare the formulas with what real layers keep.
"""

from typing import NamedTuple

from torch import nn


class Step(NamedTuple):
    """Bytes with the decoder's layers recomputed or kept; operations without recomputing, and what that adds."""

    recomputed: float
    kept: float
    flops: float
    recompute_flops: float


def count_step(
    model: nn.Module,
    rows: int,
    num_frames: int,
    text_tokens: int,
    autocast: bool = False,
    accumulates: bool = False,
) -> Step:
    """
    One step on rows of one clip each, with the loss on half of the text, as TRL's fused head computes it.

    Args:
        model (`nn.Module`):
            A Valley, or what peft makes of it. Shapes, dtypes and `requires_grad` are read.
        rows (`int`), num_frames (`int`), text_tokens (`int`):
            Of the batch.
        autocast (`bool`, *optional*, defaults to `False`):
            Whether matrices are multiplied in 16 bits whatever the dtype of the weights.
        accumulates (`bool`, *optional*, defaults to `False`):
            Whether gradients of an earlier batch are there while this one goes forward.

    Raises:
        ValueError: if the decoder is a mixture of experts.
    """
    parts, config = _parts(model), model.config
    decoder, head, text = parts["language_model"], parts["lm_head"], config.text_config
    if getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None):
        raise ValueError(f"What a mixture of experts ({text.model_type}) keeps of a step is not counted here.")
    hidden, inner, layers, heads = (getattr(text, name) for name in _SIZES)
    head_dim = getattr(text, "head_dim", None) or hidden // heads
    queries, keys = heads * head_dim, (getattr(text, "num_key_value_heads", None) or heads) * head_dim
    length = config.num_patches + num_frames + text_tokens
    tokens, learnt = rows * length, rows * (text_tokens // 2)
    wide = decoder.get_input_embeddings().weight.element_size()  # of what goes from layer to layer
    narrow = 2 if autocast else wide  # of what matrices are multiplied with

    # Bytes that a layer keeps of each token.
    weights = {name: weight for name, weight in decoder.named_parameters() if weight.ndim == 2 and "embed" not in name}
    trains = any(weight.requires_grad for name, weight in weights.items() if "lora_" not in name)
    normed = 2 * hidden  # through norms: once in float32 and, where the norm trains, once before its weight
    headed = queries + keys if any(name.endswith("q_norm") for name, _ in decoder.named_modules()) else 0
    layer = 4 * (normed + headed) + trains * (wide * normed + narrow * headed)
    layer += narrow * (2 * queries + 2 * keys + 3 * inner) + 4 * heads
    if trains:  # what goes into matrices; autocast makes a copy for each of q, k, v, gate and up
        layer += narrow * (inner + (5 if narrow < wide else 2) * hidden)
    if adapters := [module for name, module in decoder.named_modules() if name.endswith("lora_A.default")]:
        inputs, ranks = (sum(getattr(a, size) for a in adapters) / layers for size in ("in_features", "out_features"))
        dropout = any(isinstance(m, nn.Dropout) and m.p for n, m in decoder.named_modules() if "lora_dropout" in n)
        layer += narrow * ranks + inputs * dropout  # the mask is of bytes
        layer += narrow * (inputs if dropout or autocast else min(inputs, 2 * hidden + inner))

    # Once, and at one moment: the pictures; casts of weights; gradients on their way.
    visual, passing_visual, visual_flops = _count_visual(parts, config, rows, num_frames, autocast)
    once = visual + tokens * (wide + 4 + trains * wide) * hidden
    casts = autocast * sum(2 * w.numel() for w in weights.values() if w.requires_grad and w.element_size() == 4)
    passing = tokens * (3 * narrow * inner + 8 * hidden)
    fused = learnt * 4 * hidden + narrow * min(learnt, 1024) * 32768  # TRL's gradient and logits at a time
    if head.weight.requires_grad:  # its gradient is summed in float32
        fused += (6 if head.weight.element_size() == 2 else 4) * head.weight.numel()
    kept = once + casts + layers * tokens * layer + max(fused, passing)
    # Autocast keeps its copies until the forward pass ends, when there are no gradients yet, which are larger. What is
    # recomputed has those of one layer.
    beside = casts if accumulates else casts / layers
    recomputed = once + layers * tokens * wide * hidden
    recomputed += max(fused + accumulates * casts, tokens * layer + max(passing, beside))

    # Two operations per weight and token forward, two for gradients of activations, two for those of weights.
    matrices, trained = (sum(w.numel() for w in weights.values() if w.requires_grad >= only) for only in (0, 1))
    attention = 2 * layers * tokens * length * queries  # causal; backward, flash attention has five products for two
    forward = 2 * tokens * matrices + attention
    flops = forward + 2 * tokens * (matrices + trained) + 2.5 * attention
    flops += learnt * head.weight.numel() * (6 + 2 * head.weight.requires_grad) + visual_flops
    return Step(max(recomputed, passing_visual), max(kept, passing_visual), flops, forward)


_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def _parts(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a Valley by their names in it, also where peft wraps it."""
    return {
        name.removeprefix("base_model.model.").removeprefix("model."): module for name, module in model.named_modules()
    }


def _count_visual(parts: dict, config, rows: int, num_frames: int, autocast: bool) -> tuple[float, float, float]:
    """Of tower, temporal module and projector: bytes until the step ends, bytes that only pass, operations."""
    tower, temporal, projector = (parts[name] for name in ("vision_tower", "temporal_module", "multi_modal_projector"))
    hidden, inner, _, heads = (getattr(config.vision_config, name) for name in _SIZES)
    patches, frames = config.num_patches, rows * num_frames
    layers = config.vision_feature_layer % (config.vision_config.num_hidden_layers + 1)
    wide = next(tower.parameters()).element_size()
    narrow = 2 if autocast else wide
    trains = any(weight.requires_grad for weight in tower.parameters())
    matrices = sum(
        weight.numel() for name, weight in tower.named_parameters() if weight.ndim == 2 and "embed" not in name
    )
    flops = (2 * matrices * patches + 4 * layers * patches**2 * hidden) * frames * (3 if trains else 1)
    pixels = 3 * 4 * frames * config.vision_config.image_size**2
    features = frames * patches * hidden * wide
    if trains:  # norms, q, k, v, attention and what goes into matrices
        kept = layers * (narrow * (8 * hidden + 3 * inner) + (8 * hidden if narrow < wide else 0) + 4 * heads)
        features += frames * patches * kept
    chunk = min(frames, config.vision_chunk_size) * patches * narrow * (2 * inner + 6 * hidden)
    passing = pixels + features + chunk  # what follows the tower is not there yet

    positions = rows * patches
    own = sum(weight.numel() for weight in temporal.parameters())
    size = next(temporal.parameters(), projector.weight).element_size()
    narrow = 2 if autocast else size
    if config.temporal_module == "transformer":
        width, heads = config.temporal_intermediate_size, config.temporal_num_heads
        features += positions * (narrow * hidden * (3 * num_frames + 2 * heads) + width * (2 * narrow + 1))
        flops += 3 * 2 * positions * (own + 2 * num_frames * heads * hidden)
    elif config.temporal_module == "importance":
        features += positions * num_frames * hidden * size
        flops += 3 * 4 * positions * num_frames * hidden
    projected = rows * (patches + num_frames)
    features += projected * hidden * narrow
    flops += 2 * projected * projector.weight.numel() * (3 if own else 2)
    return pixels + features, passing, flops


__all__ = ["Step", "count_step"]
