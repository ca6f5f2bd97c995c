# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Answers against references by their words alone: equal, contained, or a letter. No judge, no model."""

import re
import unicodedata
from collections.abc import Mapping, Sequence


_ARTICLES = {"a", "an", "the"}
_NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)}


def normalized_words(text: str) -> list[str]:
    """
    The words of a text as they are compared: lower case, without accents, punctuation and articles, small numbers in
    digits.

    After the normalisation of SQuAD and VQA; ours strips accents as well, and keeps no plural.
    """
    text = "".join(c for c in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(c))
    words = re.findall(r"\w+", text.replace("'s", "").replace("'", ""))
    return [_DIGITS.get(word, word) for word in words if word not in _ARTICLES]


def is_exact(answer: str, references: Sequence[str]) -> bool:
    """Whether the words of the answer are those of a reference."""
    words = normalized_words(answer)
    # Of a reference that is an article or a mark, no words are left.
    return any((normalized_words(r) or [r.strip()]) == (words or [answer.strip()]) for r in references)


def contains(answer: str, references: Sequence[str]) -> bool:
    """Whether the words of a reference stand side by side in the answer, whole: no "cat" is in "category"."""
    words = f" {' '.join(normalized_words(answer))} "
    wanted = [" ".join(normalized_words(reference)) for reference in references]
    return any(f" {reference} " in words for reference in wanted if reference)


def parse_choice(answer: str, choices: Mapping[str, str]) -> str | None:
    """
    The letter that an answer chooses.

    In this order: the letter alone; a letter that the answer begins with (`B.`, `(B)`, `B:`); "the answer is B", the
    last one if there are several; the text of exactly one choice, alone; or of exactly one, contained.

    The first three are those of LLaVA (`llava/eval/eval_science_qa.py`) and of ScienceQA (`models/run_gpt3.py`), which
    draw a letter or count a mistake where none is found.

    Returns:
        `str`, a key of `choices`, or `None` where none is chosen.
    """
    letters, text = "".join(map(re.escape, choices)), answer.replace("**", "").strip()
    if alone := re.fullmatch(rf"\(?([{letters}])\)?[.:]?", text):
        return alone[1]
    if begin := re.match(rf"(?:\(([{letters}])\)|([{letters}])[.):,](?=\s|$))", text):
        return begin[1] or begin[2]
    if said := re.findall(rf"\b(?i:answer|option|choice)\b[^.\n]*?\b(?i:is|would be):?\s*\(?([{letters}])\b", text):
        return said[-1]
    for fits in (is_exact, contains):
        fitting = [letter for letter, choice in choices.items() if fits(text, [choice])]
        if len(fitting) == 1:
            return fitting[0]
    return None


__all__ = ["contains", "is_exact", "normalized_words", "parse_choice"]
