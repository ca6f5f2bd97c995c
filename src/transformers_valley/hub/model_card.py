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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id
from transformers.utils import logging
from yaml import YAMLError

from ..configuration_valley import ValleyConfig


logger = logging.get_logger(__name__)

VERSIONS = {"mean": "v1", "importance": "v2", "transformer": "v3"}  # of the temporal module, in the paper


@dataclass(frozen=True)
class TrainingData:
    """
    A row of the card's table of data.

    Args:
        name (`str`):
            What it is called: an id of the Hub or words. Of a path the card tells the last part.
        rows (`str`, *optional*):
            How many rows, as its source counts them.
        license (`str`, *optional*):
            Of the annotations, as their source states it.
        url (`str`, *optional*):
            Its page.
        remark (`str`, *optional*):
            What else a reader has to know: whose clips or images, and whether they can still be had.
        hub_id (`str`, *optional*):
            Its id on the Hub, for the metadata.
    """

    name: str
    rows: str | None = None
    license: str | None = None
    url: str | None = None
    remark: str | None = None
    hub_id: str | None = None


# Paper, Section 4.3. Licences: README of RupertLuo/Valley for its two sets, README of haotian-liu/LLaVA for the
# instructions, the data set's card for the CC3M subset. VideoChat's page states none.
PAPER_DATA = (
    TrainingData(
        "Valley-702k",
        "702k",
        "CC BY-NC 4.0",
        "https://huggingface.co/datasets/luoruipu1/Valley-webvid2M-Pretrain-703K",
        "clips of WebVid-2M, which has been withdrawn",
        "luoruipu1/Valley-webvid2M-Pretrain-703K",
    ),
    TrainingData(
        "LLaVA-CC3M-Pretrain-595K",
        "595k",
        "other: the terms of CC3M, and of BLIP for its captions",
        "https://huggingface.co/datasets/liuhaotian/LLaVA-CC3M-Pretrain-595K",
        "images of CC3M",
        "liuhaotian/LLaVA-CC3M-Pretrain-595K",
    ),
    TrainingData(
        "Valley-Instruct-73k",
        "73k",
        "CC BY-NC 4.0",
        "https://huggingface.co/datasets/luoruipu1/Valley-Instruct-73k",
        "clips of JukinMedia and VATEX, under their own terms",
        "luoruipu1/Valley-Instruct-73k",
    ),
    TrainingData(
        "LLaVA-Instruct-150K",
        "150k",
        "CC BY-NC 4.0",
        "https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K",
        "images of COCO, under their own terms",
        "liuhaotian/LLaVA-Instruct-150K",
    ),
    TrainingData(
        "VideoChat-instruct-11K",
        "11k",
        None,
        "https://github.com/OpenGVLab/InternVideo/tree/main/Data/instruction_data",
        "clips of WebVid-10M, which has been withdrawn",
    ),
)

_MARK = (
    "<!-- Written by transformers_valley, which replaces this file as long as this line stands here. Delete the line "
    "when you write in the file yourself. -->"
)
_FACTS = re.compile(r"^<!-- Facts: (.*) -->$", re.MULTILINE)
# What `push_to_hub` and PEFT put into the Hub's template, in its metadata and its text.
_FILLED_METADATA = re.compile(r"(base_model|library_name|pipeline_tag|tags):.*|- .*")
_FILLED_TEXT = re.compile(
    r"### Framework versions|- PEFT [\w.+]+|This is the model card of a 🤗 transformers model that has been pushed on "
    r"the Hub\. This model card has been automatically generated\."
)
# Of what is no repository, though its path may look like the id of one.
_FILES = tuple(".json .jsonl .csv .tsv .txt .parquet .arrow .gz .tar .zip .bin .pt .pth .safetensors".split())

_PAPER = """\
@article{luo2023valley,
  title   = {Valley: Video Assistant with Large Language Model Enhanced Ability},
  author  = {Luo, Ruipu and Zhao, Ziwang and Yang, Min and Yang, Zheming and Qiu, Minghui and Wang, Tao and
             Wei, Zhongyu and Wang, Yanhao and Chen, Cen},
  journal = {arXiv preprint arXiv:2306.07207},
  year    = {2023},
  url     = {https://arxiv.org/abs/2306.07207}
}"""

_SOFTWARE = """\
@software{transformers_valley,
  title   = {transformers_valley},
  author  = {{The transformers_valley authors}},
  version = {%s},
  license = {Apache-2.0},
  year    = {2026}
}"""

_WITH_PACKAGE = """\
With the package `transformers_valley` installed, which then is the only code that runs:

```python
import transformers_valley
from transformers import pipeline

pipe = pipeline("video-text-to-text", model={checkpoint})
print(pipe("clip.mp4", "What happens?", return_full_text=False)[0]["generated_text"])
```"""

_WITHOUT_PACKAGE = """\
Without it, with the code that lies beside the weights. Read that code first, and pass the `revision` you have read. It
needs `torchvision` and `av` beside `transformers`.

```python
from transformers import AutoModelForMultimodalLM, AutoProcessor

model = AutoModelForMultimodalLM.from_pretrained({checkpoint}, trust_remote_code=True)
processor = AutoProcessor.from_pretrained({checkpoint}, trust_remote_code=True)
content = [{{"type": "video", "path": "clip.mp4"}}, {{"type": "text", "text": "What happens?"}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
)
output = model.generate(**inputs)
print(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```"""


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
        if _MARK not in text.splitlines() and not _is_empty_template(text):
            logger.warning(
                f"{path} is kept: it is no card of this function and no empty template, so a person may have written "
                "in it. Move it away to have a card written, or take what you need from "
                "`build_model_card(folder).content`."
            )
            return None
        facts = {**read_facts(folder), **{name: value for name, value in facts.items() if value is not None}}
    build_model_card(folder, **facts).save(path)
    return path


def read_facts(folder: str | os.PathLike) -> dict[str, Any]:
    """
    What [`write_model_card`] was told when it wrote the card in a folder, and results added to its metadata since.

    Nothing if there is no card, another wrote it, or it cannot be read, of which a warning tells: a card is no reason
    to stop a training run.
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
            is read from `adapter_config.json`. Ids of the Hub go into the metadata; of a path the last part is told.
        converted_from (`str`, *optional*):
            Checkpoint of another layout that these weights were converted from. Of a path the last part is told.
        datasets (`list[str | TrainingData]`, *optional*):
            What it was trained on. A name or Hub id of the paper's sets (`PAPER_DATA`) brings its row with it. Of a
            path the last part is told.
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
        ValueError: if `repo_id` is none that the Hub takes, or a result is no finite number.
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
    origin = [converted_from] if converted_from else []
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
        tags=["valley", "video", *(["lora"] if _is_lora(adapter) else []), *(tags or ())],
        base_model=hub_models or None,
        # Said in so many words: several base models otherwise look like a merge of their weights.
        base_model_relation=relation if hub_models else None,
        datasets=[entry.hub_id for entry in data if entry.hub_id] or None,
        model_name=title if eval_results else None,
        eval_results=list(eval_results or ()) or None,
    )
    sections = {
        "": _introduction(config, adapter, base_models, converted_from, paper),
        "Notes": "\n".join(f"- {note}" for note in notes or ()),
        "Parts": _table(("part", "value"), _parts(config, adapter, processor, folder).items()),
        "Use": _use(repo_id or folder.resolve().name, (folder / "modeling_valley.py").exists()),
        "Intended use": (
            "Research on models that see video and images: describing clips, answering questions about them, and as a "
            "start for further training. Not for decisions about people, for identifying or watching them, or where "
            "a wrong answer does harm."
        ),
        "Limits and risks": _limits(config, processor),
        "Training": _table(("setting", "value"), facts["training"].items()),
        "Training data": _data_table(data),
        "Evaluation": _results_table(eval_results or ()),
        "Licence": _license(license_name or license, license_link, config, [*base_models, *origin], data),
        "Citation": _citation(paper),
    }
    body = "\n\n".join(f"## {name}\n\n{text}" if name else text for name, text in sections.items() if text)
    # "-->" would end the comment; JSON may spell ">" otherwise.
    remembered = json.dumps(_given(facts)).replace(">", "\\u003e")
    return ModelCard(
        f"---\n{metadata.to_yaml()}\n---\n\n# {title}\n\n{_MARK}\n\n{body}\n\n<!-- Facts: {remembered} -->\n"
    )


def _introduction(
    config: ValleyConfig | None, adapter: dict, base_models: list[str], converted_from: str | None, paper: bool
) -> str:
    name = "[Valley](https://arxiv.org/abs/2306.07207)" if paper else "Valley"
    text = f"{name} is a language model that sees video and images. "
    made_from = " and ".join(_link(model) for model in base_models)
    if adapter:
        kind, origin = "LoRA" if _is_lora(adapter) else "PEFT", f" of {made_from}" if made_from else ""
        text += f"This is a {kind} adapter{origin}: it needs the weights of its base and the package `peft`, too."
        if not _is_hub_id(adapter.get("base_model_name_or_path") or ""):
            text += (
                " Its `adapter_config.json` does not name them by a repository of the Hub: write there, as "
                "`base_model_name_or_path`, where they are."
            )
    elif made_from:
        text += f"This checkpoint was made from {made_from}."
    else:
        text += "This is a checkpoint of it."
    if converted_from:
        text += f" It was converted from {_link(converted_from)} into the layout of transformers."
    if config is not None:
        patches = _num_patches(config)
        text += (
            f" A clip of T frames becomes {patches} + T vectors between the words of the prompt, and an image "
            f"{patches} + 1."
        )
    return text


def _parts(config: ValleyConfig | None, adapter: dict, processor: dict, folder: Path) -> dict[str, str]:
    parts = {}
    if config is not None:
        vision, text = config.vision_config, config.text_config
        parts["vision tower"] = (
            f"`{vision.model_type}`, {vision.num_hidden_layers} layers, {vision.hidden_size} wide; features of layer "
            f"{config.vision_feature_layer}, patches of {vision.patch_size} pixels in {vision.image_size} × "
            f"{vision.image_size}"
        )
        parts["temporal module"] = (
            f"`{config.temporal_module}` ({VERSIONS[config.temporal_module]} of the paper), in the space of "
            f"{config.temporal_space}"
            + (f", for at most {config.temporal_max_positions} frames" if config.temporal_max_positions else "")
        )
        parts["language model"] = f"`{text.model_type}`, {text.num_hidden_layers} layers, {text.hidden_size} wide"
        parts["weights"] = str(config.dtype).removeprefix("torch.") if config.dtype and not adapter else ""
    if _is_lora(adapter):
        parts["adapter"] = f"rank {adapter['r']}, alpha {adapter['lora_alpha']}, in `{adapter['target_modules']}`"
        parts["trained whole"] = ", ".join(f"`{name}`" for name in adapter.get("modules_to_save") or ())
    parts["frames of a clip"] = _sampling(processor)
    generation = _read_json(folder / "generation_config.json")
    if tokens := generation.get("max_new_tokens"):
        parts["answers"] = f"{'sampled' if generation.get('do_sample') else 'greedy'}, at most {tokens} tokens"
    return {name: value for name, value in parts.items() if value}


def _sampling(processor: dict) -> str:
    """Which frames of a clip the model sees."""
    if processor.get("num_frames"):
        return f"{processor['num_frames']}, spread evenly over the clip"
    if processor.get("fps"):
        text = f"one every {1 / processor['fps']:g} s"
        limit = processor.get("max_frames")
        return f"{text}; where that gives more than {limit}, {limit} spread evenly" if limit else text
    return ""


def _use(checkpoint: str, has_code: bool) -> str:
    examples = [_WITH_PACKAGE, _WITHOUT_PACKAGE] if has_code else [_WITH_PACKAGE]
    # What JSON escapes (quotes, backslashes, line breaks), Python reads alike: a name stays one string, and no code.
    checkpoint = json.dumps(checkpoint, ensure_ascii=False)
    return "\n\n".join(example.format(checkpoint=checkpoint) for example in examples)


def _limits(config: ValleyConfig | None, processor: dict) -> str:
    limits = ["It hears nothing: what is only said or sounded in a clip is not in its answers."]
    if sampling := _sampling(processor):
        limits.append(f"It sees some frames only ({sampling}). What happens between two of them is missed.")
    if config is not None:
        size = config.vision_config.image_size
        limits.append(
            f"It sees frames at {size} × {size} pixels, and the patches of all frames pooled into one grid of "
            f"{_num_patches(config)}: small print, small things and the order of quick events get lost."
        )
    models = f" (`{config.vision_config.model_type}`, `{config.text_config.model_type}`)" if config else ""
    limits += [
        "It hallucinates: it may name things, people and events that are not in the clip, and sound sure of it.",
        f"It has the biases of its vision model and its language model{models}, and of the data that they and it were "
        "trained on. Nothing was done against harmful answers unless a section here says so.",
    ]
    return "\n".join(f"- {limit}" for limit in limits)


def _data_table(data: list[TrainingData]) -> str:
    rows = [
        (
            f"[{entry.name}]({entry.url})" if entry.url else entry.name,
            entry.rows or "",
            entry.license or ("see its page" if entry.url else "not stated"),
            entry.remark or "",
        )
        for entry in data
    ]
    return _table(("data set", "rows", "licence", "remark"), rows)


def _results_table(results: Sequence[EvalResult]) -> str:
    rows = [
        (
            result.dataset_name,
            result.dataset_split or "",
            result.metric_name or result.metric_type,
            result.metric_value,
            f"[{result.source_name or 'source'}]({result.source_url})" if result.source_url else "",
        )
        for result in results
    ]
    return _table(("data set", "split", "metric", "value", "source"), rows)


def _license(
    license: str | None,
    link: str | None,
    config: ValleyConfig | None,
    made_from: list[str],
    data: list[TrainingData],
) -> str:
    if license is None:
        text = "No licence is stated for these weights."
    else:
        text = f"These weights: {f'[{license}]({link})' if link else license}."
    origins = ": " + ", ".join(map(_link, made_from)) if made_from else ""
    text += f" The terms of what they were made from hold as well{origins}."
    if config is None or config.text_config.model_type == "llama":
        text += " The first LLaMA, and what was tuned from it, may be used for research only."
    if limited := [entry.name for entry in data if "NC" in (entry.license or "")]:
        text += f" Their training data allow no commercial use: {', '.join(limited)}."
    return text + " The code in this repository, if any, is under Apache-2.0."


def _citation(paper: bool) -> str:
    software = _SOFTWARE % importlib.metadata.version("transformers-valley")
    entries = [_PAPER, software] if paper else [software]
    return "```bibtex\n" + "\n\n".join(entries) + "\n```"


def _table(header: tuple[str, ...], rows) -> str:
    """A Markdown table without the columns that are empty in every row; nothing if there are no rows."""
    rows = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    columns = [index for index in range(len(header)) if any(row[index] for row in rows)]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line[index] for index in columns) + " |" for line in lines) if rows else ""


def _training_data(entry: str | TrainingData) -> TrainingData:
    if isinstance(entry, TrainingData):
        return replace(entry, name=short_name(entry.name))
    for known in PAPER_DATA:
        if entry in (known.name, known.hub_id):
            return known
    if _is_hub_id(entry):
        return TrainingData(entry, url=f"https://huggingface.co/datasets/{entry}", hub_id=entry)
    return TrainingData(short_name(entry))


def _link(model: str) -> str:
    return f"[{model}](https://huggingface.co/{model})" if _is_hub_id(model) else f"`{model}`"


def short_name(name: str | os.PathLike) -> str:
    """An id of the Hub as it is; of a path, here or on another machine, the last part: folders are told to nobody."""
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


def _is_lora(adapter: dict) -> bool:
    return adapter.get("peft_type") == "LORA"


def _num_patches(config: ValleyConfig) -> int:
    return (config.vision_config.image_size // config.vision_config.patch_size) ** 2


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _read_config(name_or_path: str | os.PathLike | None) -> ValleyConfig | None:
    """The config in a folder, or of an adapter's base where it is on this machine. A card is worth no download."""
    if not name_or_path:
        return None
    try:
        return ValleyConfig.from_pretrained(name_or_path, local_files_only=True)
    except OSError:
        return None


__all__ = ["PAPER_DATA", "TrainingData", "build_model_card", "read_facts", "short_name", "write_model_card"]
