# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The arguments of a training run.

Input: a recipe (YAML) and flags. Output: [`ValleyArguments`], TRL's `SFTConfig` and `ModelConfig`.
"""

import difflib
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from trl import ModelConfig, SFTConfig, TrlParser

from ..data.mixtures import Source, name_data_sets


@dataclass
class ValleyArguments:
    """Arguments of a run beside those of TRL's `SFTConfig` and `ModelConfig`."""

    data: list[str] = field(
        default_factory=list,
        metadata={
            "help": "JSON, JSONL and CSV files of training rows, and mixtures of these and of data sets in YAML."
        },
    )
    dataset: list[str] = field(
        default_factory=list,
        metadata={
            "help": "In the place of `data`: data sets of `datasets`, a name on the Hub, also as name@revision, or a "
            "folder. Columns may be of `Video`."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data sets."})
    dataset_split: str = field(default="train", metadata={"help": "Split of the data sets that is trained on."})
    dataset_eval_split: str | None = field(
        default=None, metadata={"help": "In the place of `eval_data`: a split of the data sets for validation."}
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

    def sources(self) -> list[str | Source]:
        """What is trained on, as [`load_rows`] takes it."""
        return self.data or name_data_sets(self.dataset, self.dataset_config, self.dataset_split)

    def eval_sources(self) -> list[tuple[str, str | Source]]:
        """The validation sets, each with the name of its loss: that of its file, or of the data set and the split."""
        if self.dataset_eval_split is None:
            return [(Path(file).stem, file) for file in self.eval_data]
        held = name_data_sets(self.dataset, self.dataset_config, self.dataset_eval_split)
        return [(source.split if len(held) == 1 else f"{source.name}_{source.split}", source) for source in held]


def read_arguments(argv: Sequence[str] | None = None) -> tuple[ValleyArguments, SFTConfig, ModelConfig]:
    """
    Read the arguments of a run.

    Args:
        argv (`list[str]`, *optional*):
            `["--config", RECIPE, "--key", "value", …]`; a flag wins over the recipe. By default those of the command.

    Flags that name data sets of the Hub take the place of the files that a recipe names.

    Raises:
        ValueError: if a value is of another type, a key is unknown, it is not clear what to train on, or a recipe for
            GPUs is read on a machine without.
    """
    words = sys.argv[1:] if argv is None else argv
    with warnings.catch_warnings():
        # The name that every supported version of transformers knows; 5.24 calls it `activation_checkpointing`, too.
        warnings.filterwarnings("ignore", "`gradient_checkpointing` is deprecated", FutureWarning)
        try:
            parsed = _Parser(_KINDS, allow_abbrev=False).parse_args_and_config(argv)
        except ValueError as error:
            if "arguments are not used" in str(error):  # TRL's words, which name no other
                raise ValueError(_name_unknown(str(error))) from error
            if "support bf16" not in str(error):  # transformers' words, which leave out two of the three flags
                raise
            raise ValueError(
                "The recipe trains in bfloat16 on a GPU (bf16), and torch finds none here that can: see "
                "torch.cuda.is_available(). To train on the CPU, add --use_cpu true --bf16 false --dtype float32."
            ) from error
    flags = {word.partition("=")[0][2:].replace("-", "_") for word in words if word.startswith("--")}
    _settle_data(parsed[0], flags)
    return parsed


_KINDS = (ValleyArguments, SFTConfig, ModelConfig)


def _name_unknown(message: str) -> str:
    known = [field.name for kind in _KINDS for field in fields(kind)]
    told = []
    for name in re.findall(r"'--([\w-]+)", message):
        close = difflib.get_close_matches(name, known, 1)
        told.append(f"There is no argument {name}" + (f"; did you mean {close[0]}?" if close else "."))
    return (
        " ".join(told)
        or f"{message.partition('HfArgumentParser: ')[2]} follow no flag: write --name before each value."
    )


_INSTEAD = {"data": "dataset", "eval_data": "dataset_eval_split"}  # a data set of the Hub for files


def _settle_data(arguments: ValleyArguments, flags: set[str]) -> None:
    if "data" in flags and not flags & {"dataset", "dataset_eval_split"}:
        arguments.dataset_eval_split = None  # the recipe's, of a data set that is not trained on
    for files, name in _INSTEAD.items():
        if not getattr(arguments, files) or not getattr(arguments, name):
            continue
        given = [option for option in (files, name) if option in flags]
        if len(given) != 1:
            raise ValueError(
                f"Both {files} and {name} are given: keep one, or write all sources into a mixture, a YAML file."
            )
        other = name if given == [files] else files  # a flag wins over the recipe
        setattr(arguments, other, None if other == "dataset_eval_split" else [])
    if not arguments.data and not arguments.dataset:
        raise ValueError("There is nothing to train on: give data, files of rows, or dataset, a name on the Hub.")
    if arguments.dataset_eval_split and not arguments.dataset:
        raise ValueError("dataset_eval_split is a split of dataset, which is not given.")


class _Parser(TrlParser):
    def error(self, message: str):
        """argparse would print hundreds of options and end the process."""
        raise ValueError(message)


__all__ = ["ValleyArguments", "read_arguments"]
