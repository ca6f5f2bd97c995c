# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What a frozen vision tower makes of clips and images, kept on disk: it is the same in every epoch and every run.

    DIR/SETTINGS/CO/NTENT.safetensors    "features" (frames, tokens, D) of one visual, read through a memory map
    DIR/files/STAMP                      hash of a file's bytes, so that it is read once: STAMP is of path, size,
                                         inode and times

SETTINGS stands for the tower, its weights, the processor and the precision, CONTENT for the bytes of the file and the
part of it that is shown, or of a packed row for the bytes of its pictures. Both are hashes, so that what changes is
redone. Files appear whole, by renaming, so that several processes and runs can share a folder.
"""

import hashlib
import itertools
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import reduce
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.integrations import is_deepspeed_zero3_enabled

from ..data.decode import messages_of, visuals_of
from ..data.frames import read_clip, read_picture
from ..data.media import is_address
from ..modeling_valley import ValleyForConditionalGeneration, ValleyModel
from ..processing_valley import ValleyProcessor, iter_visuals, output_size
from ..video_decoding import SampledVideo
from ..video_sources import VideoDecodeError, load_image
from ..whole_files import write_whole


def cache_vision_features(
    folder: str | os.PathLike, model: ValleyForConditionalGeneration, processor: ValleyProcessor, sets: list, args
) -> "FeatureCache":
    """
    The features of all clips and images of a run. Those that are not on the disk are made first, by all processes
    together.

    Args:
        folder (`str`), model ([`ValleyForConditionalGeneration`]), processor ([`ValleyProcessor`]):
            See [`FeatureCache`].
        sets (`list[datasets.Dataset]`):
            Rows of [`load_rows`].
        args (`trl.SFTConfig`):
            Of the run.

    Raises:
        ValueError: if features cannot be kept, see [`FeatureCache`].
        OSError: if the disk is full.
    """
    autocast = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    cache = FeatureCache(folder, model.model, processor, autocast)
    counts = cache.fill(sets, args.device, args.dataloader_num_workers, (args.process_index, args.world_size))
    # Also keeps a process from reading what another has not made yet.
    made, unread = reduce(torch.tensor(counts, device=args.device), "sum").tolist()
    if args.process_index == 0:
        print(f"{cache.folder}: features of {made} clips and images were added, {unread} could not be read.")
    return cache


class FeatureCache:
    """
    The features of visuals on disk, for [`ValleyDataCollator`], which then decodes nothing.

    Args:
        folder (`str`):
            Where they are kept; made if need be.
        model ([`ValleyModel`]):
            With a frozen vision tower.
        processor ([`ValleyProcessor`]):
            Of the model.
        autocast (`torch.dtype`, *optional*):
            Precision of the training, where it is not that of the weights.

    Raises:
        ValueError: if the vision tower is trained, ZeRO-3 spreads its weights, or the processor's pictures are not of
            its size.
        OSError: if the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        model: ValleyModel,
        processor: ValleyProcessor,
        autocast: torch.dtype | None = None,
    ):
        if any(parameter.requires_grad for parameter in model.vision_tower.parameters()):
            raise ValueError(
                "The vision tower is trained, so its features change in every step and cannot be kept: leave out "
                "cache_vision_features, or freeze the tower."
            )
        if is_deepspeed_zero3_enabled():
            raise ValueError(
                "ZeRO-3 spreads the vision tower, and features cannot be kept: leave out cache_vision_features, or "
                "launch with examples/accelerate/zero2.yaml."
            )
        self.size = (model.config.vision_config.image_size,) * 2
        for part in (processor.image_processor, processor.video_processor):
            if (size := output_size(part)) != self.size:
                raise ValueError(
                    f"Features can be kept of pictures in the vision tower's own size, {self.size}, and "
                    f"{type(part).__name__} gives {size}: leave out cache_vision_features."
                )
        self.model, self.processor, self.autocast = model, processor, autocast
        self.root = Path(folder)
        self.folder = self.root / self._hash_settings()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise OSError(error.errno, f"cache_vision_features={folder}: no features can be kept there") from error

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"model": None}  # a worker that is not forked only reads

    def fill(
        self,
        sets: list[Dataset],
        device: torch.device | str = "cpu",
        num_workers: int = 0,
        part: tuple[int, int] = (0, 1),
    ) -> tuple[int, int]:
        """
        Make what is missing.

        Args:
            sets (`list[datasets.Dataset]`):
                Rows of [`load_rows`].
            device (`torch.device`, *optional*, defaults to `"cpu"`):
                Where the vision tower goes, and stays.
            num_workers (`int`, *optional*, defaults to 0):
                Processes that decode.
            part (`tuple[int, int]`, *optional*, defaults to `(0, 1)`):
                Number of this process, and of all: each takes its share.

        Returns:
            `tuple[int, int]`: how many visuals were added, and how many could not be read. The latter are bad samples
            of the training, if it comes to them.

        Raises:
            ValueError: if a visual is not a file.
            OSError: if the disk is full.
        """
        places: dict[tuple, tuple[int, int, int]] = {}  # where each visual is shown first
        for number, rows in enumerate(sets):
            for index, row in enumerate(rows):
                for position, visual in enumerate(_sources_of(row)):
                    places.setdefault(visual.key, (number, index, position))
        decoded = DataLoader(
            _Visuals(self, sets, list(places.values())[part[0] :: part[1]]),
            batch_size=None,
            num_workers=num_workers,
            generator=torch.Generator(),  # its own: the training's random numbers stay those of a run without
        )
        self.model.vision_tower.to(device).eval()
        made = unread = 0
        waiting: list[tuple[Path, torch.Tensor]] = []
        for result in tqdm(decoded, desc="Vision features", disable=part[0] != 0):
            if isinstance(result, VideoDecodeError):
                unread += 1
            elif result is not None:
                waiting.append(result)
                made += 1
            if sum(len(pixels) for _, pixels in waiting) >= self.model.config.vision_chunk_size:
                self._make(waiting, device)
                waiting = []
        self._make(waiting, device)
        return made, unread

    def _make(self, visuals: list[tuple[Path, torch.Tensor]], device: torch.device | str) -> None:
        if not visuals:
            return
        frames = torch.cat([pixels for _, pixels in visuals]).to(device)
        with torch.no_grad(), torch.autocast(frames.device.type, self.autocast, self.autocast is not None):
            features = self.model.encode_frames(frames).cpu()
        parts = features.split([len(pixels) for _, pixels in visuals])
        for (path, _), part in zip(visuals, parts, strict=True):
            write_whole(path, save({"features": part.contiguous()}))

    def read_row(self, row: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
        """
        The messages of a row with pictures that have a size and no content, and the features of what they stand for.

        Returns:
            `tuple`: messages; `"image"` and `"video"`, if there are any: (frames, tokens, D).

        Raises:
            VideoDecodeError: if a visual cannot be read.
            ValueError: if it can be, and its features are missing all the same, or corrupt.
        """
        visuals = list(_sources_of(row))
        try:
            features = [_read(self.path_of(visual)) for visual in visuals]
        except (FileNotFoundError, VideoDecodeError) as error:
            for visual in visuals:
                self.pixels_of(visual)  # says what is wrong with a visual that cannot be read
            raise ValueError(
                f"The features of row {row.get('id')!r} of {row.get('source')!r} are not in {self.folder}, and they "
                "were there, or made, before the first step. All machines must see the same folder, and nothing may "
                "be deleted in it meanwhile. Start again: what is missing is made."
            ) from error
        found: dict[str, list[torch.Tensor]] = {}
        for visual, part in zip(visuals, features, strict=True):
            found.setdefault(visual.modality, []).append(part)
        blanks = [self._blank(visual.modality, len(part)) for visual, part in zip(visuals, features, strict=True)]
        return messages_of(row, blanks), {modality: torch.cat(parts) for modality, parts in found.items()}

    def _blank(self, modality: str, num_frames: int) -> Any:
        """What the processor counts placeholders by: on the meta device, so that nothing is computed."""
        frames = torch.empty(num_frames, 3, *self.size, dtype=torch.uint8, device="meta")
        return frames[0] if modality == "image" else SampledVideo(frames, None)

    def pixels_of(self, visual: "_Source") -> torch.Tensor:
        """What the model sees of a visual: (frames, 3, H, W) float32."""
        if visual.modality == "image":
            picture = read_picture(*visual.packed, visual.path) if visual.packed else load_image(visual.path)
            return self.processor.image_processor(picture, return_tensors="pt")["pixel_values"]
        if visual.packed is not None:
            sampled = read_clip({"frames": visual.packed, "times": None}, visual.path)
        else:
            sampled = self.processor.video_processor.sample({"video": visual.path, **dict(visual.settings)})
        return self.processor.video_processor(sampled, return_tensors="pt")["pixel_values_videos"][0]

    def path_of(self, visual: "_Source") -> Path:
        """Where the features of a visual are, or will be. Raises `VideoDecodeError` if it cannot be read."""
        content = self._hash_content(visual.path) if visual.packed is None else visual.key[1]
        name = _hash(f"{visual.modality} {content} {visual.settings}")
        return self.folder / name[:2] / f"{name[2:]}.safetensors"

    def _hash_settings(self) -> str:
        processors = self.processor.image_processor, self.processor.video_processor
        described = [part.to_dict() for part in (self.model.config.vision_config, *processors)]
        for part in described:
            for name in ("_name_or_path", "auto_map", "transformers_version"):
                part.pop(name, None)
        described += [self.model.vision_feature_index, str(self.autocast)]
        digest = hashlib.blake2b(json.dumps(described, sort_keys=True, default=str).encode(), digest_size=16)
        for name, weight in self.model.vision_tower.state_dict().items():
            digest.update(f"{name} {weight.dtype}".encode())
            digest.update(weight.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def _hash_content(self, source: str) -> str:
        if source.startswith("data:"):
            return _hash(source)
        try:
            if os.path.isdir(source):  # a folder of frames
                names = sorted(os.listdir(source))
                return _hash("\n".join(f"{name} {self._hash_content(os.path.join(source, name))}" for name in names))
            status = os.stat(source)
            seen = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
            stamp = self.root / "files" / _hash(f"{os.path.abspath(source)} {seen}")
            if stamp.exists() and re.fullmatch("[0-9a-f]{32}", found := stamp.read_text()):
                return found
            digest = hashlib.blake2b(digest_size=16)
            with open(source, "rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
        except OSError as error:
            raise VideoDecodeError(source, str(error)) from error
        write_whole(stamp, digest.hexdigest().encode())
        return digest.hexdigest()


class _Source(NamedTuple):
    """A clip or image of a row: what its features are known by."""

    modality: str
    path: str
    settings: tuple = ()
    packed: tuple[bytes, ...] | None = None  # its pictures, in a packed row

    @property
    def key(self) -> tuple:
        """What is equal where features are."""
        if self.packed is None:
            return self.modality, self.path, self.settings
        digest = hashlib.blake2b(digest_size=16)
        for picture in self.packed:
            digest.update(hashlib.blake2b(picture, digest_size=16).digest())
        return self.modality, digest.hexdigest(), ()


class _Visuals(torch.utils.data.Dataset):
    """Of each visual: where its features go, and its pixels; the error if it cannot be read; `None` if it is there."""

    def __init__(self, cache: FeatureCache, sets: list[Dataset], places: list[tuple[int, int, int]]):
        self.cache, self.sets, self.places = cache, sets, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Path, torch.Tensor] | VideoDecodeError | None:
        number, row, position = self.places[index]
        visual = next(itertools.islice(_sources_of(self.sets[number][row]), position, None))
        try:
            path = self.cache.path_of(visual)
            return None if path.exists() else (path, self.cache.pixels_of(visual))
        except VideoDecodeError as error:
            return error


def _sources_of(row: dict[str, Any]) -> Iterator[_Source]:
    """The visuals of a row, in their order."""
    if row.get("clips") is not None:
        clips, pictures, images = iter(row["clips"]), iter(row["pictures"]), iter(row.get("images") or ())
        for visual in iter_visuals(row["messages"]):
            if visual.modality == "video":
                yield _Source("video", visual.source["video"], packed=tuple(next(clips)["frames"]))
            else:
                path = next(images, None) if visual.source is None else visual.source
                yield _Source("image", str(path), packed=(next(pictures),))
        return
    for visual in visuals_of(row):
        settings = dict(visual.source) if visual.modality == "video" else {"video": visual.source}
        source = settings.pop("video")
        # Base64 is its own content; what another address shows may change without its name.
        if not isinstance(source, str) or (is_address(source) and not source.startswith("data:")):
            raise ValueError(
                f"Row {row.get('id')!r} of {row.get('source')!r} shows {str(source)[:200]!r}, and features are kept "
                "of files only. Download it, pack the rows, or leave out cache_vision_features."
            )
        yield _Source(visual.modality, source, tuple(sorted(settings.items())))


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _read(path: Path) -> torch.Tensor:
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor("features")
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged ({error}): delete it and start again: it will be computed again."
        ) from error


__all__ = ["FeatureCache", "cache_vision_features"]
