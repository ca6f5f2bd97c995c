# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""A whole run: what `valley train` and `examples/sft.py` do.

Input: a recipe and flags. Output: a trained model with its card, its state and its picture in the output folder.
"""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from functools import partial

from transformers import PrinterCallback, ProgressCallback
from trl import SFTTrainer

from ..whole_files import disk_full_errors
from .arguments import read_arguments
from .checkpoints import advise_on_full_disk
from .monitor import ProgressBar
from .prepare import prepare
from .report import write_training_card


def train(argv: Sequence[str] | None = None) -> SFTTrainer:
    """
    Train with a recipe.

    Args:
        argv (`list[str]`, *optional*):
            See [`read_arguments`].

    Returns:
        `SFTTrainer`: after the last step, its model saved.

    Raises:
        ValueError: for what cannot become a run, before its first step.
        BadSampleError: at a row that cannot be trained on.
        OSError: if the disk is full.
    """
    valley_args, training_args, model_args = read_arguments(argv)
    with warnings.catch_warnings(), clear_errors(training_args.output_dir):
        # peft asks by the name that every supported version of transformers knows.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        trainer = SFTTrainer(**prepare(valley_args, training_args, model_args))
        replace_reports(trainer, valley_args, model_args)
        trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
        finish(trainer)
    return trainer


def replace_reports(trainer: SFTTrainer, valley_args, model_args) -> None:
    """
    Take the place of what a trainer reports by itself: the card of this run instead of TRL's generic one, in the
    output folder and on the Hub, and a table instead of a dict for each log entry.
    """
    trainer.create_model_card = partial(write_training_card, trainer, valley_args, model_args)
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(ProgressBar)


def finish(trainer: SFTTrainer) -> None:
    """Save model, card and state, end all processes together, and say what comes next."""
    trainer.save_model()
    trainer.create_model_card()
    trainer.save_state()  # the last of all: who finds it knows that the run is complete
    trainer.accelerator.end_training()
    if trainer.is_world_process_zero():
        folder = trainer.args.output_dir
        print(f"Trained: {folder}. Ask it: valley chat {folder} clip.mp4. How it went: {folder}/training.png")


@contextlib.contextmanager
def clear_errors(output_dir: str | os.PathLike) -> Iterator[None]:
    """
    Let a run end in a last line that says what was wrong, where libraries hide it.

    Args:
        output_dir (`str`):
            Of the run.

    Raises:
        DiskFullError: names the last complete checkpoint.
        RuntimeError: if a worker process that reads clips was killed.
    """
    # DeepSpeed, where it is installed, says on each start that there is no GPU, whether or not it is used.
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
    with disk_full_errors("a checkpoint", output_dir, advice=partial(advise_on_full_disk, output_dir)):
        try:
            yield
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise RuntimeError(
                f"{error} It was killed while it read clips, most often for lack of memory: lower "
                "dataloader_num_workers or per_device_train_batch_size. `valley data check` finds a row that kills "
                "its reader."
            ) from error
        except Exception as error:
            if "Original Traceback" not in str(error):
                raise
            raise type(error)(str(error).strip().splitlines()[-1].partition(": ")[2]) from error
        finally:
            ProgressBar.close_all()


__all__ = ["clear_errors", "finish", "replace_reports", "train"]
