# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Rows of clips, images and text, and a short run of them in which everything can be seen."""

import json

import pytest
from clips import write_clip
from PIL import Image
from runs import train, with_bad

from transformers_valley.training import previews


@pytest.fixture(scope="session", autouse=True)
def short_answers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(previews, "PREVIEW_TOKENS", 8)
        yield


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """Eight rows: clips of two lengths, an image, text only. Questions differ, so that answers can be told apart."""
    folder = tmp_path_factory.mktemp("rows")
    short, long = (write_clip(folder / f"{frames}.mp4", frames, fps=10) for frames in (20, 50))
    Image.new("RGB", (40, 40), "blue").save(folder / "picture.png")
    visuals = [{"video": short}, {"video": long}, {"image": str(folder / "picture.png")}, {}] * 2
    records = []
    for number, visual in enumerate(visuals):
        turns = [{"from": "human", "value": f"Question {number}?"}, {"from": "gpt", "value": f"Answer {number}."}]
        records.append({"id": f"row-{number}", **visual, "conversations": turns})
    file = folder / "rows.json"
    file.write_text(json.dumps(records))
    return file


@pytest.fixture(scope="session")
def run(checkpoint, rows, tmp_path_factory):
    """Four steps with everything that can be seen."""
    out = tmp_path_factory.mktemp("run")
    bad = out / "bad_samples"
    bad.mkdir()
    (bad / "rank0.jsonl").write_text('{"id": "a"}\n{"id": "b"}\n')
    (bad / "rank1.jsonl").write_text('{"id": "c"}\n')
    other = out / "other.json"
    other.write_text(json.dumps(json.loads(rows.read_text())[:2]))
    spoilt = out / "spoilt.json"
    spoilt.write_text(json.dumps(with_bad(json.loads(rows.read_text()), 3)))
    options = {"num_train_epochs": 2, "learning_rate": 1e-3, "report_to": "tensorboard"}
    options |= {"eval_data": [rows, other], "eval_strategy": "steps", "eval_steps": 2}
    options |= {"on_bad_sample": "skip", "max_bad_share": 1}
    (out / "previews.jsonl").write_text("{}\n")  # of an earlier run, as the bad samples
    return train(checkpoint, spoilt, out, preview_steps=3, num_previews=2, **options)
