# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What stays of a run: its model card and its picture.

Input: a trainer and its arguments, or its log entries. Output: `README.md` and `training.png`.
"""

import importlib.metadata
import math
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from datasets import Dataset

from ..hub.model_card import read_facts, short_name, write_model_card
from ..plots import COLOURS, MARKERS, chart_style, place_legend
from .parameters import count_parameters


def write_training_card(
    trainer, valley_args, model_args, tags: str | list[str] | None = None, **_: Any
) -> Path | None:
    """
    Write the card of a run into its output folder, on the main process only.

    As a trainer's `create_model_card` it takes the place of the generic card, in the folder and in what
    `push_to_hub` uploads. What the card of the checkpoint that a stage began with says of its origin and data is
    handed on.

    Args:
        trainer (`trl.SFTTrainer`):
            The trainer.
        valley_args ([`ValleyArguments`]):
            Of the run.
        model_args (`trl.ModelConfig`):
            Of the run.
        tags (`str` or `list[str]`, *optional*):
            More tags for the Hub, which the trainer's `push_to_hub` gives. Its other arguments are not used.

    Returns:
        `Path` of the card, or `None`: on other processes, before the folder holds a model, or where another card was
        kept.
    """
    folder = Path(trainer.args.output_dir)
    has_model = any((folder / name).exists() for name in ("config.json", "adapter_config.json"))
    if not trainer.is_world_process_zero() or not has_model:
        return None
    start = model_args.model_name_or_path
    before = read_facts(start) if os.path.isdir(start) else {}
    if valley_args.vision_model_name_or_path:
        base_models = [valley_args.vision_model_name_or_path, start]
    elif "repo_id" in before or model_args.use_peft:
        base_models = [before.get("repo_id", start)]
    else:  # a folder is not a model on the Hub, but it may have been made from some
        base_models = before.get("base_models", [start])
    return write_model_card(
        folder,
        repo_id=trainer.hub_model_id,
        base_models=base_models,
        datasets=[*before.get("datasets", ()), *(name.partition("@")[0] for name in valley_args.dataset)] or None,
        training=describe_training(trainer, valley_args, model_args),
        tags=["trl", "sft", *([tags] if isinstance(tags, str) else tags or ())],
    )


def describe_training(trainer, valley_args, model_args) -> dict[str, str]:
    """The settings of a run that decide its result, name to value, as a card tells them."""
    args, state = trainer.args, trainer.state
    batch = args.per_device_train_batch_size, args.world_size, args.gradient_accumulation_steps
    trained = model_args.lora_modules_to_save if model_args.use_peft else valley_args.trainable_modules
    # Stage 2 is what trains the language model (paper, Section 4.3).
    instructs = model_args.use_peft or any("language_model" in name or "lm_head" in name for name in trained)
    rows = trainer.train_dataset
    if isinstance(rows, Dataset):  # mixtures have several, and may have changed since
        names = rows.unique("source")
    else:
        names = [Path(file).name for file in valley_args.data or valley_args.dataset]
    files = ", ".join(f"`{name}`" for name in names)
    frozen = "4 bit" if model_args.load_in_4bit else "8 bit" if model_args.load_in_8bit else model_args.dtype
    mixed = "bfloat16" if args.bf16 else "float16" if args.fp16 else "no"
    warm_up = f"{args.warmup_steps:g}{' of the' if args.warmup_steps < 1 else ''} steps"
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    speeds = [entry["tokens_per_second"] for entry in state.log_history if "tokens_per_second" in entry]
    trained_number, frozen_number = map(sum, zip(*count_parameters(trainer.model).values(), strict=True))
    packages = ["transformers-valley", "transformers", "trl", "torch", *(["peft"] if model_args.use_peft else [])]
    settings = {
        "stage": "stage 2 (instruct)" if instructs else "stage 1 (align)",
        "began with": ", ".join(
            f"`{short_name(name)}`"
            for name in (valley_args.vision_model_name_or_path, model_args.model_name_or_path)
            if name
        ),
        "trained": ", ".join([*(["LoRA"] if model_args.use_peft else []), *(f"`{name}`" for name in trained or ())]),
        "parameters": f"{trained_number:,} trained, {frozen_number:,} frozen",
        "rows": f"{len(rows) if hasattr(rows, '__len__') and not valley_args.streaming else 'streamed'}, of {files}",
        "loss on": "the assistant's words" if args.assistant_only_loss else "all words",
        "epochs, steps": f"{state.epoch or 0:g}, {state.global_step}",
        "global batch": f"{math.prod(batch)} (per process {batch[0]}, processes {batch[1]}, accumulated {batch[2]})",
        "learning rate": f"{args.learning_rate:g}, {args.lr_scheduler_type.value}, warm-up {warm_up}",
        "optimizer": f"{args.optim.value}, betas {args.adam_beta1:g} and {args.adam_beta2:g}, epsilon "
        f"{args.adam_epsilon:g}, weight decay {args.weight_decay:g}",
        "longest row": f"{args.max_length} tokens" if args.max_length else "not cut",
        "precision": f"frozen weights {frozen}, trained weights float32, {mixed} mixed precision",
        "throughput": f"{median(speeds):,.0f} tokens per second" if speeds else "",
        "last loss": f"{losses[-1]:.4g}" if losses else "",
        "software": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages),
    }
    return {name: value for name, value in settings.items() if value}


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

    with chart_style():
        figure = Figure(figsize=(10, 7), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12, hspace=0.04)
        axes = figure.subplot_mosaic([["loss", "loss"], ["rate", "speed"]], height_ratios=[2.1, 1])
        for name, title in (("loss", "Loss"), ("rate", "Learning rate"), ("speed", "Tokens per second")):
            axes[name].set(title=title, xlabel="step", xlim=(0, 1.01 * numbers[-1]))
            axes[name].grid(axis="x", visible=False)
            axes[name].xaxis.set_major_locator(MaxNLocator(8 if name == "loss" else 5, integer=True))

        raw = {"color": COLOURS[0], "alpha": 0.35, "linewidth": 1}
        dots = {"marker": MARKERS[0]} if len(steps) == 1 else {}  # a line of one point cannot be seen
        axes["loss"].plot(numbers, losses, **raw, label="training")
        smoothed = smooth(losses)
        axes["loss"].plot(numbers, smoothed, label="training, smoothed", **dots)
        for index, (source, points) in enumerate(sorted(evaluations.items()), start=1):
            style = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
            axes["loss"].plot(*zip(*points, strict=True), label=source, linewidth=1.5, **style)
        # How a loss falls at the very beginning would flatten all that comes after it.
        later = [
            smoothed[len(losses) // 20 :].max(),
            *(loss for points in evaluations.values() for _, loss in points),
        ]
        if len(losses) >= 100 and losses[0] > 2 * max(later):
            axes["loss"].set_ylim(top=1.2 * max(later))
            axes["loss"].set_title(f"Loss, from {losses[0]:.2g} at the first step")
        place_legend(axes["loss"])

        axes["rate"].plot(numbers, [entry["learning_rate"] for entry in steps], **dots)
        axes["rate"].yaxis.set_major_formatter(lambda rate, _: f"{rate:.1e}".replace("e-0", "e-") if rate else "0")
        axes["rate"].set_ylim(bottom=0)

        timed = [entry for entry in log_history if "tokens_per_second" in entry]
        if timed:
            numbers, speeds = zip(*((entry["step"], entry["tokens_per_second"]) for entry in timed), strict=True)
            axes["speed"].plot(numbers, speeds, **raw)
            axes["speed"].plot(numbers, smooth(speeds), color=COLOURS[0], **dots)
            axes["speed"].yaxis.set_major_formatter(EngFormatter(sep=""))
            wait = median(entry["data_wait_share"] for entry in timed)
            axes["speed"].set_xlabel(f"step; {wait:.0%} of the time waits for data")
        axes["speed"].set_ylim(bottom=0)
        figure.savefig(path)


def smooth(values: Sequence[float]) -> np.ndarray:
    """Means around each value, weighted by a bell whose standard deviation is a fiftieth of all values, at most 20."""
    width = min(max(len(values) / 50, 0.1), 20)
    reach = int(3 * width)
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    # At both ends a part of the bell hangs over, and the weights that are left are fewer.
    padded, weights = (np.convolve(column, bell) for column in (values, np.ones(len(values))))
    return (padded / weights)[reach : reach + len(values)]


__all__ = ["describe_training", "draw_training", "smooth", "write_training_card"]
