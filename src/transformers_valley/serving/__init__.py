# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Answers for OpenAI's clients: what they may send (`requests`), the model at work (`engine`), and HTTP (`server`)."""
