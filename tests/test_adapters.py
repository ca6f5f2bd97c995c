# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""LoRA on the language model, projector and temporal module trained whole, and weights in fewer bits."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from tiny import random_frames, tiny_processor, tiny_tokenizer, tiny_valley
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, TorchAoConfig


TRAINED_WHOLE = ["multi_modal_projector", "temporal_module"]
# What is small and sees the clip stays in full precision.
FULL_PRECISION = ["model.vision_tower", "model.multi_modal_projector", "model.temporal_module", "lm_head"]
LORA = LoraConfig(
    r=4, target_modules=r"model\.language_model\.layers.*(q_proj|v_proj|up_proj)", modules_to_save=TRAINED_WHOLE
)


@pytest.fixture(params=["mean", "importance", "transformer"])
def parts(request, tmp_path):
    tokenizer = tiny_tokenizer()
    model = tiny_valley(tokenizer=tokenizer, temporal_module=request.param)
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base", tiny_processor(tokenizer)


def question(processor):
    content = [{"type": "video", "video": random_frames(4)}, {"type": "text", "text": "What happens?"}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
    )


def train(model, inputs, steps=3):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(steps):
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


def test_trained_saved_loaded_and_merged_are_one_model(parts, tmp_path):
    base, processor = parts
    inputs = question(processor)
    untrained = AutoModelForImageTextToText.from_pretrained(base)
    before = logits(untrained, inputs)

    trained = train(get_peft_model(untrained, LORA), inputs)
    expected = logits(trained, inputs)
    assert (expected - before).abs().max() > 0.01
    trained.save_pretrained(tmp_path / "adapter")

    loaded = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(loaded, inputs), expected)

    merged = loaded.merge_and_unload()
    torch.testing.assert_close(logits(merged, inputs), expected, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(again, inputs), logits(merged, inputs))


def test_what_is_trained_is_what_was_named(parts):
    base, processor = parts
    model = get_peft_model(AutoModelForImageTextToText.from_pretrained(base), LORA)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    train(model, question(processor))
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed and all("lora_" in name or "modules_to_save" in name for name in changed)
    assert any(f"{TRAINED_WHOLE[0]}.modules_to_save" in name for name in changed)
    if any(True for _ in model.base_model.model.model.temporal_module.parameters()):
        assert any(f"{TRAINED_WHOLE[1]}.modules_to_save" in name for name in changed)


def test_quantized_with_torchao(checkpoint, model, processor):
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    config = TorchAoConfig(quantization.Int8WeightOnlyConfig(), modules_to_not_convert=FULL_PRECISION)
    check_quantized(checkpoint, model, processor, config)


def test_quantized_with_bitsandbytes(checkpoint, model, processor):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=FULL_PRECISION)
    check_quantized(checkpoint, model, processor, config)


def check_quantized(checkpoint, model, processor, config):
    quantized = AutoModelForImageTextToText.from_pretrained(checkpoint, quantization_config=config)
    inputs = question(processor)
    # What sees the clip is as it was, bit by bit.
    clips = {name: inputs[name] for name in ("pixel_values_videos", "video_num_frames")}
    with torch.no_grad():
        ours, full = (m.get_video_features(**clips).pooler_output[0] for m in (quantized, model))
    assert torch.equal(ours, full)
    error, scale = logits(quantized, inputs) - logits(model, inputs), logits(model, inputs).std()
    assert 0 < error.square().mean().sqrt() < 0.1 * scale
    assert quantized.generate(**inputs, max_new_tokens=3).shape[1] == inputs["input_ids"].shape[1] + 3


def test_qlora_trains_adapters_over_four_bits(tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    config = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=FULL_PRECISION)
    tokenizer = tiny_tokenizer()
    # On processors with AVX512-BF16, bitsandbytes packs only heights that are multiples of 32, and widths of 64.
    tiny_valley(tokenizer=tokenizer, head_dim=16).save_pretrained(tmp_path / "base")
    inputs = question(tiny_processor(tokenizer))

    def load():
        return AutoModelForImageTextToText.from_pretrained(tmp_path / "base", quantization_config=config)

    before = logits(load(), inputs)  # of a model of its own: packed weights stay packed and pass no gradient on
    model = get_peft_model(prepare_model_for_kbit_training(load()), LORA)
    expected = logits(train(model, inputs), inputs)
    assert (expected - before).abs().max() > 0.01
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(load(), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(loaded, inputs), expected)
