# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Data sets of the paper, made of captions and clips."""
