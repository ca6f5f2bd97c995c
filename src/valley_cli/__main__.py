# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`python -m valley_cli` does what `valley` does, for launchers that start modules."""

from .app import app


app(prog_name="valley")
