# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""How a run goes: its speed and memory beside every log entry, and its progress as a table.

Input: the events of a trainer. Output: more log entries, also for TensorBoard, wandb and trackio; a row on the
terminal for each; the files `parameters.md` and `training.png` in the output folder.
"""

import contextlib
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate.utils import gather
from torch import nn
from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerCallback

from .bad_rows import BadRows
from .parameters import parameter_table
from .report import draw_training


class RunMonitor(TrainerCallback):
    """
    Logs with every entry of training steps, over the steps since the last one and over all processes:

    - `tokens_per_second`, without padding, and `clips_per_second`, without images,
    - `padding_share` of the positions of the batches,
    - `data_wait_share`: time until the batch (on all processes) was there / time of the steps,
    - `memory_gib` of the process that took most: on a GPU the peak of what tensors took, on a CPU the most resident
      memory that any log entry found,
    - `bad_samples`, rows that could not be read since this process began, and their share `bad_sample_share` of all
      that were read, validation rows too.

    The time of logging, evaluating, saving and sample answers counts for nothing. A GPU works on when Python has gone
    ahead, and catches up when the loss is read for a log entry: with `logging_steps: 1` the shares are exact.

    Prints the table of parameters when the training begins, and draws it when it ends. Callbacks are called in order:
    this one comes before those that report its values, and `pause_after` after all others.

    Args:
        bad_rows ([`BadRows`]):
            Of the run's collator.
    """

    def __init__(self, bad_rows: BadRows):
        self.bad_rows = bad_rows
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
        """What happens inside is not part of a step."""
        begin = time.perf_counter()
        yield
        self._mark += time.perf_counter() - begin

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if self._hook is not None:  # a second try, with the smaller batch of `auto_find_batch_size`
            self._hook.remove()
        # On the model itself, which DDP, DeepSpeed and peft call from within.
        self._hook = model.register_forward_pre_hook(self._count_batch, with_kwargs=True)
        self._reset()
        self.lap()
        if state.is_world_process_zero:
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
            values = self._measure(args)
        elif loss := next((key for key in logs if key.startswith("eval_") and key.endswith("_loss")), None):
            # TRL gives its own two one name for all evaluation sets, so that each would hide the one before.
            names = [name for name in ("entropy", "mean_token_accuracy") if f"eval_{name}" in logs]
            values = {f"{loss.removesuffix('loss')}{name}": logs.pop(f"eval_{name}") for name in names}
        else:
            return
        logs.update(values)
        state.log_history.append({**values, "epoch": state.epoch, "step": state.global_step})

    def _measure(self, args) -> dict[str, float]:
        if args.device.type in ("cuda", "xpu"):
            memory = torch.accelerator.max_memory_allocated()
        else:
            memory = psutil.Process().memory_info().rss
        self._memory = max(self._memory, memory / 2**30)
        own = [self._tokens, self._positions, self._clips, self._waited, self._worked]
        own += [*self.bad_rows.count(), self._memory]
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


class PauseAfter(TrainerCallback):
    """The last of all: what others did with a log entry, an evaluation or a checkpoint is not part of a step."""

    def __init__(self, monitor: RunMonitor):
        self.monitor = monitor

    def on_log(self, args, state, control, **kwargs):
        self.monitor.lap()

    on_evaluate = on_save = on_log


class ProgressTable(TrainerCallback):
    """Prints a row for each log entry: step, loss, learning rate, clips a second, time left; a line per evaluation."""

    COLUMNS = ("step", "loss", "learning rate", "clips/s", "time left")

    def __init__(self):
        self._begin: tuple[float, int] | None = None
        self._has_header = False

    def on_train_begin(self, args, state, control, **kwargs):
        self._begin = None

    def on_step_begin(self, args, state, control, **kwargs):
        if self._begin is None:  # not before: sample answers come first
            self._begin = time.perf_counter(), state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero:
            return
        step = f"{state.global_step}/{state.max_steps}"
        if "loss" in logs:
            if not self._has_header:
                tqdm.write(self._format(self.COLUMNS))
                self._has_header = True
            values = f"{logs['loss']:.4f}", f"{logs['learning_rate']:.2e}", f"{logs['clips_per_second']:.1f}"
            bad = f"  {logs['bad_samples']} bad rows so far" if logs["bad_samples"] else ""
            tqdm.write(self._format((step, *values, self._time_left(state))) + bad)
        elif loss := next((key for key in logs if key.startswith("eval_") and key.endswith("loss")), None):
            source = loss.removeprefix("eval_").removesuffix("loss").strip("_") or "validation set"
            tqdm.write(f"{step:>13}  {logs[loss]:>8.4f}  on {source}")

    def _time_left(self, state) -> str:
        begin, first = self._begin
        done = state.global_step - first
        seconds = (time.perf_counter() - begin) / done * (state.max_steps - state.global_step)
        return str(timedelta(seconds=round(seconds)))

    def _format(self, cells: tuple[str, ...]) -> str:
        return "  ".join(cell.rjust(width) for cell, width in zip(cells, (13, 8, 13, 7, 9), strict=True))


class ProgressBar(ProgressCallback):
    """
    The progress bar of transformers, without its dict of values for each log entry. `close_all` closes those that an
    error left open, so that its message is the last line.
    """

    _open: list["ProgressBar"] = []

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self._open.append(self)

    @classmethod
    def close_all(cls) -> None:
        while cls._open:
            callback = cls._open.pop()
            for bar in (callback.prediction_bar, callback.training_bar):
                if bar is not None:
                    bar.close()

    def on_log(self, args, state, control, **kwargs):
        pass


__all__ = ["PauseAfter", "ProgressBar", "ProgressTable", "RunMonitor"]
