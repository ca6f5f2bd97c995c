# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Training data: records to chat messages, files to data sets."""

from .load import load_rows
from .messages import to_row


__all__ = ["load_rows", "to_row"]
