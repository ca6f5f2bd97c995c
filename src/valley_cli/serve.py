# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`valley serve`: a checkpoint behind the OpenAI protocol."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .options import Attention, Checkpoint, Device, Dtype, examples


EPILOG = examples(
    "valley serve path/to/valley",
    "valley serve path/to/valley --allow-local-files clips --max-batch 16",
    "valley serve path/to/valley --host 0.0.0.0 --port 80 --allowed-host models.example.org",
)


def serve(
    checkpoint: Checkpoint,
    engine: Annotated[
        Literal["auto", "vllm", "transformers"],
        typer.Option(help="What answers; auto is vLLM where it is installed and there is a GPU."),
    ] = "auto",
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is every one.")] = "localhost",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535, metavar="NUMBER")] = 8000,
    allow_local_files: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            help="Let requests open files in this folder. May be given several times; by default none.",
        ),
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(
            help="Most requests that are answered together; by default 8, of vLLM its own.", min=1, metavar="NUMBER"
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(help="What clients must send as their key.", envvar="VALLEY_API_KEY", metavar="KEY"),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="A name under which clients reach it. May be given several times.", metavar="NAME"),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    attn_implementation: Attention = None,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the decoding of answers.")] = False,
    quantization: Annotated[
        Literal["bnb-4bit", "bnb-8bit"] | None, typer.Option(help="Load the weights in fewer bits.")
    ] = None,
    vllm_args: Annotated[str, typer.Option(help="More options of `vllm serve`, in quotes.", metavar="OPTIONS")] = "",
) -> None:
    """Answer requests of OpenAI's clients about clips and images."""
    options = {
        "host": host,
        "port": port,
        "folders": allow_local_files or (),
        "api_key": api_key,
        "allowed_hosts": allowed_host or (),
        "device": device,
        "dtype": dtype,
        "attn_implementation": attn_implementation,
        "quantization": quantization,
    }
    if engine != "transformers":
        from transformers_valley.vllm_plugin import command

        if engine == "vllm" or command.is_ready(device, attn_implementation):
            command.serve(checkpoint, max_batch=max_batch, more=vllm_args, **options)  # becomes vLLM
    if vllm_args:
        raise ValueError("--vllm-args are for --engine vllm, and this is the server of transformers-valley itself.")
    from transformers_valley.serving.server import serve as serve_checkpoint

    serve_checkpoint(checkpoint, max_batch=max_batch or 8, compile=compile, **options)
