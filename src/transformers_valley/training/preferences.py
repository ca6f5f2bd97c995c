# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Preferences about clips and images to batches of TRL's `DPOTrainer`, whose own collator takes images alone.

Input: rows of [`load_preferences`]. Output: a batch, the better answers first. The trainer hands to the model all that
a batch holds (huggingface/trl #4002 asks for clips), so that a collator is all it takes.
"""

from typing import Any

import torch

from .collator import ValleyDataCollator


class _LastAnswerCollator(ValleyDataCollator):
    """Of each row the last answer alone is learnt, also where none of it is left after `max_length`."""

    def find_learnt(self, is_visual: torch.Tensor, encoded: dict[str, torch.Tensor]) -> torch.Tensor:
        return _last_run(super().find_learnt(is_visual, encoded))


class PreferenceCollator:
    """
    Rows of preferences to a batch of `DPOTrainer`.

    A row that cannot be read ends the run: pairs must stay pairs.

    Args:
        processor ([`ValleyProcessor`]):
            Of the model.
        max_length (`int`, *optional*):
            Tokens of a row. Longer ones are cut behind their visuals.
    """

    def __init__(self, processor: Any, max_length: int | None = None):
        self._collator = _LastAnswerCollator(processor, max_length=max_length)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """
        A batch of B rows.

        Returns:
            `dict` of what [`ValleyDataCollator`] gives of 2B rows, B with the better and B with the worse answers, and
            `completion_mask` (2B, L) int64 in the place of `labels`: 1 at the last answer.

        Raises:
            BadSampleError: if a row cannot be read, or has no room for its answer.
        """
        chosen = [{name: value for name, value in row.items() if name != "rejected"} for row in rows]
        worse = [
            {**row, "messages": _with_answer(row["messages"], rejected["rejected"])}
            for row, rejected in zip(chosen, rows, strict=True)
        ]
        batch = self._collator([*chosen, *worse])
        batch["completion_mask"] = (batch.pop("labels") != -100).long()
        return batch


def _with_answer(messages: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    *before, last = messages
    return [*before, {**last, "content": [{**last["content"][0], "text": text}]}]


def _last_run(is_learnt: torch.Tensor) -> torch.Tensor:
    """The last run of ones: the answer that differs."""
    # Counted from the end: what lies before another gap of zeros has more gaps behind it.
    backwards = is_learnt.flip(0)
    starts = backwards & ~torch.nn.functional.pad(backwards, (1, 0))[:-1]
    return (backwards & (starts.cumsum(0) == 1)).flip(0)


__all__ = ["PreferenceCollator"]
