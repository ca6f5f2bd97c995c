# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""VideoInstruct100K."""

import pytest

from transformers_valley.data import to_row
from transformers_valley.data.decode import visuals_of
from transformers_valley.data.export import to_llava


RECORD = {"q": "What is the man doing?", "a": "He rides a bike.", "video_id": "v_k_ZXmr8pmrs"}


@pytest.mark.parametrize(
    ("position", "order"), [(0, ["text", "video"]), (1, ["video", "text"]), (2, ["text", "video"])]
)
def test_the_clip_stands_behind_even_questions_and_before_odd_ones(position, order):
    row = to_row(RECORD, position=position)
    assert [block["type"] for block in row["messages"][0]["content"]] == order


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_the_suffix_of_a_clip_is_found(tmp_path, suffix):
    (tmp_path / f"v_k_ZXmr8pmrs{suffix}").touch()
    (visual,) = visuals_of(to_row(RECORD, tmp_path))
    assert visual.source["video"] == str(tmp_path / f"v_k_ZXmr8pmrs{suffix}")


@pytest.mark.parametrize("position", [0, 1])
def test_a_record_round_trips(position):
    row = to_row(RECORD, "media", position)
    assert to_row(to_llava(row, "media"), "media") == row


def test_an_empty_answer_is_refused():
    with pytest.raises(ValueError, match=r"nothing in \['a'\]"):
        to_row(RECORD | {"a": ""})
