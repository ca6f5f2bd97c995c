# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The Valley model: frames through a vision tower, time pooled away, one linear projection, a language model.

pixels (frames, 3, H, W) -> vision tower (frames, 1 + P, D) -> temporal module, per clip (P + T, D) -> projector
-> placed at the placeholders of the prompt -> language model. An image is a clip of one frame.

It is one file, as each model of transformers is: readers look for all of a model here, and it travels with
checkpoints.
"""

import contextlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from packaging.version import Version
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
    ModelOutput,
)
from transformers.utils import logging

from .configuration_valley import SPECIAL_TOKENS, ValleyConfig, add_special_tokens, count_patches


logger = logging.get_logger(__name__)

_VERSION = Version(transformers.__version__)
_SELECTS_LAYERS = _VERSION >= Version("5.23")  # whether `output_hidden_states` may name layers; goes with 5.22
_MIXES_UP_VISUALS = _VERSION < Version("5.20")  # where a prompt with several is repeated, in beams; goes with 5.19


@dataclass
class ValleyModelOutputWithPast(BaseModelOutputWithPast):
    """
    All that the language model returned, and the features of the visuals.

    Args:
        router_logits (`tuple` of `torch.FloatTensor` of shape `(tokens, num_experts)`, *optional*):
            Of each layer of a mixture of experts, with `output_router_logits=True`.
        image_outputs, video_outputs (`BaseModelOutputWithPooling`, *optional*):
            What [`ValleyModel.get_image_features`] and [`ValleyModel.get_video_features`] gave.
    """

    router_logits: tuple[torch.FloatTensor] | None = None
    image_outputs: BaseModelOutputWithPooling | None = None
    video_outputs: BaseModelOutputWithPooling | None = None


@dataclass
class ValleyCausalLMOutputWithPast(CausalLMOutputWithPast):
    """
    Loss, logits, and all that [`ValleyModel`] returned beside its last hidden state.

    Args:
        aux_loss (`torch.FloatTensor`, *optional*):
            Load balancing loss of a mixture of experts, before it is weighted by `router_aux_loss_coef`.
        image_outputs, video_outputs (`BaseModelOutputWithPooling`, *optional*):
            What [`ValleyModel.get_image_features`] and [`ValleyModel.get_video_features`] gave.
    """

    aux_loss: torch.FloatTensor | None = None
    router_logits: tuple[torch.FloatTensor] | None = None
    image_outputs: BaseModelOutputWithPooling | None = None
    video_outputs: BaseModelOutputWithPooling | None = None


class ValleyTemporalModule(nn.Module):
    """Pools the patch grids of each clip's frames into one grid. Subclasses say how, in `pool`."""

    def forward(self, patches: torch.Tensor, num_frames: list[int], num_pools: int = 1) -> torch.Tensor:
        """
        Args:
            patches (`torch.FloatTensor` of shape `(total_frames, num_patches, hidden_size)`):
                The frames of all clips, one clip after the other.
            num_frames (`list[int]`):
                Frames of each clip.
            num_pools (`int`, *optional*, defaults to 1):
                How often `pool` is called at least. It is called once for each different number of frames.

        Returns:
            `torch.FloatTensor` of shape `(num_clips, num_patches, hidden_size)`.
        """
        # The module may be trained in float32 beside a projector in bfloat16, and the other way round.
        weight = next(self.parameters(), patches)
        patches = patches.to(weight.dtype if weight.is_floating_point() else patches.dtype)
        # Clips of one length are pooled together: few large operations, and no padding frame is ever computed.
        lengths = set(num_frames)
        if len(lengths) == 1:  # the usual batch needs no copy
            grids = self.pool(patches.unflatten(0, (len(num_frames), num_frames[0])))
        else:
            clips = patches.split(num_frames)
            pooled: list[torch.Tensor | None] = [None] * len(clips)
            for length in lengths:
                members = [index for index, frames in enumerate(num_frames) if frames == length]
                for index, grid in zip(members, self.pool(torch.stack([clips[i] for i in members])), strict=True):
                    pooled[index] = grid
            grids = torch.stack(pooled)
        for _ in range(num_pools - len(lengths)):
            grids = grids + _zero_that_depends_on(self.pool(patches[None, :1]))
        return grids

    def pool(self, clips: torch.Tensor) -> torch.Tensor:
        """`(num_clips, T, num_patches, hidden_size)` to `(num_clips, num_patches, hidden_size)`."""
        raise NotImplementedError


class ValleyMeanPooling(ValleyTemporalModule):
    """v1 (paper, Section 4.2): the mean over time."""

    def __init__(self, config: ValleyConfig):
        super().__init__()

    def pool(self, clips: torch.Tensor) -> torch.Tensor:
        return clips.mean(dim=1)


class ValleyImportancePooling(ValleyTemporalModule):
    """v2 (paper, Section 4.2): a weighted mean over time, one learned weight per frame.

    The paper's formula leaves open whether a frame or a patch is weighted; its text and the released code say frame.
    """

    def __init__(self, config: ValleyConfig):
        super().__init__()
        self.frame_size = config.num_patches * config.temporal_hidden_size
        self.importance = nn.Linear(self.frame_size, 1)

    def pool(self, clips: torch.Tensor) -> torch.Tensor:
        frames = clips.flatten(2)
        if frames.shape[-1] != self.frame_size:
            raise ValueError(
                f"temporal_module='importance' scores whole frames of {self.frame_size} values, got "
                f"{clips.shape[2]} patches x {clips.shape[3]} channels. Feed frames of the vision tower's image_size."
            )
        weights = self.importance(frames).softmax(dim=1, dtype=torch.float32).to(clips.dtype)  # (clips, T, 1)
        return (weights.transpose(1, 2) @ frames).reshape(clips.shape[0], *clips.shape[2:])


class ValleyTemporalTransformer(ValleyTemporalModule):
    """v3 (paper, Section 4.2): what one transformer layer reads off the last frame's patch, plus the mean over time.

    Each patch position is a sequence over time with sinusoidal positions, and only the last step of one post-norm
    `nn.TransformerEncoderLayer` is used. With a single query per sequence, keys and values never have to be computed:
    the query is taken through the key projection instead (its bias shifts all scores alike and cancels), and the value
    projection is applied to the weighted sum of frames. Cost and memory are `T * heads` per channel where the layer
    spends `T * (hidden_size + T)`. The parameters are those of the layer, so they are not `nn.Linear` where their
    weights are used rather than called (an adapter put on them would be passed over).
    """

    def __init__(self, config: ValleyConfig):
        super().__init__()
        hidden_size = config.temporal_hidden_size
        self.num_heads = config.temporal_num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden_size, hidden_size))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * hidden_size))
        self.out_proj = nn.Linear(hidden_size, hidden_size)
        self.linear1 = nn.Linear(hidden_size, config.temporal_intermediate_size)
        self.linear2 = nn.Linear(config.temporal_intermediate_size, hidden_size)
        self.norm1 = nn.LayerNorm(hidden_size, eps=1e-5)
        self.norm2 = nn.LayerNorm(hidden_size, eps=1e-5)
        self.dropout = nn.Dropout(config.temporal_dropout)
        if config.temporal_max_positions is not None:  # stored, but not trained
            self.register_buffer("position_table", torch.empty(config.temporal_max_positions, hidden_size))

    def pool(self, clips: torch.Tensor) -> torch.Tensor:
        mean = clips.mean(dim=1)
        positions = self._positions(clips)
        last = clips[:, -1] + positions[-1]
        hidden = self.norm1(last + self.dropout(self._attend(last, clips, positions)))
        feed_forward = self.linear2(self.dropout(F.relu(self.linear1(hidden))))
        return self.norm2(hidden + self.dropout(feed_forward)) + mean

    def _positions(self, clips: torch.Tensor) -> torch.Tensor:
        """Positions (T, D) of the frames of clips (clips, T, P, D)."""
        _, num_frames, _, hidden_size = clips.shape
        if not hasattr(self, "position_table"):
            return _sinusoidal_positions(num_frames, hidden_size, clips)
        if num_frames > len(self.position_table):
            raise ValueError(
                f"A clip of {num_frames} frames is longer than the position table of this checkpoint, which has "
                f"{len(self.position_table)} rows (temporal_max_positions). Sample fewer frames."
            )
        return self.position_table[:num_frames].to(clips.dtype)

    def _attend(self, last: torch.Tensor, clips: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Attention of each last patch (clips, P, D) over its own past in `clips + positions` (clips, T, P, D)."""
        # c clips, t frames, p patches, h heads, e channels of one head, d all channels
        q_weight, k_weight, v_weight = self.in_proj_weight.unflatten(0, (3, self.num_heads, -1))  # (h, e, d) each
        q_bias, _, v_bias = self.in_proj_bias.unflatten(0, (3, self.num_heads, -1))  # (h, e) each

        query = torch.einsum("cpd,hed->cphe", last, q_weight) + q_bias
        query = torch.einsum("cphe,hed->cphd", query * q_weight.shape[1] ** -0.5, k_weight)
        # The positions are the same for every patch: they are added to the scores and sums, not to each frame.
        scores = torch.einsum("cphd,ctpd->cpht", query, clips) + torch.einsum("cphd,td->cpht", query, positions)
        weights = self.dropout(scores.softmax(dim=-1, dtype=torch.float32).to(clips.dtype))
        context = torch.einsum("cpht,ctpd->cphd", weights, clips) + torch.einsum("cpht,td->cphd", weights, positions)
        # Dropout leaves weights that no longer sum to one, and the value bias is weighted like any value.
        value = torch.einsum("cphd,hed->cphe", context, v_weight) + v_bias * weights.sum(-1, keepdim=True)
        return self.out_proj(value.flatten(2))


def _zero_that_depends_on(result: torch.Tensor) -> torch.Tensor:
    """A zero through which the backward pass reaches what `result` was computed with, and leaves zero gradients."""
    return result[:0].sum()


def _sinusoidal_positions(length: int, dim: int, like: torch.Tensor) -> torch.Tensor:
    """Sine and cosine interleaved, base 10000, counted from 0: `(length, dim)` in the dtype and device of `like`."""
    steps = torch.arange(length, dtype=torch.float32, device=like.device)
    rates = 10000 ** (-torch.arange(0, dim, 2, dtype=torch.float32, device=like.device) / dim)
    angles = torch.outer(steps, rates)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1).to(like.dtype)


TEMPORAL_MODULES = {
    "mean": ValleyMeanPooling,
    "importance": ValleyImportancePooling,
    "transformer": ValleyTemporalTransformer,
}


class ValleyPreTrainedModel(PreTrainedModel):
    """What Valley's models share: how they are loaded, saved, initialised and split."""

    config: ValleyConfig
    base_model_prefix = "model"
    input_modalities = ("image", "video", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["ValleyTemporalTransformer", "ValleyImportancePooling"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, ValleyTemporalTransformer):  # as nn.MultiheadAttention starts
            init.xavier_uniform_(module.in_proj_weight)
            init.zeros_(module.in_proj_bias)
            if hasattr(module, "position_table"):
                table = module.position_table
                init.copy_(table, _sinusoidal_positions(*table.shape, table))

    def _return(self, outputs: ModelOutput, return_dict: bool | None) -> ModelOutput | tuple:
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return outputs if return_dict else outputs.to_tuple()


class ValleyVisualModel(ValleyPreTrainedModel):
    """
    The visual half of Valley: vision tower, temporal module and projector, without a language model.

    Its weights have the names that they have in [`ValleyModel`], so that an engine with a decoder of its own can load
    them from a Valley checkpoint.

    Args:
        config ([`ValleyConfig`]):
            Of the whole model.
    """

    def __init__(self, config: ValleyConfig):
        super().__init__(config)
        self._add_visual_modules()
        self.post_init()

    def _add_visual_modules(self):
        config = self.config
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.temporal_module = TEMPORAL_MODULES[config.temporal_module](config)
        self.multi_modal_projector = nn.Linear(
            config.vision_config.hidden_size, config.text_config.hidden_size, bias=config.projector_bias
        )
        self._drop_unused_vision_layers()

    def _drop_unused_vision_layers(self):
        """Stop the vision tower at the layer whose features are used: what follows is neither kept nor computed."""
        num_layers = self.config.vision_config.num_hidden_layers
        stacks = {
            name: module
            for name, module in self.vision_tower.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) == num_layers
        }
        if len(stacks) != 1:
            raise ValueError(
                f"{type(self.vision_tower).__name__} has no single stack of `num_hidden_layers` transformer layers, "
                "so it has no hidden states per patch. Use a vision transformer such as CLIP, SigLIP or DINOv2."
            )
        layer = self.config.vision_feature_layer
        if not -num_layers - 1 <= layer <= num_layers:
            raise ValueError(
                f"vision_feature_layer={layer} is out of range: {type(self.vision_tower).__name__} has "
                f"{num_layers + 1} hidden states (the embedding output and {num_layers} layers)."
            )
        self.vision_feature_index = layer % (num_layers + 1)
        ((name, layers),) = stacks.items()
        kept = max(self.vision_feature_index, 1)  # hidden states, the embedding output too, are recorded at a layer
        del layers[kept:]
        dropped = [f"{name}.{index}" for index in range(kept, num_layers)]
        # Nor do hidden states pass the final norm or a pooling head: weights there would never get a gradient.
        for head in ("post_layernorm", "layernorm", "head", "pooler"):
            if isinstance(getattr(self.vision_tower, head, None), nn.Module):
                setattr(self.vision_tower, head, nn.Identity())
                dropped.append(head)
        # Checkpoints joined or converted from whole towers still hold what is not built.
        names = "|".join(map(re.escape, dropped))
        self._keys_to_ignore_on_load_unexpected = [rf"vision_tower\.(vision_model\.)?({names})\."] if dropped else None

    def train(self, mode: bool = True) -> "ValleyVisualModel":
        """As in any module, but a frozen vision tower stays in evaluation mode.

        So no dropout or stochastic depth of its config blurs what it sees, and gradient checkpointing passes it by:
        what has no backward pass needs nothing kept to run it again.
        """
        super().train(mode)
        if not _is_trainable(self.vision_tower):
            self.vision_tower.eval()
        return self

    def get_image_features(
        self, pixel_values: torch.FloatTensor, return_dict: bool | None = None, **kwargs: Any
    ) -> tuple | BaseModelOutputWithPooling:
        """
        Features of images, ready to be placed into the prompt.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(num_images, 3, height, width)`):
                All images of the batch, in the order of their placeholders. Each is a clip of one frame.
            return_dict (`bool`, *optional*):
                `False` for a tuple.
            **kwargs:
                For the vision tower, such as `output_hidden_states=True`.

        Returns:
            `BaseModelOutputWithPooling`: `last_hidden_state` is the used layer of the vision tower, of shape
            `(num_images, tokens, vision_hidden_size)`; `pooler_output` a list with a `(num_patches + 1, hidden_size)`
            tensor per image.

        Raises:
            ValueError: if the pixels have another rank, number of channels or dtype.
        """
        _check_pixels("pixel_values", pixel_values, ("num_images", "3", "height", "width"))
        outputs = self._encode_clips(pixel_values, [1] * len(pixel_values), **kwargs)
        return self._return(outputs, return_dict)

    def get_video_features(
        self,
        pixel_values_videos: torch.FloatTensor,
        video_num_frames: torch.LongTensor | list[int] | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> tuple | BaseModelOutputWithPooling:
        """
        Features of video clips, ready to be placed into the prompt.

        Args:
            pixel_values_videos (`torch.FloatTensor` of shape `(num_videos, max_frames, 3, height, width)`):
                All clips of the batch, in the order of their placeholders, padded at the end of time.
            video_num_frames (`torch.LongTensor` of shape `(num_videos,)` or `list[int]`, *optional*):
                Frames of each clip before padding; all of them when not given. Padding is dropped before the vision
                tower. A list spares a wait for the device that a tensor is on.
            return_dict (`bool`, *optional*):
                `False` for a tuple.
            **kwargs:
                For the vision tower, such as `output_hidden_states=True`.

        Returns:
            `BaseModelOutputWithPooling`: `last_hidden_state` is the used layer of the vision tower, of shape
            `(total_frames, tokens, vision_hidden_size)`; `pooler_output` a list with a tensor of shape
            `(num_patches + T, hidden_size)` per clip of T frames.

        Raises:
            ValueError: if the pixels have another rank, number of channels or dtype, or the numbers of frames do not
                fit them.
        """
        _check_pixels("pixel_values_videos", pixel_values_videos, ("num_videos", "frames", "3", "height", "width"))
        num_videos, max_frames = pixel_values_videos.shape[:2]
        num_frames = [max_frames] * num_videos if video_num_frames is None else _to_list(video_num_frames)
        if len(num_frames) != num_videos or any(not 1 <= frames <= max_frames for frames in num_frames):
            raise ValueError(
                f"video_num_frames must give 1 to {max_frames} frames for each of the {num_videos} clips in "
                f"pixel_values_videos, got {num_frames}."
            )
        if all(frames == max_frames for frames in num_frames):
            frames = pixel_values_videos.flatten(0, 1)
        else:
            frames = torch.cat([clip[:count] for clip, count in zip(pixel_values_videos, num_frames, strict=True)])
        outputs = self._encode_clips(frames, num_frames, **kwargs)
        return self._return(outputs, return_dict)

    def encode_frames(self, pixel_values: torch.FloatTensor, **kwargs: Any) -> torch.Tensor:
        """
        What the vision tower alone makes of frames: as long as it is frozen, this can be kept and given again.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(num_frames, 3, height, width)`):
                Images, or the frames of clips.

        Returns:
            `torch.FloatTensor` of shape `(num_frames, tokens, vision_hidden_size)`, the `last_hidden_state` of
            `get_image_features` and `get_video_features`.
        """
        _check_pixels("pixel_values", pixel_values, ("num_frames", "3", "height", "width"))
        chunks = list(pixel_values.split(self.config.vision_chunk_size))
        return self._encode_frames(chunks, len(pixel_values), **kwargs).last_hidden_state

    def pool_frames(
        self, frames: torch.Tensor, num_frames: torch.LongTensor | list[int] | None
    ) -> BaseModelOutputWithPooling:
        """
        What [`encode_frames`] gave, to the features of clips or images.

        Args:
            frames (`torch.FloatTensor` of shape `(total_frames, tokens, vision_hidden_size)`):
                Of all clips, one clip after the other, in the vision tower's own size.
            num_frames (`torch.LongTensor` of shape `(num_clips,)` or `list[int]`):
                Frames of each clip.

        Returns:
            `BaseModelOutputWithPooling` as of `get_video_features`.

        Raises:
            ValueError: if the numbers do not add up to the frames, or under DeepSpeed ZeRO-3.
        """
        if _is_partitioned(self.multi_modal_projector):
            raise ValueError("ZeRO-3 gathers weights in step on all ranks: give pixels, not the tower's features.")
        num_frames = None if num_frames is None else _to_list(num_frames)
        if num_frames is None or sum(num_frames) != len(frames):
            raise ValueError(
                f"video_num_frames must tell how the {len(frames)} frames in mm_encoder_outputs are spread over their "
                f"clips, got {num_frames}."
            )
        device = self.multi_modal_projector.weight.device
        clips = self._pool_clips(frames.to(device), self.config.num_patches, num_frames)
        return BaseModelOutputWithPooling(last_hidden_state=frames, pooler_output=clips)

    def _encode_clips(self, frames: torch.Tensor, num_frames: list[int], **kwargs: Any) -> BaseModelOutputWithPooling:
        """Frames of all clips `(total_frames, 3, H, W)` to one `(P + T, hidden_size)` tensor per clip."""
        chunks = frames.split(self.config.vision_chunk_size)
        num_chunks, num_pools = self._most_of_all_ranks(len(chunks), len(set(num_frames)), device=frames.device)
        outputs = self._encode_frames([*chunks, *[frames[:1]] * (num_chunks - len(chunks))], len(frames), **kwargs)
        num_patches = count_patches(*frames.shape[-2:], self.config.vision_config.patch_size)
        outputs.pooler_output = self._pool_clips(outputs.last_hidden_state, num_patches, num_frames, num_pools)
        return outputs

    def _most_of_all_ranks(self, *counts: int, device: torch.device) -> tuple[int, ...]:
        """Numbers of calls of modules, each raised to the largest of all ranks where calls have to be equal.

        DeepSpeed ZeRO-3 partitions the weights over the ranks and gathers those of a module whenever it is called, by
        all ranks together: they must make the same calls in the same order, whatever their batches hold. Ranks with
        fewer clips make dummy calls and discard the results.
        """
        if not _is_partitioned(self.vision_tower):
            return counts
        most = torch.tensor(counts, device=device)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        return tuple(most.tolist())

    def _encode_frames(
        self,
        chunks: Sequence[torch.Tensor],
        num_frames: int,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Vision tower over chunks of frames, so that its activations do not grow with the number of frames.

        What the chunks hold beyond `num_frames` frames is encoded and discarded.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        # Of the hidden states only those that are used are kept.
        layers = [self.vision_feature_index] if _SELECTS_LAYERS else True
        kwargs |= {"output_hidden_states": output_hidden_states or layers, "return_dict": True}
        # A frozen tower needs no graph, even where the pixels of the batch are followed by trainable parts.
        needs_graph = chunks[0].requires_grad or _is_trainable(self.vision_tower)
        with torch.set_grad_enabled(torch.is_grad_enabled() and needs_graph):
            outputs = [self.vision_tower(chunk, **kwargs) for chunk in chunks]
        features = [output.hidden_states[self.vision_feature_index] for output in outputs]
        return BaseModelOutputWithPooling(
            last_hidden_state=_cat(features)[:num_frames],
            hidden_states=_cat_layers(outputs, "hidden_states", num_frames) if output_hidden_states else None,
            attentions=_cat_layers(outputs, "attentions", num_frames),
        )

    def _pool_clips(
        self, features: torch.Tensor, num_patches: int, num_frames: list[int], num_pools: int = 1
    ) -> list[torch.Tensor]:
        """Tower features `(total_frames, tokens, D)` of all clips to one `(P + T, hidden_size)` tensor per clip."""
        if features.shape[1] < num_patches:
            raise ValueError(
                f"{type(self.vision_tower).__name__} gives {features.shape[1]} tokens for frames of {num_patches} "
                "patches: it merges patches, and Valley needs one token for each."
            )
        features = features.to(self._visual_dtype)
        patches = features[:, -num_patches:]
        if features.shape[1] > num_patches:  # first comes CLS, then perhaps registers, then the patches
            frame_tokens = features[:, 0]
        else:  # SigLIP has no CLS token: the mean of its patches stands for the frame
            frame_tokens = patches.mean(dim=1)

        if self.config.temporal_space == "text":
            patches, frame_tokens = self.multi_modal_projector(patches), self.multi_modal_projector(frame_tokens)
        grids = self.temporal_module(patches, num_frames, num_pools).to(frame_tokens)
        clips = torch.cat([part for clip in zip(grids, frame_tokens.split(num_frames), strict=True) for part in clip])
        if self.config.temporal_space == "vision":
            clips = self.multi_modal_projector(clips)
        return list(clips.split([num_patches + frames for frames in num_frames]))

    @property
    def _visual_dtype(self) -> torch.dtype:
        """Dtype of the projector and temporal module, which may differ from that of a frozen tower."""
        weight = getattr(self.multi_modal_projector, "weight", None)  # a method, or missing, in some quantized layers
        is_float = isinstance(weight, torch.Tensor) and weight.is_floating_point()
        return weight.dtype if is_float else self.dtype

    def _touch_visual_parameters(self, num_passes: int) -> torch.Tensor:
        """A zero that depends on every trainable visual part.

        Distributed training hangs when a rank whose batch is text only leaves a parameter out of its backward pass
        that the other ranks wait for. With `num_passes`, the vision tower is run on a black frame that often, too.
        """
        vision_config = self.config.vision_config
        if num_passes:
            shape = (1, 3, vision_config.image_size, vision_config.image_size)
            frame = torch.zeros(shape, dtype=self.dtype, device=self.device)
            clips = [self.get_image_features(frame, return_dict=True).pooler_output[0] for _ in range(num_passes)]
            return sum(map(_zero_that_depends_on, clips))
        num_patches = self.config.num_patches
        features = torch.zeros(1, num_patches + 1, vision_config.hidden_size, device=self.device)
        return _zero_that_depends_on(self._pool_clips(features, num_patches, [1])[0])


class ValleyModel(ValleyVisualModel):
    """
    Valley without a language modeling head: the features of visuals are placed into the prompt here.

    Args:
        config ([`ValleyConfig`]):
            Of the model.
    """

    def __init__(self, config: ValleyConfig):
        ValleyPreTrainedModel.__init__(self, config)
        self._add_visual_modules()
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_placeholder_mask(
        self,
        input_ids: torch.LongTensor | None,
        inputs_embeds: torch.FloatTensor,
        image_features: list[torch.Tensor] | None = None,
        video_features: list[torch.Tensor] | None = None,
        placeholder_counts: dict[str, list[int]] | None = None,
    ) -> tuple[torch.BoolTensor, torch.BoolTensor]:
        """
        Where the features of images and of videos go.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                The prompt; without it placeholders are recognised by their embedding.
            inputs_embeds (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`):
                The embedded prompt.
            image_features, video_features (`list[torch.FloatTensor]`, *optional*):
                One tensor per visual, in the order of the placeholders.
            placeholder_counts (`dict[str, list[int]]`, *optional*):
                As in `forward`.

        Returns:
            Two masks of shape `(batch_size, sequence_length, 1)`, for images and for videos, on the device of the
            embeddings.

        Raises:
            ValueError: if placeholders and features do not match, naming the first sample where they part.
        """
        ids = (self.config.image_token_id, self.config.video_token_id)
        if input_ids is not None:
            masks = [(input_ids == token_id).to(inputs_embeds.device) for token_id in ids]
        else:
            tokens = self.get_input_embeddings()(torch.tensor(ids, device=inputs_embeds.device))
            masks = [(inputs_embeds == token).all(-1) for token in tokens]
        if not torch.compiler.is_compiling():
            features = {"image": image_features, "video": video_features}
            self._check_placeholders(masks, features, placeholder_counts)
        return tuple(mask.unsqueeze(-1) for mask in masks)

    def _check_placeholders(
        self,
        masks: list[torch.Tensor],
        features: dict[str, list[torch.Tensor] | None],
        placeholder_counts: dict[str, list[int]] | None,
    ):
        """Compare placeholders and features sample by sample: each sample must hold a whole number of visuals."""
        if placeholder_counts is None:  # one wait for the device
            counts = torch.stack([mask.sum(-1) for mask in masks]).tolist()
        else:
            counts = [placeholder_counts.get(modality, [0]) for modality in features]
        for (modality, placed), count in zip(features.items(), counts, strict=True):
            if placed is not None:
                _check_counts(modality, count, [len(visual) for visual in placed])
            elif any(count):
                self._report_missing(modality)

    def _report_missing(self, modality: str):
        """A prompt that speaks of a clip nobody gave is answered from nothing, and trained on it teaches nothing.

        It is an error while training only: assisted generation drafts without visuals on purpose.
        """
        pixels = "pixel_values" if modality == "image" else "pixel_values_videos"
        message = (
            f"{modality.capitalize()} features and {modality} tokens do not match: the prompt has <{modality}> "
            f"placeholder tokens, but no {modality} was given. Pass {pixels} (the processor makes them) or take the "
            "placeholders out of the prompt."
        )
        if self.training:
            raise ValueError(message)
        logger.warning_once(message)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        video_num_frames: torch.LongTensor | list[int] | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        placeholder_counts: dict[str, list[int]] | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> tuple | ValleyModelOutputWithPast:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                The prompt, with a placeholder for each feature of a visual.
            pixel_values (`torch.FloatTensor` of shape `(num_images, 3, height, width)`, *optional*):
                All images of the batch, in the order of their placeholders.
            pixel_values_videos (`torch.FloatTensor`, *optional*):
                All clips of the batch, of shape `(num_videos, max_frames, 3, height, width)`, in the order of their
                placeholders, padded at the end of time.
            video_num_frames (`torch.LongTensor` of shape `(num_videos,)` or `list[int]`, *optional*):
                Frames of each clip before padding; all of them when not given.
            inputs_embeds (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`, *optional*):
                The embedded prompt, instead of `input_ids`.
            mm_encoder_outputs (`dict[str, BaseModelOutputWithPooling]`, *optional*):
                Results of `get_image_features` under `"image"` and of `get_video_features` under `"video"`, instead of
                pixels. Where they hold the tower's `last_hidden_state` alone, it is pooled and projected here; clips
                then need `video_num_frames`. Not under DeepSpeed ZeRO-3.
            placeholder_counts (`dict[str, list[int]]`, *optional*):
                Placeholders of each sample, under `"image"` and `"video"`, as counted on the CPU. Without it they are
                counted on the device of the prompt, for which every forward pass waits.
            return_dict (`bool`, *optional*):
                `False` for a tuple.
            **kwargs:
                For the language model: `attention_mask`, `position_ids`, its cache, `use_cache`,
                `output_hidden_states`, …

        Returns:
            [`ValleyModelOutputWithPast`]

        Raises:
            ValueError: if the prompt or the visuals are given twice or not at all, or do not match.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        features = {name: output for name, output in (mm_encoder_outputs or {}).items() if output is not None}
        if features and (pixel_values is not None or pixel_values_videos is not None):
            raise ValueError("Give either pixels or mm_encoder_outputs, not both: both describe the same visuals.")
        for modality, output in features.items():
            if output.get("pooler_output") is None:
                frames = output["last_hidden_state"]
                features[modality] = self.pool_frames(
                    frames, [1] * len(frames) if modality == "image" else video_num_frames
                )

        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        num_passes = (pixel_values is not None) + (pixel_values_videos is not None)
        (most_passes,) = self._most_of_all_ranks(num_passes, device=inputs_embeds.device)
        if pixel_values is not None:
            features["image"] = self.get_image_features(pixel_values, return_dict=True)
        if pixel_values_videos is not None:
            features["video"] = self.get_video_features(pixel_values_videos, video_num_frames, return_dict=True)

        placed = {modality: output.pooler_output for modality, output in features.items()}
        # A step of decoding reads a token that was written, which stands for no visual.
        if placed or (input_ids is not None and input_ids.shape[1] > 1):
            masks = self.get_placeholder_mask(
                input_ids, inputs_embeds, placed.get("image"), placed.get("video"), placeholder_counts
            )
            for modality, mask in zip(("image", "video"), masks, strict=True):
                if modality in placed:
                    states = _cat(placed[modality]).to(inputs_embeds.device, inputs_embeds.dtype)
                    inputs_embeds = inputs_embeds.masked_scatter(mask, states)
        is_untouched = self.training and torch.is_grad_enabled() and not placed
        if is_untouched and _is_trainable(self.vision_tower):
            most_passes = max(most_passes, 1)
        if num_passes < most_passes or (
            is_untouched and (_is_trainable(self.temporal_module) or _is_trainable(self.multi_modal_projector))
        ):
            touched = self._touch_visual_parameters(most_passes - num_passes)
            inputs_embeds = inputs_embeds + touched.to(inputs_embeds.dtype)

        outputs = self.language_model(inputs_embeds=inputs_embeds, return_dict=True, **kwargs)
        visuals = {f"{modality}_outputs": output for modality, output in features.items()}
        return self._return(_output(ValleyModelOutputWithPast, **outputs, **visuals), return_dict)


def _output(kind: type[ModelOutput], **values: Any) -> ModelOutput:
    """An output of this kind, its values in this order, with those that the kind has no field for among them."""
    output = kind()
    for name, value in values.items():
        if value is not None:
            output[name] = value
    return output


def _to_list(counts: torch.Tensor | Sequence[int]) -> list[int]:
    if isinstance(counts, torch.Tensor) and torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling():
        raise ValueError("torch.export needs the frames of each clip as a list: an exported graph has fixed shapes.")
    return counts.tolist() if isinstance(counts, torch.Tensor) else list(counts)


def _is_trainable(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _is_partitioned(module: nn.Module) -> bool:
    """Whether DeepSpeed ZeRO-3 holds weights of a module in parts: what is left on each rank is empty."""
    return is_deepspeed_zero3_enabled() and any(parameter.numel() == 0 for parameter in module.parameters())


def _cat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """`torch.cat` along the first dimension that does not copy a single tensor."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _cat_layers(outputs: list[ModelOutput], name: str, num_frames: int) -> tuple[torch.Tensor | None, ...] | None:
    """Join what the vision tower recorded per layer over the chunks of frames, and keep the first `num_frames`."""
    chunks = [output.get(name) for output in outputs]
    if chunks[0] is None:
        return None
    return tuple(None if layer[0] is None else _cat(layer)[:num_frames] for layer in zip(*chunks, strict=True))


def _check_pixels(name: str, pixels: torch.Tensor, shape: tuple[str, ...]):
    """Refuse what is not a non-empty float tensor of the expected rank."""
    expected = f"expected a non-empty floating point tensor of shape ({', '.join(shape)}); the processor makes it"
    if not isinstance(pixels, torch.Tensor):
        raise ValueError(f"{name} is a {type(pixels).__name__}; {expected}.")
    if pixels.ndim != len(shape) or pixels.shape[-3] != 3 or 0 in pixels.shape or not pixels.is_floating_point():
        raise ValueError(f"{name} is a {pixels.dtype} tensor of shape {tuple(pixels.shape)}; {expected}.")


def _check_counts(modality: str, counts: list[int], lengths: list[int]):
    """Compare the placeholders of each sample with the lengths of the visuals of the batch, in their order."""
    ends = [0, *accumulate(lengths)]
    if len(lengths) == 1 and sum(counts) == ends[-1]:
        return  # chunked prefill joins the features of all samples into one tensor
    begin = 0
    for sample, count in enumerate(counts):
        is_last = sample == len(counts) - 1
        end = begin + count
        if end in ends and not (is_last and end != ends[-1]):
            begin = end
            continue
        left = [end - begin for end in ends if end > begin] or [0]
        hint = "Most likely the prompt was truncated inside a visual block: raise max_length. Otherwise give exactly"
        if sum(counts) > ends[-1]:
            hint = "Give exactly"
        raise ValueError(
            f"{modality.capitalize()} features and {modality} tokens do not match: sample {sample} has {count} "
            f"<{modality}> placeholder tokens for {left[-1] if is_last else left[0]} features (the batch has "
            f"{sum(counts)} tokens for {ends[-1]} features of {len(lengths)} {modality}s). {hint} one {modality} per "
            f"<{modality}> of the prompt."
        )


class ValleyForConditionalGeneration(ValleyPreTrainedModel, GenerationMixin):
    """
    Valley: a language model that sees images and video clips.

    Args:
        config ([`ValleyConfig`]):
            Of the model.

    Example:

    ```python
    >>> from transformers import AutoModelForMultimodalLM, AutoProcessor
    >>> import transformers_valley

    >>> model = AutoModelForMultimodalLM.from_pretrained("path/to/valley")
    >>> processor = AutoProcessor.from_pretrained("path/to/valley")
    >>> content = [{"type": "video", "path": "clip.mp4"}, {"type": "text", "text": "What happens?"}]
    >>> inputs = processor.apply_chat_template(
    ...     [{"role": "user", "content": content}],
    ...     add_generation_prompt=True,
    ...     tokenize=True,
    ...     return_dict=True,
    ...     return_tensors="pt",
    ... )
    >>> output = model.generate(**inputs)
    >>> processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    ```"""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: ValleyConfig):
        super().__init__(config)
        self.model = ValleyModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self._keys_to_ignore_on_load_unexpected = self.model._keys_to_ignore_on_load_unexpected
        self._origin = {}  # revision and such, with which the tokenizer beside the weights is looked up
        self._tokenizer = None
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike | None, *args: Any, **kwargs: Any):
        """See [`~transformers.PreTrainedModel.from_pretrained`]."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model._origin = {name: kwargs[name] for name in _ORIGIN if name in kwargs}
        return loaded

    def get_output_embeddings(self) -> nn.Module:
        """The language modeling head."""
        return self.lm_head

    def get_image_features(self, pixel_values: torch.FloatTensor, **kwargs: Any) -> tuple | BaseModelOutputWithPooling:
        """See [`ValleyModel.get_image_features`]."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def get_video_features(
        self,
        pixel_values_videos: torch.FloatTensor,
        video_num_frames: torch.LongTensor | list[int] | None = None,
        **kwargs: Any,
    ) -> tuple | BaseModelOutputWithPooling:
        """See [`ValleyModel.get_video_features`]."""
        return self.model.get_video_features(pixel_values_videos, video_num_frames, **kwargs)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        video_num_frames: torch.LongTensor | list[int] | None = None,
        # Handed on, and named because `generate` looks for them here.
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> tuple | ValleyCausalLMOutputWithPast:
        """
        Args:
            input_ids, pixel_values, pixel_values_videos, video_num_frames, inputs_embeds, mm_encoder_outputs:
                As in [`ValleyModel.forward`].
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
                0 where the prompt is padded.
            position_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Positions of the tokens.
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Token ids to learn, -100 where nothing is learnt.
            logits_to_keep (`int` or `torch.LongTensor`, *optional*, defaults to 0):
                How many of the last positions get logits, 0 for all; or which.
            return_dict (`bool`, *optional*):
                `False` for a tuple.
            **kwargs:
                For [`ValleyModel`] and its language model, and `num_items_in_batch` for the loss.

        Returns:
            [`ValleyCausalLMOutputWithPast`]. `logits` are those of the decoder, with whatever it does between its
            hidden states and them; `loss` includes the load balancing loss of a mixture of experts whose config sets
            `output_router_logits`.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            pixel_values_videos=pixel_values_videos,
            video_num_frames=video_num_frames,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            mm_encoder_outputs=mm_encoder_outputs,
            return_dict=True,
            **kwargs,
        )
        text_config = self.config.text_config
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = _scale_logits(self.lm_head(outputs.last_hidden_state[:, kept, :]), text_config)
        loss = aux_loss = None
        if outputs.router_logits is not None:
            aux_loss = _balance_experts(outputs.router_logits, text_config.num_experts_per_tok, attention_mask)
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=text_config.vocab_size, **kwargs)
            if aux_loss is not None:
                loss = loss + text_config.router_aux_loss_coef * aux_loss.to(loss.device)
        others = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        outputs = _output(ValleyCausalLMOutputWithPast, loss=loss, logits=logits, **others, aux_loss=aux_loss)
        return self._return(outputs, return_dict)

    def generate(self, *args: Any, **kwargs: Any):
        """
        See [`~transformers.GenerationMixin.generate`]. Stop strings, which checkpoints of the original Valley
        repository have, need no `tokenizer`: the one beside the weights is used. Placeholders are never written, nor
        taken from drafts of prompt lookup and assistants: nothing stands behind them.

        Raises:
            ValueError: on transformers 5.19, for beams or several sequences of a prompt with several visuals.
        """
        configs = [
            config for config in (kwargs.get("generation_config"), self.generation_config) if config is not None
        ]
        tokenizer = kwargs.get("tokenizer")
        if tokenizer is None and any([kwargs.get("stop_strings"), *(config.stop_strings for config in configs)]):
            tokenizer = self._load_tokenizer()
        if tokenizer is not None:
            kwargs["tokenizer"] = getattr(tokenizer, "tokenizer", tokenizer)  # servers pass the processor
        self._check_sequences(configs[0], **kwargs)
        suppressed = next(filter(None, [kwargs.get("suppress_tokens"), *(c.suppress_tokens for c in configs)]), [])
        kwargs["suppress_tokens"] = sorted({*suppressed, self.config.image_token_id, self.config.video_token_id})
        return super().generate(*args, **kwargs)

    def _load_tokenizer(self):
        """The tokenizer beside the weights, of their revision; `None` where there is none: `generate` says so."""
        if self._tokenizer is None and self.name_or_path:
            with contextlib.suppress(OSError, ValueError):
                self._tokenizer = AutoTokenizer.from_pretrained(self.name_or_path, **self._origin)
        return self._tokenizer

    def _check_sequences(self, config: GenerationConfig, **kwargs: Any):
        """Refuse beams and several sequences where transformers would mix up the visuals of a prompt."""
        repeats = [kwargs.get(name, getattr(config, name)) or 1 for name in ("num_beams", "num_return_sequences")]
        input_ids = kwargs.get("input_ids")
        if not _MIXES_UP_VISUALS or max(repeats) == 1 or input_ids is None:
            return
        for modality, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            rows = (input_ids == getattr(self.config, f"{modality}_token_id")).any(-1).sum()
            if kwargs.get(name) is not None and len(kwargs[name]) > rows > 0:
                raise ValueError(
                    f"transformers {transformers.__version__} mixes up several {modality}s of one prompt in beam "
                    "search and with several sequences per prompt. Update to transformers 5.20 or newer, or ask "
                    "for one sequence without beams."
                )

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision: str | PreTrainedModel,
        text: str | PreTrainedModel,
        tokenizer=None,
        dtype: torch.dtype | str | None = None,
        **config,
    ) -> "ValleyForConditionalGeneration":
        """
        Join a pretrained vision model and a pretrained decoder into a Valley whose projector and temporal module are
        new: the start of stage 1 (paper, Section 4.3).

        Args:
            vision (`str` or `PreTrainedModel`):
                A vision transformer, or a model with one as `vision_model` such as CLIP; loaded if a name or folder. A
                model that is passed in becomes part of the result and loses the layers that are not used.
            text (`str` or `PreTrainedModel`):
                A causal language model; loaded if a name or folder. A model that is passed in becomes part of the
                result and its embeddings are resized.
            tokenizer (`PreTrainedTokenizerBase`, *optional*):
                Tokenizer of the decoder, given if `text` is a model; Valley's six special tokens are added to it in
                place. [`ValleyProcessor.from_vision_text_pretrained`] takes it, or the same name or folder as here.
            dtype (`torch.dtype` or `str`, *optional*):
                Of the whole result; that of the decoder when not given.
            **config:
                Fields of [`ValleyConfig`], such as `temporal_module="mean"`.

        Returns:
            `ValleyForConditionalGeneration`: embeddings of new tokens are the mean of the old ones. Those of the two
            placeholders differ from it by a rounding step, so that they can be told apart in `inputs_embeds`.

        Raises:
            ValueError: if there is no tokenizer, or the decoder cannot be joined: its head has a bias or is tied to
                embeddings of another name, or the joined model does not give its logits on text.
        """
        if isinstance(text, str | os.PathLike):
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(text)
            text = AutoModelForCausalLM.from_pretrained(text, dtype=dtype or "auto")
        if tokenizer is None:
            raise ValueError(
                "Pass `tokenizer`: a decoder given as a model does not say which tokenizer it was trained with."
            )
        if isinstance(vision, str | os.PathLike):
            vision = AutoModel.from_pretrained(vision)
        vision = getattr(vision, "vision_model", vision)
        _check_decoder(text)
        expected = _ask_for_logits(text)

        token_ids = _add_token_rows(tokenizer, text)
        config = cls.config_class(
            vision_config=vision.config,
            text_config=text.config,
            image_token_id=token_ids["<image>"],
            video_token_id=token_ids["<video>"],
            **config,
        )
        with torch.device("meta"):
            model = cls(config)
        model.model.vision_tower = vision
        model.model._drop_unused_vision_layers()
        model.model.language_model = text.base_model
        model.lm_head = text.get_output_embeddings()
        for module in (model.model.temporal_module, model.model.multi_modal_projector):
            module.to_empty(device=text.device)
            module.apply(model._init_weights)
        model.tie_weights()
        model.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=256,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        model = model.to(text.device, text.dtype).eval()
        _compare_logits(model, text, expected)
        return model


_ORIGIN = ("revision", "token", "cache_dir", "force_download", "local_files_only", "subfolder", "trust_remote_code")


def _scale_logits(logits: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
    """What decoders do behind their head, by the config fields that say so.

    `logit_scale` is Cohere's, `lm_head_multiplier` Falcon-H1's, `logits_scaling` Granite's (which divides by it) and
    HyperCLOVA X's (which does not), `final_logit_softcapping` Gemma 2's.
    """
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if (factor := getattr(config, name, None)) is not None:
            logits = logits * factor
    if (factor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits * factor if config.model_type == "hyperclovax" else logits / factor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


def _balance_experts(
    router_logits: tuple[torch.Tensor | None, ...], num_chosen: int, attention_mask: torch.Tensor | None
) -> torch.Tensor:
    """Load balancing loss of a mixture of experts (Switch Transformers, arXiv 2101.03961, equations 4 to 6), over all
    layers together, as Mixtral's.

    Args:
        router_logits (`tuple` of `torch.FloatTensor` of shape `(tokens, num_experts)`):
            Of each layer.
        num_chosen (`int`):
            Experts that a token is given to.
        attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
            Padding counts for nothing.
    """
    layers = [layer for layer in router_logits if layer is not None]
    shares = torch.cat([layer.to(layers[0].device) for layer in layers]).softmax(dim=-1)  # (layers * tokens, experts)
    chosen = torch.zeros_like(shares).scatter(1, shares.topk(num_chosen, dim=-1).indices, 1.0)
    weights = torch.ones_like(shares[:, :1])
    if attention_mask is not None and attention_mask.ndim == 2:
        weights = attention_mask.reshape(-1, 1).repeat(len(layers), 1).to(shares)
    mean_share, mean_chosen = ((weights * values).sum(0) / weights.sum() for values in (shares, chosen))
    return shares.shape[1] * (mean_share * mean_chosen).sum()


def _check_decoder(text: PreTrainedModel):
    """Refuse decoders whose weights have no place in a Valley."""
    name = type(text).__name__
    if getattr(text.get_output_embeddings(), "bias", None) is not None:
        raise ValueError(f"{name} cannot be joined: its head has a bias, which Valley's `lm_head` does not hold.")
    is_tied = getattr(text.config, "tie_word_embeddings", False)
    if is_tied and getattr(text.base_model, "embed_tokens", None) is not text.get_input_embeddings():
        raise ValueError(
            f"{name} cannot be joined: its head is tied to token embeddings that are not called `embed_tokens`, where "
            "Valley looks for them. Use another decoder, such as a LLaMA, Mistral or Qwen3."
        )


@torch.no_grad()
def _ask_for_logits(model: PreTrainedModel) -> torch.Tensor | None:
    """Logits (3, 4) of a few tokens, in float32; `None` for a model without values."""
    if model.device.type == "meta":
        return None
    was_training = model.training
    logits = model.eval()(input_ids=torch.tensor([[3, 1, 2]], device=model.device)).logits[0, :, :4].float()
    model.train(was_training)
    return logits


def _compare_logits(model: PreTrainedModel, text: PreTrainedModel, expected: torch.Tensor | None):
    """Refuse a decoder that answers text otherwise than the Valley that it was joined to."""
    reason = None
    try:
        logits = _ask_for_logits(model)
        if logits is not None:
            # Kernels may differ, as embeddings and a mask are given: in 16 bits, 32 layers are off by some percent.
            tolerance = 0.01 if text.dtype == torch.float32 else 0.1
            off = (logits - expected).abs().mean()
            if not off <= tolerance * expected.abs().mean():  # nor where it is no number
                reason = f"logits of text are off by {off / expected.abs().mean():.1%}"
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        reason = f"it does not read embeddings instead of token ids ({error})"
    if reason:
        raise ValueError(
            f"{type(text).__name__} cannot be joined, since the joined model would not be that decoder: {reason}. Use "
            "another one, such as a LLaMA, Mistral or Qwen3."
        )


def _add_token_rows(tokenizer, text: PreTrainedModel) -> dict[str, int]:
    """Add Valley's tokens to the tokenizer and to the decoder; gives their ids."""
    known = len(tokenizer)
    add_special_tokens(tokenizer)
    token_ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    if len(tokenizer) > text.get_input_embeddings().num_embeddings:
        text.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    fill_token_rows(text.get_output_embeddings().weight, token_ids, known)
    fill_token_rows(text.get_input_embeddings().weight, token_ids, known, tell_apart=True)
    return token_ids


@torch.no_grad()
def fill_token_rows(weight: torch.Tensor, token_ids: dict[str, int], known: int, tell_apart: bool = False) -> None:
    """Put the tokens that are new into embeddings (vocabulary, hidden_size), in place.

    Args:
        weight (`torch.FloatTensor` of shape `(vocab_size, hidden_size)`):
            Input embeddings, or the head.
        token_ids (`dict[str, int]`):
            Ids of Valley's tokens.
        known (`int`):
            How many tokens the tokenizer had before: those from there on get the mean of the rows up to there.
        tell_apart (`bool`, *optional*, defaults to `False`):
            Whether the two placeholders must differ, as in the input embeddings. They are overwritten by features and
            never learn, but `inputs_embeds` has to tell them apart: one small channel of each is moved by a step that
            bfloat16 still sees.
    """
    mean = weight[:known].mean(dim=0, dtype=torch.float32)
    new = {token: index for token, index in token_ids.items() if index >= known}
    weight[list(new.values())] = mean.to(weight.dtype)
    if tell_apart:
        for token, channel in zip(("<image>", "<video>"), mean.abs().argsort()[len(mean) // 16 :][:2], strict=True):
            if token in new:
                weight[new[token], channel] = mean[channel] * (1 + 2**-6)


ValleyModel.register_for_auto_class("AutoModel")
ValleyForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")

__all__ = ["ValleyForConditionalGeneration", "ValleyModel", "ValleyPreTrainedModel", "ValleyVisualModel"]
