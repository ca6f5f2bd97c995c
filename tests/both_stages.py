# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Both stages through `examples/sft.py`, one after the other: what the tests beside this file launch.

    accelerate launch … both_stages.py FOLDER OUTPUT PROCESSES [--key value …]

FOLDER holds the checkpoint `start` and `rows.json`. OUTPUT gets the models `stage1` and `stage2`, and `losses.json`.
The keys are of `examples/sft.py`, for both stages.
"""

import json
import sys
from pathlib import Path
from unittest import mock


ROOT = Path(__file__).parent.parent
sys.path += [str(ROOT / "examples"), str(ROOT / "tests")]

import sft  # noqa: E402
from accelerate import Accelerator  # noqa: E402
from launching import arguments  # noqa: E402


GLOBAL_BATCH = 4
RECIPES = {"stage1": "stage1_align.yaml", "stage2": "stage2_instruct.yaml"}


def train_both_stages(folder: Path, output: Path, processes: int, *flags: str) -> dict[str, list[float]]:
    """Losses of every step of both stages, and of an evaluation after them."""
    losses, start = {}, folder / "start"
    for stage, recipe in RECIPES.items():
        flags_of_stage = arguments(
            recipe,
            start,
            folder / "rows.json",
            output / stage,
            learning_rate=1e-3,  # so high that a wrong gradient shows within a few steps
            warmup_steps=2,
            train_sampling_strategy="sequential",
            per_device_train_batch_size=GLOBAL_BATCH // processes,
            per_device_eval_batch_size=GLOBAL_BATCH // 2,
            **({"vision_model_name_or_path": ""} if stage == "stage1" else {}),
        )
        with mock.patch.object(Accelerator, "end_training"):  # the processes stay together for what follows
            trainer = sft.main([*flags_of_stage, *flags])
        assert trainer.accelerator.num_processes == processes
        losses[stage] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        start = output / stage
        trainer.accelerator.wait_for_everyone()  # until it is written
    eval_rows = trainer.train_dataset.select(range(2 * GLOBAL_BATCH))
    losses["eval"] = [trainer.evaluate(eval_dataset=eval_rows)["eval_loss"]]
    if trainer.accelerator.is_main_process:
        (output / "losses.json").write_text(json.dumps(losses))
    return losses


if __name__ == "__main__":
    train_both_stages(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
    Accelerator().end_training()
