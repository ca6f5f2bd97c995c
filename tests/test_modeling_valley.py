# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
import copy
import subprocess
import sys

import pytest
import torch
import transformers
from packaging.version import Version
from tiny import (
    NUM_PATCHES,
    OLD,
    VISION_CONFIGS,
    random_frames,
    tiny_processor,
    tiny_text,
    tiny_tokenizer,
    tiny_valley,
    tiny_vision,
)
from torch import nn
from transformers import AutoModel, AutoTokenizer, CLIPConfig, CompileConfig, ResNetConfig
from transformers.modeling_outputs import BaseModelOutputWithPast

from transformers_valley import ValleyConfig, ValleyForConditionalGeneration, ValleyModel, modeling_valley
from transformers_valley.chat import VideoChat
from transformers_valley.modeling_valley import TEMPORAL_MODULES, _sinusoidal_positions


MIXES_UP_VISUALS = Version(transformers.__version__) < Version("5.20")
MODULES = ("mean", "importance", "transformer")
SPACES = ("vision", "text")


def block(token_id, num_frames):
    return [token_id] * (NUM_PATCHES + num_frames)


def pixels(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def video_inputs(model, num_frames=(3, 5), text=6):
    """One clip per sample, left padded; the padding frames are noise so that using them would show."""
    ids = [[7, 8] + block(model.config.video_token_id, frames) + list(range(10, 10 + text)) for frames in num_frames]
    return pad_left(ids) | {
        "pixel_values_videos": pixels(len(num_frames), max(num_frames), 3, 28, 28),
        "video_num_frames": torch.tensor(num_frames),
    }


def pad_left(rows):
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def mixed_inputs(model):
    """Two clips of different length in one sample, an image, and text only: one left padded batch."""
    video, image = model.config.video_token_id, model.config.image_token_id
    rows = [
        [5] + block(video, 2) + [6] + block(video, 4) + [9],
        [5] + block(image, 1) + [7, 8],
        [5, 6, 7, 8, 9, 10],
    ]
    return pad_left(rows) | {
        "pixel_values": pixels(1, 3, 28, 28, seed=1),
        "pixel_values_videos": pixels(2, 4, 3, 28, 28, seed=2),
        "video_num_frames": torch.tensor([2, 4]),
    }


# Temporal modules


def temporal_module(name, dim=32, heads=4):
    config = ValleyConfig(
        vision_config=tiny_vision(hidden_size=dim).config,
        temporal_module=name,
        temporal_num_heads=heads,
        temporal_intermediate_size=64,
    )
    torch.manual_seed(0)
    module = TEMPORAL_MODULES[name](config)
    for parameter in module.parameters():  # no parameter at a value that hides its use
        nn.init.normal_(parameter, std=0.3)
    return module.eval()


def as_encoder_layer(module, dim=32, heads=4):
    layer = nn.TransformerEncoderLayer(dim, heads, 64, dropout=0.1, activation="relu", layer_norm_eps=1e-5)
    layer.load_state_dict(
        {
            f"self_attn.{name}" if name.startswith(("in_proj", "out_proj")) else name: value
            for name, value in module.state_dict().items()
        }
    )
    return layer


@pytest.mark.parametrize("length", [1, 2, 9, 4000])
def test_transformer_module_equals_torch_encoder_layer(length):
    module = temporal_module("transformer")
    clip = pixels(length, 2 if length == 4000 else NUM_PATCHES, 32)
    positions = _sinusoidal_positions(length, 32, clip)
    with torch.no_grad():
        # Time is the sequence of the layer, the patches are its batch. The layer computes T x T, ours 1 x T.
        expected = as_encoder_layer(module).eval()(clip + positions[:, None])[-1] + clip.mean(0)
        result = module(clip, [length])[0]
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_gradients_equal_those_of_torch_encoder_layer():
    module = temporal_module("transformer")
    layer = as_encoder_layer(module).eval()
    clip = pixels(6, NUM_PATCHES, 32).requires_grad_()
    weight = pixels(NUM_PATCHES, 32, seed=5)
    (module(clip, [6])[0] * weight).sum().backward()
    ours, clip.grad = clip.grad, None
    ((layer(clip + _sinusoidal_positions(6, 32, clip)[:, None])[-1] + clip.mean(0)) * weight).sum().backward()
    torch.testing.assert_close(ours, clip.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module.in_proj_weight.grad, layer.self_attn.in_proj_weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(module.in_proj_bias.grad, layer.self_attn.in_proj_bias.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(module.linear1.weight.grad, layer.linear1.weight.grad, rtol=1e-4, atol=1e-4)


def test_dropout_while_training_has_the_mean_of_torch_encoder_layer():
    """Dropped attention weights drop the value bias with them; the average over many draws shows it."""
    module = temporal_module("transformer").train()
    layer = as_encoder_layer(module).train()
    clip = pixels(4, 512, 32)[:, :1].expand(4, 512, 32)  # one sequence, 512 draws at once
    torch.manual_seed(0)
    with torch.no_grad():
        ours = torch.stack([module(clip, [4])[0].mean(0) for _ in range(20)]).mean(0)
        positioned = clip + _sinusoidal_positions(4, 32, clip)[:, None]
        theirs = torch.stack([(layer(positioned)[-1] + clip.mean(0)).mean(0) for _ in range(20)]).mean(0)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.05)


def test_positions_are_the_published_ones():
    positions = _sinusoidal_positions(3, 6, torch.zeros(()))
    for step in range(3):
        for pair in range(3):
            angle = torch.tensor(step / 10000 ** (2 * pair / 6))
            torch.testing.assert_close(positions[step, 2 * pair], angle.sin())
            torch.testing.assert_close(positions[step, 2 * pair + 1], angle.cos())


def test_importance_is_one_softmax_weight_per_frame():
    module, clip = temporal_module("importance"), pixels(5, NUM_PATCHES, 32)
    weights = torch.stack([module.importance(frame.flatten()) for frame in clip]).softmax(0)
    expected = sum(weight * frame for weight, frame in zip(weights, clip, strict=True))
    torch.testing.assert_close(module(clip, [5])[0], expected, rtol=1e-5, atol=1e-5)


def test_importance_names_a_wrong_grid():
    with pytest.raises(ValueError, match="scores whole frames of 128 values, got 9 patches x 32 channels"):
        temporal_module("importance")(pixels(5, 9, 32), [5])


@pytest.mark.parametrize("name", MODULES)
def test_clips_of_any_lengths_pool_as_if_alone(name):
    module, lengths = temporal_module(name), [3, 1, 5, 3, 1]
    frames = pixels(sum(lengths), NUM_PATCHES, 32)
    together = module(frames, lengths)
    alone = torch.cat([module(clip, [len(clip)]) for clip in frames.split(lengths)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODULES)
def test_order_matters_only_where_the_paper_says_so(name):
    module, clip = temporal_module(name), pixels(6, NUM_PATCHES, 32)
    same = torch.allclose(module(clip, [6]), module(clip.flip(0), [6]), atol=1e-5)
    assert same == (name != "transformer")


# Features


def reference_features(model, frames):
    """One clip (T, 3, H, W) by the paper's formulas, through the whole tower."""
    base = model.model
    tower = tiny_vision()
    hidden = tower(frames, output_hidden_states=True).hidden_states[model.config.vision_feature_layer]
    cls, patches = hidden[:, 0], hidden[:, 1:]
    if model.config.temporal_space == "text":
        cls, patches = base.multi_modal_projector(cls), base.multi_modal_projector(patches)
    features = torch.cat([base.temporal_module.pool(patches[None])[0], cls])
    return features if model.config.temporal_space == "text" else base.multi_modal_projector(features)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", MODULES)
@torch.no_grad()
def test_video_features_are_pooled_patches_then_frames_in_time_order(name, space):
    model = tiny_valley(temporal_module=name, temporal_space=space)
    clips, lengths = pixels(3, 5, 3, 28, 28), [3, 5, 1]
    features = model.get_video_features(clips, torch.tensor(lengths)).pooler_output
    assert [tuple(clip.shape) for clip in features] == [(NUM_PATCHES + frames, 48) for frames in lengths]
    for clip, frames, length in zip(features, clips, lengths, strict=True):
        torch.testing.assert_close(clip, reference_features(model, frames[:length]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_mean_commutes_with_the_projector():
    vision, text = (tiny_valley(temporal_module="mean", temporal_space=space) for space in SPACES)
    text.load_state_dict(vision.state_dict())
    clips = pixels(1, 4, 3, 28, 28)
    pairs = zip(*(m.get_video_features(clips).pooler_output for m in (vision, text)), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_an_image_is_a_clip_of_one_frame(model):
    image = pixels(2, 3, 28, 28)
    as_images = model.get_image_features(image).pooler_output
    as_clips = model.get_video_features(image[:, None]).pooler_output
    for one, other in zip(as_images, as_clips, strict=True):
        assert one.shape == (NUM_PATCHES + 1, 48)
        torch.testing.assert_close(one, other)


@torch.no_grad()
def test_chunks_bound_the_vision_tower_and_change_nothing(model):
    clips = pixels(2, 7, 3, 28, 28)
    whole = model.get_video_features(clips)
    seen = []
    model.model.vision_tower.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    model.config.vision_chunk_size = 4
    chunked = model.get_video_features(clips)
    assert seen == [4, 4, 4, 2]
    for one, other in zip(whole.pooler_output, chunked.pooler_output, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_padding_frames_are_not_encoded(model):
    seen = []
    model.model.vision_tower.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    model.get_video_features(pixels(2, 7, 3, 28, 28), torch.tensor([7, 2]))
    assert seen == [9]


@torch.no_grad()
def test_a_clip_of_4000_frames(model):
    features = model.get_video_features(pixels(1, 1, 3, 28, 28).expand(1, 4000, 3, 28, 28)).pooler_output[0]
    assert features.shape == (NUM_PATCHES + 4000, 48)
    assert features.isfinite().all()


def test_vision_tower_stops_at_the_layer_used(model):
    assert len(model.model.vision_tower.encoder.layers) == model.config.vision_config.num_hidden_layers - 1


@pytest.mark.parametrize("layer", [-4, -3, -1, 0, 2])
@torch.no_grad()
def test_every_feature_layer_is_that_of_the_whole_tower(layer):
    model = tiny_valley(vision_feature_layer=layer)
    clip = pixels(1, 2, 3, 28, 28)
    expected = tiny_vision()(clip[0], output_hidden_states=True).hidden_states[layer]
    torch.testing.assert_close(model.get_video_features(clip).last_hidden_state, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("vision", VISION_CONFIGS)
@pytest.mark.parametrize("text", ["llama", "qwen3", "mistral"])
@torch.no_grad()
def test_any_vision_transformer_and_any_decoder(vision, text, tmp_path):
    model = tiny_valley(vision, text)
    inputs = video_inputs(model)
    logits = model(**inputs).logits
    assert logits.shape[:2] == inputs["input_ids"].shape
    model.save_pretrained(tmp_path)
    reloaded = ValleyForConditionalGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(reloaded(**inputs).logits, logits)


@torch.no_grad()
def test_siglip_frames_are_the_mean_of_their_patches():
    model = tiny_valley("siglip", temporal_module="mean")
    clip = pixels(1, 3, 3, 28, 28)
    outputs = model.get_video_features(clip)
    expected = model.model.multi_modal_projector(outputs.last_hidden_state.mean(1))
    torch.testing.assert_close(outputs.pooler_output[0][NUM_PATCHES:], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_registers_are_neither_patches_nor_frames():
    model = tiny_valley("dinov2_with_registers", temporal_module="mean")
    outputs = model.get_video_features(pixels(1, 3, 3, 28, 28))
    hidden = outputs.last_hidden_state
    assert hidden.shape[1] == 1 + 4 + NUM_PATCHES
    expected = model.model.multi_modal_projector(torch.cat([hidden[:, 5:].mean(0), hidden[:, 0]]))
    torch.testing.assert_close(outputs.pooler_output[0], expected, rtol=1e-5, atol=1e-5)


# Joining two pretrained parts


def test_new_tokens_start_at_the_mean_of_the_old():
    tokenizer, text = tiny_tokenizer(), tiny_text()
    known = len(tokenizer)
    means = [e.weight[:known].mean(0) for e in (text.get_input_embeddings(), text.get_output_embeddings())]
    old = text.get_input_embeddings().weight[:known].clone()
    model = ValleyForConditionalGeneration.from_vision_text_pretrained(tiny_vision(), text, tokenizer=tokenizer)
    assert len(tokenizer) == known + 6
    assert model.config.video_token_id == tokenizer.convert_tokens_to_ids("<video>")
    torch.testing.assert_close(model.get_input_embeddings().weight[:known], old)
    for embeddings, mean in zip((model.get_input_embeddings(), model.lm_head), means, strict=True):
        # To a rounding step of bfloat16 in one small channel of the placeholders.
        torch.testing.assert_close(embeddings.weight[known : known + 6], mean.expand(6, -1), rtol=0, atol=1e-4)


def test_vocabulary_grows_when_it_has_to():
    tokenizer = tiny_tokenizer()
    text = tiny_text(vocab_size=len(tokenizer))
    model = ValleyForConditionalGeneration.from_vision_text_pretrained(tiny_vision(), text, tokenizer=tokenizer)
    assert model.get_input_embeddings().num_embeddings == model.config.text_config.vocab_size == len(tokenizer)
    assert model.lm_head.out_features == len(tokenizer)


def test_joining_is_idempotent_for_the_tokenizer():
    tokenizer = tiny_tokenizer()
    first, second = (tiny_valley(tokenizer=tokenizer) for _ in range(2))
    assert first.config.video_token_id == second.config.video_token_id


def test_joined_from_folders(tmp_path):
    tiny_vision().save_pretrained(tmp_path / "vision")
    tiny_text().save_pretrained(tmp_path / "text")
    tiny_tokenizer().save_pretrained(tmp_path / "text")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "text")
    model = ValleyForConditionalGeneration.from_vision_text_pretrained(
        str(tmp_path / "vision"), str(tmp_path / "text"), tokenizer=tokenizer, temporal_module="importance"
    )
    inputs = video_inputs(model)
    assert model(**inputs).logits.isfinite().all()
    torch.testing.assert_close(
        model.model.language_model.layers[0].mlp.up_proj.weight, tiny_text().model.layers[0].mlp.up_proj.weight
    )


def test_tied_embeddings_stay_tied():
    tokenizer = tiny_tokenizer()
    text = tiny_text(tie_word_embeddings=True)
    model = ValleyForConditionalGeneration.from_vision_text_pretrained(tiny_vision(), text, tokenizer=tokenizer)
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_every_new_weight_is_initialised():
    torch.manual_seed(0)
    model = tiny_valley()
    for name, parameter in model.named_parameters():
        assert parameter.device.type == "cpu" and parameter.isfinite().all(), name
    assert model.model.multi_modal_projector.weight.std() > 0
    assert model.model.temporal_module.in_proj_weight.std() > 0


def test_joining_without_a_tokenizer_says_so():
    with pytest.raises(ValueError, match="Pass `tokenizer`"):
        ValleyForConditionalGeneration.from_vision_text_pretrained(tiny_vision(), tiny_text())


def test_generation_defaults_are_greedy_and_stop(model):
    config = model.generation_config
    assert (config.do_sample, config.max_new_tokens, config.eos_token_id) == (False, 256, 2)
    assert config.pad_token_id is not None


@pytest.mark.parametrize("config", [ResNetConfig(), CLIPConfig()])
def test_a_vision_model_without_hidden_states_per_patch_is_refused(config):
    with pytest.raises(Exception, match="Use a vision transformer"), torch.device("meta"):
        ValleyModel(ValleyConfig(vision_config=config, temporal_num_heads=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_placeholders_are_told_apart_by_their_rows(dtype):
    tokenizer = tiny_tokenizer()
    parts = (tiny_vision(), tiny_text().to(dtype))
    model = ValleyForConditionalGeneration.from_vision_text_pretrained(*parts, tokenizer=tokenizer)
    inputs = tiny_processor(tokenizer).apply_chat_template(
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": random_frames(1)[0]},
                    {"type": "video", "video": random_frames(3)},
                ],
            }
        ],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        expected = model(**inputs).logits
        embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
        torch.testing.assert_close(model(**inputs, inputs_embeds=embeds).logits, expected)


def test_a_feature_layer_out_of_range_is_refused():
    with pytest.raises(ValueError, match="vision_feature_layer=-9 is out of range"):
        tiny_valley(vision_feature_layer=-9)


# Forward


@pytest.mark.parametrize(
    "attn_implementation", ["eager", "sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)]
)
@torch.no_grad()
def test_attention_backends_agree(model, attn_implementation):
    inputs = video_inputs(model)
    expected = model(**inputs).logits
    model.set_attn_implementation(attn_implementation)
    assert model.config.text_config._attn_implementation == attn_implementation
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(model(**inputs).logits[real], expected[real], rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_batched_equals_single_and_left_padded_equals_unpadded(model):
    inputs = video_inputs(model, num_frames=(2, 5))
    together = model(**inputs).logits
    for row, frames in enumerate((2, 5)):
        real = inputs["attention_mask"][row].bool()
        alone = model(
            input_ids=inputs["input_ids"][row][real][None],
            pixel_values_videos=inputs["pixel_values_videos"][row : row + 1, :frames],
        ).logits[0]
        torch.testing.assert_close(together[row][real], alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_pixels_inputs_embeds_and_encoded_features_agree(model):
    inputs = video_inputs(model)
    expected = model(**inputs)
    pixels = {name: inputs.pop(name) for name in ("pixel_values_videos", "video_num_frames")}
    embedded = {"inputs_embeds": model.get_input_embeddings()(inputs["input_ids"])}
    embedded["attention_mask"] = inputs["attention_mask"]
    encoded = {"mm_encoder_outputs": {"video": model.get_video_features(**pixels)}}
    for variant in (inputs | encoded, embedded | pixels, embedded | encoded):
        torch.testing.assert_close(model(**variant).logits, expected.logits)
    assert list(encoded["mm_encoder_outputs"]) == ["video"]  # the caller's dict is left alone


@torch.no_grad()
def test_logits_to_keep(model):
    inputs = video_inputs(model)
    torch.testing.assert_close(model(**inputs, logits_to_keep=2).logits, model(**inputs).logits[:, -2:])


@torch.no_grad()
def test_loss_is_that_of_a_causal_language_model(model):
    inputs = video_inputs(model, num_frames=(3,))
    labels = inputs["input_ids"].clone()
    labels[:, :-4] = -100
    outputs = model(**inputs, labels=labels)
    expected = nn.functional.cross_entropy(outputs.logits[0, -5:-1].float(), labels[0, -4:])
    torch.testing.assert_close(outputs.loss, expected)
    torch.testing.assert_close(model(**inputs, labels=labels, num_items_in_batch=8).loss, expected / 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_runs(model, dtype):
    inputs = mixed_inputs(model)
    expected = model(**inputs).logits
    logits = model.to(dtype)(**inputs).logits
    assert logits.dtype == dtype
    real = inputs["attention_mask"].bool()
    assert (logits[real].float() - expected[real]).abs().mean() < 0.05 * expected[real].abs().mean()


@torch.no_grad()
def test_a_frozen_tower_may_have_another_dtype(model):
    inputs = video_inputs(model)
    model.model.vision_tower.to(torch.bfloat16)
    assert model(**inputs).logits.dtype == torch.float32


@pytest.mark.parametrize("name", MODULES)
@torch.no_grad()
def test_reload_gives_equal_logits(name, tmp_path):
    model = tiny_valley(temporal_module=name)
    inputs = mixed_inputs(model)
    model.save_pretrained(tmp_path)
    for auto_class in (ValleyForConditionalGeneration, ValleyModel):
        reloaded, info = auto_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"] and not info["mismatched_keys"]
    reloaded = ValleyForConditionalGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(reloaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    # Not to the bit: weights of a file are aligned otherwise in memory, and some processors then sum in another order.
    torch.testing.assert_close(reloaded(**inputs).logits, model(**inputs).logits)


@torch.no_grad()
def test_a_checkpoint_with_the_whole_tower_loads_in_silence(model, tmp_path):
    layers = model.model.vision_tower.encoder.layers
    layers.append(copy.deepcopy(layers[0]))
    model.save_pretrained(tmp_path)
    _, info = ValleyForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


# Generation


GENERATE = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


def test_generation_continues_each_row_of_a_mixed_batch_as_if_alone(model):
    inputs = mixed_inputs(model)
    together = model.generate(**inputs, **GENERATE)[:, inputs["input_ids"].shape[1] :]
    visuals = [
        {"pixel_values_videos": inputs["pixel_values_videos"], "video_num_frames": inputs["video_num_frames"]},
        {"pixel_values": inputs["pixel_values"]},
        {},
    ]
    for row, visual in enumerate(visuals):
        ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()][None]
        alone = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **visual, **GENERATE)
        assert together[row].tolist() == alone[0, ids.shape[1] :].tolist()


@pytest.mark.skipif(MIXES_UP_VISUALS, reason="transformers up to 5.19 mixes up several clips of one prompt: refused")
@pytest.mark.parametrize("option", [{"num_beams": 4}, {"num_return_sequences": 3, "do_sample": True}])
def test_beams_and_several_sequences_on_a_mixed_batch(model, option):
    inputs = mixed_inputs(model)
    output = model.generate(**inputs, **(GENERATE | option))
    copies = option.get("num_return_sequences", 1)
    assert output.shape == (3 * copies, inputs["input_ids"].shape[1] + 6)


@pytest.mark.skipif(not MIXES_UP_VISUALS, reason="only transformers up to 5.19 mixes up several clips of one prompt")
def test_beams_over_several_clips_are_refused_where_transformers_mixes_them_up(model):
    with pytest.raises(ValueError, match="mixes up several videos of one prompt"):
        model.generate(**mixed_inputs(model), **GENERATE, num_beams=4)


def test_beams_see_the_right_clip(model):
    """Each row's best beam is that of the row alone."""
    inputs = video_inputs(model, num_frames=(2, 5))
    together = model.generate(**inputs, **GENERATE, num_beams=4)[:, inputs["input_ids"].shape[1] :]
    for row, frames in enumerate((2, 5)):
        ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()][None]
        clip = inputs["pixel_values_videos"][row : row + 1, :frames]
        alone = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values_videos=clip, num_beams=4, **GENERATE
        )
        assert together[row].tolist() == alone[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize(
    "option",
    [
        {"use_cache": False},
        {"cache_implementation": "static"},
        pytest.param(
            {"prefill_chunk_size": 5},
            marks=pytest.mark.skipif(OLD, reason="transformers up to 5.22 prefills in chunks without the visuals"),
        ),
    ],
    ids=str,
)
def test_other_ways_to_generate_agree_with_the_plain_one(model, option):
    inputs = mixed_inputs(model)
    plain = model.generate(**inputs, **GENERATE)
    assert model.generate(**inputs, **GENERATE, **option).tolist() == plain.tolist()


def test_generation_from_encoded_features(model):
    inputs = video_inputs(model)
    plain = model.generate(**inputs, **GENERATE)
    clips = {name: inputs.pop(name) for name in ("pixel_values_videos", "video_num_frames")}
    features = {"video": model.get_video_features(**clips)}
    assert model.generate(**inputs, mm_encoder_outputs=features, **GENERATE).tolist() == plain.tolist()


def test_generation_from_inputs_embeds(model):
    inputs = video_inputs(model)
    plain = model.generate(**inputs, **GENERATE)
    ids = inputs.pop("input_ids")
    embeds = model.get_input_embeddings()(ids)
    output = model.generate(inputs_embeds=embeds, **inputs, **GENERATE)
    assert output.tolist() == plain[:, ids.shape[1] :].tolist()


def test_assisted_generation_agrees(model):
    inputs = video_inputs(model, num_frames=(4,))
    plain = model.generate(**inputs, **GENERATE)
    assert model.generate(**inputs, **GENERATE, assistant_model=copy.deepcopy(model)).tolist() == plain.tolist()


@torch.no_grad()
def test_cached_logits_equal_uncached(model):
    inputs = video_inputs(model)
    whole = model(**inputs).logits
    length = inputs["input_ids"].shape[1] - 3
    head = inputs | {
        "input_ids": inputs["input_ids"][:, :length],
        "attention_mask": inputs["attention_mask"][:, :length],
    }
    cache = model(**head, use_cache=True).past_key_values
    tail = model(
        input_ids=inputs["input_ids"][:, length:], attention_mask=inputs["attention_mask"], past_key_values=cache
    ).logits
    torch.testing.assert_close(tail, whole[:, length:], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_decoding_compiles_to_one_graph(model):
    inputs = mixed_inputs(model)
    plain = model.generate(**inputs, **GENERATE)
    compile_config = CompileConfig(fullgraph=True, dynamic=False, mode="default")
    compile_config._compile_all_devices = True  # generate compiles on accelerators only, unless it is told
    torch.compiler.reset()
    compiled = model.generate(**inputs, **GENERATE, cache_implementation="static", compile_config=compile_config)
    assert compiled.tolist() == plain.tolist()
    assert hasattr(model, "_compiled_call")  # it really was compiled


# Training


@pytest.mark.parametrize("name", MODULES)
def test_gradients_reach_projector_and_temporal_module(name):
    model = tiny_valley(temporal_module=name).train()
    model.model.vision_tower.requires_grad_(False)
    inputs = mixed_inputs(model)
    model(**inputs, labels=inputs["input_ids"].masked_fill(inputs["input_ids"] > 380, -100)).loss.backward()
    for module in (model.model.multi_modal_projector, model.model.temporal_module, model.model.language_model):
        assert all(p.grad is not None for p in module.parameters())
    assert model.model.multi_modal_projector.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.model.vision_tower.parameters())


def test_a_frozen_tower_builds_no_graph(model):
    clips = pixels(1, 2, 3, 28, 28)
    assert model.get_video_features(clips).last_hidden_state.requires_grad
    model.model.vision_tower.requires_grad_(False)
    outputs = model.get_video_features(clips)
    assert not outputs.last_hidden_state.requires_grad and outputs.pooler_output[0].requires_grad


def test_a_text_only_batch_touches_every_trainable_visual_weight_and_changes_nothing(model):
    ids = torch.arange(5, 15)[None]
    expected = model(input_ids=ids, labels=ids).loss
    model.train()
    model.model.temporal_module.dropout.p = 0.0
    loss = model(input_ids=ids, labels=ids).loss
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
    loss.backward()
    for module in (model.model.multi_modal_projector, model.model.temporal_module):
        assert all(p.grad is not None and not p.grad.any() for p in module.parameters())


def test_a_text_only_batch_touches_a_trained_vision_tower(model):
    ids = torch.arange(5, 15)[None]
    model.train()(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.model.vision_tower.parameters())


def test_the_loss_of_text_is_that_of_the_plain_language_model(model):
    plain = tiny_text()  # what `model` was joined from; its embeddings have rows for Valley's tokens by now
    plain.resize_token_embeddings(model.config.text_config.vocab_size, mean_resizing=False)
    plain.model.load_state_dict(model.model.language_model.state_dict())
    plain.lm_head.load_state_dict(model.lm_head.state_dict())
    ids = torch.arange(5, 25).reshape(2, 10)
    losses = [part.train()(input_ids=ids, labels=ids).loss for part in (plain, model)]
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=0)
    for loss in losses:
        loss.backward()
    for name, parameter in plain.model.named_parameters():
        torch.testing.assert_close(model.model.language_model.get_parameter(name).grad, parameter.grad)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("whole", ["multi_modal_projector", "temporal_module"])
def test_projector_and_temporal_module_may_differ_in_precision(whole, name, space):
    model = tiny_valley(temporal_module=name, temporal_space=space, temporal_dropout=0.0)
    expected = model(**mixed_inputs(model)).logits
    half = model.to(torch.bfloat16)
    half.get_submodule(f"model.{whole}").float()
    logits = half(**mixed_inputs(half)).logits
    torch.testing.assert_close(logits.float(), expected, rtol=0, atol=0.2)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", MODULES)
def test_calls_made_for_the_sake_of_other_processes_change_nothing(name, space, monkeypatch):
    """Under ZeRO-3 a process repeats calls of modules until it has made as many as the others."""
    model = tiny_valley(temporal_module=name, temporal_space=space, temporal_dropout=0.0, vision_chunk_size=4).train()
    calls = []
    model.model.vision_tower.register_forward_pre_hook(lambda *_: calls.append("tower"))
    model.model.temporal_module.register_forward_pre_hook(lambda *_: calls.append("temporal"))
    inputs = mixed_inputs(model)
    videos = {key: inputs[key][:1] for key in ("input_ids", "attention_mask")}
    videos |= {key: inputs[key] for key in ("pixel_values_videos", "video_num_frames")}
    text = {key: inputs[key][2:] for key in ("input_ids", "attention_mask")}

    def train(batch):
        calls.clear()
        model.zero_grad()
        loss = model(**batch, labels=batch["input_ids"].masked_fill(batch["input_ids"] > 380, -100)).loss
        loss.backward()
        return loss, {key: p.grad for key, p in model.named_parameters()}, sorted(calls)

    for batch, usual in ((inputs, ["temporal"] * 2 + ["tower"] * 3), (videos, ["temporal"] + ["tower"] * 2)):
        loss, gradients, made = train(batch)
        assert made == usual
        with monkeypatch.context() as patched:
            patched.setattr(ValleyModel, "_most_of_all_ranks", lambda _, *counts, device: [n + 2 for n in counts])
            more_loss, more_gradients, made = train(batch)
        passes = usual.count("temporal") + 2
        assert made == ["temporal"] * passes + ["tower"] * (usual.count("tower") + 2 * passes + 2)
        torch.testing.assert_close(more_loss, loss, rtol=0, atol=0)
        for key in gradients:
            torch.testing.assert_close(more_gradients[key], gradients[key], rtol=1e-4, atol=1e-6)
    with monkeypatch.context() as patched:
        patched.setattr(ValleyModel, "_most_of_all_ranks", lambda _, *counts, device: [2 + n for n in counts])
        assert train(text)[2] == ["temporal"] * 2 + ["tower"] * 6


def test_a_stored_position_table_begins_as_the_computed_one():
    computed, stored = tiny_valley(), tiny_valley(temporal_max_positions=6)
    stored.load_state_dict(computed.state_dict(), strict=False)
    inputs = video_inputs(computed)
    torch.testing.assert_close(stored(**inputs).logits, computed(**inputs).logits)


def test_a_stored_position_table_is_kept_and_not_trained(tmp_path):
    model = tiny_valley(temporal_max_positions=6)
    table = model.model.temporal_module.position_table
    assert not table.requires_grad
    before = model(**video_inputs(model)).logits
    table.copy_(torch.randn_like(table))
    changed = model(**video_inputs(model)).logits
    assert not torch.allclose(before, changed)
    model.save_pretrained(tmp_path)
    again = ValleyForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(again.model.temporal_module.position_table, table)
    torch.testing.assert_close(again(**video_inputs(model)).logits, changed)


def test_a_clip_longer_than_the_position_table_is_refused():
    model = tiny_valley(temporal_max_positions=4)
    with pytest.raises(ValueError, match="A clip of 5 frames is longer than the position table .* has 4 rows"):
        model(**video_inputs(model))


def test_stop_strings_find_their_tokenizer(checkpoint, model, processor):
    inputs = video_inputs(model, num_frames=(3,))
    ids = model.generate(**inputs, **GENERATE)[0, inputs["input_ids"].shape[1] :]
    stop = processor.decode(ids[:3])[-1:]
    expected = model.generate(**inputs, **GENERATE, stop_strings=[stop], tokenizer=processor.tokenizer).tolist()
    assert len(expected[0]) <= inputs["input_ids"].shape[1] + 3
    loaded = ValleyForConditionalGeneration.from_pretrained(checkpoint)
    loaded.generation_config.stop_strings = [stop]
    assert loaded.generate(**inputs, **GENERATE).tolist() == expected
    # Servers pass the processor.
    assert loaded.generate(**inputs, **GENERATE, tokenizer=processor).tolist() == expected
    # It is read once, and without one transformers says what is missing.
    loaded.name_or_path = "moved/away"
    assert loaded.generate(**inputs, **GENERATE).tolist() == expected
    loaded._tokenizer = None
    with pytest.raises(ValueError, match="tokenizer"):
        loaded.generate(**inputs, **GENERATE)


def test_gradient_checkpointing_changes_no_gradient(model):
    inputs = video_inputs(model)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] > 380, -100)
    model.train()
    model.model.temporal_module.dropout.p = 0.0
    gradients = []
    for _ in range(2):
        model.zero_grad()
        model(**inputs, labels=labels, use_cache=False).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        # Until 5.22 it has its old name.
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    assert len(gradients[0]) == len(gradients[1])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


# Bad input: one clear error each


def test_truncated_placeholders_name_the_sample_and_both_numbers(model):
    inputs = video_inputs(model, num_frames=(5, 5), text=4)
    inputs["input_ids"][1, -8:] = 9  # the second sample lost the last four of its nine placeholders
    with pytest.raises(
        ValueError, match="Video features and video tokens do not match: sample 1 has 5 .* 9 features.*trunc"
    ):
        model(**inputs)
    with pytest.raises(ValueError, match="Video features and video tokens do not match: sample 1"):
        model.generate(**inputs, max_new_tokens=2)


def test_features_that_lie_across_two_samples_are_refused(model):
    """The totals agree, and still every feature after the first sample would be misplaced."""
    inputs = video_inputs(model, num_frames=(5, 5))
    inputs["input_ids"][0, 2:3], inputs["input_ids"][1, 0:1] = 9, model.config.video_token_id
    with pytest.raises(ValueError, match="sample 0 has 8 .* 9 features"):
        model(**inputs)


def test_two_placeholder_blocks_and_one_clip(model):
    video = model.config.video_token_id
    ids = torch.tensor([block(video, 2) + [5] + block(video, 2)])
    with pytest.raises(ValueError, match="sample 0 has 12 <video> placeholder tokens for 6 features"):
        model(input_ids=ids, pixel_values_videos=pixels(1, 2, 3, 28, 28))


def test_a_clip_without_placeholder(model):
    with pytest.raises(ValueError, match="sample 0 has 0 <video> placeholder tokens for 6 features"):
        model(input_ids=torch.tensor([[5, 6, 7]]), pixel_values_videos=pixels(1, 2, 3, 28, 28))


@pytest.mark.parametrize("modality", ["image", "video"])
def test_a_placeholder_without_a_clip(model, modality, monkeypatch):
    warnings = []
    monkeypatch.setattr(modeling_valley.logger, "warning_once", warnings.append)
    ids = torch.tensor([[5, getattr(model.config, f"{modality}_token_id"), 6]])
    message = f"the prompt has <{modality}> placeholder tokens, but no {modality} was given"
    model(input_ids=ids)
    assert message in warnings[0]
    with pytest.raises(ValueError, match=message):
        model.train()(input_ids=ids)


def test_an_image_mismatch_speaks_the_words_trl_listens_for(model):
    ids = torch.tensor([block(model.config.image_token_id, 0)])
    with pytest.raises(ValueError, match="Image features and image tokens do not match"):
        model(input_ids=ids, pixel_values=pixels(1, 3, 28, 28))


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (torch.zeros(2, 3, 28, 28), r"shape \(2, 3, 28, 28\)"),
        (torch.zeros(1, 0, 3, 28, 28), r"shape \(1, 0, 3, 28, 28\)"),
        (torch.zeros(1, 2, 28, 28, 3), r"shape \(1, 2, 28, 28, 3\)"),
        (torch.zeros(1, 2, 3, 28, 28, dtype=torch.uint8), "torch.uint8"),
        ([[1.0]], "list"),
    ],
)
def test_pixels_of_wrong_rank_size_or_dtype(model, value, found):
    with pytest.raises(ValueError, match=f"pixel_values_videos is a .*{found}.*expected a non-empty floating point"):
        model.get_video_features(value)


@pytest.mark.parametrize("num_frames", [[0, 2], [2, 9], [2]])
def test_impossible_frame_counts(model, num_frames):
    with pytest.raises(ValueError, match="video_num_frames must give 1 to 3 frames for each of the 2 clips"):
        model.get_video_features(pixels(2, 3, 3, 28, 28), torch.tensor(num_frames))


def test_pixels_and_encoded_features_at_once(model):
    inputs = video_inputs(model)
    features = {"video": model.get_video_features(inputs["pixel_values_videos"], inputs["video_num_frames"])}
    with pytest.raises(ValueError, match="not both"):
        model(**inputs, mm_encoder_outputs=features)


def test_neither_ids_nor_embeddings(model):
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()


def test_a_tower_that_merges_patches_is_refused(model):
    model.config.vision_config.patch_size = 7  # the tower gives 1 + 4 tokens where 16 patches are counted
    with pytest.raises(ValueError, match="gives 5 tokens for frames of 16 patches"):
        model.get_image_features(pixels(1, 3, 28, 28))


@pytest.mark.parametrize("visuals", ["images and clips", "text"])
@pytest.mark.parametrize("trained", ["everything", "projector"])
def test_a_training_step_never_waits_for_the_device(model, visuals, trained, monkeypatch):
    """On the meta device nothing can be read back. What decoders read, masks for one, is their business."""

    def decode(inputs_embeds, **kwargs):
        return BaseModelOutputWithPast(last_hidden_state=inputs_embeds)

    monkeypatch.setattr(model.model.language_model, "forward", decode)
    inputs = mixed_inputs(model)
    tokens = {"image": model.config.image_token_id, "video": model.config.video_token_id}
    if visuals == "text":
        inputs = {"input_ids": inputs["input_ids"] % 300 + 5}
    else:
        inputs["video_num_frames"] = inputs["video_num_frames"].tolist()
    counts = {name: (inputs["input_ids"] == token).sum(-1).tolist() for name, token in tokens.items()}
    if trained == "projector":
        model.requires_grad_(False).model.multi_modal_projector.requires_grad_(True)
    model.to("meta").train()
    inputs = {name: value.to("meta") if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    model(**inputs, labels=inputs["input_ids"], placeholder_counts=counts).loss.backward()
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):  # so a read would have been noticed
        model(**inputs)


def test_features_go_to_the_device_of_the_embeddings(model):
    """With a `device_map`, token ids may be on another device than the embeddings."""
    ids = torch.tensor([[5, model.config.video_token_id, 6]])
    embeddings = torch.zeros(1, 3, 48, device="meta")
    image, video = model.model.get_placeholder_mask(ids, embeddings, placeholder_counts={})
    assert image.device == video.device == embeddings.device


def test_counts_of_the_cpu_are_checked_as_those_of_the_device(model):
    inputs = video_inputs(model)
    counts = [(row == model.config.video_token_id).sum().item() for row in inputs["input_ids"]]
    model(**inputs, placeholder_counts={"image": [0, 0], "video": counts})
    with pytest.raises(ValueError, match="sample 1 has"):
        model(**inputs, placeholder_counts={"video": [counts[0], counts[1] - 1]})


def test_what_the_language_model_returns_is_handed_on(model, monkeypatch):
    inputs = video_inputs(model)
    language_model = model.model.language_model
    forward = language_model.forward

    def extended(*args, **kwargs):
        outputs = forward(*args, **kwargs)
        outputs["invention_of_next_year"] = torch.ones(2)
        return outputs

    monkeypatch.setattr(language_model, "forward", extended)
    for outputs in (model.model(**inputs), model(**inputs)):
        assert outputs["invention_of_next_year"].tolist() == [1, 1]
    assert outputs.keys() >= {"logits", "video_outputs"} and outputs[0] is outputs.logits
    assert len(outputs.video_outputs.pooler_output) == 2 and "image_outputs" not in outputs


def test_outputs_can_be_tuples(model):
    inputs = video_inputs(model)
    outputs = model(**inputs, labels=inputs["input_ids"])
    loss, logits, *_ = model(**inputs, labels=inputs["input_ids"], return_dict=False)
    torch.testing.assert_close((loss, logits), (outputs.loss, outputs.logits))


def test_the_tokenizer_for_stop_strings_has_the_revision_of_the_weights(checkpoint, model, monkeypatch):
    asked = {}
    monkeypatch.setattr(modeling_valley.AutoTokenizer, "from_pretrained", lambda name, **kwargs: asked.update(kwargs))
    loaded = ValleyForConditionalGeneration.from_pretrained(checkpoint, revision="v1", local_files_only=True)
    with pytest.raises(ValueError, match="tokenizer"):
        loaded.generate(**video_inputs(model), stop_strings=["x"])
    assert asked == {"revision": "v1", "local_files_only": True}


def test_no_call_of_ours_is_deprecated(model, processor, recwarn):
    inputs = video_inputs(model)
    model.generate(**inputs, **GENERATE)
    model(**inputs, labels=inputs["input_ids"], use_cache=True)
    VideoChat(model, processor, max_new_tokens=2).ask("What?", videos=[random_frames(2)])
    deprecated = [str(warning.message) for warning in recwarn if "deprecated" in str(warning.message)]
    assert not deprecated


@pytest.mark.parametrize("name", MODULES)
def test_engines_may_swap_the_linear_layers(name):
    """vLLM's Transformers backend does, for layers that do not know their sizes."""

    class Replicated(nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.inner = [linear]
            self.weight = nn.Parameter(torch.empty(0))

        def forward(self, x):
            return self.inner[0](x)

    module = tiny_valley(temporal_module=name, temporal_dropout=0.0).model.temporal_module
    patches = torch.randn(5, NUM_PATCHES, 32)
    expected = module(patches, [2, 3])
    for child, layer in list(module.named_children()):
        if isinstance(layer, nn.Linear):
            setattr(module, child, Replicated(layer))
    torch.testing.assert_close(module(patches, [2, 3]), expected)


def test_engines_may_build_parameters_without_values_beside_real_buffers():
    """As vLLM's Transformers backend does; the position table begins as the computed one all the same."""
    model = tiny_valley(temporal_max_positions=6)
    module = model.model.temporal_module
    expected = module.position_table.clone()
    table = torch.zeros_like(expected)
    module.to("meta").register_buffer("position_table", table)
    model._init_weights(module)
    assert torch.equal(table, expected)


@pytest.mark.slow
def test_a_fresh_interpreter_loads_every_auto_class_with_equal_results(model, checkpoint, tmp_path):
    inputs = mixed_inputs(model)
    torch.save(inputs, tmp_path / "inputs.pt")
    code = f"""
import sys, torch, transformers_valley
from transformers import AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor
inputs = torch.load({str(tmp_path / "inputs.pt")!r})
results = {{}}
for auto_class in (AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    with torch.no_grad():
        outputs = auto_class.from_pretrained({checkpoint!r})(**inputs)
    results[auto_class.__name__] = outputs["logits"] if "logits" in outputs else outputs["last_hidden_state"]
results["AutoProcessor"] = type(AutoProcessor.from_pretrained({checkpoint!r})).__name__
torch.save(results, {str(tmp_path / "results.pt")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    results = torch.load(tmp_path / "results.pt")
    assert results.pop("AutoProcessor") == "ValleyProcessor"
    with torch.no_grad():
        hidden_states, logits = model.model(**inputs).last_hidden_state, model(**inputs).logits
    torch.testing.assert_close(results.pop("AutoModel"), hidden_states, rtol=1e-5, atol=1e-5)
    for result in results.values():
        torch.testing.assert_close(result, logits, rtol=1e-5, atol=1e-5)


def test_auto_model_is_the_headless_model(checkpoint):
    assert type(AutoModel.from_pretrained(checkpoint)) is ValleyModel
