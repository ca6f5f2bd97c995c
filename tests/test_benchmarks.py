# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Benchmarks run to their end, and count right: what they measure is nobody's business here."""

import argparse
import importlib.util
import json
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
import torch
from test_docs import table
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
    positions = generation.positions_of(name, frames)
    assert generation.prompt(generation.tokens_of(name, frames))["input_ids"].shape == (1, positions)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tower = model.model.video_tower if name == "Video-LLaVA" else model.model.vision_tower
        tower(torch.rand(frames, 3, 224, 224))
        decoded = model.model.language_model(inputs_embeds=torch.rand(1, positions, text["hidden_size"]))
        model.lm_head(decoded.last_hidden_state[:, -1:])
    # Without a fast kernel all pairs of positions are computed, not half of them.
    pairs = 2 * positions**2 * text["hidden_size"] * text["num_hidden_layers"]
    assert counter.get_total_flops() - pairs == generation.operations(name, "7B", frames)


@pytest.mark.slow
@pytest.mark.parametrize("section", ["peers", "features", "limits"])
def test_sections_that_do_more_than_train_print_their_rows(section, training, capsys):
    training.SECTIONS[section]([2])
    printed = capsys.readouterr().out
    assert "rows/s" in printed and "out of memory" not in printed
    assert section == "limits" or "x" in printed.splitlines()[-1]


# --- on_gpu.py ---


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_servers_that_are_not_installed_are_left_out(load, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["serving.py", "--only", "vllm"])
    load("serving").main()
    assert "vLLM is not installed and is left out." in capsys.readouterr().out


@pytest.fixture
def on_gpu(load):
    return load("on_gpu")


def pretend(monkeypatch, on_gpu, folder, code):
    """Let the script start this code in place of itself."""
    (folder / "script.py").write_text(textwrap.dedent(code))
    monkeypatch.setattr(on_gpu, "__file__", str(folder / "script.py"))


@pytest.mark.slow
def test_a_dry_run_measures_all_that_a_gpu_will(tmp_path, on_gpu):
    command = [sys.executable, FOLDER / "on_gpu.py", "--dry-run", "--output", tmp_path]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    results = json.loads((tmp_path / "on_gpu.json").read_text())
    rows = results["rows"]
    assert list(results["seconds"]) == list(dict.fromkeys(row["section"] for row in rows)) == list(on_gpu.SECTIONS)
    (tests,) = (row for row in rows if row["measure"] == "passed")
    assert tests["value"] > 0 and "passed" in tests["note"]
    measures = {row["measure"] for row in rows if row["value"]}
    assert measures >= {"GB/s", "frames/s", "s to the first token", "tokens/s after it", "s per step"}
    assert {row["against"] for row in rows if row["reference"]} >= {"arithmetic", "bandwidth", "Valley", "estimate"}
    assert len((tmp_path / "on_gpu.md").read_text().splitlines()) == 4 + len(rows)


def test_a_section_that_hangs_or_dies_leaves_what_it_measured(monkeypatch, tmp_path, on_gpu):
    row = {"section": "limits", "case": "", **on_gpu.Row("GB/s", 3.0)._asdict()}
    code = f"""
        import sys, time
        open(sys.argv[sys.argv.index("--output") + 1], "w").write({json.dumps(row)!r})
    """
    monkeypatch.setitem(on_gpu.SECTIONS, "limits", (None, 2))
    for end, problem in (("time.sleep(99)", "stopped after 2 s"), ("sys.exit(3)", "ended with 3")):
        pretend(monkeypatch, on_gpu, tmp_path, textwrap.dedent(code) + end)
        found = on_gpu.start_section("limits", argparse.Namespace(dry_run=False))
        assert found[0] == row and (found[1]["measure"], found[1]["note"]) == ("error", problem)


def test_a_case_that_fails_leaves_the_others(monkeypatch, tmp_path, on_gpu):
    def fail():
        raise torch.OutOfMemoryError

    cases = [("large", fail), ("wrong", lambda: 1 / 0), ("right", lambda: [on_gpu.Row("GB/s", 4.0, "all", 8.0)])]
    monkeypatch.setitem(on_gpu.SECTIONS, "limits", (lambda scale: iter(cases), 5))
    on_gpu.run_section("limits", on_gpu.TINY, tmp_path / "rows")
    rows = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    assert [row["measure"] for row in rows] == ["out of memory", "error", "GB/s"]
    on_gpu.write_results(tmp_path, {"device": "none"}, {}, rows)
    assert (tmp_path / "on_gpu.md").read_text().splitlines()[-2:] == [
        "| limits | wrong | error |  |  |  |  | ZeroDivisionError: division by zero |",
        "| limits | right | GB/s | 4 | all | 8 | 0.50 |  |",
    ]


def test_the_page_tells_of_every_section(on_gpu):
    assert list(table("docs/how-to/measure_on_a_gpu.md", "section", "measures")) == list(on_gpu.SECTIONS)
    assert sum(seconds for _, seconds in on_gpu.SECTIONS.values()) < 10 * 60


def test_packages_that_lack_are_named(on_gpu):
    assert on_gpu.find_unmet(["torch>=2", "pytest"])[0] == []
    unmet, _ = on_gpu.find_unmet(["torch<2", "torch", "no-such-package>=3", "datasets"])
    assert unmet == ["no-such-package>=3", "torch<2"]
    assert "pip install 'no-such-package>=3' 'torch<2'" in on_gpu.explain_unmet(unmet)


def test_wheels_of_a_folder_come_before_what_is_installed(monkeypatch, tmp_path, on_gpu):
    pytest.importorskip("pip", reason="pip is not installed")
    files = {
        "yaml.py": "answer = 42",
        "probe-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: probe\nVersion: 1\n",
        "probe-1.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "probe-1.dist-info/RECORD": "",
    }
    with zipfile.ZipFile(tmp_path / "probe-1-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    pretend(monkeypatch, on_gpu, tmp_path, "import sys, yaml; sys.exit(yaml.answer)")
    assert on_gpu.main(["--wheels", str(tmp_path)]) == 42


def test_data_loading_runs(load, capsys):
    rates = load("data_loading").main(["--clips", "1", "--seconds", "4", "--size", "160x90", "--rounds", "1"])
    assert {"the clips themselves", "packed rows", "packed rows, streamed"} <= rates.keys()
    assert "2 frames" in capsys.readouterr().out


@pytest.mark.slow
def test_what_is_said_of_scale_is_measured(load, capsys):
    load("scale").main(["--clips", "2", "--rows", "2000", "--captions", "3000"])
    printed = capsys.readouterr().out
    assert "| 1 billion " in printed and "2,000 rows read" in printed
    assert "each row once and in order: True; 10 of 10 shards equal" in printed
    assert "3,000 captions filtered" in printed
