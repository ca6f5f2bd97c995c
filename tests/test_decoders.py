# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Every decoder family of transformers that can be built small: a Valley made of it stays that decoder, or is refused.

Asked about text alone, it has to give the decoder's own logits, with its caps, scales and multipliers.
"""

import contextlib
import copy
import math
from functools import cache

import pytest
import torch
from tiny import tiny_tokenizer, tiny_vision
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

from transformers_valley import ValleyForConditionalGeneration


KNOWN = 380  # what the tokenizer knew before Valley's tokens, whose rows are new
MOST_PARAMETERS = 20_000_000  # of a family that the settings below make small
SMALL = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "embed_dim"), 48),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "shared_expert_intermediate_size"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_key_value_heads"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts"), 1),
    **dict.fromkeys(("moe_intermediate_size", "kv_lora_rank", "q_lora_rank"), 32),
    **dict.fromkeys(("head_dim", "v_head_dim", "qk_nope_head_dim", "qk_head_dim"), 12),
    **{"vocab_size": 400, "max_position_embeddings": 512, "initializer_range": 0.3, "partial_rotary_factor": 0.5},
    **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "qk_rope_head_dim": 8, "first_k_dense_replace": 1},
}
# What makes the logits of a family other than those of its head, where its defaults do not.
OWN = {
    "cohere": {"logit_scale": 0.0625},
    "cohere2": {"logit_scale": 0.0625},
    "falcon_h1": {
        **{"lm_head_multiplier": 0.02, "mamba_d_ssm": 48, "mamba_n_heads": 4, "mamba_d_head": 12, "mamba_d_state": 8}
    },
    "gemma2": {"query_pre_attn_scalar": 12},
    "granite": {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.22},
    "granitemoe": {"logits_scaling": 8.0},
}
SCALED = ("cohere", "cohere2", "falcon_h1", "gemma2", "granite", "granitemoe", "nanochat", "vaultgemma")
USUAL = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3", "smollm3", "mixtral", "qwen3_moe", "gpt_oss")
REFUSED = {
    "gpt2": "tied to token embeddings that are not called `embed_tokens`",
    "falcon": "tied to token embeddings that are not called `embed_tokens`",
    "phi": "its head has a bias",
    "bert": "its head has a bias",
}


@cache
def tiny_decoder(name: str):
    kind = CONFIG_MAPPING[name]
    known = set(getattr(kind, "attribute_map", {}))
    known |= {field for base in kind.__mro__ for field in getattr(base, "__annotations__", {})}
    config = kind(**{field: value for field, value in SMALL.items() if field in known}, **OWN.get(name, {}))
    with torch.device("meta"):
        size = AutoModelForCausalLM.from_config(config).num_parameters()
    if size > MOST_PARAMETERS:
        raise ValueError(f"it has {size:,} parameters")
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def join(decoder) -> ValleyForConditionalGeneration:
    parts = tiny_vision(), copy.deepcopy(decoder)
    return ValleyForConditionalGeneration.from_vision_text_pretrained(
        *parts, tokenizer=tiny_tokenizer(), temporal_intermediate_size=64
    )


@torch.no_grad()
def check(decoder) -> None:
    ids = torch.randint(5, 300, (1, 12), generator=torch.Generator().manual_seed(1))
    expected = decoder(input_ids=ids, labels=ids)
    joined = join(decoder)
    torch.testing.assert_close(joined(input_ids=ids).logits[..., :KNOWN], expected.logits[..., :KNOWN])


@pytest.mark.parametrize("name", SCALED + USUAL)
def test_a_joined_decoder_gives_its_own_logits_of_text(name):
    check(tiny_decoder(name))


@pytest.mark.parametrize("name", SCALED)
def test_scaled_logits_are_not_those_of_the_head(name):
    """Or the test above would say nothing about scales."""
    decoder = tiny_decoder(name)
    with torch.no_grad():
        outputs = decoder(input_ids=torch.tensor([[5, 6, 7]]), output_hidden_states=True)
        assert not torch.allclose(decoder.get_output_embeddings()(outputs.hidden_states[-1]), outputs.logits)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_decoders_that_cannot_be_joined_are_refused_by_name(name):
    decoder = tiny_decoder(name)
    with pytest.raises(ValueError, match=f"{type(decoder).__name__} cannot be joined.*{REFUSED[name]}"):
        join(decoder)


def test_a_decoder_that_would_answer_otherwise_is_refused():
    decoder = tiny_decoder("llama")
    decoder = copy.deepcopy(decoder)
    decoder.register_forward_hook(lambda _, __, outputs: outputs.__setitem__("logits", 2 * outputs.logits))
    with pytest.raises(ValueError, match="LlamaForCausalLM cannot be joined.*logits of text are off by 50.0%"):
        join(decoder)


@pytest.mark.parametrize(
    ("dtype", "off", "is_joined"),
    [("float32", 0.04, False), ("bfloat16", 0.04, True), ("bfloat16", math.nan, False), ("float32", 0.0, True)],
)
def test_rounding_in_16_bits_is_not_another_answer(dtype, off, is_joined):
    """Kernels that a GPU chooses without a mask differed by some percent over the 32 layers of a model of 7B."""
    decoder = copy.deepcopy(tiny_decoder("llama")).to(getattr(torch, dtype))

    def round_away(module, inputs, outputs):
        signs = torch.randn(outputs.logits.shape, generator=torch.Generator().manual_seed(0)).sign()
        outputs["logits"] = outputs.logits * (1 + off * signs)

    decoder.register_forward_hook(round_away)
    with contextlib.nullcontext() if is_joined else pytest.raises(ValueError, match=r"off by (4\.\d|nan)%"):
        join(decoder)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_the_loss_of_a_mixture_of_experts_includes_its_balance(name):
    decoder = copy.deepcopy(tiny_decoder(name))
    decoder.config.output_router_logits = True
    ids = torch.randint(5, 300, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    joined = join(decoder)
    with torch.no_grad():
        expected, found = decoder(**inputs), joined(**inputs)
    torch.testing.assert_close(found.aux_loss, expected.aux_loss)
    assert len(found.router_logits) == len(expected.router_logits)
    config = joined.config.text_config
    alone = joined.loss_function(found.logits, inputs["labels"], vocab_size=config.vocab_size)
    torch.testing.assert_close(found.loss, alone + config.router_aux_loss_coef * found.aux_loss)


def families() -> list[str]:
    return sorted({config.model_type for config in MODEL_FOR_CAUSAL_LM_MAPPING if config.model_type in CONFIG_MAPPING})


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in families() if name not in SCALED + USUAL])
def test_every_family_stays_itself_or_is_refused(name):
    try:
        decoder = tiny_decoder(name)
        with torch.no_grad():
            decoder(input_ids=torch.tensor([[5, 6, 7]]))
    except Exception as error:
        pytest.skip(f"cannot be built small and run: {type(error).__name__} {str(error)[:80]}")
    try:
        check(decoder)
    except ValueError as error:
        assert f"{type(decoder).__name__} cannot be joined" in str(error)
