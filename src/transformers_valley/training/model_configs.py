# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The config of a recipe's model.

Input: a recipe, of which a part may not be downloaded or written yet. Output: the config that its model will have.
"""

import copy
import os

from transformers import (
    AutoConfig,
    CLIPVisionConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3Config,
    SiglipVisionConfig,
)
from trl import ModelConfig

from ..checkpoint import check_reachable
from ..configuration_valley import SPECIAL_TOKENS, ValleyConfig
from .arguments import ValleyArguments


def _sizes(hidden: int, intermediate: int, layers: int, heads: int) -> dict[str, int]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return dict(zip(names, (hidden, intermediate, layers, heads), strict=True))


# The sizes in the `config.json` of the models that recipes name, so that an estimate needs no network.
_QWEN3 = dict(vocab_size=151936, num_key_value_heads=8, head_dim=128)
KNOWN_CONFIGS = {
    "openai/clip-vit-large-patch14": CLIPVisionConfig(**_sizes(1024, 4096, 24, 16), patch_size=14, image_size=224),
    "openai/clip-vit-base-patch16": CLIPVisionConfig(**_sizes(768, 3072, 12, 12), patch_size=16, image_size=224),
    "google/siglip2-base-patch16-224": SiglipVisionConfig(**_sizes(768, 3072, 12, 12), patch_size=16, image_size=224),
    "lmsys/vicuna-7b-v1.5": LlamaConfig(**_sizes(4096, 11008, 32, 32)),
    "lmsys/vicuna-13b-v1.5": LlamaConfig(**_sizes(5120, 13824, 40, 40)),
    "meta-llama/Meta-Llama-3-8B-Instruct": LlamaConfig(
        **_sizes(4096, 14336, 32, 32), vocab_size=128256, num_key_value_heads=8
    ),
    "Qwen/Qwen3-8B": Qwen3Config(**_sizes(4096, 12288, 36, 32), **_QWEN3),
    "Qwen/Qwen3-0.6B": Qwen3Config(**_sizes(1024, 3072, 28, 16), **_QWEN3, tie_word_embeddings=True),
    "HuggingFaceTB/SmolLM2-360M-Instruct": LlamaConfig(
        **_sizes(960, 2560, 32, 15), vocab_size=49152, num_key_value_heads=5, tie_word_embeddings=True
    ),
}


def read_model_config(valley_args: ValleyArguments, model_args: ModelConfig) -> ValleyConfig:
    """
    The config that a recipe's model has, or will have once its parts are joined.

    A part is a folder, a name in `KNOWN_CONFIGS`, or one on the Hub. A joined model gets a row in its vocabulary for
    each of Valley's six tokens; a tokenizer with rows to spare would need none.

    Raises:
        ValueError: if there is no such config, it is not a Valley and nothing says what to join it with, or it is one
            and something does.
    """
    config = _read_config(model_args.model_name_or_path or "")
    if not valley_args.vision_model_name_or_path:
        if isinstance(config, ValleyConfig):
            return config
        raise ValueError(
            f"{model_args.model_name_or_path} is a {config.model_type} and no Valley. Name the vision model to join "
            "it with: --vision_model_name_or_path openai/clip-vit-large-patch14."
        )
    if isinstance(config, ValleyConfig):
        raise ValueError(
            f"{model_args.model_name_or_path} is a Valley already: leave vision_model_name_or_path="
            f"{valley_args.vision_model_name_or_path!r} empty."
        )
    config.vocab_size += len(SPECIAL_TOKENS)
    vision = _read_config(valley_args.vision_model_name_or_path)
    vision = getattr(vision, "vision_config", vision)
    return ValleyConfig(vision_config=vision, text_config=config, temporal_module=valley_args.temporal_module)


def _read_config(name: str) -> PreTrainedConfig:
    if not name:
        raise ValueError("There is no model to estimate: name it with --model_name_or_path path/to/valley.")
    if name in KNOWN_CONFIGS and not os.path.isdir(name):
        return copy.deepcopy(KNOWN_CONFIGS[name])
    if os.path.exists(os.path.join(name, "adapter_config.json")):
        raise ValueError(
            f"{name} is a LoRA adapter: merge it with its model first. docs/how-to/train_both_stages.md shows how, "
            "under 'Use the result'."
        )
    try:
        check_reachable(name)
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"No config was found for {name!r}, neither in a folder nor on the Hub. Where it is what an earlier stage "
            "will write, name what that begins with: --vision_model_name_or_path openai/clip-vit-large-patch14 "
            f"--model_name_or_path MODEL. Known without the Hub: {', '.join(KNOWN_CONFIGS)}."
        ) from error


__all__ = ["KNOWN_CONFIGS", "read_model_config"]
