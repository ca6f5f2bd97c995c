# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`VideoTextToTextPipeline`: clips, images and a question in, an answer out."""

import os
import re
from typing import Any

from torch.utils.data import DataLoader, Dataset
from transformers import AnyToAnyPipeline, GenerationConfig
from transformers.pipelines.any_to_any import Chat, ReturnType
from transformers.pipelines.base import PipelineDataset, PipelineIterator

from .processing_valley import join_visuals, trim_answer
from .video_processing_valley import flatten_clips


class VideoTextToTextPipeline(AnyToAnyPipeline):
    """
    Answers questions about video clips and images, for the task `"video-text-to-text"`.

    Unless the checkpoint's `generation_config` says otherwise, answers are greedy and at most 256 tokens long.

    Example:

    ```python
    >>> import transformers_valley
    >>> from transformers import pipeline

    >>> pipe = pipeline("video-text-to-text", model="path/to/valley")
    >>> pipe("clip.mp4", "What happens?", return_full_text=False)
    [{'input_text': [{'role': 'user', 'content': [...]}], 'generated_text': 'A dog runs.'}]
    ```
    """

    _default_generation_config = GenerationConfig(max_new_tokens=256, do_sample=False)

    def __call__(self, videos: Any = None, text: Any = None, images: Any = None, **kwargs: Any) -> list:
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
                An image (path, URL, `PIL.Image.Image`, array), or a list of them for one question.
            **kwargs:
                `max_new_tokens`, `generate_kwargs` (a dict for `generate`, a `streamer` among it), `return_full_text`,
                `return_tensors`, `stop_sequence`, `continue_final_message`, `skip_special_tokens`, `batch_size`,
                `num_workers`, and `processor_kwargs` (a dict for the processor, such as `{"num_frames": 8}`).

        Returns:
            `list[dict]`, for several questions or chats a list of those: `input_text`, the chat that was answered, and
            `generated_text`: the chat with the answer as its last message, or with `return_full_text=False` the answer
            (or with `return_tensors=True` `generated_token_ids`).

        Raises:
            VideoDecodeError: if a clip cannot be decoded; it names the file and the reason.
            ValueError: if there is no question, or placeholders and visuals do not match.
        """
        if text is None and images is None and _is_pipeline_input(videos):
            # A `datasets.Dataset` holds paths: its rows are small, and the base class knows lists.
            text, videos = (list(videos) if hasattr(videos, "column_names") else videos), None
        if text is None:
            raise ValueError('Ask something: text is missing, as in pipe("clip.mp4", text="What happens?").')
        if isinstance(text, str):
            text = _question_chat(text, videos, images)
        elif isinstance(text, list | tuple) and text and isinstance(text[0], str):
            text = [
                _question_chat(question, clips, pictures)
                for question, clips, pictures in zip(
                    text, _per_question("videos", videos, text), _per_question("images", images, text), strict=True
                )
            ]
        elif videos is not None or images is not None:
            raise ValueError(
                "Text beside videos or images is a question or a list of questions. A chat holds its visuals "
                "itself: give them as content blocks."
            )
        return super().__call__(text, **kwargs)

    def preprocess(self, inputs=None, **kwargs):
        if hasattr(inputs, "messages"):
            inputs = Chat(inputs.messages)  # chats out of a generator come wrapped in a class of the base's own
        elif isinstance(inputs, dict):
            if unknown := sorted(inputs.keys() - {"text", "videos", "images"}):
                raise ValueError(f"A dict asks with the keys text, videos and images, got {unknown} as well.")
            inputs = Chat(_question_chat(inputs.get("text"), inputs.get("videos"), inputs.get("images")))
        elif isinstance(inputs, str):
            inputs = Chat(_question_chat(inputs, None, None))
        if isinstance(inputs, Chat):
            # The base class continues a begun answer in its last text block.
            *messages, last = inputs.messages
            if last["role"] == "assistant" and isinstance(last["content"], str):
                inputs = Chat([*messages, {**last, "content": [{"type": "text", "text": last["content"]}]}])
        return super().preprocess(inputs, **kwargs)

    def postprocess(self, model_outputs, return_type=None, continue_final_message=None, **kwargs):
        if isinstance(model_outputs["prompt_text"], Chat) and continue_final_message is None:
            continue_final_message = model_outputs["prompt_text"].messages[-1]["role"] == "assistant"
        records = super().postprocess(
            model_outputs, return_type=return_type, continue_final_message=continue_final_message, **kwargs
        )
        for record in records:
            if isinstance(record["input_text"], Chat):
                record["input_text"] = record["input_text"].messages
        # The template puts a space before an answer; it is not part of it, unless the answer continues a text.
        if return_type != ReturnType.TENSORS and not continue_final_message:
            stops = self.model.generation_config.stop_strings or []
            for record in records:
                answer = record["generated_text"]
                if isinstance(answer, str):
                    record["generated_text"] = trim_answer(answer, stops)
                else:
                    answer[-1]["content"] = trim_answer(answer[-1]["content"], stops)
        return records

    def get_iterator(
        self, inputs, num_workers: int, batch_size: int, preprocess_params, forward_params, postprocess_params
    ):
        # The base class joins `pixel_values_videos` as if it were text: it keeps one clip per sample.
        if batch_size == 1:
            return super().get_iterator(
                inputs, num_workers, batch_size, preprocess_params, forward_params, postprocess_params
            )
        if hasattr(inputs, "__len__"):
            dataset = PipelineDataset(inputs, self.preprocess, preprocess_params)
        else:
            dataset, num_workers = PipelineIterator(inputs, self.preprocess, preprocess_params), min(num_workers, 1)
        loader = DataLoader(dataset, num_workers=num_workers, batch_size=batch_size, collate_fn=self._collate)
        outputs = PipelineIterator(loader, self.forward, forward_params, loader_batch_size=batch_size)
        return PipelineIterator(outputs, self.postprocess, postprocess_params)

    def _collate(self, samples: list[dict]) -> dict:
        """Samples of one prompt each to one batch: prompts padded on the left, visuals put one after the other."""
        prompts = [{name: sample[name][0] for name in ("input_ids", "attention_mask")} for sample in samples]
        batch = dict(self.tokenizer.pad(prompts, padding_side="left", return_tensors="pt"))
        batch["text"] = [sample["text"] for sample in samples]
        return batch | join_visuals(samples)

    def save_pretrained(self, save_directory, **kwargs):
        """Save model and processor. No code is stored: `import transformers_valley` is what brings the task back."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


def _is_pipeline_input(inputs: Any) -> bool:
    """Whether what stands first is no clip but a chat, chats, dicts, a dataset or a generator."""
    if isinstance(inputs, list | tuple):
        first = inputs[0] if inputs else None
        first = first[0] if isinstance(first, list | tuple) and first else first
        return isinstance(first, dict | Chat) and ("role" in first or "text" in first)
    if isinstance(inputs, dict):
        return "text" in inputs
    is_dataset = isinstance(inputs, Dataset) or hasattr(inputs, "column_names")
    return is_dataset or isinstance(inputs, Chat) or hasattr(inputs, "__next__")


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
    visuals["image"] = [os.fspath(image) if isinstance(image, os.PathLike) else image for image in visuals["image"]]
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
