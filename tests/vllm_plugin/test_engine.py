# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""vLLM with the plugin against `generate`, token for token, in float32. `make test-vllm` runs these."""

import base64
import contextlib
import gc
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse

import httpx
import numpy as np
import pytest
import torch
from clips import write_clip
from loads import put_load
from peft import LoraConfig, get_peft_model
from PIL import Image
from servers import free_port, started
from tiny import tiny_processor, tiny_tokenizer, tiny_valley

from transformers_valley import ValleyForConditionalGeneration, ValleyProcessor


pytestmark = pytest.mark.vllm

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine in this process
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
NEW_TOKENS = 24
KINDS = {
    "transformer": {},
    "mean": {"temporal_module": "mean"},
    "importance": {"temporal_module": "importance"},
    "table": {"temporal_space": "text", "temporal_max_positions": 16, "projector_bias": False},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Clips of 5, 12 and 24 seconds, a picture, and a checkpoint of each kind."""
    place = tmp_path_factory.mktemp("vllm")
    for seed, (name, seconds) in enumerate({"short": 5, "mid": 12, "long": 24}.items()):
        random = np.random.default_rng(seed)
        looks = random.integers(0, 255, (seconds, 6, 8, 3), dtype=np.uint8).repeat(10, axis=0)
        write_clip(place / f"{name}.mp4", (np.kron(look, np.ones((8, 8, 1), np.uint8)) for look in looks), fps=10)
    pixels = np.random.default_rng(9).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(place / "a.png")
    tokenizer = tiny_tokenizer()
    for name, config in KINDS.items():
        # vLLM's kernels want heads of 32 channels.
        model = tiny_valley(tokenizer=tokenizer, head_dim=32, **config)
        with torch.no_grad():
            model.model.multi_modal_projector.weight.mul_(20)  # what a visual shows decides the answer
        model.save_pretrained(place / name)
        tiny_processor(tokenizer, max_frames=16).save_pretrained(place / name)
    return place


def prompts(place):
    """OpenAI's messages."""

    def text(words):
        return {"type": "text", "text": words}

    def visual(name):
        kind, mime = ("image_url", "image/png") if name.endswith("png") else ("video_url", "video/mp4")
        data = base64.b64encode((place / name).read_bytes()).decode()
        return {"type": kind, kind: {"url": f"data:{mime};base64,{data}"}}

    short, mid, long, picture = map(visual, ("short.mp4", "mid.mp4", "long.mp4", "a.png"))
    contents = [
        [text("What happens?")],
        [picture, text("Describe the image.")],
        [short, text("What happens?")],
        [mid, text("What happens?")],
        [long, text("What happens?")],
        [picture, mid, text("Is it the same?")],
        [mid, picture, text("Is it the same?")],
        [short, long, text("Which is longer?")],
        [text("First:"), long, picture, text("Then:"), short, text("Describe all.")],
    ]
    return [[{"role": "user", "content": content}] for content in contents]


def generate(folder, chats, model=None, **options):
    """The prompt and the answer of each chat, one at a time, as ids."""
    model = model or ValleyForConditionalGeneration.from_pretrained(folder).eval()
    processor = ValleyProcessor.from_pretrained(folder)
    results = []
    for chat in chats:
        inputs = processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **options
        )
        start = inputs["input_ids"].shape[1]
        ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)[0].tolist()
        results.append((ids[:start], ids[start:]))
    return results


@contextlib.contextmanager
def engine(folder, **options):
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    settings = {"dtype": "float32", "enforce_eager": True, "max_model_len": 1024, "max_num_seqs": 16}
    llm = LLM(str(folder), **settings | options)
    try:
        yield llm
    finally:
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def answers(llm, chats, **options):
    from vllm import SamplingParams

    parameters = SamplingParams(temperature=0, max_tokens=NEW_TOKENS)
    outputs = llm.chat(chats, parameters, use_tqdm=False, **options)
    return [(list(output.prompt_token_ids), list(output.outputs[0].token_ids)) for output in outputs], outputs


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_generate(place, kind):
    """Nine prompts in one batch: text, image, clips, mixed orders, two and three visuals."""
    chats = prompts(place)
    with engine(place / kind) as llm:
        assert answers(llm, chats)[0] == generate(place / kind, chats)


def test_prompts_in_pieces_and_prefixes_from_the_cache_change_nothing(place):
    chats = prompts(place)
    expected = generate(place / "transformer", chats)
    with engine(place / "transformer", max_num_batched_tokens=32, block_size=32) as llm:
        assert answers(llm, chats)[0] == expected
        again, outputs = answers(llm, chats)
        assert again == expected and any(output.num_cached_tokens for output in outputs)


def test_the_transformers_backend_gives_the_same(place, tmp_path):
    """With the code that the checkpoint carries, as where this package is not installed; frames are the plugin's.

    In a process of its own: vLLM changes classes of transformers for it.
    """
    chats = prompts(place)
    (tmp_path / "chats.json").write_text(json.dumps(chats))
    code = f"""
import json, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_engine import answers, engine
chats = json.load(open("chats.json"))
with engine({str(place / "importance")!r}, model_impl="transformers", trust_remote_code=True) as llm:
    json.dump(answers(llm, chats)[0], open("answers.json", "w"))
"""
    paths = os.pathsep.join([os.path.dirname(os.path.dirname(__file__)), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": paths})
    found = [tuple(pair) for pair in json.loads((tmp_path / "answers.json").read_text())]
    assert found == generate(place / "importance", chats)


def test_an_adapter_of_the_decoder_is_as_good_as_merged(place):
    """On a base whose projector was trained and merged before, as stage 1 leaves it."""
    from vllm.lora.request import LoRARequest

    chats, base = prompts(place), place / "transformer"
    model = ValleyForConditionalGeneration.from_pretrained(base)
    lora = LoraConfig(r=8, lora_alpha=32, target_modules=r".*language_model.*\.(q|v)_proj", init_lora_weights=False)
    torch.manual_seed(5)
    model = get_peft_model(model, lora)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.2)
    model.save_pretrained(place / "adapter")
    merged = model.merge_and_unload().eval()
    with engine(base, enable_lora=True, max_lora_rank=8) as llm:
        request = LoRARequest("adapter", 1, str(place / "adapter"))
        adapted = answers(llm, chats, lora_request=request)[0]
        assert adapted == generate(base, chats, merged)
        plain = answers(llm, chats)[0]
        assert plain == generate(base, chats) and plain != adapted


def test_an_adapter_that_holds_the_projector_too_is_refused(place):
    from vllm.lora.request import LoRARequest

    model = ValleyForConditionalGeneration.from_pretrained(place / "transformer")
    lora = LoraConfig(r=8, target_modules=r".*language_model.*q_proj", modules_to_save=["multi_modal_projector"])
    get_peft_model(model, lora).save_pretrained(place / "more")
    with engine(place / "transformer", enable_lora=True, max_lora_rank=8) as llm:
        with pytest.raises(ValueError, match="modules_to_save"):
            answers(llm, prompts(place)[:1], lora_request=LoRARequest("more", 1, str(place / "more")))


@pytest.mark.parametrize(
    "options", [{"mm_processor_kwargs": {"num_frames": 4}}, {"media_io_kwargs": {"video": {"num_frames": 4}}}]
)
def test_the_server_may_sample_otherwise(place, options):
    chats = prompts(place)[2:5]
    with engine(place / "mean", **options) as llm:
        assert answers(llm, chats)[0] == generate(place / "mean", chats, processor_kwargs={"num_frames": 4})


def test_frames_of_a_caller_are_taken_as_they_are(place):
    """From Python, without metadata: five frames are a clip of five frames."""
    from vllm import SamplingParams

    folder = place / "transformer"
    frames = np.random.default_rng(3).integers(0, 255, (5, 40, 50, 3), dtype=np.uint8)
    processor = ValleyProcessor.from_pretrained(folder)
    prompt = "<s>### Human: <video>\nWhat?\n### Assistant:"
    inputs = processor(text=prompt, videos=[frames], return_tensors="pt")
    model = ValleyForConditionalGeneration.from_pretrained(folder).eval()
    ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)[0].tolist()
    with engine(folder) as llm:
        request = {"prompt": prompt, "multi_modal_data": {"video": [frames]}}
        (output,) = llm.generate(request, SamplingParams(temperature=0, max_tokens=NEW_TOKENS), use_tqdm=False)
    assert [*output.prompt_token_ids, *output.outputs[0].token_ids] == ids


# ---------------------------------------------------------------------------------------------------------------
# Over HTTP
# ---------------------------------------------------------------------------------------------------------------


ENDED = "Tell me."  # a question whose answer the checkpoint's stop string ends


@pytest.fixture(scope="module")
def ended(place):
    """The ids of a prompt, what is said of it before the stop string, and that."""
    ((prompt, ids),) = generate(place / "table", [[{"role": "user", "content": ENDED}]])
    text = decode(place, ids)
    stop = text[len(text) // 2 :][:6]
    assert text.isprintable() and len(stop) == 6
    return prompt, text.partition(stop)[0], stop


@pytest.fixture(scope="module")
def served(place, ended):
    """`valley serve --engine vllm`: process and address. Its checkpoint has a position table and a stop string."""
    folder = shutil.copytree(place / "table", place / "served")
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "stop_strings": [ended[2]]}))
    port = free_port()
    command = ["-m", "valley_cli", "serve", str(folder), "--engine", "vllm", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--vllm-args", "--max-model-len 1024 --enforce-eager --api-key key"]
    with started(command, place / "server.log", f"http://127.0.0.1:{port}/v1") as (process, url):
        yield process, url


@pytest.fixture(scope="module")
def client(served):
    from openai import OpenAI

    return OpenAI(base_url=served[1], api_key="key", max_retries=0)


def ask(client, chat, **options):
    options = {"max_tokens": NEW_TOKENS, **options}
    answer = client.chat.completions.create(model="served", messages=chat, **options).choices[0].message.content
    return answer.rstrip("\ufffd")  # vLLM leaves out a character that is cut in two, transformers shows that it is


def decode(place, ids):
    return ValleyProcessor.from_pretrained(place / "table").decode(ids, skip_special_tokens=True).rstrip("\ufffd")


def test_the_server_answers_as_generate_does(place, client):
    """Without a word about temperature: the checkpoint is greedy."""
    chats = prompts(place)
    expected = [decode(place, ids) for _, ids in generate(place / "table", chats)]
    assert [ask(client, chat) for chat in chats] == expected


def test_a_request_chooses_its_frames(place, client):
    (chat,) = prompts(place)[4:5]
    ((_, ids),) = generate(place / "table", [chat], processor_kwargs={"num_frames": 5})
    assert ask(client, chat, extra_body={"chat_template_kwargs": {"num_frames": 5}}) == decode(place, ids)
    ((_, ids),) = generate(place / "table", [chat], processor_kwargs={"num_frames": 16})
    assert ask(client, chat, extra_body={"chat_template_kwargs": {"num_frames": 16}}) == decode(place, ids)


def test_a_part_of_a_clip(place, client):
    (chat,) = prompts(place)[4:5]
    chat[0]["content"][0]["video_url"] |= {"start": 6, "end": 14}
    ((_, ids),) = generate(place / "table", [chat])
    assert ask(client, chat) == decode(place, ids)


def clip_at(url, **settings):
    block = {"type": "video_url", "video_url": {"url": url, **settings}}
    return [{"role": "user", "content": [block, {"type": "text", "text": "What happens?"}]}]


DAMAGED = "data:video/mp4;base64," + base64.b64encode(b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41").decode()


@pytest.mark.parametrize(
    "chat, options, reason",
    [
        (clip_at(DAMAGED), {}, "Cannot read video"),
        (clip_at("data:video/mp4;base64,"), {}, "Cannot read video"),
        (clip_at("http://127.0.0.1:9/clip.mp4"), {}, "Cannot read video 'http://127.0.0.1:9/clip.mp4'"),
        (clip_at("http://localhost:9/clip.mp4"), {}, "Cannot read video"),
        (clip_at("file:///etc/hostname"), {}, "opens no local files"),
        (clip_at(DAMAGED, begin=3), {}, "unknown keys"),
        ([{"role": "user", "content": "What is <video>?"}], {}, "spells the special token <video>"),
        ([{"role": "user", "content": [{"type": "text", "text": "an <image>?"}]}], {}, "special token <image>"),
        ([{"role": "user", "content": "Hi"}], {"generation_config": "{}"}, "--engine transformers"),
    ],
)
def test_bad_requests_are_answered_with_the_reason(client, chat, options, reason):
    from openai import BadRequestError

    with pytest.raises(BadRequestError, match=reason):
        ask(client, chat, extra_body=options)


@pytest.mark.parametrize(
    "body, reason",
    [
        ({"chat_template_kwargs": {"num_frames": 17}}, "position table of this checkpoint, which has 16 rows"),
        ({"chat_template_kwargs": {"num_frames": 5000}}, "num_frames=5000 is not a number of up to 1024"),
        ({"chat_template_kwargs": {"fps": 1, "num_frames": 2}}, "either fps or num_frames"),
        ({"mm_processor_kwargs": {"fps": 1}}, "media_io_kwargs"),
        ({"media_io_kwargs": {"video": {"video_backend": "opencv"}}}, "decoded by Valley"),
        ({"media_io_kwargs": {"video": {"frame_recovery": True}}}, "Unknown options of clips"),
    ],
)
def test_bad_sampling_is_answered_with_the_reason(place, client, body, reason):
    from openai import BadRequestError

    with pytest.raises(BadRequestError, match=reason):
        ask(client, prompts(place)[4], extra_body=body)


def test_damaged_images_and_wrong_keys(place, client):
    from openai import AuthenticationError, BadRequestError

    file = io.BytesIO((place / "a.png").read_bytes()[:500])
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    with pytest.raises(BadRequestError, match="Cannot read"):
        ask(client, [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}])
    with pytest.raises(AuthenticationError):
        client.with_options(api_key="other").models.list()


@pytest.mark.parametrize(
    "route, asked, answered",
    [
        ("chat/completions", "messages", lambda answer: answer["choices"][0]["message"]["content"]),
        ("chat/completions/batch", "messages", lambda answer: answer["choices"][0]["message"]["content"]),
        ("responses", "input", lambda answer: answer["output"][0]["content"][0]["text"]),
        ("completions", "prompt", lambda answer: answer["choices"][0]["text"]),
        ("messages", "messages", lambda answer: answer["content"][0]["text"]),
        ("../invocations", "messages", lambda answer: answer["choices"][0]["message"]["content"]),
    ],
)
def test_the_checkpoints_stop_string_ends_answers_of_every_route(client, ended, route, asked, answered):
    chat = [{"role": "user", "content": ENDED}]
    values = {"prompt": ended[0], "input": ENDED, "messages": [chat] if route.endswith("batch") else chat}
    length = {"max_output_tokens" if route == "responses" else "max_tokens": NEW_TOKENS}
    body = {"model": "served", asked: values[asked], **length}
    response = httpx.post(f"{client.base_url}{route}", json=body, headers={"Authorization": "Bearer key"}, timeout=60)
    assert response.status_code == 200, response.text
    assert answered(response.json()).strip() == ended[1].strip()


def test_a_body_is_not_read_without_the_key(served):
    """Not a byte of it is sent."""
    address = urllib.parse.urlsplit(served[1])
    for key, status in (("other", b"401"), ("key", None)):
        with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
            lines = ["POST /v1/chat/completions HTTP/1.1", f"Host: {address.netloc}", f"Authorization: Bearer {key}"]
            lines += ["Content-Type: application/json", "Content-Length: 1000000", "", ""]
            connection.sendall("\r\n".join(lines).encode())
            if status is not None:
                assert connection.recv(100).split()[1] == status
                continue
            connection.settimeout(1)
            with pytest.raises(TimeoutError):
                connection.recv(100)


@pytest.mark.parametrize(
    "body, status",
    [
        (b'{"a":' * 90_000, 400),
        (b"[" * 200_000, 413),
        (b'{"messages": [%s[]]}' % (90_000 * b"[],"), 400),
        (b'{"messages": [%s1]}' % (900_000 * b"1,"), 400),
        (b'{"messages": [%s{}]}' % (4_000 * b"{},"), 400),
        (b'{"messages": [{"role": "user", "content": [%s{}]}]}' % (4_000 * b"{},"), 400),
        (b'{"messages": [], "tools": [%s{}]}' % (4_000 * b"{},"), 400),
        (b'{"messages": [], "stop": [%s{}]}' % (90_000 * b"{},"), 400),
        (b'{"stop": 5, "messages": []}', 400),
        (b"no JSON", 400),
    ],
)
def test_bodies_that_make_no_sense_cost_little(client, body, status):
    headers = {"Authorization": "Bearer key", "Content-Type": "application/json"}
    begin = time.monotonic()
    response = httpx.post(f"{client.base_url}chat/completions", content=body, headers=headers, timeout=60)
    assert response.status_code == status and response.json()["error"]["code"] == status
    assert time.monotonic() - begin < 5 and len(response.text) < 20_000


def test_500_requests_of_8_clients_some_of_which_give_up(place, client, served):
    chats = prompts(place)
    contents = [
        (chat[0]["content"], decode(place, ids))
        for chat, (_, ids) in zip(chats, generate(place / "table", chats), strict=True)
    ]
    damaged = clip_at(DAMAGED)[0]["content"]
    put_load(client, served[0], contents, damaged, "Cannot read video", model="served", max_tokens=NEW_TOKENS)


def test_the_server_lives_after_all_that(place, client):
    (chat,) = prompts(place)[8:]
    ((_, ids),) = generate(place / "table", [chat])
    assert ask(client, chat) == decode(place, ids)
