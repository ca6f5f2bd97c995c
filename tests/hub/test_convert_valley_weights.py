# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Checkpoints of 2023 become native ones that compute the same; what is wrong with one is said, and nothing written.

`Released` is the model of 2023 after its formulas: a plain LLaMA, a plain CLIP, one linear layer and a pooling, with a
state dict under the old names. The code that is tested has no part in it.
"""

import errno
import json
import os
import pickle
import re
import shutil
import weakref
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from clips import write_clip
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import tiny_tokenizer
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    ChineseCLIPVisionConfig,
    ChineseCLIPVisionModel,
    CLIPConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    pipeline,
)
from typer.testing import CliRunner

from transformers_valley import ValleyConfig, cli
from transformers_valley.hub import convert_valley_weights
from transformers_valley.hub.convert_valley_weights import convert


OLD_TOKENS = ["<im_patch>", "<vi_frame>", "<im_start>", "<im_end>", "<vi_start>", "<vi_end>"]
PADDING_ROWS = 5  # more embeddings than tokens, as some files have
SYSTEM_MESSAGE = (
    "You are Valley, a large language and vision assistant trained by ByteDance. You are able to understand the "
    "visual content or video that the user provides, and assist the user with a variety of tasks using natural "
    "language. Follow the instructions carefully and explain your answers in detail."
)
FORMS = ["safetensors", "sharded safetensors", "bin", "sharded bin", "old bin"]


def old_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.add_tokens(OLD_TOKENS, special_tokens=True)
    return tokenizer


class Released(nn.Module):
    """The model of 2023: `temporal` is mean, importance or transformer."""

    def __init__(
        self,
        temporal: str = "mean",
        image_size: int = 28,
        vision_size: int = 64,
        select_layer: int | None = -2,
        hidden_size: int = 64,
        positions: str = "random",
        vision: type = CLIPVisionModel,
        rows: int | None = None,
    ):
        super().__init__()
        torch.manual_seed(0)
        self.tokenizer = old_tokenizer()
        self.llama = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=rows or len(self.tokenizer) + PADDING_ROWS,
                hidden_size=hidden_size,
                intermediate_size=96,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=4,
                initializer_range=0.2,
            )
        ).eval()
        self.tower = vision(
            vision.config_class(
                hidden_size=vision_size,
                intermediate_size=80,
                num_hidden_layers=3,
                num_attention_heads=vision_size // 64,
                image_size=image_size,
                patch_size=14,
                hidden_act="quick_gelu",
                initializer_range=0.2,
            )
        ).eval()
        self.projector = nn.Linear(vision_size, hidden_size)
        self.temporal, self.image_size = temporal, image_size
        self.select_layer = -1 if select_layer is None else select_layer
        self.num_patches = (image_size // 14) ** 2
        self.config = {
            "architectures": ["ValleyLlamaForCausalLM"],
            "model_type": "valley",
            "_name_or_path": "/mnt/old/checkpoint-100",
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": -1,
            "hidden_act": "silu",
            "hidden_size": hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": 96,
            "max_sequence_length": 2048,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "rms_norm_eps": self.llama.config.rms_norm_eps,
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "transformers_version": "4.28.0",
            "use_cache": True,
            "vocab_size": self.llama.config.vocab_size,
            "temperature": 0.7,
            "top_p": 0.9,
            "mm_vision_tower": "nowhere/clip-vit-tiny",
            "mm_hidden_size": vision_size,
            "use_mm_proj": True,
            "tune_mm_mlp_adapter": False,
        }
        if select_layer is not None:
            self.config["mm_vision_select_layer"] = select_layer
        self.old_names = {
            "model.vision_tower.vision_model.": self.tower,
            "model.mm_projector.": self.projector,
        }
        self.extra: dict[str, torch.Tensor] = {}
        if temporal == "importance":
            self.config["use_patch_importance_pooling"] = True
            self.pooling = nn.Linear(self.num_patches * hidden_size, 1)
            self.old_names["model.pooling_layer."] = self.pooling
        if temporal == "transformer":
            self.config["use_delta_transformer"] = True
            layer = nn.TransformerEncoderLayer(hidden_size, 8, batch_first=True)
            self.pooling = nn.TransformerEncoder(layer, 1).eval()
            self.old_names["model.transformer_delta_encoder."] = self.pooling
            self.old_names["model.transforemr_adding_layer."] = layer
            shape = (2048, hidden_size)
            self.positions = torch.randn(shape) if positions == "random" else torch.zeros(shape)
            self.extra["model.position_matrix"] = self.positions
        self.extra["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.arange(8.0)
        self.extra["model.vision_tower.vision_model.embeddings.position_ids"] = torch.arange(self.num_patches + 1)[
            None
        ]

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors under the names of 2023."""
        named = dict(self.llama.state_dict())
        for prefix, module in self.old_names.items():
            named |= {prefix + name: tensor for name, tensor in module.state_dict().items()}
        return {name: tensor.clone() for name, tensor in (named | self.extra).items()}

    def pool(self, patches: torch.Tensor) -> torch.Tensor:
        """(T, P, D) to (P, D)."""
        if self.temporal == "mean":
            return patches.mean(0)
        if self.temporal == "importance":
            weights = self.pooling(patches.flatten(1)).softmax(0)
            return (weights[:, :, None] * patches).sum(0)
        sequences = patches.transpose(0, 1)
        return self.pooling(sequences + self.positions[: len(patches)])[:, -1] + sequences.mean(1)

    def visual(self, clip: torch.Tensor) -> torch.Tensor:
        """A clip (T, 3, H, W) to (P + T, hidden_size)."""
        hidden = self.tower(clip, output_hidden_states=True).hidden_states[self.select_layer]
        features = self.projector(hidden)
        return torch.cat([self.pool(features[:, 1:]), features[:, 0]])

    def block(self, num_frames: int) -> list[int]:
        """Ids of the visual block of 2023."""
        patch, frame, *ends = self.tokenizer.convert_tokens_to_ids(OLD_TOKENS)
        return [ends[0], *[patch] * self.num_patches, ends[1], ends[2], *[frame] * num_frames, ends[3]]

    @torch.no_grad()
    def logits(self, input_ids: torch.Tensor, clips: list[torch.Tensor]) -> torch.Tensor:
        embeds = self.llama.get_input_embeddings()(input_ids)
        mask = torch.isin(input_ids, torch.tensor(self.tokenizer.convert_tokens_to_ids(OLD_TOKENS[:2])))
        for row, clip in enumerate(clips):
            embeds[row, mask[row]] = self.visual(clip)
        return self.llama(inputs_embeds=embeds).logits

    def prompts(self, lengths: tuple[int, ...] = (3, 3)) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """A batch of prompts of one length and their clips."""
        torch.manual_seed(3)
        clips = [torch.randn(frames, 3, self.image_size, self.image_size) for frames in lengths]
        rows = [
            [
                1,
                *torch.randint(3, 200, (5 + max(lengths) - frames,)).tolist(),
                *self.block(frames),
                *[40 + row, 50, 60],
            ]
            for row, frames in enumerate(lengths)
        ]
        return torch.tensor(rows), clips

    def save(self, folder: Path, form: str = "safetensors", tensors: dict | None = None, dtype=None) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        self.tokenizer.save_pretrained(folder)
        tensors = self.tensors() if tensors is None else tensors
        if dtype is not None:
            tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
        write(folder, form, tensors)
        return folder


def write(folder: Path, form: str, tensors: dict[str, torch.Tensor], stem: str | None = None) -> None:
    suffix = "safetensors" if form.endswith("safetensors") else "bin"
    stem = stem or {"safetensors": "model", "bin": "pytorch_model"}[suffix]
    names = list(tensors)
    files = {f"{stem}.{suffix}": names}
    if form.startswith("sharded"):
        files = {f"{stem}-{i + 1:05d}-of-00003.{suffix}": names[i::3] for i in range(3)}
        index = {"metadata": {}, "weight_map": {name: file for file, held in files.items() for name in held}}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    for file, held in files.items():
        part = {name: tensors[name] for name in held}
        if suffix == "safetensors":
            save_file(part, folder / file, metadata={"format": "pt"})
        else:
            torch.save(part, folder / file, _use_new_zipfile_serialization=form != "old bin")


def native_ids(input_ids: torch.Tensor, released: Released, config: ValleyConfig) -> torch.Tensor:
    """The same prompt with one placeholder at all feature positions."""
    old = torch.tensor(released.tokenizer.convert_tokens_to_ids(OLD_TOKENS[:2]))
    return torch.where(torch.isin(input_ids, old), config.video_token_id, input_ids)


def load(folder: Path):
    return AutoModelForImageTextToText.from_pretrained(folder).eval()


@torch.no_grad()
def native_logits(model, released: Released, input_ids: torch.Tensor, clips: list[torch.Tensor]) -> torch.Tensor:
    """Of the tokens that the released model knows."""
    output = model(
        input_ids=native_ids(input_ids, released, model.config),
        pixel_values_videos=nn.utils.rnn.pad_sequence(clips, batch_first=True),
        video_num_frames=torch.tensor([len(clip) for clip in clips]),
    )
    return output.logits[..., : len(released.tokenizer)]


def assert_same(folder: Path, released: Released, lengths: tuple[int, ...] = (3, 3)):
    model = load(folder)
    input_ids, clips = released.prompts(lengths)
    expected = released.logits(input_ids, clips)[..., : len(released.tokenizer)]
    torch.testing.assert_close(native_logits(model, released, input_ids, clips), expected, atol=1e-4, rtol=1e-4)
    return model


def refused(source, destination: Path, *args, error: type = ValueError, **kwargs) -> str:
    """The error; nothing is left behind."""
    before = sorted(destination.parent.iterdir())
    with pytest.raises(error) as raised:
        convert(source, destination, *args, **kwargs)
    assert sorted(destination.parent.iterdir()) == before
    return str(raised.value)


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))


@pytest.fixture(scope="module")
def v1():
    return Released("mean")


@pytest.fixture(scope="module")
def v3():
    return Released("transformer")


@pytest.fixture(scope="module")
def _converted(v3, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    return folder / "new", convert(v3.save(folder / "old"), folder / "new")


@pytest.fixture
def converted(_converted):
    """A v3 in a new layout, and the report."""
    return _converted


# --- It computes the same ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "released",
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
def test_logits_equal_those_of_2023(released, tmp_path):
    released = Released(**released)
    report = convert(released.save(tmp_path / "old"), tmp_path / "new")
    model = assert_same(tmp_path / "new", released, (1, 4, 3))
    assert (model.config.temporal_module, model.config.temporal_space) == (released.temporal, "text")
    assert report.temporal_module == released.temporal and report.dtype == "float32"


def test_it_generates_what_the_released_model_generates(converted, v3):
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


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_of_files_are_read(v1, tmp_path, form):
    convert(v1.save(tmp_path / "old", form), tmp_path / "new")
    assert_same(tmp_path / "new", v1)


def test_shards_without_an_index_are_read(v1, tmp_path):
    v1.save(tmp_path / "old", "sharded bin")
    (tmp_path / "old/pytorch_model.bin.index.json").unlink()
    convert(tmp_path / "old", tmp_path / "new")
    assert_same(tmp_path / "new", v1)
    (tmp_path / "old/pytorch_model-00003-of-00003.bin").unlink()
    assert "has 2 of 3 files" in refused(tmp_path / "old", tmp_path / "other")


def test_a_chinese_tower_becomes_a_chinese_clip(tmp_path):
    released = Released(vision=ChineseCLIPVisionModel)
    released.config["mm_vision_tower"] = "nowhere/chinese-clip-tiny"
    convert(released.save(tmp_path / "old"), tmp_path / "new")
    assert isinstance(assert_same(tmp_path / "new", released).config.vision_config, ChineseCLIPVisionConfig)


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


def test_mixed_dtypes_become_the_commonest(v1, tmp_path):
    tensors = {n: t.half() if n.startswith(("model.l", "model.e", "lm")) else t for n, t in v1.tensors().items()}
    tensors["lm_head.weight"] = tensors["lm_head.weight"].float()
    report = convert(v1.save(tmp_path / "old", tensors=tensors), tmp_path / "new")
    assert "Tensors are stored as float16, float32; all become float32." in report.notes


# --- What is written -----------------------------------------------------------------------------------------------


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
    released = Released()
    released.config |= {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    convert(released.save(tmp_path / "old"), tmp_path / "new")
    rope = AutoConfig.from_pretrained(tmp_path / "new").text_config.rope_parameters
    assert (rope["rope_theta"], rope["rope_type"], rope["factor"]) == (5e5, "linear", 2.0)


def test_generation_config_is_that_of_2023(converted, v3):
    generation = load(converted[0]).generation_config
    assert (generation.do_sample, generation.max_new_tokens, generation.stop_strings) == (False, 1024, ["###"])
    assert (generation.eos_token_id, generation.pad_token_id) == (2, v3.tokenizer.pad_token_id)


def test_frames_are_prepared_as_in_2023(tmp_path):
    convert(Released(image_size=224).save(tmp_path / "old"), tmp_path / "new")
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
    released = Released()
    released.tokenizer.add_tokens(had, special_tokens=True)
    report = convert(released.save(tmp_path / "old"), tmp_path / "new")
    assert [text[: len(note)] for text in report.notes if "Added" in text] == ([note] if note else [])
    found = load_file(tmp_path / "new/model.safetensors")["model.language_model.embed_tokens.weight"]
    rows = len(released.tokenizer)
    assert torch.equal(found[:rows], released.tensors()["model.embed_tokens.weight"][:rows])


def test_embeddings_grow_where_there_are_no_spare_rows(tmp_path):
    released = Released(rows=len(old_tokenizer()))
    convert(released.save(tmp_path / "old"), tmp_path / "new")
    assert assert_same(tmp_path / "new", released).config.text_config.vocab_size == len(released.tokenizer) + 2


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


@pytest.mark.parametrize("form", ["sharded safetensors", "sharded bin", "old bin"])
def test_no_more_than_a_shard_is_in_memory(v3, tmp_path, form, monkeypatch):
    source = v3.save(tmp_path / "old", form)
    alive: list[weakref.ref] = []

    def save(tensors, *args, **kwargs):
        assert not any(reference() is not None for reference in alive), "tensors of the shard before are still there"
        if len(tensors) > 1:
            assert sum(tensor.nbytes for tensor in tensors.values()) <= 300_000
        alive[:] = [weakref.ref(tensor) for tensor in tensors.values()]
        save_file(tensors, *args, **kwargs)

    monkeypatch.setattr(convert_valley_weights, "save_file", save)
    opened: list[weakref.ref] = []
    load_pickle = torch.load

    def load_one(*args, **kwargs):
        assert not any(reference() is not None for reference in opened), "the file before is still open"
        tensors = load_pickle(*args, **kwargs)
        opened[:] = [weakref.ref(tensor) for tensor in tensors.values()]
        return tensors

    monkeypatch.setattr(torch, "load", load_one)
    convert(source, tmp_path / "new", max_shard_size=300_000)
    assert alive


def test_the_report_says_what_was_ignored_inferred_and_dropped(converted):
    text = str(converted[1])
    assert re.search(r"^Note: Left out \d+ tensors, an unused copy.*: model\.transforemr_adding_layer\.", text, re.M)
    assert re.search(
        r"^Note: Left out 18 tensors, because the vision tower ends at the layer that is read", text, re.M
    )
    assert "inferred from its tensors: layers=3, heads=1 (64 wide), patches of 14 in 28 pixels, quick_gelu" in text
    assert "rotary_emb.inv_freq" in text and "position_ids" in text
    assert text.startswith(f"{converted[0]}: Valley v3 ") and "Warning" not in text
    assert text.endswith(f'pipeline("video-text-to-text", model="{converted[0]}")')


def test_v3_wins_over_v2(v3, tmp_path):
    released = Released("transformer")
    released.config["use_patch_importance_pooling"] = True
    tensors = released.tensors() | {
        "model.pooling_layer.weight": torch.zeros(1, 4 * 64),
        "model.pooling_layer.bias": torch.zeros(1),
    }
    report = convert(released.save(tmp_path / "old", tensors=tensors), tmp_path / "new")
    assert any("model.pooling_layer" in note for note in report.notes)
    assert_same(tmp_path / "new", released)


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


# --- The vision tower ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole_clip", [True, False], ids=["CLIPModel", "CLIPVisionModel"])
def test_a_tower_that_is_not_stored_is_taken_from_where_the_config_says(tmp_path, whole_clip):
    released = Released(vision_size=128)
    tower = tmp_path / "tower"
    if whole_clip:
        tower.mkdir()
        config = CLIPConfig(vision_config=released.tower.config.to_dict(), text_config={"num_hidden_layers": 1})
        config.save_pretrained(tower)
        tensors = {f"vision_model.{name}": tensor for name, tensor in released.tower.state_dict().items()}
        others = {"text_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(2), "logit_scale": torch.zeros(1)}
        write(tower, "bin", tensors | others)
    else:
        released.tower.save_pretrained(tower)
    released.config["mm_vision_tower"] = str(tower)
    tensors = {name: t for name, t in released.tensors().items() if "vision_tower" not in name}
    report = convert(released.save(tmp_path / "old", tensors=tensors), tmp_path / "new")
    assert f"The vision tower is not stored and was taken from {tower.name}." in report.notes
    assert not any("inferred" in note for note in report.notes)
    assert_same(tmp_path / "new", released)


def test_a_tower_that_cannot_be_had_is_named(v1, tmp_path):
    tensors = {name: t for name, t in v1.tensors().items() if "vision_tower" not in name}
    message = refused(v1.save(tmp_path / "old", tensors=tensors), tmp_path / "new")
    assert "holds no vision tower" in message and "nowhere/clip-vit-tiny" in message and "mm_vision_tower" in message


def test_the_config_of_the_named_tower_is_taken(tmp_path):
    released = Released()
    heads = CLIPVisionConfig(**released.tower.config.to_dict() | {"num_attention_heads": 4, "hidden_act": "gelu"})
    heads.save_pretrained(tmp_path / "tower")
    released.config["mm_vision_tower"] = str(tmp_path / "tower")
    convert(released.save(tmp_path / "old"), tmp_path / "new")
    vision = AutoConfig.from_pretrained(tmp_path / "new").vision_config
    assert (vision.num_attention_heads, vision.hidden_act) == (4, "gelu")


def test_a_tower_config_that_contradicts_the_tensors_is_refused(tmp_path):
    released = Released()
    CLIPVisionConfig(**released.tower.config.to_dict() | {"intermediate_size": 96}).save_pretrained(tmp_path / "tower")
    released.config["mm_vision_tower"] = str(tmp_path / "tower")
    message = refused(released.save(tmp_path / "old"), tmp_path / "new")
    assert "intermediate_size=96 in the config and 80 in the tensors" in message and str(tmp_path / "tower") in message


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
    monkeypatch.setattr(convert_valley_weights, "hf_hub_download", lambda *args: pytest.fail(str(args)))
    source = v1.save(tmp_path / "old")
    edit_json(source / "config.json", mm_vision_tower=None)
    report = convert(source, tmp_path / "new")
    assert any("tower is not named (mm_vision_tower) and was inferred" in note for note in report.notes)


# --- Deltas --------------------------------------------------------------------------------------------------------


def save_base(released: Released, folder: Path, rows: int, form: str = "safetensors") -> dict[str, torch.Tensor]:
    """A LLaMA with a smaller vocabulary, saved; gives its tensors."""
    torch.manual_seed(9)
    tensors = {name: torch.randn_like(t) * 0.1 for name, t in released.llama.state_dict().items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:rows].clone()
    folder.mkdir()
    write(folder, form, tensors)
    return tensors


def minus(tensors: dict[str, torch.Tensor], base: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    delta = {name: tensor.clone() for name, tensor in tensors.items()}
    for name, tensor in base.items():
        delta[name][: len(tensor)] -= tensor
    return delta


@pytest.mark.parametrize("form", ["safetensors", "sharded bin"])
def test_a_delta_is_added_to_its_base(v3, tmp_path, form):
    base = save_base(v3, tmp_path / "llama", 350, form)
    source = v3.save(tmp_path / "old", form, tensors=minus(v3.tensors(), base))
    convert(source, tmp_path / "new", tmp_path / "llama", max_shard_size="300KB")
    assert_same(tmp_path / "new", v3)


def test_a_sum_is_rounded_once(v1, tmp_path):
    base = {name: tensor.bfloat16() for name, tensor in save_base(v1, tmp_path / "llama", 350).items()}
    write(tmp_path / "llama", "safetensors", base)
    source = v1.save(tmp_path / "old", dtype=torch.bfloat16)
    convert(source, tmp_path / "new", base=tmp_path / "llama")
    name = "layers.1.mlp.up_proj.weight"
    expected = v1.tensors()[f"model.{name}"].bfloat16().float() + base[f"model.{name}"].float()
    found = load_file(tmp_path / "new/model.safetensors")
    assert torch.equal(found[f"model.language_model.{name}"], expected.bfloat16())


def test_a_base_that_does_not_fit_is_refused_by_name(v1, tmp_path):
    base = save_base(v1, tmp_path / "llama", 350)
    del base["model.layers.1.mlp.up_proj.weight"]
    base["model.layers.0.mlp.down_proj.weight"] = torch.zeros(64, 90)
    base["lm_head.weight"] = torch.zeros(999, 64)
    base["model.norm.weight"] = torch.zeros(64, dtype=torch.int8)
    base["model.embed_tokens.weight"] = torch.zeros(())
    write(tmp_path / "llama", "safetensors", base)
    message = refused(v1.save(tmp_path / "old"), tmp_path / "new", tmp_path / "llama")
    assert "model.layers.1.mlp.up_proj.weight: missing in the base, (96, 64)" in message
    assert "model.layers.0.mlp.down_proj.weight: (64, 90) in the base, (64, 96) in the difference" in message
    assert "lm_head.weight: (999, 64) in the base" in message
    assert "model.norm.weight: I8 in the base" in message
    assert "model.embed_tokens.weight: () in the base" in message


def test_what_looks_like_a_delta_is_told(v1, tmp_path):
    tensors = v1.tensors() | {"model.norm.weight": torch.full((64,), 0.01)}
    report = convert(v1.save(tmp_path / "old", tensors=tensors), tmp_path / "new")
    assert len(report.warnings) == 1 and "--base" in report.warnings[0]


# --- Adapters ------------------------------------------------------------------------------------------------------


def save_adapter(released: Released, folder: Path, base: str | None = None, **lora) -> Released:
    """An adapter by peft itself, trained a bit; gives what peft makes of both."""
    lora = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "linear1"], **lora}
    merged = Released("transformer")
    # The names of 2023 have the tower inside `model`.
    inner = merged.llama.model
    inner.mm_projector, inner.transformer_delta_encoder = merged.projector, merged.pooling
    adapted = get_peft_model(merged.llama, LoraConfig(**lora))
    torch.manual_seed(5)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = base
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    merged.llama = adapted.merge_and_unload()
    merged.projector, merged.pooling = inner.mm_projector, inner.transformer_delta_encoder
    return merged


@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.v_proj": 3, "linear1": 5}},
        {"modules_to_save": ["mm_projector"]},
    ],
    ids=str,
)
def test_an_adapter_is_merged_as_peft_does(v3, tmp_path, lora):
    v3.save(tmp_path / "old")
    merged = save_adapter(v3, tmp_path / "lora", str(tmp_path / "old"), **lora)
    convert(tmp_path / "lora", tmp_path / "new")
    model = assert_same(tmp_path / "new", merged)
    plain = v3.llama.model.layers[0].self_attn.q_proj.weight
    assert not torch.allclose(model.model.language_model.layers[0].self_attn.q_proj.weight, plain)


@pytest.mark.parametrize("where", ["beside", "base"])
def test_an_adapter_finds_its_checkpoint(v3, tmp_path, where):
    merged = save_adapter(v3, tmp_path / "lora", "nowhere/valley")
    v3.save(tmp_path / ("lora" if where == "beside" else "old"))
    convert(tmp_path / "lora", tmp_path / "new", base=None if where == "beside" else tmp_path / "old")
    assert_same(tmp_path / "new", merged)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias='all'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"peft_type": "LOHA"}, "'LOHA'"),
    ],
)
def test_adapters_of_other_kinds_are_refused(v3, tmp_path, setting, words):
    v3.save(tmp_path / "old")
    save_adapter(v3, tmp_path / "lora", str(tmp_path / "old"))
    config = tmp_path / "lora/adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | setting))
    assert words in refused(tmp_path / "lora", tmp_path / "new")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({}, "lora_alpha=None"),
        ({"lora_alpha": "8"}, "lora_alpha='8'"),
        ({"lora_alpha": float("nan")}, "lora_alpha=nan"),
        ({"lora_alpha": 8, "alpha_pattern": 5}, "alpha_pattern=5"),
        ({"lora_alpha": 8, "alpha_pattern": {"(": 3}}, "alpha_pattern={'(': 3}"),
        ({"lora_alpha": 8, "alpha_pattern": {"q_proj": None}}, "alpha_pattern={'q_proj': None}"),
        ({"lora_alpha": 8, "base_model_name_or_path": 5}, "base_model_name_or_path=5"),
    ],
    ids=str,
)
def test_senseless_settings_of_an_adapter_are_told(tmp_path, setting, words):
    (tmp_path / "lora").mkdir()
    edit_json(tmp_path / "lora/adapter_config.json", peft_type="LORA", **setting)
    assert f"has values that make no sense: {words}." in refused(tmp_path / "lora", tmp_path / "new")


@pytest.mark.parametrize("prefix", ["base_model.model.", ""])
def test_what_was_trained_beside_an_adapter_replaces(v3, tmp_path, prefix):
    v3.save(tmp_path / "old")
    merged = save_adapter(v3, tmp_path / "lora", str(tmp_path / "old"))
    nn.init.normal_(merged.projector.weight)
    tensors = {f"{prefix}model.mm_projector.weight": merged.projector.weight.data}
    write(tmp_path / "lora", "bin", tensors, "non_lora_trainables")
    (tmp_path / "lora/training_args.bin").write_bytes(b"left by Trainer")
    convert(tmp_path / "lora", tmp_path / "new")
    assert_same(tmp_path / "new", merged)


@pytest.mark.parametrize("name", ["mm_projector.bin", "model.safetensors"])
def test_other_weights_beside_an_adapter_are_refused(v3, tmp_path, name):
    v3.save(tmp_path / "old")
    save_adapter(v3, tmp_path / "lora", str(tmp_path / "old"))
    (tmp_path / "lora" / name).touch()
    assert f"files beside the adapter that are not read: {name}." in refused(tmp_path / "lora", tmp_path / "new")


def test_an_adapter_that_hits_nothing_is_refused(v3, tmp_path):
    save_adapter(v3, tmp_path / "lora", str(tmp_path / "old"))
    v3.save(tmp_path / "old")
    tensors = load_file(tmp_path / "lora/adapter_model.safetensors")
    tensors["base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"] = torch.zeros(4, 64)
    tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"] = torch.zeros(64)
    tensors["base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight"] = torch.zeros(())
    tensors["base_model.model.model.layers.1.self_attn.v_proj.weight"] = torch.zeros(64, 64)
    write(tmp_path / "lora", "safetensors", tensors, "adapter_model")
    message = refused(tmp_path / "lora", tmp_path / "new")
    assert "model.layers.7.self_attn.q_proj.weight: no such tensor" in message and "lora_magnitude_vector" in message
    assert "model.layers.0.self_attn.v_proj.weight: (64, 64) in the checkpoint, {'A': ()" in message
    assert "model.layers.1.self_attn.v_proj.weight: both changed and replaced" in message


# --- Tokenizer and prompt ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sentencepiece_folder(tmp_path_factory):
    """A tokenizer as it was stored in 2023: a sentencepiece model, and added tokens in a file."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("sentencepiece")
    corpus = [SYSTEM_MESSAGE, "### Human: What happens? \n### Assistant: A red circle moves."] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=350,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    ids = {token: 351 + index for index, token in enumerate(OLD_TOKENS)}
    (folder / "added_tokens.json").write_text(json.dumps({"[PAD]": 350, **ids}))
    special = {"bos_token": {"content": "<s>", "normalized": True}, "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "special_tokens_map.json").write_text(json.dumps({**special, "pad_token": "[PAD]"}))
    return folder


@pytest.fixture(params=["LlamaTokenizer", "LLaMATokenizer", None])
def spoken(request, v1, sentencepiece_folder, tmp_path):
    """A checkpoint with a sentencepiece tokenizer, converted."""
    v1.save(tmp_path / "old")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        (tmp_path / "old" / name).unlink(missing_ok=True)
    shutil.copytree(sentencepiece_folder, tmp_path / "old", dirs_exist_ok=True)
    if request.param:
        settings = {"tokenizer_class": request.param, "model_max_length": 2048, "add_bos_token": True}
        (tmp_path / "old/tokenizer_config.json").write_text(json.dumps(settings))
    convert(tmp_path / "old", tmp_path / "new")
    return tmp_path / "new"


def test_sentencepiece_tokenizers_give_the_pieces_of_2023(spoken, sentencepiece_folder):
    sentencepiece = pytest.importorskip("sentencepiece")
    model = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_folder / "tokenizer.model"))
    tokenizer = AutoTokenizer.from_pretrained(spoken)
    text = "You are\n\n### Human: Hé, <im_start><im_end><vi_start><vi_end> \n### Assistant:"
    expected = [1]
    for part in re.split("(<.*?>)", text):
        expected += [tokenizer.convert_tokens_to_ids(part)] if part.startswith("<") else part and model.encode(part)
    assert tokenizer(text).input_ids == expected
    assert tokenizer.convert_tokens_to_ids(OLD_TOKENS) == list(range(351, 357))


def test_added_tokens_that_would_get_other_ids_are_refused(v1, sentencepiece_folder, tmp_path):
    v1.save(tmp_path / "old")
    (tmp_path / "old/tokenizer.json").unlink()
    shutil.copytree(sentencepiece_folder, tmp_path / "old", dirs_exist_ok=True)
    added = {token: 360 + index for index, token in enumerate(OLD_TOKENS)}
    (tmp_path / "old/added_tokens.json").write_text(json.dumps(added))
    assert "cannot keep their ids" in refused(tmp_path / "old", tmp_path / "new")


def test_a_chat_is_tokenized_as_its_prompt_is(spoken):
    processor = AutoProcessor.from_pretrained(spoken)
    chat = [{"role": "user", "content": "What happens? "}, {"role": "assistant", "content": "A dog."}]
    chat.append({"role": "user", "content": [{"type": "text", "text": "And then?"}]})
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    found = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert found["input_ids"][0] == processor.tokenizer(prompt.removeprefix("<s>")).input_ids
    assert found["input_ids"][0].count(processor.tokenizer.bos_token_id) == 1


def test_what_a_user_spells_becomes_no_token(spoken):
    processor = AutoProcessor.from_pretrained(spoken)
    chat = [{"role": "user", "content": "What does <video> or <vi_end> mean?"}]
    found = processor.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"][0]
    assert not {processor.video_token_id, processor.tokenizer.convert_tokens_to_ids("<vi_end>")} & set(found)


def test_the_prompt_is_that_of_2023(converted):
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


@pytest.mark.parametrize("token", ["<im_start>", "<vi_end>"])
def test_a_tokenizer_without_a_delimiter_is_refused(tmp_path, token):
    released = Released()
    released.tokenizer = tiny_tokenizer()
    released.tokenizer.add_tokens([t for t in OLD_TOKENS if t != token], special_tokens=True)
    assert f"lacks {token}" in refused(released.save(tmp_path / "old"), tmp_path / "new")


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(tmp_path):
    released = Released(rows=len(old_tokenizer()) - 2)
    message = refused(released.save(tmp_path / "old"), tmp_path / "new")
    assert f"ids up to {len(released.tokenizer) - 1} " in message and f"{len(released.tokenizer) - 2} rows" in message


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ((397, 398), "<vi_start> is 397 in '{}' and became 394, <vi_end> is 398 in '{}' and became 395"),
        ((395, 394), "<vi_start> is 395 in '{}' and became 394, <vi_end> is 394 in '{}' and became 395"),
    ],
    ids=["gap", "swapped"],
)
@pytest.mark.parametrize("file", ["tokenizer.json", "added_tokens.json"])
def test_added_tokens_that_are_numbered_anew_are_refused(v1, tmp_path, file, ids, words):
    source = v1.save(tmp_path / "old")
    tokens = dict(zip(OLD_TOKENS[-2:], ids, strict=True))
    if file == "tokenizer.json":
        added = json.loads((source / file).read_text())["added_tokens"]
        edit_json(source / file, added_tokens=[one | {"id": tokens.get(one["content"], one["id"])} for one in added])
    else:
        edit_json(source / file, **tokens)
    message = refused(source, tmp_path / "new")
    assert "cannot keep their ids" in message and words.replace("{}", str(source / file)) in message


@pytest.mark.parametrize(
    ("highest", "words"),
    [
        (398, "ids up to 398 for 396 tokens: <image> and <video> would get ids among these"),
        (450, "ids up to 450 and the weights only 401 rows"),
    ],
)
def test_a_vocabulary_with_gaps_is_refused(v1, tmp_path, highest, words):
    source = v1.save(tmp_path / "old")
    model = json.loads((source / "tokenizer.json").read_text())["model"]
    model["vocab"][max(model["vocab"], key=model["vocab"].get)] = highest
    edit_json(source / "tokenizer.json", model=model)
    assert words in refused(source, tmp_path / "new")


def test_a_missing_tokenizer_is_told(v1, tmp_path):
    v1.save(tmp_path / "old")
    (tmp_path / "old/tokenizer.json").unlink()
    assert "There is no tokenizer in" in refused(tmp_path / "old", tmp_path / "new")


def test_packages_that_read_sentencepiece_are_named(v1, tmp_path, monkeypatch):
    v1.save(tmp_path / "old")
    (tmp_path / "old/tokenizer.json").rename(tmp_path / "old/tokenizer.model")
    monkeypatch.setattr(convert_valley_weights, "_is_installed", lambda module: False)
    message = refused(tmp_path / "old", tmp_path / "new", error=ImportError)
    assert "pip install sentencepiece protobuf" in message


# --- What is refused -----------------------------------------------------------------------------------------------


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
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "is a plain LLaMA"),
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
    assert "is a file" in refused(tmp_path / "file.bin", tmp_path / "new")
    (tmp_path / "empty").mkdir()
    assert "There is no config.json in" in refused(tmp_path / "empty", tmp_path / "new")


def test_a_checkpoint_without_weights_is_refused(v1, tmp_path):
    v1.save(tmp_path / "old")
    (tmp_path / "old/model.safetensors").unlink()
    assert "There are no weights in" in refused(tmp_path / "old", tmp_path / "new")


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_is_cut_off_is_named(v1, tmp_path, form):
    source = v1.save(tmp_path / "old", form)
    path = max(source.glob("*.bin" if form.endswith("bin") else "*.safetensors"))
    path.write_bytes(path.read_bytes()[:-2000])
    message = refused(source, tmp_path / "new")
    assert f"Cannot read '{path}'" in message and "\n" not in message


def test_an_index_that_names_a_missing_file(v1, tmp_path):
    source = v1.save(tmp_path / "old", "sharded safetensors")
    (source / "model-00002-of-00003.safetensors").unlink()
    assert f"'{source / 'model-00002-of-00003.safetensors'}' is missing" in refused(source, tmp_path / "new")


@pytest.fixture
def bare(v1, tmp_path):
    """A checkpoint of which only the config is there."""
    (tmp_path / "old").mkdir()
    edit_json(tmp_path / "old/config.json", **v1.config)
    return tmp_path / "old"


@pytest.mark.parametrize("file", [None, 5, ["a"], "../model.safetensors", "/model.safetensors"], ids=str)
def test_an_index_that_names_no_file_beside_it(bare, tmp_path, file):
    edit_json(bare / "model.safetensors.index.json", weight_map={"model.norm.weight": file})
    assert f"names {file!r} for weights" in refused(bare, tmp_path / "new")


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        (5, torch.zeros(2)),
        ("model.norm.weight", torch.eye(2).to_sparse()),
        ("model.norm.weight", torch.zeros(2, device="meta")),
        ("state_dict", {"model.norm.weight": torch.zeros(2)}),
    ],
    ids=["number", "sparse", "meta", "nested"],
)
def test_a_pickle_of_other_things_than_dense_tensors_is_refused(bare, tmp_path, name, tensor):
    torch.save({name: tensor}, bare / "pytorch_model.bin")
    assert f"{name!r} in it is no name of a dense tensor" in refused(bare, tmp_path / "new")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3\n",
            "a pointer of git-lfs, not the weights",
        ),
        (b"<!DOCTYPE html><html>Sign in</html>", "damaged"),
        (b'{"error": "Not found"}', "damaged"),
        (b"", "damaged"),
        (bytes(300), "damaged"),
        (b"PK\x03", "damaged"),
        (b"\x80\x02\x8a", "damaged"),
    ],
    ids=["git-lfs", "html", "json", "empty", "zeros", "cut zip", "cut pickle"],
)
@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_files_that_hold_no_weights_are_not_called_malicious(bare, tmp_path, file, content, reason):
    (bare / file).write_bytes(content)
    message = refused(bare, tmp_path / "new")
    assert f"Cannot read '{bare / file}': it is {reason}" in message and "holds more" not in message


def test_a_tensor_that_is_stored_twice_is_refused(v1, tmp_path):
    source = v1.save(tmp_path / "old", "sharded safetensors")
    first = load_file(source / "model-00001-of-00003.safetensors")
    save_file(first | {"lm_head.weight": torch.zeros(2)}, source / "model-00001-of-00003.safetensors")
    save_file({"lm_head.weight": torch.zeros(2)}, source / "model-00002-of-00003.safetensors")
    assert "The tensor lm_head.weight is stored twice: " in refused(source, tmp_path / "new")

    name = "embeddings.class_embedding"
    tensors = v1.tensors() | {f"model.vision_tower.{name}": torch.zeros(64)}
    message = refused(v1.save(tmp_path / "other", tensors=tensors), tmp_path / "new")
    assert f"The tensor model.vision_tower.vision_model.{name} is stored twice: " in message
    assert f"model.vision_tower.{name} in " in message


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"num_attention_heads": 0}, "has a value that makes no sense ("),
        ({"hidden_size": "wide"}, "has a value that makes no sense ("),
        ({"hidden_act": "nope"}, "has a value that makes no sense ("),
        ({"rope_scaling": {"type": "nope", "factor": 2.0}}, "has a value that makes no sense ("),
        ({"num_hidden_layers": 1_000_000}, "have 2 layers in the language model, and its config.json says num_hidden"),
        ({"architectures": 5, "model_type": 5}, "is no Valley checkpoint of 2023"),
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
        ("model.embed_tokens.weight", "model.embed_tokens.weight has the shape ()"),
        (
            "model.vision_tower.vision_model.embeddings.position_embedding.weight",
            "is no CLIP: missing or misshapen embeddings.position_embedding.weight ()",
        ),
        ("model.position_matrix", "model.position_matrix () instead of"),
        ("model.transformer_delta_encoder.layers.0.linear1.weight", "linear1.weight () instead of (2048, 64)"),
    ],
)
def test_a_tensor_without_dimensions_is_told(v3, tmp_path, name, words):
    source = v3.save(tmp_path / "old", tensors=v3.tensors() | {name: torch.zeros(())})
    assert words in refused(source, tmp_path / "new")


def test_a_tower_that_is_no_name_is_told(v1, tmp_path):
    source = v1.save(tmp_path / "old", tensors={n: t for n, t in v1.tensors().items() if "vision_tower" not in n})
    edit_json(source / "config.json", mm_vision_tower=5)
    assert "'5' is neither a folder nor" in refused(source, tmp_path / "new")


class _Code:
    def __reduce__(self):
        return (Path.touch, (Path("was_run"),))


@pytest.mark.parametrize("form", ["bin", "old bin", "pickle"])
def test_code_in_a_pickle_is_not_run(v1, tmp_path, form, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = v1.save(tmp_path / "old", "bin")
    path = source / "pytorch_model.bin"
    if form == "pickle":
        path.write_bytes(pickle.dumps({"model.norm.weight": _Code()}))
    else:
        torch.save({"model.norm.weight": _Code()}, path, _use_new_zipfile_serialization=form == "bin")
    message = refused(source, tmp_path / "new")
    assert f"Cannot read '{path}': it holds more than tensors" in message and not Path("was_run").exists()


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


def test_a_destination_that_cannot_be_replaced_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=f"'{tmp_path / 'file'}' is no folder"):
        convert("nowhere/valley", tmp_path / "file/new")
    (tmp_path / "loop").symlink_to("loop")
    assert "it exists already" in refused("nowhere/valley", tmp_path / "loop")
    (tmp_path / "volume").mkdir()
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path) == tmp_path / "volume")
    assert "is a mount point" in refused("nowhere/valley", tmp_path / "volume")


@pytest.mark.parametrize("leads_to", ["empty", "nothing"])
def test_a_link_is_followed(v1, tmp_path, leads_to):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(leads_to)
    convert(v1.save(tmp_path / "old"), tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / leads_to / "model.safetensors").exists()


def test_a_long_name_is_written(v1, tmp_path):
    convert(v1.save(tmp_path / "old"), tmp_path / ("n" * 255))
    assert (tmp_path / ("n" * 255) / "model.safetensors").exists()


@pytest.mark.parametrize("function", ["rename", "rmdir"])
def test_a_finished_result_stays(v1, tmp_path, monkeypatch, function):
    source = v1.save(tmp_path / "old")
    if function == "rename":
        rename = os.rename

        def renamed(*paths):
            rename(*paths)
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "rename", renamed)
        with pytest.raises(KeyboardInterrupt):
            convert(source, tmp_path / "a/new")
        assert [path.name for path in (tmp_path / "a").iterdir()] == ["new"]
    else:
        monkeypatch.setattr(Path, "rmdir", lambda path: os.rmdir("nowhere"))
        convert(source, tmp_path / "a/new")
    assert (tmp_path / "a/new/model.safetensors").exists() and (tmp_path / "a/new/README.md").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("broken")], ids=repr)
def test_nothing_is_left_after_a_failure(v1, tmp_path, monkeypatch, error):
    source = v1.save(tmp_path / "old")

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(convert_valley_weights, "_save_rest", fail)
    refused(source, tmp_path / "new", error=type(error))
    with pytest.raises(type(error)):
        convert(source, tmp_path / "a/b/new")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("save_file", OSError(errno.ENOSPC, "No space left on device")),
        ("save_file", OSError(errno.EDQUOT, "Disk quota exceeded")),
        ("save_file", convert_valley_weights.SafetensorError("I/O error: No space left on device (os error 28)")),
        ("save_file", convert_valley_weights.SafetensorError("I/O error: Disk quota exceeded (os error 122)")),
        ("ValleyProcessor.save_pretrained", OSError(errno.ENOSPC, "No space left on device")),
        ("ValleyProcessor.save_pretrained", Exception("No space left on device (os error 28)")),  # of tokenizers
    ],
    ids=str,
)
def test_a_disk_that_becomes_full(v1, tmp_path, monkeypatch, place, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(f"transformers_valley.hub.convert_valley_weights.{place}", fail)
    message = refused(v1.save(tmp_path / "old"), tmp_path / "new", error=OSError)
    assert re.search(r"\d+ bytes\) are needed .*\d+ bytes\) are free", message)


def test_a_disk_that_is_too_small(v1, tmp_path, monkeypatch):
    source = v1.save(tmp_path / "old")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "total used free")(100, 0, 100))
    monkeypatch.setattr(convert_valley_weights, "save_file", None)
    message = refused(source, tmp_path / "new", error=OSError)
    assert "is too small" in message and "(100 bytes) are free" in message


# --- The Hub -------------------------------------------------------------------------------------------------------


def test_it_is_downloaded_and_uploaded(v1, tmp_path, monkeypatch):
    v1.save(tmp_path / "old", "bin")
    asked = []

    def download(repo_id, allow_patterns):
        asked.append((repo_id, allow_patterns))
        return str(tmp_path / "old")

    uploads = []
    monkeypatch.setattr(convert_valley_weights, "snapshot_download", download)
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


# --- The command ---------------------------------------------------------------------------------------------------


def valley(*words: str):
    return CliRunner().invoke(cli.app, ["convert", *map(str, words)])


def test_the_command_prints_what_was_done(v1, tmp_path):
    base = save_base(v1, tmp_path / "llama", 350)
    source = v1.save(tmp_path / "old", tensors=minus(v1.tensors(), base))
    result = valley(source, tmp_path / "new", "--base", tmp_path / "llama", "--dtype", "bfloat16")
    assert (result.exit_code, result.stderr) == (0, "")
    first, *notes, _, last = result.stdout.splitlines()
    assert first.startswith(f"{tmp_path / 'new'}: Valley v1 ") and "60 tensors in bfloat16, 0.4 MB in 1 file" in first
    assert "Note: The weights of llama were added to 21 tensors of the language model." in notes
    assert last.startswith("Use it: ")
    assert load(tmp_path / "new").dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["missing", "no sentencepiece"])
def test_errors_of_the_command_are_one_line(v1, tmp_path, monkeypatch, kind):
    v1.save(tmp_path / "old")
    if kind == "missing":
        write(tmp_path / "old", "safetensors", {"model.norm.weight": torch.zeros(3)})
    else:
        (tmp_path / "old/tokenizer.json").rename(tmp_path / "old/tokenizer.model")
        monkeypatch.setattr(convert_valley_weights, "_is_installed", lambda module: False)
    result = valley(tmp_path / "old", tmp_path / "new")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert result.stderr.startswith("Error: The ")


def test_usage_of_the_command(tmp_path):
    assert valley(tmp_path).exit_code == 2
    assert valley(tmp_path, tmp_path / "new", "--dtype", "int8").exit_code == 2


def test_a_flat_config_names_the_command(v1, tmp_path):
    with pytest.raises(ValueError, match="`valley convert SRC DST`"):
        AutoConfig.from_pretrained(v1.save(tmp_path / "old"))
