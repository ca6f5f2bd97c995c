# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Streams of rows in a run that may be resumed.

Input: a stream, its collator and how many steps were trained. Output: both, such that no row is decoded a second time.
Accelerate's stateful loader would resume in the middle of a stream, but `Trainer` cannot be configured to use it.
"""

import math
from collections.abc import Callable
from functools import partial

from datasets import Features, IterableDataset, Value
from torch.utils.data import get_worker_info


_SKIPPED = "skipped"  # the column that marks rows which were trained already


def skip_steps(
    rows: IterableDataset, collator: Callable, training_args, steps: int
) -> tuple[IterableDataset, Callable]:
    """
    Skip what a checkpoint was trained on: the rows are read, and not decoded.

    Accelerate skips the batches of these steps only when they are made, so the collator makes nothing of their rows. A
    worker knows the place of its batches among those of all workers as long as none has come to its end; after that it
    takes them for later ones and makes some.

    Args:
        rows (`datasets.IterableDataset`), collator (`Callable`):
            Of the run from its start.
        training_args (`trl.SFTConfig`):
            Of the run.
        steps (`int`):
            Of the checkpoint.
    """
    # Accelerate gives each process shards of its own, or deals rows where there are too few.
    dealt = rows.num_shards < training_args.world_size
    places = {
        "batches": steps * training_args.gradient_accumulation_steps,
        "rows": training_args.per_device_train_batch_size * (training_args.world_size if dealt else 1),
        "shards": rows.num_shards if dealt else math.ceil(rows.num_shards / training_args.world_size),
    }
    features = Features(rows.features | {_SKIPPED: Value("bool")})
    rows = rows.map(_mark, with_indices=True, features=features, fn_kwargs=places)
    return rows, partial(_collate_unmarked, collator=collator)


def _mark(row: dict, index: int, batches: int, rows: int, shards: int) -> dict:
    worker = get_worker_info()
    workers = 1 if worker is None else min(worker.num_workers, shards)
    place = index // rows * workers + (0 if worker is None else worker.id)
    return {_SKIPPED: place < batches}


def _collate_unmarked(rows: list[dict], collator: Callable[[list[dict]], dict]) -> dict:
    return {} if rows[0].pop(_SKIPPED, False) else collator(rows)


__all__ = ["skip_steps"]
