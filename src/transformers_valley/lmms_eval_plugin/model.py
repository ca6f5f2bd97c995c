# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`Valley`: the chat model of lmms-eval. Its answers are those of `valley evaluate`, as both ask in one way."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import PartialState
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from tqdm import tqdm
from transformers import GenerationConfig
from transformers.utils import logging

from ..evaluation.benchmark import Sample
from ..evaluation.models import CheckpointModel
from ..evaluation.predict import GREEDY, one_ahead


logger = logging.get_logger(__name__)

_OF_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p")


class Valley(lmms):
    """
    A Valley, or an adapter of one, as lmms-eval asks it.

    Args:
        pretrained (`str`):
            Folder or name of the checkpoint.
        batch_size (`int`, *optional*, defaults to 1):
            Requests at once.
        device (`str`, *optional*, defaults to `"auto"`), dtype (`str`, *optional*, defaults to `"auto"`):
            Where it runs and of what its weights are; of several processes, each takes its own GPU.
        cot (`bool`, *optional*, defaults to `False`):
            Chain of thought, as the paper asks for it.
        max_batch_size (*optional*):
            Of no effect; lmms-eval gives it.
        **sampling:
            Of clips, over the checkpoint's: `num_frames`, `fps` or `max_frames`.

    Raises:
        ValueError: if an argument is unknown or `batch_size` is not a number.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str = "auto",
        dtype: str = "auto",
        cot: bool = False,
        max_batch_size: int | None = None,
        **sampling: Any,
    ):
        super().__init__()
        if unknown := sorted(sampling.keys() - {"num_frames", "fps", "max_frames"}):
            raise ValueError(
                f"The model valley has no argument {', '.join(unknown)}; it has pretrained, batch_size, device, "
                "dtype, cot, num_frames, fps and max_frames."
            )
        if not str(batch_size).isdecimal() or not int(batch_size):
            raise ValueError(f"batch_size is a number from 1, got {batch_size!r}.")
        state = PartialState()
        self._rank, self._world_size, self._batch_size = state.process_index, state.num_processes, int(batch_size)
        device = str(state.device) if state.num_processes > 1 else device
        self._model = CheckpointModel(pretrained, (), cot, GREEDY, sampling, dtype, device, run=None)
        self._model.load()

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """
        The answers in the order of the requests. Requests with the same generation settings share batches.

        `until` is not looked at, as in the other chat models of lmms-eval: an answer ends where the model ends it. One
        whose clip cannot be read is empty, and a warning counts them.
        """
        groups: dict[str, list[int]] = {}
        for position, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[2], sort_keys=True), []).append(position)
        answers, failed = [""] * len(requests), []
        with tqdm(total=len(requests), desc="valley", disable=self._rank != 0) as progress:
            for settings, positions in groups.items():
                self._model.generation = read_generation(json.loads(settings))
                size = self._batch_size
                batches = [positions[start : start + size] for start in range(0, len(positions), size)]
                asked = one_ahead(lambda batch: self._prepare([requests[i] for i in batch]), batches)
                for batch, prepared in zip(batches, asked, strict=True):
                    if any(inputs is not None for _, inputs in prepared):
                        self._model.answer(prepared)
                    for position, (record, _) in zip(batch, prepared, strict=True):
                        answers[position] = record["answer"] or ""
                        failed += [record] if record["error"] is not None else []
                    progress.update(len(batch))
        if failed:
            logger.warning(
                f"{len(failed)} of {len(requests)} requests were not answered, {failed[0]['id']} for one: "
                f"{failed[0]['error']} lmms-eval counts them as empty answers."
            )
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError(
            "Valley answers in words: tasks with output_type loglikelihood or multiple_choice cannot ask it. Take "
            "those with generate_until."
        )

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("Tasks of several rounds cannot ask Valley yet. Take those with generate_until.")

    def _prepare(self, requests: Sequence[Instance]) -> list[tuple[dict, Any]]:
        return self._model.prepare([("clip", self._sample(request)) for request in requests])

    def _sample(self, request: Instance) -> Sample:
        _, doc_to_messages, _, doc_id, task, split = request.args
        chat = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id]))
        messages = [
            {"role": message.role, "content": [_block(part.model_dump()) for part in message.content]}
            for message in chat.messages
        ]
        return Sample(f"{task}:{doc_id}", messages)


def _block(part: Mapping[str, Any]) -> dict[str, Any]:
    """A part of lmms-eval's message as ours: a clip may be a dictionary with its own `video_start` and `video_end`."""
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    if part["type"] == "audio":
        raise ValueError("Valley hears nothing: this task has sound.")
    url = part["url"]
    about = url if isinstance(url, Mapping) else {}
    path = about.get("url") or about.get("path") or about.get("video") or url
    start, end = (part.get(f"{name}_time") or about.get(f"video_{name}") for name in ("start", "end"))
    times = {name: value for name, value in (("start", start), ("end", end)) if value is not None}
    return {"type": part["type"], "path": path, **times}


def read_generation(settings: Mapping[str, Any]) -> dict[str, Any]:
    """
    Generation settings of a task as `GenerationConfig` has them; greedy unless they sample. Those of other models are
    left out, with one warning.
    """
    known = GenerationConfig().to_dict()
    found = {name: value for name, value in settings.items() if name in known and value is not None}
    others = sorted(settings.keys() - known.keys() - {"until"})
    if others:
        logger.warning_once(f"Valley has no generation setting {', '.join(others)}: left out.")
    temperature = found.get("temperature", 0)
    if not (temperature and found.get("do_sample", True)):
        found = {name: value for name, value in found.items() if name not in _OF_SAMPLING} | {"do_sample": False}
    return {**GREEDY, "do_sample": True, **found}
