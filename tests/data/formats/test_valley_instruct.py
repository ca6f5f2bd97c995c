# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Valley-Instruct: clips of VATEX are parts of files, those of JukinMedia have two names."""

import pytest

from transformers_valley.data import to_row
from transformers_valley.data.decode import visuals_of
from transformers_valley.data.export import to_llava


# Printed in the paper's appendix B, and in issue 20 of RupertLuo/Valley.
JUKIN = {
    "id": "jukin_1285059",
    "v_id": "1285059",
    "video": "jukinmedia_v_1285059.mp4",
    "source": "jukinmedia",
    "conversations": [
        {"from": "human", "value": "<video>\nHow do the performers execute their mind-blowing flipping trick?"},
        {"from": "gpt", "value": "They find an open area."},
    ],
}
VATEX = {
    "id": "VATEX_zkbnKBewRLA_000069_000079",
    "v_id": "zkbnKBewRLA_000069_000079",
    "video": "v_zkbnKBewRLA.mp4",
    "source": "VATEX",
    "conversations": [
        {"from": "human", "value": "<video>\nHow is the man playing the flute?"},
        {"from": "gpt", "value": "He is moving the instrument around while playing."},
        {"from": "human", "value": "What is the man wearing?"},
        {"from": "gpt", "value": "A black tank top and a bandanna."},
    ],
}


def clip(record, root=None):
    return to_row(record, root)["messages"][0]["content"][0]


def test_a_clip_of_vatex_is_cut_to_its_part():
    assert clip(VATEX) == {"type": "video", "path": "VATEX/v_zkbnKBewRLA.mp4", "start": 69.0, "end": 79.0}


def test_the_part_is_read_from_the_right():
    assert clip(VATEX | {"v_id": "a_b-000_123_000001_000012"})["end"] == 12.0


def test_a_clip_of_jukinmedia_is_whole():
    assert clip(JUKIN, "media") == {"type": "video", "path": "media/jukinmedia/jukinmedia_v_1285059.mp4"}


def test_a_part_that_the_record_gives_wins():
    assert clip(VATEX | {"start": 70}) == {"type": "video", "path": "VATEX/v_zkbnKBewRLA.mp4", "start": 70.0}


def test_a_clip_of_vatex_without_a_part_is_refused():
    with pytest.raises(ValueError, match="`v_id` 'zkbnKBewRLA' should end in _START_END"):
        to_row(VATEX | {"v_id": "zkbnKBewRLA"})


def test_sources_may_lie_in_folders_of_their_own():
    folders = {"jukinmedia": "/j", "VATEX": "/v"}
    assert clip(JUKIN, folders)["path"] == "/j/jukinmedia_v_1285059.mp4"
    assert clip(VATEX, folders)["path"] == "/v/v_zkbnKBewRLA.mp4"


@pytest.mark.parametrize("name", ["jukinmedia_v_1285059.mp4", "v_1285059.mp4"])
def test_both_names_of_a_clip_of_jukinmedia_are_found(tmp_path, name):
    (tmp_path / "jukinmedia").mkdir()
    (tmp_path / "jukinmedia" / name).touch()
    for written in ("jukinmedia_v_1285059.mp4", "v_1285059.mp4"):
        (visual,) = visuals_of(to_row(JUKIN | {"video": written}, tmp_path))
        assert visual.source["video"] == str(tmp_path / "jukinmedia" / name)


@pytest.mark.parametrize("record", [JUKIN, VATEX], ids=lambda record: record["source"])
def test_published_records_round_trip(record):
    row = to_row(record, "media")
    assert to_row(to_llava(row, "media"), "media") == row
