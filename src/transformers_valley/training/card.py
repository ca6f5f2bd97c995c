# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The model card of a training run: what the trainer and its arguments know, for [`write_model_card`]."""

import importlib.metadata
import math
import os
from pathlib import Path
from statistics import median
from typing import Any

from ..hub.model_card import read_facts, short_name, write_model_card
from .callbacks import count_parameters


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
    else:  # a folder is no model on the Hub, but it may have been made from some
        base_models = before.get("base_models", [start])
    return write_model_card(
        folder,
        repo_id=trainer.hub_model_id,
        base_models=base_models,
        datasets=before.get("datasets"),
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
    files = ", ".join(f"`{Path(file).name}`" for file in valley_args.data)
    rows = trainer.train_dataset
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
        "rows": f"{len(rows) if hasattr(rows, '__len__') else 'streamed'}, of {files}",
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


__all__ = ["describe_training", "write_training_card"]
