# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The picture of a run."""

import math
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageColor

from transformers_valley.plots import COLOURS
from transformers_valley.training.report import draw_training, smooth


def test_the_run_is_drawn(run):
    picture = Image.open(Path(run.args.output_dir, "training.png"))
    assert picture.size == (1300, 910)
    colours = {colour for _, colour in picture.convert("RGB").getcolors(maxcolors=1 << 20)}
    assert {ImageColor.getrgb(colour) for colour in COLOURS[:3]} <= colours  # training, two evaluations
    assert "tokens per second" in Path(run.args.output_dir, "README.md").read_text()


def test_a_run_that_was_stopped_after_one_step_is_drawn(tmp_path):
    draw_training([{"loss": 1.0, "learning_rate": 0.0, "step": 1}], tmp_path / "training.png")
    assert (tmp_path / "training.png").exists()


def test_speed_is_drawn_though_it_is_logged_apart_from_the_loss(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure.axes[2].lines))
    entries = [{"loss": 1.0, "learning_rate": 0.0, "step": step} for step in (1, 2)]
    entries += [{"tokens_per_second": 9.0, "data_wait_share": 0.1, "step": step} for step in (1, 2)]
    draw_training(entries, tmp_path / "training.png")
    assert list(drawn[0][0].get_ydata()) == [9.0, 9.0]


def test_a_fall_at_the_beginning_does_not_flatten_the_rest(tmp_path, monkeypatch):
    losses = [2 + 8 * math.exp(-step / 50) for step in range(10_000)]
    assert smooth(losses)[0] > 7
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure.axes[0].get_ylim()[1]))
    entries = [{"loss": loss, "learning_rate": 0.0, "step": step} for step, loss in enumerate(losses, start=1)]
    draw_training(entries, tmp_path / "training.png")
    draw_training(entries[:50], tmp_path / "training.png")
    assert drawn[0] < 3 and drawn[1] > 9


@pytest.mark.parametrize("steps", [2, 20, 500])
def test_the_legend_covers_no_curve(tmp_path, monkeypatch, steps):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    entries = [{"loss": 2.0, "learning_rate": 0.0, "step": step} for step in range(1, steps + 1)]
    for name in ("eval_loss", "eval_held_out_loss", "eval_a_very_long_name_of_a_held_out_source_loss"):
        entries.append({name: 2.1, "step": steps})
    draw_training(entries, tmp_path / "training.png")
    (figure,) = drawn
    figure.draw_without_rendering()
    (legend,) = (legend.get_window_extent() for legend in figure.legends)
    assert not any(axes.get_tightbbox().overlaps(legend) for axes in figure.axes)
    assert 0 <= legend.x0 and legend.x1 <= figure.bbox.x1 and legend.y1 <= figure.bbox.y1


@pytest.mark.parametrize("length", [1, 2, 30, 1000])
def test_smoothing_keeps_what_is_straight(length):
    assert smooth([3.0] * length) == pytest.approx([3.0] * length)
    line = torch.arange(length).tolist()
    inner = slice(length // 10, length - length // 10)
    assert smooth(line)[inner] == pytest.approx(line[inner], abs=1e-6)
