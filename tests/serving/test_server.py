# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`valley serve` as OpenAI's clients see it: its answers."""

import os
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from chats import QUESTION, chat, data_address, image, video
from servers import TOKENS, Files, ask, post, said, settings
from transformers import AutoProcessor, StopStringCriteria


@pytest.mark.parametrize("way", ["{clips}/clip.mp4", "file://{clips}/clip.mp4", "{site}/clip.mp4", "data:"])
def test_clip_comes_by_any_address_and_is_answered_as_by_generate(client, generate, clips, site, way):
    address = data_address(clips / "clip.mp4") if way == "data:" else way.format(clips=clips, site=site)
    completion = ask(client, [video(address), QUESTION])
    assert said(completion) == generate([{"type": "video", "path": str(clips / "clip.mp4")}, QUESTION])
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage.completion_tokens == TOKENS


@pytest.mark.parametrize("way", ["{clips}/red.png", "{site}/red.png", "data:"])
def test_image_comes_by_any_address(client, generate, clips, site, way):
    address = data_address(clips / "red.png") if way == "data:" else way.format(clips=clips, site=site)
    assert said(ask(client, [image(address), QUESTION])) == generate(
        [{"type": "image", "path": str(clips / "red.png")}, QUESTION]
    )


def test_text_alone(client, generate):
    assert said(ask(client, "Who are you?")) == generate("Who are you?")


def test_several_clips_and_an_image(client, generate, clips):
    content = [video(clips / "clip.mp4"), image(clips / "red.png"), video(clips / "short.mp4"), QUESTION]
    paths = [{"type": kind, "path": str(clips / name)} for kind, name in [("video", "clip.mp4"), ("image", "red.png")]]
    assert said(ask(client, content)) == generate(
        [*paths, {"type": "video", "path": str(clips / "short.mp4")}, QUESTION]
    )


@pytest.mark.parametrize("sampling", [{}, {"num_frames": 8}, {"fps": 2}, {"fps": 5, "max_frames": 4}])
def test_rule_of_the_checkpoint_holds_unless_a_request_has_its_own(client, generate, clips, sampling):
    completion = ask(client, [video(clips / "clip.mp4"), QUESTION], extra_body={"chat_template_kwargs": sampling})
    path = {"type": "video", "path": str(clips / "clip.mp4")}
    assert said(completion) == generate([path, QUESTION], **sampling)


def test_part_of_a_clip(client, generate, clips):
    completion = ask(client, [video(clips / "clip.mp4", start=2, end=5.5), QUESTION])
    path = {"type": "video", "path": str(clips / "clip.mp4"), "start": 2, "end": 5.5}
    assert said(completion) == generate([path, QUESTION])


def test_conversation_goes_on(client, generate, clips):
    first = said(ask(client, [video(clips / "clip.mp4"), QUESTION]))
    rest = [{"role": "assistant", "content": first}, {"role": "user", "content": "And then?"}]
    system = {"role": "developer", "content": "Be brief."}
    completion = client.chat.completions.create(
        model="checkpoint0", messages=[system, *chat([video(clips / "clip.mp4"), QUESTION]), *rest], max_tokens=TOKENS
    )
    path = {"type": "video", "path": str(clips / "clip.mp4")}
    assert said(completion) == generate([{**system, "role": "system"}, *chat([path, QUESTION]), *rest])


def test_stream_has_the_same_words_and_tells_its_end(client, clips):
    content = [video(clips / "clip.mp4"), QUESTION]
    chunks = list(ask(client, content, stream=True))
    words = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    whole = ask(client, content)
    assert "".join(words) == said(whole) and len(words) > 1
    assert chunks[-1].choices[0].finish_reason == "length"
    assert chunks[-1].usage == whole.usage
    body = {"messages": chat("Hello?"), "max_tokens": 2, "stream": True}
    assert post(client, "/chat/completions", body)[1].endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("field", ["stop", "generation_config"])
def test_stop_string_ends_an_answer_and_is_not_part_of_it(client, field, stream):
    whole = said(ask(client, "Who are you?", max_tokens=40))
    stop = re.findall("[a-zA-Z]{3,}", whole)[1]
    stops = {"stop": ["never", stop]} if field == "stop" else settings(stop_strings=["never", stop])
    answer = ask(client, "Who are you?", max_tokens=40, stream=stream, **stops)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in answer) if stream else said(answer)
    assert text == whole[: whole.index(stop)].strip()
    if not stream:
        assert answer.choices[0].finish_reason == "stop"


def test_stop_strings_are_not_compared_with_the_vocabulary(local, monkeypatch):
    monkeypatch.setattr(StopStringCriteria, "_stop_string_create_embedding_vec", None)  # seconds for each
    answer = local(max_tokens=2, stop=["x" * 100] * 16, **settings(stop_strings="y")["extra_body"])
    assert answer.json()["usage"]["completion_tokens"] == 2


def test_generation_config_is_laid_over_that_of_the_checkpoint(client):
    def counted(**options):
        return ask(client, "Who are you?", **{"max_tokens": None, **options}).usage.completion_tokens

    assert counted(**settings(max_new_tokens=3)) == 3
    assert counted(max_tokens=5, **settings(max_new_tokens=3)) == 5
    assert counted(max_completion_tokens=4) == 4
    penalty = said(ask(client, "Who are you?", frequency_penalty=1))
    assert said(ask(client, "Who are you?", **settings(repetition_penalty=2, top_k=None))) == penalty
    sampling = settings(do_sample=True, top_k=1, min_p=0, typical_p=1)
    assert said(ask(client, "Who are you?", **sampling)) == said(ask(client, "Who are you?"))


@pytest.mark.parametrize("setting", ["num_return_sequences", "num_beams"])
def test_checkpoint_with_several_answers_gives_one(local, service, setting):
    service.engine.model.generation_config.update(do_sample=True, **{setting: 3})
    assert local(max_tokens=2).json()["usage"]["completion_tokens"] == 2
    stream = local(max_tokens=2, stream=True)
    if setting == "num_beams":
        assert (stream.status_code, stream.json()["error"]["param"]) == (400, "stream")
    else:
        assert '"completion_tokens":2' in stream.text


def test_answer_ends_where_the_model_ends_it(client, checkpoint):
    end = AutoProcessor.from_pretrained(checkpoint).tokenizer.eos_token_id
    completion = ask(client, "Who are you?", logit_bias={end: 100.0})
    assert (said(completion), completion.choices[0].finish_reason) == ("", "stop")


def test_temperature_samples(client):
    greedy = said(ask(client, "Who are you?"))
    sampled = [said(ask(client, "Who are you?", temperature=2.0, seed=seed)) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    assert greedy not in sampled and said(ask(client, "Who are you?", temperature=0)) == greedy


def test_answer_is_no_longer_than_the_context(client, generate):
    prompt = "word " * 800
    completion = ask(client, prompt, max_tokens=100_000)
    assert completion.usage.total_tokens <= 4096


@pytest.mark.parametrize("stream", [False, True])
def test_responses_are_answered_too(client, generate, clips, stream):
    content = [video(clips / "clip.mp4"), {"type": "input_text", "text": "What happens?"}]
    response = client.responses.create(
        model="checkpoint0",
        input=chat(content),
        max_output_tokens=TOKENS,
        stream=stream,
        extra_body={"chat_template_kwargs": {"num_frames": 8}},
    )
    if stream:
        text = "".join(event.delta for event in response if event.type == "response.output_text.delta")
    else:
        text = response.output_text
    assert text == generate([{"type": "video", "path": str(clips / "clip.mp4")}, QUESTION], num_frames=8)


def test_parallel_requests_get_their_own_answers(client, clips):
    contents = [[video(clips / name), QUESTION] for name in ("clip.mp4", "other.mp4", "short.mp4")] + ["Who are you?"]
    alone = [said(ask(client, content)) for content in contents]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda content: said(ask(client, content)), contents * 3)) == alone * 3


def test_others_do_not_wait_for_slow_downloads(client, clips, site):
    (clips / "slow.mp4").write_bytes((clips / "short.mp4").read_bytes())
    count = min(32, os.cpu_count() + 4) + 1  # one more than asyncio has threads
    with ThreadPoolExecutor(count) as pool:
        try:
            slow = [pool.submit(ask, client, [video(f"{site}/slow.mp4"), QUESTION]) for _ in range(count)]
            assert all(Files.arrived.acquire(timeout=10) for _ in slow)
            ask(client, "Who are you?", timeout=10)
            ask(client, [video(clips / "clip.mp4"), QUESTION], timeout=10)
            assert not any(request.done() for request in slow)
        finally:
            Files.released.set()
        assert all(said(request.result()) for request in slow)
