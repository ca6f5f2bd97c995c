# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What a training stage is made of; the training itself is TRL's `SFTTrainer`."""

from .attention import attend_by_row
from .callbacks import watch
from .card import write_training_card
from .checkpoints import explain_full_disk, find_checkpoint, find_flaw
from .checks import check_arguments, check_parts
from .collator import ValleyDataCollator, prepare_rows
from .features import FeatureCache, cache_vision_features
from .launch import check_launch
from .stages import ValleyArguments, load_model_and_processor, set_trainable


__all__ = [
    "FeatureCache",
    "ValleyArguments",
    "ValleyDataCollator",
    "attend_by_row",
    "cache_vision_features",
    "check_arguments",
    "check_launch",
    "check_parts",
    "explain_full_disk",
    "find_checkpoint",
    "find_flaw",
    "load_model_and_processor",
    "prepare_rows",
    "set_trainable",
    "watch",
    "write_training_card",
]
