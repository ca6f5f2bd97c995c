# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`VideoChat`: several turns about clips and images; what the model has read once is not read again.

Questions go in, answers come out. A second question about a clip costs its own few words: the clip is neither decoded
nor encoded again, and the keys and values of everything before stay in the cache.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, TextStreamer

from .processing_valley import ValleyProcessor, trim_answer


__all__ = ["VideoChat"]


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
            For `generate`, such as `max_new_tokens=100`.

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
        self.model = model
        self.processor = processor
        self.generate_kwargs = generate_kwargs
        self.system = system
        self.num_tokens_read = 0  # of the last prompt; the others were in the cache
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []
        self._forget()

    def ask(
        self,
        text: str,
        videos: list[Any] | tuple = (),
        images: list[Any] | tuple = (),
        on_text: Callable[[str], None] | None = None,
    ) -> str:
        """
        Ask the next question.

        Args:
            text (`str`):
                The question.
            videos, images (`list`, *optional*):
                What it shows beside what was shown before, in any form that the processor reads. Clips are decoded
                here, once.
            on_text (callable, *optional*):
                Called with each piece of the answer as it is written.

        Returns:
            `str`: the answer, which is also the last of `messages`.

        Raises:
            VideoDecodeError: if a clip cannot be decoded. The conversation stays as it was.
            ValueError: if the conversation is longer than the model can read.
        """
        content = [{"type": "image", "image": image} for image in images]
        content += [{"type": "video", "video": self.processor.video_processor.sample(clip)} for clip in videos]
        messages = [*self.messages, {"role": "user", "content": [*content, {"type": "text", "text": text}]}]
        inputs = self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        (ids,) = inputs["input_ids"]
        self._check_length(len(ids))
        inputs = self._drop_what_was_read(inputs.to(self.model.device))
        try:
            output = self.model.generate(
                **inputs,
                **self.generate_kwargs,
                past_key_values=self._cache,
                tokenizer=self.processor.tokenizer,
                streamer=_Pieces(self.processor.tokenizer, self._stop_strings, on_text) if on_text else None,
            )
        except BaseException:  # an interrupted answer leaves half of itself in the cache
            self._forget()
            raise
        # The last token that was chosen has not been read.
        self._read = output[0, : self._cache.get_seq_length()].cpu()
        self._visuals = self._count_visuals(ids)
        answer = self.processor.decode(output[0, len(ids) :], skip_special_tokens=True)
        answer = trim_answer(answer, self._stop_strings, is_whole=True)
        self.messages = [*messages, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
        return answer

    def _forget(self) -> None:
        self._cache = DynamicCache(config=self.model.config)
        self._read = torch.tensor([], dtype=torch.long)  # token ids whose keys and values are in the cache
        self._visuals = {"image": 0, "video": 0}  # whose features are

    @property
    def _stop_strings(self) -> list[str]:
        stops = self.generate_kwargs.get("stop_strings", self.model.generation_config.stop_strings) or []
        return [stops] if isinstance(stops, str) else stops

    def _check_length(self, length: int) -> None:
        limit = getattr(self.model.config.text_config, "max_position_embeddings", None)
        if limit is not None and length >= limit:
            raise ValueError(
                f"The conversation has {length} tokens with this question, and the model reads {limit} at most. Begin "
                "a new one, or show shorter clips."
            )

    def _drop_what_was_read(self, inputs: dict) -> dict:
        """Cut the cache to what the prompt begins with, and leave out the visuals that it holds."""
        ids = inputs["input_ids"][0].cpu()
        length = min(len(ids) - 1, len(self._read))  # one token at least is read, to answer from
        known = int((ids[:length] == self._read[:length]).cumprod(0).sum())
        # An answer that is written down may be other tokens than those it was given in: it is read again.
        if self._count_visuals(ids[:known]) != self._visuals:
            self._forget()
        elif known < len(self._read):
            try:
                self._cache.crop(known - len(self._read))
            except ValueError:  # a sliding window has let go of what would be needed
                self._forget()
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


class _Pieces(TextStreamer):
    """Hands on the pieces of an answer as they are written."""

    def __init__(self, tokenizer: Any, stop_strings: list[str], on_text: Callable[[str], None]):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._stop_strings, self._on_text = stop_strings, on_text
        self._written, self._handed_on = "", 0

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._written += text
        certain = trim_answer(self._written, self._stop_strings, is_whole=stream_end)
        if piece := certain[self._handed_on :]:
            self._on_text(piece)
            self._handed_on = len(certain)
