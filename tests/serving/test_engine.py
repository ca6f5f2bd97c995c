# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Answers that are written together are those of each request alone, and end where their own request says."""

import json
import queue
import threading
import time

import numpy as np
import pytest
import torch
from chats import QUESTION, chat, image, parse, read, video
from clips import write_clip
from PIL import Image
from transformers import StopStringCriteria

from transformers_valley.answer_text import AnswerText
from transformers_valley.serving import engine as engine_module
from transformers_valley.serving.engine import FAILED, Answer, Engine, FeatureCache
from transformers_valley.serving.media import MediaAccess
from transformers_valley.serving.requests import RequestError


class Together(Engine):
    """Waits until as many prompts are there as a test has, and notes the sizes of its batches."""

    def __init__(self, *args, **kwargs):
        self.num_wanted, self.sizes = 1, []
        super().__init__(*args, **kwargs)

    def _gather(self):
        self._changed.wait_for(lambda: len(self._waiting) >= self.num_wanted or self._is_closed, 10)
        self.num_wanted = 1

    def _generate(self, answers):
        self.sizes.append(len(answers))
        super()._generate(answers)


@pytest.fixture(scope="module")
def media(folder):
    write_clip(folder / "clip.mp4", 60, fps=10)
    write_clip(folder / "short.mp4", 3, fps=10)
    Image.new("RGB", (40, 30), "red").save(folder / "red.png")
    return folder


@pytest.fixture
def engine(model, processor):
    engine = Together(model, processor)
    yield engine
    engine.close()


@pytest.fixture
def begin(engine, processor, media, tmp_path):
    """Puts a question into the queue, and gives the answer with its pieces."""

    def start(content, **fields) -> Answer:
        pieces = queue.Queue()
        answer = Answer(parse(chat(content), **{"max_tokens": 12, **fields}), pieces.put)
        answer.prompt = read(processor, MediaAccess([media]), tmp_path / "scratch", chat(content))
        answer.pieces = pieces
        return answer

    return start


def told(answer: Answer) -> list:
    """All pieces of an answer, or those up to an error and it."""
    items = []
    while (item := answer.pieces.get(timeout=30)) is not None:
        items.append(item)
        if isinstance(item, RequestError):
            break
    return items


@pytest.fixture
def ask(engine, begin):
    """Asks together, and gives the answers with their pieces."""

    def ask_all(*questions) -> list[Answer]:
        answers = [begin(content, **fields) for content, fields in questions]
        engine.num_wanted = len(answers)
        for answer in answers:
            engine.submit(answer)
        for answer in answers:
            answer.told = told(answer)
        return answers

    return ask_all


def test_nobody_waits_for_clients_that_are_long_gone(model, processor, begin):
    engine = Engine(model, processor)
    try:
        engine._last_size, engine._last_seconds, engine._last_end = 8, 600.0, time.monotonic() - 60
        answer = begin("What?", max_tokens=1)
        engine.submit(answer)
        told(answer)
        assert answer.finish_reason == "length"
    finally:
        engine.close()


def test_answers_written_together_are_those_of_each_alone(ask, engine, media):
    clip, short, red = video(media / "clip.mp4"), video(media / "short.mp4"), image(media / "red.png")
    questions = [
        ("Who are you?", {"max_tokens": 40}),
        ([clip, QUESTION], {"max_tokens": 7}),
        ([red, {"type": "text", "text": "What is it? " * 9}], {"max_tokens": 20}),
        ([short, red, clip, QUESTION], {}),
        ("Hello?", {"max_tokens": 1}),
        ([video(media / "clip.mp4", fps=5), QUESTION], {"max_tokens": 30, "stop": "e"}),
        ("Who are you?", {"max_tokens": 40, "stop": ["i"]}),
    ]
    alone = [ask(question)[0] for question in questions]
    together = ask(*questions)
    assert engine.sizes == [1] * 7 + [7]
    for one, other in zip(alone, together, strict=True):
        assert (one.ids, one.text, one.told) == (other.ids, other.text, other.told)
        assert one.finish_reason == other.finish_reason
        assert one.text == "".join(one.told)
    assert len({answer.text for answer in alone}) == 7
    assert {answer.finish_reason for answer in alone} == {"length", "stop"}


def test_batches_are_as_large_as_allowed(ask, engine):
    engine.max_batch = 3
    ask(*[(f"Question {i}?", {}) for i in range(8)])
    assert engine.sizes == [3, 3, 2]


@pytest.mark.parametrize(
    ("one", "other", "is_shared"),
    [
        ({}, {"stop": "x", "max_tokens": 3, "stream": True}, True),
        ({}, {"temperature": 0.5}, False),
        ({"temperature": 0.5}, {"temperature": 0.5}, True),
        ({"temperature": 0.5, "seed": 1}, {"temperature": 0.5, "seed": 1}, False),
        ({"frequency_penalty": 1}, {"frequency_penalty": 1}, False),  # their prompts are of different lengths
        ({"logit_bias": {"7": 3}}, {"logit_bias": {"7": 3}}, True),
    ],
)
def test_only_like_settings_share_a_batch(ask, engine, one, other, is_shared):
    ask(("Who are you?", one), ("Where are you now, and why?", other))
    assert engine.sizes == ([2] if is_shared else [1, 1])


def test_penalty_does_not_count_padding(ask, engine):
    fields = {"frequency_penalty": 2, "generation_config": json.dumps({"no_repeat_ngram_size": 2})}
    questions = [("Who are you?", fields), ("Where?", fields), ("Who are they?", fields)]
    alone = [ask(question)[0].ids for question in questions]
    assert [answer.ids for answer in ask(*questions)] == alone


def test_answer_that_is_abandoned_ends_and_the_others_go_on(ask, engine, model):
    whole = ask(("Who are you?", {"max_tokens": 50}))[0]
    forward, left = model.forward, []

    def count(**kwargs):
        left.append(len(kwargs["input_ids"]))
        if len(left) == 5:
            engine._running[1].abandon()
            engine._running[1].pieces.put(None)
        return forward(**kwargs)

    model.forward = count
    other, gone = ask(("Who are you?", {"max_tokens": 50}), ("Who are they?", {"max_tokens": 3000}))
    assert other.ids == whole.ids and len(gone.ids) < 10 and len(left) <= 51


def test_answer_that_is_abandoned_in_the_queue_is_never_begun(ask, engine):
    engine.max_batch = 1
    begun = []
    generate = engine._generate

    def watch(answers):
        begun.extend(answers)
        for answer in engine._waiting:
            if not answer.is_over:
                answer.abandon()
                answer.pieces.put(None)
        generate(answers)

    engine._generate = watch
    answers = ask(*[("Who are you?", {})] * 4)
    assert begun == answers[:1]


def test_stop_string_is_found_across_tokens_and_in_the_answer_alone(processor):
    tokenizer = processor.tokenizer
    ids = tokenizer("ab c\u00fc \U0001f642\U0001f642", add_special_tokens=False)["input_ids"]
    told = []
    written = AnswerText(tokenizer, ["never", "\u00fc \U0001f642"])
    answer = Answer(parse(chat("Say \u00fc \U0001f642")), told.append, written=written, length=1000)
    for token in ids:
        answer.add(token)
    assert (answer.finish_reason, answer.text) == ("stop", "ab c") and "".join(told[:-1]) == "ab c"
    assert tokenizer.decode(answer.ids).endswith("\u00fc \U0001f642")


def test_stop_strings_are_not_compared_with_the_vocabulary(ask, model, monkeypatch):
    monkeypatch.setattr(StopStringCriteria, "_stop_string_create_embedding_vec", None)  # seconds for each
    text = ask(("Who are you?", {}))[0].text
    model.generation_config.stop_strings = text[3]
    assert ask(("Who are you?", {"stop": ["x" * 100] * 16}))[0].text == text[:3].rstrip()


def test_drafts_of_a_checkpoint_do_not_break_questions_about_visuals(ask, model, media):
    content = [video(media / "clip.mp4"), QUESTION]
    expected = ask((content, {}))[0].ids
    model.generation_config.prompt_lookup_num_tokens = 10
    assert ask((content, {}), ("Who are you?", {}))[0].ids == expected


def test_same_clip_is_encoded_once_whoever_asks(ask, engine, model, media):
    encoded = []
    get = model.model.get_video_features

    def watch(pixels, *args, **kwargs):
        encoded.append(pixels.shape[1])
        return get(pixels, *args, **kwargs)

    model.model.get_video_features = watch
    content = [video(media / "clip.mp4"), QUESTION]
    first = ask((content, {}))[0]
    again = ask((content, {}), ([video(media / "clip.mp4"), {"type": "text", "text": "And then?"}], {}))[0]
    assert (again.ids, encoded, engine.features.num_reused) == (first.ids, [3], 2)
    ask(([video(media / "clip.mp4", num_frames=5), QUESTION], {}))
    ask(([video(media / "short.mp4"), QUESTION], {}))
    assert encoded == [3, 5, 1]


def test_kept_features_are_bounded_and_the_oldest_go(monkeypatch):
    cache = FeatureCache(max_bytes=40)
    made = []

    def get(key):
        return cache.get(key, lambda: (made.append(key), torch.zeros(4))[1])  # 16 bytes

    for key in "abacab":
        get(key)
    assert made == ["a", "b", "c", "b"] and cache.num_bytes == 32
    cache.get("large", lambda: torch.zeros(100))
    assert cache.num_bytes == 0


def test_what_fails_together_is_tried_alone(ask, engine, model, caplog):
    whole, generate = ask(("Who are you?", {}))[0], model.generate

    def fail(**kwargs):
        if len(kwargs["input_ids"]) > 1:
            raise torch.OutOfMemoryError("too much")
        if kwargs["input_ids"].shape[1] > len(whole.prompt.ids):
            raise ValueError("a secret of the server")
        return generate(**kwargs)

    model.generate = fail
    good, bad = ask(("Who are you?", {}), ("Who are you, I said?", {}))
    assert good.ids == whole.ids and engine.sizes == [1, 2, 1, 1]
    (error,) = bad.told
    assert (str(error), error.status) == (FAILED, 500) and "a secret of the server" in caplog.text


def test_closing_ends_what_is_written_and_what_waits(engine, begin):
    engine.max_batch = 1
    answers = [begin("Who are you?", max_tokens=4000) for _ in range(3)]
    for answer in answers:
        engine.submit(answer)
    answers[0].pieces.get(timeout=10)
    engine.close()
    engine.submit(late := begin("Who are you?"))
    assert [(error.status, error.code) for *_, error in map(told, [*answers, late])] == [(503, "stopping")] * 4
    engine._thread.join(10)
    assert not engine.is_alive


def test_clips_are_decoded_no_further_ahead_than_a_batch(engine, processor, media, tmp_path):
    engine.max_batch = 2
    engine.num_wanted = 10**6
    content = [video(media / "clip.mp4"), QUESTION]
    prompt = read(processor, MediaAccess([media]), tmp_path / "scratch", chat(content))
    submitted = []

    def submit():
        answer = Answer(parse(chat(content)), lambda item: None, prompt)
        engine.submit(answer)
        submitted.append(answer)

    threads = [threading.Thread(target=submit, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
        thread.join(0.2)
    assert len(submitted) == engine.max_batch
    engine.close()
    for thread in threads:
        thread.join(10)
    assert len(submitted) == 4


@pytest.mark.parametrize(
    ("size", "message"), [((8193, 8193), "8193x8193 pixels are more than"), ((101, 1), "one side is over 100 times")]
)
def test_huge_image_is_refused(processor, tmp_path, size, message):
    Image.new("1", size).save(tmp_path / "huge.png")
    with pytest.raises(RequestError, match=message):
        read(processor, MediaAccess([tmp_path]), tmp_path / "scratch", chat([image(tmp_path / "huge.png")]))


def test_images_are_limited_together_and_kept_small(processor, tmp_path, monkeypatch):
    pictures = []
    for index, size in enumerate([(640, 480), (300, 700), (40, 50)]):
        noise = np.random.default_rng(index).integers(0, 256, (*size, 3), dtype=np.uint8)
        pictures.append(Image.fromarray(noise))
        pictures[-1].save(tmp_path / f"{index}.png")
    messages = chat([image(tmp_path / f"{index}.png") for index in range(3)])
    handed_on = []
    whole = type(processor).apply_chat_template

    def watch(self, messages, **kwargs):
        handed_on.extend(block["image"].numel() for block in messages[0]["content"])
        return whole(self, messages, **kwargs)

    monkeypatch.setattr(type(processor), "apply_chat_template", watch)
    prompt = read(processor, MediaAccess([tmp_path]), tmp_path / "scratch", messages)
    found = torch.stack([pixels for _, pixels in prompt.visuals["image"]])
    assert max(handed_on) < 40 * 30 * 3 * 3
    torch.testing.assert_close(found, processor.image_processor(pictures, return_tensors="pt")["pixel_values"])

    monkeypatch.setattr(engine_module, "MAX_IMAGE_PIXELS", 640 * 480 + 300 * 700 - 1)
    with pytest.raises(RequestError, match=r"1\.png': with it the images of the request have more than"):
        read(processor, MediaAccess([tmp_path]), tmp_path / "scratch", messages)
