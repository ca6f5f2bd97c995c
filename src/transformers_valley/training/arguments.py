# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The arguments of a training run.

Input: a recipe (YAML) and flags. Output: [`ValleyArguments`], TRL's `SFTConfig` and `ModelConfig`.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from trl import ModelConfig, SFTConfig, TrlParser


@dataclass
class ValleyArguments:
    """Arguments of a run beside those of TRL's `SFTConfig` and `ModelConfig`."""

    data: list[str] = field(
        metadata={
            "help": "JSON, JSONL and CSV files of training rows, and mixtures of these and of data sets in YAML."
        }
    )
    media_root: str | None = field(
        default=None, metadata={"help": "Folder that relative paths of clips and images start from."}
    )
    on_missing: Literal["keep", "raise", "skip"] = field(
        default="keep",
        metadata={
            "help": "Rows whose clips or images are not there are bad samples when they are reached, end the run "
            "before its first step, or are left out of it. Both of the latter count them."
        },
    )
    trainable_modules: list[str] = field(
        default_factory=list,
        metadata={"help": "Names of the modules that are trained; all others are frozen. Not used with LoRA."},
    )
    vision_model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Vision model to join with the language model `model_name_or_path`, to begin stage 1. Empty to "
            "begin from a Valley checkpoint."
        },
    )
    temporal_module: Literal["mean", "importance", "transformer"] = field(
        default="transformer", metadata={"help": "v1, v2 or v3 of the paper, for a model that is newly joined."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read the rows while training instead of before; needs max_steps."}
    )
    on_bad_sample: Literal["raise", "skip"] = field(
        default="raise",
        metadata={"help": "A row that cannot be read ends the run, or is left out of its batch and written down."},
    )
    max_bad_share: float = field(
        default=0.05, metadata={"help": "Share of bad rows above which `on_bad_sample: skip` ends the run."}
    )
    on_long_row: Literal["cut", "drop"] = field(
        default="cut",
        metadata={"help": "Truncate rows longer than max_length after their last visual, or drop them."},
    )
    pack_batches: bool = field(
        default=False, metadata={"help": "Join the rows of a batch into one instead of padding them."}
    )
    cache_vision_features: str | None = field(
        default=None,
        metadata={"help": "Folder to keep the frozen vision tower's features of clips and images in."},
    )
    eval_data: list[str] = field(
        default_factory=list,
        metadata={"help": "JSON or JSONL files of a validation set. Each has a loss of its own, named by the file."},
    )
    preview_data: list[str] = field(
        default_factory=list,
        metadata={"help": "Files whose rows are answered during the run, to see the model learn. Empty: `eval_data`."},
    )
    preview_steps: int = field(
        default=500, metadata={"help": "Steps between sample answers, 0 for none; first and last step have them, too."}
    )
    num_previews: int = field(default=4, metadata={"help": "How many rows are answered, spread over their files."})


def read_arguments(argv: Sequence[str] | None = None) -> tuple[ValleyArguments, SFTConfig, ModelConfig]:
    """
    Read the arguments of a run.

    Args:
        argv (`list[str]`, *optional*):
            `["--config", RECIPE, "--key", "value", …]`; a flag wins over the recipe. By default those of the command.

    Raises:
        ValueError: if a value is of another type, or a key is unknown.
    """
    with warnings.catch_warnings():
        # The name that every supported version of transformers knows; 5.24 calls it `activation_checkpointing`, too.
        warnings.filterwarnings("ignore", "`gradient_checkpointing` is deprecated", FutureWarning)
        return _Parser((ValleyArguments, SFTConfig, ModelConfig)).parse_args_and_config(argv)


class _Parser(TrlParser):
    def error(self, message: str):
        """argparse would print some hundred options and end the process."""
        raise ValueError(message)


__all__ = ["ValleyArguments", "read_arguments"]
