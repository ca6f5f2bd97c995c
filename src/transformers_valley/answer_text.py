# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The text of an answer while it is written: token ids go in, pieces that will not change any more come out."""

from collections.abc import Iterable, Sequence
from typing import Any

from .processing_valley import trim_answer


__all__ = ["AnswerText"]


class AnswerText:
    """
    Decodes an answer token by token.

    Each step decodes the last tokens alone. Transformers' streamer decodes line by line, and tokenizers of LLaMA drop
    the space that a line begins with: here a piece is what the tokens add to those before them.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            Of the model. Special tokens are left out.
        stop_strings (`Sequence[str]`, *optional*):
            Strings of which the first one to appear ends the answer.
    """

    def __init__(self, tokenizer: Any, stop_strings: Sequence[str] = ()):
        self._tokenizer, self._stop_strings = tokenizer, stop_strings
        self._ids: list[int] = []
        self._written = ""  # what the ids say, as far as their characters are whole
        self._told = 0  # characters of the answer that were given out
        self._window = (0, 0)  # ids whose text is in `_written`, and that are decoded again for what follows them

    @property
    def has_stopped(self) -> bool:
        """Whether a stop string is there."""
        return any(stop in self._written for stop in self._stop_strings)

    @property
    def whole(self) -> str:
        """The answer, once it is over."""
        return trim_answer(self._written, self._stop_strings)

    def add(self, ids: Iterable[int]) -> str:
        """Takes the next tokens; gives what is certain since the last piece."""
        self._ids += ids
        self._decode()
        return self._next(trim_answer(self._written, self._stop_strings, is_whole=False))

    def finish(self) -> str:
        """Gives the last piece."""
        self._decode(is_last=True)
        return self._next(self.whole)

    def _decode(self, is_last: bool = False) -> None:
        begin, end = self._window
        more = self._tokenizer.decode(self._ids[begin:], skip_special_tokens=True)
        if is_last or not more.endswith("\ufffd"):  # the first bytes of a character
            piece = more[len(self._tokenizer.decode(self._ids[begin:end], skip_special_tokens=True)) :]
            self._written += piece
            # Special tokens alone are nothing to begin with: the next word would lose its space.
            self._window = (end if piece else begin), len(self._ids)

    def _next(self, text: str) -> str:
        piece = text[self._told :]
        self._told += len(piece)
        return piece
