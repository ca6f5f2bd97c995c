# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`python -m transformers_valley.lmms_eval_plugin`: the folder of the tasks."""

from . import TASKS


print(TASKS)
