# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The command `valley`, one file per command: each parses what was typed, calls the library and prints.

It stands beside the library because importing `transformers_valley` loads torch, for which `valley --help` and a
mistyped option should not wait. What a command needs is imported inside it.
"""
