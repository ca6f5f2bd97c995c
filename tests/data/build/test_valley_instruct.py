# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Instructions written by a model behind a real server of this machine, which answers well or badly."""

import json
from collections import Counter

import pytest
from openai_server import Answer, down_while, openai_server, said
from typer.testing import CliRunner

from transformers_valley.data import load_rows, to_row
from transformers_valley.data.build import valley_instruct
from transformers_valley.data.build.captions import Caption
from transformers_valley.data.build.valley_instruct import (
    build_instructions,
    choose_kind,
    find_pairs,
    prompt,
    to_turns,
)
from transformers_valley.endpoint import Endpoint, EndpointError, Reply
from valley_cli.app import app


CAPTION = Caption("7", "video", "v_7.mp4", "This guy scratched his head in confusion.", "Guy Scratches Head")
DETAIL = " ".join(["word"] * 160)
GOOD = {
    "conversation": '{"question": "Who is it?", "answer": "A man."}\n{"question": "Why?", "answer": "He lost."}',
    "complex_reasoning": '{"question": "Why?",\n"answer": "He is puzzled.\n\nHe lost."}',
    "detailed_description": DETAIL,
}


def kind_of(request):
    system = request["messages"][0]["content"]
    return next(kind for kind, described in valley_instruct._prompts().items() if described["system"] == system)


def answer_well(request, count):
    return GOOD[kind_of(request)]


@pytest.fixture
def captions(tmp_path):
    lines = [
        {"id": str(n), "video": f"{n}.mp4", "caption": f"A dog number {n} runs.", "title": "Dog"} for n in range(40)
    ]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "captions.jsonl"


def lines_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


# --- prompts ---


def test_prompts_are_those_of_the_paper():
    """Tables 7 to 9: few-shot examples of two kinds, objects of the released file left out."""
    detail = prompt(CAPTION, "detailed_description")
    assert [message["role"] for message in detail] == ["system", "user", "assistant", "user"]
    assert detail[0]["content"].endswith("This description should be between 150 and 200 words.")
    assert "Object" not in detail[1]["content"] and "bowling" in detail[2]["content"]
    assert detail[-1]["content"] == "[title]\nGuy Scratches Head\n[Caption]\nThis guy scratched his head in confusion."
    conversation = prompt(CAPTION, "conversation")
    assert [message["role"] for message in conversation] == ["system", "user"]
    assert "position" not in conversation[0]["content"] and '"caption", etc.' in conversation[0]["content"]
    assert len(prompt(CAPTION, "complex_reasoning")) == 4
    without = Caption("7", "video", "v.mp4", "A {title} dog.")
    assert prompt(without, "conversation")[-1]["content"] == "[Caption]\nA {title} dog."


def test_shares_are_those_of_the_paper():
    counts = Counter(choose_kind(Caption(str(n), "video", "", "")) for n in range(7300))
    expected = {"conversation": 3700, "complex_reasoning": 2600, "detailed_description": 1000}
    assert all(abs(counts[kind] - number) < 150 for kind, number in expected.items())


# --- answers ---


@pytest.mark.parametrize(
    "text",
    [
        '{"question": "A?", "answer": "B."}',
        "{'question': 'A?', 'answer': 'B.'}",
        '```json\n[{"Question": "A?", "Answer": "B."},]\n```',
        'Here it is:\n1. {"Q": "A?", "A": "B."}',
        '{oh {"question": "A?", "answer": "B.", "more": 1}',
    ],
)
def test_answers_are_parsed_leniently(text):
    assert list(find_pairs(text)) == [("A?", "B.")]


def test_good_answers_become_turns():
    turns = to_turns(Reply("", GOOD["conversation"]), CAPTION, "conversation")
    assert turns == [
        {"from": "human", "value": "<video>\nWho is it?"},
        {"from": "gpt", "value": "A man."},
        {"from": "human", "value": "Why?"},
        {"from": "gpt", "value": "He lost."},
    ]
    (question, answer) = to_turns(Reply("", GOOD["complex_reasoning"]), CAPTION, "complex_reasoning")
    assert answer["value"] == "He is puzzled.\n\nHe lost."
    (question, answer) = to_turns(Reply("", DETAIL), CAPTION, "detailed_description")
    assert question["value"].startswith("<video>\n") and answer["value"] == DETAIL
    to_row({"video": "a.mp4", "conversations": turns})


def pair(question="Who?", answer="A man."):
    return json.dumps({"question": question, "answer": answer})


LONG = Caption("7", "video", "v.mp4", " ".join(f"w{n}" for n in range(20)))


@pytest.mark.parametrize(
    ("kind", "reply", "reason"),
    [
        ("conversation", Reply("", None, "HTTP 500"), "there is no answer: HTTP 500"),
        ("conversation", Reply("", pair(), finish_reason="length"), "the answer was truncated"),
        ("conversation", Reply("", "A man scratches his head."), "holds no object with a question"),
        ("conversation", Reply("", '{"question": "Who?", "answer": "A m'), "holds no object with a question"),
        ("conversation", Reply("", pair(answer=" ")), "is empty"),
        ("conversation", Reply("", pair(answer="The caption says so.")), "answer has the word 'caption'"),
        ("conversation", Reply("", pair("What is mentioned?")), "question has the word 'mentioned'"),
        ("conversation", Reply("", pair(answer="As an AI I see nothing.")), "says 'As an AI"),
        ("conversation", Reply("", pair("<video> what?")), "spells the placeholder"),
        ("complex_reasoning", Reply("", GOOD["conversation"]), "holds 2 questions, expected one"),
        ("complex_reasoning", Reply("", pair(answer="By the caption.")), "answer has the word 'caption'"),
        ("detailed_description", Reply("", "Too short."), "has 2 words, expected 150 to 200"),
        ("detailed_description", Reply("", f"{DETAIL} {DETAIL}"), "has 320 words"),
        ("detailed_description", Reply("", f"{DETAIL} {LONG.text[:60]}"), "copies the caption: 'w0 w1"),
    ],
)
def test_what_is_no_row_is_rejected(kind, reply, reason):
    with pytest.raises(ValueError, match=reason):
        to_turns(reply, LONG, kind)


# --- runs ---


def test_a_file_of_captions_becomes_rows(captions, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    with openai_server(answer_well) as server:
        built = build_instructions(captions, tmp_path / "rows.jsonl", Endpoint(base_url=server.url), progress=False)
    assert built.rows.total() == 40 and len(built.rows) == 3 and not built.rejected
    rows = load_rows([tmp_path / "rows.jsonl"])
    assert len(rows) == 40 and rows[0]["id"].startswith("0_") and not lines_of(tmp_path / "rows.jsonl.rejected.jsonl")
    assert all(row["messages"][0]["content"][0]["path"].endswith(".mp4") for row in rows)


def test_what_is_rejected_is_asked_for_again_and_kept(captions, tmp_path):
    """A server that lies, sends 500 and half answers: others come through, each with its reason."""

    def answer(request, count):
        number = int(said(request).split("number ")[1].split(" ")[0])
        if number == 0:
            return Answer(status=400, body='{"error": {"message": "no dogs"}}')
        if number == 1:
            return "I'm sorry."
        if number == 2 and "seed" not in request:
            return "Nonsense."
        return answer_well(request, count)

    with openai_server(answer) as server:
        endpoint = Endpoint(base_url=server.url, max_retries=0)
        built = build_instructions(captions, tmp_path / "rows.jsonl", endpoint, progress=False)
    rejected = lines_of(tmp_path / "rows.jsonl.rejected.jsonl")
    assert [entry["video"] for entry in rejected] == ["0.mp4", "1.mp4"] and built.rows.total() == 38
    assert "HTTP 400" in rejected[0]["reason"] and rejected[1]["reply"] == "I'm sorry."
    assert built.reasons.total() == 2


def test_a_killed_run_pays_for_nothing_twice(captions, tmp_path, monkeypatch):
    monkeypatch.setattr(valley_instruct, "BATCH", 10)

    def die(request, count):
        return (
            Answer(status=401, body='{"error": {"message": "gone"}}') if count == 25 else answer_well(request, count)
        )

    with openai_server(die) as server:
        endpoint = Endpoint(base_url=server.url, cache=tmp_path / "replies.sqlite", concurrency=1)
        with pytest.raises(EndpointError, match="gone"):
            build_instructions(captions, tmp_path / "rows.jsonl", endpoint, progress=False)
        assert not (tmp_path / "rows.jsonl").exists()
        assert {path.name for path in tmp_path.iterdir()} == {"captions.jsonl", "replies.sqlite"}
        build_instructions(captions, tmp_path / "rows.jsonl", endpoint, progress=False)
        assert len(server.requests) == 41  # one was refused
        build_instructions(captions, tmp_path / "again.jsonl", endpoint, progress=False)
        assert len(server.requests) == 41
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "rows.jsonl").read_bytes()


def test_what_an_outage_left_out_is_asked_for_in_the_next_run(captions, tmp_path):
    outage = [True]
    with openai_server(down_while(outage, answer_well)) as server:
        endpoint = Endpoint(base_url=server.url, cache=tmp_path / "replies.sqlite", max_retries=0)
        built = build_instructions(captions, tmp_path / "rows.jsonl", endpoint, limit=5, progress=False)
        assert built.rejected.total() == 5
        outage.clear()
        built = build_instructions(captions, tmp_path / "rows.jsonl", endpoint, limit=5, progress=False)
        assert built.rows.total() == 5 and not built.rejected


def test_the_command_builds_and_tells(captions, tmp_path):
    words = ["data", "build", str(captions), "-o", str(tmp_path / "rows.jsonl"), "--limit", "5", "--server"]
    with openai_server(answer_well) as server:
        result = CliRunner().invoke(app, [*words, server.url])
        again = CliRunner().invoke(app, [*words, server.url])
        assert len(server.requests) == 5 and again.exit_code == 0
    assert result.exit_code == 0 and "5 rows" in result.stdout and "0 rejected" in result.stdout
    (tmp_path / "none.csv").write_text("a,b\n1,2\n")
    with openai_server(answer_well) as server:
        words[2] = str(tmp_path / "none.csv")
        refused = CliRunner().invoke(app, [*words, server.url])
    assert refused.exit_code == 1 and "no caption that can be read: 1 records are none" in refused.stderr
