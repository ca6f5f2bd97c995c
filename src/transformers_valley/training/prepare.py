# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The parts of a run.

Input: its arguments. Output: what `SFTTrainer` takes. The order of the steps matters, and is of no concern elsewhere.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks
from trl import get_peft_config, get_quantization_config

from ..data import load_rows
from ..data.frames import check_packed
from ..data.lengths import LENGTH, VISUALS_END, add_lengths, describe_long_rows
from ..data.mixtures import packed_folders
from ..processing_valley import ValleyProcessor
from .bad_rows import BadRows
from .checkpoints import CheckpointKeeper, find_checkpoint, is_finished, read_step
from .checks import (
    check_arguments,
    check_frozen_tower,
    check_launch,
    check_number_of_rows,
    check_packing,
    check_parts,
)
from .collator import ValleyDataCollator
from .features import cache_vision_features
from .monitor import PauseAfter, ProgressTable, RunMonitor
from .parameters import choose_trained
from .previews import PREVIEW_FILE, SampleAnswers, pick_rows
from .settings import describe_run
from .stages import load_model_and_processor
from .streams import skip_steps


def prepare(valley_args, training_args, model_args) -> dict[str, Any]:
    """
    Make what a trainer needs of the arguments of a run.

    Args:
        valley_args ([`ValleyArguments`]), training_args (`trl.SFTConfig`), model_args (`trl.ModelConfig`):
            Of the run, see [`read_arguments`].

    Returns:
        `dict` with `model`, `args`, `processing_class`, `train_dataset`, `eval_dataset`, `data_collator`,
        `peft_config` and `callbacks`, for `SFTTrainer(**parts)`. `args` are `training_args`, changed in place: their
        `resume_from_checkpoint` is the checkpoint to hand to `train`, or `None`.

    Raises:
        ValueError: says of arguments, model or rows what cannot become a run.
        BadSampleError: if a row that sample answers are asked for cannot be read.
    """
    check_launch(training_args)
    check_arguments(valley_args, training_args, model_args)
    # Rows first: a file that is missing should not show only when 13 billion weights are loaded.
    where = {"media_root": valley_args.media_root, "on_missing": valley_args.on_missing}
    sources, held = valley_args.sources(), valley_args.eval_sources()
    rows = load_rows(sources, streaming=valley_args.streaming, **where)
    eval_rows = {name: load_rows([source], **where) for name, source in held}
    model, processor = load_model_and_processor(
        model_args.model_name_or_path,
        valley_args.vision_model_name_or_path,
        valley_args.temporal_module,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
        revision=model_args.model_revision,
        quantization_config=get_quantization_config(model_args),
    )
    if valley_args.pack_batches:
        check_packing(model)
    peft_config = get_peft_config(model_args)
    check_packed(packed_folders([*sources, *(source for _, source in held)]), processor.video_processor)
    check_parts(model, processor, rows, training_args, peft_config)
    if valley_args.cache_vision_features and peft_config is not None:
        check_frozen_tower(model, peft_config)
    choose_trained(model, valley_args.trainable_modules, peft_config)
    rows = prepare_rows(rows, processor, valley_args, training_args)
    if isinstance(rows, Dataset):
        check_number_of_rows(len(rows), training_args)
    # As those trained on: `Trainer` groups them by length, too, and one that is too long would end the run.
    eval_rows = {name: prepare_rows(held, processor, valley_args, training_args) for name, held in eval_rows.items()}
    run = describe_run(valley_args, training_args, model_args, model, processor, rows)
    checkpoint = training_args.resume_from_checkpoint = find_checkpoint(training_args, run)

    collator = ValleyDataCollator.from_arguments(processor, valley_args, training_args)
    if valley_args.cache_vision_features:
        folder, sets = valley_args.cache_vision_features, [rows, *eval_rows.values()]
        collator.features = cache_vision_features(folder, model, processor, sets, training_args)
    callbacks = _build_callbacks(valley_args, training_args, collator.bad_rows, processor)
    callbacks.insert(-1, CheckpointKeeper(run, training_args.save_total_limit))
    training_args.save_total_limit = None  # it counts incomplete checkpoints
    training_args.remove_unused_columns = False  # the collator reads which row it is
    if checkpoint is None:
        _remove_leftovers(training_args)
    if valley_args.on_bad_sample == "skip":
        eval_rows = {name: _drop_bad_rows(name, held, collator, training_args) for name, held in eval_rows.items()}
    rows, collator = _continue_rows(rows, collator, training_args, run, checkpoint)
    return {
        "model": model,
        "args": training_args,
        "data_collator": collator,
        "train_dataset": rows,
        "eval_dataset": eval_rows or None,
        "processing_class": processor,
        "callbacks": callbacks,
        "peft_config": peft_config,
    }


def _build_callbacks(
    valley_args, training_args, bad_rows: BadRows, processor: ValleyProcessor
) -> list[TrainerCallback]:
    """In the order in which they are called. What reports log entries stands behind what adds values to them."""
    # Missed now, and not when the last step is done and the model not yet saved.
    import matplotlib  # noqa: F401

    monitor = RunMonitor(bad_rows)
    reporters = [kind() for kind in get_reporting_integration_callbacks(training_args.report_to)]
    training_args.report_to = []  # or the trainer would put others before these
    callbacks = [monitor, *reporters, ProgressTable()]
    files = valley_args.preview_data or [source for _, source in valley_args.eval_sources()]
    if files and valley_args.preview_steps:
        rows, skips = load_rows(files, valley_args.media_root), valley_args.on_bad_sample == "skip"
        rows = pick_rows(rows, valley_args.num_previews, processor, skips)
        callbacks.append(SampleAnswers(rows, valley_args.preview_steps, monitor.paused, reporters))
    return [*callbacks, PauseAfter(monitor)]


def _remove_leftovers(training_args) -> None:
    """What an earlier run in the same folder wrote line by line."""
    folder = Path(training_args.output_dir)
    if training_args.process_index == 0:
        for file in (*folder.glob("bad_samples/rank*.jsonl"), folder / PREVIEW_FILE):
            file.unlink(missing_ok=True)
    PartialState().wait_for_everyone()  # or what another process writes next would be removed


def _drop_bad_rows(name: str, rows: Dataset, collator: ValleyDataCollator, training_args) -> Dataset:
    """
    The rows of a validation set that can be read, by a look at each: all processes share the work. Of a batch without
    a good row the loss would be 0.0, and an evaluation would count it.
    """
    own = range(training_args.process_index, len(rows), training_args.world_size)
    looked_at = DataLoader(
        rows,
        batch_size=None,
        sampler=own,
        collate_fn=collator.is_good,
        num_workers=training_args.dataloader_num_workers,
        generator=torch.Generator(),  # its own: the training's random numbers stay those of a run without
    )
    bad = set(gather_object([index for index, is_good in zip(own, looked_at, strict=True) if not is_good]))
    if not bad:
        return rows
    if len(bad) == len(rows):
        raise ValueError(f"Every row of the validation set {name!r} is bad: {collator.bad_rows.file} says why.")
    if training_args.process_index == 0:
        print(f"{len(bad)} of {len(rows)} rows of the validation set {name!r} are bad and left out of evaluations.")
    return rows.select([index for index in range(len(rows)) if index not in bad])


def _continue_rows(rows, collator, training_args, run: dict, checkpoint: str | None) -> tuple:
    """Rows and collator as the rest of the run uses them."""
    stream = isinstance(rows, IterableDataset)
    if stream:
        rows = rows.repeat(None)  # `max_steps` ends the run
    if checkpoint and stream and not training_args.ignore_data_skip:
        rows, collator = skip_steps(rows, collator, training_args, read_step(checkpoint))
    if checkpoint and is_finished(checkpoint, run):  # it was killed after its last step
        # `Trainer` would make one more step where that is not an epoch's last, and in any stream.
        rows = Dataset.from_list([next(iter(rows))], features=rows.features) if stream else rows
        training_args.max_steps, training_args.num_train_epochs = -1, 0
    return rows, collator


def prepare_rows(rows: Dataset | IterableDataset, processor: ValleyProcessor, valley_args: Any, training_args: Any):
    """
    What is to be known of rows before the first step: which are too long, and the lengths to batch them by.

    Prints how many rows of which source are longer than `max_length`. With `on_long_row="drop"` they are taken out.
    With `"cut"` those whose visuals alone are longer are bad samples, of which `on_bad_sample="raise"` tells at once.
    With a `train_sampling_strategy` that goes by length, the rows get a column for it. Streamed rows are left as they
    are: nothing is known of them.

    Args:
        rows (`datasets.Dataset` or `datasets.IterableDataset`):
            Of [`load_rows`].
        processor ([`ValleyProcessor`]):
            Of the model.
        valley_args ([`ValleyArguments`]), training_args (`trl.SFTConfig`):
            Of the run.

    Raises:
        ValueError: if no row is left, or a row cannot be cut.
    """
    limit = training_args.max_length
    by_length = training_args.train_sampling_strategy in ("group_by_length", "batch_rebalance")
    if isinstance(rows, IterableDataset) or (limit is None and not by_length):
        return rows
    with training_args.main_process_first(desc="counting the tokens of rows"):
        rows = add_lengths(rows, processor, None if by_length else limit, training_args.dataset_num_proc)
        if limit is not None and (report := describe_long_rows(rows, limit)):
            what = "dropped" if valley_args.on_long_row == "drop" else "cut after their last visual"
            if training_args.process_index == 0:
                print(f"{report}\nThey are {what} (on_long_row={valley_args.on_long_row}).")
            if valley_args.on_long_row == "drop":
                rows = rows.filter(lambda length: length <= limit, input_columns=LENGTH)
    if not len(rows):
        raise ValueError(f"Every row is longer than max_length={limit} and dropped: raise it, or cut them.")
    if limit is not None:
        _check_visuals(rows, limit, valley_args, training_args)
    return rows.remove_columns([VISUALS_END] if by_length else [VISUALS_END, LENGTH])


def _check_visuals(rows: Dataset, limit: int, valley_args: Any, training_args: Any) -> None:
    """Tell of rows that cannot be cut, because a visual would be."""
    ends = np.asarray(rows[VISUALS_END][:])
    if not (found := np.flatnonzero(ends > limit)).size:
        return
    row = rows[int(found[0])]
    message = (
        f"The visuals of {len(found)} of {len(rows)} rows reach beyond max_length={limit}, which may not cut them: "
        f"those of row {row['id']!r} of {row['source']!r}, for one, end at token {row[VISUALS_END]} or later."
    )
    if valley_args.on_bad_sample == "raise":
        raise ValueError(f"{message} Raise max_length, sample fewer frames, or set on_long_row: drop.")
    if training_args.process_index == 0:
        print(f"{message} They are left out (on_bad_sample={valley_args.on_bad_sample}).")


__all__ = ["prepare", "prepare_rows"]
