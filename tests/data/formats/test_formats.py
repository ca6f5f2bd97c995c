# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The registry: what a record is told by."""

import pytest

from transformers_valley.data import to_row
from transformers_valley.data.formats import FORMATS, recognize


TURNS = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "A."}]
CHAT = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "A."}]


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ({"messages": CHAT}, "messages"),
        ({"conversations": TURNS}, "llava"),
        ({"conversations": TURNS, "v_id": "1"}, "valley_instruct"),
        ({"QA": [{"q": "?", "a": "A."}]}, "videochat"),
        ({"captions": [], "video_path": "a.mp4"}, None),
        ({"captions": [{"idx": "-1"}], "video_path": "a.mp4"}, "sharegpt4video"),
        ({"q": "?", "a": "A.", "video_id": "v"}, "video_instruct_100k"),
        ({"question": "?", "answer": "A."}, "question_answer"),
        ({"messages": None, "conversations": TURNS}, "llava"),
        ({"messages": [], "conversations": TURNS}, "llava"),
        ({"messages": CHAT, "conversations": None}, "messages"),
        ({"text": "A."}, None),
        ({}, None),
        ([1], None),
        (None, None),
    ],
)
def test_fields_tell_the_format(record, name):
    if name is None:
        with pytest.raises(ValueError, match="expected"):
            recognize(record)
    else:
        assert recognize(record).name == name


def test_every_format_has_a_name_of_its_own():
    assert len({form.name for form in FORMATS}) == len(FORMATS)


def test_a_record_of_two_formats_is_refused():
    with pytest.raises(ValueError, match="`conversations`, which tells of turns"):
        to_row({"messages": CHAT, "conversations": TURNS})


def test_a_record_of_no_format_is_named_with_its_fields():
    with pytest.raises(
        ValueError, match=r"Record '7' is not a training row: it has the fields \['id', 'text'\], expected"
    ):
        to_row({"id": "7", "text": "A."})


@pytest.mark.parametrize("answer", ["", " \n"])
@pytest.mark.parametrize(
    "record",
    [
        lambda answer: {"messages": [CHAT[0], CHAT[1] | {"content": answer}]},
        lambda answer: {"messages": [CHAT[0], CHAT[1] | {"content": [{"type": "text", "text": answer}]}]},
        lambda answer: {"messages": [CHAT[0], CHAT[1] | {"content": []}]},
        lambda answer: {"messages": [*CHAT, CHAT[0], CHAT[1] | {"content": answer}]},
        lambda answer: {"conversations": [TURNS[0], TURNS[1] | {"value": answer}]},
        lambda answer: {"QA": [{"q": "?", "a": answer}]},
        lambda answer: {"q": "?", "a": answer, "video_id": "v"},
        lambda answer: {"question": "?", "answer": answer},
        lambda answer: {"video_path": "a.mp4", "captions": [{"idx": "-1", "content": answer}]},
    ],
)
def test_an_empty_answer_is_refused_in_every_form(record, answer):
    with pytest.raises(ValueError, match="an answer of the assistant is empty|nothing in"):
        to_row(record(answer))
