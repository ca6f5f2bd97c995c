# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`VideoChat`: several turns about clips and images; what the model has read once is not read again.

Questions go in, answers come out. A second question about a clip costs its own few words: the clip is neither decoded
nor encoded again, and the KV cache of all earlier turns is kept.
"""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers import DynamicCache, PreTrainedModel
from transformers.generation import BaseStreamer

from .answer_text import AnswerText
from .processing_valley import ValleyProcessor, iter_visuals, trim_answer


__all__ = ["VideoChat"]

# The cache holds the keys and values of one answer, a token at a time. These settings win over the checkpoint's.
_ONE_ANSWER = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "use_cache": True,
    "cache_implementation": None,
    "prompt_lookup_num_tokens": None,
    "return_dict_in_generate": False,
}
_CACHE = "cache" if Version(transformers.__version__) >= Version("5.24") else "past_key_values"
_NOT_TAKEN = ("generation_config", "assistant_model", "past_key_values", "cache", "streamer")


class VideoChat:
    """
    A conversation with a model.

    Args:
        model (`ValleyForConditionalGeneration`):
            The model, on any device.
        processor (`ValleyProcessor`):
            Its processor.
        system (`str`, *optional*):
            Instructions for the whole conversation; those of the chat template by default.
        **generate_kwargs:
            For `generate`, such as `max_new_tokens=100`; settings that are not given are those of the checkpoint. One
            answer is written, without beams and without drafts, and no longer than the model can read.

    Raises:
        ValueError: if `generate_kwargs` ask for more than one answer, or bring a cache, a streamer or a config.

    Example:

    ```python
    >>> chat = VideoChat(model, processor)
    >>> chat.ask("What happens?", videos=["clip.mp4"])
    >>> chat.ask("And then?")
    ```
    """

    def __init__(
        self, model: PreTrainedModel, processor: ValleyProcessor, system: str | None = None, **generate_kwargs: Any
    ):
        if wrong := [
            name
            for name, value in generate_kwargs.items()
            if name in _NOT_TAKEN or value != _ONE_ANSWER.get(name, value)
        ]:
            raise ValueError(
                f"VideoChat keeps a cache of its own for one answer at a time and cannot take {', '.join(wrong)}. "
                "Give settings one by one, such as max_new_tokens=100, or set model.generation_config."
            )
        self.model = model
        self.processor = processor
        self.generate_kwargs = generate_kwargs
        self.system = system
        self.num_tokens_read = 0  # of the last prompt; the others were in the cache
        self.reset()

    def reset(self, keep_cache: bool = False) -> None:
        """
        Begin a new conversation.

        Args:
            keep_cache (`bool`, *optional*, defaults to `False`):
                Keep the KV cache: what the next conversation begins with alike, such as the same
                [`SampledVideo`], is not read again.
        """
        self.messages = [{"role": "system", "content": self.system}] if self.system else []
        if not keep_cache:
            self.forget()

    def ask(
        self,
        text: str | list[dict[str, Any]],
        videos: list[Any] | tuple = (),
        images: list[Any] | tuple = (),
        on_text: Callable[[str], None] | None = None,
    ) -> str:
        """
        Ask the next question.

        Args:
            text (`str` or `list[dict]`):
                The question; or all that the turn consists of, as blocks of a chat message, in their order.
            videos, images (`list`, *optional*):
                What it shows beside what was shown before, in any form that the processor reads. Clips are decoded
                here, once.
            on_text (callable, *optional*):
                Called with each piece of the answer as it is written.

        Returns:
            `str`: the answer, which is also the last of `messages`.

        Raises:
            VideoDecodeError: if a clip cannot be decoded. The conversation stays as it was.
            ValueError: if the conversation is longer than the model can read, or visuals come beside blocks.
        """
        if isinstance(text, str):
            blocks = [{"type": "image", "image": image} for image in images]
            blocks += [{"type": "video", "video": clip} for clip in videos]
            blocks += [{"type": "text", "text": text}]
        elif videos or images:
            raise ValueError("Where `text` is a list of blocks, the clips and images stand in it, not beside it.")
        else:
            blocks = text
        messages = [*self.messages, {"role": "user", "content": [self._decode(block) for block in blocks]}]
        inputs = self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        (ids,) = inputs["input_ids"]
        settings = {**self.generate_kwargs, **_ONE_ANSWER, **self._longest_answer(len(ids))}
        shown = [v.source["video"] if v.modality == "video" else v.source for v in iter_visuals(messages)]
        inputs = self._drop_what_was_read(inputs.to(self.model.device), shown)
        written = AnswerText(self.processor.tokenizer, self._stop_strings)
        try:
            output = self.model.generate(
                **inputs,
                **settings,
                **{_CACHE: self._cache},
                tokenizer=self.processor.tokenizer,
                streamer=_Pieces(written, on_text) if on_text else None,
            )
        except BaseException:  # an interrupted answer leaves half of itself in the cache
            self.forget()
            raise
        # The last token that was chosen has not been read.
        self._read = output[0, : self._cache.get_seq_length()].cpu()
        self._shown, self._visuals = shown, self._count_visuals(ids)
        answer = self.processor.decode(output[0, len(ids) :], skip_special_tokens=True)
        answer = trim_answer(answer, self._stop_strings, is_whole=True)
        self.messages = [*messages, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
        return answer

    def _decode(self, block: dict[str, Any]) -> dict[str, Any]:
        for visual in iter_visuals([{"role": "user", "content": [block]}]):
            if visual.modality == "video":
                return {"type": "video", "video": self.processor.video_processor.sample(visual.source)}
        return block

    def forget(self) -> None:
        """Drop the KV cache and keep the conversation: the next question reads all of it again."""
        self._cache = DynamicCache(config=self.model.config)
        self._read = torch.tensor([], dtype=torch.long)  # token ids whose keys and values are in the cache
        self._shown: list[Any] = []  # the visuals among them, themselves: other pixels can have the same tokens
        self._visuals = {"image": 0, "video": 0}  # whose features are

    @property
    def _stop_strings(self) -> list[str]:
        stops = self.generate_kwargs.get("stop_strings", self.model.generation_config.stop_strings) or []
        return [stops] if isinstance(stops, str) else stops

    def _longest_answer(self, length: int) -> dict[str, int]:
        """No longer than what the model can read leaves room for."""
        limit = getattr(self.model.config.text_config, "max_position_embeddings", None)
        if limit is None:
            return {}
        if length >= limit:
            raise ValueError(
                f"The conversation has {length} tokens with this question, and the model reads {limit} at most. Begin "
                "a new one, or show shorter clips."
            )
        wanted = self.generate_kwargs.get("max_new_tokens", self.model.generation_config.max_new_tokens)
        return {} if wanted is None else {"max_new_tokens": min(wanted, limit - length)}

    def _drop_what_was_read(self, inputs: dict, shown: list[Any]) -> dict:
        """Cut the cache to what the prompt begins with, and leave out the visuals that it holds."""
        ids = inputs["input_ids"][0].cpu()
        length = min(len(ids) - 1, len(self._read))  # one token at least is read, to answer from
        known = int((ids[:length] == self._read[:length]).cumprod(0).sum())
        # An answer that is written down may be other tokens than those it was given in: it is read again.
        same = all(before is now for before, now in zip(self._shown, shown, strict=False))
        if not same or self._count_visuals(ids[:known]) != self._visuals:
            self.forget()
        elif known < len(self._read):
            try:
                self._cache.crop(known - len(self._read))
            except ValueError:  # a sliding window has let go of what would be needed
                self.forget()
        self.num_tokens_read = len(ids) - self._cache.get_seq_length()
        owners = {"pixel_values": "image", "pixel_values_videos": "video", "video_num_frames": "video"}
        for name in owners.keys() & inputs.keys():
            inputs[name] = inputs[name][self._visuals[owners[name]] :]
            if len(inputs[name]) == 0:
                del inputs[name]
        return inputs

    def _count_visuals(self, ids: torch.Tensor) -> dict[str, int]:
        """How many whole visuals token ids hold: each is two runs of its placeholder, patches and frames."""
        counts = {}
        end = self.processor.tokenizer.convert_tokens_to_ids("<vi_end>")
        for modality in ("image", "video"):
            placeholder = getattr(self.processor, f"{modality}_token_id")
            counts[modality] = int(((ids[:-1] == placeholder) & (ids[1:] == end)).sum())
        return counts


class _Pieces(BaseStreamer):
    """Hands on the pieces of an answer as they are written."""

    def __init__(self, text: AnswerText, on_text: Callable[[str], None]):
        self._text, self._on_text = text, on_text
        self._is_prompt = True  # what comes first

    def put(self, value: torch.Tensor) -> None:
        if not self._is_prompt:
            self._hand_on(self._text.add(value.tolist()))
        self._is_prompt = False

    def end(self) -> None:
        self._hand_on(self._text.finish())

    def _hand_on(self, piece: str) -> None:
        if piece:
            self._on_text(piece)
