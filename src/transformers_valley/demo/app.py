# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The page itself, of Gradio's parts.

Input: what answers ([`LocalModel`] or [`RemoteModel`]). Output: a `gradio.Blocks`, ready to `launch`.
"""

import os
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from ..contact_sheet import clock
from ..video_decoding import SampledVideo
from .models import LocalModel, RemoteModel


__all__ = ["LAUNCH", "build_demo"]

MAX_FRAMES = 64  # of one clip
MAX_UPLOAD = "100mb"
KEPT_SECONDS = 3600  # an upload, and a conversation that nobody continues

_CSS = """
footer {display: none !important}
#frames .caption-label {font-variant-numeric: tabular-nums}
"""
# What `demo.launch` is to be given: uploads have a bound, nothing is shared and no file of this machine is shown.
LAUNCH: dict[str, Any] = {"max_file_size": MAX_UPLOAD, "share": False, "show_error": True, "quiet": True, "css": _CSS}


@dataclass
class _Session:
    """One visitor's state."""

    chat: Any = None
    path: str | None = None  # of the visual that the next question shows
    shown: SampledVideo | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    looked_at: tuple[str, dict[str, Any]] | None = None  # path and sampling of the frames on the page


class _Stopped(Exception):
    """Ends an answer that nobody waits for."""


def build_demo(model: LocalModel | RemoteModel, examples: list[list[str]] | None = None) -> Any:
    """
    Build the page.

    Args:
        model ([`LocalModel`] or [`RemoteModel`]): what answers.
        examples (`list[list[str]]`, *optional*): clip and question of each example. They are copied into the page's
            own folder of uploads.

    Returns:
        `gradio.Blocks`: the page. Launch it with `demo.launch(**LAUNCH)`.

    Raises:
        ImportError: if Gradio is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio as gr
    except ImportError as error:
        raise ImportError("The demo needs Gradio: pip install 'transformers-valley[demo]'.") from error

    with gr.Blocks(title=f"Valley: {model.name}", delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as demo:
        # A function, because Gradio takes a dataclass for a component's data.
        session = gr.State(lambda: _Session(), time_to_live=KEPT_SECONDS)
        gr.Markdown(f"## Ask {model.name} about a clip\nDrop a clip or an image, see what the model sees, and ask.")
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=320):
                upload = gr.File(label="Clip or image", file_types=["video", "image"], type="filepath", height=140)
                with gr.Row():
                    num_frames = gr.Slider(1, MAX_FRAMES, value=8, step=1, label="Frames")
                    fps = gr.Number(value=0, label="Or per second (0: no)", minimum=0)
                with gr.Row():
                    start = gr.Number(value=0, label="From second", minimum=0)
                    end = gr.Number(value=0, label="To second (0: the end)", minimum=0)
                said = gr.Markdown("No clip yet: questions are about text alone.", elem_id="said")
                frames = gr.Gallery(
                    label="What the model sees", columns=3, height="auto", object_fit="contain", elem_id="frames"
                )
            with gr.Column(scale=3, min_width=320):
                # Answers are text: whatever looks like markup in them stays what it is.
                chatbot = gr.Chatbot(
                    label="Conversation", height=460, render_markdown=False, buttons=["copy"], elem_id="conversation"
                )
                question = gr.Textbox(
                    label="Question", placeholder="What happens in the clip?", autofocus=True, elem_id="question"
                )
                with gr.Row():
                    ask = gr.Button("Ask", variant="primary", elem_id="ask")
                    stop = gr.Button("Stop", elem_id="stop")
                    clear = gr.Button("Clear", elem_id="clear")
        if examples:
            gr.Examples(examples, [upload, question], cache_examples=False)

        settings = [upload, num_frames, fps, start, end]

        def look(path, num_frames, fps, start, end, session):
            sampling = {"start": start or None, "end": end or None}
            sampling |= {"fps": fps, "max_frames": MAX_FRAMES} if fps else {"num_frames": int(num_frames)}
            if session.looked_at == (path, sampling):  # a field was left as it was
                return gr.skip(), gr.skip(), session
            session.path = session.shown = session.looked_at = None
            if path is None:
                return [], "No clip: questions are about text alone.", session
            try:
                shown = model.sample(path, **sampling)
            except (ValueError, OSError) as error:
                return [], f"**This cannot be shown to the model.** {_without_folder(error, path)}", session
            session.path, session.shown, session.sampling = path, shown, sampling
            session.looked_at = path, sampling
            return _pictures(shown), _describe(shown), session

        def answer(text, history, session) -> Iterator[tuple]:
            if not text.strip():
                yield "", history, session
                return
            if session.chat is None:
                session.chat = model.begin()
            asked = replace(session)  # the visitor may drop the next clip while this answer is written
            history = [*history, {"role": "user", "content": text}, {"role": "assistant", "content": "…"}]
            yield "", history, session
            try:
                for written in _stream(model, asked, text):
                    history[-1]["content"] = written
                    yield gr.skip(), history, session  # the next question may be in the box already
            except Exception as error:  # whatever it is, the visitor sees why there is no answer, and can go on
                message = _without_folder(error, asked.path) if isinstance(error, ValueError | OSError) else error
                history[-1]["content"] = f"No answer: {message}"
                yield text, history, session
                return
            if session.shown is asked.shown:
                session.path = session.shown = None  # a second question does not show it again

        def restart(path, num_frames, fps, start, end, session):
            session.chat = session.looked_at = None
            return [], *look(path, num_frames, fps, start, end, session)

        looked = [frames, said, session]
        gr.on(
            [upload.change, num_frames.release, fps.submit, fps.blur, start.submit, start.blur, end.submit, end.blur],
            look,
            [*settings, session],
            looked,
            show_progress="minimal",
            api_name=False,
        )
        answering = gr.on(
            [question.submit, ask.click],
            answer,
            [question, chatbot, session],
            [question, chatbot, session],
            api_name="ask",
            concurrency_limit=4,
        )
        stop.click(None, cancels=[answering], queue=False)
        gr.on(
            [clear.click, chatbot.clear],
            restart,
            [*settings, session],
            [chatbot, *looked],
            cancels=[answering],
            api_name=False,
        )
    demo.queue(max_size=32)
    return demo


def _stream(model: LocalModel | RemoteModel, asked: _Session, text: str) -> Iterator[str]:
    """The answer as far as it is written, again and again. Whoever stops to read ends it.

    `asked` is read by another thread: it is a state that nobody changes.
    """
    pieces: queue.Queue = queue.Queue()
    stopped = threading.Event()

    def on_text(piece: str) -> None:
        if stopped.is_set():
            raise _Stopped
        pieces.put(piece)

    def work() -> None:
        try:
            model.ask(asked.chat, text, asked.path, asked.shown, asked.sampling, on_text)
            pieces.put(None)
        except _Stopped:
            pass
        except Exception as error:
            pieces.put(error)

    threading.Thread(target=work, daemon=True).start()
    written = ""
    try:
        while (piece := pieces.get()) is not None:
            if isinstance(piece, Exception):
                raise piece
            written += piece
            yield written
        if not written:
            yield "(an empty answer)"
    finally:
        stopped.set()


def _pictures(shown: SampledVideo) -> list[tuple[Image.Image, str]]:
    times = shown.timestamps or [None] * len(shown.frames)
    pictures = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in shown.frames]
    return [(picture, "" if time is None else clock(time)) for picture, time in zip(pictures, times, strict=True)]


def _describe(shown: SampledVideo) -> str:
    if shown.is_still:
        return "One image."
    count = len(shown.frames)
    if shown.timestamps is None:
        return f"{count} frames."
    length = shown.metadata.get("duration")
    whole = f", of a clip {clock(length)} long" if length else ""
    return (
        f"{count} frame{'s' * (count > 1)} from {clock(shown.timestamps[0])} to {clock(shown.timestamps[-1])}{whole}."
    )


def _without_folder(error: Exception, path: str | None) -> str:
    """What is wrong, with the name of the upload and not where this machine keeps it."""
    return str(error) if path is None else str(error).replace(path, os.path.basename(path))
