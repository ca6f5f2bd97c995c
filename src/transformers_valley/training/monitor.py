# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What a person sees of a run: its speed in every log entry, a table before and a picture after.

TRL logs loss, learning rate, gradient norm, token accuracy and entropy by itself. In goes a trainer; out come more
values in its log entries (and so in TensorBoard, wandb, trackio, the progress bar and `trainer_state.json`), and the
files `parameters.md` and `training.png` in its output folder.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate.utils import gather
from torch import nn
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks

from ..data import load_rows
from .collator import ValleyDataCollator
from .parameters import parameter_table
from .previews import SampleAnswers, _previews_of, pick_rows
from .report import draw_training


def watch(trainer, valley_args) -> None:
    """
    Make a run visible: to be called once, between the making of the trainer and its `train()`.

    Args:
        trainer (`trl.SFTTrainer`):
            The trainer, whose `processing_class` is a [`ValleyProcessor`].
        valley_args ([`ValleyArguments`]):
            Of the run; they say which rows are answered on the way, and how often.

    Raises:
        BadSampleError: if one of those rows cannot be read. With `on_bad_sample="skip"` the next good one is taken.
    """
    # Missed now, and not when the last step is done and the model not yet saved.
    import matplotlib  # noqa: F401

    handler = trainer.callback_handler
    collator = trainer.data_collator
    collator = getattr(collator, "keywords", {"collator": collator})["collator"]  # of a stream that is resumed
    monitor = RunMonitor(collator)
    # First, since callbacks are called in order: what reports a log entry has to find the values in it.
    handler.callbacks.insert(0, monitor)
    files = valley_args.preview_data or valley_args.eval_data
    if files and valley_args.preview_steps:
        rows = load_rows(files, valley_args.media_root)
        skips = valley_args.on_bad_sample == "skip"
        rows = pick_rows(rows, valley_args.num_previews, trainer.processing_class, skips)
        classes = tuple(get_reporting_integration_callbacks(trainer.args.report_to))
        reporters = [callback for callback in handler.callbacks if isinstance(callback, classes)]
        # Behind those, which have to have begun when the first answers come.
        trainer.add_callback(SampleAnswers(rows, valley_args.preview_steps, trainer.accelerator, monitor, reporters))
    trainer.add_callback(_Afterwards(monitor))


class RunMonitor(TrainerCallback):
    """
    Adds to every log entry of a training step, over the steps since the last one and over all processes:

    - `tokens_per_second`, without padding, and `clips_per_second`, without images,
    - `padding_share` of the positions of the batches,
    - `data_wait_share`: time until the batch (on all processes) was there / time of the steps,
    - `memory_gib` of the process that took most: on a GPU what tensors took at the worst moment of the run, on a CPU
      the resident set of the process, the most that any log entry found,
    - `bad_samples`, rows that could not be read since this process began, and their share `bad_sample_share` of all
      that were read, held-out ones too.

    The time of logging, evaluating, saving and sample answers counts for nothing. A GPU works on when Python has gone
    ahead, and catches up when the loss is read for a log entry: with `logging_steps: 1` the shares are exact.

    Writes `parameters.md` when the training begins, and `training.png` when it ends. What an earlier run left of
    `bad_samples` and `previews.jsonl` is removed when one begins, and kept when one is resumed.

    Args:
        collator ([`ValleyDataCollator`]):
            Of the trainer; it counts rows.
    """

    def __init__(self, collator: ValleyDataCollator):
        self._collator = collator
        self._hook = None
        self._memory = 0.0
        self._mark = time.perf_counter()
        self._reset()

    def _reset(self) -> None:
        self._tokens: int | torch.Tensor = 0
        self._positions = self._clips = 0
        self._waited = self._worked = 0.0

    @torch.compiler.disable
    def _count_batch(self, model: nn.Module, args: tuple, batch: dict[str, Any]) -> None:
        if not model.training:  # evaluation, or a sample answer
            return
        self._positions += batch["input_ids"].numel()
        mask = batch.get("attention_mask")  # (rows, length); rows that are packed have none, and no padding
        # Not read here: that would make Python wait for the GPU.
        self._tokens += batch["input_ids"].numel() if mask is None else mask.sum()
        frames = batch.get("video_num_frames")  # (clips,)
        self._clips += 0 if frames is None else len(frames)

    def lap(self) -> float:
        """Seconds since this was last asked."""
        begin, self._mark = self._mark, time.perf_counter()
        return self._mark - begin

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is no part of a step."""
        begin = time.perf_counter()
        yield
        self._mark += time.perf_counter() - begin

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if self._hook is not None:  # it begins anew, with the smaller batch of `auto_find_batch_size`
            self._hook.remove()
        # On the model itself, which DDP, DeepSpeed and peft call from within.
        self._hook = model.register_forward_pre_hook(self._count_batch, with_kwargs=True)
        self._reset()
        self.lap()
        if state.is_world_process_zero:
            if not state.global_step:
                for file in (*Path(args.output_dir, "bad_samples").glob("rank*.jsonl"), _previews_of(args)):
                    file.unlink(missing_ok=True)
            table = parameter_table(model)
            tqdm.write(f"\n{table}\n")
            Path(args.output_dir, "parameters.md").write_text(table + "\n", encoding="utf-8")

    def on_step_begin(self, args, state, control, **kwargs):
        self._waited += self.lap()

    def on_substep_end(self, args, state, control, **kwargs):
        self._worked += self.lap()

    def on_step_end(self, args, state, control, **kwargs):
        self._worked += self.lap()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self._worked += self.lap()  # the trainer has just waited for what the GPU still had to do
            values = self._measure(args, state)
            logs.update(values)
            state.log_history[-1].update(values)  # the trainer has put a copy there before it asked anyone
        elif loss := next((key for key in logs if key.startswith("eval_") and key.endswith("_loss")), None):
            # TRL names its own two alike for every evaluation set, so that each would hide the one before.
            for entry in (logs, state.log_history[-1]):
                for name in ("entropy", "mean_token_accuracy"):
                    entry[f"{loss.removesuffix('loss')}{name}"] = entry.pop(f"eval_{name}")

    def _measure(self, args, state) -> dict[str, float]:
        if args.device.type in ("cuda", "xpu"):
            memory = torch.accelerator.max_memory_allocated()
        else:
            memory = psutil.Process().memory_info().rss
        self._memory = max(self._memory, memory / 2**30)
        own = [self._tokens, self._positions, self._clips, self._waited, self._worked]
        own += [*self._collator.bad_rows.count(), self._memory]
        # All processes log at the same steps, and the trainer has just gathered the loss in the same way.
        everyone = gather(torch.tensor([[float(value) for value in own]], device=args.device)).cpu()  # (processes, 8)
        tokens, positions, clips, waited, worked, read, bad, _ = everyone.sum(dim=0).tolist()
        seconds = (waited + worked) / len(everyone)
        self._reset()
        return {
            "tokens_per_second": tokens / seconds,
            "clips_per_second": clips / seconds,
            "padding_share": 1 - tokens / positions,
            "data_wait_share": waited / (waited + worked),
            "memory_gib": everyone[:, -1].max().item(),
            "bad_samples": int(bad),
            "bad_sample_share": bad / max(read, 1),
        }

    def on_train_end(self, args, state, control, **kwargs):
        self._hook.remove()
        if state.is_world_process_zero and any("loss" in entry for entry in state.log_history):
            draw_training(state.log_history, Path(args.output_dir, "training.png"))


class _Afterwards(TrainerCallback):
    """The last of all: what others did with a log entry, an evaluation or a checkpoint is no part of a step."""

    def __init__(self, monitor: RunMonitor):
        self.monitor = monitor

    def on_log(self, args, state, control, **kwargs):
        self.monitor.lap()

    on_evaluate = on_save = on_log


__all__ = ["RunMonitor", "watch"]
