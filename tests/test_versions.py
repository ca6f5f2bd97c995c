# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""pyproject.toml, requirements.lock, Makefile and README say the same of versions."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement


ROOT = Path(__file__).parent.parent
MAKEFILE, README = ((ROOT / name).read_text() for name in ("Makefile", "README.md"))
REQUIREMENTS = [
    requirement
    for requirement in map(Requirement, importlib.metadata.requires("transformers-valley"))
    if not requirement.marker or requirement.marker.evaluate({"extra": "dev"})
]


def test_the_lock_has_every_dependency_within_its_range():
    lines = (ROOT / "requirements.lock").read_text().lower().splitlines()
    locked = dict(line.split("==") for line in lines if not line.startswith("#"))
    for requirement in REQUIREMENTS:
        assert locked[requirement.name] in requirement.specifier, requirement


def test_a_plain_install_can_load_a_checkpoint():
    """The commands load with `device_map`, which needs accelerate; transformers alone does not bring it along."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {Requirement(line).name for line in project["dependencies"]}
    assert {"transformers", "torch", "accelerate", "av"} <= names


def test_the_oldest_transformers_tested_is_the_lower_bound():
    (oldest,) = re.findall(r"transformers==([\d.]+)\.\*", MAKEFILE)
    (lower,) = {s.version for r in REQUIREMENTS if r.name == "transformers" for s in r.specifier if s.operator == ">="}
    assert lower == oldest
    assert f"transformers {oldest} to " in README


def test_raise_bounds_puts_upper_bounds_right_above_the_lock(tmp_path):
    for name in ("requirements.lock", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    project, readme = tmp_path / "pyproject.toml", tmp_path / "README.md"
    project.write_text(re.sub(r",<[\d.]+", ",<1", project.read_text()))
    readme.write_text(re.sub(r"(transformers [\d.]+ to )[\d.]+\b", r"\g<1>0.1", README))
    subprocess.run([sys.executable, ROOT / ".ci" / "raise_bounds.py"], cwd=tmp_path, check=True)
    assert project.read_text() == (ROOT / "pyproject.toml").read_text()
    assert readme.read_text() == README


def test_the_newest_environment_passes_over_every_upper_bound():
    (names,) = re.findall(r"^BOUNDED \?= (.*)", MAKEFILE, re.MULTILINE)
    assert set(names.split()) == {r.name for r in REQUIREMENTS if "<" in str(r.specifier)}
