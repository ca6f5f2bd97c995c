# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
import pytest
from tiny import random_frames

from transformers_valley import video_processing_valley
from transformers_valley.chat import VideoChat
from transformers_valley.processing_valley import trim_answer
from transformers_valley.video_decoding import VideoDecodeError, sample_video


NEW = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture
def chat(model, processor):
    return VideoChat(model, processor, **NEW)


def from_scratch(model, processor, messages):
    """What the model answers when it reads a whole conversation at once."""
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    output = model.generate(**inputs, **NEW)[0, inputs["input_ids"].shape[1] :]
    return processor.decode(output, skip_special_tokens=True).strip()


def test_answers_are_those_of_reading_the_whole_conversation_each_time(chat, model, processor, clip):
    questions = [
        ("What happens?", {"videos": [clip]}),
        ("And then?", {}),
        ("And in these?", {"videos": [random_frames(5), clip], "images": [random_frames(1)[0]]}),
        ("Which is longer?", {}),
    ]
    for text, visuals in questions:
        answer = chat.ask(text, **visuals)
        assert answer == from_scratch(model, processor, chat.messages[:-1])
        assert chat.messages[-1] == {"role": "assistant", "content": [{"type": "text", "text": answer}]}


def test_another_first_question_about_a_clip_does_not_read_it_again(chat, model, processor, clip):
    sampled = processor.video_processor.sample(clip)
    alone = {"What happens?": None, "What colour is it?": None}
    for question in alone:
        chat.reset(keep_cache=True)
        alone[question] = chat.ask(question, videos=[sampled])
        assert alone[question] == from_scratch(model, processor, chat.messages[:-1])
    assert chat.num_tokens_read < 20  # of the question; the clip alone has more
    chat.reset()
    assert chat.ask("What happens?", videos=[sampled]) == alone["What happens?"] and chat.num_tokens_read > 30


def test_what_was_read_is_not_read_again(chat, model, processor, clip, monkeypatch):
    encoded = []
    monkeypatch.setattr(
        model.model.vision_tower,
        "forward",
        lambda pixels, forward=model.model.vision_tower.forward, **kwargs: (
            encoded.append(len(pixels)) or forward(pixels, **kwargs)
        ),
    )
    chat.ask("What happens?", videos=[clip])
    first, frames = chat.num_tokens_read, sum(encoded)
    chat.ask("What happens?")
    assert chat.num_tokens_read < first // 2
    assert sum(encoded) == frames
    chat.ask("And here?", videos=[random_frames(4)])
    assert sum(encoded) == frames + 4


def test_a_clip_is_decoded_once(chat, clip, monkeypatch):
    decoded = []
    monkeypatch.setattr(
        video_processing_valley,
        "sample_video",
        lambda source, **options: decoded.append(source) or sample_video(source, **options),
    )
    chat.ask("What?", videos=[clip])
    chat.ask("And then?")
    assert decoded == [clip]


def test_a_changed_past_is_read_again(chat, model, processor, clip):
    """The cache is cut where the prompt parts from what was read, and dropped where that is before a clip."""
    chat.ask("What happens?", videos=[clip])
    chat.messages[-1]["content"][0]["text"] = "Something else entirely."
    assert chat.ask("Why?") == from_scratch(model, processor, chat.messages[:-1])
    assert chat.num_tokens_read < 60
    chat.messages.insert(0, {"role": "system", "content": "Be brief."})
    assert chat.ask("Why?") == from_scratch(model, processor, chat.messages[:-1])
    assert chat.num_tokens_read > 60


def test_another_clip_in_the_past_is_read(chat, model, processor):
    chat.ask("What happens?", videos=[random_frames(4)])
    chat.messages[0]["content"][0]["video"] = processor.video_processor.sample(random_frames(4, seed=1))
    assert chat.ask("Why?") == from_scratch(model, processor, chat.messages[:-1])
    assert chat.num_tokens_read > 60


def test_settings_of_a_checkpoint_that_would_spoil_the_cache_do_not_count(chat, model, processor, clip, monkeypatch):
    expected = [chat.ask("What happens?", videos=[clip]), chat.ask("And here?", videos=[random_frames(4)])]
    for name, value in {
        "num_beams": 3,
        "num_return_sequences": 2,
        "use_cache": False,
        "cache_implementation": "static",
    }.items():
        monkeypatch.setattr(model.generation_config, name, value)
    again = VideoChat(model, processor, **NEW)
    assert [again.ask("What happens?", videos=[clip]), again.ask("And here?", videos=[random_frames(4)])] == expected


@pytest.mark.parametrize(
    "wrong", [{"num_beams": 3}, {"prompt_lookup_num_tokens": 2}, {"assistant_model": None}, {"use_cache": False}]
)
def test_settings_that_would_spoil_the_cache_are_refused(model, processor, wrong):
    with pytest.raises(ValueError, match=f"one answer at a time and cannot take {next(iter(wrong))}. Give settings"):
        VideoChat(model, processor, **wrong)


def test_an_answer_ends_where_the_model_cannot_read_on(model, processor, clip, monkeypatch):
    monkeypatch.setattr(model.config.text_config, "max_position_embeddings", 100)
    chat = VideoChat(model, processor, max_new_tokens=1000, do_sample=False, eos_token_id=-1)
    chat.ask("What happens?", videos=[clip])
    assert chat._cache.get_seq_length() == 99  # the last token is not read


def test_pieces_make_the_answer(chat, clip):
    pieces = []
    answer = chat.ask("What happens?", videos=[clip], on_text=pieces.append)
    assert "".join(pieces) == answer and answer


def test_a_stop_string_ends_an_answer(model, processor, clip):
    whole = VideoChat(model, processor, **NEW).ask("What happens?", videos=[clip])
    stop = whole[2:4]
    pieces = []
    chat = VideoChat(model, processor, stop_strings=stop, **NEW)
    assert chat.ask("What happens?", videos=[clip], on_text=pieces.append) == whole.partition(stop)[0].strip()
    assert "".join(pieces) == chat.messages[-1]["content"][0]["text"]
    assert chat.ask("And then?") == trim_answer(from_scratch(model, processor, chat.messages[:-1]), [stop])


def test_an_interrupted_answer_leaves_the_conversation_as_it_was(chat, model, processor, clip):
    def interrupt(piece):
        raise KeyboardInterrupt

    chat.ask("What happens?", videos=[clip])
    before = list(chat.messages)
    with pytest.raises(KeyboardInterrupt):
        chat.ask("And then?", on_text=interrupt)
    assert chat.messages == before
    assert chat.ask("And then?") == from_scratch(model, processor, chat.messages[:-1])


def test_a_broken_clip_leaves_the_conversation_as_it_was(chat, clip, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    chat.ask("What happens?", videos=[clip])
    before = list(chat.messages)
    with pytest.raises(VideoDecodeError, match="broken.mp4"):
        chat.ask("And here?", videos=[tmp_path / "broken.mp4"])
    assert chat.messages == before and chat.ask("And then?")


def test_a_conversation_that_is_too_long_is_refused(chat, clip):
    with pytest.raises(ValueError, match="the model reads 4096 at most"):
        chat.ask("a " * 5000, videos=[clip])
    assert chat.messages == []


def test_reset_begins_anew(model, processor, clip):
    chat = VideoChat(model, processor, system="Be brief.", **NEW)
    first = chat.ask("What happens?", videos=[clip])
    chat.reset()
    assert chat.messages == [{"role": "system", "content": "Be brief."}]
    assert chat.ask("What happens?", videos=[clip]) == first
