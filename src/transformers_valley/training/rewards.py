# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Clips through TRL's `GRPOTrainer`, and a reward that is verified: the letter of the right choice.

The trainer lets a model answer with whatever the processor gives, and computes the probabilities of the answers once
more with what it knows of images alone: it hands `images` to the processor, and of what comes back `pixel_values` and
`image_sizes` to the model, part by part (`GRPOTrainer._generate_and_score_completions` and
`_get_per_token_logps_and_entropies` of TRL 1.16). So a clip travels as an image
there: [`GRPOProcessor`] gives it the names of an image, and a hook on the model gives them back.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature

from ..processing_valley import ValleyProcessor, iter_visuals
from ..string_match import parse_choice


def choice_reward(
    completions: Sequence[Any], choices: Sequence[Any], answer: Sequence[str], **kwargs: Any
) -> list[float]:
    """
    1.0 for an answer that chooses the right letter, as [`parse_choice`] reads it in evaluations, else 0.0.

    Args:
        completions (`list`):
            Answers, as texts or as messages of the assistant.
        choices (`list[list[dict]]`):
            Of each question, `letter` and `text`, see [`load_questions`].
        answer (`list[str]`):
            The right letter of each question.
        **kwargs:
            What the trainer hands on beside.
    """
    texts = [said if isinstance(said, str) else said[-1]["content"] for said in completions]
    known = [{choice["letter"]: choice["text"] for choice in some} for some in choices]
    return [float(parse_choice(*asked) == right) for *asked, right in zip(texts, known, answer, strict=True)]


class GRPOProcessor(ValleyProcessor):
    """
    A processor for `GRPOTrainer(processing_class=…)`, whose images may be clips.

    An "image" of the trainer is a content block, such as `{"type": "video", "path": "clip.mp4"}`; what else an image
    can be stays one. What is saved is a plain [`ValleyProcessor`].

    """

    @classmethod
    def of(cls, processor: ValleyProcessor) -> "GRPOProcessor":
        """The one for the model of this processor."""
        return cls(*_parts(processor))

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs) -> list[str]:
        """See [`ValleyProcessor.save_pretrained`]."""
        return ValleyProcessor(*_parts(self)).save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def apply_chat_template(self, conversation, *args: Any, **kwargs: Any):
        """See [`ValleyProcessor.apply_chat_template`]; blocks inside of image blocks take their place."""
        is_one = isinstance(conversation[0], Mapping)
        chats = [[_unwrapped(message) for message in chat] for chat in ([conversation] if is_one else conversation)]
        return super().apply_chat_template(chats[0] if is_one else chats, *args, **kwargs)

    def __call__(self, images: Any = None, text: Any = None, videos: Any = None, **kwargs: Any) -> BatchFeature:
        """
        See [`ValleyProcessor.__call__`]. `images` are the trainer's: of each prompt a list of blocks, or `None`.

        Returns:
            `BatchFeature`. Where there are `images`, its `pixel_values` (visuals, T max, 3, H, W) float32 are images
            and clips in the order of the prompts, and `image_sizes` (visuals,) int64 the frames of each clip, 0 for an
            image.
        """
        if images is None:
            return super().__call__(images, text, videos, **kwargs)
        blocks = [_block_of(image) for some in images for image in some or ()]
        visuals = list(iter_visuals([{"content": blocks}]))
        images, videos = (
            [visual.source for visual in visuals if visual.modality == modality] or None
            for modality in ("image", "video")
        )
        inputs = super().__call__(images, text, videos, **kwargs)
        if not visuals:
            return inputs
        pictures = iter(inputs.pop("pixel_values", ()))
        clips = iter(zip(inputs.pop("pixel_values_videos", ()), inputs.pop("video_num_frames", ()), strict=True))
        frames, counts = [], []
        for visual in visuals:
            clip, count = next(clips) if visual.modality == "video" else (next(pictures)[None], 0)
            frames.append(clip)
            counts.append(int(count))
        inputs["pixel_values"] = pad_sequence(frames, batch_first=True)
        inputs["image_sizes"] = torch.tensor(counts)
        return inputs


def pass_clips(trainer: Any) -> None:
    """
    Let the model of a `GRPOTrainer`, and its reference where it has one, see the clips that travel as images.

    Args:
        trainer (`GRPOTrainer`):
            With a [`GRPOProcessor`].

    Raises:
        ValueError: if it has another processor, or lets vLLM answer, which is handed images alone.
    """
    if not isinstance(trainer.processing_class, GRPOProcessor):
        found = type(trainer.processing_class).__name__
        raise ValueError(f"The trainer has a {found}: give it processing_class=GRPOProcessor.of(processor).")
    if trainer.args.use_vllm:
        raise ValueError("With use_vllm=True, TRL hands images alone to vLLM, and no clips: set use_vllm=False.")
    for model in (trainer.model, trainer.ref_model):
        if model is not None:
            model.register_forward_pre_hook(_name_clips, with_kwargs=True)


def _parts(processor: ValleyProcessor) -> tuple:
    return (
        processor.image_processor,
        processor.video_processor,
        processor.tokenizer,
        processor.chat_template,
        processor.patch_size,
    )


def _name_clips(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """Images and clips under their own names, for one call of the model."""
    if kwargs.get("image_sizes") is None:  # of text, or while an answer is written: names are right
        return None
    kwargs = dict(kwargs)
    counts, visuals = kwargs.pop("image_sizes"), kwargs.pop("pixel_values")
    is_clip = counts > 0
    if not is_clip.all():
        kwargs["pixel_values"] = visuals[~is_clip, 0]
    if is_clip.any():
        kwargs["pixel_values_videos"] = visuals[is_clip, : counts.max()]
        kwargs["video_num_frames"] = counts[is_clip].tolist()
    return args, kwargs


def _unwrapped(message: Mapping[str, Any]) -> Mapping[str, Any]:
    content = message.get("content")
    if not isinstance(content, list | tuple):
        return message
    is_filled = [block["type"] == "image" and block.get("image") is not None for block in content]
    blocks = [_block_of(b["image"]) if filled else b for b, filled in zip(content, is_filled, strict=True)]
    return {**message, "content": blocks}


def _block_of(image: Any) -> Mapping[str, Any]:
    return image if isinstance(image, Mapping) and "type" in image else {"type": "image", "image": image}


__all__ = ["GRPOProcessor", "choice_reward", "pass_clips"]
