# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Commands that are killed with signal 9 in the middle: run again, they end with the output of one that was not."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from clips import write_clip
from launching import kill
from openai_server import Answer, openai_server, said


pytestmark = pytest.mark.slow

# In the place of spaCy, whose pipelines have to be downloaded: every word is a noun phrase, and finding them is slow.
SPACY = """
import time
from types import SimpleNamespace

__version__ = "0"


class Language:
    meta, pipe_names = {"lang": "xx", "name": "words", "version": "0"}, ["parser"]

    def pipe(self, texts, batch_size, n_process):
        for number, text in enumerate(texts):
            if number % 1000 == 0:
                time.sleep(0.05)
            yield SimpleNamespace(noun_chunks=[SimpleNamespace(text=word) for word in text.split()])


def load(name, exclude):
    return Language()
"""


@pytest.fixture
def environment(tmp_path):
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "spacy.py").write_text(SPACY)
    places = [str(tmp_path / "modules"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(places),
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }


def run(environment: dict, folder: Path, *words, until: Callable[[], bool] | None = None):
    """Run a command in a folder to its end, or kill it and all that it started as soon as something is so."""
    command = [sys.executable, "-m", "valley_cli", "data", *map(str, words)]
    with open(folder / "log.txt", "w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            while until and process.poll() is None and not until():
                time.sleep(0.005)
            if until is None:
                process.wait(300)
            assert until is None or process.poll() is None, "it ended before it was killed"
        finally:
            kill(process)
    assert until is not None or process.returncode == 0, (folder / "log.txt").read_text()


def files_of(folder: Path) -> dict[str, bytes]:
    """All that a command wrote, but the beginnings of files, which a kill leaves, and the answers that were kept."""
    files = [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".incomplete-")]
    left_out = ("log.txt",)
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in files
        if file.name not in left_out and ".sqlite" not in file.name
    }


@pytest.fixture
def folders(tmp_path):
    """Of a command that ends by itself, and of the same one that is killed."""
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    return tmp_path / "whole", tmp_path / "killed"


def test_packing(environment, folders, tmp_path):
    lines = []
    for number in range(12):
        write_clip(tmp_path / f"{number}.mp4", 200, fps=10)
        lines += [json.dumps({"video": f"{number}.mp4", "question": f"What {number}?", "answer": "Bars."})]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines * 2))
    words = ["pack", tmp_path / "rows.jsonl", "-o", "packed", "--media-root", tmp_path, "--num-shards", 12]
    whole, killed = folders
    run(environment, whole, *words, "--workers", 2)
    shards = list((whole / "packed").glob("*.parquet"))
    for count in (1, 5):
        run(environment, killed, *words, until=lambda count=count: len(list(killed.glob("packed/*.parquet"))) >= count)
        assert not (killed / "packed" / "README.md").exists()
    assert len(list(killed.glob("packed/*.parquet"))) < len(shards) == 12
    run(environment, killed, *words)
    assert files_of(killed) == files_of(whole)


def test_filtering(environment, folders, tmp_path):
    lines = ["video,caption"] + [f"{n}.mp4,w{n % 977} w{n % 7919} moves" for n in range(45_000)]
    (tmp_path / "captions.csv").write_text("\n".join(lines))
    words = ["filter", tmp_path / "captions.csv", "-o", "chosen.jsonl", "--most", 20]
    whole, killed = folders
    run(environment, whole, *words)
    for count in (1, 2):
        run(environment, killed, *words, until=lambda count=count: len(list(killed.rglob("*.npy"))) >= count)
        assert not (killed / "chosen.jsonl").exists()
    run(environment, killed, *words)
    assert files_of(killed) == files_of(whole) and b"w976" in files_of(whole)["chosen.jsonl"]


def test_building(environment, folders, tmp_path):
    """And nothing is paid for twice but what was on its way."""
    lines = [
        {"id": str(n), "video": f"{n}.mp4", "caption": f"Dog number {n} runs.", "title": "Dog"} for n in range(60)
    ]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))

    def answer(request, count):
        text = '{"question": "Who?", "answer": "A dog."}' if "number 7" not in said(request) else "Nothing."
        return Answer(text, delay=0.05)

    whole, killed = folders
    with openai_server(answer) as server:
        words = ["build", tmp_path / "captions.jsonl", "-o", "instruct.jsonl", "--server", server.url]
        words += ["--concurrency", 4]
        run(environment, whole, *words)
        needed = len(server.requests)
        for count in (10, 40):
            before = len(server.requests)
            run(environment, killed, *words, until=lambda: len(server.requests) >= needed + count)  # noqa: B023
            assert not (killed / "instruct.jsonl").exists() and len(server.requests) > before
        run(environment, killed, *words)
    assert files_of(killed) == files_of(whole)
    assert len(server.requests) - needed <= needed + 2 * 4
