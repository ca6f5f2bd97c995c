# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
import multiprocessing
import subprocess
import sys
from functools import partial

import pytest
import torch
from clips import write_clip
from PIL import Image
from tiny import random_frames
from torch.utils.data import DataLoader
from transformers import TextStreamer, pipeline

from transformers_valley import VideoTextToTextPipeline, pipeline_valley
from transformers_valley.video_decoding import VideoDecodeError


NEW = {"max_new_tokens": 5, "return_full_text": False}


@pytest.fixture
def pipe(checkpoint):
    return pipeline("video-text-to-text", model=checkpoint)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", 30, fps=10)


def chat(clip, question="What happens?"):
    return [{"role": "user", "content": [{"type": "video", "path": clip}, {"type": "text", "text": question}]}]


def picture():
    return Image.new("RGB", (40, 30), "green")


def answer(result):
    return result[0]["generated_text"]


def test_a_path_and_a_question(pipe, clip):
    assert type(pipe) is VideoTextToTextPipeline
    result = pipe(clip, "What happens?", **NEW)
    assert list(result[0]) == ["input_text", "generated_text"]
    expected = pipe.model.generate(
        **pipe.processor.apply_chat_template(
            chat(clip), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ),
        max_new_tokens=5,
    )
    assert answer(result) == pipe.tokenizer.decode(expected[0, -5:], skip_special_tokens=True).strip()


def test_the_ways_to_ask_agree(pipe, clip):
    expected = answer(pipe(clip, "What happens?", **NEW))
    ways = [
        pipe(videos=clip, text="What happens?", **NEW),
        pipe(videos=[clip], text="<video> What happens?", **NEW),
        pipe(text=chat(clip), **NEW),
        pipe(chat(clip), **NEW),
        pipe({"videos": clip, "text": "What happens?"}, **NEW),
    ]
    assert [answer(way) for way in ways] == [expected] * len(ways)


def test_full_text_is_the_chat_with_the_answer(pipe, clip):
    new = answer(pipe(chat(clip), **NEW))
    messages = answer(pipe(chat(clip), max_new_tokens=5))
    assert messages == chat(clip) + [{"role": "assistant", "content": new}]


def test_a_conversation_goes_on(pipe, clip):
    messages = answer(pipe(clip, "What happens?", max_new_tokens=5))
    messages = answer(pipe(messages + [{"role": "user", "content": "And then?"}], max_new_tokens=5))
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant"]


def test_an_answer_that_was_begun_is_continued(pipe, clip):
    begun = chat(clip) + [{"role": "assistant", "content": [{"type": "text", "text": "A red"}]}]
    messages = answer(pipe(begun, max_new_tokens=5))
    assert len(messages) == 2 and messages[1]["content"][0]["text"].startswith("A red")


@pytest.mark.parametrize("as_blocks", [True, False])
def test_whether_an_answer_goes_on_with_the_last_message_may_be_said(pipe, as_blocks):
    def message(role, text):
        return {"role": role, "content": [{"type": "text", "text": text}] if as_blocks else text}

    chat = [message("user", "What happens?"), message("assistant", "A bar moves.")]
    new = pipe(chat, continue_final_message=False, **NEW)
    said = answer(pipe(chat, continue_final_message=False, max_new_tokens=5))
    assert said == [*chat, {"role": "assistant", "content": answer(new)}]
    said = answer(pipe(chat[:1], continue_final_message=True, max_new_tokens=5))
    assert len(said) == 1 and said[0]["content"][0]["text"].startswith("What happens?")


def test_a_length_that_is_given_is_the_only_one(pipe):
    pipe.model.generation_config.max_new_tokens = pipe.model.generation_config.max_length = None
    pipe.model.generation_config.eos_token_id = -1
    (found,) = pipe([{"role": "user", "content": "What?"}], max_length=40, return_tensors=True)
    assert len(found["generated_token_ids"]) == 40


def test_workers_need_not_be_forked(pipe, clip, monkeypatch):
    """They are not on macOS and Windows, nor with Python 3.14."""
    expected = pipe([clip] * 2, ["What?", "Who?"], **NEW)
    monkeypatch.setattr(pipeline_valley, "DataLoader", partial(DataLoader, multiprocessing_context="spawn"))
    assert pipe([clip] * 2, ["What?", "Who?"], num_workers=1, **NEW) == expected
    monkeypatch.setattr(pipeline_valley, "DataLoader", DataLoader)
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "spawn")
    questions = ({"videos": clip, "text": text} for text in ("What?", "Who?"))
    assert list(pipe(questions, num_workers=2, **NEW)) == expected


def test_images_and_text_alone(pipe, tmp_path):
    picture().save(tmp_path / "picture.png")
    for visuals in ({"images": picture()}, {"images": [picture(), tmp_path / "picture.png"]}, {}):
        assert isinstance(answer(pipe(text="What is it?", **visuals, **NEW)), str)


def test_placeholders_say_where_visuals_go(pipe, clip):
    result = pipe(videos=clip, images=picture(), text="Is <image> in <video> ?", **NEW)
    content = result[0]["input_text"][0]["content"]
    assert [block["type"] for block in content] == ["text", "image", "text", "video", "text"]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batches_equal_single_results(pipe, clip, batch_size):
    samples = [
        (clip, None, "What happens?"),
        ([random_frames(2), random_frames(5)], None, "Which is longer?"),
        (None, picture(), "What colour?"),
        (random_frames(1), [picture(), picture()], "Same?"),
        (None, None, "Hello"),
    ]
    alone = [answer(pipe(videos=videos, images=images, text=text, **NEW)) for videos, images, text in samples]
    videos, images, text = zip(*samples, strict=True)
    together = pipe(videos=list(videos), images=list(images), text=list(text), batch_size=batch_size, **NEW)
    assert [answer(result) for result in together] == alone


def test_batches_of_chats_and_generators(pipe, clip):
    chats = [chat(clip, question) for question in ("What?", "Who is it?", "Why?")]
    expected = [answer(pipe(one, **NEW)) for one in chats]
    assert [answer(result) for result in pipe(chats, batch_size=2, **NEW)] == expected
    assert [answer(result) for result in pipe((one for one in chats), batch_size=2, **NEW)] == expected


def test_datasets_of_questions(pipe, clip):
    from datasets import Dataset

    rows = Dataset.from_list([{"videos": clip, "text": question} for question in ("What?", "Why?")])
    expected = [answer(pipe(clip, question, **NEW)) for question in ("What?", "Why?")]
    assert [answer(result) for result in pipe(rows, batch_size=2, **NEW)] == expected


def test_an_answer_of_the_pipeline_can_be_continued(pipe, clip):
    messages = answer(pipe(clip, "What?", max_new_tokens=3))
    longer = answer(pipe(messages, max_new_tokens=3))
    assert longer[-1]["content"][0]["text"].startswith(messages[-1]["content"])


def test_several_candidates_per_prompt(pipe, clip):
    options = {"generate_kwargs": {"num_return_sequences": 3, "do_sample": True}, **NEW}
    assert len(pipe(clip, "What?", **options)) == 3


def test_settings_of_generation_and_sampling_may_stand_beside_the_question(pipe, clip):
    seen = []
    pipe.model.model.vision_tower.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    torch.manual_seed(0)
    flat = pipe(clip, "What?", do_sample=True, temperature=50.0, num_frames=4, **NEW)
    torch.manual_seed(0)
    options = {"generate_kwargs": {"do_sample": True, "temperature": 50.0}, "processor_kwargs": {"num_frames": 4}}
    assert answer(flat) == answer(pipe(clip, "What?", **options, **NEW)) and seen == [4, 4]
    assert answer(flat) != answer(pipe(clip, "What?", num_frames=4, **NEW))


def test_settings_of_the_pipeline_hold_for_all_its_calls(checkpoint, clip):
    pipe = pipeline("video-text-to-text", model=checkpoint, max_new_tokens=3, return_full_text=False, num_frames=2)
    plain = pipeline("video-text-to-text", model=checkpoint)
    expected = plain(clip, "What?", max_new_tokens=3, return_full_text=False, num_frames=2)
    assert answer(pipe(clip, "What?")) == answer(expected)
    assert len(answer(pipe(clip, "What?", return_full_text=True))) == 2


@pytest.mark.parametrize("option", ["temprature", "nframes", "timeout"])
def test_an_option_that_nobody_knows_is_an_error(pipe, clip, checkpoint, option):
    with pytest.raises(TypeError, match=f"has no argument {option}"):
        pipe(clip, "What?", **{option: 1})


def test_a_stop_sequence_is_no_part_of_the_answer(pipe, clip):
    whole = answer(pipe(clip, "What?", **NEW))
    for option in ({"stop_sequence": whole[1:3]}, {"generate_kwargs": {"stop_strings": [whole[1:3]]}}):
        assert answer(pipe(clip, "What?", **option, **NEW)) == whole.partition(whole[1:3])[0].strip()


def test_no_chat_at_all_gets_no_answer(pipe):
    assert pipe([]) == []


@pytest.mark.parametrize("full", [True, False])
def test_the_stop_string_of_a_checkpoint_is_no_part_of_an_answer(pipe, clip, full):
    whole = answer(pipe(clip, "What?", **NEW))
    pipe.model.generation_config.stop_strings = [whole[1:3]]
    cut = answer(pipe(clip, "What?", **NEW | {"return_full_text": full}))
    assert (cut[-1]["content"] if full else cut) == whole.partition(whole[1:3])[0].strip()


def test_streamer_prints_while_it_generates(pipe, clip, capsys):
    streamer = TextStreamer(pipe.tokenizer, skip_prompt=True, skip_special_tokens=True)
    text = answer(pipe(clip, "What happens?", generate_kwargs={"streamer": streamer}, **NEW))
    assert text in capsys.readouterr().out


def test_processor_kwargs_reach_the_clip(pipe, clip):
    seen = []
    pipe.model.model.vision_tower.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    pipe(clip, "What?", processor_kwargs={"num_frames": 7}, **NEW)
    assert seen == [7]


def test_token_ids_on_request(pipe, clip):
    result = pipe(clip, "What?", max_new_tokens=5, return_tensors=True)
    assert isinstance(result[0]["generated_token_ids"], torch.Tensor)


def test_text_that_spells_a_placeholder_in_a_chat_is_text(pipe, clip):
    assert isinstance(answer(pipe(chat(clip, "What does <video> mean?"), **NEW)), str)


def test_saved_pipeline_is_a_whole_checkpoint(pipe, clip, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = pipeline("video-text-to-text", model=str(tmp_path))
    assert answer(again(clip, "What?", **NEW)) == answer(pipe(clip, "What?", **NEW))


@pytest.mark.parametrize("task", ["image-text-to-text", "any-to-any"])
def test_in_tree_tasks_serve_a_video_chat_too(checkpoint, pipe, clip, task):
    other = pipeline(task, model=checkpoint)
    assert answer(other(text=chat(clip), **NEW)).strip() == answer(pipe(chat(clip), **NEW))


@pytest.mark.slow
def test_a_fresh_interpreter_needs_only_the_import(checkpoint, clip):
    code = (
        "import sys, transformers_valley\n"
        "from transformers import pipeline\n"
        f"pipe = pipeline('video-text-to-text', model={checkpoint!r})\n"
        f"print('answer:', pipe({clip!r}, 'What happens?', max_new_tokens=3)[0]['generated_text'][-1]['role'])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "answer: assistant" in result.stdout, result.stderr


# --- bad input ---


def test_a_clip_that_cannot_be_decoded_names_file_and_reason(pipe, tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"\0" * 2000)
    with pytest.raises(VideoDecodeError, match="broken.mp4") as error:
        pipe(str(path), "What happens?", **NEW)
    assert error.value.path == str(path) and error.value.reason


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"videos": "clip.mp4"}, "text is missing"),
        ({"videos": "clip.mp4", "text": "<video> <video>"}, "2 <video> placeholders and 1 videos were given"),
        ({"text": "<image> ?"}, "1 <image> placeholders and 0 images were given"),
        ({"videos": "clip.mp4", "text": ["a", "b"]}, "2 questions need videos as a list with one entry per question"),
        ({"videos": ["a.mp4"], "text": ["a", "b"]}, "2 questions need videos .*a list of 1"),
        ({"videos": "clip.mp4", "text": [{"role": "user", "content": "a"}]}, "A chat holds its visuals itself"),
        ({"text": {"text": "a", "video": "clip.mp4"}}, r"keys text, videos and images, got \['video'\]"),
        ({"videos": "clip.mp4", "text": [3]}, "a question or a list of questions"),
    ],
    ids=[
        "no question",
        "too many placeholders",
        "no image",
        "one clip",
        "short list",
        "chat and clip",
        "a wrong key",
        "number",
    ],
)
def test_questions_that_do_not_fit(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe(**arguments)
