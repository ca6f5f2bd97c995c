# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Valley in lmms-eval: `--model valley` where both packages are installed, and the tasks that lmms-eval lacks.

lmms-eval finds `register` by the entry point `lmms_eval.models`. `model.py` is the chat model, which imports
lmms-eval; `questions.py` is what the YAML files in `tasks/` call. `python -m transformers_valley.lmms_eval_plugin`
prints the folder of those, for `--include_path`.
"""

from pathlib import Path
from typing import Any


__all__ = ["TASKS", "register"]

TASKS = Path(__file__).parent / "tasks"


def register() -> Any:
    """What lmms-eval asks for: where the chat model is, as a string, so that nothing large is imported for others."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("valley", chat_class_path=f"{__name__}.model.Valley")
