# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`valley data`: from captions and clips to rows that training reads."""

import json
import os
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .options import SETTINGS, Fps, NumFrames, check_folder, examples, needs_extra


app = typer.Typer(help="Look after training data.", **SETTINGS)

Files = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[FILE ...]",
        help="JSON, JSONL and CSV files of training rows, folders of packed ones, and mixtures of them in YAML.",
        show_default=False,
    ),
]
DataSet = Annotated[
    list[str] | None,
    typer.Option(
        help="A data set of `datasets` beside the files, or in their place: a name on the Hub, also as NAME@REVISION, "
        "or a folder. May be repeated.",
        metavar="NAME",
    ),
]
Config = Annotated[str | None, typer.Option(help="Configuration of the data sets.", metavar="NAME")]
Split = Annotated[str, typer.Option(help="Split of the data sets.", metavar="NAME")]
MediaRoot = Annotated[
    list[str] | None,
    typer.Option(
        help="Folder that relative paths of clips and images start from; NAME=FOLDER for those that begin with NAME, "
        "may be repeated.",
        metavar="[NAME=]FOLDER",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(help="The checkpoint to train: how it samples clips, and its tokenizer.", metavar="CKPT"),
]
ServerModel = Annotated[
    str | None,
    typer.Option(help="The server's model.", metavar="NAME", show_default="the only one it serves"),
]
Concurrency = Annotated[int, typer.Option(help="Requests at once.", metavar="NUMBER", min=1)]
MaxLength = Annotated[
    int | None, typer.Option(help="Count rows with more tokens than this; needs --model.", metavar="NUMBER")
]


@app.command(
    epilog=examples(
        "valley data check rows.jsonl --media-root clips",
        "valley data check rows.jsonl --model path/to/valley --max-length 2048 --full -o bad.jsonl",
        "valley data check --dataset owner/name --split validation",
    )
)
def check(
    files: Files = None,
    dataset: DataSet = None,
    config: Config = None,
    split: Split = "train",
    media_root: MediaRoot = None,
    model: Model = None,
    max_length: MaxLength = None,
    full: Annotated[
        bool, typer.Option("--full/--quick", help="Decode what training decodes, or a frame of each clip.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the bad rows to this JSONL file.", metavar="FILE")
    ] = None,
    num_proc: Annotated[
        int | None, typer.Option(help="Processes.", metavar="NUMBER", show_default="one for each core", min=1)
    ] = None,
) -> None:
    """Find rows that training cannot read. Ends with code 1 if there are any."""
    with needs_extra("data"):
        from transformers_valley.data.check import check_data

    check_folder(output)
    sources = sources_of(files, dataset, config, split)
    report = check_data(sources, folders_of(media_root), processor_of(model), max_length, full, num_proc)
    for error in report.bad:
        typer.echo(str(error))
    typer.echo(report.table())
    if count := report.preferences.total():
        typer.echo(f"{count} of these are preferences, from which DPO learns, and `valley train` does not.")
    if hint := report.hint():
        typer.echo(hint)
    if output is not None:
        entries = [{name: getattr(error, name) for name in ("id", "source", "file", "reason")} for error in report.bad]
        output.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))
    if report.bad:
        raise typer.Exit(1)


@app.command(
    epilog=examples(
        "valley data stats rows.jsonl",
        "valley data stats examples/mixtures/stage2.yaml --model path/to/valley --max-length 2048 --plot stats.png",
    )
)
def stats(
    files: Files = None,
    dataset: DataSet = None,
    config: Config = None,
    split: Split = "train",
    media_root: MediaRoot = None,
    model: Model = None,
    max_length: MaxLength = None,
    plot: Annotated[Path | None, typer.Option(help="Draw them into this picture.", metavar="FILE")] = None,
) -> None:
    """Count rows, clips, images, turns, words and, with --model, tokens of each source. No clip is decoded."""
    with needs_extra("data"):
        from transformers_valley.data import load_rows
        from transformers_valley.data.statistics import count_sources, describe_sources, draw_sources

    check_folder(plot)
    if max_length is not None and model is None:
        raise ValueError("Whether a row is longer than --max-length, its tokenizer knows: give --model, too.")
    sources = sources_of(files, dataset, config, split)
    rows = load_rows(sources, folders_of(media_root))
    found = count_sources(rows, processor_of(model))
    typer.echo(describe_sources(found, max_length))
    if plot is not None:
        draw_sources(found, plot, max_length)


@app.command(
    epilog=examples(
        "valley data show rows.jsonl --media-root clips -o rows.html",
        "valley data show packed -o rows.html --num-rows 200",
    )
)
def show(
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.", metavar="FILE")],
    files: Files = None,
    dataset: DataSet = None,
    config: Config = None,
    split: Split = "train",
    media_root: MediaRoot = None,
    model: Annotated[
        str | None, typer.Option(help="The checkpoint to train: how it samples clips.", metavar="CKPT")
    ] = None,
    num_rows: Annotated[int, typer.Option(help="Rows on it, spread over all.", metavar="NUMBER", min=1)] = 100,
) -> None:
    """Write a page to look at in a browser: rows as training sees them, with frames, times and a filter."""
    with needs_extra("data"):
        from transformers_valley.data import load_rows
        from transformers_valley.data.show import write_page
    from transformers_valley.video_processing_valley import ValleyVideoProcessor

    check_folder(output)
    processor = ValleyVideoProcessor() if model is None else processor_of(model).video_processor
    sources = sources_of(files, dataset, config, split)
    count = write_page(load_rows(sources, folders_of(media_root)), output, processor, num_rows)
    typer.echo(f"{output}: {count} rows")


@app.command(
    epilog=examples(
        "valley data export rows.jsonl -o llava.json",
        "valley data export VideoInstruct100K.json --media-root activitynet -o llava.json",
    )
)
def export(
    context: typer.Context,
    output: Annotated[Path, typer.Option("--output", "-o", help="The JSON file to write.", metavar="FILE")],
    files: Files = None,
    dataset: DataSet = None,
    config: Config = None,
    split: Split = "train",
    media_root: MediaRoot = None,
) -> None:
    """Write rows of any format as records of LLaVA, which other tools read. What they cannot say is an error."""
    with needs_extra("data"):
        from transformers_valley.data import load_rows
        from transformers_valley.data.card import count_rows, write_data_card
        from transformers_valley.data.export import write_llava

    check_folder(output)
    folders = folders_of(media_root)
    root = (folders or {}).get("")
    sources = sources_of(files, dataset, config, split)
    rows = load_rows(sources, folders)
    number = write_llava(rows, output, root and os.path.abspath(root))
    counts = count_rows(rows.select_columns(["source", "messages"]))
    write_data_card(output, counts, command=command_of(context))
    typer.echo(f"{output}: {number} records")


@app.command(
    epilog=examples(
        "valley data pack examples/mixtures/stage2.yaml -o packed --model path/to/valley",
        "valley data pack rows.jsonl -o packed --fps 1 --shard $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT",
    )
)
def pack(
    context: typer.Context,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder to write, or to complete.", metavar="FOLDER")
    ],
    files: Files = None,
    dataset: DataSet = None,
    config: Config = None,
    split: Split = "train",
    media_root: MediaRoot = None,
    model: Annotated[
        str | None, typer.Option(help="The checkpoint to train: how it samples and resizes clips.", metavar="CKPT")
    ] = None,
    num_frames: NumFrames = None,
    fps: Fps = None,
    format: Annotated[Literal["jpeg", "webp"], typer.Option(help="Of the frames.")] = "jpeg",
    quality: Annotated[int, typer.Option(help="Of the frames, from 1 to 100.", metavar="NUMBER")] = 90,
    num_shards: Annotated[
        int | None, typer.Option(help="Files to write.", metavar="NUMBER", show_default="one for 1000 rows", min=1)
    ] = None,
    shard: Annotated[
        str,
        typer.Option(help="Make a part of the files: number from 0 / count, as in a Slurm array.", metavar="I/N"),
    ] = "0/1",
    workers: Annotated[
        int | None, typer.Option(help="Processes.", metavar="NUMBER", show_default="one for each core", min=1)
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out rows that cannot be read, and list them.")
    ] = False,
) -> None:
    """Decode each clip once, into files that training reads many times faster. Goes on where it was stopped."""
    with needs_extra("data"):
        from transformers_valley.data import load_rows
        from transformers_valley.data.card import write_packed_card
        from transformers_valley.data.frames import PackSettings
        from transformers_valley.data.packing import pack as pack_rows
    from transformers_valley.video_processing_valley import ValleyVideoProcessor

    try:
        index, count = map(int, shard.split("/"))
    except ValueError as error:
        raise ValueError(f"--shard is {shard!r}, expected I/N, such as 0/16.") from error
    processor = ValleyVideoProcessor() if model is None else processor_of(model).video_processor
    settings = PackSettings.of(processor, fps=fps, num_frames=num_frames, format=format, quality=quality)
    sources = sources_of(files, dataset, config, split)
    rows = load_rows(sources, folders_of(media_root))
    made, bad = pack_rows(rows, output, settings, num_shards, (index, count), workers, skip_bad)
    write_packed_card(output, command_of(context))
    for entry in bad:
        typer.echo(f"left out: row {entry['id']!r} of {entry['source']!r}: {entry['file'] or ''} {entry['reason']}")
    typer.echo(f"{output}: {made} files were made of part {shard}, {len(bad)} of {len(rows)} rows are left out")


@app.command(
    name="filter",
    epilog=examples(
        "valley data filter results_2M_train.csv -o valley_702k.jsonl --workers 8",
        "valley data filter captions.jsonl -o chosen.jsonl --most 50",
    ),
)
def filter_captions(
    context: typer.Context,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="CSV, JSON or JSONL of captions: WebVid's, or `video`, `caption`.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The JSONL file of rows to write.", metavar="FILE")],
    least: Annotated[int, typer.Option(help="Skip noun phrases of fewer captions.", metavar="NUMBER")] = 3,
    most: Annotated[int, typer.Option(help="Captions drawn for a more frequent phrase.", metavar="NUMBER")] = 100,
    seed: Annotated[int, typer.Option(help="Of what is drawn.", metavar="NUMBER")] = 42,
    language_model: Annotated[
        str, typer.Option(help="The pipeline of spaCy that finds noun phrases.", metavar="NAME")
    ] = "en_core_web_sm",
    workers: Annotated[int, typer.Option(help="Processes, of about 0.7 GB each.", metavar="NUMBER", min=1)] = 1,
) -> None:
    """Choose captions as the paper chose Valley-702k: balanced by noun phrases, with a question to each."""
    with needs_extra("build"):
        from transformers_valley.data.build import phrases
        from transformers_valley.data.build.valley_702k import select_captions
        from transformers_valley.data.card import write_rows_card
        from transformers_valley.data.files import check_files

    check_files([file])  # before spaCy is loaded
    check_folder(output)
    found = select_captions(file, output, phrases.NounPhrases(language_model, workers), least, most, seed)
    settings = {"captions": found.captions, "noun phrases": found.phrases, "chosen": found.chosen}
    write_rows_card(output, file, command=command_of(context), settings=settings)
    if found.unread:
        typer.echo(f"{found.unread} records are not captions. The first: {found.first_error}")
    typer.echo(
        f"{output}: {found.chosen} of {found.captions} captions. Of {found.phrases} noun phrases {found.rare} are too "
        f"rare, and {found.frequent} have more than {most} captions."
    )


@app.command(
    epilog=examples(
        "valley data build captions.csv -o instruct.jsonl --server http://localhost:8000/v1",
        "valley data build captions.csv -o instruct.jsonl --server-model gpt-4o --limit 100",
    )
)
def build(
    context: typer.Context,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="CSV, JSON or JSONL of `video`, `caption` and perhaps `title`.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The JSONL file of rows to write.", metavar="FILE")],
    server: Annotated[
        str | None,
        typer.Option(help="An OpenAI-compatible server that writes.", metavar="URL", show_default="OpenAI's"),
    ] = None,
    server_model: ServerModel = None,
    limit: Annotated[int | None, typer.Option(help="Captions, to try it.", metavar="NUMBER", min=1)] = None,
    attempts: Annotated[int, typer.Option(help="For each caption.", metavar="NUMBER", min=1)] = 2,
    temperature: Annotated[
        float | None, typer.Option(help="Of the model.", metavar="NUMBER", show_default="the server's")
    ] = None,
    concurrency: Concurrency = 16,
    seed: Annotated[int, typer.Option(help="Of which caption becomes what.", metavar="NUMBER")] = 42,
) -> None:
    """Let a language model write conversations, reasoning and descriptions, as the paper made Valley-Instruct."""
    with needs_extra("build"):
        from transformers_valley.data.build.valley_instruct import build_instructions
        from transformers_valley.data.card import write_rows_card
        from transformers_valley.data.files import check_files
    from transformers_valley.endpoint import Endpoint

    check_files([file])  # before the server is asked
    check_folder(output)
    with needs_extra("build"):
        endpoint = Endpoint(server_model, server, cache=f"{output}.replies.sqlite", concurrency=concurrency)
    request = {} if temperature is None else {"temperature": temperature}
    built = build_instructions(file, output, endpoint, limit, attempts, seed, **request)
    settings = {"written by": endpoint.model, **built.rows, "rejected": built.rejected.total()}
    note = "A language model wrote them, which read titles and captions and saw no clip."
    write_rows_card(output, file, command=command_of(context), settings=settings, notes=[note])
    for kind in built.rows | built.rejected:
        typer.echo(f"{kind}: {built.rows[kind]} rows, {built.rejected[kind]} rejected")
    for reason, count in built.reasons.most_common(5):
        typer.echo(f"  {count} times: {reason}")
    if built.unread:
        typer.echo(f"{built.unread} records are not captions")
    totals = endpoint.totals
    typer.echo(
        f"{output}: {built.rows.total()} rows, {built.rejected.total()} rejected; {totals.sent} requests were sent, "
        f"{totals.cached} known, {totals.prompt_tokens + totals.completion_tokens} tokens"
    )


@app.command(
    epilog=examples(
        "valley data judge instruct.jsonl --captions captions.csv -o clean.jsonl --server http://localhost:8000/v1",
    )
)
def judge(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Rows that were written from captions.")],
    captions: Annotated[str, typer.Option(help="The captions, as for `valley data build`.", metavar="FILE")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The JSONL file of clean rows.", metavar="FILE")],
    server: Annotated[
        str | None,
        typer.Option(help="An OpenAI-compatible server that judges.", metavar="URL", show_default="OpenAI's"),
    ] = None,
    server_model: ServerModel = None,
    concurrency: Concurrency = 16,
) -> None:
    """Take out rows whose answers speak of objects that the caption does not support, as a judge sees it."""
    with needs_extra("build"):
        from transformers_valley.data.build.hallucinations import check_hallucinations
        from transformers_valley.data.card import write_rows_card
        from transformers_valley.data.files import check_files
    from transformers_valley.endpoint import Endpoint

    check_files([file, captions])  # before the server is asked
    check_folder(output)
    with needs_extra("build"):
        endpoint = Endpoint(server_model, server, cache=f"{output}.replies.sqlite", concurrency=concurrency)
    found = check_hallucinations(file, captions, output, endpoint)
    settings = {"judge": endpoint.model, "clean": found.clean, "marked": found.marked, "undecided": found.undecided}
    write_rows_card(output, file, command=command_of(context), settings=settings)
    for words, count in found.objects.most_common(10):
        typer.echo(f"  {count} times: {words}")
    typer.echo(
        f"{output}: {found.marked} of {found.marked + found.clean} rows speak of objects that their captions do not "
        f"support, {found.undecided} undecided; these are in {output}.marked.jsonl"
    )


@app.command(
    epilog=examples(
        "valley data pair clean.jsonl -o pairs.jsonl",
        "valley data pair clean.jsonl -o pairs.jsonl --no-shorten",
    )
)
def pair(
    judged: Annotated[
        str, typer.Argument(metavar="FILE", help="What `valley data judge` wrote, beside FILE.marked.jsonl.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The JSONL file of pairs to write.", metavar="FILE")],
    shorten: Annotated[
        bool, typer.Option(help="Where no answer is clean, take the marked one without what was marked.")
    ] = True,
) -> None:
    """Make preferences of what `valley data judge` found: an answer that the caption supports over one it does not."""
    with needs_extra("data"):
        from transformers_valley.data.build.pairs import write_pairs

    check_folder(output)
    found = write_pairs(judged, output, shorten)
    typer.echo(
        f"{output}: {found.clean + found.shortened} pairs, of which {found.shortened} have the marked answer without "
        f"what was marked; no pair of {found.empty} rows without a better answer, and {found.equal} that say the same"
    )


@app.command(
    epilog=examples(
        "valley data push packed owner/name --private",
        "valley data push instruct.jsonl owner/name --license cc-by-4.0",
    )
)
def push(
    place: Annotated[
        Path, typer.Argument(metavar="PLACE", help="A folder of packed rows, or a file of rows, with its card.")
    ],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Of the data set on the Hub, OWNER/NAME.")],
    private: Annotated[bool, typer.Option("--private", help="Make it for its owner only.")] = False,
    license: Annotated[
        str | None,
        typer.Option(help="Of the texts, such as cc-by-4.0.", metavar="NAME", show_default="what the card says"),
    ] = None,
    share_media: Annotated[
        bool,
        typer.Option(
            "--share-media", help="Pass frames and images on, which the card does not allow: you have the right to."
        ),
    ] = False,
) -> None:
    """Put packed rows, or a file of rows, on the Hub, with the card that tells where they come from."""
    with needs_extra("data"):
        from transformers_valley.data.card import push_data

    typer.echo(push_data(place, repo, private, license, share_media))


# --- what the commands share ---


_NOT_TOLD = {"shard", "workers", "concurrency", "server"}  # they change nothing in the result, or tell of a machine
_PATHS = {"files", "file", "dataset", "output", "media_root", "model", "language_model", "captions"}


def command_of(context: typer.Context) -> str:
    """The command that is run, as a card tells it: of a path the last part."""
    from transformers_valley.hub.model_card import short_name

    words = ["valley", "data", context.info_name]
    for param in sorted(context.command.params, key=lambda param: param.param_type_name):  # arguments first
        source, value = context.get_parameter_source(param.name), context.params.get(param.name)
        if source is None or source.name != "COMMANDLINE" or param.name in _NOT_TOLD:
            continue
        for entry in value if isinstance(value, list | tuple) else [value]:
            name = [param.opts[0]] if param.param_type_name == "option" else []
            before, path, after = "", str(entry), ""
            if param.name == "media_root" and "=" in path:
                before, equals, path = path.partition("=")
                before += equals
            if param.name == "dataset" and not os.path.isdir(path):
                path, at, revision = path.partition("@")
                after = at + revision
            text = f"{before}{short_name(path)}{after}" if param.name in _PATHS else path
            words += [*name, *([] if entry is True else [text])]
    return shlex.join(words)


def sources_of(files: list[str] | None, dataset: list[str] | None, config: str | None, split: str) -> list[Any]:
    """The files and data sets that a command was given."""
    from transformers_valley.data.mixtures import name_data_sets

    if not files and not dataset:
        raise ValueError("There is nothing to read: give files of rows, or --dataset NAME.")
    return [*(files or ()), *name_data_sets(dataset or (), config, split)]


def folders_of(media_root: list[str] | None) -> dict[str, str] | None:
    """The folders that `--media-root` names."""
    from transformers_valley.data.media import parse_media

    return parse_media(media_root) if media_root else None


def processor_of(model: str | None) -> Any:
    """The processor of a checkpoint, if one is named."""
    from transformers_valley.checkpoint import find_checkpoint

    return None if model is None else find_checkpoint(model).load_processor()
