# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Sample answers: what a model says of a few rows while it is trained.

Input: rows with a question, and the model at some steps. Output: `previews.jsonl` in the output folder, the terminal,
and text for TensorBoard, wandb and trackio.
"""

import json
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import TrainerCallback

from ..data.decode import BadSampleError, messages_of
from ..processing_valley import ValleyProcessor, trim_answer
from ..video_sources import VideoDecodeError, load_image


PREVIEW_TOKENS = 128  # a longer answer is truncated: early in a run many never end
PREVIEW_FILE = "previews.jsonl"


class SampleAnswers(TrainerCallback):
    """
    Answers the same rows again and again while the model learns: before the first step, every few steps and after the
    last one. A line of the file has `step`, `id`, `question`, `answer` and `reference`.

    Every process answers all of them, and the main process writes. Under ZeRO-3 that is the only way, since each holds
    a part of the weights; otherwise the others would wait meanwhile. Answers are greedy and draw no random number: the
    losses of the run are those of a run without them.

    Args:
        rows (`list[dict]`):
            Of [`pick_rows`].
        steps (`int`):
            From one time to the next.
        paused (`Callable`):
            Gives a context whose time is not part of a step.
        reporters (`list[TrainerCallback]`):
            What shows the answers as text.
    """

    def __init__(self, rows: list[dict], steps: int, paused: Any, reporters: list[TrainerCallback]):
        self.rows, self.steps, self.paused, self.reporters = rows, steps, paused, reporters

    def on_train_begin(self, args, state, control, **kwargs):
        self._answer(args, state, control, **kwargs)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.steps == 0 or control.should_training_stop:
            self._answer(args, state, control, **kwargs)

    def _answer(self, args, state, control, model=None, processing_class=None, **kwargs):
        with self.paused():
            with autocast(args):
                answers = [answer_row(model, processing_class, row) for row in self.rows]
            if not state.is_world_process_zero:
                return
            with Path(args.output_dir, PREVIEW_FILE).open("a", encoding="utf-8") as file:
                for answer in answers:
                    file.write(json.dumps({"step": state.global_step, **answer}, ensure_ascii=False) + "\n")
            tqdm.write(f"\nSample answers at step {state.global_step}:\n" + "\n\n".join(map(_show, answers)) + "\n")
            texts = {f"preview_{number}": _show(answer) for number, answer in enumerate(answers, start=1)}
            for reporter in self.reporters:
                reporter.on_log(args, state, control, model=model, logs=texts)


def autocast(args) -> AbstractContextManager:
    """The precision that a run with these arguments computes in."""
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    return torch.autocast(args.device.type, dtype, enabled=dtype is not None)


def _show(answer: dict[str, str]) -> str:
    """Indented, which TensorBoard shows as it is; without line feeds and what else would move a terminal's cursor."""
    lines = {name: re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", text) for name, text in answer.items() if text is not None}
    return "\n".join(f"    {name:>9}  {line}" for name, line in lines.items())


def pick_rows(rows: Dataset, count: int, processor: ValleyProcessor, skips: bool = False) -> list[dict[str, Any]]:
    """
    `count` rows, or all if there are fewer, spread evenly over a data set, with clips and images decoded. A row in
    which no answer follows a question gives way to the next.

    Raises:
        BadSampleError: if a row cannot be read; with `skips`, the next good one takes its place, if there is one.
    """
    count = min(count, len(rows))
    begins = [number * len(rows) // count for number in range(count)]
    picked = []
    for begin, end in zip(begins, [*begins[1:], len(rows)], strict=True):
        for index in range(begin, end):
            try:
                row = rows[index]
                if _find_answer(row["messages"]) is None:
                    continue
                picked.append(row | {"messages": _decode(row, processor)})
                break
            except BadSampleError as error:
                if not skips:
                    raise
                tqdm.write(f"{error} No sample answers are given for it.")
    return picked


def _find_answer(messages: list[dict[str, Any]]) -> int | None:
    """Where the first answer to a question is: an assistant may speak first, and nothing was asked then."""
    roles = [message["role"] for message in messages]
    asked = roles.index("user") if "user" in roles else len(roles)
    return next((number for number in range(asked, len(roles)) if roles[number] == "assistant"), None)


def _decode(row: dict[str, Any], processor: ValleyProcessor) -> list[dict[str, Any]]:
    """The messages of a row whose visuals are decoded once, to be asked about again and again."""
    messages = messages_of(row)
    try:
        for block in (block for message in messages for block in message["content"]):
            if block["type"] == "video":
                block["video"] = processor.video_processor.sample(block["video"])
            elif block["type"] == "image":
                block["image"] = load_image(block["image"])
    except VideoDecodeError as error:
        raise BadSampleError(str(row.get("id")), str(row.get("source")), error.path, error.reason) from error
    return messages


def answer_row(model, processor: ValleyProcessor, row: dict[str, Any]) -> dict[str, str | None]:
    """
    Let a model that is being trained answer the first question of a row.

    Args:
        model (`PreTrainedModel` or `peft.PeftModel`):
            The model. It answers in eval mode, with a cache and without gradients, and is left in the mode it was in.
        processor ([`ValleyProcessor`]):
            Its processor.
        row (`dict`):
            A row of [`pick_rows`].

    Returns:
        `dict[str, str]` with `id`, `question`, `answer` and `reference`, which is the row's own answer.
    """
    turns = _find_answer(row["messages"])
    messages, reference = row["messages"][:turns], row["messages"][turns]
    inputs = processor.apply_chat_template(
        messages,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device, dtype=model.dtype)
    was_training = model.training
    model.eval()  # no dropout; nor does gradient checkpointing, which forbids a cache, happen in this mode
    # `no_grad`, not `inference_mode`: ZeRO-3 keeps what it gathers here for the next step.
    with torch.no_grad():
        output = model.generate(
            **inputs, do_sample=False, use_cache=True, max_new_tokens=PREVIEW_TOKENS, tokenizer=processor.tokenizer
        )
    model.train(was_training)
    written = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return {
        "id": row.get("id"),
        "question": _text_of(messages[-1]),
        "answer": trim_answer(written, model.generation_config.stop_strings or ()),
        "reference": _text_of(reference),
    }


def _text_of(message: dict[str, Any]) -> str:
    return " ".join(block["text"].strip() for block in message["content"] if block["type"] == "text")


__all__ = ["SampleAnswers", "answer_row", "pick_rows"]
