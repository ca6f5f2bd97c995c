# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Attention of packed batches with torch's own kernels: each row by itself, instead of all by all and then masked.

Flash attention does so from the bounds of the rows, `cu_seq_lens_q`. With `sdpa`, transformers masks what lies between
rows, and the kernel computes it all the same: packing then costs more than the padding it saves. `sdpa_varlen`, an
`attn_implementation` that is registered here, takes the bounds, too.
"""

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


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
            With it, as in sliding windows, nothing is done by rows: it masks what lies between them.
        cu_seq_lens_q (`torch.Tensor` of shape `(R + 1,)`, int32, *optional*):
            Where rows begin, and where the last one ends.

    Returns:
        `tuple`: what attention gives, `(1, S, num_heads, head_dim)`, and `None`.
    """
    if attention_mask is not None or cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    lengths = cu_seq_lens_q.diff().tolist()
    rows = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    return torch.cat([sdpa_attention_forward(module, *row, None, **kwargs)[0] for row in rows], dim=1), None


def sdpa_varlen_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    **kwargs: Any,
) -> torch.Tensor | None:
    """The mask of `sdpa`; none where each token sees all before it in its row, which attention does without one."""
    if attention_mask is None and local_size is None and not use_vmap and q_length == kv_length:
        return None
    kwargs |= {"attention_mask": attention_mask, "local_size": local_size, "use_vmap": use_vmap}
    return sdpa_mask(batch_size, q_length, kv_length, **kwargs)


AttentionInterface.register("sdpa_varlen", sdpa_varlen_attention)
AttentionMaskInterface.register("sdpa_varlen", sdpa_varlen_mask)


__all__ = ["sdpa_varlen_attention", "sdpa_varlen_mask"]
