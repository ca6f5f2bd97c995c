# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Reads the tensors of an original Valley checkpoint, merges its adapter and adds the base of a delta.

Input: folders or Hub ids. Output: tensors under their original or native names. They stay memory-mapped until they are
used; no code in a file is run.
"""

import os
import re
import warnings
import zipfile
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from torch import nn


# How the names of tensors begin in the original checkpoints and here. The first match counts, in both directions.
_NAMES = {
    "lm_head.": "lm_head.",
    "model.embed_tokens.": "model.language_model.embed_tokens.",
    "model.layers.": "model.language_model.layers.",
    "model.norm.": "model.language_model.norm.",
    "model.vision_tower.vision_model.": "model.vision_tower.",
    "model.vision_tower.": "model.vision_tower.",  # as some versions of transformers save it
    "model.mm_projector.": "model.multi_modal_projector.",
    "model.pooling_layer.": "model.temporal_module.importance.",
    "model.position_matrix": "model.temporal_module.position_table",
    "model.transformer_delta_encoder.layers.0.self_attn.in_proj_": "model.temporal_module.in_proj_",
    "model.transformer_delta_encoder.layers.0.self_attn.out_proj.": "model.temporal_module.out_proj.",
    "model.transformer_delta_encoder.layers.0.": "model.temporal_module.",
}
EMBEDDINGS, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")  # in the order in which transformers looks for them
_ADAPTER = ("adapter_model*.safetensors", "adapter_model*.bin")
_NON_LORA = "non_lora_trainables.bin"  # what LLaVA's training writes beside an adapter
_LEFTOVERS = ("training_args.bin", "optimizer*.bin", "scheduler*.bin", "sampler*.bin")  # without weights


def native_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    The tensors under the names of this package. What has none keeps its own.

    Raises:
        ValueError: if two become one.
    """
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        new = next((new + name.removeprefix(old) for old, new in _NAMES.items() if name.startswith(old)), name)
        if new in renamed:
            raise ValueError(f"The tensor {original_name(new)} is stored under two names. Remove the wrong one.")
        renamed[new] = tensor
    return renamed


def original_name(name: str) -> str:
    """The original name of a tensor with a native one."""
    return next((old + name.removeprefix(new) for old, new in _NAMES.items() if name.startswith(new)), name)


def listing(names: list[str], most: int = 40) -> str:
    """Names for an error, of very many the first ones."""
    return ", ".join(names[:most]) + (f", and {len(names) - most} more." if len(names) > most else ".")


def fetch(source: str | os.PathLike) -> Path:
    """
    A folder as it is, or one with the config, tokenizer and weights of a repository on the Hub.

    Raises:
        ValueError: if the source is neither.
    """
    if os.path.isdir(os.path.expanduser(source)):
        return Path(source).expanduser()
    small = ["*.json", "tokenizer.model", _NON_LORA]
    try:
        folder = Path(snapshot_download(str(source), allow_patterns=[*small, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(str(source), allow_patterns=[*small, _WEIGHTS[1], _ADAPTER[1]]))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"'{source}' is neither a folder nor a repository on the Hub that can be read ({_first_line(error)})."
        ) from error
    return folder


def read_weights(folder: Path, patterns: tuple[str, ...] = _WEIGHTS) -> dict[str, torch.Tensor]:
    """
    The tensors in the files of the first pattern that matches any.

    Raises:
        ValueError: if a file is missing, is corrupt or holds more than tensors, or files overlap.
    """
    paths = next((found for pattern in patterns if (found := sorted(folder.glob(pattern)))), [])
    total = re.search(r"-of-(\d+)\.\w+$", paths[-1].name) if paths else None
    if total and len(paths) != int(total[1]):
        raise ValueError(f"'{folder}' has {len(paths)} of {int(total[1])} files of weights. Download the others.")
    tensors: dict[str, torch.Tensor] = {}
    for path in paths:
        more = _read_file(path)
        if twice := sorted(tensors.keys() & more.keys()):
            raise ValueError(f"'{path}' holds tensors that another file in its folder also holds: {listing(twice)}")
        tensors |= more
    return tensors


def _read_file(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Files from before torch 1.6 are not archives and cannot be mapped.
        tensors = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
        if not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
            raise ValueError("it is not a state dict")
        return tensors
    except Exception as error:  # a corrupt file can raise anything
        with path.open("rb") as file:
            if file.read(30).startswith(b"version https://git-lfs"):
                raise ValueError(f"Cannot read '{path}': it is a git-lfs pointer. Run: git lfs pull") from error
        raise ValueError(
            f"Cannot read '{path}': it is corrupt, or holds more than tensors, which could run code "
            f"({_first_line(error)}). Download it again."
        ) from error


def _first_line(error: Exception) -> str:
    return re.split(r"\n|\. ", str(error).strip())[0].rstrip(".") or type(error).__name__


def merge_adapter(tensors: dict[str, torch.Tensor], folder: Path) -> dict[str, torch.Tensor]:
    """
    Merge an adapter with peft.

    Args:
        tensors (`dict[str, torch.Tensor]`):
            Of the checkpoint, under their original names: the adapter's settings and patterns refer to these.
        folder (`Path`):
            With the adapter, and perhaps a `non_lora_trainables.bin` that replaces tensors.

    Raises:
        ValueError: if it does not fit, or weights beside it would not be read.
        ImportError: if peft is not installed.
    """
    try:
        from peft import PeftConfig, PeftModel, get_peft_model_state_dict
    except ImportError as error:
        raise ImportError(
            f"'{folder}' is an adapter. To merge it, run: pip install 'transformers-valley[convert]'"
        ) from error
    known = (*_WEIGHTS, *_ADAPTER, _NON_LORA, *_LEFTOVERS)
    files = [path for path in sorted(folder.iterdir()) if path.suffix in (".bin", ".safetensors")]
    if unread := [path.name for path in files if not any(map(path.match, known))]:
        raise ValueError(
            f"'{folder}' has files beside the adapter that are not read: {', '.join(unread)}. Move away what is not "
            "needed, and merge the rest with the code that wrote it."
        )
    names = read_weights(folder, _ADAPTER).keys()
    replaced = read_weights(folder, (_NON_LORA,))
    tensors = tensors | {name.removeprefix("base_model.model."): tensor for name, tensor in replaced.items()}
    try:
        config = PeftConfig.from_pretrained(folder)
        config.task_type = None  # the modules below cannot generate
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # modules that the adapter has no tensors for stay as they are
            model = PeftModel.from_pretrained(_make_modules(tensors), folder, config=config)
        unread = sorted(names - get_peft_model_state_dict(model, save_embedding_layers=False).keys())
        if unread or not names:
            raise ValueError(f"{len(unread)} of its {len(names)} tensors fit no module: {listing(unread)}")
        return model.merge_and_unload().state_dict()
    except Exception as error:  # a wrong setting can raise anything
        raise ValueError(f"The adapter in '{folder}' cannot be merged into its checkpoint: {error}") from error


def _make_modules(tensors: dict[str, torch.Tensor]) -> nn.Module:
    """Modules of these names, in which peft finds a linear layer wherever a matrix is called `weight`."""
    root = nn.Module()
    for name, tensor in tensors.items():
        module, path = root, name.split(".")
        for depth, part in enumerate(path[:-1], 1):
            if not hasattr(module, part):
                weight = tensors.get(".".join([*path[:depth], "weight"]))
                is_linear = weight is not None and weight.ndim == 2
                module.add_module(part, nn.Linear(*weight.T.shape, False, "meta") if is_linear else nn.Module())
            module = getattr(module, part)
        module.register_parameter(path[-1], nn.Parameter(tensor, requires_grad=False))
    return root


def add_base(tensors: dict[str, torch.Tensor], base: str | os.PathLike, dtype: torch.dtype | None) -> int:
    """
    Add a LLaMA to the language model of a delta, in float32 and rounded once. The delta may have more tokens.

    Args:
        tensors (`dict[str, torch.Tensor]`):
            Of the delta, under native names. They are replaced.
        base (`str`):
            Folder or Hub id of the LLaMA.
        dtype (`torch.dtype`, *optional*):
            Of the sums; by default that of the delta.

    Returns:
        `int`: how many tensors were added to.

    Raises:
        ValueError: if a tensor is missing in the base or has another shape.
    """
    found = native_names(read_weights(fetch(base)))
    names = [name for name in tensors if name.startswith(("model.language_model.", HEAD))]
    problems = []
    for name in names:
        delta, other = tensors[name], found.get(name)
        rows = len(other) if other is not None and other.ndim and name in (EMBEDDINGS, HEAD) else None
        if other is None or other.shape != delta[:rows].shape or not other.is_floating_point():
            described = "missing" if other is None else f"{tuple(other.shape)} in {other.dtype}"
            problems.append(f"{original_name(name)}: {tuple(delta.shape)} in the delta, {described} in the base")
    if problems:
        raise ValueError(f"The base '{base}' does not fit the weights. {listing(problems)}")
    for name in names:
        total = tensors[name].float()
        total[: len(found[name])] += found[name]
        tensors[name] = cast(name, total, dtype or tensors[name].dtype)
    return len(names)


def cast(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """
    A tensor in another dtype.

    Raises:
        ValueError: if it holds values that this dtype cannot hold.
    """
    result = tensor.to(dtype)
    is_narrower = torch.finfo(dtype).max < torch.finfo(tensor.dtype).max
    if is_narrower and (tensor.isfinite() & ~result.isfinite()).any():
        raise ValueError(
            f"{original_name(name)} holds values beyond {torch.finfo(dtype).max:.4g}, the largest of "
            f"{str(dtype).removeprefix('torch.')}. Choose another dtype (--dtype), such as bfloat16."
        )
    return result


__all__ = [
    "EMBEDDINGS",
    "HEAD",
    "add_base",
    "cast",
    "fetch",
    "listing",
    "merge_adapter",
    "native_names",
    "original_name",
    "read_weights",
]
