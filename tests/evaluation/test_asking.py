# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The chat around a question, and what is shown with it."""

import base64

import pytest
import torch
from clips import read_number, write_clip
from PIL import Image

from transformers_valley.evaluation.asking import COT, build_chat, default_system, served_messages, show
from transformers_valley.evaluation.benchmark import Sample, chat_about
from transformers_valley.video_decoding import VideoDecodeError, sample_video


def sample(question="Who?", **about) -> Sample:
    return Sample("1", chat_about(question, video="a.mp4"), ("a dog",), **about)


def texts(messages):
    return [(m["role"], " ".join(b["text"] for b in m["content"] if b["type"] == "text")) for m in messages]


def test_question_alone_stays_as_it_is():
    assert build_chat(sample()) == sample().messages


def test_chain_of_thought_ends_the_system_prompt():
    assert texts(build_chat(sample(), cot=True, system="You see."))[0] == ("system", f"You see. {COT}")
    assert texts(build_chat(sample(), cot=True))[0] == ("system", COT)
    own = [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, *sample().messages]
    assert texts(build_chat(Sample("1", own), cot=True, system="You see."))[0] == ("system", f"Be brief. {COT}")
    assert texts(build_chat(Sample("1", own)))[0] == ("system", "Be brief.")


def test_examples_come_before_with_their_clips_and_answers():
    shots = [sample("One?"), sample("Two?", example="The answer is B.")]
    chat = build_chat(sample(), shots)
    assert texts(chat) == [
        *(("user", "One?"), ("assistant", "a dog"), ("user", "Two?"), ("assistant", "The answer is B.")),
        ("user", "Who?"),
    ]
    assert sum(block["type"] == "video" for message in chat for block in message["content"]) == 3


def test_system_prompt_of_a_chat_template_is_found(processor):
    assert default_system(processor) == (
        "You are Valley, an assistant that sees images and videos and answers from what they show."
    )
    processor.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content[0].text }}\n{% endfor %}"
    assert default_system(processor) == ""


@pytest.fixture
def clip(tmp_path):
    return write_clip(tmp_path / "a.mp4", 50, fps=10)


def shown(clip, view, seed="1", num_frames=5):
    messages = chat_about("Who?", video=clip)
    return show(messages, view, seed, lambda block: sample_video(block["path"], num_frames=num_frames))


def frames(messages):
    return [read_number(frame) for frame in messages[0]["content"][0]["video"].frames]


def test_clip_is_shown_with_its_times(clip):
    messages, about = shown(clip, "clip")
    assert frames(messages) == [0, 12, 24, 36, 49]
    (each,) = about
    assert (each["path"], each["num_frames"]) == (clip, 5) and each["times"] == pytest.approx([0, 1.2, 2.4, 3.6, 4.9])


def test_blind_shows_the_question_alone(clip):
    messages, about = shown(clip, "blind")
    assert messages == [{"role": "user", "content": [{"type": "text", "text": "Who?"}]}] and about == []


def test_one_frame_is_the_middle_one(clip):
    messages, about = shown(clip, "one_frame")
    assert frames(messages) == [24] and about[0]["times"] == pytest.approx([2.4]) and about[0]["num_frames"] == 1


def test_shuffled_frames_are_the_same_in_another_order_each_time(clip):
    (messages, about), (again, _) = shown(clip, "shuffled"), shown(clip, "shuffled")
    assert frames(messages) == frames(again) != [0, 12, 24, 36, 49] and sorted(frames(messages)) == [0, 12, 24, 36, 49]
    assert [[0, 12, 24, 36, 49][i] for i in about[0]["order"]] == frames(messages)
    assert any(frames(shown(clip, "shuffled", seed=str(s))[0]) != frames(messages) for s in range(5))


@pytest.mark.parametrize("seed", "abcdef")
def test_two_frames_change_places(clip, seed):
    assert frames(shown(clip, "shuffled", seed, num_frames=2)[0]) == [49, 0]


def test_one_frame_cannot_be_shuffled(clip):
    assert frames(shown(clip, "shuffled", num_frames=1)[0]) == [0]


def test_image_is_opened(tmp_path):
    Image.new("RGB", (8, 6), "red").save(tmp_path / "a.png")
    messages, about = show(chat_about("Who?", image=str(tmp_path / "a.png")), "clip", "1", None)
    assert messages[0]["content"][0]["image"].size == (8, 6)
    assert about == [{"path": str(tmp_path / "a.png"), "num_frames": 1, "times": None}]
    with pytest.raises(VideoDecodeError, match="gone.png"):
        show(chat_about("Who?", image=str(tmp_path / "gone.png")), "clip", "1", None)


def test_frames_are_kept_for_people(clip):
    kept = {}

    def keep(name, frames):
        kept[name] = frames
        return {"strip": "frames/1.jpg"}

    messages = chat_about("Who?", video=clip, start=1.0)
    _, about = show(messages, "clip", "1", lambda block: sample_video(block["path"], num_frames=2), keep)
    assert about[0]["strip"] == "frames/1.jpg" and about[0]["start"] == 1.0
    (frames,) = kept.values()
    assert isinstance(frames, torch.Tensor) and len(frames) == 2


def test_server_gets_files_as_addresses(clip, monkeypatch):
    (message,) = served_messages(chat_about("Who?", video=clip, end=2.0), "clip")
    video, text = message["content"]
    head, _, data = video["video_url"]["url"].partition(",")
    assert head == "data:video/mp4;base64" and base64.b64decode(data) == open(clip, "rb").read()
    assert video["video_url"]["end"] == 2.0 and text == {"type": "text", "text": "Who?"}
    assert served_messages(chat_about("Who?", video=clip), "blind") == [{"role": "user", "content": "Who?"}]
    far = served_messages(chat_about("Who?", video="https://host/a.mp4"), "clip")
    assert far[0]["content"][0] == {"type": "video_url", "video_url": {"url": "https://host/a.mp4"}}
    with pytest.raises(VideoDecodeError, match="no such file"):
        served_messages(chat_about("Who?", video="gone.mp4"), "clip")
    monkeypatch.setattr("transformers_valley.evaluation.asking.MAX_SENT_BYTES", 10)
    with pytest.raises(VideoDecodeError, match="a request carries 10"):
        served_messages(chat_about("Who?", video=clip), "clip")
