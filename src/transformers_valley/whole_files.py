# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Writes files and folders that appear whole or not at all, belong to one run, and replace nothing of a person.

Input: bytes, or a block that fills a folder. Output: the complete file or folder, or an error that explains it, and
nothing.
"""

import contextlib
import errno
import json
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


# safetensors, tokenizers and torch do not raise an OSError when the disk or a quota is full.
_DISK_FULL = re.compile(r"os error (28|122)\b|unexpected pos|iostream error|PytorchStreamWriter failed writing")


MOST_TOLD = 5  # settings that differ, in a message

# A line of generated Markdown.
GENERATED = (
    "<!-- Written by transformers_valley, which replaces this file as long as this line stands here. Delete the line "
    "when you write in the file yourself. -->"
)


class DiskFullError(OSError):
    """The disk, or the user's quota of it, is full."""


@contextlib.contextmanager
def disk_full_errors(
    what: str,
    place: str | os.PathLike,
    num_bytes: int | None = None,
    advice: str | Callable[[], str] = "Free up space, or choose another disk.",
) -> Iterator[None]:
    """
    Turn every error that means "the disk is full" into one that says so.

    Args:
        what (`str`):
            What is written inside the block, such as `"a checkpoint"`.
        place (`str`):
            The file or folder that it is written to.
        num_bytes (`int`, *optional*):
            Its size.
        advice (`str` or `Callable`, *optional*):
            What to do, or a function that tells it once the error has happened.

    Raises:
        DiskFullError: if the disk or a quota is full. Other errors, and one that is explained already, stay.
    """
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        if getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT) and not _DISK_FULL.search(str(error)):
            raise
        size = "" if num_bytes is None else f" of {num_bytes / 1e6:,.1f} MB"
        raise DiskFullError(
            f"Cannot write {what}{size} to '{place}': the disk or your quota is full ({error}). "
            f"{advice if isinstance(advice, str) else advice()}"
        ) from error


@contextlib.contextmanager
def whole_file(path: str | os.PathLike, num_bytes: int | None = None) -> Iterator[Path]:
    """
    A file to write, which becomes `path` at the end of the block and is removed after an error.

    Args:
        path (`str`):
            In a folder that is there. A file at `path` is replaced.
        num_bytes (`int`, *optional*):
            Its size, for the message about a full disk.

    Raises:
        DiskFullError: if the disk or a quota becomes full.
    """
    path = Path(path)
    part = path.with_name(f".incomplete-{uuid.uuid4().hex}")  # tempfile's files are readable by their owner only
    with disk_full_errors(f"'{path.name}'", path.parent, num_bytes):
        try:
            yield part
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def write_whole(path: str | os.PathLike, data: bytes) -> None:
    """Write a file and its parent folders. A reader, and a run that was killed, never see a part of it."""
    path = Path(path)
    with disk_full_errors(f"'{path.name}'", path.parent, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, len(data)) as part:
        part.write_bytes(data)


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike) -> Iterator[Path]:
    """
    A folder to write into, which becomes `path` at the end of the block and is removed after an error.

    It lies beside `path` until then and has its name. All files in it get the usual mode.

    Args:
        path (`str`):
            A new or empty folder. Missing parents are made; a link is followed.

    Raises:
        ValueError: before the block, if something that cannot be replaced is at `path`.
        DiskFullError: if the disk or a quota becomes full.
    """
    path = Path(os.path.realpath(os.path.expanduser(path)))
    is_empty = path.is_dir() and not os.path.ismount(path) and not any(path.iterdir())
    if os.path.lexists(path) and not is_empty:
        raise ValueError(f"Cannot write '{path}': it exists already. Choose a new or empty folder, not a mount point.")
    new_parents = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(prefix=".incomplete-", dir=path.parent, ignore_cleanup_errors=True) as work,
            disk_full_errors(f"'{path.name}'", path.parent),
        ):
            folder = Path(work, path.name)
            folder.mkdir()
            yield folder
            for file in filter(Path.is_file, folder.rglob("*")):
                file.chmod(folder.stat().st_mode & 0o666)  # safetensors' files are readable by their owner only
            os.rename(folder, path)
    except BaseException:
        for parent in new_parents:
            with contextlib.suppress(OSError):  # not empty: the folder was complete
                parent.rmdir()
        raise


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """
    The mapping in a JSON file.

    Raises:
        ValueError: naming the file, if it cannot be read or does not hold a mapping.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"Cannot read '{path}': {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"Cannot read '{path}': it does not hold a JSON object.")
    return content


def is_generated(text: str) -> bool:
    """Whether a text is a file that this library wrote, and in which no person says to have written."""
    return GENERATED in text.splitlines()


def claim_folder(
    file: str | os.PathLike, settings: Mapping[str, Any], ignored: Sequence[str] = (), deciding: Sequence[str] = ()
) -> None:
    """
    Keep a folder to one run: write its settings there, or compare with those that stand there.

    Args:
        file (path):
            Such as `run.json` in the folder, which is made.
        settings (`dict`):
            Of the run, as JSON can hold them.
        ignored (`list[str]`, *optional*):
            Keys at the top that may differ, such as the date.
        deciding (`list[str]`, *optional*):
            Settings such as `model.weights`: where one differs, the others of `model` are not told.

    Raises:
        ValueError: if the settings there differ; it names up to five that do, with both values.
    """
    file, settings = Path(file), json.loads(json.dumps(settings))
    if not file.exists():
        write_whole(file, (json.dumps(settings, indent=1) + "\n").encode())
        return
    found = read_json(file)
    before, now = (dict(_flatten({k: v for k, v in each.items() if k not in ignored})) for each in (found, settings))
    if differing := [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]:
        decided = [name for name in deciding if name in differing]
        groups = tuple(f"{name.rpartition('.')[0]}." for name in decided)
        names = decided + [name for name in differing if not name.startswith(groups)]
        told = [f"{name} was {_brief(before.get(name))}, now {_brief(now.get(name))}" for name in names[:MOST_TOLD]]
        told += [f"and {len(names) - MOST_TOLD} more"] if len(names) > MOST_TOLD else []
        raise ValueError(
            f"{file.parent} holds another run: {'; '.join(told)}. Choose another output, give the settings of "
            "that run, or delete the folder if it is not needed. Nothing was changed there."
        )


def _brief(value: Any) -> str:
    """A setting in a message: of a digest, its beginning."""
    return f"{value[:12]}…" if isinstance(value, str) and re.fullmatch("[0-9a-f]{32,64}", value) else repr(value)


def _flatten(value: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value


__all__ = [
    "GENERATED",
    "DiskFullError",
    "claim_folder",
    "disk_full_errors",
    "is_generated",
    "read_json",
    "whole_file",
    "whole_folder",
    "write_whole",
]
