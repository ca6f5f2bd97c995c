# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Questions with an answer, in JSON and CSV."""

import pytest

from transformers_valley.data import to_row
from transformers_valley.data.export import to_llava


# MILVLG/activitynet-qa, test (Apache-2.0): a question and its answer joined. The clips' suffix is the downloader's.
ACTIVITYNET = {
    "id": "v_1QIUV7WYKXg_3",
    "video": "v_1QIUV7WYKXg.mp4",
    "question": "is the athlete wearing trousers",
    "answer": "no",
}
# PKU-YuanGroup/Video-Bench, MOT (Apache-2.0); `vid_path` is called `video`.
VIDEO_BENCH = {
    "video": "Eval_video/MOT/MOT16-02.mp4",
    "video_id": "MOT16-02",
    "question": "How many distinct pedestrians are visible in the video?",
    "choices": {"A": "81", "B": "37", "C": "18", "D": "100", "E": "126", "F": "63"},
    "answer": "F",
}


def answer(**fields):
    row = to_row({"video": "a.mp4", "question": "Which?", **fields})
    return row["messages"][1]["content"][0]["text"]


def test_the_clip_comes_before_the_question():
    clip, question = to_row(ACTIVITYNET, "media")["messages"][0]["content"]
    assert clip == {"type": "video", "path": "media/v_1QIUV7WYKXg.mp4"}
    assert question == {"type": "text", "text": "is the athlete wearing trousers"}


def test_choices_stand_below_the_question():
    question = to_row(VIDEO_BENCH)["messages"][0]["content"][1]["text"]
    assert question.endswith("in the video?\nA. 81\nB. 37\nC. 18\nD. 100\nE. 126\nF. 63")


@pytest.mark.parametrize("given", ["F", "63", 5, "F. 63"])
def test_an_answer_may_be_a_choice_its_letter_or_its_index(given):
    assert to_row(VIDEO_BENCH | {"answer": given})["messages"][1]["content"][0]["text"] == "F. 63"


def test_choices_may_be_numbers():
    """Two questions of Video-Bench have such."""
    assert answer(choices=["3", 4], answer="4") == "B. 4"


def test_an_image_and_text_alone_are_read():
    assert to_row({"image": "a.jpg", "question": "?", "answer": "A."})["images"] == ["a.jpg"]
    assert len(to_row({"question": "?", "answer": "A."})["messages"][0]["content"]) == 1


def test_settings_are_those_of_the_clip():
    clip = to_row(ACTIVITYNET | {"start": 1, "end": 2, "fps": 4})["messages"][0]["content"][0]
    assert (clip["start"], clip["end"], clip["fps"]) == (1.0, 2.0, 4.0)


@pytest.mark.parametrize("record", [ACTIVITYNET, VIDEO_BENCH], ids=["activitynet", "video_bench"])
def test_published_records_round_trip(record):
    row = to_row(record, "media")
    assert to_row(to_llava(row, "media"), "media") == row


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"choices": ["a", "b"], "answer": "c"}, "its answer 'c' is 0 of its choices"),
        ({"choices": ["a", "b"], "answer": 2}, "its answer 2 is 0 of its choices"),
        ({"choices": ["B", "A"], "answer": "A"}, "its answer 'A' is 2 of its choices"),
        ({"choices": "a, b", "answer": "a"}, "`choices` is the text 'a, b', expected a list"),
        ({"answer": 3}, "`answer` is the number 3, expected text"),
        ({"answer": " "}, "an answer of the assistant is empty"),
        ({"answer": ""}, r"nothing in \['answer'\]"),
    ],
)
def test_what_cannot_be_read_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        answer(**fields)
