# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Packed rows are answered as each by itself, and what is not packed as with `sdpa`."""

import copy
from unittest import mock

import pytest
import torch
from tiny import tiny_valley
from transformers import AutoConfig, AutoModelForCausalLM

from transformers_valley.training import attention
from transformers_valley.training.attention import attend_by_row


SMALL = dict(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4)
LENGTHS = [5, 1, 9]
FEWER_KEYS = {"num_key_value_heads": 2}
BOTH = ["full_attention", "sliding_attention"]
DECODERS = {
    "fewer keys than queries": ("llama", FEWER_KEYS),
    "a window that rows outgrow": ("mistral", FEWER_KEYS | {"sliding_window": 3}),
    "a window that holds them": ("mistral", FEWER_KEYS | {"sliding_window": 9}),
    "full and sliding layers": (
        "qwen3",
        FEWER_KEYS | {"sliding_window": 4, "use_sliding_window": True, "layer_types": BOTH},
    ),
    "layers that hand no bounds on": ("stablelm", {"num_key_value_heads": 4}),
    "a mask without positions": ("opt", {"ffn_dim": 32, "word_embed_proj_dim": 32}),
}


def decoder(name):
    torch.manual_seed(0)
    kind, settings = DECODERS[name]
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL, **settings)).eval()


@pytest.fixture(params=DECODERS)
def models(request):
    """A decoder with `sdpa`, and its copy with `sdpa_varlen`."""
    expected = decoder(request.param)
    found = copy.deepcopy(expected)
    found.set_attn_implementation("sdpa_varlen")
    assert (expected.config._attn_implementation, found.config._attn_implementation) == ("sdpa", "sdpa_varlen")
    return expected, found


def packed():
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    return {
        "input_ids": torch.randint(2, 50, (1, sum(LENGTHS))),
        "position_ids": torch.cat([torch.arange(length) for length in LENGTHS])[None],
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "use_cache": False,
    }


def test_packed_rows_are_what_each_is_by_itself(models):
    inputs = packed()
    logits = models[1](**inputs).logits.split(LENGTHS, dim=1)
    for row, found in zip(inputs["input_ids"].split(LENGTHS, dim=1), logits, strict=True):
        torch.testing.assert_close(found, models[0](row).logits)


@pytest.mark.parametrize(
    "name", ["fewer keys than queries", "a window that holds them", "layers that hand no bounds on"]
)
def test_no_mask_of_all_by_all_is_made(name):
    model = decoder(name)
    model.set_attn_implementation("sdpa_varlen")
    with mock.patch.object(attention, "sdpa_mask", side_effect=AssertionError):
        model(**packed())


def test_positions_alone_tell_rows_apart():
    inputs = packed()
    del inputs["cu_seq_lens_q"], inputs["cu_seq_lens_k"]
    model = decoder("fewer keys than queries")
    expected = model(**inputs).logits
    model.set_attn_implementation("sdpa_varlen")
    torch.testing.assert_close(model(**inputs).logits, expected)


def test_padded_prompts_are_answered_alike(models):
    ids = torch.randint(2, 50, (2, 6))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    for cache in ("dynamic", "static"):
        options = dict(attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=1)
        expected, found = (model.generate(ids, cache_implementation=cache, **options) for model in models)
        assert found.tolist() == expected.tolist()


def test_a_prompt_goes_on_in_pieces(models):
    """Several new tokens after those of a cache: each sees the cache and what came before it."""
    ids = torch.randint(2, 50, (1, 8))
    for model in models:
        cache = model(ids[:, :5], use_cache=True).past_key_values
        torch.testing.assert_close(model(ids[:, 5:], past_key_values=cache).logits, models[0](ids).logits[:, 5:])


def test_bounds_that_are_not_those_of_the_batch():
    model = decoder("a mask without positions")
    model.set_attn_implementation("sdpa_varlen")
    inputs = packed()
    inputs["cu_seq_lens_q"] = inputs["cu_seq_lens_q"][:-1]
    with pytest.raises(RuntimeError, match="split"):
        model(**inputs)


@pytest.mark.parametrize("chosen, used", [("sdpa", "sdpa_varlen"), ("eager", "eager"), ("flex_attention",) * 2])
def test_a_valley_attends_by_row(chosen, used):
    model = tiny_valley()
    model.set_attn_implementation({"text_config": chosen})
    attend_by_row(model)
    assert model.config.text_config._attn_implementation == used
    assert model.config._attn_implementation == model.config.vision_config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    "kind, settings, reason",
    [
        ("mamba", {}, "carry a state"),
        ("minimax", FEWER_KEYS | {"layer_types": ["full_attention", "linear_attention"]}, "carry a state"),
        ("lfm2", FEWER_KEYS | {"layer_types": ["full_attention", "conv"]}, "carry a state"),
        ("falcon", {}, "attention of its own"),
        ("bloom", {}, "attention of its own"),
        ("opt", {"attn_implementation": "eager"}, "attn_implementation='eager', but does without"),
    ],
)
def test_language_models_that_mix_rows_are_refused(kind, settings, reason):
    model = tiny_valley()
    config = AutoConfig.for_model(kind, **SMALL, **settings)
    model.model.language_model = AutoModelForCausalLM.from_config(config).base_model
    with pytest.raises(ValueError, match=f"pack_batches needs .*{reason}"):
        attend_by_row(model)
