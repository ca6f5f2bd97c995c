# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`sdpa_varlen` against `sdpa`, whose mask says which tokens see which."""

import copy
from unittest import mock

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from transformers_valley.training import attention


SMALL = dict(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4)
LENGTHS = [5, 1, 9]
MODELS = {
    "fewer keys than queries": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=2)),
    "sliding window": lambda: MistralForCausalLM(MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=3)),
}


@pytest.fixture(params=MODELS)
def models(request):
    torch.manual_seed(0)
    expected = MODELS[request.param]().eval()
    found = copy.deepcopy(expected)
    found.set_attn_implementation("sdpa_varlen")
    assert expected.config._attn_implementation == "sdpa"
    return expected, found


def packed():
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    return {
        "input_ids": torch.randint(1, 50, (1, sum(LENGTHS))),
        "position_ids": torch.cat([torch.arange(length) for length in LENGTHS])[None],
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "use_cache": False,
    }


def test_packed_rows_see_what_the_mask_of_sdpa_shows_them(models):
    inputs = packed()
    expected, found = (model(**inputs).logits for model in models)
    torch.testing.assert_close(found, expected)
    for row, logits in zip(inputs["input_ids"].split(LENGTHS, dim=1), found.split(LENGTHS, dim=1), strict=True):
        torch.testing.assert_close(logits, models[0](row).logits)


def test_no_mask_of_all_by_all_is_made():
    torch.manual_seed(0)
    model = MODELS["fewer keys than queries"]()
    model.set_attn_implementation("sdpa_varlen")
    with mock.patch.object(attention, "sdpa_mask", side_effect=AssertionError):
        model(**packed())


def test_padded_prompts_are_answered_alike(models):
    ids = torch.randint(1, 50, (2, 6))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    options = dict(attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=0)
    expected, found = (model.generate(ids, **options) for model in models)
    assert found.tolist() == expected.tolist()


def test_a_prompt_goes_on_in_pieces(models):
    """Several new tokens after those of a cache: each sees the cache and what came before it."""
    ids = torch.randint(1, 50, (1, 8))
    for model in models:
        cache = model(ids[:, :5], use_cache=True).past_key_values
        torch.testing.assert_close(model(ids[:, 5:], past_key_values=cache).logits, models[0](ids).logits[:, 5:])


def test_bounds_that_are_not_those_of_the_batch():
    model = MODELS["fewer keys than queries"]()
    model.set_attn_implementation("sdpa_varlen")
    inputs = packed()
    inputs["cu_seq_lens_q"] = inputs["cu_seq_lens_q"][:-1]
    with pytest.raises(RuntimeError, match="split"):
        model(**inputs)
