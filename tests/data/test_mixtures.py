# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Sources and what is taken of them."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from transformers_valley.data.mixtures import Source, as_sources, read_mixture


CONFIGS = Path(__file__).parents[2] / "examples" / "configs"


def choose(count=20, **settings):
    return [positions.tolist() for positions in Source(path="a.json", **settings).choose(count)]


@pytest.mark.parametrize(
    ("take", "expected"),
    [
        ("all", range(20)),
        ("first:3", range(3)),
        ("first:10%", range(2)),
        ("first:11%", range(3)),  # rounded up, as LLaVA-NeXT does
        ("end:3", range(17, 20)),
        ("end:100%", range(20)),
    ],
)
def test_the_first_and_last_rows_are_taken(take, expected):
    assert choose(take=take) == [list(expected)]


@pytest.mark.parametrize(("take", "number"), [("random:7", 7), ("random:10%", 2), ("10%", 2), ("0.5%", 1)])
def test_rows_are_drawn_once_each_and_in_order(take, number):
    (positions,) = choose(take=take)
    assert len(positions) == number and positions == sorted(set(positions))


def test_the_seed_and_the_name_say_which_are_drawn():
    assert choose(take="random:7") == choose(take="random:7")
    assert choose(take="random:7") != choose(take="random:7", seed=1) != choose(take="random:7", name="b")


def test_a_weight_says_how_often_a_row_is_shown():
    assert choose(weight=2) == [list(range(20))] * 2
    whole, half = choose(weight=1.5)
    assert whole == list(range(20)) and len(half) == 10 and set(half) < set(whole)
    (part,) = choose(weight=0.25)
    assert len(part) == 5


def test_only_what_has_to_be_counted_is():
    assert not Source(path="a.json").must_count and not Source(path="a.json", take="first:9", weight=3).must_count
    for settings in ({"take": "end:9"}, {"take": "9%"}, {"take": "first:9%"}, {"weight": 0.5}):
        assert Source(path="a.json", **settings).must_count, settings


def test_more_rows_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="a.json: take is 'first:21', and it has 20 rows"):
        choose(take="first:21")


@pytest.mark.parametrize(
    "take", ["", "first", "first:", "first:0", "first:1.5", "first:10.0", "7", "0%", "101%", "last:3", "-3%", 7]
)
def test_a_take_that_makes_no_sense_is_refused(take):
    with pytest.raises(ValueError, match="expected all, first:N, end:N or random:N"):
        Source(path="a.json", take=take)


@pytest.mark.parametrize("weight", [0, -1, True, "2", float("nan"), float("inf")])
def test_a_weight_that_makes_no_sense_is_refused(weight):
    with pytest.raises(ValueError, match="expected a number above 0"):
        Source(path="a.json", weight=weight)


@pytest.mark.parametrize("fields", [{}, {"path": "a.json", "dataset": "b"}])
def test_a_source_is_a_file_or_a_data_set(fields):
    with pytest.raises(ValueError, match="either a `path`"):
        Source(**fields)


# --- YAML ---


def test_a_mixture_lists_sources(tmp_path):
    (tmp_path / "m.yaml").write_text(
        "sources:\n- {path: a/chat.json, media: m, take: first:10, name: cc3m}\n"
        "- {dataset: o/n, split: test}\nseed: 3\n"
    )
    first, second = read_mixture(tmp_path / "m.yaml")
    assert first == Source(path="a/chat.json", media="m", take="first:10", name="cc3m", seed=3)
    assert second == Source(dataset="o/n", split="test", seed=3) and second.name == "n"


@pytest.mark.parametrize("recipe", ["stage1_align", "stage2_instruct", "stage2_lora", "small_align", "small_instruct"])
def test_the_recipes_train_on_mixtures_that_name_the_folder_of_each_source(recipe):
    settings = yaml.safe_load((CONFIGS / f"{recipe}.yaml").read_text())
    (mixture,) = settings["data"]
    sources = read_mixture(CONFIGS.parents[1] / mixture)
    assert all(source.path and source.media for source in sources) and "media_root" not in settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sources: [", "is not YAML"),
        ("- a.json", "it is a list of 1, expected keys out of sources, seed"),
        ("sources: []", "`sources` is a list of 0"),
        ("sources: a.json", "`sources` is the text 'a.json'"),
        ("sources: [a.json]", "source 0 is the text 'a.json', expected keys out of path"),
        ("sources: [{path: a.json}]\nseed: x", "`seed` is the text 'x'"),
        ("sources: [{path: a.json}, {path: b.json, take: some}]", "source 1: take is the text 'some'"),
        ("sources: [{json_path: a.json}]", "unknown key `json_path`: it is called `path` here"),
        ("sources: [{path: a.json, sampling_strategy: all}]", "it is called `take` here"),
        ("datasets: [{json_path: a.json}]", "it is called `sources` here"),
        ("sources: [{path: a.json, shuffle: true}]", "unknown key `shuffle`: expected path"),
    ],
)
def test_a_mixture_that_cannot_be_read_is_named(tmp_path, text, message):
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"m.yaml.*{message}"):
        read_mixture(tmp_path / "m.yaml")


def test_files_mixtures_and_sources_stand_side_by_side(tmp_path):
    (tmp_path / "m.yaml").write_text("sources: [{path: a.json}, {path: b.json, media: own}]")
    sources = as_sources([tmp_path / "m.yaml", "c.jsonl", Source(dataset="d")], "root")
    assert [(source.name, source.media) for source in sources] == [
        ("a", "root"),
        ("b", "own"),
        ("c", "root"),
        ("d", "root"),
    ]


def test_positions_take_little_room():
    assert Source(path="a.json", take="50%").choose(1000)[0].dtype == np.int64
