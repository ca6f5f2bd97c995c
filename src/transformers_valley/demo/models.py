# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What answers the page's questions: a model in this process, or a server.

Input: the blocks of a user's turn, files with their sampling among them. Output: the answer, piece by piece.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel

from ..chat import VideoChat
from ..endpoint import file_url
from ..processing_valley import ValleyProcessor
from ..video_decoding import SampledVideo, sample_video
from ..video_interrupts import MAX_READ_SECONDS, interrupted_by, time_limit


__all__ = ["LocalModel", "RemoteModel"]

SHOWN_SIZE = 224  # pixels of a frame's short side on the page, where no processor says what the model sees


class LocalModel:
    """
    A model of this process. It answers one question at a time; the KV caches of the last conversations are kept.

    Args:
        model (`ValleyForConditionalGeneration`): the model.
        processor (`ValleyProcessor`): its processor.
        name (`str`): what the page calls it.
        max_warm (`int`, *optional*, defaults to 4): conversations whose cache is kept; others are read again.
        **generate_kwargs: for `generate`, such as `max_new_tokens=256`.
    """

    def __init__(
        self, model: PreTrainedModel, processor: ValleyProcessor, name: str, max_warm: int = 4, **generate_kwargs: Any
    ):
        self.model, self.processor, self.name = model, processor, name
        self.generate_kwargs, self.max_warm = generate_kwargs, max_warm
        self._warm: OrderedDict[int, VideoChat] = OrderedDict()
        self._one_at_a_time = threading.Lock()

    def sample(self, path: str, **sampling: Any) -> SampledVideo:
        """Decode the frames that the model will see. Raises `VideoDecodeError` where it cannot."""
        with interrupted_by(time_limit(MAX_READ_SECONDS)):
            return self.processor.video_processor.sample(path, **sampling)

    def begin(self) -> VideoChat:
        """A new conversation."""
        return VideoChat(self.model, self.processor, **self.generate_kwargs)

    def ask(self, chat: VideoChat, text: str, path: str | None, shown: SampledVideo | None, sampling: dict, on_text):
        """
        Ask the next question of a conversation.

        Args:
            chat (`VideoChat`): of `begin`.
            text (`str`): the question.
            path (`str`, *optional*): the clip or image that it shows for the first time, or sampled again.
            shown ([`SampledVideo`], *optional*): the frames of it, of `sample`.
            sampling (`dict`): how they were sampled.
            on_text (callable): called with each piece of the answer. What it raises ends the answer.
        """
        blocks: list[dict[str, Any]] = [{"type": "text", "text": text}]
        if shown is not None:
            kind, visual = ("image", shown.frames[0]) if shown.is_still else ("video", shown)
            blocks.insert(0, {"type": kind, kind: visual})
        with self._one_at_a_time:
            self._keep_warm(chat)
            chat.ask(blocks, on_text=on_text)

    def _keep_warm(self, chat: VideoChat) -> None:
        self._warm[id(chat)] = chat
        self._warm.move_to_end(id(chat))
        while len(self._warm) > self.max_warm:
            _, oldest = self._warm.popitem(last=False)
            oldest.forget()


class RemoteModel:
    """
    A model behind an OpenAI-compatible server, such as `valley serve`.

    Args:
        url (`str`): the server's address, with or without `/v1`.
        api_key (`str`, *optional*): its key.
        **request: for each request, such as `max_tokens=256`.

    Raises:
        OSError: if the server does not answer, or refuses the key.
    """

    def __init__(self, url: str, api_key: str | None = None, **request: Any):
        import openai

        base = url.rstrip("/")
        base = base if base.endswith("/v1") else f"{base}/v1"
        self.client = openai.OpenAI(base_url=base, api_key=api_key or "none")
        self.request = request
        try:
            self.name = self.client.models.list().data[0].id
        except openai.AuthenticationError as error:
            raise OSError(f"The server at {url} refuses the key: give it in VALLEY_API_KEY.") from error
        except (openai.APIError, IndexError) as error:
            raise OSError(f"No server with a model answers at {base}: {error}") from error

    def sample(self, path: str, **sampling: Any) -> SampledVideo:
        """The frames that the server will sample, by the same rule."""
        with interrupted_by(time_limit(MAX_READ_SECONDS)):
            return sample_video(path, size=SHOWN_SIZE, **sampling)

    def begin(self) -> list[dict[str, Any]]:
        """A new conversation."""
        return []

    def ask(
        self,
        chat: list[dict[str, Any]],
        text: str,
        path: str | None,
        shown: SampledVideo | None,
        sampling: dict[str, Any],
        on_text: Callable[[str], None],
    ) -> None:
        """As in [`LocalModel.ask`]. Raises `openai.APIError` with the server's own words."""
        content: list[dict[str, Any]] = [{"type": "text", "text": text}]
        if path is not None:
            kind = "image_url" if shown.is_still else "video_url"
            settings = {} if kind == "image_url" else {k: v for k, v in sampling.items() if v is not None}
            content.insert(0, {"type": kind, kind: {"url": file_url(path), **settings}})
        messages = [*chat, {"role": "user", "content": content}]
        stream = self.client.chat.completions.create(model=self.name, messages=messages, stream=True, **self.request)
        pieces: list[str] = []
        with stream:
            for chunk in stream:
                if chunk.choices and (piece := chunk.choices[0].delta.content):
                    on_text(piece)
                    pieces.append(piece)
        chat[:] = [*messages, {"role": "assistant", "content": "".join(pieces)}]
