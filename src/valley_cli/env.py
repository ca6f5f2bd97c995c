# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`valley env`: what a bug report has to say about the machine."""

import importlib.metadata
import importlib.util
import platform

import typer

from .options import examples


EPILOG = examples("valley env")

_PACKAGES = (
    "transformers-valley transformers torch torchvision av numpy pillow datasets trl accelerate peft deepspeed "
    "bitsandbytes vllm huggingface-hub tokenizers"
)


def env() -> None:
    """Print versions and hardware, as a bug report needs them."""
    typer.echo(f"- platform: {platform.platform()}")
    typer.echo(f"- python: {platform.python_version()}")
    for package in _PACKAGES.split():
        try:
            typer.echo(f"- {package}: {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            typer.echo(f"- {package}: not installed")
    typer.echo(f"- accelerators: {_accelerators()}")


def _accelerators() -> str:
    if importlib.util.find_spec("torch") is None:
        return "unknown without torch"
    import torch

    if not torch.accelerator.is_available():
        return f"none ({torch.get_num_threads()} threads)"
    kind = torch.accelerator.current_accelerator().type
    name_of = getattr(torch.get_device_module(kind), "get_device_name", lambda _: kind)  # torch.mps has none
    names = [name_of(i) for i in range(torch.accelerator.device_count())]
    return f"{', '.join(names)} ({kind}; built for CUDA {torch.version.cuda})"
