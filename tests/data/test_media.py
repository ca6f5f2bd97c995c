# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Where clips and images of records lie."""

import pytest

from transformers_valley.data.media import MissingMedia, as_folders, find, parse_media, place


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.mp4", "/m/a.mp4"),
        ("jukinmedia/a.mp4", "/j/a.mp4"),
        ("jukinmedia2/a.mp4", "/m/jukinmedia2/a.mp4"),
        ("/b/a.mp4", "/b/a.mp4"),
        ("https://x.org/a.mp4", "https://x.org/a.mp4"),
        ("hf://datasets/x/a.mp4", "hf://datasets/x/a.mp4"),
        ("037551_037600/25116338.mp4", "/w/037551_037600/25116338.mp4"),  # WebVid's, whose records name no source
    ],
)
def test_a_path_starts_in_the_folder_of_its_name(path, expected):
    assert place(path, {"": "/m", "jukinmedia": "/j", "webvid": "/w"}) == expected


def test_the_longest_name_wins():
    assert place("a/b/c.mp4", {"a": "/1", "a/b": "/2"}) == "/2/c.mp4"


def test_without_a_folder_paths_stay():
    assert place("a.mp4", as_folders(None)) == "a.mp4" == place("a.mp4", {"other": "/o"})


@pytest.mark.parametrize(
    ("written", "there"),
    [
        ("000000033471.jpg", "COCO_train2014_000000033471.jpg"),
        ("jukinmedia_v_12.mp4", "v_12.mp4"),
        ("v_12.mp4", "jukinmedia_v_12.mp4"),
        ("v_zkbnKBewRLA.mp4", "zkbnKBewRLA.mp4"),
        ("037551_037600/25116338.mp4", "webvid/037551_037600/25116338.mp4"),
        ("037551_037600/25116338.mp4", "valley/037551_037600/25116338.mp4"),
        ("v_k_ZXmr8pmrs", "v_k_ZXmr8pmrs.mkv"),
        ("25116338", "25116338.mp4"),
    ],
)
def test_a_file_is_found_under_its_other_name(tmp_path, written, there):
    (tmp_path / there).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / there).touch()
    assert find(str(tmp_path / written)) == str(tmp_path / there)


def test_a_file_that_is_there_is_taken_before_its_other_names(tmp_path):
    for name in ("000000033471.jpg", "COCO_train2014_000000033471.jpg"):
        (tmp_path / name).touch()
    assert find(str(tmp_path / "000000033471.jpg")) == str(tmp_path / "000000033471.jpg")


@pytest.mark.parametrize(
    "written", ["a.mp4", "1234.jpg", "x000000033471.jpg", "v_short.mp4", "https://x.org/v_12.mp4"]
)
def test_what_is_nowhere_keeps_its_name(tmp_path, written):
    path = written if "://" in written else str(tmp_path / written)
    assert find(path) == path


def test_folders_of_a_command(tmp_path):
    (tmp_path / "a=b").mkdir()
    options = [f"jukinmedia={tmp_path}", str(tmp_path / "a=b")]
    assert parse_media(options) == {"jukinmedia": str(tmp_path), "": str(tmp_path / "a=b")}
    with pytest.raises(ValueError, match="given twice"):
        parse_media([str(tmp_path), str(tmp_path)])
    with pytest.raises(ValueError, match="There is no folder '/nowhere'"):
        parse_media(["x=/nowhere"])


def test_missing_media_are_counted_and_the_first_named():
    missing = MissingMedia()
    for index in range(20):
        missing.add("a", [f"{index}.mp4", "0.mp4"])
    missing.add("b", ["x.mp4"])
    assert str(missing).startswith("21 rows show clips or images that are not there (20 of a, 1 of b)")
    assert missing.paths == [f"{index}.mp4" for index in range(10)]
