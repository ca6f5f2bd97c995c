# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Original checkpoints become native ones that compute the same. Others are refused, and nothing is written."""

import json
import re
import sys

import pytest
import torch
from clips import write_clip
from original_valley import (
    OLD_TOKENS,
    PADDING_ROWS,
    OriginalValley,
    assert_same,
    edit_json,
    load,
    minus,
    native_ids,
    native_logits,
    old_tokenizer,
    refused,
    save_base,
    write,
)
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoProcessor,
    AutoTokenizer,
    ChineseCLIPVisionConfig,
    ChineseCLIPVisionModel,
    CLIPConfig,
    CLIPVisionConfig,
    pipeline,
)
from typer.testing import CliRunner

from transformers_valley import ValleyConfig
from transformers_valley.hub import convert_valley_weights, original_weights
from transformers_valley.hub.convert_valley_weights import convert
from valley_cli.app import app


SYSTEM_MESSAGE = (
    "You are Valley, a large language and vision assistant trained by ByteDance. You are able to understand the "
    "visual content or video that the user provides, and assist the user with a variety of tasks using natural "
    "language. Follow the instructions carefully and explain your answers in detail."
)


@pytest.mark.parametrize(
    "original",
    [
        {"temporal": "mean", "image_size": 224},
        {"temporal": "mean", "select_layer": None},
        {"temporal": "importance", "vision_size": 128},
        {"temporal": "importance", "image_size": 224, "select_layer": -1},
        {"temporal": "transformer", "select_layer": -1, "vision_size": 128},
        {"temporal": "transformer", "positions": "zero"},
    ],
    ids=str,
)
def test_logits_equal_those_of_the_original(original, tmp_path):
    original = OriginalValley(**original)
    report = convert(original.save(tmp_path / "old"), tmp_path / "new")
    model = assert_same(tmp_path / "new", original, (1, 4, 3))
    assert (model.config.temporal_module, model.config.temporal_space) == (original.temporal, "text")
    assert report.temporal_module == original.temporal and report.dtype == "float32"


def test_it_generates_what_the_original_model_generates(converted, v3):
    model = load(converted[0])
    input_ids, clips = v3.prompts()
    expected = input_ids
    for _ in range(5):
        expected = torch.cat([expected, v3.logits(expected, clips)[:, -1:, : len(v3.tokenizer)].argmax(-1)], dim=1)
    found = model.generate(
        input_ids=native_ids(input_ids, v3, model.config),
        pixel_values_videos=torch.stack(clips),
        max_new_tokens=5,
        stop_strings=None,
        suppress_tokens=list(range(len(v3.tokenizer), model.config.text_config.vocab_size)),
        eos_token_id=None,
    )
    assert found[:, input_ids.shape[1] :].tolist() == expected[:, input_ids.shape[1] :].tolist()


def test_a_chinese_tower_becomes_a_chinese_clip(tmp_path):
    original = OriginalValley(vision=ChineseCLIPVisionModel)
    original.config["mm_vision_tower"] = "nowhere/chinese-clip-tiny"
    convert(original.save(tmp_path / "old"), tmp_path / "new")
    assert isinstance(assert_same(tmp_path / "new", original).config.vision_config, ChineseCLIPVisionConfig)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_bits_stay_as_they_are(v3, tmp_path, form):
    convert(v3.save(tmp_path / "old", form, dtype=torch.bfloat16), tmp_path / "new")
    found = load_file(tmp_path / "new/model.safetensors")
    old = {name: tensor.bfloat16() for name, tensor in v3.tensors().items()}
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert torch.equal(found["model.temporal_module.position_table"], old["model.position_matrix"])
    rows = len(v3.tokenizer)
    for new, name in (("lm_head", "lm_head"), ("model.language_model.embed_tokens", "model.embed_tokens")):
        assert torch.equal(found[f"{new}.weight"][:rows], old[f"{name}.weight"][:rows])
    name = "self_attn.in_proj_weight"
    assert torch.equal(
        found["model.temporal_module.in_proj_weight"], old[f"model.transformer_delta_encoder.layers.0.{name}"]
    )
    assert AutoConfig.from_pretrained(tmp_path / "new").dtype == torch.bfloat16


def test_dtype_can_be_chosen(v1, tmp_path):
    source = v1.save(tmp_path / "old", dtype=torch.float16)
    assert convert(source, tmp_path / "new", dtype="float32").dtype == "float32"
    assert load(tmp_path / "new").dtype == torch.float32
    assert convert(source, tmp_path / "auto", dtype="auto").dtype == "float16"
    assert convert(source, tmp_path / "object", dtype=torch.bfloat16).dtype == "bfloat16"
    assert "dtype is 'int8'" in refused(source, tmp_path / "none", dtype="int8")


def test_a_value_that_the_dtype_cannot_hold_is_refused(v1, tmp_path):
    tensors = v1.tensors()
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = 1e6
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = torch.inf  # is as it was
    source = v1.save(tmp_path / "old", tensors=tensors)
    message = refused(source, tmp_path / "new", dtype="float16")
    assert message.startswith(
        "model.layers.1.mlp.up_proj.weight holds values beyond 6.55e+04, the largest of float16."
    )
    convert(source, tmp_path / "new", dtype="bfloat16")


def test_what_is_stored_wider_is_not_rounded(tmp_path):
    original = OriginalValley("transformer")
    for part in (original.llama, original.tower, original.projector, original.pooling):
        for parameter in part.parameters():
            parameter.data = parameter.half().float()
    wide = original.extra["model.position_matrix"]
    tensors = {
        name: t if t is wide or not t.is_floating_point() else t.half() for name, t in original.tensors().items()
    }
    tensors["model.position_matrix"] = wide
    report = convert(original.save(tmp_path / "old", tensors=tensors), tmp_path / "new")
    assert report.dtype == "float16" and any("stored as float16, float32, as in" in note for note in report.notes)
    found = load_file(tmp_path / "new/model.safetensors")
    assert torch.equal(found.pop("model.temporal_module.position_table"), wide)
    assert {tensor.dtype for tensor in found.values()} == {torch.float16}
    assert AutoConfig.from_pretrained(tmp_path / "new").dtype == torch.float16
    input_ids, clips = original.prompts()
    expected = original.logits(input_ids, clips)[..., : len(original.tokenizer)]
    model = load(tmp_path / "new", dtype=torch.float32)
    torch.testing.assert_close(native_logits(model, original, input_ids, clips), expected, atol=1e-5, rtol=1e-5)


# --- What is written -------------------------------------------------------------------------------------------------


def test_config(converted, v3):
    config = AutoConfig.from_pretrained(converted[0])
    assert isinstance(config, ValleyConfig) and config.architectures == ["ValleyForConditionalGeneration"]
    assert (config.temporal_num_heads, config.temporal_intermediate_size) == (8, 2048)
    assert (config.temporal_max_positions, config.vision_feature_layer) == (2048, -2)
    text = config.text_config
    assert (text.bos_token_id, text.eos_token_id, text.pad_token_id) == (1, 2, v3.tokenizer.pad_token_id)
    assert (text.max_position_embeddings, text.vocab_size) == (2048, len(v3.tokenizer) + PADDING_ROWS)
    stored = (converted[0] / "config.json").read_text()
    for word in ("mm_", "temperature", "top_p", "torch_dtype", "/mnt/old"):
        assert word not in stored
    assert json.loads(stored)["auto_map"]["AutoModel"] == "modeling_valley.ValleyModel"
    for name in ("configuration_valley.py", "modeling_valley.py", "processing_valley.py"):
        assert (converted[0] / name).exists()


def test_rope_is_kept(v1, tmp_path):
    original = OriginalValley()
    original.config |= {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    convert(original.save(tmp_path / "old"), tmp_path / "new")
    rope = AutoConfig.from_pretrained(tmp_path / "new").text_config.rope_parameters
    assert (rope["rope_theta"], rope["rope_type"], rope["factor"]) == (5e5, "linear", 2.0)


def test_generation_config_is_that_of_the_original(converted, v3):
    generation = load(converted[0]).generation_config
    assert (generation.do_sample, generation.max_new_tokens, generation.stop_strings) == (False, 1024, ["###"])
    assert (generation.eos_token_id, generation.pad_token_id) == (2, v3.tokenizer.pad_token_id)


def test_frames_are_prepared_as_in_the_original(tmp_path):
    convert(OriginalValley(image_size=224).save(tmp_path / "old"), tmp_path / "new")
    processor = AutoProcessor.from_pretrained(tmp_path / "new")
    assert (processor.patch_size, processor.video_processor.num_frames) == (14, 8)
    for part in (processor.image_processor, processor.video_processor):
        assert dict(part.size)["shortest_edge"] == 256 and dict(part.crop_size) == {"height": 224, "width": 224}
        assert part.resample == Image.Resampling.BILINEAR
    clip = write_clip(tmp_path / "clip.mp4", 20)
    assert processor.video_processor(clip)["pixel_values_videos"].shape == (1, 8, 3, 224, 224)


def test_new_tokens_lie_at_the_mean_and_the_placeholders_differ(converted, v3):
    config = AutoConfig.from_pretrained(converted[0])
    found = load_file(converted[0] / "model.safetensors")
    image, video = config.image_token_id, config.video_token_id
    assert [image, video] == [len(v3.tokenizer), len(v3.tokenizer) + 1]
    tokenizer = AutoTokenizer.from_pretrained(converted[0])
    assert tokenizer.convert_tokens_to_ids(["<image>", "<video>"]) == [image, video]
    assert tokenizer.convert_tokens_to_ids(OLD_TOKENS) == v3.tokenizer.convert_tokens_to_ids(OLD_TOKENS)
    old = v3.tensors()
    for new, name in (("lm_head", "lm_head"), ("model.language_model.embed_tokens", "model.embed_tokens")):
        mean = old[f"{name}.weight"][: len(v3.tokenizer)].mean(0)
        torch.testing.assert_close(
            found[f"{new}.weight"][[image, video]], torch.stack([mean, mean]), atol=1e-4, rtol=0.02
        )
    embeddings = found["model.language_model.embed_tokens.weight"]
    assert not torch.equal(embeddings[image], embeddings[video])


@pytest.mark.parametrize(
    ("had", "note"),
    [
        ([], "Added `<image>` with the id 396 and `<video>` with the id 397, embedded at the mean of the 396 tokens"),
        (["<image>"], "Added `<video>` with the id 397, embedded at the mean of the 397 tokens before."),
        (["<image>", "<video>"], None),
    ],
    ids=["none", "one", "both"],
)
def test_placeholders_that_the_tokenizer_had_stay_and_are_not_reported_as_new(tmp_path, had, note):
    original = OriginalValley()
    original.tokenizer.add_tokens(had, special_tokens=True)
    report = convert(original.save(tmp_path / "old"), tmp_path / "new")
    assert [text[: len(note)] for text in report.notes if "Added" in text] == ([note] if note else [])
    found = load_file(tmp_path / "new/model.safetensors")["model.language_model.embed_tokens.weight"]
    rows = len(original.tokenizer)
    assert torch.equal(found[:rows], original.tensors()["model.embed_tokens.weight"][:rows])


def test_embeddings_grow_where_there_are_no_spare_rows(tmp_path):
    original = OriginalValley(rows=len(old_tokenizer()))
    convert(original.save(tmp_path / "old"), tmp_path / "new")
    assert assert_same(tmp_path / "new", original).config.text_config.vocab_size == len(original.tokenizer) + 2


def test_large_weights_are_split(v3, tmp_path):
    report = convert(v3.save(tmp_path / "old", "sharded bin"), tmp_path / "new", max_shard_size="300KB")
    files = sorted((tmp_path / "new").glob("*.safetensors"))
    assert report.num_files == len(files) > 3
    with safe_open(files[0], framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    index = json.loads((tmp_path / "new/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == report.num_bytes
    assert set(index["weight_map"].values()) == {file.name for file in files}
    assert len(index["weight_map"]) == report.num_tensors
    assert_same(tmp_path / "new", v3)


def test_the_report_says_what_was_ignored_inferred_and_dropped(converted):
    text = str(converted[1])
    assert re.search(r"^Note: Left out \d+ tensors, an unused copy.*, such as model\.transforemr_adding_", text, re.M)
    assert re.search(r"^Note: Left out 18 tensors, after the vision layer that is read, such as ", text, re.M)
    assert "inferred from its tensors: layers=3, heads=1, patches of 14 in 28 pixels, quick_gelu" in text
    assert "Left out 2 tensors, computed from the config, such as " in text
    assert text.startswith(f"{converted[0]}: Valley v3 ") and "Warning" not in text
    assert text.endswith(f'pipeline("video-text-to-text", model="{converted[0]}")')


def test_v3_wins_over_v2(v3, tmp_path):
    original = OriginalValley("transformer")
    original.config["use_patch_importance_pooling"] = True
    tensors = original.tensors() | {
        "model.pooling_layer.weight": torch.zeros(1, 4 * 64),
        "model.pooling_layer.bias": torch.zeros(1),
    }
    report = convert(original.save(tmp_path / "old", tensors=tensors), tmp_path / "new")
    assert any("model.pooling_layer" in note for note in report.notes)
    assert_same(tmp_path / "new", original)


def test_model_card(converted):
    card = (converted[0] / "README.md").read_text()
    for words in (
        "arxiv.org/abs/2306.07207",
        "converted from `old`",
        "research",
        "Apache-2.0",
        "Valley-702k",
        "inferred",
    ):
        assert words in card
    assert ".incomplete" not in card


# --- The prompt ------------------------------------------------------------------------------------------------------


def test_the_prompt_is_that_of_the_original(converted):
    processor = AutoProcessor.from_pretrained(converted[0])
    user = {"role": "user", "content": [{"type": "video", "path": "a.mp4"}, {"type": "text", "text": "What?"}]}
    chat = [{"role": "system", "content": "Be brief."}, user]
    prompt = "Be brief.\n\n### Human: <video>\nWhat? \n###"
    assert processor.apply_chat_template(chat) == prompt
    assert processor.apply_chat_template(chat, add_generation_prompt=True) == prompt + " Assistant:"
    assert processor.apply_chat_template([user]) == prompt.replace("Be brief.", SYSTEM_MESSAGE)
    chat += [{"role": "assistant", "content": "A dog."}, {"role": "user", "content": "And then?"}]
    assert processor.apply_chat_template(chat) == prompt + " Assistant: A dog. \n### Human: And then? \n###"
    with pytest.raises(Exception, match="not tool"):
        processor.apply_chat_template([{"role": "tool", "content": "x"}])


def test_the_answer_and_its_stop_are_what_is_trained(converted):
    tokenizer = AutoTokenizer.from_pretrained(converted[0])
    chat = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A dog."}]
    encoded = tokenizer.apply_chat_template(chat, return_assistant_tokens_mask=True, return_dict=True)
    answer = [index for index, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(answer) == " A dog. \n###"


@pytest.mark.parametrize("written", [" A dog.\n###", " A dog. \n####", " A dog.</s>", " A dog."])
@pytest.mark.parametrize("full", [True, False])
def test_the_pipeline_answers_without_the_stop(converted, monkeypatch, written, full):
    pipe = pipeline("video-text-to-text", model=str(converted[0]))
    answer = pipe.tokenizer(written, add_special_tokens=False, return_tensors="pt").input_ids
    monkeypatch.setattr(
        type(pipe.model), "generate", lambda self, input_ids, **kwargs: torch.cat([input_ids, answer], dim=1)
    )
    (found,) = pipe(text="What happens?", return_full_text=full)
    assert (found["generated_text"][-1]["content"] if full else found["generated_text"]) == "A dog."


def test_it_stops_at_the_string(converted, monkeypatch):
    model, tokenizer = load(converted[0]), AutoTokenizer.from_pretrained(converted[0])
    stop = tokenizer("###", add_special_tokens=False).input_ids
    weight = torch.zeros_like(model.lm_head.weight)
    model.lm_head.weight.data = weight
    model.lm_head.bias = nn.Parameter(torch.zeros(len(weight)).scatter_(0, torch.tensor(stop[:1]), 1.0))
    prompt = tokenizer("What?", return_tensors="pt")
    assert tokenizer.decode(model.generate(**prompt)[0, prompt.input_ids.shape[1] :]).startswith("###")
    assert model.generate(**prompt).shape[1] <= prompt.input_ids.shape[1] + 3


# --- The vision tower ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole_clip", [True, False], ids=["CLIPModel", "CLIPVisionModel"])
def test_a_tower_that_is_not_stored_is_taken_from_where_the_config_says(tmp_path, whole_clip):
    original = OriginalValley(vision_size=128)
    tower = tmp_path / "tower"
    if whole_clip:
        tower.mkdir()
        config = CLIPConfig(vision_config=original.tower.config.to_dict(), text_config={"num_hidden_layers": 1})
        config.save_pretrained(tower)
        tensors = {f"vision_model.{name}": tensor for name, tensor in original.tower.state_dict().items()}
        others = {"text_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(2), "logit_scale": torch.zeros(1)}
        write(tower, "bin", tensors | others)
    else:
        original.tower.save_pretrained(tower)
    original.config["mm_vision_tower"] = str(tower)
    tensors = {name: t for name, t in original.tensors().items() if "vision_tower" not in name}
    report = convert(original.save(tmp_path / "old", tensors=tensors), tmp_path / "new")
    assert f"The vision tower is not stored and was taken from {tower.name}." in report.notes
    assert not any("inferred" in note for note in report.notes)
    assert_same(tmp_path / "new", original)


def test_a_tower_that_cannot_be_had_is_named(v1, tmp_path):
    tensors = {name: t for name, t in v1.tensors().items() if "vision_tower" not in name}
    message = refused(v1.save(tmp_path / "old", tensors=tensors), tmp_path / "new")
    assert "holds no vision tower" in message and "nowhere/clip-vit-tiny" in message and "mm_vision_tower" in message


def test_the_config_of_the_named_tower_is_taken(tmp_path):
    original = OriginalValley()
    heads = CLIPVisionConfig(**original.tower.config.to_dict() | {"num_attention_heads": 4, "hidden_act": "gelu"})
    heads.save_pretrained(tmp_path / "tower")
    original.config["mm_vision_tower"] = str(tmp_path / "tower")
    convert(original.save(tmp_path / "old"), tmp_path / "new")
    vision = AutoConfig.from_pretrained(tmp_path / "new").vision_config
    assert (vision.num_attention_heads, vision.hidden_act) == (4, "gelu")


def test_a_tower_config_that_contradicts_the_tensors_is_refused(tmp_path):
    original = OriginalValley()
    CLIPVisionConfig(**original.tower.config.to_dict() | {"intermediate_size": 96}).save_pretrained(tmp_path / "tower")
    original.config["mm_vision_tower"] = str(tmp_path / "tower")
    message = refused(original.save(tmp_path / "old"), tmp_path / "new")
    assert "encoder.layers.0.mlp.fc1.weight (80, 64) instead of (96, 64)" in message
    edit_json(tmp_path / "tower/config.json", num_hidden_layers=2)
    message = refused(tmp_path / "old", tmp_path / "new")
    assert f"has 3 layers, and the config of '{tmp_path / 'tower'}' says 2" in message


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "other", "auto_map": {"AutoConfig": "code.Config"}},
        {"model_type": "clip_vision_model", "hidden_size": "wide"},
    ],
    ids=["code", "senseless"],
)
def test_a_tower_config_that_is_of_no_use_is_inferred_and_runs_no_code(v1, tmp_path, monkeypatch, config):
    (tmp_path / "tower").mkdir()
    edit_json(tmp_path / "tower/config.json", **config)
    (tmp_path / "tower/code.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')\nclass Config: pass\n")
    monkeypatch.setattr("builtins.input", lambda *args: "y")
    source = v1.save(tmp_path / "old")
    edit_json(source / "config.json", mm_vision_tower=str(tmp_path / "tower"))
    report = convert(source, tmp_path / "new")
    assert any("'tower' could not be read and was inferred" in note for note in report.notes)
    assert not (tmp_path / "was_run").exists()


def test_a_tower_without_a_name_is_not_looked_up(v1, tmp_path, monkeypatch):
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *args, **kwargs: pytest.fail(str(args)))
    source = v1.save(tmp_path / "old")
    edit_json(source / "config.json", mm_vision_tower=None)
    report = convert(source, tmp_path / "new")
    assert any("tower is not named (mm_vision_tower) and was inferred" in note for note in report.notes)


def test_a_tower_that_is_no_name_is_told(v1, tmp_path):
    source = v1.save(tmp_path / "old", tensors={n: t for n, t in v1.tensors().items() if "vision_tower" not in n})
    edit_json(source / "config.json", mm_vision_tower=5)
    assert "'5' is neither a folder nor" in refused(source, tmp_path / "new")


# --- What is refused -------------------------------------------------------------------------------------------------


def test_missing_extra_and_misshapen_tensors_are_told_at_once(v3, tmp_path):
    tensors = v3.tensors()
    del tensors["model.mm_projector.bias"], tensors["model.transformer_delta_encoder.layers.0.norm1.bias"]
    del tensors["model.vision_tower.vision_model.encoder.layers.1.mlp.fc2.bias"]
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 64)
    tensors["model.surprise.weight"] = torch.zeros(3)
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(96, 64, dtype=torch.int8)
    message = refused(v3.save(tmp_path / "old", tensors=tensors), tmp_path / "new")
    for words in (
        "Tensors missing (3): ",
        "model.mm_projector.bias (64,)",
        "model.transformer_delta_encoder.layers.0.norm1.bias (64,)",
        "model.vision_tower.vision_model.encoder.layers.1.mlp.fc2.bias (64,)",
        "model.surprise.weight",
        "model.layers.0.mlp.up_proj.weight (3, 64) instead of (96, 64)",
        "Tensors without floating point numbers (1): model.layers.1.mlp.up_proj.weight",
    ):
        assert words in message


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architectures": ["ValleyQwen2ForCausalLM"], "model_type": "valley"}, "Valley2 or Valley3"),
        ({"architectures": None, "model_type": "valley_omni"}, "Valley2 or Valley3"),
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "A plain LLaMA can be the base"),
        ({"architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava"}, "LlavaLlamaForCausalLM"),
        ({"architectures": ["ValleyForConditionalGeneration"], "text_config": {}}, "already native"),
    ],
)
def test_other_checkpoints_are_refused_by_name(v1, tmp_path, config, words):
    v1.save(tmp_path / "old")
    (tmp_path / "old/config.json").write_text(json.dumps(v1.config | config))
    assert words in refused(tmp_path / "old", tmp_path / "new")


def test_a_converted_checkpoint_is_native(converted, tmp_path):
    assert "already native" in refused(converted[0], tmp_path / "new")


def test_sources_that_are_no_checkpoint(tmp_path):
    assert "'nowhere/valley' is neither a folder nor" in refused("nowhere/valley", tmp_path / "new")
    (tmp_path / "file.bin").touch()
    assert "file.bin' is neither a folder nor" in refused(tmp_path / "file.bin", tmp_path / "new")
    (tmp_path / "empty").mkdir()
    assert "empty/config.json': [Errno 2] No such file" in refused(tmp_path / "empty", tmp_path / "new")


def test_a_checkpoint_without_weights_is_refused(v1, tmp_path):
    v1.save(tmp_path / "old")
    (tmp_path / "old/model.safetensors").unlink()
    assert "do not make a Valley: no model.embed_tokens.weight" in refused(tmp_path / "old", tmp_path / "new")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"num_attention_heads": 0}, "has an invalid value: "),
        ({"hidden_size": "wide"}, "has an invalid value: "),
        ({"hidden_act": "nope"}, "has an invalid value: "),
        ({"rope_scaling": {"type": "nope", "factor": 2.0}}, "has an invalid value: "),
        ({"num_hidden_layers": 1_000_000}, "has 2 layers, and its config.json says num_hidden_layers=1000000"),
        ({"architectures": 5, "model_type": 5}, "is not a checkpoint of the original Valley repository"),
        ({"architectures": [None, "Valley5"], "model_type": 5}, "Valley2 or Valley3"),
    ],
    ids=str,
)
def test_senseless_values_in_the_config_are_told(v1, tmp_path, config, words):
    source = v1.save(tmp_path / "old")
    edit_json(source / "config.json", **config)
    assert words in refused(source, tmp_path / "new")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.embed_tokens.weight", "do not make a Valley: no model.embed_tokens.weight"),
        (
            "model.vision_tower.vision_model.embeddings.position_embedding.weight",
            "is not a CLIP: a tensor is missing or misshapen",
        ),
        ("model.position_matrix", "Tensors not known (1): model.position_matrix."),
        ("model.transformer_delta_encoder.layers.0.linear1.weight", "linear1.weight () instead of (2048, 64)"),
    ],
)
def test_a_tensor_without_dimensions_is_told(v3, tmp_path, name, words):
    source = v3.save(tmp_path / "old", tensors=v3.tensors() | {name: torch.zeros(())})
    assert words in refused(source, tmp_path / "new")


def test_a_destination_that_exists_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new/notes.txt").touch()
    assert "it exists already" in refused("nowhere/valley", tmp_path / "new")
    assert "it exists already" in refused("nowhere/valley", tmp_path / "new/notes.txt")


def test_an_empty_destination_is_filled_and_parents_are_made(v1, tmp_path):
    (tmp_path / "empty").mkdir()
    source = v1.save(tmp_path / "old")
    convert(source, tmp_path / "empty")
    convert(source, tmp_path / "a/b/new")
    assert (tmp_path / "empty/config.json").exists()
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["new"]
    assert (tmp_path / "a/b/new").stat().st_mode == (tmp_path / "a").stat().st_mode
    assert len({path.stat().st_mode for path in (tmp_path / "a/b/new").iterdir()}) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("broken")], ids=repr)
def test_nothing_is_left_after_a_failure(v1, tmp_path, monkeypatch, error):
    source = v1.save(tmp_path / "old")

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(convert_valley_weights, "write_model_card", fail)
    refused(source, tmp_path / "new", error=type(error))
    with pytest.raises(type(error)):
        convert(source, tmp_path / "a/b/new")
    assert not (tmp_path / "a").exists()


# --- The Hub ---------------------------------------------------------------------------------------------------------


def test_it_is_downloaded_and_uploaded(v1, tmp_path, monkeypatch):
    v1.save(tmp_path / "old", "bin")
    asked = []

    def download(repo_id, allow_patterns):
        asked.append((repo_id, allow_patterns))
        return str(tmp_path / "old")

    uploads = []
    monkeypatch.setattr(original_weights, "snapshot_download", download)
    monkeypatch.setattr(convert_valley_weights, "create_repo", lambda repo_id, exist_ok: f"https://hub/{repo_id}")
    monkeypatch.setattr(convert_valley_weights, "upload_folder", lambda **kwargs: uploads.append(kwargs))
    report = convert("luoruipu1/some-valley", tmp_path / "new", push_to_hub="me/valley")
    assert {repo_id for repo_id, _ in asked} == {"luoruipu1/some-valley"} and "*.safetensors" in asked[0][1]
    assert "non_lora_trainables.bin" in asked[0][1]
    assert uploads == [{"repo_id": "me/valley", "folder_path": tmp_path / "new"}]
    assert report.notes[-1] == "Uploaded to https://hub/me/valley."
    card = (tmp_path / "new/README.md").read_text()
    assert "huggingface.co/luoruipu1/some-valley" in card and 'model="me/valley"' in card


def test_an_upload_that_fails_leaves_the_result(v1, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("401 Unauthorized")

    monkeypatch.setattr(convert_valley_weights, "create_repo", fail)
    with pytest.raises(OSError, match="is complete, but was not uploaded to 'me/valley': 401 Unauthorized"):
        convert(v1.save(tmp_path / "old"), tmp_path / "new", push_to_hub="me/valley")
    assert_same(tmp_path / "new", v1)


def test_a_wrong_name_on_the_hub_is_refused_first(tmp_path):
    assert "me/too/long" in refused("nowhere/valley", tmp_path / "new", push_to_hub="me/too/long")


# --- The command -----------------------------------------------------------------------------------------------------


def valley(*words: str):
    return CliRunner().invoke(app, ["convert", *map(str, words)])


def test_the_command_prints_what_was_done(v1, tmp_path):
    base = save_base(v1, tmp_path / "llama", 350)
    source = v1.save(tmp_path / "old", tensors=minus(v1.tensors(), base))
    result = valley(source, tmp_path / "new", "--base", tmp_path / "llama", "--dtype", "bfloat16")
    assert result.exit_code == 0
    first, *notes, _, last = result.stdout.splitlines()
    assert first.startswith(f"{tmp_path / 'new'}: Valley v1 ") and "60 tensors in bfloat16, 0.4 MB in 1 file" in first
    assert "Note: The weights of llama were added to 21 tensors." in notes
    assert last.startswith("Use it: ")
    assert load(tmp_path / "new").dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["missing", "no sentencepiece"])
def test_errors_of_the_command_are_one_line(v1, tmp_path, monkeypatch, kind):
    v1.save(tmp_path / "old")
    if kind == "missing":
        write(tmp_path / "old", "safetensors", {"model.norm.weight": torch.zeros(3)})
    else:
        (tmp_path / "old/tokenizer.json").rename(tmp_path / "old/tokenizer.model")
        monkeypatch.setitem(sys.modules, "sentencepiece", None)
    result = valley(tmp_path / "old", tmp_path / "new")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert result.stderr.startswith("Error: The ")


def test_usage_of_the_command(tmp_path):
    assert valley(tmp_path).exit_code == 2
    assert valley(tmp_path, tmp_path / "new", "--dtype", "int8").exit_code == 2


def test_a_flat_config_names_the_command(v1, tmp_path):
    with pytest.raises(ValueError, match="`valley convert SRC DST`"):
        AutoConfig.from_pretrained(v1.save(tmp_path / "old"))
