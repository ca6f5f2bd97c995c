# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The model behind the server: prompts that wait are answered together by one `generate`, on a thread of its own.

Input: checked requests. Output: the pieces of their answers as they are written. No answer differs from that of the
same request alone: rows are padded on the left, each has its own end, and only rows of like settings share a batch.
"""

import contextlib
import copy
import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import UnidentifiedImageError
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..answer_text import AnswerText
from ..processing_valley import ValleyProcessor
from ..video_interrupts import MAX_READ_SECONDS, interrupted_by, time_limit
from ..video_sources import MAX_PIXELS, PICTURE_FORMATS, VideoDecodeError, load_image
from .requests import ChatRequest, RequestError, too_long


__all__ = ["Answer", "Engine", "FeatureCache", "Prompt", "read_prompt"]

logger = logging.getLogger(__name__)

MAX_IMAGE_PIXELS = 4 * MAX_PIXELS  # of all images of one request together
MAX_FEATURE_BYTES = 256 * 1024**2  # of the features that are kept for later questions
GATHER_SHARE = 0.1  # of the time of the last batch, in which the next one waits to be as large
DEFAULT_LENGTH = 1024  # of an answer, where neither the request nor the checkpoint says more
FAILED = "The server failed; its log says why."
# These win over the checkpoint's. Drafts of prompt lookup need batches of one.
_ONE_ANSWER = {
    "num_return_sequences": 1,
    "return_dict_in_generate": False,
    "prompt_lookup_num_tokens": None,
    "stop_strings": None,  # compared with the whole vocabulary, a long one takes seconds: answers look for them
}


@dataclass
class Prompt:
    """What the model reads for one request: token ids, and for each visual a key of its content and its pixels
    (3, H, W) or (T, 3, H, W)."""

    ids: list[int]
    visuals: dict[str, list[tuple[bytes, torch.Tensor]]]


def read_prompt(
    processor: ValleyProcessor,
    chat: list[dict],
    names: dict[str, str],
    sampling: dict,
    is_over: Callable[[], bool] = lambda: False,
) -> Prompt:
    """
    Decodes and tokenizes a chat.

    Args:
        processor ([`ValleyProcessor`]): used by one thread at a time.
        chat (`list[dict]`): messages whose visuals are files and `data:` URLs. Images are replaced by pixels.
        names (`dict[str, str]`): what the client calls each file.
        sampling (`dict`): for the processor.
        is_over (callable, *optional*): whether nobody waits for it any more, so that decoding ends.

    Raises:
        RequestError: anything is wrong with them.
    """
    in_time = time_limit(MAX_READ_SECONDS)
    try:
        pixels = 0
        for message in chat:
            for block in message["content"]:
                if block["type"] == "image":
                    pixels += _shrink_image(block, processor.image_processor, names, pixels)
        with interrupted_by(lambda: "nobody waits for it." if is_over() else in_time()):
            inputs = processor.apply_chat_template(
                chat,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs=sampling,
            )
    # A `VideoDecodeError` is a `ValueError`.
    except (ValueError, TypeError, OverflowError, TemplateError) as error:
        message = str(error)
        for path, name in names.items():
            message = message.replace(path, name)
        raise RequestError(message, "messages") from error
    images = inputs.get("pixel_values", ())
    clips = zip(inputs.get("pixel_values_videos", ()), inputs.get("video_num_frames", ()), strict=True)
    visuals = {"image": list(images), "video": [clip[:count] for clip, count in clips]}
    keyed = {name: [(hashlib.sha256(v.contiguous().numpy()).digest(), v) for v in vs] for name, vs in visuals.items()}
    return Prompt(inputs["input_ids"][0].tolist(), keyed)


def _shrink_image(block: dict, image_processor: Any, names: dict[str, str], pixels: int) -> int:
    """Opens an image and resizes it at once, since large ones must not pile up; gives its number of pixels.

    The resizing is the processor's own, which then finds nothing left to do.
    """
    name = names.get(block["image"], "data:...")
    try:
        image = load_image(block["image"])
        if (pixels := pixels + image.width * image.height) > MAX_IMAGE_PIXELS:
            reason = f"with it the images of the request have more than {MAX_IMAGE_PIXELS} pixels."
            raise VideoDecodeError(name, reason)
    except VideoDecodeError as error:
        is_foreign = isinstance(error.__cause__, UnidentifiedImageError)  # whose message names our file
        formats = ", ".join(PICTURE_FORMATS)
        reason = f"its content is not that of an image ({formats})." if is_foreign else error.reason
        raise RequestError(f"Cannot read image {name!r}: {reason}", "messages") from error
    later = dict.fromkeys(("do_center_crop", "do_rescale", "do_normalize"), False)
    block["image"] = image_processor(image, **later, return_tensors="pt")["pixel_values"][0]
    return image.width * image.height


@dataclass(eq=False)
class Answer:
    """
    One request on its way through the engine.

    Args:
        request ([`ChatRequest`]): what was asked.
        hand_on (callable): is called on the model's thread with each piece of text, and with `None` after the last
            one; or with a [`RequestError`] where there is none.
    """

    request: ChatRequest
    hand_on: Callable[[str | RequestError | None], None]
    prompt: Prompt | None = None
    # Set by the engine that takes it.
    written: AnswerText | None = None
    ends: set[int] = field(default_factory=set)  # tokens
    length: int = 0  # most tokens
    likeness: tuple = ()  # equal for answers that may be written together
    # As far as it is written.
    ids: list[int] = field(default_factory=list)  # the token that ends it included
    finish_reason: str | None = None
    is_over: bool = False  # also where its client is gone

    def add(self, token: int) -> None:
        """Takes the next token."""
        if self.is_over:
            return
        self.ids.append(token)
        if token in self.ends:
            return self.finish("stop")
        self._tell(self.written.add([token]))
        if self.written.has_stopped:
            self.finish("stop")
        elif len(self.ids) >= self.length:
            self.finish("length")

    def finish(self, reason: str) -> None:
        """Ends it, with `"stop"` or `"length"`."""
        self.finish_reason, self.is_over = reason, True
        self._tell(self.written.finish())
        self.hand_on(None)

    def fail(self, error: RequestError) -> None:
        """Ends it without an answer."""
        if not self.is_over:
            self.is_over = True
            self.hand_on(error)

    def abandon(self) -> None:
        """Its client is gone."""
        self.is_over = True

    @property
    def text(self) -> str:
        """The answer, once it is over."""
        return self.written.whole

    def _tell(self, piece: str) -> None:
        if piece:
            self.hand_on(piece)


class _Writer(StoppingCriteria):
    """Hands each token to its answer; rows end where their answers do."""

    def __init__(self, answers: list[Answer]):
        self.answers = answers

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """(batch,), whether each row has ended."""
        if len(input_ids) == len(self.answers):  # and not beams, of which none is certain before the end
            for answer, token in zip(self.answers, input_ids[:, -1].tolist(), strict=True):
                answer.add(token)
        over = [answer.is_over for answer in self.answers] * (len(input_ids) // len(self.answers))
        return torch.tensor(over, device=input_ids.device)


class FeatureCache:
    """
    Features of visuals by the content of their pixels; the least recently used go first.

    Args:
        max_bytes (`int`): of all features that are kept.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes, self.num_bytes = max_bytes, 0
        self.num_reused = 0
        self._kept: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def get(self, key: bytes, encode: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The features of that key, encoded where they are not kept."""
        if key in self._kept:
            self._kept.move_to_end(key)
            self.num_reused += 1
            return self._kept[key]
        features = self._kept[key] = encode()
        self.num_bytes += features.nbytes
        while self.num_bytes > self.max_bytes:
            self.num_bytes -= self._kept.popitem(last=False)[1].nbytes
        return features


class Engine:
    """
    Answers prompts, up to `max_batch` of those that wait at a time.

    Args:
        model (`ValleyForConditionalGeneration`): on its device.
        processor ([`ValleyProcessor`]): of its tokenizer a copy is used, since others tokenize meanwhile.
        max_batch (`int`, *optional*, defaults to 8): prompts that are answered together.
        compile (`bool`, *optional*): whether decoding is compiled on a GPU, with a static cache.
    """

    def __init__(self, model: PreTrainedModel, processor: ValleyProcessor, max_batch: int = 8, compile: bool = False):
        self.model, self.max_batch = model, max_batch
        self.tokenizer = copy.deepcopy(processor.tokenizer)
        text_config = model.config.get_text_config()
        # A decoder without positions has no limit of its own; bounds need one.
        self.context_length = getattr(text_config, "max_position_embeddings", None) or 1_000_000
        self.vocabulary_size = text_config.vocab_size
        self.features = FeatureCache(MAX_FEATURE_BYTES)
        self._own = _ONE_ANSWER | ({"cache_implementation": "static"} if compile else {})
        self._waiting: list[Answer] = []
        self._running: list[Answer] = []
        self._num_expected = 0
        self._last_size, self._last_seconds, self._last_end = 0, 0.0, 0.0  # of the last batch
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def counts(self) -> tuple[int, int]:
        """Answers that wait, those whose prompts are being read included, and answers that are written."""
        return len(self._waiting) + self._num_expected, len(self._running)

    @property
    def is_alive(self) -> bool:
        """Whether it answers."""
        return self._thread.is_alive()

    @contextlib.contextmanager
    def expecting(self) -> Iterator[None]:
        """While a prompt is read, for which a batch may wait a moment."""
        with self._changed:
            self._num_expected += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_expected -= 1
                self._changed.notify_all()

    def submit(self, answer: Answer) -> None:
        """
        Puts an answer with its prompt at the end of those that wait. One with visuals waits here while a batch of such
        is before it, so that no more are decoded meanwhile: a clip of 256 frames is 150 MB.

        Raises:
            RequestError: its prompt is too long.
        """
        length = len(answer.prompt.ids)
        if length >= self.context_length:
            found = f"The prompt is {length} tokens long, those of its images and clips included"
            raise too_long(found, self.context_length)
        own = self.model.generation_config
        ends = own.eos_token_id if own.eos_token_id is not None else self.tokenizer.eos_token_id
        stops = [own.stop_strings] if isinstance(own.stop_strings, str) else own.stop_strings or []
        wanted = answer.request.length or max(own.max_new_tokens or 0, DEFAULT_LENGTH)
        answer.length = min(wanted, self.context_length - length)
        answer.ends = {end for end in (ends if isinstance(ends, list) else [ends]) if end is not None}
        answer.written = AnswerText(self.tokenizer, [*stops, *answer.request.stops])
        answer.likeness = self._likeness(answer)
        with self._changed:
            if answer.request.has_visuals:
                self._changed.wait_for(
                    lambda: sum(a.request.has_visuals for a in self._waiting) < self.max_batch or self._is_closed
                )
            self._waiting.append(answer)
            self._changed.notify_all()
            if self._is_closed:
                self._fail_all()

    def close(self) -> None:
        """Ends all answers, those that are being written at their next token."""
        with self._changed:
            self._is_closed = True
            self._fail_all()
            self._changed.notify_all()

    def _fail_all(self) -> None:
        for answer in [*self._waiting, *self._running]:
            answer.fail(RequestError("The server is stopping.", status=503, code="stopping"))

    def _work(self) -> None:
        while not self._is_closed:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                self._gather()
                self._waiting = [answer for answer in self._waiting if not answer.is_over]
                alike = [answer for answer in self._waiting if answer.likeness == self._waiting[0].likeness]
                self._running = alike[: self.max_batch]
                self._waiting = [answer for answer in self._waiting if answer not in self._running]
                self._changed.notify_all()
            if self._running:
                begin = time.monotonic()
                self._write(self._running)
                self._last_end = time.monotonic()
                self._last_size, self._last_seconds = len(self._running), self._last_end - begin
                for answer in self._running:  # a client may take hours to read the answer, and a clip be 150 MB
                    answer.prompt = Prompt(answer.prompt.ids, {})
                self._running = []

    def _gather(self) -> None:
        """Waits a moment for clients that have just been answered to ask again, and for prompts that are being read.

        A client alone never waits, nor does one that comes when the others are long gone.
        """
        until = self._last_end + GATHER_SHARE * self._last_seconds
        self._changed.wait_for(
            lambda: (
                len(self._waiting) >= self.max_batch
                or (len(self._waiting) >= self._last_size and not self._num_expected)
                or self._is_closed
            ),
            max(0.0, until - time.monotonic()),
        )

    def _setting(self, answer: Answer, name: str) -> Any:
        return answer.request.settings.get(name, getattr(self.model.generation_config, name))

    def _has_beams(self, answer: Answer) -> bool:
        return (self._setting(answer, "num_beams") or 1) > 1

    def _likeness(self, answer: Answer) -> tuple:
        # A seed repeats an answer only if nobody else draws; beams find theirs at the end.
        is_alone = answer.request.seed is not None or self._has_beams(answer)
        # These look at the prompt, in which padding would count.
        looks_back = (self._setting(answer, "repetition_penalty") or 1) != 1
        looks_back = looks_back or self._setting(answer, "no_repeat_ngram_size")
        return (
            sorted(answer.request.settings.items(), key=str),
            len(answer.prompt.ids) if looks_back else None,
            answer if is_alone else None,
        )

    def _write(self, answers: list[Answer]) -> None:
        try:
            self._generate(answers)
        except Exception:
            logger.exception("%d answers failed.", len(answers))
        # Perhaps the batch was too large for the memory, which is free again only here.
        if len(answers) > 1:
            for answer in answers:
                if not answer.is_over and not answer.ids:
                    self._write([answer])
        for answer in answers:
            answer.fail(RequestError(FAILED, status=500))

    @torch.no_grad()
    def _generate(self, answers: list[Answer]) -> None:
        request, own = answers[0].request, self.model.generation_config
        length = max(len(answer.prompt.ids) for answer in answers)
        pad = own.pad_token_id if own.pad_token_id is not None else min(answers[0].ends, default=0)
        rows = [[pad] * (length - len(answer.prompt.ids)) + answer.prompt.ids for answer in answers]
        mask = [[0] * (length - len(answer.prompt.ids)) + [1] * len(answer.prompt.ids) for answer in answers]
        if request.seed is not None:
            torch.manual_seed(request.seed)
        output = self.model.generate(
            input_ids=torch.tensor(rows, device=self.model.device),
            attention_mask=torch.tensor(mask, device=self.model.device),
            mm_encoder_outputs=self._encode(answers),
            max_new_tokens=max(answer.length for answer in answers),
            pad_token_id=pad,
            stopping_criteria=StoppingCriteriaList([_Writer(answers)]),
            **{**self._own, **request.settings},
        )
        for answer, row in zip(answers, output[:, length:].tolist(), strict=True):
            for token in row if self._has_beams(answer) else ():
                answer.add(token)
            if not answer.is_over:  # a checkpoint may have a time limit, or beams that end without an end token
                answer.finish("stop")

    def _encode(self, answers: list[Answer]) -> dict[str, BaseModelOutputWithPooling]:
        """Features of the visuals of all prompts in order, one by one: what a batch holds changes none of them."""

        def encode(modality: str, pixels: torch.Tensor) -> torch.Tensor:
            pixels = pixels[None].to(self.model.device)
            features = getattr(self.model, f"get_{modality}_features")(pixels, return_dict=True)
            return features.pooler_output[0]

        found = {}
        for modality in ("image", "video"):
            visuals = [visual for answer in answers for visual in answer.prompt.visuals[modality]]
            if visuals:
                features = [
                    self.features.get(key, lambda pixels=pixels, modality=modality: encode(modality, pixels))
                    for key, pixels in visuals
                ]
                found[modality] = BaseModelOutputWithPooling(pooler_output=features)
        return found
