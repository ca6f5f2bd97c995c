# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What a training stage is made of; the training itself is TRL's `SFTTrainer`."""

from .arguments import ValleyArguments
from .attention import attend_by_row
from .checkpoints import explain_full_disk, find_checkpoint, find_flaw
from .checks import check_arguments, check_launch, check_parts
from .collator import ValleyDataCollator
from .features import FeatureCache, cache_vision_features
from .monitor import watch
from .parameters import set_trainable
from .prepare import prepare_rows
from .report import write_training_card
from .stages import load_model_and_processor


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
