# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Which parameters train, and how many there are."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_stages import STAGE1
from tiny import tiny_valley
from transformers import AutoModelForImageTextToText

from transformers_valley.training import set_trainable
from transformers_valley.training.parameters import count_parameters


def test_only_the_named_modules_train_and_they_train_in_float32(model):
    model.to(torch.bfloat16)
    set_trainable(model, STAGE1)
    for name, parameter in model.named_parameters():
        trained = name.startswith(tuple(STAGE1))
        assert parameter.requires_grad == trained
        assert parameter.dtype == (torch.float32 if trained else torch.bfloat16)
    inputs = {"input_ids": torch.tensor([[5, *[model.config.video_token_id] * 6, 7]])}
    pixels = torch.randn(1, 2, 3, 28, 28, dtype=torch.bfloat16)
    model.train()(**inputs, pixel_values_videos=pixels, labels=inputs["input_ids"]).loss.backward()
    assert model.model.multi_modal_projector.weight.grad is not None


def test_an_unknown_module_is_named(model):
    with pytest.raises(ValueError, match=r"no such module: \['model.projector'\].*model.multi_modal_projector"):
        set_trainable(model, ["model.projector"])


@pytest.mark.parametrize("names", [[], ["model.temporal_module"]])
def test_nothing_to_train(names):
    with pytest.raises(ValueError, match="leaves nothing to train"):
        set_trainable(tiny_valley(temporal_module="mean"), names)


def test_adapters_count_for_the_part_they_are_in(model):
    plain = count_parameters(model)
    assert list(plain) == ["vision_tower", "temporal_module", "multi_modal_projector", "language_model", "lm_head"]
    lora = LoraConfig(
        r=2, target_modules=["v_proj"], exclude_modules=".*vision.*", modules_to_save=["temporal_module"]
    )
    counts = count_parameters(get_peft_model(model, lora))
    assert counts["temporal_module"] == (sum(plain["temporal_module"]), 0)  # not its untrained copy as well
    assert counts["language_model"] == (2 * 2 * (48 + 24), sum(plain["language_model"]))
    assert counts["vision_tower"] == (0, sum(plain["vision_tower"]))


def test_parameters_in_four_bits_count_in_full(checkpoint):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from transformers import BitsAndBytesConfig

    quantized = AutoModelForImageTextToText.from_pretrained(
        checkpoint, quantization_config=BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["lm_head"])
    )
    whole = AutoModelForImageTextToText.from_pretrained(checkpoint)
    sums = [{part: sum(pair) for part, pair in count_parameters(model).items()} for model in (quantized, whole)]
    assert sums[0] == sums[1]
