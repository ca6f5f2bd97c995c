# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
import pytest
from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig

from transformers_valley import ValleyConfig


def test_defaults_are_clip_l14_and_llama():
    config = ValleyConfig()
    assert (config.vision_config.hidden_size, config.vision_config.patch_size) == (1024, 14)
    assert (config.vision_config.image_size, config.vision_config.num_hidden_layers) == (224, 24)
    assert config.text_config.model_type == "llama"
    assert max(config.image_token_id, config.video_token_id) < config.text_config.vocab_size
    assert (config.temporal_module, config.temporal_space, config.vision_feature_layer) == (
        "transformer",
        "vision",
        -2,
    )


def test_round_trip(tmp_path):
    config = ValleyConfig(
        vision_config=CLIPVisionConfig(hidden_size=96), text_config=LlamaConfig(hidden_size=64), temporal_module="mean"
    )
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_json_string() == config.to_json_string()


def test_text_config_is_found():
    assert ValleyConfig().get_text_config().model_type == "llama"


def test_tied_embeddings_of_the_decoder_are_tied():
    assert ValleyConfig(text_config=LlamaConfig(tie_word_embeddings=True)).tie_word_embeddings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temporal_module": "v3"}, "'mean', 'importance', 'transformer'"),
        ({"temporal_space": "latent"}, "'vision', 'text'"),
        ({"temporal_num_heads": 7}, "divisible by temporal_num_heads=7"),
        ({"temporal_num_heads": 0}, "divisible by temporal_num_heads=0"),
        ({"image_token_id": 5, "video_token_id": 5}, "must differ"),
        ({"vision_chunk_size": 0}, "at least 1 frame"),
        ({"temporal_max_positions": 0}, "at least 1, got 0"),
        ({"temporal_dropout": "high"}, "temporal_dropout"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(Exception, match=message):
        ValleyConfig(**fields)


def test_flat_config_of_2023_is_named():
    with pytest.raises(ValueError, match="flat config of the Valley code released in 2023.*converted"):
        ValleyConfig(hidden_size=5120, mm_vision_tower="openai/clip-vit-large-patch14", use_delta_transformer=True)


def test_valley2_config_is_named():
    with pytest.raises(ValueError, match="ByteDance's Valley2"):
        ValleyConfig(hidden_size=3584, architectures=["ValleyQwen2ForCausalLM"])
