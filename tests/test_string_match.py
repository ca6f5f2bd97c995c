# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Answers against references by their words, and the letters that answers choose."""

import json

import pytest
from evaluating import FILES

from transformers_valley.string_match import contains, is_exact, normalized_words, parse_choice


@pytest.mark.parametrize(
    ("answer", "reference", "exact", "contained"),
    [
        ("A dog.", "dog", True, True),
        ("the Dog", "a dog", True, True),
        ("two", "2", True, True),
        ("Café!", "cafe", True, True),
        ("It is a dog.", "dog", False, True),
        ("A hot dog stand", "hot dog", False, True),
        ("a dog that is hot", "hot dog", False, False),
        ("category", "cat", False, False),
        ("dogs", "dog", False, False),
        ("no, it is not", "no", False, True),
        ("nothing", "no", False, False),
        ("", "dog", False, False),
        ("the", "the", True, False),
        ("?", "!", False, False),
    ],
)
def test_words_are_compared_whole(answer, reference, exact, contained):
    assert (is_exact(answer, [reference]), contains(answer, [reference])) == (exact, contained)


def test_any_reference_will_do():
    assert is_exact("hound", ["dog", "hound"]) and contains("a big hound", ["dog", "hound"])


def test_normalized_words():
    assert normalized_words("The man's  Three-legged dog, isn't it?") == ["man", "3", "legged", "dog", "isnt", "it"]


CHOICES = {"A": "blue", "B": "red", "C": "light blue"}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        (" b ", None),
        ("B. red", "B"),
        ("**B.** red", "B"),
        ("(B) red", "B"),
        ("B: it is red", "B"),
        ("The answer is B.", "B"),
        ("The answer is (B). BECAUSE: blue is cold.", "B"),
        ("It looks like A. No: the correct option would be B", "B"),
        ("The answer is A. On second thought, the answer is B.", "B"),
        ("red", "B"),
        ("It is red.", "B"),
        ("light blue", "C"),
        ("It is light blue.", None),  # "blue" is in it as well
        ("A man walks.", None),
        ("green", None),
        ("D", None),
        ("", None),
    ],
)
def test_letter_that_an_answer_chooses(answer, letter):
    assert parse_choice(answer, CHOICES) == letter


@pytest.mark.parametrize("model", ["gpt3", "llava"])
def test_published_outputs_of_scienceqa_are_read_as_their_authors_read_them(model):
    """The authors' results say which choice they found in each output; GPT-3's outputs end in a draw where none is."""
    problems = json.loads((FILES / "science_qa/problems.json").read_text())
    outputs = json.loads((FILES / "science_qa/outputs.json").read_text())[model]
    results = json.loads((FILES / "science_qa/published.json").read_text())[model]
    for pid, output in outputs.items():
        choices = dict(zip("ABCDE", problems[pid]["choices"], strict=False))
        assert parse_choice(output, choices) == "ABCDE"[results[pid]], (pid, output[-80:])
