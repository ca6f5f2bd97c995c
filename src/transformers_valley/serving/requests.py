# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What a client may send, whichever engine answers it.

Input: the body of a request to Chat Completions or Responses. Output: the request, checked, or a `RequestError`.
Clients are untrusted: things are counted before they are looked at, and no error is as long as what it is about.
"""

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Json,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic import ValidationInfo as Info

from ..processing_valley import ValleyProcessor
from ..request_checks import find_excess


__all__ = ["ChatRequest", "RequestError", "ResponsesRequest", "parse_request"]

MAX_TOKEN_CHARACTERS = 100  # on average: a text with more is too long, however it is tokenized
MAX_STOPS, MAX_STOP_CHARACTERS = 16, 100
MIN_TEMPERATURE = 0.01  # of those that sample; with less, numbers overflow
_DELIMITERS = 4  # tokens of a visual beside its placeholders


class RequestError(Exception):
    """A request that cannot be answered.

    Args:
        message (`str`): what was found, what was expected.
        param (`str`, *optional*): the field of the request that is wrong.
        status (`int`, *optional*, defaults to 400): of HTTP.
        code (`str`, *optional*): a word for programs, as OpenAI's servers send.
    """

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None):
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


# --- Fields --------------------------------------------------------------------------------------------------------


Count = Annotated[int, Field(ge=1, le=1_000_000)]
Text = Annotated[str, AfterValidator(lambda text: text.encode().decode())]  # JSON can hold what UTF-8 cannot
Share = Annotated[float, Field(ge=0, le=1)]


class _Checked(BaseModel):
    """An object of which nothing is ignored in silence: `null` means absent, other keys are an error."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)
    ignored: ClassVar[set[str]] = set()  # keys that change no answer
    neutral: ClassVar[dict[str, list]] = {}  # values that ask for nothing, of keys that ask for what Valley lacks

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        known, kept = {field.alias or name for name, field in cls.model_fields.items()}, {}
        for name, value in values.items():
            if value is None or name in cls.ignored or value in cls.neutral.get(name, ()):
                continue
            if name not in known:  # the first one ends it: there may be a million
                found = f"{brief(name)}: {brief(value)}"
                raise ValueError(f"{found} is not supported here: leave it out. Known are {', '.join(sorted(known))}")
            kept[name] = value
        return kept


class ClipSettings(_Checked):
    """Which frames are taken of clips. Without `fps` and `num_frames` those that the checkpoint says."""

    fps: Annotated[float, Field(ge=0.001, le=1000)] | None = None
    num_frames: Count | None = None
    max_frames: Count | None = None


class SamplingSettings(ClipSettings):
    """`chat_template_kwargs`: for all clips of a request."""

    on_error: Literal["raise", "partial"] | None = None


class TextBlock(_Checked):
    ignored = {"annotations", "logprobs"}  # of an answer that is sent back
    type: Literal["text", "input_text", "output_text"]
    text: Text


class ImageURL(_Checked):
    ignored = {"detail"}  # Valley has one resolution
    url: str


class VideoURL(ClipSettings):
    url: str
    start: Annotated[float, Field(ge=0)] | None = None  # seconds
    end: Annotated[float, Field(gt=0)] | None = None


_as_object = BeforeValidator(lambda value: {"url": value} if isinstance(value, str) else value)


class ImageBlock(_Checked):
    ignored = {"detail"}
    type: Literal["image_url", "input_image"]
    image_url: Annotated[ImageURL, _as_object]


class VideoBlock(_Checked):
    type: Literal["video_url"]
    video_url: Annotated[VideoURL, _as_object]


Block = Annotated[TextBlock | ImageBlock | VideoBlock, Field(discriminator="type")]
_as_blocks = BeforeValidator(lambda value: [{"type": "text", "text": value}] if isinstance(value, str) else value)


class Message(_Checked):
    ignored = {"id", "status"}  # of an answer that is sent back
    neutral = {"type": ["message"], "annotations": [[]], "tool_calls": [[]]}
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Block], Field(fail_fast=True), _as_blocks] = []


def _refuse_many(messages: Any, info: Info) -> Any:
    """Every message and block costs a token, whatever it holds: more than fit are not even looked at."""
    if isinstance(messages, list):
        limit = info.context["context_length"]
        contents = (m.get("content") for m in messages if isinstance(m, dict)) if len(messages) < limit else ()
        count = len(messages) + sum(len(content) for content in contents if isinstance(content, list))
        if count >= limit:
            raise too_long(f"The request has {count} messages and content blocks", limit)
    return messages


def _input_messages(value: Any) -> Any:
    """The input of Responses: a text, content blocks, or messages."""
    is_content = isinstance(value, list) and value and all(isinstance(v, dict) and "role" not in v for v in value)
    return [{"role": "user", "content": value}] if isinstance(value, str) or is_content else value


Messages = Annotated[list[Message], Field(min_length=1, fail_fast=True), BeforeValidator(_refuse_many)]
Stops = Annotated[
    list[Annotated[Text, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]],
    Field(max_length=MAX_STOPS),
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
]


class GenerationSettings(_Checked):
    """`generation_config`: none of these lets a request take more time or memory than its tokens do."""

    ignored = {"transformers_version"}  # `transformers chat` sends it
    do_sample: bool | None = None
    temperature: Annotated[float, Field(ge=MIN_TEMPERATURE, le=100)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    top_p: Share | None = None
    min_p: Share | None = None
    typical_p: Annotated[float, Field(ge=0.01, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    no_repeat_ngram_size: Annotated[int, Field(ge=0, le=16)] | None = None
    max_new_tokens: Count | None = None
    min_new_tokens: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    stop_strings: Stops = []


# --- Requests ------------------------------------------------------------------------------------------------------


class StreamOptions(_Checked):
    ignored = {"include_obfuscation"}
    include_usage: bool = False


class ChatRequest(_Checked):
    """The body of `/v1/chat/completions`. An engine asks for `messages`, `length`, `stops`, `seed` and `settings`."""

    ignored = {
        *("include", "metadata", "moderation", "prediction", "prompt_cache_key", "prompt_cache_retention"),
        *("safety_identifier", "service_tier", "store", "user"),
    }
    neutral = {
        **{"n": [1], "presence_penalty": [0], "logprobs": [False], "top_logprobs": [0], "modalities": [["text"]]},
        **{"tools": [[]], "tool_choice": ["none", "auto"], "functions": [[]], "function_call": ["none", "auto"]},
        **{"response_format": [{"type": "text"}], "text": [{"format": {"type": "text"}}]},
        **{"background": [False], "truncation": ["disabled"]},
    }
    model: str | None = None
    messages: Messages
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_completion_tokens: Count | None = None
    max_tokens: Count | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Share | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: Stops = []
    frequency_penalty: Annotated[float, Field(ge=-0.99, le=2)] | None = None  # `generate` divides by 1 + this
    logit_bias: dict[str, Any] = {}
    parallel_tool_calls: bool = True  # without tools there is nothing to call
    chat_template_kwargs: SamplingSettings = SamplingSettings()
    generation_config: Json[GenerationSettings] = GenerationSettings()

    @field_validator("temperature")
    @classmethod
    def _refuse_tiny(cls, value: float) -> float:
        if 0 < value < MIN_TEMPERATURE:
            raise ValueError(f"Input should be 0, for the likeliest answer, or at least {MIN_TEMPERATURE}")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _refuse_other_tokens(cls, bias: dict[str, Any], info: Info) -> dict[tuple[int], float]:
        size = info.context["vocabulary_size"]
        expected = f"Input should have token ids below {size}, and for each a number from -100 to 100"
        if len(bias) > size:
            raise ValueError(f"{expected}, found {len(bias)} of them")
        for token, value in bias.items():
            is_token = token.isdecimal() and len(token) < 10 and int(token) < size
            if not is_token or type(value) not in (int, float) or not -100 <= value <= 100:
                raise ValueError(f"{expected}, found {brief(token)}: {brief(value)}")
        return {(int(token),): float(value) for token, value in bias.items()}

    @property
    def length(self) -> int | None:
        """Most tokens of the answer, where the request says it."""
        own = self.max_completion_tokens or self.max_tokens or self.max_output_tokens
        return own or self.generation_config.max_new_tokens

    @property
    def stops(self) -> list[str]:
        """Strings that end the answer."""
        return [*self.stop, *self.generation_config.stop_strings]

    @property
    def settings(self) -> dict[str, Any]:
        """How tokens are chosen, in the words of `generate`; for the rest the checkpoint's settings hold."""
        own = {"temperature": self.temperature or None, "top_p": self.top_p, "sequence_bias": self.logit_bias or None}
        own["do_sample"] = None if self.temperature is None else self.temperature > 0
        own["repetition_penalty"] = None if self.frequency_penalty is None else 1.0 + self.frequency_penalty
        settings = self.generation_config.model_dump(exclude_none=True, exclude={"stop_strings", "max_new_tokens"})
        return settings | {name: value for name, value in own.items() if value is not None}

    @property
    def has_visuals(self) -> bool:
        return any(not isinstance(block, TextBlock) for message in self.messages for block in message.content)

    def blocks(self, kind: type) -> list[Any]:
        """The content blocks of one class."""
        return [block for message in self.messages for block in message.content if isinstance(block, kind)]

    def forget_media(self) -> None:
        """Lets go of the addresses, once they are read: a `data:` URL may have 256 MiB."""
        for block in self.blocks(ImageBlock):
            block.image_url.url = ""
        for block in self.blocks(VideoBlock):
            block.video_url.url = ""

    def check_cost(self, processor: ValleyProcessor, context_length: int) -> None:
        """Refuses what cannot fit into the context before it is opened, and shares the rest of it among the clips.

        Raises:
            RequestError: says what is too much.
        """
        texts, images = self.blocks(TextBlock), self.blocks(ImageBlock)
        clips = [block.video_url for block in self.blocks(VideoBlock)]
        if (characters := sum(len(block.text) for block in texts)) > MAX_TOKEN_CHARACTERS * context_length:
            raise too_long(f"The texts are {characters} characters long", context_length)
        common, own = self.chat_template_kwargs, processor.video_processor
        rules = [
            clip if clip.fps or clip.num_frames else common if common.fps or common.num_frames else own
            for clip in clips
        ]
        frames = [rule.num_frames or 1 for rule in rules]
        least = sum(processor.count_placeholders("video", count) + _DELIMITERS for count in frames)
        least += len(images) * (processor.count_placeholders("image") + _DELIMITERS)
        if least >= context_length:
            found = (
                f"{len(images)} images and {len(clips)} clips, of {sum(frames)} frames at least, take {least} tokens"
            )
            raise too_long(found, context_length, "messages" if common.num_frames is None else "chat_template_kwargs")
        for clip, count in zip(clips, frames, strict=True):  # all of them together are kept in memory
            share = (context_length - least) // len(clips) + count
            clip.max_frames = min(clip.max_frames or common.max_frames or own.max_frames or share, share)


class ResponsesRequest(ChatRequest):
    """The body of `/v1/responses`."""

    messages: Annotated[Messages, BeforeValidator(_input_messages), Field(alias="input")]
    instructions: Text | None = None

    @model_validator(mode="after")
    def _begin_with_instructions(self) -> "ResponsesRequest":
        if self.instructions:
            block = TextBlock(type="text", text=self.instructions)
            self.messages.insert(0, Message(role="system", content=[block]))
        return self


def parse_request(kind: type[ChatRequest], body: bytes, context_length: int, vocabulary_size: int) -> ChatRequest:
    """
    Reads the body of a request.

    Args:
        kind (`type`): [`ChatRequest`] or [`ResponsesRequest`].
        body (`bytes`): JSON.
        context_length (`int`): positions of the language model.
        vocabulary_size (`int`): its tokens.

    Raises:
        RequestError: it names the first thing that is wrong.
    """
    if reason := find_excess(body):
        raise RequestError(reason, status=413)
    try:
        values = json.loads(body)
        if not isinstance(values, dict):
            raise ValueError(f"found a {type(values).__name__}")
        return kind.model_validate(
            values, context={"context_length": context_length, "vocabulary_size": vocabulary_size}
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The request is not a valid JSON object: {error}.", status=422) from error
    where, reason = list(first["loc"]), first["msg"].removeprefix("Value error, ").partition(" or instance of")[0]
    if where[2:3] == ["content"]:
        del where[4:5]  # the type of a block, once more
    if first["type"] not in ("value_error", "missing"):
        reason += f", found {brief(first['input'])}"
    param = str(where[0]) if where else None
    raise RequestError(
        f"{'.'.join(map(str, where))}{': ' * bool(where)}{shorten(reason, 600)}.", param, 400 if where else 422
    )


def too_long(found: str, context_length: int, param: str = "messages") -> RequestError:
    """The error for what does not fit into the context."""
    return RequestError(
        f"{found}; the model reads {context_length} tokens, its answer included. Send less text, fewer or shorter "
        'clips, or fewer frames of each ("chat_template_kwargs": {"num_frames": 8}).',
        param,
        code="context_length_exceeded",
    )


def shorten(text: str, limit: int = 200) -> str:
    """A text of the client's as a message may show it."""
    return text if len(text) <= limit else f"{text[: limit - 40]}... ({len(text)} characters)"


def brief(value: Any) -> str:
    """A value of the client's as a message may show it."""
    return "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else shorten(repr(value))
