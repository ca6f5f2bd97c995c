# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Which checkpoint a run resumes from.

Input: an output folder and the settings of a run. Output: the last complete checkpoint, or an error. `Trainer` resumes
exactly if a checkpoint is complete and the run is the same, and checks neither.
"""

import json
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Generator
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


logger = logging.getLogger(__name__)

_STATE = "trainer_state.json"
_UNFINISHED = "checkpoint-is-incomplete.txt"  # transformers keeps it while it writes after a SIGTERM


def find_checkpoint(training_args, run: dict[str, dict[str, Any]]) -> str | None:
    """
    The checkpoint that a run resumes from, as its `resume_from_checkpoint` asks: `None` starts a run, `"true"` takes
    the last complete one of `output_dir`, `"auto"` the same or none where there is none yet, a path this one.

    The main process decides for all, so `output_dir` has to be on a disk that all share.

    Raises:
        ValueError: if there is no such checkpoint, it is incomplete, an incompatible run wrote it, or `output_dir`
            holds later ones. All processes raise it, also where the main process alone met an error.
    """
    found, error = None, None
    if training_args.process_index == 0:
        try:
            found = _choose(training_args.output_dir, training_args.resume_from_checkpoint, run)
        except Exception as reason:  # of whatever kind: the others wait below
            error = str(reason) if isinstance(reason, ValueError) else f"{training_args.output_dir}: {reason!r}"
    found, error = broadcast_object_list([found, error])
    if error:
        raise ValueError(error)
    return found


def check_checkpoint(folder: str | os.PathLike) -> str | None:
    """Why a `checkpoint-N` is not complete, naming the file, or `None` if it is."""
    folder = Path(folder)
    if not folder.is_dir():
        return "there is no such folder"
    if (folder / _UNFINISHED).exists():
        return f"{_UNFINISHED} says that it was being written"
    try:
        record = _read_record(folder)
    except FileNotFoundError:
        return f"{_STATE}, which is written last, is missing"
    except ValueError:
        return f"{_STATE}, which is written last, is truncated"
    if record is None:
        return f"{_STATE} has no list of its files: another program wrote it"
    for name, size in record["files"].items():
        if not (folder / name).exists():
            return f"{name} is missing"
        if (found := (folder / name).stat().st_size) != size:
            return f"{name} has {found} bytes instead of {size}"
    # Every process writes its own at its own pace: when the list was made, some were not there yet.
    for name in record["random_states"]:
        if not (folder / name).exists():
            return f"{name} is missing"
        if not zipfile.is_zipfile(folder / name):
            return f"{name} is truncated"
    return None


class CheckpointKeeper(TrainerCallback, ExportableState):
    """
    Writes what [`describe_run`] gives and a list of all files into `trainer_state.json` of every checkpoint, and keeps
    the last `limit` complete ones. `Trainer` would count incomplete ones, too.
    """

    def __init__(self, run: dict[str, dict[str, Any]], limit: int | None = None):
        self.run, self.limit = run, limit
        self.folder: Callable[[], Path] | None = None
        self.random_states: list[str] = []

    def state(self) -> dict:
        """`Trainer` asks for it right before it writes `trainer_state.json`, the last of a checkpoint's files."""
        files = {} if self.folder is None else _list_files(self.folder())
        record = {"files": files, "random_states": self.random_states}
        return {"args": {"run": self.run, "limit": self.limit}, "attributes": {}, "record": record}

    def on_train_begin(self, args, state, control, **kwargs):
        self.folder = lambda: Path(args.output_dir, f"checkpoint-{state.global_step}")
        ranks = [f"_{rank}" for rank in range(args.world_size)] if args.world_size > 1 else [""]
        self.random_states = [] if args.save_only_model else [f"rng_state{rank}.pth" for rank in ranks]
        # After a resume it is as the earlier run spelt its folder, which may have moved since.
        best = state.best_model_checkpoint
        if best and not os.path.exists(best) and _best(args, state).exists():
            state.best_model_checkpoint = str(_best(args, state))

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        if args.train_sampling_strategy == "group_by_length":
            # This sampler draws from the global generator, which dropout moves: another order after a resume. As the
            # other samplers, let it depend on seed and epoch alone.
            batches = train_dataloader.batch_sampler
            batches = getattr(batches, "batch_sampler", batches)  # of all processes
            batches.sampler.generator = Generator().manual_seed(args.seed + int(state.epoch))

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_save and state.is_world_process_zero:
            # A corrupt checkpoint that is written again must not count as complete before it is.
            (self.folder() / _STATE).unlink(missing_ok=True)

    on_epoch_end = on_step_end

    def on_save(self, args, state, control, **kwargs):
        PartialState().wait_for_everyone()  # each process writes files of its own
        if not self.limit or not state.is_world_process_zero or check_checkpoint(self.folder()):
            return
        folders = [folder for folder in _list_checkpoints(args.output_dir) if not _is_foreign(folder)]
        kept = [folder for folder in folders if not check_checkpoint(folder)][: self.limit]
        kept += [_best(args, state)] if state.best_model_checkpoint else []
        for folder in folders:
            if folder not in kept and _step(folder) < state.global_step:
                shutil.rmtree(folder, ignore_errors=True)


def _best(args, state) -> Path:
    """The best checkpoint, in the output folder as this run spells it."""
    return Path(args.output_dir, Path(state.best_model_checkpoint).name)


def read_step(checkpoint: str | os.PathLike) -> int:
    """How many steps a checkpoint has been trained."""
    return _read_state(checkpoint)["global_step"]


def is_finished(checkpoint: str | os.PathLike, run: dict[str, dict[str, Any]]) -> bool:
    """Whether a checkpoint is of the last step of a run that is to be as long as before."""
    state, before = _read_state(checkpoint), _read_record(checkpoint)["run"]["other"]
    is_as_long = all(before[name] == run["other"][name] for name in ("max_steps", "num_train_epochs"))
    return is_as_long and state["global_step"] >= state["max_steps"]


def advise_on_full_disk(output_dir: str | os.PathLike) -> str:
    """What to do when a checkpoint could not be written."""
    complete = [str(folder) for folder in _list_checkpoints(output_dir) if not check_checkpoint(folder)]
    return (
        f"The last complete checkpoint is {complete[0] if complete else 'none'}. Free up space, then start the same "
        "command with --resume_from_checkpoint auto."
    )


def _choose(output_dir: str, resume: str | bool | None, run: dict) -> str | None:
    """The checkpoint to resume from, `None` to start."""
    asked = str(resume).lower()
    flaws = {folder: check_checkpoint(folder) for folder in _list_checkpoints(output_dir)}
    complete = [folder for folder, flaw in flaws.items() if not flaw]
    if asked in ("none", "false"):
        found = None
    elif asked in ("true", "auto"):
        found = complete[0] if complete else None
        for folder in flaws if found is None else list(flaws)[: list(flaws).index(found)]:
            logger.warning(f"{folder} is skipped: {flaws[folder]}.")
        if found is None and asked == "true":
            raise ValueError(
                f"resume_from_checkpoint is true, but {output_dir} has no complete checkpoint"
                + "".join(f"; {folder.name}: {flaw}" for folder, flaw in flaws.items())
                + ". Say `auto` to start where there is none."
            )
    else:
        found = Path(resume)
        if flaw := check_checkpoint(found):
            raise ValueError(f"{found} is not complete: {flaw}. Say `auto` for the last complete checkpoint.")
    step = 0 if found is None else read_step(found)
    if later := [folder for folder in flaws if (folder in complete or _is_foreign(folder)) and _step(folder) > step]:
        raise ValueError(
            f"{output_dir} holds {later[0].name} of {'a run' if later[0] in complete else 'another program'} already, "
            f"and this run would start at step {step}. Resume with --resume_from_checkpoint auto, choose another "
            "output_dir, or delete what is there."
        )
    if found is not None:
        _check_same(found, run)
        print(f"Resuming from {found}.")
    elif asked == "auto":
        print(f"{output_dir} has no complete checkpoint: the run starts.")
    return None if found is None else str(found)


def _check_same(folder: Path, run: dict) -> None:
    """Refuse a checkpoint of an incompatible run, log other changes."""
    record = _read_record(folder)
    if not record["random_states"]:
        raise ValueError(
            f"{folder} holds weights only (save_only_model): the optimizer is not in it. Start a new run from it with "
            "model_name_or_path."
        )
    before = record["run"]["same"] | record["run"]["other"]  # what it did not record yet is taken for unchanged
    changes = {}
    for group, settings in run.items():
        changed = [name for name, value in settings.items() if before.get(name, value) != value]
        changes[group] = "; ".join(f"{name} was {before[name]}, is {settings[name]}" for name in changed)
    if changes["same"]:
        raise ValueError(
            f"An incompatible run wrote {folder}: {changes['same']}. Set these back, or start a new run in another "
            "output_dir, with model_name_or_path naming this checkpoint if you like."
        )
    if changes["other"]:
        logger.warning(f"This run differs from the one that wrote {folder}: {changes['other']}.")


def _list_checkpoints(output_dir: str | os.PathLike) -> list[Path]:
    """The last first."""
    paths = [path for path in Path(output_dir).glob("checkpoint-*") if path.is_dir()]
    return sorted((path for path in paths if re.fullmatch(r"checkpoint-\d+", path.name)), key=_step, reverse=True)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("checkpoint-"))


def _list_files(folder: Path) -> dict[str, int]:
    """Bytes of the files in a folder that is about to be complete."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    return {name: size for name, size in sizes.items() if not name.startswith(("rng_state", _STATE, _UNFINISHED))}


def _read_state(folder: str | os.PathLike) -> dict[str, Any]:
    return json.loads(Path(folder, _STATE).read_text(encoding="utf-8"))


def _read_record(folder: str | os.PathLike) -> dict[str, Any] | None:
    """What [`CheckpointKeeper`] wrote: `files`, `random_states` and `run`."""
    entry = (_read_state(folder).get("stateful_callbacks") or {}).get(CheckpointKeeper.__name__)
    return entry and entry["record"] | {"run": entry["args"]["run"]}


def _is_foreign(folder: Path) -> bool:
    """Whether another program wrote it: nothing is known of what is in it, and it is left alone."""
    try:
        return _read_record(folder) is None
    except (FileNotFoundError, ValueError):
        return False


__all__ = [
    "CheckpointKeeper",
    "advise_on_full_disk",
    "check_checkpoint",
    "find_checkpoint",
    "is_finished",
    "read_step",
]
