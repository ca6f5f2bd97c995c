# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Prints which direct dependencies have newer releases than those installed, and ends with 0 where one has.

Run it with the Python of the locked environment. Without an answer of the package index it says so and ends with 2.
"""

import importlib.metadata
import json
import subprocess
import sys

from packaging.requirements import Requirement


def pip(*arguments):
    options = "install --quiet --dry-run --report=- --retries=1 --timeout=20".split()
    return subprocess.run([sys.executable, "-m", "pip", *options, *arguments], capture_output=True, text=True)


# Where the index does not answer, pip takes what is installed for the newest. It fails where that does not count.
if pip("--ignore-installed", "--no-deps", "trl").returncode:
    print("Newer than requirements.lock: unknown, the package index does not answer")
    sys.exit(2)

installed = {dist.name.lower(): dist.version for dist in importlib.metadata.distributions()}
requirements = map(Requirement, importlib.metadata.requires("transformers-valley"))
# Newer tools of the tests change nothing for users. What is not installed belongs to an extra that no test needs.
tools = ('extra == "dev"', 'extra == "all"')
direct = sorted({r.name for r in requirements if str(r.marker) not in tools and r.name in installed})

# What pip would install, with what these need in turn, were it not for the ranges of pyproject.toml.
report = pip("--upgrade", "--upgrade-strategy=eager", *direct)
report.check_returncode()
found = [item["metadata"] for item in json.loads(report.stdout)["install"]]
found = {metadata["name"].lower(): metadata["version"] for metadata in found}
newer = [f"{name} {found[name]} (locked: {installed[name]})" for name in direct if name in found]
print("Newer than requirements.lock:", ", ".join(newer) or "nothing")
sys.exit(0 if newer else 1)
