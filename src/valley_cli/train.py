# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`valley train RECIPE` trains as `examples/sft.py` does; `valley train estimate RECIPE` tells what that will need."""

import os
import re
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
            "--accelerate-config",
            "--accelerate_config",
            help="Launch by Accelerate with this config: a YAML file, or the name of one of the package.",
            metavar="YAML",
        ),
    ] = None,
    num_processes: Annotated[
        int | None,
        typer.Option(
            "--num-processes",
            "--num_processes",
            help="Processes to launch.",
            metavar="NUMBER",
            min=1,
            show_default="what the config says",
        ),
    ] = None,
) -> None:
    """Train by a recipe. Each of its keys can be given as a flag, which wins."""
    path, flags = find_file("recipe", recipe), with_underscores(context.args)
    flags += find_mixtures(path, flags)
    if accelerate_config is None and num_processes is not None:
        raise ValueError("--num-processes needs a launcher: add --accelerate-config multi_gpu, zero2 or zero3.")
    if accelerate_config is not None:
        launcher = find_file("config of Accelerate", accelerate_config)
        check_processes(launcher, num_processes, path, flags)
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(launcher)]
        if num_processes is not None:
            launch += ["--num_processes", str(num_processes)]
        os.execv(sys.executable, [*launch, "-m", "valley_cli", "train", str(path), *flags])
    from transformers_valley.training import train

    train(["--config", str(path), *flags])


@app.command(
    context_settings=PASS_ON,
    epilog=examples(
        "valley train estimate stage2_instruct --num-gpus 8",
        "valley train estimate recipe.yaml --gpu RTX4090 --num-gpus 1 --load-in-4bit true",
    ),
)
def estimate(
    context: typer.Context,
    recipe: Recipe,
    num_gpus: Annotated[int, typer.Option(help="GPUs, over all machines.", min=1, metavar="NUMBER")] = 8,
    gpu: Annotated[
        Literal["A100-40GB", "A100-80GB", "H100-SXM", "H200-SXM", "L40S", "RTX4090"], typer.Option(help="Which.")
    ] = "A100-80GB",
    gpu_memory: Annotated[
        float | None, typer.Option(help="Its memory.", min=1, metavar="GIB", show_default="that of the GPU")
    ] = None,
    utilization: Annotated[
        float, typer.Option(help="Share of its peak arithmetic that is reached: an assumption.", min=0.01, max=1)
    ] = 0.4,
    frames: Annotated[int, typer.Option(help="Frames of the clip that a row has.", min=1, metavar="NUMBER")] = 8,
    text_tokens: Annotated[int, typer.Option(help="Tokens of its text.", min=2, metavar="NUMBER")] = 256,
    rows: Annotated[int, typer.Option(help="Rows of an epoch.", min=1, metavar="NUMBER")] = 100_000,
) -> None:
    """Tell what a recipe will need, memory and time, from the shapes of its model. No weights are loaded."""
    words = ["--config", str(find_file("recipe", recipe)), *with_underscores(context.args)]
    from transformers_valley.training.estimate import estimate, format_estimate, read_recipe

    found = estimate(*read_recipe(words), num_gpus=num_gpus, num_frames=frames, text_tokens=text_tokens)
    typer.echo(format_estimate(found, gpu, gpu_memory, utilization, rows))


def find_file(kind: Literal["recipe", "config of Accelerate"], name: str) -> Path:
    """
    A YAML file of the user's, or one that comes with the package, by its name.

    Raises:
        FileNotFoundError: if it is neither.
        ValueError: if the user's holds no settings.
    """
    path = Path(name)
    if path.is_file():
        read_settings(path)
        return path
    in_wheel, in_clone = {"recipe": ("recipes", "configs"), "config of Accelerate": ("accelerate", "accelerate")}[kind]
    folder = shipped_folder(in_wheel, in_clone)
    shipped = sorted(file.stem for file in folder.glob("*.yaml"))
    if name in shipped:
        return folder / f"{name}.yaml"
    raise FileNotFoundError(
        f"There is no {kind} {name}: neither a file, nor one that comes with the package ({', '.join(shipped)})."
    )


def shipped_folder(in_wheel: str, in_clone: str) -> Path:
    """A folder of examples that comes with the package."""
    package = Path(__file__).parent
    folder = package / in_wheel
    return folder if folder.is_dir() else package.parents[1] / "examples" / in_clone


def find_mixtures(recipe: Path, flags: list[str]) -> list[str]:
    """
    Flags that name the package's own mixtures, for a recipe that trains on `examples/mixtures/NAME.yaml` where no such
    file is: outside of a clone.
    """
    data = read_settings(recipe).get("data")
    if not isinstance(data, list) or {flag.partition("=")[0] for flag in flags} & {"--data", "--dataset"}:
        return []
    found = []
    for file in map(str, data):
        shipped = shipped_folder("mixtures", "mixtures") / file.removeprefix("examples/mixtures/")
        is_ours = file.startswith("examples/mixtures/") and not Path(file).exists() and shipped.is_file()
        found.append(str(shipped) if is_ours else file)
    return [] if found == data else ["--data", *found]


def read_settings(file: Path) -> dict[str, Any]:
    """
    What a YAML file says.

    Raises:
        ValueError: if it is not YAML, or not lines of `name: value`.
    """
    import yaml

    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not YAML: {error}") from error
    if not isinstance(found, dict):
        kind = "nothing" if found is None else f"a {type(found).__name__}"
        raise ValueError(f"{file} holds {kind}, expected settings, lines such as `learning_rate: 1e-4`.")
    return found


def check_processes(launcher: Path, num_processes: int | None, recipe: Path, flags: list[str]) -> None:
    """
    Refuse more processes on GPUs than there are: each would fail a minute later, above a traceback of the launcher.

    Raises:
        ValueError: says how many there are, and what to do.
    """
    import torch

    config, settings = read_settings(launcher), read_settings(recipe)
    if config.get("distributed_type") not in ("MULTI_GPU", "DEEPSPEED") or (config.get("num_machines") or 1) > 1:
        return
    flag = re.search(r"--use_cpu(?: (\w+))?", " ".join(flags).replace("=", " "))
    use_cpu = (flag[1] or "true") if flag else settings.get("use_cpu", False)
    wanted, found = num_processes or config.get("num_processes") or 1, torch.accelerator.device_count()
    if config.get("use_cpu") or str(use_cpu).lower() in ("true", "yes", "1") or wanted <= found:
        return
    advice = (
        f"Add --num-processes {found}; with a higher --gradient-accumulation-steps the batch stays the same."
        if found
        else "To train on the CPU, add --use-cpu true --bf16 false --dtype float32 in place of --accelerate-config."
    )
    raise ValueError(f"{launcher.name} starts {wanted} processes on GPUs, and torch finds {found} here. {advice}")


def with_underscores(words: list[str]) -> list[str]:
    """Flags as TRL's parser names them, which is how recipes name them: `--learning-rate` is `--learning_rate`."""
    flags = []
    for word in words:
        name, equals, value = word.partition("=")
        flags.append(name.replace("-", "_").replace("__", "--", 1) + equals + value if word.startswith("--") else word)
    return flags
