# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Converts checkpoints of the original Valley repository (RupertLuo/Valley) into ones that transformers loads.

Input: a folder or Hub id with whole weights, the delta to a LLaMA, or a LoRA adapter. Output: a folder with config,
weights, tokenizer, processor, generation settings, code and model card. It appears only when it is complete.
"""

import math
import os
import re
from collections import Counter
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from huggingface_hub import create_repo, upload_folder
from huggingface_hub.utils import validate_repo_id
from PIL import Image
from torch import nn
from transformers import (
    AutoConfig,
    ChineseCLIPVisionConfig,
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from ..configuration_valley import ValleyConfig
from ..modeling_valley import ValleyForConditionalGeneration, fill_token_rows
from ..processing_valley import ValleyProcessor
from ..video_processing_valley import ValleyVideoProcessor
from ..whole_files import read_json, whole_folder
from .model_card import PAPER_DATA, VERSIONS, short_name, write_model_card
from .original_tokenizer import load_original_tokenizer
from .original_weights import (
    EMBEDDINGS,
    HEAD,
    add_base,
    cast,
    fetch,
    listing,
    merge_adapter,
    native_names,
    original_name,
    read_weights,
)


# Tensors that the model does not read, and why.
_UNREAD = {
    r"model\.transforemr_adding_layer\.": "an unused copy of the temporal transformer",
    r".*\b(rotary_emb\.inv_freq|embeddings\.position_ids)$": "computed from the config",
    r"model\.vision_tower\.(encoder\.layers|post_layernorm)\.": "after the vision layer that is read",
}
_TOWER, _NORM = "model.vision_tower.", "model.language_model.norm.weight"
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_CHAT_TEMPLATE_FILE = Path(__file__).with_name("original_chat_template.jinja")


@dataclass
class ConversionReport:
    """
    What [`convert`] did.

    Args:
        source (`str`), destination (`str`):
            As they were given.
        temporal_module (`str`), dtype (`str`):
            Of the config. Most weights are stored in this dtype.
        num_tensors (`int`), num_bytes (`int`), num_files (`int`):
            Of the weights that were written.
        notes (`list[str]`), warnings (`list[str]`):
            What was inferred, left out or added, and what looks wrong, a sentence each.
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
        size = f"{self.num_bytes / 1e9:.1f} GB" if self.num_bytes >= 1e9 else f"{self.num_bytes / 1e6:.1f} MB"
        lines = [
            f"{self.destination}: Valley {VERSIONS[self.temporal_module]} (temporal_module={self.temporal_module!r}) "
            f"from {self.source}, {self.num_tensors} tensors in {self.dtype}, {size} in "
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
    Convert a checkpoint of the original Valley repository into one that transformers loads.

    Args:
        source (`str`):
            Folder or Hub id of the checkpoint: weights as `.safetensors` or `.bin`, in one file or several, or a LoRA
            adapter of peft.
        destination (`str`):
            Folder to write; it must not exist yet, or be empty.
        base (`str`, *optional*):
            Folder or Hub id of the LLaMA that the weights are the delta to (`valley-13b-v1-delta`); of an adapter the
            checkpoint that it was trained on, where its own config names another place.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`):
            `"float32"`, `"float16"` or `"bfloat16"` for all tensors, or `"auto"`: each tensor keeps its own.
        max_shard_size (`int` or `str`, *optional*, defaults to `"5GB"`):
            Largest size of one file of weights.
        push_to_hub (`str`, *optional*):
            Id of a repository on the Hub to upload the result to.

    Returns:
        [`ConversionReport`].

    Raises:
        ValueError: if the source is not a checkpoint of the original repository, is corrupt or does not fit together;
            nothing is written then.
        OSError: if the disk is full, or the upload fails; in the latter case `destination` is complete.
        ImportError: if a package that reads the tokenizer or merges the adapter is not installed.
    """
    if push_to_hub is not None:
        validate_repo_id(push_to_hub)
    dtype = str(dtype or "auto").removeprefix("torch.")
    if dtype not in ("auto", *_DTYPES):
        raise ValueError(f"dtype is {dtype!r}; expected one of auto, {', '.join(_DTYPES)}.")
    report = ConversionReport(str(source), str(destination))
    with whole_folder(destination) as folder:
        original, tensors, tokenizer_folders, base = _read_source(source, base, report)
        num_rows = len(tensors[EMBEDDINGS])
        tokenizer, token_ids, num_known = load_original_tokenizer(tokenizer_folders, num_rows)
        _add_vision_tower(str(original.get("mm_vision_tower") or ""), tensors, report)
        model = _make_model(original, tensors, tokenizer, report)
        tensors = _check_tensors(model, tensors, report)
        _warn_about_delta(tensors, base is not None, report)
        if base is not None:
            added = add_base(tensors, base, _DTYPES.get(dtype))
            report.notes.append(f"The weights of {short_name(base)} were added to {added} tensors.")
        if dtype != "auto":
            tensors = {name: cast(name, tensor, _DTYPES[dtype]) for name, tensor in tensors.items()}
        config = model.config
        num_rows = config.text_config.vocab_size = max(num_rows, max(token_ids.values()) + 1)
        for name in {EMBEDDINGS, HEAD} & tensors.keys():
            tensors[name] = nn.functional.pad(tensors[name], (0, 0, 0, num_rows - len(tensors[name])))
            fill_token_rows(tensors[name], token_ids, num_known, tell_apart=name == EMBEDDINGS)
        if new := [f"`{token}` with the id {index}" for token, index in token_ids.items() if index >= num_known]:
            report.notes.append(f"Added {' and '.join(new)}, embedded at the mean of the {num_known} tokens before.")
        _describe_weights(tensors, report)
        report.temporal_module = config.temporal_module

        model.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=1024,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            stop_strings=["###"],
        )
        model.save_pretrained(folder, state_dict=tensors, max_shard_size=max_shard_size, save_original_format=False)
        model.config.dtype = report.dtype  # `save_pretrained` wrote that of the first tensor
        model.config.save_pretrained(folder)
        _make_processor(config, tokenizer).save_pretrained(folder)
        report.num_files = len(list(folder.glob("*.safetensors")))
        is_chinese = config.vision_config.model_type.startswith("chinese")
        write_model_card(
            folder,
            repo_id=push_to_hub,
            license="other",
            license_name="research-only",
            license_link="https://github.com/RupertLuo/Valley#readme",
            base_models=None if base is None else [str(base)],
            converted_from=report.source,
            datasets=None if is_chinese else PAPER_DATA,
            language="zh" if is_chinese else None,
            notes=[
                "The authors of [RupertLuo/Valley](https://github.com/RupertLuo/Valley) release these weights for "
                "research only, under the terms of LLaMA, Vicuna and GPT-4, and their code under Apache-2.0.",
                *report.notes,
                *report.warnings,
            ],
        )
    if push_to_hub is not None:
        _upload(Path(destination).expanduser(), push_to_hub, report)
    return report


# --- Reading -------------------------------------------------------------------------------------------------------


def _read_source(
    source: str | os.PathLike, base: str | os.PathLike | None, report: ConversionReport
) -> tuple[dict, dict[str, torch.Tensor], list[Path], str | os.PathLike | None]:
    """The original config, the tensors under native names, where the tokenizer may be, the base of a delta."""
    given = folder = fetch(source)
    tensors = read_weights(given)
    has_adapter = (given / "adapter_config.json").exists()
    if has_adapter and not tensors:
        trained_on = base or read_json(given / "adapter_config.json").get("base_model_name_or_path")
        if not isinstance(trained_on, str | os.PathLike):
            raise ValueError(f"'{source}' is an adapter and does not name its checkpoint. Give that as the base.")
        folder, base = fetch(trained_on), None
        tensors = read_weights(folder)
        report.notes.append(f"The adapter is merged into {short_name(trained_on)}.")
    config = read_json(folder / "config.json")
    _check_kind(config, folder)
    if has_adapter:
        tensors = merge_adapter(tensors, given)
    tensors = native_names(tensors)
    if lacking := [name for name in (EMBEDDINGS, _NORM) if name not in tensors or not tensors[name].ndim]:
        names = " and ".join(map(original_name, lacking))
        raise ValueError(f"The weights in '{folder}' do not make a Valley: no {names}.")
    return config, tensors, [given, folder], base


def _check_kind(config: dict, folder: Path) -> None:
    """Refuse other checkpoints, and name them."""
    architectures, model_type = config.get("architectures"), config.get("model_type")
    architectures = [str(name) for name in architectures] if isinstance(architectures, list) else []
    is_flat = not architectures and model_type in ("valley", "llama") and "mm_hidden_size" in config
    if "ValleyLlamaForCausalLM" in architectures or is_flat:
        return
    described = f"'{folder}' (architectures={architectures}, model_type={model_type!r})"
    if "text_config" in config and model_type == "valley":
        raise ValueError(f"{described} is already native. Load it as it is.")
    if any(str(name).lower().startswith("valley") for name in (*architectures, model_type)):
        raise ValueError(
            f"{described} is ByteDance's Valley2 or Valley3, unrelated models that share the name. Use the code "
            "published with that checkpoint."
        )
    raise ValueError(
        f"{described} is not a checkpoint of the original Valley repository, which has "
        "architectures=['ValleyLlamaForCausalLM']. A plain LLaMA can be the base (--base) of a delta."
    )


# --- Config and tensors --------------------------------------------------------------------------------------------


def _make_model(
    original: dict, tensors: dict[str, torch.Tensor], tokenizer: PreTrainedTokenizerFast, report: ConversionReport
) -> ValleyForConditionalGeneration:
    """The model without weights. What the original config does not say is read from the shapes of the tensors."""
    temporal: dict = {"temporal_module": "importance" if original.get("use_patch_importance_pooling") else "mean"}
    if original.get("use_delta_transformer"):
        temporal["temporal_module"] = "transformer"
        for key, name in (("intermediate_size", "linear1.weight"), ("max_positions", "position_table")):
            if (tensor := tensors.get(f"model.temporal_module.{name}")) is not None and tensor.ndim:
                temporal[f"temporal_{key}"] = len(tensor)
        if "temporal_max_positions" not in temporal:
            report.warnings.append("model.position_matrix is not stored: sinusoidal positions will be computed.")
    generic = {one.name for one in fields(PreTrainedConfig)}
    names = {one.name for one in fields(LlamaConfig)} - generic | {"rope_theta", "rope_scaling"}
    text = {name: value for name, value in original.items() if name in names and value is not None}
    # Configs of the first LLaMAs have wrong ids (`pad_token_id: -1`): the tokenizer knows them.
    text |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text |= {"vocab_size": len(tensors[EMBEDDINGS])}
    text.setdefault("max_position_embeddings", original.get("max_sequence_length", 2048))
    num_layers = _count_layers("model.language_model.layers.", tensors)
    if text.setdefault("num_hidden_layers", num_layers) != num_layers:
        raise ValueError(
            f"The language model in '{report.source}' has {num_layers} layers, and its config.json says "
            f"num_hidden_layers={text['num_hidden_layers']}: one of the two is incomplete or wrong."
        )
    vision_config = _make_vision_config(str(original.get("mm_vision_tower") or ""), tensors, report)
    try:
        config = ValleyConfig(
            vision_config=vision_config,
            text_config=LlamaConfig(**text),
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
            vision_feature_layer=original.get("mm_vision_select_layer", -1),
            temporal_space="text",
            **temporal,
        )
        with torch.device("meta"):
            return ValleyForConditionalGeneration(config)
    except Exception as error:  # a wrong value can raise anything
        raise ValueError(f"The config.json of '{report.source}' has an invalid value: {error!r}") from error


def _count_layers(prefix: str, tensors: dict[str, torch.Tensor]) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


def _make_vision_config(tower: str, tensors: dict[str, torch.Tensor], report: ConversionReport) -> PreTrainedConfig:
    """Config of the vision tower: that of the named one where it can be read, else what the shapes tell."""
    num_layers = _count_layers(f"{_TOWER}encoder.layers.", tensors)
    try:
        config = AutoConfig.from_pretrained(tower, trust_remote_code=False) if tower else None
    except Exception:  # it cannot be reached, or has a wrong value, which can raise anything
        config = None
    config = getattr(config, "vision_config", config)
    if isinstance(config, CLIPVisionConfig | ChineseCLIPVisionConfig):
        if config.num_hidden_layers != num_layers:
            raise ValueError(
                f"The vision tower in '{report.source}' has {num_layers} layers, and the config of '{tower}' says "
                f"{config.num_hidden_layers}. Set mm_vision_tower in config.json to the tower of the training."
            )
        config.architectures, config.dtype = None, None  # those of a checkpoint of its own
        return config
    read = [f"{_TOWER}{name}.weight" for name in ("embeddings.patch_embedding", "embeddings.position_embedding")]
    read.append(f"{_TOWER}encoder.layers.0.mlp.fc1.weight")
    try:
        (hidden_size, _, _, patch_size), (num_positions, _), (intermediate_size, _) = (tensors[n].shape for n in read)
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"The vision tower in '{report.source}' is not a CLIP: a tensor is missing or misshapen among "
            f"{', '.join(map(original_name, read))}."
        ) from error
    heads, image_size = max(1, hidden_size // 64), math.isqrt(num_positions - 1) * patch_size
    why = f"of '{short_name(tower)}' could not be read" if tower else "is not named (mm_vision_tower)"
    report.notes.append(
        f"The config of the vision tower {why} and was inferred from its tensors: layers={num_layers}, "
        f"heads={heads}, patches of {patch_size} in {image_size} pixels, quick_gelu."
    )
    return (ChineseCLIPVisionConfig if "chinese" in tower.lower() else CLIPVisionConfig)(
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=heads,
        patch_size=patch_size,
        image_size=image_size,
        hidden_act="quick_gelu",
    )


def _add_vision_tower(tower: str, tensors: dict[str, torch.Tensor], report: ConversionReport) -> None:
    """Take the vision tower from where the config says, if the checkpoint does not hold it."""
    if any(name.startswith(_TOWER) for name in tensors):
        return
    try:
        folder = fetch(tower)
        found = {name.removeprefix("vision_model."): one for name, one in read_weights(folder).items()}
        parts = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.")
        vision = {f"{_TOWER}{name}": tensor for name, tensor in found.items() if name.startswith(parts)}
        if not vision:
            raise ValueError(f"'{tower}' has no weights of a CLIP.")
    except ValueError as error:
        raise ValueError(
            f"'{report.source}' holds no vision tower, and the one that it names cannot be used: {error} Set "
            "mm_vision_tower in its config.json to a folder with that model."
        ) from error
    tensors.update(vision)
    report.notes.append(f"The vision tower is not stored and was taken from {short_name(tower)}.")


def _check_tensors(
    model: ValleyForConditionalGeneration, tensors: dict[str, torch.Tensor], report: ConversionReport
) -> dict[str, torch.Tensor]:
    """The tensors that the model reads, after all were found to be there and to fit."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    unread = dict(_UNREAD)
    if model.config.temporal_module == "transformer":
        unread[r"model\.temporal_module\.importance\."] = "because use_delta_transformer wins"
    if model.config.tie_word_embeddings:
        unread[HEAD] = "because the head is tied to the embeddings"
        del expected[HEAD]
    extra = [name for name in tensors if name not in expected]
    for pattern, reason in unread.items():
        if names := [original_name(name) for name in extra if re.match(pattern, name)]:
            report.notes.append(f"Left out {len(names)} tensors, {reason}, such as {names[0]}.")
        extra = [name for name in extra if not re.match(pattern, name)]
    kept = {name: tensor for name, tensor in tensors.items() if name in expected}
    problems = {
        "missing": [f"{name} {shape}" for name, shape in expected.items() if name not in kept],
        "not known": extra,
        "of another shape than the config says": [
            f"{name} {tuple(tensor.shape)} instead of {expected[name]}"
            for name, tensor in kept.items()
            if tensor.shape != expected[name]
        ],
        "without floating point numbers": [name for name, one in kept.items() if not one.is_floating_point()],
    }
    found = [
        f"Tensors {what} ({len(names)}): {listing([original_name(name) for name in names])}"
        for what, names in problems.items()
        if names
    ]
    if found:
        raise ValueError(f"The weights in '{report.source}' do not make a Valley. {' '.join(found)}")
    return kept


# --- Writing -------------------------------------------------------------------------------------------------------


def _describe_weights(tensors: dict[str, torch.Tensor], report: ConversionReport) -> None:
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        sizes[str(tensor.dtype).removeprefix("torch.")] += tensor.nbytes
    report.num_tensors, report.num_bytes = len(tensors), sizes.total()
    report.dtype = sizes.most_common(1)[0][0]
    if len(sizes) > 1:
        report.notes.append(
            f"Tensors are stored as {', '.join(sorted(sizes))}, as in the source. They load as {report.dtype} unless "
            "another dtype is asked for."
        )


def _warn_about_delta(tensors: dict[str, torch.Tensor], has_base: bool, report: ConversionReport) -> None:
    scale = tensors[_NORM].float().abs().mean().item()  # near 1 in a LLaMA, near 0 in a delta
    looks = f"(model.norm.weight is {scale:.2g} on average)"
    if scale < 0.1 and not has_base:
        report.warnings.append(f"The weights look like a delta {looks}. If so, give their LLaMA as the base (--base).")
    if scale > 0.5 and has_base:
        report.warnings.append(f"The weights look whole {looks}, and the base was added. If so, leave out the base.")


def _make_processor(config: ValleyConfig, tokenizer: PreTrainedTokenizerFast) -> ValleyProcessor:
    """Frames and prompt as in the original repository."""
    size = config.vision_config.image_size
    frames = {
        "size": {"shortest_edge": max(256, size * 256 // 224)},
        "crop_size": {"height": size, "width": size},
        "resample": Image.Resampling.BILINEAR,
    }
    adds_bos = tokenizer.bos_token is not None and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
    return ValleyProcessor(
        CLIPImageProcessor(**frames),
        ValleyVideoProcessor(num_frames=8, **frames),
        tokenizer,
        chat_template=("" if adds_bos else '{%- set bos_token = "" -%}') + _CHAT_TEMPLATE_FILE.read_text(),
        patch_size=config.vision_config.patch_size,
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


__all__ = ["ConversionReport", "convert"]
