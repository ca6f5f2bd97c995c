# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What tests of evaluation share: real annotation files, questions about clips written here, records of answers."""

import json
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import torch
from clips import write_clip
from transformers import BertConfig, BertModel, BertTokenizer


FILES = Path(__file__).parent / "evaluation" / "files"


WORDS = "a dog runs over the road and barks at cars while people watch it from a window of their house".split()


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_json(path: Path, value) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def write_questions(folder: Path, count: int = 10, clips: int = 3) -> Path:
    """`questions.jsonl` about some short clips beside it, of two types."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(clips):
        write_clip(folder / f"{i}.mp4", 20 + 10 * i, fps=10)
    return write_jsonl(
        folder / "questions.jsonl",
        [
            {"video": f"{i % clips}.mp4", "question": f"What is {i}?", "answer": "a dog", "type": f"type {i % 2}"}
            for i in range(count)
        ],
    )


def empty_clips(folder: Path, *names: str) -> Path:
    """Files that are called like clips, for what looks at names alone."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def record(name: str = "q:0", answer: str | None = "a dog", answers=("a dog",), **others) -> dict:
    """A record of `predictions.jsonl`."""
    return {
        **{"view": "clip", "id": name, "source": "q", "type": "", "clip": name, "question": "What is it?"},
        **{"answers": list(answers), "choices": {}, "facts": {}, "messages": [], "shown": [], "answer": answer},
        **{"is_cut": False, "error": None if answer is not None else "it is gone"},
        **others,
    }


def kill_when(work: Callable[[], object], is_time: Callable[[], bool]) -> None:
    """Does work in a process of its own, which is killed with -9 as soon as it is time."""
    process = get_context("fork").Process(target=work)
    process.start()
    deadline = time.monotonic() + 60
    while not is_time():
        assert process.is_alive() and time.monotonic() < deadline, "it came to its end too early"
        time.sleep(0.002)
    process.kill()
    process.join()


def lines_in(folder: Path, pattern: str) -> int:
    return sum(file.read_bytes().count(b"\n") for file in folder.glob(pattern))


def tiny_bert(folder: Path) -> str:
    """Saves a tiny BERT with random weights, which knows `WORDS`."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(WORDS)), *(f"##{c}" for c in "abcdefgh")]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=64, **shape)).save_pretrained(folder)
    return str(folder)


def write_run(folder: Path, records: list[dict], benchmark: str = "own", label: str = "valley", **settings) -> Path:
    """The folder of a run that gave these records."""
    asked = len({each["id"] for each in records})
    about = {"name": benchmark, "split": "" if benchmark == "own" else "test", "files": [], "questions": asked}
    write_json(
        folder / "run.json",
        {
            **{"label": label, "created": "2026-01-01", "benchmark": {**about, "digest": str(asked), "options": {}}},
            **{"model": {}, "cot": False, "shots": [], **settings},
        },
    )
    write_jsonl(folder / "predictions.jsonl", records)
    return folder


def ten(right: int, view: str = "clip", **others) -> list[dict]:
    """Ten answers about ten clips, so many of them right; the type is even or odd."""
    return [
        record(
            f"q:{i}",
            "a dog" if i < right else "a cat",
            view=view,
            type=("even", "odd")[i % 2],
            clip=f"{i}.mp4",
            **others,
        )
        for i in range(10)
    ]


def write_verdicts(run, model="m", yes=lambda i: i % 2 == 0, **settings):
    by = {"kind": "endpoint", "model": model, "revision": None, "temperature": 0.0}
    about = {"created": "2026-01-01T00:00:00", "judge": by, "prompts": "protocol", **settings}
    write_json(run / f"judge-{model}" / "judge.json", about)
    rows = [
        {"view": "clip", "id": f"q:{i}", "aspect": "qa", "unjudged": None, "replies": ["<b>said</b>"]}
        | {"pred": "yes" if yes(i) else "no", "score": 4.8 if yes(i) else 1}
        for i in range(10)
    ]
    write_jsonl(run / f"judge-{model}" / "verdicts.jsonl", rows)
    return run
