# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`ValleyConfig`: a vision tower, a temporal module, a linear projector and a language model, described together."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig


# The placeholders of an image and a video, and the delimiters of the released vocabulary around their features.
SPECIAL_TOKENS = ("<image>", "<video>", "<im_start>", "<im_end>", "<vi_start>", "<vi_end>")

# Where a checkpoint that is loaded without this package finds its classes: the files beside its weights.
_AUTO_MAP = {
    "AutoConfig": "configuration_valley.ValleyConfig",
    "AutoModel": "modeling_valley.ValleyModel",
    "AutoModelForImageTextToText": "modeling_valley.ValleyForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_valley.ValleyForConditionalGeneration",
}

# Fields that stand at the top level only where a language model's own config was stored flat: the original Valley repo
# and ByteDance's later, unrelated Valley2 both did this, and both call themselves `model_type: "valley"`.
_FLAT_CONFIG_FIELDS = {"hidden_size", "num_hidden_layers", "mm_vision_tower", "mm_hidden_size", "use_mm_proj"}


# What the parts are made of where nothing is given, and the type of a part whose fields name none.
_CLIP_L_14 = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 224,
    "projection_dim": 768,
}
_LLAMA_7B = {"model_type": "llama", "vocab_size": 32006}


def _as_config(given: dict | PreTrainedConfig | None, default: dict) -> PreTrainedConfig:
    if isinstance(given, PreTrainedConfig):
        return given
    values = dict(default if given is None else {"model_type": default["model_type"], **given})
    return CONFIG_MAPPING[values.pop("model_type")](**values)


def count_patches(height: int, width: int, patch_size: int) -> int:
    """Patches that a vision tower cuts a frame into."""
    return (height // patch_size) * (width // patch_size)


def add_special_tokens(tokenizer) -> None:
    """Give a tokenizer Valley's six special tokens, and a padding token if it has none; what it has already stays.

    The same tokenizer always gets the same ids.

    Raises:
        ValueError: if it has no end token, which the model has to learn to stop with.
    """
    if tokenizer.eos_token is None:
        raise ValueError("The tokenizer has no end token (eos_token): a model trained with it never stops. Set one.")
    tokenizer.add_special_tokens({"extra_special_tokens": list(SPECIAL_TOKENS)}, replace_extra_special_tokens=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token


@strict
class ValleyConfig(PreTrainedConfig):
    """
    Configuration of a Valley: a vision tower, a temporal module, a linear projector and a language model.

    Args:
        vision_config (`dict` or `PreTrainedConfig`, *optional*):
            Of the vision tower; CLIP ViT-L/14 at 224 pixels by default.
        text_config (`dict` or `PreTrainedConfig`, *optional*):
            Of the language model; a LLaMA 7B with Valley's tokens by default.
        image_token_id (`int`, *optional*, defaults to 32000):
            Id of the placeholder that stands at every feature position of an image.
        video_token_id (`int`, *optional*, defaults to 32001):
            Id of the placeholder that stands at every feature position of a video.
        vision_feature_layer (`int`, *optional*, defaults to -2):
            Index into the vision tower's hidden states (0 is the embedding output) of the features that are used.
            Layers after it are not built.
        temporal_module (`str`, *optional*, defaults to `"transformer"`):
            How the patch grids of a clip's frames become one grid (paper, Section 4.2): `"mean"` (v1), `"importance"`
            (v2: a learned weight per frame) or `"transformer"` (v3: what changes over time, added to the mean).
        temporal_space (`str`, *optional*, defaults to `"vision"`):
            Where the temporal module works: `"vision"` pools and then projects, as the paper writes it; `"text"`
            projects and then pools, as the original Valley repository does.
        temporal_num_heads (`int`, *optional*, defaults to 8):
            Attention heads of the `"transformer"` module.
        temporal_intermediate_size (`int`, *optional*, defaults to 2048):
            Width of the feed-forward layer of the `"transformer"` module.
        temporal_dropout (`float`, *optional*, defaults to 0.1):
            Dropout of the `"transformer"` module while training.
        temporal_max_positions (`int`, *optional*):
            Rows of a position table that is stored with the weights of the `"transformer"` module, as in the original
            checkpoints; no clip may have more frames. Without it sinusoidal positions are computed, for any number.
        projector_bias (`bool`, *optional*, defaults to `True`):
            Whether the linear projector has a bias.
        vision_chunk_size (`int`, *optional*, defaults to 32):
            How many frames go through the vision tower at once. It bounds memory and does not change the result.

    Raises:
        ValueError: if the fields are those of a flat config.
        StrictDataclassError: if a field has a wrong type or value, or the temporal module does not fit its width.

    Example:

    ```python
    >>> from transformers_valley import ValleyConfig, ValleyForConditionalGeneration

    >>> # CLIP ViT-L/14 at 224 pixels, a LLaMA 7B decoder and the v3 temporal module
    >>> config = ValleyConfig()
    >>> model = ValleyForConditionalGeneration(config)
    ```"""

    model_type = "valley"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 32000
    video_token_id: int = 32001
    vision_feature_layer: int = -2
    temporal_module: Literal["mean", "importance", "transformer"] = "transformer"
    temporal_space: Literal["vision", "text"] = "vision"
    temporal_num_heads: int = 8
    temporal_intermediate_size: int = 2048
    temporal_dropout: float | int = 0.1
    temporal_max_positions: int | None = None
    projector_bias: bool = True
    vision_chunk_size: int = 32
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        self._refuse_flat_config(kwargs)
        self.vision_config = _as_config(self.vision_config, _CLIP_L_14)
        self.text_config = _as_config(self.text_config, _LLAMA_7B)
        super().__post_init__(**kwargs)
        # A decoder that ties its embeddings says so in its own config; the head lives up here.
        self.tie_word_embeddings |= getattr(self.text_config, "tie_word_embeddings", False)

    def _refuse_flat_config(self, kwargs: dict):
        """Name the two foreign kinds of checkpoint that also say `model_type: "valley"`."""
        flat_fields = sorted(_FLAT_CONFIG_FIELDS & kwargs.keys())
        if self.text_config is not None or not flat_fields:
            return
        architectures = kwargs.get("architectures") or self.architectures or []
        if any("Qwen" in name for name in architectures):
            raise ValueError(
                f"This is a config of ByteDance's Valley2 (architectures={architectures}), an unrelated model that "
                "shares the name. transformers_valley cannot load it; use the code published with that checkpoint."
            )
        raise ValueError(
            f"This is a flat config of the Valley code released in 2023 (it has {flat_fields} at the top level and no "
            "`text_config`). It has to be converted before it is loaded: `valley convert SRC DST`."
        )

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """See [`~transformers.PreTrainedConfig.save_pretrained`]. The code travels along: `auto_map` names it."""
        self.auto_map = {**(getattr(self, "auto_map", None) or {}), **_AUTO_MAP}
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @property
    def num_patches(self) -> int:
        """Patches of a frame in the vision tower's own size."""
        size = self.vision_config.image_size
        return count_patches(size, size, self.vision_config.patch_size)

    @property
    def temporal_hidden_size(self) -> int:
        """Width in which the temporal module works."""
        return (self.vision_config if self.temporal_space == "vision" else self.text_config).hidden_size

    def validate_vision_config(self):
        """Refuse vision models that are not plain vision transformers."""
        if self.vision_config is None:
            return
        needed = ("hidden_size", "num_hidden_layers", "patch_size", "image_size")
        if missing := [name for name in needed if not hasattr(self.vision_config, name)]:
            raise ValueError(
                f"A vision_config of model type {self.vision_config.model_type!r} has no {', '.join(missing)}: it "
                "gives no hidden states per patch. Use a vision transformer such as CLIP's vision model or DINOv2."
            )

    def validate_temporal_module(self):
        """Refuse widths that the temporal module cannot split into heads or pair into sines and cosines."""
        if self.vision_config is None or self.text_config is None or self.temporal_module != "transformer":
            return
        self.validate_vision_config()
        width = self.temporal_hidden_size
        if self.temporal_num_heads < 1 or width % self.temporal_num_heads or width % 2:
            raise ValueError(
                f"temporal_module='transformer' works in {width} channels (temporal_space={self.temporal_space!r}), "
                f"which must be even and divisible by temporal_num_heads={self.temporal_num_heads}. Set "
                "temporal_num_heads to a divisor of the width."
            )

    def validate_temporal_max_positions(self):
        """Refuse an empty position table."""
        if self.temporal_max_positions is not None and self.temporal_max_positions < 1:
            raise ValueError(
                f"temporal_max_positions must be at least 1, got {self.temporal_max_positions}. Leave it out to have "
                "positions computed."
            )

    def validate_token_ids(self):
        """Refuse one id for both modalities: features are placed by id."""
        if self.image_token_id == self.video_token_id:
            raise ValueError(f"image_token_id and video_token_id must differ, both are {self.image_token_id}.")

    def validate_vision_chunk_size(self):
        """Refuse an empty chunk."""
        if self.vision_chunk_size < 1:
            raise ValueError(f"vision_chunk_size must be at least 1 frame, got {self.vision_chunk_size}.")


ValleyConfig.register_for_auto_class()

__all__ = ["SPECIAL_TOKENS", "ValleyConfig", "add_special_tokens"]
