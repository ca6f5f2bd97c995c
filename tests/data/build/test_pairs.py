# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What a judge marked becomes the worse half of pairs, which are read as preferences."""

import json

import pytest
from typer.testing import CliRunner

from transformers_valley.data.build.pairs import Pairs, write_pairs
from transformers_valley.data.preferences import load_preferences
from valley_cli.app import app


def record(*turns, video="a.mp4", **fields):
    said = [{"from": "gpt" if place % 2 else "human", "value": value} for place, value in enumerate(turns)]
    return {"video": video, "conversations": said, **fields}


def marked(*turns, objects=("red car",), **fields):
    return record(*turns, objects=list(objects), **fields)


@pytest.fixture
def judged(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def write(clean, worse):
        for name, records in (("clean.jsonl", clean), ("clean.jsonl.marked.jsonl", worse)):
            (tmp_path / name).write_text("".join(json.dumps(one) + "\n" for one in records))
        return tmp_path / "clean.jsonl"

    return write


def pairs_of(file, **options):
    found = write_pairs(file, file.with_name("pairs.jsonl"), **options)
    return found, [json.loads(line) for line in file.with_name("pairs.jsonl").read_text().splitlines()]


def test_a_clean_answer_to_the_same_question_is_better(judged):
    answers = {"What?": ["A dog runs.", "A dog and a Tree."], "Who?": ["A dog and a Red Bar."]}
    clean = [record(f"<video>\n{asked}", said) for asked, some in answers.items() for said in some]
    worse = [marked("<video>\nWhat?", f"A dog and a Red Car{dots}", id=f"m{len(dots)}") for dots in (".", "..", "...")]
    found, pairs = pairs_of(judged(clean, worse))
    assert found == Pairs(clean=3)
    assert [pair["chosen"] for pair in pairs] == ["A dog and a Tree."] * 3  # the most like it
    assert pairs[0]["rejected"] == "A dog and a Red Car." and "objects" not in pairs[0]
    rows = load_preferences([judged(clean, worse).with_name("pairs.jsonl")], "clips")
    assert rows["rejected"][1] == "A dog and a Red Car.." and rows["id"][2] == "m3"
    assert rows["messages"][0][0]["content"][0]["path"].endswith("a.mp4")


def test_answers_about_another_clip_or_part_of_it_are_no_better_ones(judged):
    clean = [record("What?", "A dog.", video="b.mp4"), record("What?", "A dog.", start=1.0)]
    found, pairs = pairs_of(judged(clean, [marked("What?", "A dog runs. It chases a red car! It barks.")]))
    assert found == Pairs(shortened=1) and pairs[0]["chosen"] == "A dog runs. It barks."


def test_a_dialogue_is_cut_at_the_answer_that_names_what_was_marked(judged):
    worse = [marked("What?", "A dog.", "And then?", "It barks. A red car comes.", "Why?", "Who knows.")]
    _, pairs = pairs_of(judged([record("What?", "A dog.", "And then?", "It sleeps.")], worse))
    assert [turn["value"] for turn in pairs[0]["conversations"]] == ["What?", "A dog.", "And then?"]
    assert (pairs[0]["chosen"], pairs[0]["rejected"]) == ("It sleeps.", "It barks. A red car comes.")


def test_marked_words_are_whole_ones(judged):
    """A car is not in a scarf; the judge's "car" may be "cars" where no answer has the word itself."""
    talk = ("Who?", "A man in a scarf.", "What comes?", "A dog. Then a car!")
    _, pairs = pairs_of(judged([], [marked(*talk, objects=["car"])]))
    assert (pairs[0]["rejected"], pairs[0]["chosen"]) == (talk[3], "A dog.")
    worse = [marked("What?", "A scarf. A Car? Cats.", objects=["car", "cat"])]
    _, pairs = pairs_of(judged([], [*worse, marked("Who?", "Me. Two cars.", objects=["car"])]))
    assert [pair["chosen"] for pair in pairs] == ["A scarf.", "Me."]


def test_what_gives_no_pair_is_counted(judged):
    undecided = record("What?", "A cat.", reason="the judge did not answer")
    worse = [marked("What?", "A dog. A red car.")] * 2 + [marked("Who?", "A red car."), undecided]
    # A judge that marks an answer once and not the other time makes no pair of it with itself.
    found, pairs = pairs_of(judged([record("What?", "A dog. A red car.")], worse))
    assert found == Pairs(shortened=1, empty=1, equal=1) and len(pairs) == 1


@pytest.mark.parametrize(
    ("worse", "message"),
    [
        ([record("What?", "A red car.")], "record 0 has no `objects`, expected what `valley data judge` wrote"),
        ([marked("What?", "A cat.")], "no answer has the words"),
        ([{"video": "a.mp4", "objects": ["x"]}], "record 0 has no `conversations`"),
        ([{"conversations": [{"value": "What?"}], "objects": ["x"]}], "record 0 has no .* turns have texts as `from`"),
        ([marked("What?", "A red car.")], "gives no pair: 1 rows are marked, 1 of them without"),
        ([], "gives no pair: 0 rows are marked"),
    ],
)
def test_what_a_judge_did_not_write_is_refused(judged, worse, message):
    file = judged([record("Who?", "A dog.")], worse)
    with pytest.raises(ValueError, match=message):
        write_pairs(file, file.with_name("pairs.jsonl"))
    assert not file.with_name("pairs.jsonl").exists()


def test_without_the_judges_second_file_there_is_an_error(tmp_path):
    (tmp_path / "clean.jsonl").write_text("")
    with pytest.raises(FileNotFoundError, match="clean.jsonl.marked.jsonl"):
        write_pairs(tmp_path / "clean.jsonl", tmp_path / "pairs.jsonl")


def test_the_command_counts(judged):
    worse = [marked("What?", "A red car stands."), marked("Who?", "Me. A red car.")]
    file = judged([record("What?", "A dog.")], worse)
    words = ["data", "pair", str(file), "-o", str(file.with_name("out.jsonl"))]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0 and "2 pairs, of which 1 have the marked answer without" in result.stdout
    assert "1 rows without a better answer" in CliRunner().invoke(app, [*words, "--no-shorten"]).stdout
