# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Original checkpoints, and one of them converted."""

import pytest
from original_valley import OriginalValley

from transformers_valley.hub.convert_valley_weights import convert


@pytest.fixture(scope="session")
def v1():
    return OriginalValley("mean")


@pytest.fixture(scope="session")
def v3():
    return OriginalValley("transformer")


@pytest.fixture(scope="session")
def converted(v3, tmp_path_factory):
    """A v3 in the native layout, and the report."""
    folder = tmp_path_factory.mktemp("converted")
    return folder / "new", convert(v3.save(folder / "old"), folder / "new")
