# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Short runs, and what they logged and answered."""

import json
from importlib import import_module
from pathlib import Path

import sft
from launching import arguments
from trl import SFTTrainer


# Not the function of the same name in `transformers_valley.training`.
prepare_module = import_module("transformers_valley.training.prepare")


def with_bad(records, *bad):
    """Records of which some show a clip that is not there."""
    return [record | {"video": "gone.mp4"} if number in bad else record for number, record in enumerate(records)]


def train(checkpoint, rows, out, config="stage2_instruct.yaml", **overrides):
    flags = arguments(config, checkpoint, rows, out)
    for name, value in overrides.items():
        flags += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return sft.main(flags)


def steps(trainer):
    """What was logged of each step, by the trainer and by the monitor."""
    entries = {}
    for entry in trainer.state.log_history:
        if "loss" in entry or "tokens_per_second" in entry:
            entries.setdefault(entry["step"], {}).update(entry)
    return list(entries.values())


def with_callbacks(*callbacks):
    """`SFTTrainer` with more callbacks than those of a run."""

    def make(**parts):
        return SFTTrainer(**parts | {"callbacks": [*parts["callbacks"], *callbacks]})

    return make


def previews(trainer):
    return [json.loads(line) for line in Path(trainer.args.output_dir, "previews.jsonl").read_text().splitlines()]
