# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Short runs, and what they logged and answered."""

import json
from pathlib import Path

import sft
from launching import arguments


def with_bad(records, *bad):
    """Records of which some show a clip that is not there."""
    return [record | {"video": "gone.mp4"} if number in bad else record for number, record in enumerate(records)]


def train(checkpoint, rows, out, config="stage2_instruct.yaml", **overrides):
    flags = arguments(config, checkpoint, rows, out)
    for name, value in overrides.items():
        flags += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return sft.main(flags)


def steps(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def previews(trainer):
    return [json.loads(line) for line in Path(trainer.args.output_dir, "previews.jsonl").read_text().splitlines()]
