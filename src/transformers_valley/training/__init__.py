# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What a training run is made of; the training itself is TRL's `SFTTrainer`."""

from .arguments import ValleyArguments, read_arguments
from .checkpoints import check_checkpoint
from .collator import ValleyDataCollator
from .features import FeatureCache, cache_vision_features
from .parameters import set_trainable
from .prepare import prepare
from .report import write_training_card
from .run import clear_errors, finish, replace_reports, train
from .stages import load_model_and_processor


__all__ = [
    "FeatureCache",
    "ValleyArguments",
    "ValleyDataCollator",
    "cache_vision_features",
    "check_checkpoint",
    "clear_errors",
    "finish",
    "load_model_and_processor",
    "prepare",
    "read_arguments",
    "replace_reports",
    "set_trainable",
    "train",
    "write_training_card",
]
