# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`valley demo`: a page in the browser, or a Space on the Hub with it."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .options import Attention, Device, Dtype, MaxNewTokens, examples


EPILOG = examples(
    "valley demo path/to/valley",
    "valley demo --server http://localhost:8000",
    "valley demo user/valley-13b --space my-space",
)


def demo(
    checkpoint: Annotated[
        str | None,
        typer.Argument(metavar="[CKPT]", help="A folder with a Valley checkpoint, or its name on the Hub."),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(help="Let an OpenAI-compatible server answer, such as `valley serve`.", metavar="URL"),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="The server's key.", envvar="VALLEY_API_KEY", metavar="KEY")
    ] = None,
    space: Annotated[
        Path | None, typer.Option(help="Write a Space for the Hub into this folder instead.", metavar="DIR")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is every one.")] = "localhost",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535, metavar="NUMBER")] = 7860,
    example: Annotated[
        list[Path] | None, typer.Option(help="A clip to offer as an example. May be given several times.")
    ] = None,
    max_new_tokens: MaxNewTokens = 256,
    device: Device = "auto",
    dtype: Dtype = "auto",
    attn_implementation: Attention = None,
    quantization: Annotated[
        Literal["bnb-4bit", "bnb-8bit"] | None, typer.Option(help="Load the weights in fewer bits.")
    ] = None,
) -> None:
    """Show clips and ask about them in the browser."""
    if (checkpoint is None) == (server is None):
        raise ValueError("Name a checkpoint or a --server, and not both: one of them answers.")
    if space is not None:
        if checkpoint is None:
            raise ValueError("A Space answers by itself: name the checkpoint, as it is called on the Hub.")
        from transformers_valley.demo import write_space

        write_space(space, checkpoint)
        typer.echo(f"Wrote {space}. Publish it: hf upload --repo-type space USER/NAME {space}")
        return
    if missing := [str(path) for path in example or [] if not path.is_file()]:
        raise FileNotFoundError(f"There is no file {missing[0]} to offer as an example.")
    from transformers_valley.demo import LocalModel, RemoteModel, build_demo
    from transformers_valley.demo.app import LAUNCH

    if server is not None:
        model = RemoteModel(server, api_key, max_tokens=max_new_tokens)
    else:
        from transformers_valley.checkpoint import find_checkpoint

        found = find_checkpoint(checkpoint)
        loaded = found.load_model(device, dtype, attn_implementation, quantization)
        model = LocalModel(loaded, found.load_processor(), found.name, max_new_tokens=max_new_tokens)
    offered = [[str(path.resolve()), "What happens in the clip?"] for path in example or []]
    page = build_demo(model, offered)
    _, url, _ = page.launch(server_name=host, server_port=port or None, prevent_thread_lock=True, **LAUNCH)
    typer.echo(f"Open {url} in a browser. Ctrl-C stops it.")
    page.block_thread()
