# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Rows that cannot be trained on: counted, written down, and the end of the run when they are too many.

Input: the errors of a collator. Output: a JSONL file, two counts, and an error above a share.
"""

import json
import logging
import math
import os

import torch

from ..data.decode import BadSampleError


logger = logging.getLogger(__name__)

MOST_WORKERS = 512  # of one process


class BadRows:
    """
    The bad rows of one process and its workers.

    Args:
        file (`str`, *optional*):
            JSONL file to which a line with `id`, `source`, `file` and `reason` is appended for each. Without it each
            is a warning.
        max_share (`float`, *optional*, defaults to 0.05):
            Share of bad rows above which the run ends. Chance gets a margin of three standard deviations: with the
            default the third bad row of three ends it, 13 of 100, 73 of 1000 or 569 of 10000.

    Raises:
        ValueError: if the share makes no sense.
    """

    def __init__(self, file: str | os.PathLike | None = None, max_share: float = 0.05):
        if not 0 < max_share <= 1:
            raise ValueError(
                f"max_bad_share must be above 0 and at most 1, got {max_share}. To stop at the first bad row, set "
                "on_bad_sample to raise."
            )
        self.file, self.max_share = file, max_share
        # Rows read and bad ones, a line for each worker: shared, because workers end with an epoch.
        self._counts = torch.zeros(MOST_WORKERS, 2, dtype=torch.int64).share_memory_()

    def add_read(self) -> None:
        """Count a row that is read, good or bad."""
        self._own_counts()[0] += 1

    def add_bad(self, error: BadSampleError) -> None:
        """
        Count a bad row and write it down.

        Raises:
            ValueError: if more rows are bad than the share allows.
        """
        self._own_counts()[1] += 1
        self._write(error)
        read, bad = self.count()
        if self.exceeds_share(bad, read):
            listed = "" if self.file is None else f" All are listed in {self.file}."
            raise ValueError(
                f"{bad} of the {read} rows that this process has read are bad, significantly more than "
                f"max_bad_share={self.max_share:g}. The last one: {error}{listed} `valley data check` finds such rows "
                "before a run."
            )

    def count(self) -> tuple[int, int]:
        """Rows that this process and its workers have read so far, and how many of them were bad."""
        read, bad = self._counts.sum(0).tolist()
        return read, bad

    def exceeds_share(self, bad: int, read: int) -> bool:
        """Whether so many bad rows among so many are significantly more than the share."""
        expected = self.max_share * read
        return bad > expected + 3 * math.sqrt(expected) + 1

    def _own_counts(self) -> torch.Tensor:
        worker = torch.utils.data.get_worker_info()
        return self._counts[worker.id % MOST_WORKERS if worker else 0]

    def _write(self, error: BadSampleError) -> None:
        if self.file is None:
            logger.warning("%s It is left out.", error)
            return
        entry = {name: getattr(error, name) for name in ("id", "source", "file", "reason")}
        os.makedirs(os.path.dirname(os.path.abspath(self.file)), exist_ok=True)
        # Workers share the file: one write to its end for each line.
        file = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, (json.dumps(entry, ensure_ascii=False) + "\n").encode())
        finally:
            os.close(file)


__all__ = ["BadRows"]
