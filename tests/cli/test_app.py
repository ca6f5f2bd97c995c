# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The program `valley`: how light it is, what its help lists, what its errors look like."""

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

from valley_cli import app as module
from valley_cli.app import app


PAGE = Path(__file__).parents[2] / "docs" / "reference" / "command_line.md"


def valley(*words):
    return CliRunner().invoke(app, list(words))


def commands(group, name="valley"):
    """(name, command) of all that can be typed."""
    for word, command in group.commands.items():
        if getattr(command, "commands", None):
            yield from commands(command, f"{name} {word}")
        elif not command.hidden:
            yield f"{name} {word}", command


def options_of(command):
    names = [name for param in command.params for name in (*param.opts, *param.secondary_opts)]
    return [name for name in names if name.startswith("-")]


ALL = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["ask", "--help"], ["frames", "--wrong"], ["clip.mp4"]])
def test_help_and_wrong_options_load_neither_torch_nor_the_library(words):
    code = (
        "import sys\n"
        "from valley_cli.app import app\n"
        f"try: app({words})\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'transformers_valley', 'numpy', 'PIL', 'av', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_every_command_is_in_the_help_in_the_order_of_use():
    group = typer.main.get_command(app)
    assert set(group.list_commands(None)) == set(group.commands)


@pytest.mark.parametrize("name", ALL)
def test_every_help_ends_with_examples_that_can_be_typed(name):
    result = valley(*name.split()[1:], "--help")
    shown = result.stdout.partition("Examples:\n")[2].split("\n\n")[0].splitlines()
    assert shown and all(line.strip().startswith(name) for line in shown)
    if not ALL[name].context_settings.get("allow_extra_args"):
        assert set(re.findall(r" (--?[a-z][a-z-]*)", " ".join(shown))) <= set(options_of(ALL[name]))


@pytest.mark.parametrize("name", ALL)
def test_options_are_written_with_dashes(name):
    assert not [option for option in options_of(ALL[name]) if "_" in option]


@pytest.mark.parametrize("name", ALL)
def test_every_option_is_listed_on_the_page(name):
    section = re.search(rf"^## {name}$(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert section, f"{name} has no section"
    listed = re.findall(r"^\| (`.*?`) \|", section[1], re.MULTILINE)
    options = [option for cell in listed for option in re.findall(r"`(-.*?)`", cell)]
    assert options == options_of(ALL[name])


def test_version():
    assert valley("--version").stdout == f"transformers-valley {importlib.metadata.version('transformers-valley')}\n"


def test_program_is_installed():
    (program,) = importlib.metadata.entry_points(group="console_scripts", name="valley")
    assert program.load() is app


def test_module_is_the_program():
    result = subprocess.run([sys.executable, "-m", "valley_cli", "--help"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("Usage: valley ")


def test_debug_shows_where_an_error_comes_from():
    assert valley("frames", "none.mp4").stderr == "Error: Cannot read video 'none.mp4': there is no such file.\n"
    result = valley("--debug", "frames", "none.mp4")
    assert isinstance(result.exception, ValueError)


def test_an_error_that_another_package_worded_says_how_to_see_more(monkeypatch):
    def fail():
        json.loads("{")

    monkeypatch.setattr(module.env, "_accelerators", fail)
    result = valley("env")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: Expecting property name")
    assert result.stderr.endswith("(`valley --debug …` shows where this comes from)\n")


def test_a_bug_is_a_traceback(monkeypatch):
    monkeypatch.setattr(module.env, "_accelerators", lambda: {}["missing"])
    assert isinstance(valley("env").exception, KeyError)


def test_env_lists_what_a_bug_report_needs():
    lines = valley("env").stdout.splitlines()
    assert all(line.startswith("- ") for line in lines)
    found = dict(line[2:].split(": ", 1) for line in lines)
    assert found["transformers"] == importlib.metadata.version("transformers")
    assert {"platform", "python", "torch", "av", "trl", "accelerators"} <= set(found)


def test_env_needs_no_names_of_devices(monkeypatch):
    """torch.mps knows none."""
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: SimpleNamespace(type="mps"))
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 1)
    result = valley("env")
    assert result.exit_code == 0, result.output
    assert "\n- accelerators: mps (mps; built for " in result.stdout
