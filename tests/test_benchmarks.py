# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Benchmarks run to their end, and count right: what they measure is nobody's business here."""

import importlib
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode


FOLDER = Path(__file__).parent.parent / "benchmarks"
SMALL = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)


@pytest.fixture(scope="module")
def load():
    """A script as a module, with parts of almost no weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        shapes = importlib.import_module("common").SHAPES
        for size in shapes:
            patch.setitem(shapes, size, (SMALL, SMALL))
        yield importlib.import_module


@pytest.fixture
def training(load, monkeypatch):
    """The script with one step each."""
    module = load("training")
    for name in ("ROUNDS", "STEPS"):
        monkeypatch.setattr(module, name, 1)
    return module


@pytest.mark.parametrize("name", ["Valley", "LLaVA-NeXT-Video", "Video-LLaVA"])
def test_operations_are_those_of_a_run(name, load):
    generation, frames = load("generation"), 2
    vision = SMALL | {"num_hidden_layers": 4}
    load("common").SHAPES["7B"] = vision, text = vision, SMALL | {"hidden_size": 64, "num_hidden_layers": 8}
    model = generation.build_family("7B")[name]
    model.set_attn_implementation("eager")
    inputs = generation.prompt(generation.tokens_of(name, frames))
    assert inputs["input_ids"].shape[1] == generation.positions_of(name, frames)
    with FlopCounterMode(display=False) as counter:
        model.generate(**inputs, pixel_values_videos=torch.rand(1, frames, 3, 224, 224), max_new_tokens=1)
    tower_and_decoder = "CLIPVisionModel", type(model).__name__  # as the counter names them
    found = sum(sum(counter.get_flop_counts()[part].values()) for part in tower_and_decoder)
    # Without a fast kernel all pairs of positions are computed, not half of them.
    pairs = 2 * generation.positions_of(name, frames) ** 2 * text["hidden_size"] * text["num_hidden_layers"]
    assert found - pairs == generation.operations(name, "7B", frames)


@pytest.mark.slow
@pytest.mark.parametrize("section", ["peers", "features", "limits"])
def test_sections_that_do_more_than_train_print_their_rows(section, training, capsys):
    training.SECTIONS[section]([2])
    printed = capsys.readouterr().out
    assert "rows/s" in printed and "out of memory" not in printed
    assert section == "limits" or "x" in printed.splitlines()[-1]
