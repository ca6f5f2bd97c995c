# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Who answers: a checkpoint on this machine, or a server. Both take a batch of questions and give their records.

A batch is a list of (view, [`Sample`]); `prepare` opens what it shows, in a thread of its own while the batch before
is answered; `answer` fills the answers in. A question whose clip cannot be read has the reason as its `error`.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from huggingface_hub import snapshot_download
from transformers import pipeline

from ..checkpoint import Checkpoint, check_device, check_dtype, find_checkpoint
from ..processing_valley import join_samples, output_size
from .asking import SERVED_VIEWS, VIEWS, build_chat, clip_settings, default_system, served_messages, show
from .benchmark import Sample, visuals_in
from .strips import keep_strip


Batch = Sequence[tuple[str, Sample]]
# Beside the weights.
_DECISIVE_FILES = (
    *("config.json", "generation_config.json", "processor_config.json", "chat_template.jinja"),
    *("tokenizer.json", "tokenizer_config.json", "adapter_config.json"),
)
_SERVED = {"max_new_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p", "seed": "seed"}


class CheckpointModel:
    """
    A Valley, or an adapter of one, on this machine.

    Args:
        checkpoint (`str`):
            Folder or name.
        shots (`list[Sample]`), cot (`bool`):
            As for [`build_chat`].
        generation (`dict`):
            Fields of `GenerationConfig`.
        sampling (`dict`):
            Arguments of the video processor.
        dtype (`str`), device (`str`):
            Of the weights, and where they run, as for [`Checkpoint.load_model`].
        run (path, *optional*):
            Folder in which frames are kept for people.

    Attributes:
        generation (`dict`): may be changed between batches.
    """

    views = VIEWS

    def __init__(
        self,
        checkpoint: str,
        shots: Sequence[Sample],
        cot: bool,
        generation: Mapping,
        sampling: Mapping,
        dtype: str,
        device: str,
        run: Path | None,
    ):
        check_dtype(dtype)
        self._device_type = PartialState().device.type if device == "auto" else torch.device(check_device(device)).type
        found = find_checkpoint(checkpoint)
        self.name, self._checkpoint = found.name, local(found)
        self._chat = {"shots": shots, "cot": cot}
        self._run = run
        self.generation, self._sampling, self._dtype, self._device = dict(generation), sampling, dtype, device

    def describe(self) -> dict[str, Any]:
        """What decides its answers: weights, which are all read once, settings, and where it runs."""
        files = {name: Path(self._checkpoint.path, name) for name in _DECISIVE_FILES}
        own = {name: file.read_bytes() for name, file in files.items() if file.exists()}
        return {
            "weights": digest_weights(self._checkpoint.path),
            "files": {name: hashlib.sha256(data).hexdigest() for name, data in own.items()},
            "generation": json.loads(own.get("generation_config.json", b"{}")),
            "video_processor": json.loads(own.get("processor_config.json", b"{}")).get("video_processor", {}),
            "dtype": self._dtype,
            "device": self._device_type,
        }

    def load(self) -> None:
        """Load the weights: only for questions that are not answered yet."""
        model = self._checkpoint.load_model(self._device, self._dtype)
        self._pipe = pipeline("video-text-to-text", model=model, processor=self._checkpoint.load_processor())
        self._chat["system"] = default_system(self._pipe.processor)
        text_config = self._pipe.model.config.get_text_config()
        self._longest = getattr(text_config, "max_position_embeddings", None)

        # In local names: a closure over `self` would keep the weights in memory beside those of a judge.
        video_processor, sampling = self._pipe.processor.video_processor, self._sampling

        @lru_cache(maxsize=4)  # questions about one clip follow each other
        def sample_clip(path: str, settings: tuple[tuple[str, Any], ...]) -> Any:
            return video_processor.sample({"video": path, **dict(settings)}, **sampling)

        self._sample_clip = sample_clip

    def prepare(self, batch: Batch) -> list[tuple[dict, Any]]:
        prepared = []
        for view, sample in batch:
            record, inputs = _record(view, sample, build_chat(sample, **self._chat)), None
            try:
                chat, record["shown"] = show(record["messages"], view, sample.id, self._open, self._keep)
                inputs = self._pipe.preprocess(chat)
                length = inputs["input_ids"].shape[1]
                if self._longest is not None and length >= self._longest:
                    reason = f"the prompt has {length} tokens, and the model reads {self._longest}"
                    record["error"], inputs = reason, None
            except (ValueError, OSError) as error:  # `VideoDecodeError` among them
                record["error"] = str(error)
            prepared.append((record, inputs))
        return prepared

    def answer(self, prepared: list[tuple[dict, Any]]) -> None:
        asked = [(record, inputs) for record, inputs in prepared if inputs is not None]
        chats = [inputs.pop("chat") for _, inputs in asked]
        batch = join_samples([inputs for _, inputs in asked], self._pipe.tokenizer)
        sequences = self._pipe.forward(batch, generate_kwargs=self.generation)["sequences"]
        length = batch["input_ids"].shape[1]
        for (record, _), chat, ids in zip(asked, chats, sequences, strict=True):
            outputs = {"chat": chat, "ids": ids, "length": length}
            told = self._pipe.postprocess(outputs, return_full_text=False, generate=self.generation)
            record["answer"], record["is_cut"] = told["generated_text"], self._is_cut(ids[length:])

    def _open(self, block: Mapping) -> Any:
        return self._sample_clip(block["path"], tuple(clip_settings(block).items()))

    def _keep(self, name: str, frames: Any) -> dict[str, Any]:
        if self._run is None:
            return {}
        return keep_strip(self._run, name, frames, output_size(self._pipe.processor.video_processor))

    def _is_cut(self, ids: torch.Tensor) -> bool:
        """Whether an answer fills all the room it had, and nothing ended it."""
        config = self._pipe.model.generation_config
        room = self.generation.get("max_new_tokens") or config.max_new_tokens or 256
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        ends = {*ends, self._pipe.tokenizer.eos_token_id, self._pipe.tokenizer.pad_token_id}
        stops = self.generation.get("stop_strings") or config.stop_strings or []
        text = self._pipe.tokenizer.decode(ids)
        has_stopped = any(stop in text for stop in ([stops] if isinstance(stops, str) else stops))
        return len(ids) >= room and not ends & set(ids.tolist()) and not has_stopped


class ServedModel:
    """
    A model behind an OpenAI-compatible server, such as `valley serve` or vLLM; it samples clips itself.

    Args:
        model (`str`, *optional*):
            Its name there; by default that of the only one.
        url (`str`):
            Of the server.
        cache (path):
            File in which its replies are kept.
        shots, cot, generation, sampling:
            As for [`CheckpointModel`]; of `generation` a server takes `max_new_tokens`, `temperature`, `top_p`,
            `seed`.
    """

    views = SERVED_VIEWS

    def __init__(
        self,
        model: str | None,
        url: str,
        cache: Path,
        shots: Sequence[Sample],
        cot: bool,
        generation: Mapping,
        sampling: Mapping,
    ):
        from ..endpoint import Endpoint

        own = {name: value for name, value in generation.items() if name not in ("do_sample", "num_beams")}
        if unknown := sorted(own.keys() - _SERVED.keys()):
            raise ValueError(f"A server takes {', '.join(_SERVED)} of the generation settings, not {unknown}.")
        self._request = {"temperature": 0.0, "max_tokens": 256} | {_SERVED[name]: own[name] for name in own}
        if sampling:
            self._request["extra_body"] = {"chat_template_kwargs": dict(sampling)}  # as `valley serve` takes it
        cache.parent.mkdir(parents=True, exist_ok=True)
        self._endpoint = Endpoint(model, url, cache=cache, timeout=600)
        self._chat, self.name = {"shots": shots, "cot": cot}, self._endpoint.model

    def describe(self) -> dict[str, Any]:
        return {"served_as": self.name, "request": self._request}

    def load(self) -> None:
        pass

    def prepare(self, batch: Batch) -> list[tuple[dict, Any]]:
        prepared = []
        for view, sample in batch:
            record, request = _record(view, sample, build_chat(sample, **self._chat)), None
            try:
                request = {"messages": served_messages(record["messages"], view), **self._request}
                paths = [block["path"] for block in visuals_in(record["messages"])] if view != "blind" else []
                record["shown"] = [{"path": path, "num_frames": None, "times": None} for path in paths]
            except (ValueError, OSError) as error:
                record["error"] = str(error)
            prepared.append((record, request))
        return prepared

    def answer(self, prepared: list[tuple[dict, Any]]) -> None:
        asked = [(record, request) for record, request in prepared if request is not None]
        replies = self._endpoint.ask([request for _, request in asked], retry_failed=True, progress=False)
        for (record, _), reply in zip(asked, replies, strict=True):
            record["answer"], record["error"] = reply.text, reply.error
            record["is_cut"] = reply.finish_reason == "length"


def _record(view: str, sample: Sample, messages: list[dict]) -> dict[str, Any]:
    visuals = visuals_in(sample.messages)
    return {
        "view": view,
        "id": sample.id,
        "source": sample.source,
        "type": sample.type,
        "clip": visuals[-1]["path"] if visuals else sample.id,
        "question": sample.question,
        "answers": list(sample.answers),
        "choices": dict(sample.choices),
        "facts": dict(sample.facts),
        "messages": messages,
        "shown": [],
        "answer": None,
        "is_cut": False,
        "error": None,
    }


def local(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint in a folder of this machine: one of the Hub is downloaded."""
    if os.path.isdir(checkpoint.path):
        return checkpoint
    return Checkpoint(snapshot_download(checkpoint.path, revision=checkpoint.revision))


def digest_weights(folder: str | os.PathLike) -> str:
    """sha256 over the weights of a checkpoint, file by file in the order of their names; of an adapter, over those of
    its base as well."""
    digest = hashlib.sha256()
    folder = Path(folder)
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*_model*.bin"))
    for file in files:
        with file.open("rb") as data:
            digest.update(f"{file.name} {hashlib.file_digest(data, 'sha256').hexdigest()}\n".encode())
    adapter = folder / "adapter_config.json"
    base = json.loads(adapter.read_text()).get("base_model_name_or_path") if adapter.exists() else None
    if base:
        digest.update(digest_weights(local(Checkpoint(base)).path).encode())
    if not files:
        raise FileNotFoundError(f"There are no weights in {folder}: it is not a checkpoint.")
    return digest.hexdigest()


__all__ = ["Batch", "CheckpointModel", "ServedModel", "digest_weights"]
