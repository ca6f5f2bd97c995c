# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`VideoTextToTextPipeline`, the task `"video-text-to-text"`.

Input: clips, images and a question, or chats. Output: answers.
"""

import functools
import multiprocessing
import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import AnyToAnyPipeline, GenerationConfig

from .processing_valley import join_samples, trim_answer
from .video_processing_valley import ValleyVideoProcessorKwargs, flatten_clips


class VideoTextToTextPipeline(AnyToAnyPipeline):
    """
    Answers questions about video clips and images, for the task `"video-text-to-text"`.

    Unless the checkpoint's `generation_config` says otherwise, answers are greedy and at most 256 tokens long.

    Args:
        **kwargs:
            Those of [`~transformers.Pipeline`]; and those of a call, which then hold for all calls.

    Example:

    ```python
    >>> import transformers_valley
    >>> from transformers import pipeline

    >>> pipe = pipeline("video-text-to-text", model="path/to/valley")
    >>> pipe("clip.mp4", "What happens?", return_full_text=False)
    [{'input_text': [{'role': 'user', 'content': [...]}], 'generated_text': 'A dog runs.'}]
    ```
    """

    def __init__(self, *args: Any, **kwargs: Any):
        known = {*_OPTIONS, *_GENERATION, *_SAMPLING}
        self._defaults = {name: kwargs.pop(name) for name in known & kwargs.keys()}
        super().__init__(*args, **kwargs)

    def __call__(self, videos: Any = None, text: Any = None, images: Any = None, **kwargs: Any) -> Any:
        """
        Args:
            videos (*optional*):
                A clip in any form that [`ValleyVideoProcessor`] takes, or a list of them for one question. A chat, a
                list of chats, a dict of these arguments, a list of dicts, a dataset or a generator may stand here
                instead.
            text (`str` or `list[str]`):
                The question. A list asks several: `videos` and `images` are then lists with one entry (a visual, a
                list of visuals or `None`) per question. `<video>` and `<image>` in a question say where its visuals
                go, in order; without them they are put before it. May be a chat or a list of chats.
            images (*optional*):
                An image in any form that [`load_image`] reads, or a list of them for one question.
            **kwargs:
                `max_new_tokens` and all other fields of `GenerationConfig`; `generate_kwargs`, a dict of these and of
                further arguments of `generate`, such as a `streamer`; `fps`, `num_frames` and all other arguments of
                the video processor, or a dict of `processor_kwargs`; `return_full_text`, `return_tensors`,
                `stop_sequence`, `continue_final_message`, `skip_special_tokens`, `batch_size`, `num_workers`.

        Returns:
            `list[dict]`, one per sequence; for several questions or chats a list of those, for a generator an
            iterator: `input_text`, the chat that was answered, and `generated_text`: the chat with the answer as its
            last message, or with `return_full_text=False` the answer (or with `return_tensors=True`
            `generated_token_ids`).

        Raises:
            VideoDecodeError: if a clip cannot be decoded; it names the file and the reason.
            ValueError: if there is no question, or placeholders and visuals do not match.
            TypeError: if an argument is unknown.
        """
        options = _read_options({**self._defaults, **kwargs})
        if text is None and images is None and _is_pipeline_input(videos):
            text, videos = videos, None
        if text is None:
            raise ValueError('text is missing: ask something, as in pipe("clip.mp4", text="What happens?").')
        if isinstance(text, str):
            text = _question_chat(text, videos, images)
        elif isinstance(text, list | tuple) and text and isinstance(text[0], str):
            visuals = _per_question("videos", videos, text), _per_question("images", images, text)
            text = [_question_chat(*question) for question in zip(text, *visuals, strict=True)]
        elif videos is not None or images is not None:
            raise ValueError(
                "Text beside videos or images is a question or a list of questions. A chat holds its visuals "
                "itself: give them as content blocks."
            )
        if _is_one(text):
            return next(self._answer([text], options))
        answers = self._answer(text, options)
        return answers if hasattr(text, "__next__") else list(answers)

    def _answer(self, inputs: Iterable, options: dict[str, Any]) -> Iterator[list[dict]]:
        samples = _Stream if not hasattr(inputs, "__len__") else _Samples
        # An iterator cannot be shared, and only a fork takes it along.
        most = 1 if multiprocessing.get_start_method() == "fork" else 0
        workers = options["num_workers"] if samples is _Samples else min(options["num_workers"], most)
        prompts = samples(inputs, functools.partial(_encode, self.processor, **options["preprocess"]))
        loader = DataLoader(prompts, batch_size=options["batch_size"], num_workers=workers, collate_fn=list)
        for batch in loader:
            chats = [sample.pop("chat") for sample in batch]
            model_inputs = join_samples(batch, self.tokenizer)
            outputs = self.forward(model_inputs, generate_kwargs=options["generate"])
            length = model_inputs["input_ids"].shape[1]
            for chat, sequences in zip(chats, outputs["sequences"].chunk(len(chats)), strict=True):
                yield [self.postprocess({"chat": chat, "ids": ids, "length": length}, **options) for ids in sequences]

    def preprocess(
        self, inputs: Any, continue_final_message: bool | None = None, processor_kwargs: dict | None = None
    ):
        """A chat, or a dict of a question and its visuals, to model inputs, and the chat under `"chat"`."""
        return _encode(self.processor, inputs, continue_final_message, processor_kwargs)

    def _forward(self, model_inputs: dict, generate_kwargs: dict | None = None) -> dict[str, torch.Tensor]:
        own, given = self.model.generation_config, dict(generate_kwargs or {})
        config = given.get("generation_config")
        limits = ("max_new_tokens", "max_length")
        if all(getattr(c, name, None) is None for c in (own, config) for name in limits) and not given.keys() & limits:
            given["max_new_tokens"] = 256
        if own.pad_token_id is None:
            given.setdefault("pad_token_id", self.tokenizer.pad_token_id)
        if getattr(self, "assistant_model", None) is not None:
            given |= {"assistant_model": self.assistant_model, "assistant_tokenizer": self.assistant_tokenizer}
        return {"sequences": self.model.generate(**model_inputs, tokenizer=self.tokenizer, **given)}

    def postprocess(
        self,
        model_outputs: dict,
        return_full_text: bool = True,
        return_tensors: bool = False,
        skip_special_tokens: bool = True,
        generate: dict | None = None,
        preprocess: dict | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """One sequence to the record of its answer."""
        chat, ids = model_outputs["chat"], model_outputs["ids"]
        if return_tensors:
            return {"input_text": chat, "generated_token_ids": ids}
        answer = self.processor.decode(ids[model_outputs["length"] :], skip_special_tokens=skip_special_tokens)
        stops = [(generate or {}).get("stop_strings"), self.model.generation_config.stop_strings]
        stops = [stop for given in stops if given for stop in ([given] if isinstance(given, str) else given)]
        continues = _continues(chat, (preprocess or {}).get("continue_final_message"))
        # The template leaves a space to the model before an answer, which is not part of it.
        answer = trim_answer(answer, stops, keeps_space=continues)
        if not return_full_text:
            return {"input_text": chat, "generated_text": answer}
        if not continues:
            return {"input_text": chat, "generated_text": [*chat, {"role": "assistant", "content": answer}]}
        *blocks, last = chat[-1]["content"]
        message = {**chat[-1], "content": [*blocks, {**last, "text": last["text"] + answer}]}
        return {"input_text": chat, "generated_text": [*chat[:-1], message]}

    def save_pretrained(self, save_directory, **kwargs):
        """Save model and processor. No code is stored: `import transformers_valley` is what brings the task back."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


_OPTIONS = (
    *("return_full_text", "return_tensors", "stop_sequence", "continue_final_message", "skip_special_tokens"),
    *("batch_size", "num_workers", "generate_kwargs", "processor_kwargs"),
)
_GENERATION = tuple(name for name in GenerationConfig().to_dict() if name != "transformers_version")
_SAMPLING = tuple(name for name in ValleyVideoProcessorKwargs.__annotations__ if name not in _OPTIONS)


def _read_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call, by the step that they are for. Raises a `TypeError` for unknown ones."""
    if unknown := sorted(kwargs.keys() - {*_OPTIONS, *_GENERATION, *_SAMPLING}):
        raise TypeError(
            f"The pipeline has no argument {', '.join(unknown)}. It takes {', '.join(_OPTIONS)}; fields of "
            "GenerationConfig, such as max_new_tokens and do_sample; and arguments of ValleyVideoProcessor, such as "
            "num_frames."
        )
    given = {name: value for name, value in kwargs.items() if value is not None}
    if "return_full_text" in given and "return_tensors" in given:
        raise ValueError("Give either return_full_text or return_tensors: token ids are those of the whole.")
    generate = dict(given.pop("generate_kwargs", {}))
    processing = dict(given.pop("processor_kwargs", {}))
    if "stop_sequence" in given:
        given["stop_strings"] = given.pop("stop_sequence")
    for names, chosen in ((_GENERATION, generate), (_SAMPLING, processing)):
        for name in given.keys() & set(names):
            if name in chosen:
                raise ValueError(f"{name} is given twice, as an argument and in a dict of arguments: give it once.")
            chosen[name] = given.pop(name)
    preprocess = {"processor_kwargs": processing}
    if "continue_final_message" in given:
        preprocess["continue_final_message"] = given.pop("continue_final_message")
    return {"batch_size": 1, "num_workers": 0, **given, "preprocess": preprocess, "generate": generate}


def _encode(
    processor: Any, inputs: Any, continue_final_message: bool | None = None, processor_kwargs: dict | None = None
) -> dict[str, Any]:
    """Without the model, which workers that are not forked would get a copy of."""
    chat = _as_chat(inputs)
    continues = _continues(chat, continue_final_message)
    if continues and isinstance(chat[-1]["content"], str):  # the template continues the last block
        chat = [*chat[:-1], {**chat[-1], "content": [{"type": "text", "text": chat[-1]["content"]}]}]
    encoded = processor.apply_chat_template(
        chat,
        add_generation_prompt=not continues,
        continue_final_message=continues,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs=processor_kwargs,
    )
    return {**encoded, "chat": chat}


def _continues(chat: list[dict], given: bool | None) -> bool:
    """Whether the answer goes on with the last message, and is no message of its own."""
    return chat[-1]["role"] == "assistant" if given is None else given


class _Samples(Dataset):
    def __init__(self, inputs: Any, preprocess: Any):
        self.inputs, self.preprocess = inputs, preprocess

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> dict:
        return self.preprocess(self.inputs[index])


class _Stream(IterableDataset):
    def __init__(self, inputs: Any, preprocess: Any):
        self.inputs, self.preprocess = inputs, preprocess

    def __iter__(self) -> Iterator[dict]:
        return map(self.preprocess, self.inputs)


def _is_one(inputs: Any) -> bool:
    """Whether this is one chat or question, and not several."""
    if isinstance(inputs, list | tuple):
        return bool(inputs) and isinstance(inputs[0], dict) and "role" in inputs[0]
    return isinstance(inputs, dict) or hasattr(inputs, "messages")


def _as_chat(inputs: Any) -> list[dict]:
    """A chat, or a dict of a question and its visuals, as a list of messages."""
    if isinstance(inputs, dict):
        if unknown := sorted(inputs.keys() - {"text", "videos", "images"}):
            raise ValueError(f"A dict asks with the keys text, videos and images, got {unknown} as well.")
        return _question_chat(inputs.get("text"), inputs.get("videos"), inputs.get("images"))
    if isinstance(inputs, str):
        return _question_chat(inputs, None, None)
    chat = getattr(inputs, "messages", inputs)
    if not isinstance(chat, list | tuple) or not chat or not isinstance(chat[0], dict) or "role" not in chat[0]:
        raise ValueError(f"Text is a question or a list of questions, or a chat, got {str(inputs)[:100]!r}.")
    return list(chat)


def _is_pipeline_input(inputs: Any) -> bool:
    """Whether what stands first is not a clip but a chat, chats, dicts, a dataset or a generator."""
    if isinstance(inputs, list | tuple):
        if not inputs:
            return True
        first = inputs[0]
        first = first[0] if isinstance(first, list | tuple) and first else first
        return hasattr(first, "messages") or isinstance(first, dict) and ("role" in first or "text" in first)
    if isinstance(inputs, dict):
        return "text" in inputs
    is_dataset = isinstance(inputs, Dataset) or hasattr(inputs, "column_names")
    return is_dataset or hasattr(inputs, "messages") or hasattr(inputs, "__next__")


def _per_question(name: str, visuals: Any, questions: list[str]) -> list:
    """The visuals of each of several questions."""
    if visuals is None:
        return [None] * len(questions)
    if not isinstance(visuals, list | tuple) or len(visuals) != len(questions):
        found = f"a list of {len(visuals)}" if isinstance(visuals, list | tuple) else f"one {type(visuals).__name__}"
        raise ValueError(
            f"{len(questions)} questions need {name} as a list with one entry per question (None for no visual), got "
            f"{found}."
        )
    return list(visuals)


def _question_chat(question: str, videos: Any, images: Any) -> list[dict]:
    """One question and its visuals as a chat; `<image>` and `<video>` in the question say where they go."""
    if not isinstance(question, str):
        raise ValueError(f"A question is a string, got {type(question).__name__}.")
    visuals = {
        "image": [] if images is None else list(images) if isinstance(images, list | tuple) else [images],
        "video": [] if videos is None else flatten_clips(videos),
    }
    parts = re.split("(<image>|<video>)", question)
    for modality, given in visuals.items():
        written = parts.count(f"<{modality}>")
        if written == 0:
            parts = [f"<{modality}>"] * len(given) + parts
        elif written != len(given):
            raise ValueError(
                f"The question has {written} <{modality}> placeholders and {len(given)} {modality}s were given: "
                "write one for each, or none at all."
            )
    queues = {modality: iter(given) for modality, given in visuals.items()}
    content = []
    for part in parts:
        if part in ("<image>", "<video>"):
            modality = part.strip("<>")
            content.append({"type": modality, modality: next(queues[modality])})
        elif part.strip():
            content.append({"type": "text", "text": part.strip()})
    return [{"role": "user", "content": content}]


__all__ = ["VideoTextToTextPipeline"]
