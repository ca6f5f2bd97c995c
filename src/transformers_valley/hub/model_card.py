# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The model card of a checkpoint: a folder and what is known beyond it in, `README.md` with the Hub's metadata out.

What lies in the folder (config, processor, generation settings, adapter) is read there and never asked for. A section
without facts is left out.
"""

import importlib.metadata
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id
from transformers.utils import logging
from yaml import YAMLError

from ..configuration_valley import ValleyConfig
from ..paper_data import KNOWN_DATA, PAPER_DATA, TrainingData
from ..whole_files import GENERATED, is_generated, read_json


logger = logging.get_logger(__name__)

VERSIONS = {"mean": "v1", "importance": "v2", "transformer": "v3"}  # of the temporal module, in the paper

_FACTS = re.compile(r"^<!-- Facts: (.*) -->$", re.MULTILINE)
# What `push_to_hub` and PEFT put into the Hub's template, in its metadata and its text.
_FILLED_METADATA = re.compile(r"(base_model|library_name|pipeline_tag|tags):.*|- .*")
_FILLED_TEXT = re.compile(
    r"### Framework versions|- PEFT [\w.+]+|This is the model card of a 🤗 transformers model that has been pushed on "
    r"the Hub\. This model card has been automatically generated\."
)
# Of what is not a repository, though its path may look like the id of one.
_FILES = tuple(".json .jsonl .csv .tsv .txt .parquet .arrow .gz .tar .zip .bin .pt .pth .safetensors".split())

_TEMPLATE = Path(__file__).with_name("model_card_template.md")


def write_model_card(folder: str | os.PathLike, **facts: Any) -> Path | None:
    """
    Write `README.md` into a checkpoint's folder.

    A card that this function wrote before is replaced and hands on what is not given now, so that
    `write_model_card(folder, eval_results=…)` adds results to the card of a training run. The Hub's template is
    replaced as well, as long as it is as PEFT and `push_to_hub` write it. Any other card is kept, with a warning.

    Args:
        folder (`str`):
            The checkpoint's folder.
        **facts:
            Those of [`build_model_card`].

    Returns:
        `Path` of the card, or `None` where another card was kept.
    """
    path = Path(folder) / "README.md"
    if path.exists():
        text = path.read_text(encoding="utf-8", errors="replace")
        if not is_generated(text) and not _is_empty_template(text):
            logger.warning(
                f"{path} is kept: it is not a card of this function and no empty template, so a person may have "
                "written in it. Move it away to have a card written, or take what you need from "
                "`build_model_card(folder).content`."
            )
            return None
        facts = {**read_facts(folder), **{name: value for name, value in facts.items() if value is not None}}
    build_model_card(folder, **facts).save(path)
    return path


def read_facts(folder: str | os.PathLike) -> dict[str, Any]:
    """
    The facts that [`write_model_card`] was given when it wrote the card in a folder, and results added to the
    metadata since.

    Nothing if there is no card, another wrote it, or it cannot be read, of which a warning tells: a card is not a
    reason to stop a training run.
    """
    path = Path(folder) / "README.md"
    found = _FACTS.search(path.read_text(encoding="utf-8", errors="replace")) if path.exists() else None
    if found is None:
        return {}
    try:
        facts = {**json.loads(found[1]), "eval_results": ModelCard.load(path).data.eval_results}
        facts["datasets"] = [TrainingData(**entry) for entry in facts.get("datasets", ())]
        _check_results(facts["eval_results"] or ())
    except (ValueError, TypeError, YAMLError) as error:
        logger.warning(f"What {path} was written from cannot be read and is left out: {error}. Give it again.")
        return {}
    return _given(facts)


def build_model_card(
    folder: str | os.PathLike,
    *,
    title: str | None = None,
    repo_id: str | None = None,
    license: str | None = None,
    license_name: str | None = None,
    license_link: str | None = None,
    base_models: Sequence[str] | None = None,
    converted_from: str | None = None,
    datasets: Sequence[str | TrainingData] | None = None,
    training: Mapping[str, Any] | None = None,
    eval_results: Sequence[EvalResult] | None = None,
    notes: Sequence[str] | None = None,
    language: str | Sequence[str] | None = None,
    tags: Sequence[str] | None = None,
    paper: bool = True,
) -> ModelCard:
    """
    The card of a checkpoint.

    Args:
        folder (`str`):
            The checkpoint's folder: a model, or an adapter.
        title (`str`, *optional*):
            Name of the model, in one line; that of the repository or folder by default.
        repo_id (`str`, *optional*):
            Where it is or will be on the Hub (`user/name`), for the examples.
        license (`str`, *optional*):
            Of these weights, as the Hub spells it: `cc-by-nc-4.0`, or `other` with a name and a link. Without it the
            card claims none.
        license_name (`str`, *optional*), license_link (`str`, *optional*):
            Which `other` licence, and where it is written.
        base_models (`list[str]`, *optional*):
            What it was made from: vision and language model, or the Valley checkpoint it was tuned from. An adapter's
            is read from `adapter_config.json`. Hub ids go into the metadata; of a path only the last part is shown.
        converted_from (`str`, *optional*):
            Checkpoint of another layout that these weights were converted from. Of a path only the last part is shown.
        datasets (`list[str | TrainingData]`, *optional*):
            What it was trained on. A name or Hub id of the paper's sets (`KNOWN_DATA`) brings its row with it. Of a
            path only the last part is shown.
        training (`dict`, *optional*):
            Rows of the table of training settings, name to value, in their order.
        eval_results (`list[EvalResult]`, *optional*):
            Results, for the metadata and a table. Their values are finite numbers.
        notes (`list[str]`, *optional*):
            Sentences of Markdown that a user has to know.
        language (`str` or `list[str]`, *optional*):
            ISO 639-1 codes of the languages it was trained in, such as `en`.
        tags (`list[str]`, *optional*):
            More tags for the Hub.
        paper (`bool`, *optional*, defaults to `True`):
            Whether the model follows the paper of Valley, which is linked and cited then.

    Returns:
        `huggingface_hub.ModelCard`: `save`, `validate` and `push_to_hub` are its methods.

    Raises:
        FileNotFoundError: if the folder holds neither `config.json` nor `adapter_config.json`.
        TypeError: if something else stands where a list is meant.
        ValueError: if `repo_id` is none that the Hub takes, or a result is not a finite number.
    """
    lists = {
        "base_models": base_models,
        "datasets": datasets,
        "eval_results": eval_results,
        "notes": notes,
        "tags": tags,
    }
    for name, value in lists.items():
        if value is not None and (isinstance(value, str) or not isinstance(value, Sequence)):
            raise TypeError(f"{name} is a list, got {value!r}. For one, write {name}=[{value!r}].")
    validate_repo_id(repo_id)
    _check_results(eval_results or ())
    folder = Path(folder)
    adapter = _read_json(folder / "adapter_config.json")
    if not adapter and not (folder / "config.json").exists():
        raise FileNotFoundError(
            f"There is no checkpoint in {folder}: it has neither config.json nor adapter_config.json. Save the model "
            "there first, with save_pretrained."
        )
    base = adapter.get("base_model_name_or_path")  # PEFT knows none of a model that was never loaded
    base_models = base_models or ([base] if base else [])
    base_models = [short_name(name) for name in base_models]
    converted_from = short_name(converted_from) if converted_from else None
    config = _read_config(base if adapter else folder)
    processor = _read_json(folder / "processor_config.json").get("video_processor", {})
    data = [_training_data(entry) for entry in datasets or ()]
    facts = {
        "title": title,
        "repo_id": repo_id,
        "license": license,
        "license_name": license_name,
        "license_link": license_link,
        "base_models": base_models,
        "converted_from": converted_from,
        "datasets": [asdict(entry) for entry in data],
        "training": {name: str(value) for name, value in (training or {}).items()},
        "notes": list(notes or ()),
        "language": language,
        "tags": list(tags or ()),
        "paper": paper,
    }
    is_lora = adapter.get("peft_type") == "LORA"
    title = _one_line(title or (repo_id or folder.resolve().name).split("/")[-1])
    hub_models = [name for name in base_models if _is_hub_id(name)]
    relation = "adapter" if adapter else "quantized" if hasattr(config, "quantization_config") else "finetune"
    metadata = ModelCardData(
        language=language,
        license=license,
        license_name=license_name,
        license_link=license_link,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="video-text-to-text",
        tags=["valley", "video", *(["lora"] if is_lora else []), *(tags or ())],
        base_model=hub_models or None,
        # Said in so many words: several base models otherwise look like a merge of their weights.
        base_model_relation=relation if hub_models else None,
        datasets=[entry.hub_id for entry in data if entry.hub_id] or None,
        model_name=title if eval_results else None,
        eval_results=list(eval_results or ()) or None,
    )
    return ModelCard.from_template(
        metadata,
        _TEMPLATE,
        **{
            **facts,
            "title": title,
            "mark": GENERATED,
            # "-->" would end the comment; JSON may spell ">" otherwise.
            "facts": json.dumps(_given(facts)).replace(">", "\\u003e"),
            "adapter": adapter,
            "is_lora": is_lora,
            "is_hub_id": _is_hub_id,
            "config": config,
            "num_patches": config and (config.vision_config.image_size // config.vision_config.patch_size) ** 2,
            "version_in_paper": config and VERSIONS[config.temporal_module],
            "sampling": _sampling(processor),
            "generation": _read_json(folder / "generation_config.json"),
            # What JSON escapes (quotes, backslashes, line breaks), Python reads alike: a name stays one string.
            "checkpoint": json.dumps(repo_id or folder.resolve().name, ensure_ascii=False),
            "has_code": (folder / "modeling_valley.py").exists(),
            "data": data,
            "eval_results": eval_results or (),
            "origins": [*base_models, *([converted_from] if converted_from else [])],
            "non_commercial": [entry.name for entry in data if "NC" in (entry.license or "")],
            "package_version": importlib.metadata.version("transformers-valley"),
        },
    )


def _sampling(processor: dict) -> str:
    """Which frames of a clip the model sees."""
    if processor.get("num_frames"):
        return f"{processor['num_frames']}, spread evenly over the clip"
    if processor.get("fps"):
        text = f"one every {1 / processor['fps']:g} s"
        limit = processor.get("max_frames")
        return f"{text}; where that gives more than {limit}, {limit} spread evenly" if limit else text
    return ""


def _training_data(entry: str | TrainingData) -> TrainingData:
    if isinstance(entry, TrainingData):
        return replace(entry, name=short_name(entry.name))
    for known in KNOWN_DATA:
        if entry in (known.name, known.hub_id):
            return known
    if _is_hub_id(entry):
        return TrainingData(entry, url=f"https://huggingface.co/datasets/{entry}", hub_id=entry)
    return TrainingData(short_name(entry))


def short_name(name: str | os.PathLike) -> str:
    """A Hub id as it is; of a path only the last component, so that cards do not reveal directory names."""
    name = str(name)
    if _is_hub_id(name):
        return name
    if os.path.exists(name):  # "." has a name, too
        name = str(Path(name).resolve())
    return _one_line(re.split(r"[/\\]", name.rstrip("/\\"))[-1])


def _is_hub_id(name: str) -> bool:
    looks_like_one = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and not name.lower().endswith(_FILES)
    return bool(looks_like_one) and not os.path.exists(name)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _is_empty_template(text: str) -> bool:
    """Whether a card is empty or the Hub's template, with no line that a person wrote."""
    metadata, body = re.fullmatch(r"(?:---\n(.*?)^---\n)?(.*)", text, re.DOTALL | re.MULTILINE).groups()
    template = set(ModelCard.from_template(ModelCardData()).content.splitlines())
    return all(
        line in template or not line.strip() or filled.fullmatch(line.strip())
        for part, filled in ((metadata or "", _FILLED_METADATA), (body, _FILLED_TEXT))
        for line in part.splitlines()
    )


def _check_results(results: Sequence[EvalResult]) -> None:
    """Other values, such as NumPy's, make metadata that the Hub cannot read."""
    for result in results:
        value = result.metric_value
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ValueError(
                f"{result.metric_name or result.metric_type} on {result.dataset_name} has the metric_value {value!r}; "
                "a card takes a finite int or float. Convert it with float(), or leave this result out."
            )


def _given(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value not in (None, [], {})}


def _read_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _read_config(name_or_path: str | os.PathLike | None) -> ValleyConfig | None:
    """The config in a folder, or of an adapter's base where it is on this machine. A card is worth no download."""
    if not name_or_path:
        return None
    try:
        return ValleyConfig.from_pretrained(name_or_path, local_files_only=True)
    except OSError:
        return None


__all__ = ["PAPER_DATA", "TrainingData", "build_model_card", "read_facts", "short_name", "write_model_card"]
