# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What a person sees of a run: its speed in every log entry, answers on the way, a table before and a picture after.

TRL logs loss, learning rate, gradient norm, token accuracy and entropy by itself. In goes a trainer; out come more
values in its log entries (and so in TensorBoard, wandb, trackio, the progress bar and `trainer_state.json`), and the
files `parameters.md`, `previews.jsonl` and `training.png` in its output folder.
"""

import contextlib
import json
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch
from accelerate.utils import gather
from datasets import Dataset
from torch import nn
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks

from ..data import load_rows
from ..data.decode import BadSampleError, messages_of
from ..processing_valley import ValleyProcessor, trim_answer
from ..video_sources import VideoDecodeError, load_image
from .collator import ValleyDataCollator


PREVIEW_TOKENS = 128  # an answer that is longer is cut: early in a run many never end


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
        own += [*self._collator.count_rows(), self._memory]
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


class SampleAnswers(TrainerCallback):
    """
    Answers the same rows again and again while the model learns: to the console, to the lines of `previews.jsonl`
    (`step`, `id`, `question`, `answer`, `reference`), and as text to TensorBoard, wandb or trackio.

    Every process answers all of them, and the main process writes. Under ZeRO-3 and FSDP that is the only way, since
    each holds a part of the weights; otherwise the others would wait meanwhile. Answers are greedy and draw no random
    number: the losses of the run are those of a run without them.
    """

    def __init__(
        self, rows: list[dict], steps: int, accelerator, monitor: RunMonitor, reporters: list[TrainerCallback]
    ):
        self.rows = rows
        self.steps = steps
        self.accelerator = accelerator
        self.monitor = monitor
        self.reporters = reporters

    def on_train_begin(self, args, state, control, **kwargs):
        self._answer(args, state, control, **kwargs)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.steps == 0 or control.should_training_stop:
            self._answer(args, state, control, **kwargs)

    def _answer(self, args, state, control, model=None, processing_class=None, **kwargs):
        with self.monitor.paused():
            with self.accelerator.autocast():
                answers = [answer_row(model, processing_class, row) for row in self.rows]
            if not state.is_world_process_zero:
                return
            with _previews_of(args).open("a", encoding="utf-8") as file:
                for answer in answers:
                    file.write(json.dumps({"step": state.global_step, **answer}, ensure_ascii=False) + "\n")
            tqdm.write(f"\nSample answers at step {state.global_step}:\n" + "\n\n".join(map(_show, answers)) + "\n")
            texts = {f"preview_{number}": _show(answer) for number, answer in enumerate(answers, start=1)}
            for reporter in self.reporters:
                reporter.on_log(args, state, control, model=model, logs=texts)


def _previews_of(args) -> Path:
    return Path(args.output_dir, "previews.jsonl")


def _show(answer: dict[str, str]) -> str:
    """Indented, which TensorBoard shows as it is; without line feeds and what else would move a terminal's cursor."""
    lines = {name: re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", text) for name, text in answer.items() if text is not None}
    return "\n".join(f"    {name:>9}  {line}" for name, line in lines.items())


def pick_rows(rows: Dataset, count: int, processor: ValleyProcessor, skips: bool = False) -> list[dict[str, Any]]:
    """
    `count` rows, or all if there are fewer, spread evenly over a data set, with clips and images decoded.

    Raises:
        BadSampleError: if a row cannot be read; with `skips`, the next good one takes its place, if there is one.
    """
    count = min(count, len(rows))
    begins = [number * len(rows) // count for number in range(count)]
    picked = []
    for begin, end in zip(begins, [*begins[1:], len(rows)], strict=True):
        for index in range(begin, end):
            try:
                row = rows[index]
                picked.append(row | {"messages": _decode(row, processor)})
                break
            except BadSampleError as error:
                if not skips:
                    raise
                tqdm.write(f"{error} No sample answers are given for it.")
    return picked


def _decode(row: dict[str, Any], processor: ValleyProcessor) -> list[dict[str, Any]]:
    """The messages of a row whose visuals are decoded once, to be asked about again and again."""
    messages = messages_of(row)
    try:
        for block in (block for message in messages for block in message["content"]):
            if block["type"] == "video":
                block["video"] = processor.video_processor.sample(block["video"])
            elif block["type"] == "image":
                block["image"] = load_image(block["image"])
    except VideoDecodeError as error:
        raise BadSampleError(str(row.get("id")), str(row.get("source")), error.path, error.reason) from error
    return messages


def answer_row(model, processor: ValleyProcessor, row: dict[str, Any]) -> dict[str, str | None]:
    """
    Let a model that is being trained answer the first question of a row.

    Args:
        model (`PreTrainedModel` or `peft.PeftModel`):
            The model. It answers in eval mode, with a cache and without gradients, and is left in the mode it was in.
        processor ([`ValleyProcessor`]):
            Its processor.
        row (`dict`):
            A row of [`pick_rows`].

    Returns:
        `dict[str, str]` with `id`, `question`, `answer` and `reference`, which is the row's own answer.
    """
    turns = next(number for number, message in enumerate(row["messages"]) if message["role"] == "assistant")
    messages, reference = row["messages"][:turns], row["messages"][turns]
    inputs = processor.apply_chat_template(
        messages,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device, dtype=model.dtype)
    was_training = model.training
    model.eval()  # no dropout; nor does gradient checkpointing, which forbids a cache, happen in this mode
    # `no_grad`, not `inference_mode`: ZeRO-3 keeps what it gathers here for the next step.
    with torch.no_grad():
        output = model.generate(
            **inputs, do_sample=False, use_cache=True, max_new_tokens=PREVIEW_TOKENS, tokenizer=processor.tokenizer
        )
    model.train(was_training)
    written = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return {
        "id": row.get("id"),
        "question": _text_of(messages[-1]),
        "answer": trim_answer(written, model.generation_config.stop_strings or ()),
        "reference": _text_of(reference),
    }


def _text_of(message: dict[str, Any]) -> str:
    return " ".join(block["text"].strip() for block in message["content"] if block["type"] == "text")


def count_parameters(model: nn.Module) -> dict[str, tuple[int, int]]:
    """
    Trained and frozen parameters of the parts of a model: `{"vision_tower": (0, 290581504), …}`.

    Adapters count for the part they are in. What is spread over processes or packed into fewer bits counts in full.
    """
    counts: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        if ".original_module." in name:  # peft keeps what it trains a copy of
            continue
        part = name.removeprefix("base_model.model.").removeprefix("model.").partition(".")[0]
        trained, frozen = counts.get(part, (0, 0))
        if hasattr(parameter, "ds_numel"):  # ZeRO-3
            number = parameter.ds_numel
        elif hasattr(parameter, "quant_state"):  # bitsandbytes, four bits
            number = math.prod(parameter.quant_state.shape)
        else:
            number = parameter.numel()
        counts[part] = (trained + number, frozen) if parameter.requires_grad else (trained, frozen + number)
    return counts


def parameter_table(model: nn.Module) -> str:
    """[`count_parameters`] as a Markdown table with a last row for the sum."""
    counts = count_parameters(model)
    sums = tuple(map(sum, zip(*counts.values(), strict=True)))
    rows = [("module", "trained", "frozen")]
    rows += [(part, *(f"{number:,}" for number in pair)) for part, pair in {**counts, "all": sums}.items()]
    first, second, third = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [f"| {part:<{first}} | {trained:>{second}} | {frozen:>{third}} |" for part, trained, frozen in rows]
    rule = f"| {'-' * first} | {'-' * (second - 1)}: | {'-' * (third - 1)}: |"
    return "\n".join([lines[0], rule, *lines[1:]])


def draw_training(log_history: list[dict[str, float]], path: str | os.PathLike) -> None:
    """
    Draw loss, learning rate and throughput of a run over its steps.

    Args:
        log_history (`list[dict]`):
            Of the trainer's state, or of a `trainer_state.json`; with at least one loss.
        path (`str`):
            Of the picture, whose suffix says in which format.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    steps = [entry for entry in log_history if "loss" in entry]
    numbers = [entry["step"] for entry in steps]
    losses = [entry["loss"] for entry in steps]
    evaluations: dict[str, list[tuple[int, float]]] = {}
    for entry in log_history:
        for key in entry:
            if key.startswith("eval_") and key.endswith("loss"):
                source = key.removeprefix("eval_").removesuffix("loss").removesuffix("_")
                evaluations.setdefault(source or "evaluation", []).append((entry["step"], entry[key]))

    ink, faint, colour = "#2b2b2b", "#9a9a9a", "#2f6db3"
    others = ["#d1603d", "#3f8f5b", "#8a5aa8", "#b8860b", "#2a9d9d", "#c0507e"]
    figure = Figure(figsize=(10, 7), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12, hspace=0.04)
    axes = figure.subplot_mosaic([["loss", "loss"], ["rate", "speed"]], height_ratios=[2.1, 1])
    for name, title in (("loss", "Loss"), ("rate", "Learning rate"), ("speed", "Tokens per second")):
        axis = axes[name]
        axis.set_title(title, loc="left", fontsize=12, color=ink, fontweight="bold")
        axis.set_xlabel("step", color=ink)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(faint)
        axis.tick_params(colors=ink, labelsize=9)
        axis.grid(axis="y", color="#e6e6e6")
        axis.set_axisbelow(True)
        axis.set_xlim(0, 1.01 * numbers[-1])
        axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))

    dots = {"marker": "o"} if len(steps) == 1 else {}  # a line of one point cannot be seen
    axes["loss"].plot(numbers, losses, color=colour, alpha=0.3, linewidth=1, label="training")
    smoothed = smooth(losses)
    axes["loss"].plot(numbers, smoothed, color=colour, linewidth=2.2, label="training, smoothed", **dots)
    for index, (source, points) in enumerate(sorted(evaluations.items())):
        style = {"color": others[index % len(others)], "marker": "o", "markersize": 5, "linewidth": 1.5}
        axes["loss"].plot(*zip(*points, strict=True), label=source, **style)
    # How a loss falls at the very beginning would flatten all that comes after it.
    later = [
        smoothed[len(losses) // 20 :].max(),
        *(loss for points in evaluations.values() for _, loss in points),
    ]
    if len(losses) >= 100 and losses[0] > 2 * max(later):
        axes["loss"].set_ylim(top=1.2 * max(later))
        axes["loss"].set_title(f"from {losses[0]:.2g} at the first step", loc="right", fontsize=9, color=faint)
    axes["loss"].legend(frameon=False, labelcolor=ink, fontsize=9, loc="upper right")

    axes["rate"].plot(numbers, [entry["learning_rate"] for entry in steps], color=colour, linewidth=2, **dots)
    axes["rate"].yaxis.set_major_formatter(lambda rate, _: f"{rate:.1e}".replace("e-0", "e-") if rate else "0")
    axes["rate"].set_ylim(bottom=0)

    timed = [entry for entry in steps if "tokens_per_second" in entry]
    if timed:
        numbers, speeds = zip(*((entry["step"], entry["tokens_per_second"]) for entry in timed), strict=True)
        axes["speed"].plot(numbers, speeds, color=colour, alpha=0.3, linewidth=1)
        axes["speed"].plot(numbers, smooth(speeds), color=colour, linewidth=2, **dots)
        axes["speed"].yaxis.set_major_formatter(EngFormatter(sep=""))
        wait = median(entry["data_wait_share"] for entry in timed)
        axes["speed"].set_title(f"{wait:.0%} of the time waiting for data", loc="right", fontsize=9, color=faint)
    axes["speed"].set_ylim(bottom=0)
    figure.savefig(path, dpi=130)


def smooth(values: Sequence[float]) -> np.ndarray:
    """Means around each value, weighted by a bell whose standard deviation is a fiftieth of all values, at most 20."""
    width = min(max(len(values) / 50, 0.1), 20)
    reach = int(3 * width)
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    # At both ends a part of the bell hangs over, and the weights that are left are fewer.
    padded, weights = (np.convolve(column, bell) for column in (values, np.ones(len(values))))
    return (padded / weights)[reach : reach + len(values)]


__all__ = [
    "RunMonitor",
    "SampleAnswers",
    "answer_row",
    "count_parameters",
    "draw_training",
    "parameter_table",
    "pick_rows",
    "watch",
]
