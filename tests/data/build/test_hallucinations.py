# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""A judge of this machine marks objects; what it says is believed only as far as it can be."""

import json
import sys

import pytest
from openai_server import Answer, down_while, openai_server, said
from typer.testing import CliRunner

from transformers_valley.data.build.hallucinations import check_hallucinations
from transformers_valley.endpoint import Endpoint, EndpointError
from valley_cli.app import app


ANSWERS = ["A dog runs.", "A dog runs beside a red car.", "A dog.", "The dog barks."]
VERDICTS = ['{"objects": []}', 'Here: {"objects": ["red car"]}', "I like dogs.", '{"objects": ["cat"]}']


@pytest.fixture
def files(tmp_path):
    rows = [
        {
            "id": str(n),
            "video": f"{n}.mp4",
            "conversations": [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": answer}],
        }
        for n, answer in enumerate(ANSWERS)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    captions = [{"video": f"{n}.mp4", "caption": "A dog runs.", "title": f"Dog {n}"} for n in range(4)]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, captions)))
    return tmp_path / "rows.jsonl", tmp_path / "captions.jsonl"


def judge(request, count):
    return VERDICTS[int(said(request).split("Title: Dog ")[1][0])]


def lines_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_rows_are_parted_by_what_the_judge_marks(files, tmp_path):
    with openai_server(judge) as server:
        found = check_hallucinations(*files, tmp_path / "out.jsonl", Endpoint(base_url=server.url), progress=False)
        assert "A dog runs beside a red car." in str(server.requests) and server.requests[0]["temperature"] == 0
    assert (found.clean, found.marked, found.undecided) == (1, 1, 2) and found.objects == {"red car": 1}
    clean, marked = lines_of(tmp_path / "out.jsonl"), lines_of(tmp_path / "out.jsonl.marked.jsonl")
    assert clean == lines_of(files[0])[:1] and marked[0]["objects"] == ["red car"]
    assert "gave no verdict" in marked[1]["reason"] and "do not have: ['cat']" in marked[2]["reason"]


def test_no_verdict_is_paid_for_twice_and_nothing_is_half_written(files, tmp_path):
    def die(request, count):
        return Answer(status=401, body='{"error": {"message": "x"}}') if count == 2 else judge(request, count)

    with openai_server(die) as server:
        endpoint = Endpoint(base_url=server.url, cache=tmp_path / "kept", concurrency=1)
        with pytest.raises(EndpointError):
            check_hallucinations(*files, tmp_path / "out.jsonl", endpoint, progress=False)
        assert not (tmp_path / "out.jsonl").exists()
        check_hallucinations(*files, tmp_path / "out.jsonl", endpoint, progress=False)
        assert len(server.requests) == 5


def test_what_an_outage_left_undecided_is_judged_in_the_next_run(files, tmp_path):
    outage = [True]
    with openai_server(down_while(outage, judge)) as server:
        endpoint = Endpoint(base_url=server.url, cache=tmp_path / "kept", max_retries=0)
        found = check_hallucinations(*files, tmp_path / "out.jsonl", endpoint, progress=False)
        assert found.undecided == 4
        outage.clear()
        found = check_hallucinations(*files, tmp_path / "out.jsonl", endpoint, progress=False)
        assert (found.clean, found.marked, found.undecided) == (1, 1, 2) and len(server.requests) == 8


def test_the_judge_reads_all_captions_of_a_clip(files, tmp_path):
    """MSR-VTT has twenty for each clip: an answer that was written from the first is not judged by the last."""
    others = [{"video": "1.mp4", "caption": text, "title": "Dog 1"} for text in ("A red car.", "A dog runs.")]
    files[1].write_text(files[1].read_text() + "\n" + "\n".join(map(json.dumps, others)))
    with openai_server(judge) as server:
        check_hallucinations(*files, tmp_path / "out.jsonl", Endpoint(base_url=server.url), progress=False)
        told = {said(request).split("\n\nAnswers:")[0] for request in server.requests}
    assert "Title: Dog 1\nCaption: A dog runs.\nCaption: A red car." in told
    assert "Title: Dog 0\nCaption: A dog runs." in told


def test_a_row_without_a_caption_is_named(files, tmp_path):
    files[1].write_text(files[1].read_text().splitlines()[0])
    with (
        openai_server(judge) as server,
        pytest.raises(ValueError, match="record 1 shows '1.mp4', of which there is no"),
    ):
        check_hallucinations(*files, tmp_path / "out.jsonl", Endpoint(base_url=server.url), progress=False)


def test_the_command_tells_the_share(files, tmp_path):
    words = ["data", "judge", str(files[0]), "--captions", str(files[1]), "-o", str(tmp_path / "out.jsonl")]
    with openai_server(judge) as server:
        result = CliRunner().invoke(app, [*words, "--server", server.url])
    assert result.exit_code == 0 and "1 of 2 rows speak of objects that their captions do not support" in result.stdout
    assert "2 undecided" in result.stdout and "red car" in result.stdout


@pytest.mark.parametrize("command", ["judge", "build"])
def test_without_openai_the_extra_is_named(command, files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    words = ["data", command, str(files[0]), "-o", str(tmp_path / "out.jsonl"), "--server", "http://localhost:9/v1"]
    words += ["--captions", str(files[1])] if command == "judge" else []
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1 and "pip install 'transformers-valley[build]'" in result.stderr


def test_files_are_looked_for_before_the_server(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with openai_server(lambda *_: "{}") as server:
        asked = ["-o", "clean.jsonl", "--server", server.url]
        judged = CliRunner().invoke(app, ["data", "judge", "gone.jsonl", "--captions", "lost.csv", *asked])
        built = CliRunner().invoke(app, ["data", "build", "gone.csv", *asked])
    assert judged.exit_code == built.exit_code == 1
    assert "2 files are missing: gone.jsonl, lost.csv. Relative paths begin in " in judged.stderr
    assert "There is no file gone.csv." in built.stderr
    assert not server.requests and not list(tmp_path.iterdir())
