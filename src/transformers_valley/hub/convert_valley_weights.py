# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`convert`: a checkpoint of the Valley code of 2023 (RupertLuo/Valley) to one that transformers loads.

A folder or Hub id goes in: whole weights, the difference to a LLaMA, or a LoRA adapter. A folder with config, weights,
tokenizer, processor, generation settings, code and model card comes out. Names and shapes are checked before weights
are read, these are then streamed file by file, and the folder appears only when it is complete.
"""

import contextlib
import dataclasses
import errno
import importlib.util
import json
import math
import os
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import (
    create_repo,
    hf_hub_download,
    snapshot_download,
    split_torch_state_dict_into_shards,
    upload_folder,
)
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import normalizers
from transformers import (
    AutoConfig,
    ChineseCLIPVisionConfig,
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.dynamic_module_utils import custom_object_save
from transformers.image_utils import PILImageResampling

from ..configuration_valley import SPECIAL_TOKENS, ValleyConfig, add_special_tokens
from ..modeling_valley import ValleyForConditionalGeneration, fill_token_rows
from ..processing_valley import ValleyProcessor
from ..video_processing_valley import ValleyVideoProcessor
from .model_card import PAPER_DATA, VERSIONS, short_name, write_model_card


# How the names of tensors begin in 2023 and how they begin here. The first that fits counts, in both directions.
_NAMES = (
    ("lm_head.", "lm_head."),
    ("model.embed_tokens.", "model.language_model.embed_tokens."),
    ("model.layers.", "model.language_model.layers."),
    ("model.norm.", "model.language_model.norm."),
    ("model.vision_tower.vision_model.", "model.vision_tower."),
    ("model.mm_projector.", "model.multi_modal_projector."),
    ("model.pooling_layer.", "model.temporal_module.importance."),
    ("model.position_matrix", "model.temporal_module.position_table"),
    ("model.transformer_delta_encoder.layers.0.self_attn.in_proj_", "model.temporal_module.in_proj_"),
    ("model.transformer_delta_encoder.layers.0.self_attn.out_proj.", "model.temporal_module.out_proj."),
    ("model.transformer_delta_encoder.layers.0.", "model.temporal_module."),
)
_LANGUAGE_MODEL = tuple(old for old, _ in _NAMES[:4])  # what a difference is a difference in; the rest is whole
# Tensors that carry nothing, and why.
_IGNORED = {
    r"model\.transforemr_adding_layer\.": "an unused copy of the temporal transformer",
    r".*\brotary_emb\.inv_freq$": "computed from the config",
    r".*\bembeddings\.position_ids$": "a range of numbers",
}
_VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
_EMBEDDINGS, _HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"

_CHAT_TEMPLATE_FILE = Path(__file__).with_name("original_chat_template.jinja")
STOP_STRING = "###"

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_DTYPE_NAMES = ("auto", "float32", "float16", "bfloat16")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
_WHOLE = ("model", "pytorch_model")  # how the names of files of weights begin
_ADAPTER, _REPLACED = "adapter_model", "non_lora_trainables"  # of peft, and beside it of LLaVA's training
# What training leaves beside an adapter that is no weights.
_LEFTOVERS = r"(training_args|optimizer|scheduler|sampler)(_\d+)?\.bin"
# What LoRA of peft can do beyond W + scale * B @ A. A checkpoint that uses it would be merged wrongly.
_UNSUPPORTED_LORA = (
    "use_dora",
    "fan_in_fan_out",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "megatron_config",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)


@dataclass
class ConversionReport:
    """
    What [`convert`] did.

    Args:
        source (`str`), destination (`str`):
            As they were given.
        temporal_module (`str`):
            `"mean"`, `"importance"` or `"transformer"`.
        dtype (`str`):
            Of all tensors.
        num_tensors (`int`), num_bytes (`int`), num_files (`int`):
            Of the weights that were written.
        notes (`list[str]`):
            What was inferred, ignored, dropped or added, a sentence each.
        warnings (`list[str]`):
            What looks wrong, a sentence each.
    """

    source: str
    destination: str
    temporal_module: str = ""
    dtype: str = ""
    num_tensors: int = 0
    num_bytes: int = 0
    num_files: int = 0
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{self.destination}: Valley {VERSIONS[self.temporal_module]} (temporal_module={self.temporal_module!r}) "
            f"from {self.source}, {self.num_tensors} tensors in {self.dtype}, {_size(self.num_bytes)} in "
            f"{self.num_files} file{'s' * (self.num_files > 1)}",
            *(f"Note: {note}" for note in self.notes),
            *(f"Warning: {warning}" for warning in self.warnings),
            f'Use it: import transformers_valley; pipeline("video-text-to-text", model="{self.destination}")',
        ]
        return "\n".join(lines)


def convert(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    base: str | os.PathLike | None = None,
    dtype: str | torch.dtype | None = None,
    *,
    max_shard_size: int | str = "5GB",
    push_to_hub: str | None = None,
) -> ConversionReport:
    """
    Convert a Valley checkpoint of 2023 into one that transformers loads.

    Args:
        source (`str`):
            Folder or Hub id of the checkpoint: weights as `.safetensors` or `.bin`, in one file or several, or a LoRA
            adapter of peft.
        destination (`str`):
            Folder to write; it must not exist yet, or be empty.
        base (`str`, *optional*):
            Folder or Hub id of the LLaMA that the weights are the difference to (`valley-13b-v1-delta`); of an adapter
            the checkpoint that it was trained on, where its own config names another place.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`):
            `"float32"`, `"float16"`, `"bfloat16"`, or `"auto"`: that in which most of the weights are stored.
        max_shard_size (`int` or `str`, *optional*, defaults to `"5GB"`):
            Largest size of one file of weights. About as much memory is needed.
        push_to_hub (`str`, *optional*):
            Id of a repository on the Hub to upload the result to.

    Returns:
        [`ConversionReport`].

    Raises:
        ValueError: if the source is no Valley checkpoint of 2023, is damaged or does not fit together; nothing is
            written then.
        OSError: if the disk is too small, or the upload fails; in the latter case `destination` is complete.
        ImportError: if the tokenizer is a sentencepiece model and the packages that read it are not installed.
    """
    destination = Path(os.path.realpath(os.path.expanduser(destination)))  # a link stays, what it leads to is written
    _check_destination(destination)
    if push_to_hub is not None:
        validate_repo_id(push_to_hub)
    wanted_dtype = _parse_dtype(dtype)
    report = ConversionReport(str(source), str(destination))

    folder, tensors, tokenizer_folders, base = _open_source(source, base, report)
    old_config = _read_config(folder)
    tokenizer = _load_tokenizer(tokenizer_folders)
    num_rows = _check_vocabulary(tokenizer, tensors, folder)
    token_ids, known = _add_tokens(tokenizer, folder)

    _add_vision_tower(tensors, old_config, report)
    config = _build_config(old_config, tensors, tokenizer, report)
    kept = _check_tensors(config, tensors, num_rows, folder, report)
    deltas = _check_base(base, tensors, report)

    counts = Counter()
    for stored in kept.values():
        counts[stored.dtype] += math.prod(stored.shape) * stored.dtype.itemsize
    config.dtype = wanted_dtype or counts.most_common(1)[0][0]
    if len(counts) > 1 and wanted_dtype is None:
        found = ", ".join(sorted(_dtype_name(one) for one in counts))
        report.notes.append(f"Tensors are stored as {found}; all become {_dtype_name(config.dtype)}.")
    config.text_config.vocab_size = max(num_rows, max(token_ids.values()) + 1)
    with torch.device("meta"):
        model = ValleyForConditionalGeneration(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    shards = split_torch_state_dict_into_shards(
        {name: torch.empty(shapes[name], dtype=config.dtype, device="meta") for name in kept},
        max_shard_size=max_shard_size,
    )
    report.temporal_module, report.dtype = config.temporal_module, _dtype_name(config.dtype)
    report.num_tensors, report.num_files = len(kept), len(shards.filename_to_tensors)
    report.num_bytes = shards.metadata["total_size"]
    if new := [f"`{token}` with the id {index}" for token, index in token_ids.items() if index >= known]:
        report.notes.append(f"Added {' and '.join(new)}, embedded at the mean of the {known} tokens before.")

    with _complete_or_nothing(destination, report.num_bytes) as target:
        for file_name, names in shards.filename_to_tensors.items():
            shard = {}
            for name in names:
                weight = _read_weight(kept[name], deltas.get(name), shapes[name], config.dtype)
                if name in (_EMBEDDINGS, _HEAD):
                    fill_token_rows(weight, token_ids, known, tell_apart=name == _EMBEDDINGS)
                shard[name] = weight
            save_file(shard, target / file_name, metadata={"format": "pt"})
            del shard, weight
        if shards.is_sharded:
            index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
            (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        _save_rest(target, model, tokenizer, report, base, push_to_hub)

    if push_to_hub is not None:
        _upload(destination, push_to_hub, report)
    return report


def _read_weight(stored: "_Stored", delta_to: "_Stored | None", shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """One tensor as it is written: read, with its base and adapters added in float32, rounded once, rows appended."""
    weight = stored.load()
    if delta_to is not None or stored.lora is not None:
        weight = weight.float()
    if delta_to is not None:
        rows = delta_to.shape[0]  # fewer than in the sum where the vocabulary grew
        weight = torch.cat([weight[:rows] + delta_to.load().float(), weight[rows:]])
    if stored.lora is not None:
        weight = stored.lora.merge(weight)
    written = torch.zeros(shape, dtype=dtype)
    written[: len(weight)] = weight
    if weight.dtype != dtype and (weight.isfinite() & ~written[: len(weight)].isfinite()).any():
        raise ValueError(
            f"{stored.name} holds values beyond {torch.finfo(dtype).max:.4g}, the largest of {_dtype_name(dtype)}. "
            "Choose another dtype (--dtype), such as bfloat16."
        )
    return written


# --- Where the tensors are -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stored:
    """A tensor in a file, of which so far only the header was read."""

    files: "_WeightFiles"
    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | str  # a name where it does not hold floating point numbers
    lora: "_LoraPair | None" = None

    def load(self) -> torch.Tensor:
        return self.files.load(self.path, self.name)


@dataclass(frozen=True)
class _LoraPair:
    """What an adapter adds to one weight: scale * B @ A, of shapes (out, r) and (r, in)."""

    a: _Stored
    b: _Stored
    scale: float

    def merge(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.scale * (self.b.load().float() @ self.a.load().float())


class _WeightFiles:
    """The weights in a folder: headers are read at once, a tensor when it is asked for. One file is open at a time.

    Raises:
        ValueError: naming the file that lacks, is damaged or holds more than tensors.
    """

    def __init__(self, folder: Path, stems: tuple[str, ...] = _WHOLE):
        self._opened: tuple[Path | None, Any] = (None, None)
        paths = _weight_paths(folder, stems)
        self.tensors = _unique((name, one) for path in paths for name, one in self._read_headers(path).items())
        self._opened = (None, None)

    def _read_headers(self, path: Path) -> dict[str, _Stored]:
        file, tensors = self._open(path), {}
        try:
            for name in file.keys():
                if isinstance(file, dict):
                    shape, dtype = file[name].shape, file[name].dtype
                    dtype = dtype if dtype in _DTYPES.values() else _dtype_name(dtype)
                else:
                    header = file.get_slice(name)
                    shape, dtype = header.get_shape(), _DTYPES.get(header.get_dtype(), header.get_dtype())
                tensors[name] = _Stored(self, path, name, tuple(shape), dtype)
        except SafetensorError as error:
            raise _damaged(path, error) from error
        return tensors

    def load(self, path: Path, name: str) -> torch.Tensor:
        file = self._open(path)
        try:
            return file[name] if isinstance(file, dict) else file.get_tensor(name)
        except (SafetensorError, RuntimeError) as error:
            raise _damaged(path, error) from error

    def _open(self, path: Path):
        """A mapping of names to tensors that stay on the disk until they are used."""
        if self._opened[0] != path:
            self._opened = (None, None)  # the one before goes first
            self._opened = (path, _open_weights(path))
        return self._opened[1]


def _unique(named: Iterable[tuple[str, _Stored]]) -> dict[str, _Stored]:
    """A mapping of them, in which no tensor replaces another."""
    tensors: dict[str, _Stored] = {}
    for name, stored in named:
        if name in tensors:
            both = " and ".join(f"{one.name} in '{one.path}'" for one in (tensors[name], stored))
            raise ValueError(f"The tensor {name} is stored twice: {both}. Remove the wrong one.")
        tensors[name] = stored
    return tensors


def _open_weights(path: Path):
    if not path.is_file():
        raise ValueError(f"The weights are incomplete: '{path}' is missing. Download it again.")
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"Cannot read '{path}': it is a pointer of git-lfs, not the weights. Run: git lfs pull")
    if path.suffix == ".safetensors":
        try:
            return safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error
    is_zip = start.startswith(b"PK\x03\x04")  # the form before torch 1.6 cannot be mapped
    try:
        tensors = torch.load(path, map_location="cpu", mmap=is_zip, weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        # What torch says of things it would have to import. Of what is no pickle it says "Unsupported operand", too.
        code = "GLOBAL|TorchScript|unrecognized function|allowlisted"
        if is_zip or start.startswith(b"\x80"):
            code += "|Unsupported operand"
        if re.search(code, str(error)):
            raise ValueError(
                f"Cannot read '{path}': it holds more than tensors. Loading it could run code that it brings along, "
                "so it is refused."
            ) from error
        raise _damaged(path, error) from error
    if not isinstance(tensors, dict):
        raise ValueError(f"Cannot read '{path}': it is no mapping of names to tensors, as a state dict is.")
    for name, one in tensors.items():
        plain = isinstance(one, torch.Tensor) and one.layout == torch.strided and not one.is_meta
        if not plain or not isinstance(name, str):
            raise ValueError(f"Cannot read '{path}': {name!r} in it is no name of a dense tensor, as in a state dict.")
    return dict(tensors)


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = re.split(r"\n|\. ", str(error))[0].rstrip(".") or type(error).__name__
    return ValueError(f"Cannot read '{path}': it is damaged or cut off ({reason}). Download it again.")


def _weight_paths(folder: Path, stems: tuple[str, ...]) -> list[Path]:
    """Files of weights in the order in which transformers looks for them; none if there are none."""
    for suffix in (".safetensors", ".bin"):
        for stem in stems:
            single, index = folder / f"{stem}{suffix}", folder / f"{stem}{suffix}.index.json"
            if single.exists():
                return [single]
            if index.exists():
                names = _read_json(index).get("weight_map")
                if not isinstance(names, dict) or not names:
                    raise ValueError(f"'{index}' has no `weight_map` that names the files of the tensors.")
                if odd := [name for name in names.values() if not isinstance(name, str) or Path(name).name != name]:
                    raise ValueError(f"'{index}' names {odd[0]!r} for weights, which is no file beside it.")
                return [folder / name for name in sorted(set(names.values()))]
            if parts := sorted(folder.glob(f"{stem}-*-of-[0-9]*{suffix}")):
                total = int(re.search(r"-of-(\d+)", parts[0].name)[1])
                if len(parts) != total:
                    raise ValueError(f"'{folder}' has {len(parts)} of {total} files of weights. Download the others.")
                return parts
    return []


def _fetch(source: str | os.PathLike) -> Path:
    """A folder as it is, a Hub id as a folder with the config, tokenizer and weights of its repository."""
    if os.path.isdir(os.path.expanduser(source)):
        return Path(os.path.expanduser(source))
    if os.path.exists(source):
        raise ValueError(f"'{source}' is a file. Give the folder that it lies in.")
    small = ["*.json", "tokenizer.model", f"{_REPLACED}.bin"]
    try:
        folder = Path(snapshot_download(str(source), allow_patterns=[*small, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            pickles = ["pytorch_model*.bin", "adapter_model.bin"]
            folder = Path(snapshot_download(str(source), allow_patterns=[*small, *pickles]))
    except (OSError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"'{source}' is neither a folder nor a repository of the Hub that can be downloaded ({reason})."
        ) from error
    return folder


def _open_source(
    source: str | os.PathLike, base: str | os.PathLike | None, report: ConversionReport
) -> tuple[Path, dict[str, _Stored], list[Path], "str | os.PathLike | None"]:
    """The checkpoint's folder, its tensors by their old names, where its tokenizer may lie, the base of a delta."""
    given = folder = _fetch(source)
    tokenizer_folders = [given]
    adapter = None
    if (given / "adapter_config.json").exists():
        adapter = _read_json(given / "adapter_config.json")
        _check_adapter(adapter, given)
        trained_on = base or adapter.get("base_model_name_or_path")
        if (given / "config.json").exists() and _weight_paths(given, _WHOLE):
            if base is not None:
                raise ValueError(
                    f"'{source}' has an adapter and the weights that it belongs to: leave out the base '{base}'."
                )
        elif trained_on is None:
            raise ValueError(f"'{source}' is an adapter and does not say of what. Give that checkpoint as the base.")
        else:
            report.notes.append(f"The adapter is merged into {short_name(trained_on)}.")
            folder, base = _fetch(trained_on), None
            tokenizer_folders.append(folder)
    _check_kind(folder)
    tensors = _WeightFiles(folder).tensors
    if not tensors:
        raise ValueError(f"There are no weights in '{folder}': neither model*.safetensors nor pytorch_model*.bin.")
    tensors = _unique((_old_name(name), stored) for name, stored in tensors.items())
    if adapter is not None:
        _check_all_is_read(given, (_ADAPTER, _REPLACED, *(_WHOLE if folder == given else ())))
        _attach_adapter(tensors, adapter, given, report)
        name = adapter.get("base_model_name_or_path")
        if not any((place / file).exists() for place in tokenizer_folders for file in _TOKENIZER_FILES) and name:
            tokenizer_folders.append(_fetch(name))
    return folder, tensors, tokenizer_folders, base


def _old_name(name: str) -> str:
    """With one spelling of the vision tower: some versions of transformers leave out `vision_model.`."""
    return re.sub(r"^model\.vision_tower\.(?!vision_model\.)", "model.vision_tower.vision_model.", name)


def _new_name(old: str) -> str | None:
    return next((new + old.removeprefix(begin) for begin, new in _NAMES if old.startswith(begin)), None)


def _original_name(new: str) -> str:
    return next(old + new.removeprefix(begin) for old, begin in _NAMES if new.startswith(begin))


# --- Adapters and deltas -------------------------------------------------------------------------------------------


def _check_adapter(adapter: dict, folder: Path) -> None:
    """Refuse what is more than W + scale * B @ A."""
    if adapter.get("peft_type") != "LORA":
        raise ValueError(f"The adapter in '{folder}' is of type {adapter.get('peft_type')!r}; only 'LORA' is merged.")
    used = [name for name in _UNSUPPORTED_LORA if adapter.get(name)]
    if adapter.get("bias", "none") != "none":
        used.append(f"bias={adapter['bias']!r}")
    if used:
        raise ValueError(f"The LoRA adapter in '{folder}' uses {', '.join(used)}, which cannot be merged here.")
    alphas = adapter.get("alpha_pattern") or {}
    is_sound = {
        "lora_alpha": _is_number(adapter.get("lora_alpha")),
        "alpha_pattern": isinstance(alphas, dict)
        and all(_is_pattern(key) and _is_number(value) for key, value in alphas.items()),
        "base_model_name_or_path": isinstance(adapter.get("base_model_name_or_path"), str | None),
    }
    if wrong := [f"{name}={adapter.get(name)!r}" for name, sound in is_sound.items() if not sound]:
        raise ValueError(f"The adapter_config.json in '{folder}' has values that make no sense: {', '.join(wrong)}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e9  # nor infinite, nor none at all


def _is_pattern(key: str) -> bool:
    try:
        return re.compile(_module_pattern(key)) is not None
    except re.error:
        return False


def _module_pattern(key: str) -> str:
    """Modules that a key of `alpha_pattern` stands for, as peft reads it."""
    return rf"(.*\.)?({key})$"


def _check_all_is_read(folder: Path, stems: tuple[str, ...]) -> None:
    """Refuse weights beside an adapter of which nobody says what they are for."""
    read = re.compile(rf"({'|'.join(stems)})(-.*)?\.(bin|safetensors)|{_LEFTOVERS}")
    files = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".safetensors"))
    if unread := [name for name in files if not read.fullmatch(name)]:
        raise ValueError(
            f"'{folder}' has files beside the adapter that are not read: {', '.join(unread)}. Move away what is not "
            "needed; merge the rest by the code that wrote it."
        )


def _attach_adapter(tensors: dict[str, _Stored], adapter: dict, folder: Path, report: ConversionReport) -> None:
    """Note in `tensors` what the adapter changes: a `lora` for weights it adds to, its own for those it replaces."""
    stored = _WeightFiles(folder, (_ADAPTER,)).tensors
    if not stored:
        raise ValueError(f"There are no weights in '{folder}': neither {_ADAPTER}.safetensors nor {_ADAPTER}.bin.")
    wrappers = r"^base_model\.model\.|\.modules_to_save\b|\.default\b(?=\.)"
    parts = [*stored.items(), *_WeightFiles(folder, (_REPLACED,)).tensors.items()]
    pairs: dict[str, dict[str, _Stored]] = {}
    replaced: dict[str, _Stored] = {}
    for name, part in _unique((_old_name(re.sub(wrappers, "", name)), part) for name, part in parts).items():
        if match := re.fullmatch(r"(.*)\.lora_([AB])\.weight", name):
            pairs.setdefault(f"{match[1]}.weight", {})[match[2]] = part
        else:
            replaced[name] = part
    problems = [f"{name}: no such tensor in the checkpoint" for name in (*pairs, *replaced) if name not in tensors]
    problems += [f"{name}: both changed and replaced" for name in pairs if name in replaced]
    for name, pair in pairs.items():
        if name not in tensors:
            continue
        shapes = {letter: part.shape for letter, part in pair.items()}
        rows, columns = (*tensors[name].shape, 0, 0)[:2]
        rank = next(iter(shapes.get("A", ())), 0)
        if not rank or shapes != {"A": (rank, columns), "B": (rows, rank)}:
            problems.append(f"{name}: {tensors[name].shape} in the checkpoint, {shapes} in the adapter")
    if problems:
        raise ValueError(f"The adapter in '{folder}' does not fit its checkpoint. {_listing(problems)}")

    for name, pair in pairs.items():
        rank = pair["A"].shape[0]
        patterns = (adapter.get("alpha_pattern") or {}).items()
        module = name.removesuffix(".weight")
        matching = [value for key, value in patterns if re.match(_module_pattern(key), module)]
        alpha = matching[0] if matching else adapter["lora_alpha"]
        scale = alpha / (math.sqrt(rank) if adapter.get("use_rslora") else rank)
        tensors[name] = dataclasses.replace(tensors[name], lora=_LoraPair(pair["A"], pair["B"], scale))
    tensors.update(replaced)
    report.notes.append(f"The adapter changes {len(pairs)} tensors and replaces {len(replaced)}.")


def _check_base(
    base: str | os.PathLike | None, tensors: dict[str, _Stored], report: ConversionReport
) -> dict[str, _Stored]:
    """What is added to which tensor, by its new name."""
    norm = tensors["model.norm.weight"].load().float().abs().mean().item()
    if base is None:
        if norm < 0.1:
            report.warnings.append(
                f"The weights look like the difference to another model (model.norm.weight is {norm:.2g} on average). "
                "If so, give the LLaMA they belong to as the base (--base)."
            )
        return {}
    if norm > 0.5:
        report.warnings.append(
            f"The weights look whole and not like a difference (model.norm.weight is {norm:.2g} on average), and the "
            "base was added to them. If that is wrong, convert again without a base."
        )
    folder = _fetch(base)
    base_tensors = _WeightFiles(folder).tensors
    if not base_tensors:
        raise ValueError(f"There are no weights in the base '{base}'.")
    problems, deltas = [], {}
    for name, stored in tensors.items():
        if not name.startswith(_LANGUAGE_MODEL) or _ignored_because(name):
            continue
        found = base_tensors.get(name)
        if found is None:
            problems.append(f"{name}: missing in the base, {stored.shape} in the difference")
            continue
        grown = name in _VOCABULARY and found.shape[:1] < stored.shape[:1] and found.shape[1:] == stored.shape[1:]
        if isinstance(found.dtype, str):
            problems.append(f"{name}: {found.dtype} in the base, which are no floating point numbers")
        elif not (grown or found.shape == stored.shape):
            problems.append(f"{name}: {found.shape} in the base, {stored.shape} in the difference")
        else:
            deltas[_new_name(name)] = found
    if problems:
        raise ValueError(f"The base '{base}' does not fit the weights. {_listing(problems)}")
    report.notes.append(
        f"The weights of {short_name(base)} were added to {len(deltas)} tensors of the language model."
    )
    return deltas


# --- Config --------------------------------------------------------------------------------------------------------


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"Cannot read '{path}': {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"Cannot read '{path}': it holds no mapping.")
    return content


def _read_config(folder: Path) -> dict:
    if not (folder / "config.json").exists():
        raise ValueError(f"There is no config.json in '{folder}': it is no checkpoint.")
    return _read_json(folder / "config.json")


def _check_kind(folder: Path) -> None:
    """Refuse what is no checkpoint of the code of 2023, and say what it is."""
    config = _read_config(folder)
    architectures, model_type = config.get("architectures"), config.get("model_type")
    architectures = [str(name) for name in architectures] if isinstance(architectures, list) else []
    described = f"architectures={architectures}, model_type={model_type!r}"
    if "ValleyForConditionalGeneration" in architectures or (
        model_type == "valley" and not architectures and "text_config" in config
    ):
        raise ValueError(f"'{folder}' is already native: load it as it is, there is nothing to convert.")
    if "ValleyLlamaForCausalLM" in architectures:
        return
    if not architectures and model_type in ("valley", "llama") and "mm_hidden_size" in config:
        return
    if str(model_type).startswith("valley") or any(name.startswith("Valley") for name in architectures):
        raise ValueError(
            f"'{folder}' is a checkpoint of ByteDance's Valley2 or Valley3 ({described}), unrelated models that share "
            "the name. transformers_valley cannot load them; use the code published with that checkpoint."
        )
    if model_type == "llama":
        raise ValueError(
            f"'{folder}' is a plain LLaMA ({described}) without anything of Valley's. Convert a Valley checkpoint; "
            "the LLaMA may be the base (--base) of one that is stored as a difference."
        )
    raise ValueError(
        f"'{folder}' is no Valley checkpoint of 2023 ({described}); expected architectures=['ValleyLlamaForCausalLM']."
    )


def _build_config(old: dict, tensors: dict[str, _Stored], tokenizer, report: ConversionReport) -> ValleyConfig:
    """The native config. What the old one does not say is read from the shapes of the tensors."""
    shapes = {new: stored.shape for name, stored in tensors.items() if (new := _new_name(name))}
    if old.get("use_delta_transformer"):
        temporal_module = "transformer"
    else:
        temporal_module = "importance" if old.get("use_patch_importance_pooling") else "mean"
    temporal = {}
    if temporal_module == "transformer":
        # A tensor without any dimension is of another shape than what follows, and refused for that.
        temporal["temporal_intermediate_size"] = (shapes.get("model.temporal_module.linear1.weight") or (2048,))[0]
        table = shapes.get("model.temporal_module.position_table")
        if table is not None:
            temporal["temporal_max_positions"] = (table or (1,))[0]
        else:
            report.warnings.append("model.position_matrix is not stored: sinusoidal positions will be computed.")

    generic = {one.name for one in dataclasses.fields(PreTrainedConfig)}
    fields = {one.name for one in dataclasses.fields(LlamaConfig)} - generic | {"rope_theta", "rope_scaling"}
    text = {name: value for name, value in old.items() if name in fields and value is not None}
    # Configs of the first LLaMAs have wrong ids (`pad_token_id: -1`): the tokenizer knows them.
    text.update({f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")})
    text.setdefault("max_position_embeddings", old.get("max_sequence_length", 2048))
    vision_config = _vision_config(str(old.get("mm_vision_tower") or ""), shapes, report)
    try:
        config = ValleyConfig(
            vision_config=vision_config,
            text_config=LlamaConfig(**text),
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
            vision_feature_layer=old.get("mm_vision_select_layer", -1),
            temporal_module=temporal_module,
            temporal_space="text",
            architectures=["ValleyForConditionalGeneration"],
            **temporal,
        )
    except Exception as error:  # a wrong value can raise anything
        raise _senseless(report, error) from error
    # Very many layers that are not there would take minutes to build, before their names are listed as missing.
    stored = len({m[1] for name in shapes if (m := re.match(r"model\.language_model\.layers\.(\d+)\.", name))})
    if (said := config.text_config.num_hidden_layers) > stored + 1000:
        raise ValueError(
            f"The weights of '{report.source}' have {stored} layers in the language model, and its config.json says "
            f"num_hidden_layers={said}: one of both is incomplete or wrong."
        )
    return config


def _senseless(report: ConversionReport, error: Exception) -> ValueError:
    kind = type(error).__name__  # some say no more than a value
    return ValueError(f"The config.json of '{report.source}' has a value that makes no sense ({kind}): {error}")


def _vision_config(tower: str, shapes: dict[str, tuple[int, ...]], report: ConversionReport) -> PreTrainedConfig:
    """Config of the vision tower: that of the named one where it can be read, else what the shapes tell."""
    prefix = "model.vision_tower."
    layers = {m[1] for name in shapes if (m := re.match(rf"{prefix}encoder\.layers\.(\d+)\.", name))}
    read = {
        "embeddings.patch_embedding.weight": 4,
        "embeddings.position_embedding.weight": 2,
        "encoder.layers.0.mlp.fc1.weight": 2,
    }
    found = {name: shapes.get(prefix + name, ()) for name in read}
    wrong = [f"{name} {shape}" for name, shape in found.items() if len(shape) != read[name] or 0 in shape]
    if wrong:
        raise ValueError(
            f"The vision tower in '{report.source}' is no CLIP: missing or misshapen {', '.join(wrong)}. Its tensors "
            "begin with model.vision_tower.vision_model."
        )
    (hidden_size, _, _, patch_size), (num_positions, _), (intermediate_size, _) = found.values()
    found = {
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": len(layers),
        "patch_size": patch_size,
        "image_size": math.isqrt(num_positions - 1) * patch_size,
    }
    config = _named_tower_config(tower)
    if config is None:
        config_class = ChineseCLIPVisionConfig if "chinese" in tower.lower() else CLIPVisionConfig
        heads = max(1, hidden_size // 64)
        why = f"'{short_name(tower)}' could not be read and" if tower else "is not named (mm_vision_tower) and"
        report.notes.append(
            f"The config of the vision tower {why} was inferred from its tensors: "
            f"layers={found['num_hidden_layers']}, heads={heads} ({hidden_size // heads} wide), patches of "
            f"{patch_size} in {found['image_size']} pixels, quick_gelu."
        )
        return config_class(**found, num_attention_heads=heads, hidden_act="quick_gelu")
    wrong = [
        f"{name}={getattr(config, name)} in the config and {value} in the tensors"
        for name, value in found.items()
        if getattr(config, name) != value
    ]
    if wrong:
        raise ValueError(
            f"The config of the vision tower '{tower}' contradicts the tensors in '{report.source}': "
            f"{', '.join(wrong)}. Set mm_vision_tower in its config.json to the tower that it was trained with."
        )
    config.architectures, config.dtype = None, None  # those of a checkpoint of its own
    return config


def _named_tower_config(tower: str) -> PreTrainedConfig | None:
    """Config of the vision model in a folder, the Hub's cache or the Hub."""
    if not tower:
        return None
    try:
        folder = tower if os.path.isdir(tower) else Path(hf_hub_download(tower, "config.json")).parent
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)  # it would ask whether to run its code
    except Exception:  # not there, or a wrong value, which can raise anything
        return None
    config = getattr(config, "vision_config", config)
    return config if isinstance(config, CLIPVisionConfig | ChineseCLIPVisionConfig) else None


def _add_vision_tower(tensors: dict[str, _Stored], config: dict, report: ConversionReport) -> None:
    """Where the weights hold no vision tower, take the tensors of the one that the config names."""
    prefix = "model.vision_tower.vision_model."
    if any(name.startswith(prefix) for name in tensors):
        return
    tower = str(config.get("mm_vision_tower") or "")
    try:
        if not tower:
            raise ValueError("its config.json has no mm_vision_tower.")
        found = _WeightFiles(_fetch(tower)).tensors
        vision = r"(vision_model\.)?((embeddings\.(class|patch|position)_|encoder\.|pre_layrnorm|post_layernorm).*)"
        named = _unique((prefix + m[2], one) for name, one in found.items() if (m := re.fullmatch(vision, name)))
        if not named:
            raise ValueError(f"there are no weights of a CLIP in '{tower}'.")
    except ValueError as error:
        raise ValueError(
            f"'{report.source}' holds no vision tower, and the one it names cannot be had: {error} Set "
            "mm_vision_tower in its config.json to a folder with that model."
        ) from error
    tensors.update(named)
    report.notes.append(f"The vision tower is not stored and was taken from {short_name(tower)}.")


# --- Tensors -------------------------------------------------------------------------------------------------------


def _ignored_because(old: str) -> str | None:
    return next((reason for pattern, reason in _IGNORED.items() if re.match(pattern, old)), None)


def _check_tensors(
    config: ValleyConfig, tensors: dict[str, _Stored], num_rows: int, folder: Path, report: ConversionReport
) -> dict[str, _Stored]:
    """The tensors that are written, by their new names and in the order of their files."""
    config.text_config.vocab_size = num_rows
    try:
        with torch.device("meta"):
            model = ValleyForConditionalGeneration(config)
    except Exception as error:  # a wrong value can raise anything
        raise _senseless(report, error) from error
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    unused = model.model._keys_to_ignore_on_load_unexpected or []
    if config.tie_word_embeddings:
        del expected[_HEAD]

    kept: dict[str, _Stored] = {}
    extra: list[str] = []
    left_out: dict[str, list[str]] = {}
    for old, stored in tensors.items():
        new, reason = _new_name(old), _ignored_because(old)
        if reason is None and new is not None and new not in expected:
            if any(re.search(pattern, new) for pattern in unused):
                reason = "because the vision tower ends at the layer that is read (mm_vision_select_layer)"
            elif new.startswith("model.temporal_module.importance.") and config.temporal_module == "transformer":
                reason = "because use_delta_transformer wins over use_patch_importance_pooling"
            elif new == _HEAD:
                reason = "because the head is tied to the embeddings"
        if reason is not None:
            left_out.setdefault(reason, []).append(old)
        elif new in expected:
            kept[new] = stored
        else:
            extra.append(old)
    for reason, names in left_out.items():
        count = f"{len(names)} tensor{'s' * (len(names) > 1)}"
        report.notes.append(f"Left out {count}, {reason}: {_summary(names)}.")

    problems = {
        "missing": [f"{_original_name(name)} {shape}" for name, shape in expected.items() if name not in kept],
        "not known": extra,
        "of another shape than the config says": [
            f"{_original_name(name)} {stored.shape} instead of {expected[name]}"
            for name, stored in kept.items()
            if stored.shape != expected[name]
        ],
        "without floating point numbers": [
            f"{_original_name(name)} ({stored.dtype})"
            for name, stored in kept.items()
            if isinstance(stored.dtype, str)
        ],
    }
    found = [f"Tensors {what} ({len(names)}): {_listing(names)}" for what, names in problems.items() if names]
    if found:
        raise ValueError(f"The weights in '{folder}' do not make a Valley. {' '.join(found)}")
    return kept


def _summary(names: list[str]) -> str:
    """One name with a `*` for what differs: `model.layers.*.self_attn.rotary_emb.inv_freq`."""
    if len(names) == 1:
        return names[0]
    begin = os.path.commonprefix(names).rpartition(".")[0]
    end = os.path.commonprefix([name[::-1] for name in names])[::-1].partition(".")[2]
    return ".".join(part for part in (begin, "*", end) if part)


def _listing(names: Iterable[str], most: int = 40) -> str:
    names = list(names)
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more + "."


# --- Tokenizer, processor and the rest -----------------------------------------------------------------------------


def _load_tokenizer(folders: list[Path]) -> PreTrainedTokenizerFast:
    """The tokenizer of the first folder that has one, as it was used in 2023.

    It is not asked for through `AutoTokenizer`, which reads the flat config and does not know all names that the class
    had in 2023.
    """
    folder = next((one for one in folders if any((one / name).exists() for name in _TOKENIZER_FILES)), None)
    if folder is None:
        places = " or ".join(f"'{one}'" for one in folders)
        raise ValueError(f"There is no tokenizer in {places}: neither {' nor '.join(_TOKENIZER_FILES)}.")
    if (folder / "tokenizer.json").exists():
        try:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        except Exception as error:  # the library that parses it raises plain exceptions
            raise ValueError(f"Cannot read the tokenizer in '{folder}': {error}.") from error
    else:
        tokenizer = _load_sentencepiece(folder)
    _check_added_tokens(tokenizer, folder)
    return tokenizer


def _check_added_tokens(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Refuse ids that did not survive: the library numbers added tokens anew, in their order and without gaps."""
    stored = []
    if (path := folder / "tokenizer.json").exists():
        stored += [(path, one["content"], one["id"]) for one in _read_json(path).get("added_tokens") or []]
    if (path := folder / "added_tokens.json").exists():
        stored += [(path, token, index) for token, index in _read_json(path).items()]
    moved = [
        f"{token} is {index!r} in '{path}' and became {found}"
        for path, token, index in stored
        if (found := tokenizer.convert_tokens_to_ids(token)) != index
    ]
    if moved:
        raise ValueError(
            f"Added tokens of the tokenizer in '{folder}' cannot keep their ids: {_listing(moved)} Number them in "
            "their order and without gaps, as the rows of the weights are."
        )


def _load_sentencepiece(folder: Path) -> PreTrainedTokenizerFast:
    packages = {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}
    missing = [package for module, package in packages.items() if not _is_installed(module)]
    if missing:
        raise ImportError(
            f"The tokenizer in '{folder}' is a sentencepiece model; to read it, run: pip install {' '.join(missing)}"
        )
    path = folder / "tokenizer_config.json"
    settings = {"add_bos_token": True, "legacy": True} | (_read_json(path) if path.exists() else {})
    try:
        slow = LlamaTokenizer.from_pretrained(folder, add_bos_token=settings["add_bos_token"])
    except Exception as error:
        raise ValueError(f"Cannot read the tokenizer in '{folder}': {error}.") from error
    if settings["legacy"] is not False:
        # Up to mid 2023 every piece of text between special tokens began with a space, as sentencepiece puts it.
        space = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        slow.backend_tokenizer.normalizer = normalizers.Sequence(space)
        slow.backend_tokenizer.pre_tokenizer = None
    # Some files name no special tokens at all, or empty ones.
    special = {name: getattr(slow, f"{name}_token") or None for name in ("bos", "eos", "unk", "pad")}
    for name, token in (("bos", "<s>"), ("eos", "</s>"), ("unk", "<unk>")):
        special[name] = special[name] or token
    # A class of its own would be built anew from vocabulary and merges, and lose the above.
    return PreTrainedTokenizerFast(
        tokenizer_object=slow.backend_tokenizer,
        model_max_length=slow.model_max_length,
        clean_up_tokenization_spaces=False,
        **{f"{name}_token": token for name, token in special.items() if token},
    )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is missing
        return False


def _check_vocabulary(tokenizer: PreTrainedTokenizerFast, tensors: dict[str, _Stored], folder: Path) -> int:
    """Rows of the embeddings, after the tokenizer was found to fit them and to know the delimiters."""
    delimiters = SPECIAL_TOKENS[2:]
    vocabulary = tokenizer.get_vocab()
    if missing := [token for token in delimiters if token not in vocabulary]:
        raise ValueError(
            f"The tokenizer of '{folder}' lacks {', '.join(missing)}: it is not the one that Valley was trained with."
        )
    if lacking := [name for name in (*_VOCABULARY[:1], "model.norm.weight") if name not in tensors]:
        raise ValueError(f"The weights in '{folder}' do not make a Valley. Missing: {_listing(lacking)}")
    shape = tensors[_VOCABULARY[0]].shape
    if len(shape) != 2:
        raise ValueError(f"The weights in '{folder}' do not make a Valley: {_VOCABULARY[0]} has the shape {shape}.")
    if (highest := max(vocabulary.values())) >= shape[0]:
        raise ValueError(
            f"The tokenizer of '{folder}' has ids up to {highest} and the weights only {shape[0]} rows "
            f"({_VOCABULARY[0]}): they do not belong together."
        )
    return shape[0]


def _add_tokens(tokenizer: PreTrainedTokenizerFast, folder: Path) -> tuple[dict[str, int], int]:
    """Give the tokenizer what it lacks; the ids of Valley's tokens, and how many rows the tokens before had."""
    before = tokenizer.get_vocab()
    known = max(before.values()) + 1
    add_special_tokens(tokenizer)
    token_ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    # The library counts the tokens to find the next id, which is wrong where ids are left out.
    if inside := [token for token, index in token_ids.items() if token not in before and index < known]:
        raise ValueError(
            f"The tokenizer of '{folder}' has ids up to {known - 1} for {len(before)} tokens: {' and '.join(inside)} "
            "would get ids among these. Use the tokenizer that the checkpoint was trained with."
        )
    return token_ids, known


def _save_rest(
    folder: Path,
    model: ValleyForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    report: ConversionReport,
    base: str | os.PathLike | None,
    repo_id: str | None,
) -> None:
    """Everything but the weights: config with the code it names, processor, generation settings, model card."""
    config, size = model.config, model.config.vision_config.image_size
    model.config.save_pretrained(folder)
    custom_object_save(model, folder, config=config)
    for path in folder.glob("*.safetensors"):  # safetensors lets nobody else read what it writes
        shutil.copymode(folder / "config.json", path)

    frames = {
        "size": {"shortest_edge": max(256, size * 256 // 224)},
        "crop_size": {"height": size, "width": size},
        "resample": PILImageResampling.BILINEAR,
    }
    for name in ("is_local", "local_files_only"):  # how it was loaded is no setting of it
        tokenizer.init_kwargs.pop(name, None)
    adds_bos = tokenizer.bos_token is not None and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
    processor = ValleyProcessor(
        CLIPImageProcessor(**frames),
        ValleyVideoProcessor(num_frames=8, **frames),
        tokenizer,
        chat_template=("" if adds_bos else '{%- set bos_token = "" -%}') + _CHAT_TEMPLATE_FILE.read_text(),
        patch_size=config.vision_config.patch_size,
    )
    processor.save_pretrained(folder)
    GenerationConfig(
        do_sample=False,
        max_new_tokens=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        stop_strings=[STOP_STRING],
    ).save_pretrained(folder)

    chinese = config.vision_config.model_type.startswith("chinese")
    write_model_card(
        folder,
        repo_id=repo_id,
        license="other",
        license_name="research-only",
        license_link="https://github.com/RupertLuo/Valley#readme",
        base_models=None if base is None else [str(base)],
        converted_from=report.source,
        datasets=None if chinese else PAPER_DATA,
        language="zh" if chinese else None,
        notes=[
            "The authors of [RupertLuo/Valley](https://github.com/RupertLuo/Valley) release these weights for "
            "research only, under the terms of LLaMA, Vicuna and GPT-4, and their code under Apache-2.0.",
            *report.notes,
            *report.warnings,
        ],
    )


# --- Writing -------------------------------------------------------------------------------------------------------


def _check_destination(destination: Path) -> None:
    """Refuse what a finished folder cannot take the place of, before anything is read."""
    empty = destination.is_dir() and not any(destination.iterdir())
    if not empty and (destination.is_symlink() or destination.exists()):
        raise ValueError(f"Cannot write '{destination}': it exists already. Name a new folder, or move it away.")
    if os.path.ismount(destination):
        raise ValueError(
            f"Cannot write '{destination}': it is a mount point, which nothing can take the place of. Name a folder "
            "inside it."
        )
    above = next(folder for folder in destination.parents if os.path.lexists(folder))
    if not above.is_dir():
        raise ValueError(f"Cannot write '{destination}': '{above}' is no folder. Name another place.")


@contextlib.contextmanager
def _complete_or_nothing(destination: Path, num_bytes: int) -> Iterator[Path]:
    """A folder to write into that takes the place of `destination` at the end, and is gone after any failure."""
    parent = destination.parent
    existing = next(folder for folder in (parent, *parent.parents) if folder.exists())
    _check_space(existing, num_bytes)
    work = parent / f".incomplete-{uuid.uuid4().hex[:8]}"
    # The first folder that is new goes, when all that was made has to go.
    made = next((folder for folder in (*reversed(parent.parents), parent) if not folder.exists()), work)
    try:
        (work / destination.name).mkdir(parents=True)  # under its own name, which the model card tells
        yield work / destination.name
        os.rename(work / destination.name, destination)
    except BaseException as error:
        # Ctrl-C can come when the result is already there: that stays.
        finished = destination.is_dir() and any(destination.iterdir())
        shutil.rmtree(work if finished else made, ignore_errors=True)
        full = (errno.ENOSPC, errno.EDQUOT)  # safetensors and tokenizers only write the number into the message
        if getattr(error, "errno", None) in full or any(f"(os error {number})" in str(error) for number in full):
            free = shutil.disk_usage(existing).free
            raise OSError(
                f"The disk of '{existing}' became full, or your quota of it: {_size(num_bytes)} ({num_bytes} bytes) "
                f"are needed for the weights, {_size(free)} ({free} bytes) are free. Nothing was kept; choose another "
                "disk."
            ) from error
        raise
    with contextlib.suppress(OSError):
        work.rmdir()


def _check_space(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise OSError(
            f"The disk of '{folder}' is too small: {_size(num_bytes)} ({num_bytes} bytes) are needed for the weights, "
            f"{_size(free)} ({free} bytes) are free. Choose another disk."
        )


def _upload(folder: Path, repo_id: str, report: ConversionReport) -> None:
    try:
        url = create_repo(repo_id, exist_ok=True)
        upload_folder(repo_id=repo_id, folder_path=folder)
    except Exception as error:  # of the network, of rights, of the Hub
        raise OSError(
            f"'{folder}' is complete, but was not uploaded to '{repo_id}': {str(error).strip()} Try again with: "
            f"hf upload {repo_id} {folder}"
        ) from error
    report.notes.append(f"Uploaded to {url}.")


def _parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    name = "auto" if dtype is None else str(dtype).removeprefix("torch.")
    if name not in _DTYPE_NAMES:
        raise ValueError(f"dtype is {dtype!r}; expected one of {', '.join(_DTYPE_NAMES)}.")
    return None if name == "auto" else getattr(torch, name)


def _dtype_name(dtype: torch.dtype | str) -> str:
    return str(dtype).removeprefix("torch.")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


__all__ = ["ConversionReport", "convert"]
