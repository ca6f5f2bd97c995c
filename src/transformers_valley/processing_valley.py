# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`ValleyProcessor`: chat messages with images and clips to model inputs.

One placeholder per visual in the prompt becomes the block
`<im_start> P x placeholder <im_end> <vi_start> T x placeholder <vi_end>`: P patches, T frames (1 for an image).
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, BatchFeature, ProcessorMixin
from transformers.processing_utils import ProcessingKwargs

from .configuration_valley import SPECIAL_TOKENS, add_special_tokens, count_patches
from .video_processing_valley import ValleyVideoProcessor, ValleyVideoProcessorKwargs, flatten_clips
from .video_sources import load_image


# The paper's prompt (Section 4.3), for new processors: a checkpoint brings its own.
_TEMPLATE_FILE = Path(__file__).with_name("chat_template.jinja")


class ValleyProcessor(ProcessorMixin):
    """
    Chat messages, or prompts with images and clips beside them, to model inputs.

    Args:
        image_processor (`BaseImageProcessor`):
            Of the vision tower.
        video_processor ([`ValleyVideoProcessor`]):
            Which frames of a clip are taken, and how they are resized.
        tokenizer (`PreTrainedTokenizerBase`):
            With Valley's six special tokens.
        chat_template (`str`, *optional*):
            Jinja template of the prompt; the paper's by default.
        patch_size (`int`, *optional*, defaults to 14):
            Side in pixels of one patch of the vision tower, from which the feature positions are counted.

    Raises:
        ValueError: if the tokenizer lacks Valley's tokens.
    """

    def __init__(
        self, image_processor=None, video_processor=None, tokenizer=None, chat_template=None, patch_size=14, **kwargs
    ):
        unknown = tokenizer.unk_token_id
        missing = [t for t in SPECIAL_TOKENS if tokenizer.convert_tokens_to_ids(t) in (None, unknown)]
        if missing:
            raise ValueError(
                f"The tokenizer lacks Valley's special tokens {missing}. "
                "`from_vision_text_pretrained` adds them: that of ValleyForConditionalGeneration to the model and its "
                "tokenizer, that of ValleyProcessor to the tokenizer."
            )
        self.patch_size = patch_size
        self.image_token, self.video_token = SPECIAL_TOKENS[:2]
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        # Prompts are continued: an answer has to follow the last real token. Training asks for the right side itself.
        tokenizer.padding_side = "left"
        super().__init__(
            image_processor, video_processor, tokenizer, chat_template=chat_template or _TEMPLATE_FILE.read_text()
        )

    @classmethod
    def from_vision_text_pretrained(
        cls, vision: str, text: Any, chat_template: str | None = None, **video_kwargs: Any
    ) -> "ValleyProcessor":
        """
        The processor that belongs to [`ValleyForConditionalGeneration.from_vision_text_pretrained`].

        Args:
            vision (`str`):
                Name or folder of the vision model, for its image processor and patch size.
            text (`str` or `PreTrainedTokenizerBase`):
                Name or folder of the decoder, or its tokenizer. Valley's special tokens are added where they lack.
            chat_template (`str`, *optional*):
                Jinja template of the prompt; the paper's by default.
            **video_kwargs:
                Settings of [`ValleyVideoProcessor`], such as `num_frames=8` or `max_frames=64`.
        """
        tokenizer = AutoTokenizer.from_pretrained(text) if isinstance(text, str | os.PathLike) else text
        add_special_tokens(tokenizer)
        image_processor = AutoImageProcessor.from_pretrained(vision)
        config = AutoConfig.from_pretrained(vision)
        patch_size = getattr(config, "vision_config", config).patch_size
        # Frames are prepared as the vision model's images are.
        shared = ("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor")
        shared += ("do_normalize", "image_mean", "image_std")
        settings = {name: getattr(image_processor, name, None) for name in shared}
        video_processor = ValleyVideoProcessor(**{**settings, **video_kwargs})
        return cls(image_processor, video_processor, tokenizer, chat_template=chat_template, patch_size=patch_size)

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs) -> list[str]:
        """See [`~transformers.ProcessorMixin.save_pretrained`]. The code travels along: `auto_map` names it."""
        saved = super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        vars(self).pop("auto_map", None)  # it is about the folder, and loading one leaves it out too
        return saved

    def __call__(
        self, images: Any = None, text: Any = None, videos: Any = None, **kwargs: Unpack[ProcessingKwargs]
    ) -> BatchFeature:
        """
        Args:
            images:
                An image, a list, or a list of lists (one per prompt), in any form that [`load_image`] reads.
            text (`str` or `list[str]`):
                Prompts, with one `<image>` or `<video>` where each visual belongs.
            videos:
                Clips, as [`ValleyVideoProcessor.preprocess`] reads them.
            **kwargs:
                For tokenizer, image and video processor, flat or as `text_kwargs`, `images_kwargs`, `videos_kwargs`;
                `return_tensors`, `return_mm_token_type_ids`, `return_metadata`.

        Returns:
            `BatchFeature` with `input_ids` and `attention_mask` of shape `(prompts, length)`, `pixel_values` of shape
            `(images, 3, H, W)`, `pixel_values_videos` of shape `(videos, T max, 3, H, W)` and `video_num_frames` of
            shape `(videos,)`, as far as there are any.

        Raises:
            VideoDecodeError: if a visual cannot be read; it names the file and the reason.
            ValueError: if placeholders and visuals do not match, or a prompt is truncated inside a visual.
        """
        # From `apply_chat_template`: no other code handles what the messages show.
        images, videos = kwargs.pop("visuals", (images, videos))
        images = None if images is None else list(_flatten_images(images))
        videos = None if videos is None else flatten_clips(videos)
        if text is not None:
            prompts = [text] if isinstance(text, str) else text
            self._check_placeholders(prompts, images or (), videos or ())
            if all(self.are_complete(prompts)):
                kwargs.setdefault("add_special_tokens", False)
        if images:
            images = [load_image(image) for image in images]
        if videos:
            names = ValleyVideoProcessorKwargs.__annotations__
            options = {name: kwargs[name] for name in names if name in kwargs} | kwargs.get("videos_kwargs", {})
            videos, metadata = self.video_processor.load(videos, **options)
            loaded = {"video_metadata": metadata, "do_sample_frames": False}
            kwargs = {name: value for name, value in kwargs.items() if name not in loaded}
            kwargs["videos_kwargs"] = kwargs.get("videos_kwargs", {}) | loaded
        return super().__call__(images=images or None, text=text, videos=videos or None, **kwargs)

    def are_complete(self, prompts: Sequence[Any]) -> list[bool]:
        """Of each prompt, whether the tokenizer adds nothing to it: a chat template has written what begins a text, or
        the prompt would end with what ends an answer."""
        begin, end = self._written_around
        begins = tuple(token for token in (self.tokenizer.bos_token, begin) if token)
        return [bool(end) or isinstance(prompt, str) and prompt.startswith(begins) for prompt in prompts]

    def _check_placeholders(self, prompts: Sequence[str], images: Sequence, videos: Sequence) -> None:
        for token, visuals in ((self.image_token, images), (self.video_token, videos)):
            written = sum(prompt.count(token) for prompt in prompts if isinstance(prompt, str))
            if written != len(visuals):
                modality = token.strip("<>")
                raise ValueError(
                    f"The number of {token} tokens in the prompts should be the same as the number of {modality}s: "
                    f"found {written} tokens and {len(visuals)} {modality}s. Write one {token} for each, where it "
                    "belongs; in a chat its content block does that."
                )

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        """The block that stands for an image in the prompt."""
        height, width = image_inputs["pixel_values"][image_idx].shape[-2:]
        return self._visual_block(self.image_token, count_patches(height, width, self.patch_size), 1)

    def replace_video_token(self, video_inputs: dict, video_idx: int, **kwargs: Any) -> str:
        """The block that stands for a clip in the prompt."""
        height, width = video_inputs["pixel_values_videos"][video_idx].shape[-2:]
        num_frames = int(video_inputs["video_num_frames"][video_idx])
        return self._visual_block(self.video_token, count_patches(height, width, self.patch_size), num_frames)

    def _visual_block(self, placeholder: str, num_patches: int, num_frames: int) -> str:
        patches, frames = placeholder * num_patches, placeholder * num_frames
        return f"<im_start>{patches}<im_end><vi_start>{frames}<vi_end>"

    def count_placeholders(self, modality: Literal["image", "video"], num_frames: int = 1) -> int:
        """Placeholders that an image, or a clip of so many sampled frames, takes in the prompt: P + T. Four
        delimiters come on top."""
        part = self.image_processor if modality == "image" else self.video_processor
        return count_patches(*output_size(part), self.patch_size) + num_frames

    def _get_num_multimodal_tokens(
        self,
        image_sizes: list[tuple[int, int]] | None = None,
        video_sizes: list[tuple[int, int, int]] | None = None,
        **kwargs,
    ) -> BatchFeature:
        """What vLLM's Transformers backend asks: the placeholders of images (height, width) and of clips (sampled
        frames, height, width)."""
        counts = {"num_image_tokens": None, "num_image_patches": None, "num_video_tokens": None}
        if image_sizes is not None:
            counts["num_image_tokens"] = [self.count_placeholders("image")] * len(image_sizes)
            counts["num_image_patches"] = [1] * len(image_sizes)
        if video_sizes is not None:
            counts["num_video_tokens"] = [self.count_placeholders("video", frames) for frames, _, _ in video_sizes]
        return BatchFeature(counts)

    def apply_chat_template(
        self,
        conversation,
        chat_template: str | None = None,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = None,
        return_assistant_tokens_mask: bool = False,
        sanitize_control_tokens: bool | None = None,
        processor_kwargs: dict | None = None,
        load_audio_from_video: bool = False,
        **kwargs,
    ):
        """
        See [`~transformers.ProcessorMixin.apply_chat_template`]. The visuals of the content blocks are read as
        [`iter_visuals`] tells.

        What a text block spells is always text: with `tokenize=True`, a literal `<video>` or `</s>` in it is encoded
        as plain text (`sanitize_control_tokens=False` leaves the tokenizer's own control tokens to it). Valley's six
        special tokens are refused where that cannot be.

        `load_audio_from_video` is ignored: `transformers serve` asks every video model for the sound of its clips,
        Valley hears nothing, and asking for the sound of a silent clip is an error.

        Raises:
            VideoDecodeError: if a visual cannot be read; it names the file and the reason.
            ValueError: if a content block names its source twice, or has an unknown key; if visuals and placeholders
                do not match; or if a text spells a special token of Valley and cannot be encoded as plain text.
        """
        is_batched = not _is_chat(conversation)
        chats = [_read_messages(chat) for chat in (conversation if is_batched else [conversation])]
        visuals = [visual for chat in chats for visual in iter_visuals(chat) if visual.source is not None]
        strip = partial(_strip_visual, keeps_names=not tokenize)
        chats = [_map_content(chat, strip) for chat in chats]
        template = chat_template or self.chat_template
        # What the template does not know is for the processor.
        own = [name for name in kwargs if name not in _RENDERING and not re.search(rf"\b{name}\b", str(template))]
        options = {**(processor_kwargs or {}), **{name: kwargs.pop(name) for name in own}}
        if self.tokenizer.bos_token is None and self._written_around[0]:
            kwargs.setdefault("bos_token", self._written_around[0])
        spelt = [[] for _ in chats]
        if tokenize and sanitize_control_tokens is not False:
            hide = partial(_hide_tokens, tokens=self._control_tokens)
            chats = [_map_content(chat, partial(hide, spelt=own)) for chat, own in zip(chats, spelt, strict=True)]
        else:
            for chat in chats:
                _refuse_special_tokens(chat)

        def render(**arguments: Any) -> Any:
            arguments |= {"chat_template": chat_template, "tokenize": tokenize, **kwargs}
            return super(ValleyProcessor, self).apply_chat_template(chats if is_batched else chats[0], **arguments)

        if not tokenize:
            return render()
        options["visuals"] = [
            [visual.source for visual in visuals if visual.modality == modality] or None
            for modality in ("image", "video")
        ]
        if not any(spelt):
            tensors = {} if return_tensors is None else {"return_tensors": return_tensors}
            return render(
                return_dict=return_dict,
                return_assistant_tokens_mask=return_assistant_tokens_mask,
                processor_kwargs=options,
                **tensors,
            )
        # What a text spells has more tokens than what stands for it: lengths are cut and filled up afterwards.
        options["text_kwargs"] = dict(options.get("text_kwargs") or {})
        sources = (options["text_kwargs"], options)
        lengths = {name: source.pop(name) for source in sources for name in _LENGTHS if name in source}
        inputs = render(
            return_dict=True,
            return_tensors=None,
            return_assistant_tokens_mask=return_assistant_tokens_mask,
            processor_kwargs=options,
        )
        inputs = self._show_tokens(inputs, spelt)
        inputs = self._truncate(inputs, **lengths)
        inputs = self._pad(inputs, None if return_tensors == "auto" else return_tensors, **lengths)
        return inputs if return_dict else inputs["input_ids"]

    @property
    def _control_tokens(self) -> re.Pattern:
        """The tokenizer's control tokens, Valley's among them, the longest first."""
        added = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        return re.compile("|".join(re.escape(token) for token in sorted(added, key=len, reverse=True)))

    @property
    def _written_around(self) -> tuple[str, str]:
        """The control tokens that the tokenizer writes before and after a text on its own."""
        word = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        ids = self.tokenizer("a")["input_ids"]
        begin = next((i for i in range(len(ids)) if ids[i : i + len(word)] == word), 0)
        before, after = ids[:begin], ids[begin + len(word) :]
        return tuple("".join(self.tokenizer.convert_ids_to_tokens(part)) for part in (before, after))

    def _show_tokens(self, inputs: BatchFeature, spelt: list[list[str]]) -> BatchFeature:
        """Put what a text spells, encoded as plain text, in the place of the delimiters that stand for it.

        Such a delimiter follows no placeholder, as those of visuals do.
        """
        stand_in = self.tokenizer.convert_tokens_to_ids(_STAND_IN)
        placeholders = (self.image_token_id, self.video_token_id)
        columns = [name for name in _TOKEN_COLUMNS if name in inputs]
        encoded = {text: self._encode_plainly(text) for text in set(chain(*spelt))}
        for index, ids in enumerate(inputs["input_ids"]):
            queue, rows = iter(spelt[index]), {name: [] for name in columns}
            for position, token in enumerate(ids):
                is_hidden = token == stand_in and not (position and ids[position - 1] in placeholders)
                plain = encoded[next(queue)] if is_hidden else [token]
                for name, row in rows.items():
                    row += plain if name == "input_ids" else [inputs[name][index][position]] * len(plain)
            for name, row in rows.items():
                inputs[name][index] = row
        return inputs

    def _truncate(
        self,
        inputs: BatchFeature,
        truncation: Any = None,
        max_length: int | None = None,
        padding: Any = False,
        **others: Any,
    ) -> BatchFeature:
        """Cut prompts as a tokenizer does: by itself a `max_length` that is not for padding does so."""
        truncation = getattr(truncation, "value", truncation)
        if truncation is None:
            truncation = max_length is not None and padding in (False, None)
        if truncation in (False, "do_not_truncate"):
            return inputs
        length = self.tokenizer.model_max_length if max_length is None else max_length
        placeholders = {self.image_token_id, self.video_token_id}
        for index, ids in enumerate(inputs["input_ids"]):
            from_left = self.tokenizer.truncation_side == "left"
            kept = slice(max(0, len(ids) - length), None) if from_left else slice(length)
            if sum(token in placeholders for token in ids) > sum(token in placeholders for token in ids[kept]):
                raise ValueError(f"The prompt is truncated inside a visual: raise max_length={length}.")
            for name in set(_TOKEN_COLUMNS) & inputs.keys():
                inputs[name][index] = inputs[name][index][kept]
        return inputs

    def _encode_plainly(self, text: str) -> list[int]:
        """Tokens of a text as they stand inside of another one, control tokens as plain text."""
        encode = {"add_special_tokens": False, "split_special_tokens": True}
        before = self.tokenizer("\n", **encode)["input_ids"]  # or a tokenizer of LLaMA would write a space first
        return self.tokenizer("\n" + text, **encode)["input_ids"][len(before) :]

    def _pad(self, inputs: BatchFeature, return_tensors: str | None, **lengths: Any) -> BatchFeature:
        padding = {name: value for name, value in lengths.items() if name != "truncation"}
        tokens = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
        tokens = self.tokenizer.pad(tokens, **{"padding": False, **padding})
        side = padding.get("padding_side") or self.tokenizer.padding_side
        for name in set(_TOKEN_COLUMNS) & inputs.keys() - tokens.keys():
            rows = zip(inputs[name], tokens["input_ids"], strict=True)
            fill = [(row, [0] * (len(ids) - len(row))) for row, ids in rows]
            tokens[name] = [more + row if side == "left" else row + more for row, more in fill]
        return BatchFeature({**inputs, **tokens}, tensor_type=return_tensors)


# Arguments that the base class takes itself.
_RENDERING = {"tools", "documents", "add_generation_prompt", "continue_final_message"}
_LENGTHS = ("padding", "padding_side", "pad_to_multiple_of", "truncation", "max_length")
_TOKEN_COLUMNS = ("input_ids", "attention_mask", "assistant_masks", "mm_token_type_ids")
_STAND_IN = "<im_end>"


# ---------------------------------------------------------------------------------------------------------------
# Messages
# ---------------------------------------------------------------------------------------------------------------


@dataclass
class Visual:
    """An image or a clip that a content block shows; `source` is `None` where the block leaves that to others."""

    modality: Literal["image", "video"]
    source: Any


_SOURCES = {"image": ("image", "url", "path", "base64"), "video": ("video", "url", "path", "base64")}
_CLIP_SETTINGS = ("start", "end", "fps", "num_frames", "max_frames")
_OTHERS_WORDS = {"nframes": "num_frames", "video_start": "start", "video_end": "end", "video_fps": "fps"}


def iter_visuals(messages: Iterable[Mapping]) -> Iterator[Visual]:
    """
    The images and clips of chat messages, in order.

    A block is `{"type": "image", …}` or `{"type": "video", …}` with one of the keys `image` or `video`, `url`, `path`
    and `base64`; or OpenAI's `{"type": "image_url", "image_url": {"url": …}}` and the same with `video_url`. A clip
    may have `start`, `end`, `fps`, `num_frames` and `max_frames`, beside or inside. Keys that are `None` are left out.

    Args:
        messages (`list[dict]`):
            Of one chat; a content is a string or a list of blocks.

    Yields:
        [`Visual`]: a clip is a dict, as `sample_video` reads it.

    Raises:
        ValueError: if a block names its source twice, or has a key that nobody would look at.
    """
    for message in messages:
        content = message.get("content")
        for block in content if isinstance(content, list | tuple) else ():
            if (visual := _read_visual(block)) is not None:
                yield visual


def _read_visual(block: Mapping) -> Visual | None:
    block = {key: value for key, value in block.items() if value is not None}
    kind = block.pop("type", None)
    if kind in ("image_url", "video_url"):
        inside = block.pop(kind, {})
        inside = inside if isinstance(inside, Mapping) else {"url": inside}
        inside = {key: value for key, value in inside.items() if value is not None}
        if twice := sorted(block.keys() & inside.keys()):
            raise ValueError(f"A content block of type {kind!r} has {', '.join(twice)} both inside and beside it.")
        block, kind = {**block, **inside}, kind.removesuffix("_url")
    if kind not in _SOURCES:
        return None
    settings = _CLIP_SETTINGS if kind == "video" else ()
    if unknown := sorted(block.keys() - {*_SOURCES[kind], *settings}):
        hints = [f"{key!r} is called {_OTHERS_WORDS[key]!r}" for key in unknown if key in _OTHERS_WORDS]
        raise ValueError(
            f"A content block of type {kind!r} has the unknown keys {unknown}; it may have one of "
            f"{', '.join(_SOURCES[kind])}{' and ' + ', '.join(settings) if settings else ''}"
            f"{'; ' + ', '.join(hints) if hints else ''}."
        )
    sources = [key for key in _SOURCES[kind] if key in block]
    if len(sources) > 1:
        raise ValueError(f"A content block of type {kind!r} names its source once, got {sources}: keep one.")
    if not sources:
        return Visual(kind, None)
    source = block.pop(sources[0])
    if sources[0] == "base64":
        source = f"data:;base64,{source}"
    # In a dict, one block is one clip: a path and a list of frames cannot run together with their neighbours.
    return Visual(kind, {"video": source, **block} if kind == "video" else source)


def _is_chat(conversation: Any) -> bool:
    """Whether this is one chat and not several. Raises a `ValueError` for an empty one."""
    messages = getattr(conversation, "messages", conversation)
    if not isinstance(messages, list | tuple) or not messages:
        raise ValueError(f"A chat is a list with at least one message, got {messages!r}.")
    return not isinstance(messages[0], list | tuple) and not hasattr(messages[0], "messages")


def _read_messages(chat: Any) -> list[dict]:
    """Copies of the messages of a chat as dicts, without empty keys."""
    messages = []
    for message in map(_as_dict, getattr(chat, "messages", chat)):
        message = {key: value for key, value in message.items() if value is not None}
        if isinstance(message.get("content"), list | tuple):
            message["content"] = [_as_dict(block) for block in message["content"]]
        messages.append(message)
    return messages


def _as_dict(value: Any) -> Mapping:
    """A message or content block as a dict: clients have dataclasses and pydantic models, too."""
    if hasattr(value, "model_dump"):
        return value.model_dump()
    return {field.name: getattr(value, field.name) for field in fields(value)} if is_dataclass(value) else value


def _map_content(messages: list[dict], change: Any) -> list[dict]:
    """Messages with every content block changed; a content that is a string is changed as a string."""

    def changed(content: Any) -> Any:
        return [change(block) for block in content] if isinstance(content, list | tuple) else change(content)

    return [
        {**message, "content": changed(message["content"])} if "content" in message else message
        for message in messages
    ]


def _strip_visual(block: Any, keeps_names: bool) -> Any:
    """A content block as a chat template reads it: of a visual its type, and perhaps where it lies."""
    if not isinstance(block, Mapping):
        return block
    block = {key: value for key, value in block.items() if value is not None}
    kind = block.get("type")
    if kind not in ("image", "image_url", "video", "video_url"):
        return block
    if kind.endswith("_url"):
        url = block.pop(kind, None)
        block["url"] = url.get("url") if isinstance(url, Mapping) else url
    names = {key: value for key, value in block.items() if isinstance(value, str)} if keeps_names else {}
    return {**names, "type": kind.removesuffix("_url")}


def _text_of(block: Any) -> str:
    """The text of a content block, or of a content that is one."""
    text = block.get("text") if isinstance(block, Mapping) else block
    return text if isinstance(text, str) else ""


def _hide_tokens(block: Any, tokens: re.Pattern, spelt: list[str]) -> Any:
    """A content block with a delimiter in the place of each control token that its text spells."""
    text = _text_of(block)
    if not tokens.search(text):
        return block
    spelt += tokens.findall(text)
    text = tokens.sub(_STAND_IN, text)
    return {**block, "text": text} if isinstance(block, Mapping) else text


def _refuse_special_tokens(messages: list[dict]) -> None:
    """Text cannot stand for a visual: that would shift every clip after it."""
    for message in messages:
        content = message.get("content")
        for block in content if isinstance(content, list | tuple) else [content]:
            for token in SPECIAL_TOKENS:
                if token in _text_of(block):
                    raise ValueError(
                        f"The text of a {message.get('role')!r} message spells the special token {token}. Give a "
                        'visual as a content block of its own, such as {"type": "video", "path": "clip.mp4"}, and '
                        "take the token out of the text."
                    )


def _flatten_images(images: Any) -> Iterator[Any]:
    """Nested lists of images, and arrays of several, one by one."""
    if isinstance(images, list | tuple) or getattr(images, "ndim", None) == 4:
        for item in images:
            yield from _flatten_images(item)
    else:
        yield images


def join_samples(samples: Sequence[Mapping], tokenizer: Any) -> dict[str, torch.Tensor]:
    """
    Several outputs of the processor, one prompt each, as one batch to generate from.

    Args:
        samples (`list[dict]`):
            With tensors of a batch of one.
        tokenizer (`PreTrainedTokenizerBase`):
            Pads the prompts on the left.

    Returns:
        `dict` with the visuals of all samples, one after the other, clips padded at the end of time.
    """
    prompts = [{name: sample[name][0] for name in ("input_ids", "attention_mask")} for sample in samples]
    return dict(tokenizer.pad(prompts, padding_side="left", return_tensors="pt")) | join_visuals(samples)


def join_visuals(samples: Sequence[Mapping]) -> dict[str, torch.Tensor]:
    """The images and clips of several outputs of the processor as those of one batch."""
    batch = {}
    for name in ("pixel_values", "video_num_frames"):
        if parts := [sample[name] for sample in samples if name in sample]:
            batch[name] = torch.cat(parts)
    if clips := [clip for sample in samples for clip in sample.get("pixel_values_videos", ())]:
        batch["pixel_values_videos"] = pad_sequence(clips, batch_first=True)
    return batch


def trim_answer(text: str, stop_strings: Sequence[str] = (), is_whole: bool = True, keeps_space: bool = False) -> str:
    """
    An answer without the space that the prompt leaves to the model and without the string that ends it.

    Args:
        text (`str`):
            What the model wrote.
        stop_strings (`Sequence[str]`, *optional*):
            Strings of which the first one to appear ends the answer.
        is_whole (`bool`, *optional*, defaults to `True`):
            `False` while it is written: then what may yet turn out to be the end is left out.
        keeps_space (`bool`, *optional*, defaults to `False`):
            `True` for what continues a text.
    """
    text = text if keeps_space else text.lstrip()
    for stop in stop_strings:
        text = text.partition(stop)[0]
        begun = [length for length in range(1, len(stop)) if text.endswith(stop[:length])]
        if begun and not is_whole:
            text = text[: -max(begun)]
    return text if keeps_space else text.rstrip()


def output_size(processor: Any) -> tuple[int, int]:
    """(height, width) of what an image or video processor hands to the model."""
    size = processor.crop_size if processor.do_center_crop else processor.size
    if size.get("height") is None:
        raise ValueError(f"The output size is not fixed: size={size} without a centre crop. Set do_center_crop=True.")
    return size["height"], size["width"]


ValleyProcessor.register_for_auto_class()

__all__ = [
    "ValleyProcessor",
    "Visual",
    "iter_visuals",
    "join_samples",
    "join_visuals",
    "output_size",
    "trim_answer",
]
