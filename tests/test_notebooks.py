# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The notebooks run from their folder on a tiny checkpoint, cell by cell, with smaller numbers."""

import ast
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest


NOTEBOOKS = Path(__file__).parent.parent / "examples" / "notebooks"
SMALLER = {  # in place of what the cell of parameters says
    "ask": "MAX_NEW_TOKENS = 3",
    "fine_tune": "ROWS, HELD_OUT, EPOCHS = 4, 2, 1",
    "evaluate": "QUESTIONS = 4",
}
PRINTED = {
    "ask": ["0.0, 2.0", "tokens read", "8 to 12 s:"],
    "fine_tune": ["'question': 'What is the shape?'", "of 2 right"],
    "evaluate": ["notebook_evaluation"],
}


def read_cells(name: str) -> list[dict]:
    return json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]


def test_every_notebook_is_known():
    assert {file.stem for file in NOTEBOOKS.glob("*.ipynb")} == set(SMALLER)


@pytest.mark.parametrize("name", SMALLER)
def test_cells_are_code_without_stale_outputs(name):
    cells = [cell for cell in read_cells(name) if cell["cell_type"] == "code"]
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in cells) == 1
    for cell in cells:
        ast.parse("".join(cell["source"]))
        assert not cell["outputs"] and cell["execution_count"] is None


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLER)
def test_notebooks_run(name, checkpoint, tmp_path, monkeypatch, capsys):
    shutil.copytree(checkpoint, tmp_path / "outputs/quickstart/checkpoint")
    folder = tmp_path / "examples" / "notebooks"
    folder.mkdir(parents=True)
    for file in ("clip.mp4", "moving_shapes.py"):
        shutil.copy(NOTEBOOKS.parent / file, tmp_path / "examples")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(sys, "path", list(sys.path))
    display = SimpleNamespace(Image=lambda file, **_: Path(file).read_bytes(), Markdown=str)
    namespace = {"__name__": "__main__"}
    for number, cell in enumerate(read_cells(name)):
        if cell["cell_type"] != "code":
            continue
        code = "".join(cell["source"])
        with monkeypatch.context() as patched:
            if "from IPython" in code:  # it comes with Jupyter; other packages would take it for all of IPython
                patched.setitem(sys.modules, "IPython", SimpleNamespace(display=display, version_info=(9, 0)))
                patched.setitem(sys.modules, "IPython.display", display)
            exec(compile(code, f"{name}.ipynb, cell {number}", "exec"), namespace)
        if "parameters" in cell["metadata"].get("tags", []):
            exec(SMALLER[name], namespace)
    printed = capsys.readouterr().out
    assert all(text in printed for text in PRINTED[name]), printed
