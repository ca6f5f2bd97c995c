# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The pieces of a row, and what is refused of them."""

import math

import pytest
from datasets import Dataset

from transformers_valley.data.rows import FEATURES, clip_block, describe, fill_features, make_row, text_block


def test_every_setting_of_a_clip_survives_the_data_set():
    settings = {"start": 1.0, "end": 2.5, "fps": 0.5, "max_frames": 9}
    content = [clip_block("a.mp4", settings), clip_block("b.mp4", {"num_frames": 8})]
    row = make_row([{"role": "user", "content": content}, {"role": "assistant", "content": [text_block("A.")]}])
    row = Dataset.from_list([fill_features(row | {"id": "0", "source": "a"})], features=FEATURES)[0]
    found = [
        {key: value for key, value in block.items() if value is not None} for block in row["messages"][0]["content"]
    ]
    assert found == content


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 0.0])
def test_numbers_that_make_no_sense_of_a_clip_are_left_to_its_reader(value):
    """A row is bad by them, and a training can skip it."""
    assert repr(clip_block("a.mp4", {"start": value})["start"]) == repr(value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": "1"}, "`start` of a clip is the text '1', expected seconds as a number"),
        ({"fps": True}, "`fps` of a clip is true, expected a number"),
        ({"num_frames": 2.5}, "`num_frames` of a clip is the number 2.5, expected a whole number"),
        ({"num_frames": math.nan}, "expected a whole number"),
        ({"max_frames": 10**30}, "expected a whole number below"),
        ({"end": [1, 2]}, "`end` of a clip is a list of 2"),
    ],
)
def test_other_types_are_told_in_words(settings, message):
    with pytest.raises(ValueError, match=message):
        clip_block("a.mp4", settings)


def test_whole_numbers_of_tables_are_whole():
    """CSV and pandas write 8.0 where some cells are empty."""
    assert clip_block("a.mp4", {"num_frames": 8.0})["num_frames"] == 8


def test_a_number_beyond_all_floats_is_infinite():
    assert clip_block("a.mp4", {"end": 10**400})["end"] == math.inf


@pytest.mark.parametrize("path", ["", " ", None, 3, ["a.mp4"]])
def test_a_path_is_text(path):
    with pytest.raises(ValueError, match="the path of a clip is"):
        clip_block(path, {})


@pytest.mark.parametrize("text", ["bad \ud83d end", "\udce4"])
def test_half_an_emoji_is_refused_where_it_stands(text):
    with pytest.raises(ValueError, match=r"an answer holds a lone surrogate, '\\ud[0-9a-f]+', at character"):
        text_block(text, "an answer")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "null"),
        (True, "true"),
        (3, "the number 3"),
        ("a", "the text 'a'"),
        ([1], "a list of 1"),
        ({"b": 1}, "an object with the fields ['b']"),
    ],
)
def test_values_are_described_in_words(value, words):
    assert describe(value) == words


def test_a_turn_that_only_shows_something_is_a_question():
    turns = [{"role": "user", "content": [clip_block("a.mp4", {})]}]
    assert make_row([*turns, {"role": "assistant", "content": [text_block("A.")]}])["images"] == []


@pytest.mark.parametrize("role", ["user", "system"])
def test_an_empty_turn_is_refused(role):
    turns = [{"role": role, "content": [text_block(" ")]}, {"role": "assistant", "content": [text_block("A.")]}]
    with pytest.raises(ValueError, match=f"a turn of the {role} is empty"):
        make_row(turns)


def test_an_answer_that_shows_and_says_nothing_is_refused():
    with pytest.raises(ValueError, match="an answer of the assistant is empty"):
        make_row([{"role": "assistant", "content": [clip_block("a.mp4", {})]}])
