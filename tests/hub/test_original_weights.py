# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Files of all forms are read without running code; deltas and adapters give the weights that they stand for."""

import pickle
import sys
from pathlib import Path

import pytest
import torch
from original_valley import FORMS, assert_same, edit_json, minus, refused, save_adapter, save_base, write
from safetensors.torch import load_file, save_file
from torch import nn

from transformers_valley.hub.convert_valley_weights import convert


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


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_is_cut_off_is_named(v1, tmp_path, form):
    source = v1.save(tmp_path / "old", form)
    path = max(source.glob("*.bin" if form.endswith("bin") else "*.safetensors"))
    path.write_bytes(path.read_bytes()[:-2000])
    message = refused(source, tmp_path / "new")
    assert f"Cannot read '{path}'" in message and "\n" not in message


@pytest.fixture
def bare(v1, tmp_path):
    """A checkpoint of which only the config is there."""
    (tmp_path / "old").mkdir()
    edit_json(tmp_path / "old/config.json", **v1.config)
    return tmp_path / "old"


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (POINTER, "a git-lfs pointer. Run: git lfs pull"),
        (b"<html>", "corrupt"),
        (b"", "corrupt"),
        (b"PK\x03", "corrupt"),
    ],
    ids=["git-lfs", "html", "empty", "cut zip"],
)
@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_files_that_hold_no_weights_are_named(bare, tmp_path, file, content, reason):
    (bare / file).write_bytes(content)
    assert f"Cannot read '{bare / file}': it is {reason}" in refused(bare, tmp_path / "new")


def test_a_pickle_of_other_things_than_tensors_is_refused(bare, tmp_path):
    torch.save({"state_dict": {"model.norm.weight": torch.zeros(2)}}, bare / "pytorch_model.bin")
    assert "it is not a state dict" in refused(bare, tmp_path / "new")


def test_a_tensor_that_is_stored_twice_is_refused(v1, tmp_path):
    source = v1.save(tmp_path / "old", "sharded safetensors")
    first = load_file(source / "model-00001-of-00003.safetensors")
    save_file(first | {"lm_head.weight": torch.zeros(2)}, source / "model-00001-of-00003.safetensors")
    save_file({"lm_head.weight": torch.zeros(2)}, source / "model-00002-of-00003.safetensors")
    assert "holds tensors that another file in its folder also holds: lm_head.weight." in refused(
        source, tmp_path / "new"
    )

    name = "embeddings.class_embedding"
    tensors = v1.tensors() | {f"model.vision_tower.{name}": torch.zeros(64)}
    message = refused(v1.save(tmp_path / "other", tensors=tensors), tmp_path / "new")
    assert f"The tensor model.vision_tower.vision_model.{name} is stored under two names" in message


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
    assert f"Cannot read '{path}': it is corrupt, or holds more than tensors" in message
    assert not Path("was_run").exists()


# --- Deltas ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["safetensors", "sharded bin"])
def test_a_delta_is_added_to_its_base(v3, tmp_path, form):
    base = save_base(v3, tmp_path / "llama", 350, form)
    source = v3.save(tmp_path / "old", form, tensors=minus(v3.tensors(), base))
    before = {path: path.read_bytes() for folder in ("old", "llama") for path in (tmp_path / folder).iterdir()}
    convert(source, tmp_path / "new", tmp_path / "llama", max_shard_size="300KB")
    assert_same(tmp_path / "new", v3)
    assert before == {path: path.read_bytes() for path in before}  # the originals are only read


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
    assert "model.layers.1.mlp.up_proj.weight: (96, 64) in the delta, missing in the base" in message
    assert (
        "model.layers.0.mlp.down_proj.weight: (64, 96) in the delta, (64, 90) in torch.float32 in the base" in message
    )
    assert "lm_head.weight: (401, 64) in the delta, (999, 64) in" in message
    assert "model.norm.weight: (64,) in the delta, (64,) in torch.int8 in the base" in message
    assert "model.embed_tokens.weight: (401, 64) in the delta, () in" in message


def test_weights_that_contradict_the_base_are_told(v1, tmp_path):
    tensors = v1.tensors() | {"model.norm.weight": torch.full((64,), 0.01)}
    report = convert(v1.save(tmp_path / "delta", tensors=tensors), tmp_path / "new")
    assert len(report.warnings) == 1 and "look like a delta (model.norm.weight is 0.01" in report.warnings[0]
    save_base(v1, tmp_path / "llama", 350)
    report = convert(v1.save(tmp_path / "whole"), tmp_path / "sum", tmp_path / "llama")
    assert len(report.warnings) == 1 and "look whole (model.norm.weight is 1 " in report.warnings[0]


# --- Adapters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.v_proj": 3, "linear1": 5}},
        {"modules_to_save": ["mm_projector"]},
        {"use_dora": True},
        {"bias": "lora_only"},
        {"target_modules": r"model\.layers\.\d+\.self_attn\.(q_proj|v_proj)", "task_type": "CAUSAL_LM"},
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
    "setting", [{"peft_type": "LOHA"}, {"peft_type": None}, {"lora_alpha": "8"}, {"alpha_pattern": {"(": 3}}], ids=str
)
def test_an_adapter_that_peft_cannot_merge_is_named(v3, tmp_path, setting):
    v3.save(tmp_path / "old")
    save_adapter(v3, tmp_path / "lora", str(tmp_path / "old"))
    edit_json(tmp_path / "lora/adapter_config.json", **setting)
    assert f"The adapter in '{tmp_path / 'lora'}' cannot be merged" in refused(tmp_path / "lora", tmp_path / "new")


def test_an_adapter_that_does_not_name_its_checkpoint_is_told(v3, tmp_path):
    save_adapter(v3, tmp_path / "lora")
    assert "does not name its checkpoint" in refused(tmp_path / "lora", tmp_path / "new")


def test_the_package_that_merges_adapters_is_named(v3, tmp_path, monkeypatch):
    save_adapter(v3, tmp_path / "lora", str(v3.save(tmp_path / "old")))
    monkeypatch.setitem(sys.modules, "peft", None)
    assert "transformers-valley[convert]" in refused(tmp_path / "lora", tmp_path / "new", error=ImportError)


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


def test_other_weights_beside_an_adapter_are_refused(v3, tmp_path):
    v3.save(tmp_path / "old")
    save_adapter(v3, tmp_path / "lora", str(tmp_path / "old"))
    (tmp_path / "lora/mm_projector.bin").touch()
    assert "files beside the adapter that are not read: mm_projector.bin." in refused(
        tmp_path / "lora", tmp_path / "new"
    )


def test_an_adapter_that_hits_nothing_is_refused(v3, tmp_path):
    save_adapter(v3, tmp_path / "lora", str(tmp_path / "old"))
    v3.save(tmp_path / "old")
    tensors = load_file(tmp_path / "lora/adapter_model.safetensors")
    misplaced = "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"
    write(tmp_path / "lora", "safetensors", tensors | {misplaced: torch.zeros(4, 64)}, "adapter_model")
    words = f"1 of its {len(tensors) + 1} tensors fit no module: {misplaced}"
    assert words in refused(tmp_path / "lora", tmp_path / "new")
    misshapen = "base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight"
    write(tmp_path / "lora", "safetensors", tensors | {misshapen: torch.zeros(4, 60)}, "adapter_model")
    assert "size mismatch for base_model.model.model.layers.0" in refused(tmp_path / "lora", tmp_path / "new")
