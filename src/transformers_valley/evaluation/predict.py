# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The first stage: questions to `predictions.jsonl`, by a checkpoint on this machine or by a server.

Batches are cut from the list of all questions, whoever answers them and whatever is answered already: a run that was
killed, and one on several processes, give the answers of one process that ran through.
"""

import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from tqdm import tqdm
from transformers.utils import logging

from ..data.rows import CLIP_SETTINGS
from ..video_decoding import SamplingRule
from ..whole_files import claim_folder
from .asking import VIEWS
from .benchmark import BenchmarkData, Sample, visuals_in
from .models import Batch, CheckpointModel, ServedModel
from .records import RecordWriter, read_json, read_records, write_json, write_records


logger = logging.get_logger(__name__)
T, R = TypeVar("T"), TypeVar("R")

RUN, PREDICTIONS = "run.json", "predictions.jsonl"
_PART = "predictions.part-{}.jsonl"  # of one process
_DECIDING = ("model.weights", "model.served_as")  # another model differs in much more
GREEDY = {"do_sample": False, "num_beams": 1}
_WAIT = timedelta(days=7)  # processes wait for the slowest one; ten minutes, the default, are a few long clips


def predict(
    checkpoint: str | None,
    data: BenchmarkData,
    output: str | os.PathLike,
    *,
    views: Sequence[str] = ("clip",),
    cot: bool = False,
    shots: Sequence[Sample] = (),
    batch_size: int | None = None,
    generation: Mapping[str, Any] | None = None,
    sampling: Mapping[str, Any] | None = None,
    dtype: str = "auto",
    device: str = "auto",
    server: str | None = None,
    label: str | None = None,
) -> Path:
    """
    Answer the questions of a benchmark. What is answered already is not asked again; what failed is.

    Under `accelerate launch` every process answers its share, and the first one puts the answers together.

    Args:
        checkpoint (`str`):
            Folder or name of a Valley, or of an adapter of one. With a server, the name of the model there, or `None`
            if it serves one only.
        data ([`BenchmarkData`]):
            What [`load_benchmark`] gave.
        output (path):
            The folder of the run, which belongs to it alone.
        views (`list[str]`, *optional*, defaults to `("clip",)`):
            What is shown with the questions: `"clip"`, all as it should be; `"blind"`, nothing; `"shuffled"`, the
            frames in another order; `"one_frame"`, the middle one. A server can do the first two.
        cot (`bool`, *optional*, defaults to `False`):
            Chain of thought as in the paper: "you need to think step by step" at the end of the system prompt.
        shots (`list[Sample]`, *optional*):
            Examples before each question, with their clips and answers, as earlier turns of the chat.
        batch_size (`int`, *optional*, defaults to 8, or 64 with a server):
            Questions at once.
        generation (`dict`, *optional*):
            Fields of `GenerationConfig` over those of the checkpoint, such as `max_new_tokens`. Answers are greedy
            unless they say otherwise.
        sampling (`dict`, *optional*):
            Of clips, over the checkpoint's: `fps` or `num_frames`, `max_frames`.
        dtype (`str`, *optional*, defaults to `"auto"`), device (`str`, *optional*, defaults to `"auto"`):
            Of the weights, and where they run; by default on all GPUs, or on one for each process.
        server (`str`, *optional*):
            URL of an OpenAI-compatible server that answers instead, such as `valley serve` or vLLM.
        label (`str`, *optional*):
            Name of the model in tables; by default that of its folder.

    Returns:
        `Path` of `predictions.jsonl`: a record per view and question, in the order of the benchmark.

    Raises:
        ValueError: if the folder holds another run, or an argument makes no sense.
        EndpointError: if the server answers nobody.
    """
    output, batch_size = Path(output), batch_size or (64 if server else 8)
    generation, sampling = {**GREEDY, **(generation or {})}, dict(sampling or {})
    if generation.get("num_return_sequences", 1) != 1:
        raise ValueError("A question has one answer: leave num_return_sequences out.")
    # A rate that makes no sense would be an error of each clip.
    SamplingRule(**{name: value for name, value in sampling.items() if name in CLIP_SETTINGS})
    _check_shots(shots, data)
    if server and cot and any(sample.messages[0]["role"] != "system" for sample in data.samples):
        raise ValueError(
            "A chain of thought is asked for at the end of the system prompt, and a server does not tell its own: "
            "give each question a system message, or ask the checkpoint without a server."
        )
    state = PartialState(timeout=_WAIT)
    asking = {"shots": shots, "cot": cot, "generation": generation, "sampling": sampling}
    if server:
        model = ServedModel(checkpoint, server, output / "replies.sqlite", **asking)
    else:
        if device == "auto" and state.num_processes > 1:
            device = str(state.device)
        model = CheckpointModel(checkpoint, dtype=dtype, device=device, run=output, **asking)
    if unknown := [view for view in views if view not in model.views]:
        raise ValueError(f"There is no view {unknown[0]!r} here; there are {', '.join(model.views)}.")

    if state.is_main_process:
        settings = {
            "label": label or model.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "benchmark": data.describe(),
            "model": model.describe(),
            "cot": cot,
            "shots": [shot.id for shot in shots],
            "generation": generation,
            "sampling": sampling,
            "batch_size": batch_size,
            "versions": _versions(),
        }
        claim_folder(output / RUN, settings, ignored=("label", "created"), deciding=_DECIDING)
        if label:  # of an older run another one may have stood there
            write_json(output / RUN, {**read_json(output / RUN), "label": label})
    state.wait_for_everyone()

    answered = {(r["view"], r["id"]) for r in _records(output) if r["error"] is None}
    todo = [
        batch
        for number, batch in enumerate(_batches(data.samples, views, batch_size))
        if number % state.num_processes == state.process_index
        and any((view, sample.id) not in answered for view, sample in batch)
    ]
    if todo:
        model.load()
    progress = tqdm(total=sum(map(len, todo)), desc="predict", disable=not state.is_main_process)
    with progress, RecordWriter(output / _PART.format(state.process_index)) as part:
        for prepared in one_ahead(model.prepare, todo):
            missing = [(record, ready) for record, ready in prepared if (record["view"], record["id"]) not in answered]
            if any(ready is not None for _, ready in missing):
                model.answer(prepared)  # the whole batch: beside others, the last digits of an answer may be others
            part.write(record for record, _ in missing)
            progress.update(len(prepared))
    state.wait_for_everyone()
    if state.is_main_process:
        _join_parts(output, data)
    state.wait_for_everyone()
    return output / PREDICTIONS


def read_predictions(run: str | os.PathLike) -> list[dict[str, Any]]:
    """
    The records of a run, of one that is not finished as well.

    Raises:
        FileNotFoundError: if the folder holds none.
    """
    run = Path(run)
    if not (run / RUN).exists():
        missing = RUN if run.is_dir() else "such folder"
        raise FileNotFoundError(f"{run} holds no run of valley evaluate: there is no {missing}.")
    return list({(record["view"], record["id"]): record for record in _records(run)}.values())


def _records(output: Path) -> Iterator[dict[str, Any]]:
    """All records; where a question was asked again, the answer comes last."""
    yield from read_records(output / PREDICTIONS)
    parts = [record for part in sorted(output.glob(_PART.format("*"))) for record in read_records(part)]
    yield from sorted(parts, key=lambda record: record["error"] is None)


def _join_parts(output: Path, data: BenchmarkData) -> None:
    """One file in the order of the benchmark, in which each question stands once."""
    found = {(record["view"], record["id"]): record for record in _records(output)}
    ordered = [found[view, s.id] for view in VIEWS for s in data.samples if (view, s.id) in found]
    write_records(output / PREDICTIONS, ordered)
    for part in output.glob(_PART.format("*")):
        part.unlink()
    if failed := [record for record in ordered if record["error"] is not None]:
        first = failed[0]
        logger.warning(
            f"{len(failed)} of {len(ordered)} questions were not answered, {first['id']} for one: {first['error']} "
            "They are counted in every table. The same command asks them again."
        )


def _batches(samples: Sequence[Sample], views: Sequence[str], batch_size: int) -> Iterator[Batch]:
    for view in dict.fromkeys(views):
        for start in range(0, len(samples), batch_size):
            yield [(view, sample) for sample in samples[start : start + batch_size]]


def one_ahead(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Results of a function, the next of which is made in another thread while one is used."""
    with ThreadPoolExecutor(1) as pool:
        coming = None
        for item in items:
            ready, coming = coming, pool.submit(function, item)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()


def _check_shots(shots: Sequence[Sample], data: BenchmarkData) -> None:
    """An example that is asked as well would tell its own answer."""
    asked = {sample.id for sample in data.samples}
    clips = {block["path"] for sample in data.samples for block in visuals_in(sample.messages)}
    for shot in shots:
        if not shot.answers:
            raise ValueError(f"The example {shot.id!r} has no answer.")
        if shot.id in asked or any(block["path"] in clips for block in visuals_in(shot.messages)):
            raise ValueError(f"The example {shot.id!r} is one of the questions, or about a clip of one: take others.")


def _versions() -> dict[str, str]:
    names = ("transformers-valley", "transformers", "torch", "av")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


__all__ = ["GREEDY", "PREDICTIONS", "RUN", "one_ahead", "predict", "read_predictions"]
