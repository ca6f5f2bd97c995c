# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Which parameters of a model are trained.

Input: a model and names of modules. Output: the same model with the others frozen; counts, and a table of them.
"""

import math

import torch
from torch import nn

from ..tables import format_table


def choose_trained(model: nn.Module, names: list[str], peft_config=None) -> None:
    """
    Freeze a model except for what a run trains.

    Args:
        model (`nn.Module`):
            The model, before peft wraps it.
        names (`list[str]`):
            See [`set_trainable`].
        peft_config (`peft.LoraConfig`, *optional*):
            With it all is frozen, and peft adds what is trained. Its `modules_to_save` become float32, as its adapters
            are.
    """
    if peft_config is None:
        set_trainable(model, names)
        return
    model.requires_grad_(False)
    for name, module in model.named_modules():
        if name.endswith(tuple(peft_config.modules_to_save or ())):
            module.float()


def set_trainable(model: nn.Module, names: list[str]) -> None:
    """
    Freeze a model except for the named modules.

    Trainable weights become float32: with bfloat16 masters most updates at these rates round to nothing.

    Args:
        model (`nn.Module`):
            The model.
        names (`list[str]`):
            Module names as in `model.named_modules()`, such as `model.multi_modal_projector`.

    Raises:
        ValueError: if a name is unknown, or nothing is left to train.
    """
    modules = dict(model.named_modules())
    if unknown := [name for name in names if not name or name not in modules]:
        top = [name for name in modules if name and name.count(".") <= 1]
        raise ValueError(
            f"trainable_modules has no such module: {unknown}. This model has {top} and their submodules."
        )
    model.requires_grad_(False)
    for name in names:
        for parameter in modules[name].parameters():
            parameter.data = parameter.data.to(torch.float32)
            parameter.requires_grad_(True)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"trainable_modules={names} leaves nothing to train: name a module that has weights.")


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
    rows = [(part, *(f"{number:,}" for number in pair)) for part, pair in {**counts, "all": sums}.items()]
    return format_table([("module", "trained", "frozen"), *rows], "lrr")


__all__ = ["choose_trained", "count_parameters", "parameter_table", "set_trainable"]
