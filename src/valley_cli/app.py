# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The program `valley`: its commands in the order of the help, and the one line that an error becomes."""

import importlib.metadata
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from . import ask, chat, convert, data, demo, env, evaluate, frames, serve, train
from .options import SETTINGS, as_typed, examples


__all__ = ["app"]

_ORDER = "ask chat frames demo serve train evaluate data convert env"
_DOCS = "https://github.com/transformers-valley/transformers-valley/blob/main/docs"


class _Program(TyperGroup):
    """Ends with one line on stderr where a clip, a value, a file, a package or memory is at fault."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for name in _ORDER.split() if name in self.commands]

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            if ctx.params["debug"] or not _is_expected(error):
                raise
            said = as_typed(str(error), self.commands.get(ctx.invoked_subcommand, self))
            line = f"Error: {' '.join(said.split()) or type(error).__name__}"
            if not _is_ours(error):
                line += " (`valley --debug …` shows where this comes from)"
            typer.echo(line, err=True)
            raise typer.Exit(1) from error


def _is_expected(error: Exception) -> bool:
    """Whether its message is enough for a reader. Most bugs are of other kinds, and show as a traceback."""
    # torch's error of a full GPU, and jinja2's of a chat template, by name: neither need be loaded.
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, ValueError | OSError | ImportError | MemoryError) or bool(
        names & {"OutOfMemoryError", "TemplateError"}
    )


def _is_ours(error: Exception) -> bool:
    """Whether this package raised it, and so worded it for its reader."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals["__name__"].partition(".")[0] in ("transformers_valley", "valley_cli")


app = typer.Typer(
    cls=_Program,
    help="Valley, a video LLM: ask it about clips, serve it, train it.",
    epilog=examples('valley ask path/to/valley clip.mp4 "What happens?"', "valley ask --help") + f"\n\nDocs: {_DOCS}",
    **SETTINGS,
)
app.command(epilog=ask.EPILOG)(ask.ask)
app.command(epilog=chat.EPILOG)(chat.chat)
app.command(epilog=frames.EPILOG)(frames.frames)
app.command(epilog=demo.EPILOG)(demo.demo)
app.command(epilog=serve.EPILOG)(serve.serve)
app.add_typer(train.app, name="train")
app.command(epilog=evaluate.EPILOG)(evaluate.evaluate)
app.add_typer(data.app, name="data")
app.command(epilog=convert.EPILOG)(convert.convert)
app.command(epilog=env.EPILOG)(env.env)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"transformers-valley {importlib.metadata.version('transformers-valley')}")
        raise typer.Exit()


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error comes from, not only what it says.")
    ] = False,
) -> None:
    pass
