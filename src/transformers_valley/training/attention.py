# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Attention of packed batches with torch's own kernels: each row by itself, instead of all by all and then masked.

Flash attention does so. With `sdpa`, transformers masks what lies between rows, and the kernel computes it all the
same, which can cost more than packing saves. `sdpa_varlen`, an `attn_implementation` that is registered here, is
`sdpa` for each row. It reads where rows begin off the mask that `sdpa` would make, and where a model makes none, off
`cu_seq_lens_q`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from ..modeling_valley import ValleyForConditionalGeneration


_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}  # others may carry a state along
_MASKS_WITHOUT_POSITIONS = {"biogpt", "opt", "xglm"}  # which cannot tell rows apart


def attend_by_row(model: ValleyForConditionalGeneration) -> None:
    """
    Make a model fit for packed batches: its language model's `sdpa` becomes `sdpa_varlen`; other attention stays.

    Args:
        model (`ValleyForConditionalGeneration`):
            The model, before peft wraps it.

    Raises:
        ValueError: if nothing says that the language model keeps packed rows apart.
    """
    language_model = model.model.language_model
    config, attention = language_model.config, language_model.config._attn_implementation
    if language_model._is_stateful or not _ATTENTION.issuperset(getattr(config, "layer_types", None) or []):
        reason = "has layers that may carry a state from row to row"
    elif not language_model._can_set_attn_implementation():
        reason = "has attention of its own"
    elif config.model_type in _MASKS_WITHOUT_POSITIONS and attention in ("eager", "flex_attention"):
        reason = f"does not with attn_implementation={attention!r}, but does without it"
    else:
        if attention == "sdpa":
            model.set_attn_implementation({"text_config": "sdpa_varlen"})
        return
    raise ValueError(
        "pack_batches needs a language model whose attention keeps packed rows apart, and "
        f"{type(language_model).__name__} {reason}. Set pack_batches: false; train_sampling_strategy: group_by_length "
        "saves padding, too."
    )


def sdpa_varlen_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> torch.Tensor | None:
    """
    The mask of `sdpa`, or in its place where the rows of a packed batch begin.

    Returns:
        `torch.Tensor` of shape `(R + 1,)`, int64 on the CPU: the begin of each of R rows and the end of the last one,
        if the batch is packed and each token sees all before it in its row. Otherwise what `sdpa_mask` gives.
    """
    # What transformers does where position ids tell of several rows: no padding, and a mask even though it is causal.
    if attention_mask is None and batch_size == 1 and q_length == kv_length and not (allow_is_causal_skip or use_vmap):
        token, row = torch.arange(q_length, device=device), torch.zeros((), dtype=torch.int64, device=device)
        begins = ~mask_function(row, row, token[1:], token[:-1])  # does not see the token before it
        bounds = torch.tensor([0, *(token[1:][begins]).tolist(), q_length])
        if len(bounds) > 2 and (local_size is None or bounds.diff().max() <= local_size):
            return bounds
    return sdpa_mask(
        batch_size,
        q_length,
        kv_length,
        mask_function=mask_function,
        attention_mask=attention_mask,
        local_size=local_size,
        allow_is_causal_skip=allow_is_causal_skip,
        use_vmap=use_vmap,
        device=device,
        **kwargs,
    )


def sdpa_varlen_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """
    `sdpa` of transformers, row by row where a batch is packed.

    Args:
        query (`torch.Tensor` of shape `(1, num_heads, S, head_dim)`):
            Of R rows, S tokens in all; without packing `(B, num_heads, L, head_dim)`. `key` and `value` alike.
        attention_mask (`torch.Tensor`, *optional*):
            What `sdpa_varlen_mask` gives.
        cu_seq_lens_q (`torch.Tensor` of shape `(R + 1,)`, int32, *optional*):
            As flash attention takes them: looked at where there is no mask. With a cache transformers makes none, so
            without `use_cache=False` they alone tell rows apart.

    Returns:
        `tuple`: what attention gives, `(1, S, num_heads, head_dim)`, and `None`.
    """
    bounds = cu_seq_lens_q if attention_mask is None else attention_mask if attention_mask.ndim == 1 else None
    if bounds is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    lengths = bounds.diff().tolist()
    rows = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    return torch.cat([sdpa_attention_forward(module, *row, None, **kwargs)[0] for row in rows], dim=1), None


AttentionInterface.register("sdpa_varlen", sdpa_varlen_attention)
AttentionMaskInterface.register("sdpa_varlen", sdpa_varlen_mask)


__all__ = ["attend_by_row", "sdpa_varlen_attention", "sdpa_varlen_mask"]
