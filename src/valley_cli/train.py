# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`valley train RECIPE` trains as `examples/sft.py` does; `valley train estimate RECIPE` tells what that will need."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from .options import SETTINGS, examples


PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


class _TrainGroup(TyperGroup):
    """`valley train RECIPE` is short for `valley train run RECIPE`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands:
            args = ["run", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_TrainGroup,
    help="Train by a recipe, or estimate what that will need.",
    subcommand_metavar="RECIPE [FLAGS]... | estimate RECIPE [FLAGS]...",
    epilog=examples(
        "valley train fine_tune_lora --model-name-or-path path/to/valley --data rows.jsonl",
        "valley train recipe.yaml --learning-rate 1e-4 --output-dir outputs/second",
        "valley train stage2_instruct --accelerate-config zero2",
        "valley train estimate stage2_instruct --num-gpus 8",
    ),
    **SETTINGS,
)

Recipe = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a recipe that comes with the package.")
]


@app.command(hidden=True, context_settings=PASS_ON)
def run(
    context: typer.Context,
    recipe: Recipe,
    accelerate_config: Annotated[
        str | None,
        typer.Option(
            help="Launch as this config of Accelerate says: a YAML file, or the name of one that comes with the package.",
            metavar="YAML",
        ),
    ] = None,
) -> None:
    """Train by a recipe. Each of its keys can be given as a flag, which wins."""
    words = ["--config", str(find_recipe(recipe)), *snake_case(context.args)]
    if accelerate_config is None:
        from transformers_valley.training import train

        train(words)
        return
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(find_config(accelerate_config))]
    os.execv(sys.executable, [*launch, "-m", "valley_cli", "train", *words[1:]])


def find_recipe(name): return name
def find_config(name): return name
def snake_case(a): return a
