# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`ValleyProcessor`: chat messages with images and clips to model inputs.

One placeholder per visual in the prompt becomes the block
`<im_start> P x placeholder <im_end> <vi_start> T x placeholder <vi_end>`: P patches, T frames (1 for an image).
"""

import os
from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer
from transformers.image_utils import make_flat_list_of_images
from transformers.processing_utils import MultiModalData, ProcessorMixin
from transformers.utils import auto_docstring

from .compatibility_valley import CAN_SANITIZE
from .configuration_valley import SPECIAL_TOKENS, add_special_tokens
from .video_processing_valley import ValleyVideoProcessor, flatten_clips


# The paper's prompt (Section 4.3): `### system`, `### Human:`, `### Assistant:`. What the model learns to write, end
# token included, stands between the generation markers; so does the space before it, or a prompt that ends in a space
# would not be a token prefix of the training row. Visuals and texts of one message stand on lines of their own.
CHAT_TEMPLATE = """\
{%- macro render(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for block in content -%}
            {%- if not loop.first -%}{{- "\\n" -}}{%- endif -%}
            {%- if block.type == "image" -%}
                {{- "<image>" -}}
            {%- elif block.type == "video" -%}
                {{- "<video>" -}}
            {%- elif block.type == "text" -%}
                {{- block.text -}}
            {%- else -%}
                {{- raise_exception("Valley reads text, image and video content, not " ~ block.type) -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- if bos_token is defined and bos_token -%}{{- bos_token -}}{%- endif -%}
{%- if not messages or messages[0].role != "system" -%}
    {{- "### You are Valley, an assistant that sees images and videos and answers from what they show.\\n" -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == "system" -%}
        {{- "### " ~ render(message.content) ~ "\\n" -}}
    {%- elif message.role == "user" -%}
        {{- "### Human: " ~ render(message.content) ~ "\\n" -}}
    {%- elif message.role == "assistant" -%}
        {{- "### Assistant:" -}}
        {%- generation -%}
            {{- " " ~ render(message.content) ~ eos_token -}}
        {%- endgeneration -%}
        {{- "\\n" -}}
    {%- else -%}
        {{- raise_exception("Valley knows the roles system, user and assistant, not " ~ message.role) -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "### Assistant:" -}}{%- endif -%}
"""


@auto_docstring
class ValleyProcessor(ProcessorMixin):
    def __init__(
        self, image_processor=None, video_processor=None, tokenizer=None, chat_template=None, patch_size=14, **kwargs
    ):
        r"""
        patch_size (`int`, *optional*, defaults to 14):
            Side in pixels of one patch of the vision tower, from which the feature positions are counted.
        """
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
        super().__init__(image_processor, video_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)

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

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        height, width = image_inputs["pixel_values"][image_idx].shape[-2:]
        return self._visual_block(self.image_token, self._num_patches(height, width), 1)

    def replace_video_token(self, video_inputs: dict, video_idx: int, **kwargs) -> str:
        height, width = video_inputs["pixel_values_videos"][video_idx].shape[-2:]
        num_frames = int(video_inputs["video_num_frames"][video_idx])
        return self._visual_block(self.video_token, self._num_patches(height, width), num_frames)

    def _num_patches(self, height: int, width: int) -> int:
        return (height // self.patch_size) * (width // self.patch_size)

    def _visual_block(self, placeholder: str, num_patches: int, num_frames: int) -> str:
        patches, frames = placeholder * num_patches, placeholder * num_frames
        return f"<im_start>{patches}<im_end><vi_start>{frames}<vi_end>"

    def _get_num_multimodal_tokens(
        self,
        image_sizes: list[tuple[int, int]] | None = None,
        video_sizes: list[tuple[int, int, int]] | None = None,
        **kwargs,
    ) -> MultiModalData:
        """
        Placeholders that visuals will take, for servers that plan before they process.

        Args:
            image_sizes (`list[tuple[int, int]]`, *optional*):
                (height, width) of each image; every image costs the same.
            video_sizes (`list[tuple[int, int, int]]`, *optional*):
                (sampled frames, height, width) of each clip.
        """
        counts = MultiModalData()
        if image_sizes is not None:
            num_patches = self._num_patches(*output_size(self.image_processor))
            counts.num_image_tokens = [num_patches + 1] * len(image_sizes)
            counts.num_image_patches = [1] * len(image_sizes)
        if video_sizes is not None:
            num_patches = self._num_patches(*output_size(self.video_processor))
            counts.num_video_tokens = [num_patches + frames for frames, _, _ in video_sizes]
        return counts

    def prepare_inputs_layout(self, images=None, text=None, videos=None, audio=None, **kwargs):
        if videos is not None:
            videos = flatten_clips(videos)
        if isinstance(images, os.PathLike):
            images = os.fspath(images)
        return super().prepare_inputs_layout(images=images, text=text, videos=videos, audio=audio, **kwargs)

    def validate_inputs(self, images=None, text=None, videos=None, audio=None, **kwargs):
        # The base class knows few of the forms that clips come in: it is shown their number only.
        shown = None if videos is None else [self.video_token] * len(videos)
        super().validate_inputs(images=images, text=text, videos=shown, audio=audio, **kwargs)
        # transformers up to 5.22 does not compare. Goes with them.
        counts = {
            self.image_token: 0 if images is None else len(make_flat_list_of_images(images)),
            self.video_token: 0 if videos is None else len(videos),
        }
        for token, given in counts.items():
            written = sum(prompt.count(token) for prompt in text or [])
            if text is not None and written != given:
                raise ValueError(
                    f"The text has {written} {token} tokens for {given} visuals. Write one {token} for each, where it "
                    "belongs; in a chat its content block does that."
                )

    def _process_videos(self, videos: list, **kwargs):
        inputs = self.video_processor(videos, **kwargs)
        return inputs, [self.replace_video_token(inputs, index) for index in range(len(videos))]

    def apply_chat_template(
        self,
        conversation,
        chat_template: str | None = None,
        tokenize: bool = False,
        return_assistant_tokens_mask: bool = False,
        sanitize_control_tokens: bool | None = None,
        load_audio_from_video: bool = False,
        **kwargs,
    ):
        """
        See [`~transformers.ProcessorMixin.apply_chat_template`]. What a text block spells is always text: a literal
        `<video>` in it becomes no placeholder. With `tokenize=True` such tokens are encoded as plain text
        (`sanitize_control_tokens`); where transformers cannot do that, they are refused.

        `load_audio_from_video` is ignored: `transformers serve` asks every video model for the sound of its clips,
        Valley hears nothing, and asking for the sound of a silent clip is an error.

        Raises:
            ValueError: if a text block spells a special token of Valley and cannot be encoded as plain text.
        """
        if isinstance(conversation[0], dict):
            conversation = [_normalize_message(message) for message in conversation]
        else:
            conversation = [[_normalize_message(message) for message in messages] for messages in conversation]
        if sanitize_control_tokens is None:
            sanitize_control_tokens = CAN_SANITIZE and tokenize and not return_assistant_tokens_mask
        if not sanitize_control_tokens:
            _refuse_special_tokens_in_text(conversation)
        if CAN_SANITIZE:
            kwargs["sanitize_control_tokens"] = sanitize_control_tokens
        return super().apply_chat_template(
            conversation,
            chat_template=chat_template,
            tokenize=tokenize,
            return_assistant_tokens_mask=return_assistant_tokens_mask,
            **kwargs,
        )


def _normalize_message(message: dict) -> dict:
    """One message as the base class reads it: a copy without empty keys, its content blocks normalized."""
    message = {key: value for key, value in message.items() if value is not None}
    if isinstance(message.get("content"), list | tuple):
        message["content"] = [_normalize_block(block) for block in message["content"]]
    return message


def _normalize_block(block: dict) -> dict:
    """One content block as the base class reads it: no empty keys, one source, `start` and `end` with their clip."""
    block = {key: value for key, value in block.items() if value is not None}
    if block.get("type") == "video_url":  # the form of OpenAI's clients
        url = block["video_url"]
        block = {"type": "video", "url": url["url"] if isinstance(url, dict) else url}
    if block.get("type") not in ("image", "video"):
        return block
    sources = [key for key in ("video", "image", "url", "path", "base64") if key in block]
    if len(sources) > 1:
        raise ValueError(f"A content block of type {block['type']!r} names its source once, got {sources}: keep one.")
    if block["type"] == "image" or not sources:
        return block
    clip = block[sources[0]]
    # One block is one clip: wrapped, a path and a list of frames cannot run together with their neighbours. In a dict:
    # the video processor of a folder with remote code is imported with a `VideoSegment` of its own.
    if {"start", "end"} & block.keys() or isinstance(clip, str | os.PathLike | list | tuple):
        clip = {"video": clip, "start": block.get("start"), "end": block.get("end")}
    return {"type": "video", "video": clip}


def _refuse_special_tokens_in_text(conversation) -> None:
    """Text cannot stand for a visual: that would shift every clip after it."""
    messages = (
        conversation if conversation and isinstance(conversation[0], dict) else [m for c in conversation for m in c]
    )
    for message in messages:
        content = message.get("content") or []
        texts = [content] if isinstance(content, str) else [block.get("text") or "" for block in content]
        for token in SPECIAL_TOKENS:
            if any(token in text for text in texts):
                raise ValueError(
                    f"The text of a {message['role']!r} message spells the special token {token}. Give a visual as a "
                    'content block of its own, such as {"type": "video", "path": "clip.mp4"}, and take the token out '
                    "of the text."
                )


def trim_answer(text: str, stop_strings: Sequence[str] = (), is_whole: bool = True) -> str:
    """
    An answer without the space that the prompt leaves to the model and without the string that ends it.

    Args:
        text (`str`):
            What the model wrote.
        stop_strings (`Sequence[str]`, *optional*):
            Strings of which the first one to appear ends the answer.
        is_whole (`bool`, *optional*, defaults to `True`):
            `False` while it is written: then what may yet turn out to be the end is left out.
    """
    text = text.lstrip()
    for stop in stop_strings:
        text = text.partition(stop)[0]
        begun = [length for length in range(1, len(stop)) if text.endswith(stop[:length])]
        if begun and not is_whole:
            text = text[: -max(begun)]
    return text.rstrip()


def output_size(processor: Any) -> tuple[int, int]:
    """(height, width) of what an image or video processor hands to the model."""
    size = processor.crop_size if processor.do_center_crop else processor.size
    if size.get("height") is None:
        raise ValueError(f"The output size is not fixed: size={size} without a centre crop. Set do_center_crop=True.")
    return size["height"], size["width"]


ValleyProcessor.register_for_auto_class()

__all__ = ["CHAT_TEMPLATE", "ValleyProcessor", "output_size", "trim_answer"]
