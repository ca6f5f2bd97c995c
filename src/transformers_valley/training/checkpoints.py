# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Going on with a run that stopped: which checkpoint is complete and of this run, and what is kept beside it.

`Trainer` goes on exactly where a checkpoint was written, if the checkpoint is whole and the run is the same. It looks
for neither: what is missing or does not fit is dropped without a word, the optimizer included.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset, Features, IterableDataset, Value
from safetensors import SafetensorError
from torch import Generator, Tensor
from torch.nn import Parameter
from torch.utils.data import get_worker_info
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.utils import logging


logger = logging.get_logger(__name__)

# What a resumed run cannot change, and why. All else that differs is told and used.
REFUSED = {
    "state": "its optimizer's state would be lost",
    "adapter": "its adapter was trained on that base model, in that form",
    "rows": "the run would go on with other rows or labels than those that come next",
    "loss": "the run would train for something else",
    "rates": "a checkpoint keeps these, and a new value would do nothing",
}
# Where names of SFTConfig and of ValleyDataCollator are recorded; those that are not here are told, or ignored.
_GROUPS = {
    "state": ("optim", "optim_args", "optim_target_modules"),
    "rows": (
        *("seed", "data_seed", "train_sampling_strategy", "dataloader_drop_last", "accelerator_config"),
        *("max_length", "on_long_row", "padding_free", "assistant_only_loss", "completion_only_loss"),
    ),
    "loss": ("loss_type", "label_smoothing_factor"),
    "rates": ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
}
# Where a run writes, what it reports and evaluates, and how fast it reads: nothing that is trained depends on these.
_IGNORED = re.compile(
    "log|disable_tqdm|report_to|run_name|project|trackio|hub|push|output_dir|save_(?!only_model)|enable_jit|resume|"
    "restore|do_|eval|per_device_eval|prediction_loss|include_|batch_eval|metric|greater|load_best|dataloader_|"
    "dataset_num_proc|debug|skip_memory|local_rank|ddp_timeout"
)
# The files that a resume reads. Those with the state of generators are looked at one by one.
_READ = re.compile(
    r"((adapter_|pytorch_)?model[^/]*\.(safetensors|bin)(\.index\.json)?|(optimizer|scheduler|scaler)\.pt|latest|"
    r"global_step\d+/.*)$"
)
# transformers leaves it in a folder while it writes there after a SIGTERM (`enable_jit_checkpoint`).
_UNFINISHED = "checkpoint-is-incomplete.txt"
# safetensors gives the number in words; torch fails where a write came out short, and says that alone.
_NO_SPACE = re.compile(r"os error (28|122)\b|unexpected pos|iostream error|PytorchStreamWriter failed writing")
_SKIPPED = "skipped"  # the column that marks rows of a stream which were trained already


def find_checkpoint(trainer) -> str | None:
    """
    The checkpoint that a run goes on from, as `resume_from_checkpoint` of its arguments asks.

    - `None`: none. The run begins.
    - `"true"`: the last complete one of `output_dir`.
    - `"auto"`: the same, or none where there is none yet: what a job that is queued again needs.
    - a path: this one.

    The main process decides for all, so `output_dir` has to be on a disk that all share. From here on the trainer's
    checkpoints carry a list of their files and a record of the run, and `save_total_limit` counts complete ones
    only. A stream is repeated without end (`max_steps` ends the run), and the rows that it has to pass over are not
    decoded.

    Args:
        trainer (`trl.SFTTrainer`):
            The trainer, before `train`.

    Returns:
        `str` for `trainer.train(resume_from_checkpoint=…)`, or `None`.

    Raises:
        ValueError: if there is no such checkpoint, it is incomplete, the run differs from the one that wrote it so
            that it could not be gone on with, or `output_dir` holds later ones. All processes raise it, also where
            the main process alone met an error.
    """
    args = trainer.args
    settings = describe_run(trainer)
    trainer.add_callback(CheckpointKeeper(settings, args.save_total_limit))
    args.save_total_limit = None  # Trainer counts folders that a kill left half written
    found, error = None, None
    if trainer.is_world_process_zero():
        try:
            found = _choose(args.output_dir, args.resume_from_checkpoint, settings)
        except Exception as reason:  # of whatever kind: the others wait below
            error = str(reason) if isinstance(reason, ValueError) else f"{args.output_dir}: {reason!r}"
    found, error = broadcast_object_list([found, error])
    if error:
        raise ValueError(error)
    stream = isinstance(trainer.train_dataset, IterableDataset)
    if stream:
        # On resuming, Trainer takes a stream for one that has not yet come to its end.
        trainer.train_dataset = trainer.train_dataset.repeat(None)
    if found:
        state = _read(found)
        if stream and not args.ignore_data_skip:
            _pass_over_rows(trainer, state["global_step"] * args.gradient_accumulation_steps)
        if state["global_step"] >= state["max_steps"] and _is_as_long(state, settings):
            # The run was killed after its last step. Trainer would make one more where that is not an epoch's last.
            if stream:
                trainer.train_dataset = trainer.train_dataset.take(0)
            else:
                args.max_steps, args.num_train_epochs = -1, 0
    return found


def find_flaw(folder: str | os.PathLike) -> str | None:
    """
    Why a checkpoint is not complete, or `None` if it is.

    Args:
        folder (`str`):
            A `checkpoint-N` of a run with [`CheckpointKeeper`].

    Returns:
        `str` that names the file, or `None`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return "there is no such folder"
    try:
        state = _read(folder)
    except FileNotFoundError:
        return f"{TRAINER_STATE_NAME}, which is written last, is missing"
    except ValueError:
        return f"{TRAINER_STATE_NAME}, which is written last, is cut off"
    if (folder / _UNFINISHED).exists():
        return f"{_UNFINISHED} says that it was being written"
    if (record := _record(state)) is None:
        return f"{TRAINER_STATE_NAME} has no list of its files: it was not written by examples/sft.py"
    for name, size in record["files"].items():
        if not (folder / name).exists():
            return f"{name} is missing"
        if (found := (folder / name).stat().st_size) != size:
            return f"{name} has {found} bytes instead of {size}"
    if record["settings"]["run"]["save_only_model"]:
        return None
    processes = record["settings"]["run"]["processes"]
    names = [f"rng_state_{rank}.pth" for rank in range(processes)] if processes > 1 else ["rng_state.pth"]
    for name in names:
        # Every process writes its own, at its own pace: when the list was made some were not there yet.
        if not (folder / name).exists():
            return f"{name} is missing"
        if not zipfile.is_zipfile(folder / name):
            return f"{name} is cut off"
    return None


class CheckpointKeeper(TrainerCallback, ExportableState):
    """
    Makes a run's checkpoints fit to go on from, and keeps the last complete ones.

    Args:
        settings (`dict`):
            What [`describe_run`] gives. Stands in `trainer_state.json` of every checkpoint, beside the list of files.
        limit (`int`, *optional*):
            How many complete checkpoints are kept; `None` for all.
    """

    def __init__(self, settings: dict[str, dict[str, Any]], limit: int | None = None):
        self.settings, self.limit = settings, limit
        self.folder = None

    def state(self) -> dict:
        """Trainer asks for it right before it writes `trainer_state.json`, the last of a checkpoint's files."""
        files = {} if self.folder is None else _list_read(self.folder())
        return {"args": {"settings": self.settings, "limit": self.limit}, "attributes": {}, "files": files}

    def on_train_begin(self, args, state, control, **kwargs):
        self.folder = lambda: Path(args.output_dir, f"checkpoint-{state.global_step}")

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        batches = train_dataloader.batch_sampler
        batches = getattr(batches, "batch_sampler", batches)  # of all processes
        if isinstance(sampler := getattr(batches, "sampler", None), LengthGroupedSampler):
            # It draws from the global generator, which dropout moves: another order in every process and after a
            # resume. As transformers' other samplers, let it depend on seed and epoch alone.
            sampler.generator = Generator().manual_seed(args.seed + int(state.epoch))

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_save and state.is_world_process_zero:
            # A flawed checkpoint that is written anew must not count as complete before it is.
            (self.folder() / TRAINER_STATE_NAME).unlink(missing_ok=True)

    on_epoch_end = on_step_end

    def on_save(self, args, state, control, **kwargs):
        PartialState().wait_for_everyone()  # each process writes files of its own
        if not self.limit or not state.is_world_process_zero or find_flaw(self.folder()):
            return
        folders = [folder for folder in _list_checkpoints(args.output_dir) if not _is_foreign(folder)]
        kept = [folder for folder in folders if not find_flaw(folder)][: self.limit]
        kept += [Path(state.best_model_checkpoint)] if state.best_model_checkpoint else []
        for folder in folders:
            if folder not in kept and _step(folder) < state.global_step:
                shutil.rmtree(folder, ignore_errors=True)


def describe_run(trainer) -> dict[str, dict[str, Any]]:
    """What decides how a run goes on: groups of settings, those of `REFUSED` and `"run"`, each name to value."""
    args, dataset, model, processor = trainer.args, trainer.train_dataset, trainer.model, trainer.processing_class
    stream = isinstance(dataset, IterableDataset)
    values = args.to_dict() | _plain(trainer.data_collator)
    groups = {group: {name: values.pop(name) for name in names if name in values} for group, names in _GROUPS.items()}

    trained = {name: _shape(weight) for name, weight in sorted(model.named_parameters()) if weight.requires_grad}
    groups["state"] |= {
        "backend": _name_backend(trainer),
        "trained weights": f"{len(trained)}, digest {_hash(trained)}",
    }

    share = {  # how a step's rows are dealt to processes and passes
        "processes": args.world_size,
        "per_device_train_batch_size": args.per_device_train_batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
    }
    if stream or args.train_sampling_strategy not in ("random", "sequential"):
        groups["rows"] |= share  # their order depends on it
    if stream:
        groups["rows"]["dataloader_num_workers"] = args.dataloader_num_workers
    groups["rows"] |= {
        "rows in a step": math.prod(share.values()),
        "rows": "a stream" if stream else len(dataset),
        "rows of an epoch, filled up for all processes,": None if stream else _count_rows(len(dataset), args),
        "digest of the rows": _digest(dataset),
    }
    for name in ("image_processor", "video_processor"):
        if part := getattr(processor, name, None):
            groups["rows"] |= {f"{name} {key}": value for key, value in part.to_dict().items() if key != "auto_map"}
    groups["rows"] |= _plain(processor) | {
        "digest of the chat template": _hash(processor.chat_template),
        "digest of the vocabulary": _hash(sorted(getattr(processor, "tokenizer", processor).get_vocab().items())),
    }
    groups["rows"].pop("chat_template", None)

    groups["run"] = share | {name: value for name, value in values.items() if not _IGNORED.match(name)}
    groups["run"] |= {
        "model": model.config.name_or_path,
        "dtype": model.config.dtype,
        "attn_implementation": model.config._attn_implementation,
        "attn_implementation of the language model": model.config.text_config._attn_implementation,
    }
    if peft_config := getattr(model, "peft_config", None):
        adapter = peft_config["default"].to_dict()
        groups["run"]["lora_dropout"] = adapter.pop("lora_dropout", None)
        written = ("peft_version", "inference_mode", "base_model_name_or_path", "auto_mapping")
        groups["adapter"] = {
            "base model": model.config.name_or_path,
            "digest of the base model": _hash(
                [
                    (name, _shape(weight), _sample(weight))
                    for name, weight in model.named_parameters()
                    if not weight.requires_grad
                ]
            ),
            # By the names of the recipe: lora_r, lora_target_modules, …
            **{f"lora_{name.removeprefix('lora_')}": value for name, value in adapter.items() if name not in written},
        }
    return json.loads(json.dumps(groups, default=lambda value: sorted(value) if type(value) is set else str(value)))


@contextlib.contextmanager
def explain_full_disk(output_dir: str | os.PathLike) -> Iterator[None]:
    """
    Say that the disk is full, and what to do, where the libraries that write checkpoints do not.

    Args:
        output_dir (`str`):
            Of the run.

    Raises:
        OSError: in place of what is raised inside because of a full disk or quota.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT) and not _NO_SPACE.search(str(error)):
            raise
        complete = [str(folder) for folder in _list_checkpoints(output_dir) if not find_flaw(folder)]
        raise OSError(
            errno.ENOSPC,
            f"A checkpoint could not be written to {output_dir}: the disk or a quota seems to be full ({error}). The "
            f"last complete checkpoint is {complete[0] if complete else 'none'}. Make room, then start the same "
            "command with --resume_from_checkpoint auto.",
        ) from error


def _choose(output_dir: str, resume: str | bool | None, settings: dict) -> str | None:
    """The checkpoint to go on from, `None` to begin."""
    asked = str(resume).lower()
    flaws = {folder: find_flaw(folder) for folder in _list_checkpoints(output_dir)}
    complete = [folder for folder, flaw in flaws.items() if not flaw]
    if asked in ("none", "false"):
        found = None
    elif asked in ("true", "auto"):
        found = complete[0] if complete else None
        for folder in flaws if found is None else list(flaws)[: list(flaws).index(found)]:
            logger.warning(f"{folder} is passed over: {flaws[folder]}.")
        if found is None and asked == "true":
            raise ValueError(
                f"resume_from_checkpoint is true, but {output_dir} has no complete checkpoint"
                + "".join(f"; {folder.name}: {flaw}" for folder, flaw in flaws.items())
                + ". Say `auto` to begin where there is none."
            )
    else:
        found = Path(resume)
        if not found.is_dir():
            raise ValueError(f"resume_from_checkpoint is {resume}: there is no such folder. Say `auto` for the last.")
        if flaw := find_flaw(found):
            raise ValueError(f"{found} is not complete: {flaw}. Say `auto` for the last complete one.")
    step = 0 if found is None else _read(found)["global_step"]
    foreign = [folder for folder in flaws if _is_foreign(folder)]
    if later := [folder for folder in flaws if folder in complete + foreign and _step(folder) > step]:
        ours = later[0] in complete
        raise ValueError(
            f"{output_dir} holds {later[0].name} of a run {'' if ours else 'of another script '}already, and this one "
            f"would begin at step {step}. {'Go on with --resume_from_checkpoint auto, give' if ours else 'Give'} "
            "another output_dir, or delete what is there."
        )
    if found is not None:
        _compare(found, settings)
        print(f"Going on from {found}.")
    elif asked == "auto":
        print(f"{output_dir} has no complete checkpoint: the run begins.")
    return None if found is None else str(found)


def _is_as_long(state: dict, settings: dict) -> bool:
    before = _record(state)["settings"]["run"]
    return all(before[name] == settings["run"][name] for name in ("max_steps", "num_train_epochs"))


def _compare(folder: Path, settings: dict) -> None:
    """Refuses a checkpoint of another run."""
    before = _record(_read(folder))["settings"]
    if before["run"]["save_only_model"]:
        raise ValueError(
            f"{folder} holds weights only (save_only_model): the optimizer is not in it. Begin a new run from it with "
            "model_name_or_path."
        )
    changes = {}
    for group, values in settings.items():
        old = before.get(group, {})  # what it did not record yet is taken for unchanged
        lines = [f"{name} was {old[name]}, is {new}" for name, new in values.items() if old.get(name, new) != new]
        if lines:
            changes[group] = "; ".join(lines)
    if refused := [f"{changes[group]} ({reason})" for group, reason in REFUSED.items() if group in changes]:
        told = f" Also changed, which alone is allowed: {changes['run']}." if "run" in changes else ""
        raise ValueError(
            f"{folder} is of another run: {'. '.join(refused)}. Set it back, or begin a new run in another output_dir."
            + told
        )
    if changes:
        logger.warning(f"This run differs from the one that wrote {folder}: {changes['run']}.")


def _pass_over_rows(trainer, batches: int) -> None:
    """
    Mark the rows of a stream's first batches of each process, so that the collator makes nothing of them.

    Accelerate passes over these batches only when they are made. A worker knows the place of its batches among those
    of all workers as long as none has come to its end; after that it takes them for later ones and makes some.
    """
    args, dataset = trainer.args, trainer.train_dataset
    # Accelerate gives each process shards of its own, or deals rows where there are too few.
    dealt = dataset.num_shards < args.world_size
    places = {
        "batches": batches,
        "rows": args.per_device_train_batch_size * (args.world_size if dealt else 1),
        "shards": dataset.num_shards if dealt else math.ceil(dataset.num_shards / args.world_size),
    }
    features = Features(dataset.features | {_SKIPPED: Value("bool")})
    trainer.train_dataset = dataset.map(_mark, with_indices=True, features=features, fn_kwargs=places)
    trainer.data_collator = partial(_collate_unmarked, collator=trainer.data_collator)


def _mark(row: dict, index: int, batches: int, rows: int, shards: int) -> dict:
    worker = get_worker_info()
    workers = 1 if worker is None else min(worker.num_workers, shards)
    place = index // rows * workers + (0 if worker is None else worker.id)
    return {_SKIPPED: place < batches}


def _collate_unmarked(rows: list[dict], collator: Callable[[list[dict]], dict]) -> dict:
    return {} if rows[0].pop(_SKIPPED, False) else collator(rows)


def _name_backend(trainer) -> str:
    """Optimizer states of different backends are not interchangeable."""
    args = trainer.args
    weights = "adapters" if hasattr(trainer.model, "peft_config") else "whole weights"
    if trainer.is_deepspeed_enabled:
        stage = trainer.accelerator.state.deepspeed_plugin.zero_stage
        # Its shards are of one number of processes and one precision.
        precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "float32"
        return f"DeepSpeed ZeRO-{stage} on {args.world_size} processes in {precision}, {weights}"
    return f"plain PyTorch, {weights}"


def _count_rows(rows: int, args) -> int:
    """
    Rows that all processes train together in an epoch of a data set of so many.

    Accelerate gives every process as many batches as the others, and as full: it fills up with rows from the epoch's
    start, or leaves the last ones out (`dataloader_drop_last`). Where this count is the same, so are the rows.
    """
    processes, batch = args.world_size, args.per_device_train_batch_size
    if args.dataloader_drop_last:
        return rows // batch // processes * processes * batch
    return rows if processes == 1 else math.ceil(rows / (processes * batch)) * processes * batch


def _plain(thing: Any) -> dict[str, Any]:
    """Its attributes that are words, numbers or switches."""
    values = getattr(thing, "__dict__", {}).items()
    return {name: value for name, value in values if name[0] != "_" and isinstance(value, str | int | float | None)}


def _shape(weight: Tensor) -> list[int]:
    return list(getattr(weight, "ds_shape", weight.shape))  # ZeRO-3's name for that of the whole


def _sample(weight: Tensor) -> list[float]:
    """A few values, as the coarsest `dtype` reads them. None of quantised weights, nor of those that ZeRO-3 spread."""
    return weight.detach().flatten()[:8].bfloat16().tolist() if type(weight) is Parameter else []


def _digest(dataset: Dataset | IterableDataset) -> str:
    """Of the words, file names and seconds of some hundred rows, not of the folders that the files are in."""
    if isinstance(dataset, IterableDataset):
        rows = dataset.take(64)
    else:
        rows = dataset.select(range(0, len(dataset), max(1, len(dataset) // 512)))
    return _hash(
        [
            (
                [os.path.basename(image) for image in row["images"]],
                [
                    [block["text"], block["path"] and os.path.basename(block["path"]), block["start"], block["end"]]
                    for message in row["messages"]
                    for block in message["content"]
                ],
            )
            for row in rows
        ]
    )


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def _list_checkpoints(output_dir: str | os.PathLike) -> list[Path]:
    """The last first."""
    paths = [path for path in Path(output_dir).glob("checkpoint-*") if path.is_dir()]
    return sorted((path for path in paths if re.fullmatch(r"checkpoint-\d+", path.name)), key=_step, reverse=True)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("checkpoint-"))


def _list_read(folder: Path) -> dict[str, int]:
    """Bytes of the files below a folder that a resume reads, and that do not change any more."""
    names = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return {name: size for name, size in sorted(names.items()) if _READ.match(name)}


def _read(folder: str | os.PathLike) -> dict[str, Any]:
    return json.loads(Path(folder, TRAINER_STATE_NAME).read_text(encoding="utf-8"))


def _record(state: dict[str, Any]) -> dict[str, Any] | None:
    """What [`CheckpointKeeper`] wrote."""
    entry = (state.get("stateful_callbacks") or {}).get(CheckpointKeeper.__name__)
    return entry and {"settings": entry["args"]["settings"], "files": entry["files"]}


def _is_foreign(folder: Path) -> bool:
    """Whether another script wrote it: nothing is known of what is in it, and it is left alone."""
    try:
        return _record(_read(folder)) is None
    except (FileNotFoundError, ValueError):
        return False


__all__ = ["CheckpointKeeper", "describe_run", "explain_full_disk", "find_checkpoint", "find_flaw"]
