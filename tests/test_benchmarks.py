# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The training benchmark runs to its end: its figures are nobody's business here."""

import importlib.util
import sys
from pathlib import Path

import pytest


FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def training():
    """The script with parts of almost no weights, and one step each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        spec = importlib.util.spec_from_file_location("training_benchmark", FOLDER / "training.py")
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        small = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
        for name, value in (("ROUNDS", 1), ("STEPS", 1)):
            patch.setattr(module, name, value)
        patch.setitem(sys.modules["common"].SHAPES, module.SIZES[0], (small, small))
        yield module


@pytest.mark.slow
@pytest.mark.parametrize("section", ["peers", "features", "limits"])
def test_sections_that_do_more_than_train_print_their_rows(section, training, capsys):
    training.SECTIONS[section]([2])
    printed = capsys.readouterr().out
    assert "rows/s" in printed and "out of memory" not in printed
    assert section == "limits" or "x" in printed.splitlines()[-1]
