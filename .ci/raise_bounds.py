# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Raises the upper bounds in pyproject.toml, and the range in the README, to the versions in requirements.lock.

`make raise-bounds` runs it when the tests have passed with those.
"""

import re
from pathlib import Path


lock = Path("requirements.lock").read_text()
project, readme = Path("pyproject.toml"), Path("README.md")
for name in ("transformers", "trl"):
    major, minor = re.search(rf"^{name}==(\d+)\.(\d+)", lock, re.MULTILINE).groups()
    bound = rf"\g<1>{major}.{int(minor) + 1}"
    project.write_text(re.sub(rf'("{name}>=[\d.]+,<)[\d.]+', bound, project.read_text()))
    readme.write_text(re.sub(rf"({name} [\d.]+ to )\d+\.\d+", rf"\g<1>{major}.{minor}", readme.read_text()))
