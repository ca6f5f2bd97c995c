# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What waits for a GPU: its kernels, bfloat16, weights in four bits, two devices, and the recipes as they stand.

VALLEY_TEST_DEVICE=cpu runs on a CPU what can be run there: it shows that the tests are right, and no more.
"""

import importlib.util
import json
import os

import pytest
import sft
import torch
from clips import write_clip
from launching import arguments
from tiny import random_frames, tiny_processor, tiny_tokenizer, tiny_vision
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, LlamaConfig

from transformers_valley import ValleyForConditionalGeneration
from transformers_valley.data import load_rows
from transformers_valley.training import ValleyDataCollator


DEVICE = torch.device(os.environ.get("VALLEY_TEST_DEVICE", "cuda"))
IS_GPU = DEVICE.type == "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(IS_GPU and not torch.cuda.is_available(), reason="no GPU is here")]
needs_gpu = pytest.mark.skipif(not IS_GPU, reason="a CPU cannot, or takes minutes to compile it")
needs_flash = pytest.mark.skipif(importlib.util.find_spec("flash_attn") is None, reason="flash_attn is not installed")
FLASH = pytest.param("flash_attention_2", torch.bfloat16, marks=[needs_gpu, needs_flash])
FLEX = pytest.param("flex_attention", torch.float32, marks=needs_gpu)


@pytest.fixture(autouse=True)
def whole_float32(monkeypatch):
    """Convolutions round to TF32 by default."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="module")
def valley(tmp_path_factory):
    """A saved Valley whose heads are wide enough for every kernel, and that drops nothing out."""
    torch.manual_seed(0)
    tokenizer, folder = tiny_tokenizer(), tmp_path_factory.mktemp("valley")
    sizes = dict(hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    ids = dict(vocab_size=400, bos_token_id=1, eos_token_id=2)
    text = LlamaConfig(**sizes, **ids, num_key_value_heads=2, initializer_range=0.1)
    parts = tiny_vision(hidden_size=64), AutoModelForCausalLM.from_config(text)
    model = ValleyForConditionalGeneration.from_vision_text_pretrained(
        *parts, tokenizer=tokenizer, temporal_dropout=0.0
    )
    for part in (model, tiny_processor(tokenizer)):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Two clips of unlike length and a text, with answers of unlike length, in every batch of three."""
    folder = tmp_path_factory.mktemp("rows")
    clips = [write_clip(folder / f"{frames}.mp4", frames, fps=10) for frames in (20, 50)]
    questions = [{"video": clip, "value": "<video>\nWhat happens?"} for clip in clips] + [{"value": "Hello"}]
    records = []
    for index, question in enumerate(questions * 2):
        turns = [{"from": "human", "value": question["value"]}, {"from": "gpt", "value": "It is blue. " * (index + 1)}]
        records.append({name: clip for name, clip in question.items() if name == "video"} | {"conversations": turns})
    (folder / "rows.json").write_text(json.dumps(records))
    return folder / "rows.json"


def load(folder, dtype=torch.float32, **options):
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, **options).eval()


def question(folder, *lengths):
    """A batch of one question for each clip, padded on the left."""
    processor = AutoProcessor.from_pretrained(folder)
    texts = [{"type": "text", "text": "What happens in it? " * (index + 1)} for index in range(len(lengths))]
    chats = [
        [{"role": "user", "content": [{"type": "video", "video": random_frames(length)}, text]}]
        for length, text in zip(lengths, texts, strict=True)
    ]
    options = dict(add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
    return processor.apply_chat_template(chats, padding=True, padding_side="left", **options).to(DEVICE)


@torch.no_grad()
def logits(model, inputs):
    """Of tokens that are not padding, in float32."""
    return model(**inputs).logits[inputs["attention_mask"].bool()].float()


def share(error, expected):
    return (error - expected).abs().mean() / expected.abs().mean()


def test_answers_are_those_of_a_cpu(valley):
    model, inputs = load(valley), question(valley, 3, 8)
    options = dict(max_new_tokens=12, do_sample=False)
    expected, answer = logits(model, inputs.to("cpu")), model.generate(**inputs, **options)
    inputs = inputs.to(DEVICE)
    assert model.to(DEVICE).generate(**inputs, **options).tolist() == answer.tolist()
    torch.testing.assert_close(logits(model, inputs).cpu(), expected, rtol=1e-3, atol=1e-3)


def test_bfloat16_is_float32_but_for_rounding(valley):
    inputs = question(valley, 3, 8)
    expected, found = (logits(load(valley, dtype).to(DEVICE), inputs) for dtype in (torch.float32, torch.bfloat16))
    assert 0 < share(found, expected) < 0.05


@pytest.mark.parametrize(("attention", "dtype"), [FLASH, FLEX])
def test_kernels_of_attention_agree_with_sdpa(attention, dtype, valley):
    model, inputs = load(valley, dtype).to(DEVICE), question(valley, 3, 8)
    expected = logits(model, inputs)
    model.set_attn_implementation(attention)
    assert share(logits(model, inputs), expected) < (0.02 if dtype == torch.bfloat16 else 1e-3)


@pytest.mark.parametrize(("attention", "dtype"), [FLASH, FLEX, ("sdpa", torch.float32)])
def test_packed_rows_have_the_loss_and_the_gradients_of_padded_ones(attention, dtype, valley, rows):
    processor, tolerance = AutoProcessor.from_pretrained(valley), 0.02 if dtype == torch.bfloat16 else 1e-3
    chosen = list(load_rows([rows]))[:3]
    model, results = load(valley, dtype).to(DEVICE), []
    for pack in (False, True):
        model.set_attn_implementation({"text_config": attention if pack else "sdpa"})
        batch = ValleyDataCollator(processor, padding_free=pack)(chosen)
        batch = {name: part.to(DEVICE) if isinstance(part, torch.Tensor) else part for name, part in batch.items()}
        model.zero_grad()
        loss = model.train()(**batch).loss
        loss.backward()
        results.append((loss.item(), model.lm_head.weight.grad.float(), model.model.multi_modal_projector.weight.grad))
    (expected, *gradients), (loss, *found) = results
    assert loss == pytest.approx(expected, rel=tolerance)
    assert all(share(ours, theirs) < 5 * tolerance for ours, theirs in zip(found, gradients, strict=True))


def train(recipe, valley, rows, output, **overrides):
    """Losses of some steps of a recipe, and its model."""
    stage1 = {"vision_model_name_or_path": ""} if recipe == "stage1_align" else {}
    overrides = dict(per_device_train_batch_size=3, max_steps=4, use_cpu=not IS_GPU) | stage1 | overrides
    trainer = sft.main(arguments(f"{recipe}.yaml", valley, rows, output, **overrides))
    assert next(trainer.model.parameters()).device.type == DEVICE.type
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], trainer.model


@pytest.mark.parametrize("recipe", ["stage1_align", "stage2_instruct", "stage2_lora"])
def test_recipes_reach_the_losses_of_float32(recipe, valley, rows, tmp_path):
    lora = dict(lora_r=4, lora_dropout=0.0) if recipe == "stage2_lora" else {}
    expected, _ = train(recipe, valley, rows, tmp_path / "float32", **lora)
    for pack in (False, True):
        options = dict(dtype="bfloat16", bf16=True, pack_batches=pack) | lora
        found, _ = train(recipe, valley, rows, tmp_path / f"packed {pack}", **options)
        assert len(found) == 4 and found == pytest.approx(expected, rel=0.02)


@needs_gpu
def test_adapters_learn_over_four_bits(valley, rows, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    options = dict(load_in_4bit=True, lora_r=4, lora_dropout=0.0, learning_rate=1e-2, warmup_steps=0, max_steps=12)
    losses, model = train("stage2_lora", valley, rows, tmp_path, dtype="bfloat16", bf16=True, **options)
    assert any(isinstance(module, bitsandbytes.nn.Linear4bit) for module in model.modules())
    assert sum(losses[-3:]) < sum(losses[:3])


@needs_gpu
def test_two_devices_answer_as_one(valley):
    """Where there is one GPU, the other device is the CPU, which keeps the weights of its part."""
    inputs, second = question(valley, 3), 1 if torch.cuda.device_count() > 1 else "cpu"
    expected = logits(load(valley).to(DEVICE), inputs)
    for apart in (["model.vision_tower"], ["model.vision_tower", "model.temporal_module"], ["model.language_model"]):
        names = [f"model.{name}" for name, _ in load(valley).model.named_children()] + ["lm_head"]
        device_map = {name: second if name in apart else 0 for name in names}
        torch.testing.assert_close(logits(load(valley, device_map=device_map), inputs), expected, rtol=1e-3, atol=1e-3)
