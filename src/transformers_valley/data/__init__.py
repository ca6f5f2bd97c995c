# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Training data: records of known formats to chat messages, files and mixtures of them to data sets."""

from .formats import to_row
from .load import load_rows
from .mixtures import Source


__all__ = ["Source", "load_rows", "to_row"]
