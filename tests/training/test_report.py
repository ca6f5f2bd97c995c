# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The picture of a run."""

import math
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from transformers_valley.training.report import draw_training, smooth


def test_the_run_is_drawn(run):
    picture = Image.open(Path(run.args.output_dir, "training.png"))
    assert picture.size == (1300, 910)
    colours = {colour for _, colour in picture.convert("RGB").getcolors(maxcolors=1 << 20)}
    assert {(0x2F, 0x6D, 0xB3), (0xD1, 0x60, 0x3D), (0x3F, 0x8F, 0x5B)} <= colours  # training, two evaluations
    assert "tokens per second" in Path(run.args.output_dir, "README.md").read_text()


def test_a_run_that_was_stopped_after_one_step_is_drawn(tmp_path):
    draw_training([{"loss": 1.0, "learning_rate": 0.0, "step": 1}], tmp_path / "training.png")
    assert (tmp_path / "training.png").exists()


def test_a_fall_at_the_beginning_does_not_flatten_the_rest(tmp_path, monkeypatch):
    losses = [2 + 8 * math.exp(-step / 50) for step in range(10_000)]
    assert smooth(losses)[0] > 7
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure.axes[0].get_ylim()[1]))
    entries = [{"loss": loss, "learning_rate": 0.0, "step": step} for step, loss in enumerate(losses, start=1)]
    draw_training(entries, tmp_path / "training.png")
    draw_training(entries[:50], tmp_path / "training.png")
    assert drawn[0] < 3 and drawn[1] > 9


@pytest.mark.parametrize("length", [1, 2, 30, 1000])
def test_smoothing_keeps_what_is_straight(length):
    assert smooth([3.0] * length) == pytest.approx([3.0] * length)
    line = torch.arange(length).tolist()
    inner = slice(length // 10, length - length // 10)
    assert smooth(line)[inner] == pytest.approx(line[inner], abs=1e-6)
