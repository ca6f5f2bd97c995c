# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""A page in the browser: show a clip, see which frames the model gets, and ask about it."""

from .app import build_demo
from .models import LocalModel, RemoteModel
from .space import write_space


__all__ = ["LocalModel", "RemoteModel", "build_demo", "write_space"]
