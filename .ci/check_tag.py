# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Ends with 1 unless a tag, the package and CITATION.cff name one version: `python .ci/check_tag.py v1.2.3`."""

import re
import sys
from pathlib import Path


def find_version(file: str, pattern: str) -> str:
    return re.search(pattern, Path(file).read_text(), re.MULTILINE)[1]


tag = sys.argv[1].removeprefix("v")
versions = {
    "src/transformers_valley/__init__.py": find_version(
        "src/transformers_valley/__init__.py", r'^__version__ = "(.+)"$'
    ),
    "CITATION.cff": find_version("CITATION.cff", r"^version: (.+)$"),
}
wrong = [f"{file} says {version}" for file, version in versions.items() if version != tag]
if wrong:
    sys.exit(f"The tag {sys.argv[1]} is of version {tag}, but {' and '.join(wrong)}. Change these, then tag anew.")
