# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Rows as a run takes them: with their lengths, and without those that are too long."""

from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from ..data.lengths import LENGTH, VISUALS_END, add_lengths, describe_long_rows
from ..processing_valley import ValleyProcessor
from .checks import check_number_of_rows


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
        ValueError: if too few rows are left, or a row cannot be cut.
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
    check_number_of_rows(len(rows), training_args)
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


__all__ = ["prepare_rows"]
