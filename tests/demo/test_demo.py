# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The demo without a browser: what answers, what is kept, what a Space consists of."""

import ast
import sys
import types

import pytest
import yaml
from clips import write_clip
from typer.testing import CliRunner

from transformers_valley import demo as package
from transformers_valley.chat import VideoChat
from transformers_valley.demo import LocalModel, build_demo, write_space
from transformers_valley.demo.app import _Session, _stream
from valley_cli.app import app


@pytest.fixture
def local(model, processor):
    return LocalModel(model, processor, "tiny", max_warm=2, max_new_tokens=4)


def ask(local, chat, text, shown=None):
    pieces = []
    local.ask(chat, text, None, shown, {}, pieces.append)
    return "".join(pieces)


def test_an_answer_is_that_of_a_conversation(local, model, processor, clip):
    shown = local.sample(clip, num_frames=3)
    chat = local.begin()
    expected = VideoChat(model, processor, max_new_tokens=4)
    assert ask(local, chat, "What?", shown) == expected.ask("What?", videos=[shown])
    assert ask(local, chat, "And then?") == expected.ask("And then?")


def test_conversations_go_on_after_their_cache_is_gone(local, clip):
    shown = local.sample(clip, num_frames=3)
    chats = [local.begin() for _ in range(4)]  # of which two are kept
    firsts = [ask(local, chat, "What?", shown) for chat in chats]
    seconds = [ask(local, chat, "And then?") for chat in chats]
    assert len(set(firsts)) == len(set(seconds)) == 1
    assert all(len(chat.messages) == 4 for chat in chats)


def test_a_still_is_an_image(local, tmp_path):
    from PIL import Image

    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    chat = local.begin()
    ask(local, chat, "What?", local.sample(str(tmp_path / "red.png")))
    assert chat.messages[0]["content"][0]["type"] == "image"


def test_who_leaves_ends_the_answer(local):
    session = types.SimpleNamespace(chat=local.begin(), path=None, shown=None, sampling={})
    local.generate_kwargs["max_new_tokens"] = 1000
    answer = _stream(local, session, "What?")
    next(answer)
    answer.close()
    assert local._one_at_a_time.acquire(timeout=30)  # the next visitor's turn
    assert session.chat.messages == []


def test_errors_of_the_model_reach_the_page():
    def fail(*args):
        raise ValueError("too long")

    session = types.SimpleNamespace(chat=None, path=None, shown=None, sampling={})
    with pytest.raises(ValueError, match="too long"):
        list(_stream(types.SimpleNamespace(ask=fail), session, "What?"))


def test_a_space_is_complete(tmp_path):
    pytest.importorskip("gradio")
    write_space(tmp_path / "space", "user/valley-13b")
    assert {path.name for path in (tmp_path / "space").iterdir()} == {"app.py", "README.md", "requirements.txt"}
    tree = ast.parse((tmp_path / "space" / "app.py").read_text())
    names = [name.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names]
    assert set(names) - {"LAUNCH", "find_checkpoint"} <= set(package.__all__)
    metadata = yaml.safe_load((tmp_path / "space" / "README.md").read_text().split("---")[1])
    assert metadata["sdk"] == "gradio" and metadata["app_file"] == "app.py"
    assert metadata["models"] == ["user/valley-13b"]


def test_a_page_is_built(local):
    gr = pytest.importorskip("gradio")
    assert isinstance(build_demo(local), gr.Blocks)


def handlers(local):
    """What the page does on a question, on an upload or a change of its settings, and where it begins anew."""
    pytest.importorskip("gradio")
    found = {event.fn.__name__: event.fn for event in build_demo(local).fns.values() if event.fn is not None}
    return found["answer"], found["look"], found["restart"]


def visuals(session):
    """How many frames each of the questions showed."""
    asked = [message["content"] for message in session.chat.messages if message["role"] == "user"]
    return [sum(len(block["video"].frames) for block in blocks if block["type"] == "video") for blocks in asked]


def test_what_is_typed_while_an_answer_comes_stays(local):
    gradio = pytest.importorskip("gradio")
    answer, *_ = handlers(local)
    box = [values[0] for values in answer("Who are you?", [], _Session())]
    assert box[0] == "" and len(box) > 1 and all(value == gradio.skip() for value in box[1:])


def test_a_clip_is_shown_once(local, clip):
    answer, look, _ = handlers(local)
    session = _Session()
    look(clip, 3, 0, 0, 0, session)
    for _ in range(2):
        list(answer("What?", [], session))
    assert visuals(session) == [3, 0]


@pytest.mark.parametrize("first", [3, 0])
@pytest.mark.parametrize("moment", [1, 2])  # before the model is asked; after the first words
def test_a_clip_that_is_dropped_while_an_answer_comes_is_of_the_next_question(local, clip, tmp_path, first, moment):
    answer, look, _ = handlers(local)
    session = _Session()
    look(clip if first else None, 3, 0, 0, 0, session)
    answering = answer("What?", [], session)
    for _ in range(moment):
        next(answering)
    look(write_clip(tmp_path / "next.mp4", 20), 2, 0, 0, 0, session)
    list(answering)
    list(answer("And this?", [], session))
    list(answer("And then?", [], session))
    assert visuals(session) == [first, 2, 0]


@pytest.mark.parametrize("settings, shown", [((5, 0, 0, 0), 5), ((3, 0, 1, 2), 3), ((3, 0, 0, 0), 0)])
def test_only_settings_that_changed_while_an_answer_comes_show_a_clip_again(local, clip, settings, shown):
    answer, look, _ = handlers(local)
    session = _Session()
    look(clip, 3, 0, 0, 0, session)
    answering = answer("What?", [], session)
    next(answering)
    look(clip, *settings, session)  # the slider was moved, or a field left
    list(answering)
    list(answer("And then?", [], session))
    assert visuals(session) == [3, shown]


def test_a_conversation_that_begins_anew_is_shown_the_clip(local, clip):
    answer, look, restart = handlers(local)
    session = _Session()
    look(clip, 3, 0, 0, 0, session)
    list(answer("What?", [], session))
    _, pictures, *_ = restart(clip, 3, 0, 0, 0, session)
    list(answer("What?", [], session))
    assert len(pictures) == 3 and visuals(session) == [3]


def test_without_gradio_the_error_says_what_to_install(local, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r"pip install 'transformers-valley\[demo\]'"):
        build_demo(local)


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "Name a checkpoint or a --server, and not both"),
        (["ckpt", "--server", "http://localhost:1"], "Name a checkpoint or a --server, and not both"),
        (["ckpt", "--example", "gone.mp4"], "There is no file gone.mp4"),
        (["--server", "http://localhost:1"], "No server with a model answers at http://localhost:1/v1"),
        (["--server", "http://localhost:1", "--space", "space"], "A Space answers by itself"),
        (["valley-13b", "--space", "space"], "'valley-13b' is not a name there"),
        (["gone/ckpt"], "Cannot load 'gone/ckpt'"),
    ],
)
def test_mistakes_are_said_in_one_line(words, message, tmp_path, monkeypatch):
    pytest.importorskip("gradio")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["demo", *words])
    assert result.exit_code == 1
    assert message in result.stderr and len(result.stderr.strip().splitlines()) == 1


def test_a_space_never_overwrites(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        write_space(tmp_path, "user/valley-13b")
