# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Ends the reading of clips from outside, between two packets or pictures: a small file may take hours to decode.

Servers need it, where a file comes from anybody. Otherwise nothing is interrupted.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar


__all__ = ["CHECK", "MAX_READ_SECONDS", "interrupted_by", "time_limit"]

MAX_READ_SECONDS = 120.0  # of the clips of one request to a server

# Says why reading has to end, or `None`. A new thread knows nothing of it: hand it on.
CHECK: ContextVar[Callable[[], str | None]] = ContextVar("CHECK", default=lambda: None)


@contextlib.contextmanager
def interrupted_by(check: Callable[[], str | None]) -> Iterator[None]:
    """
    Clips that are read meanwhile end in a `VideoDecodeError` as soon as `check` gives a reason.

    Args:
        check (callable): is asked for each packet and picture, by several threads; gives `None` to go on.
    """
    token = CHECK.set(check)
    try:
        yield
    finally:
        CHECK.reset(token)


def time_limit(seconds: float) -> Callable[[], str | None]:
    """A check that lets reading go on for some seconds from now."""
    deadline = time.monotonic() + seconds
    reason = (
        f"it takes longer than {seconds:g} seconds to decode. Give a part of it (start, end), or a smaller file with "
        "more keyframes."
    )
    return lambda: reason if time.monotonic() > deadline else None
