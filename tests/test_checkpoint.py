# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Checkpoints by their name on the Hub, as they lie in its cache. No test reaches the Hub itself."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from typer.testing import CliRunner

from transformers_valley.checkpoint import Checkpoint, check_reachable, find_checkpoint
from transformers_valley.evaluation.models import digest_weights, local
from transformers_valley.vllm_plugin.command import vllm_command
from valley_cli.app import app


COMMITS = {"main": "a" * 40, "v1": "b" * 40}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Puts folders into an empty cache of the Hub: `cache(name, folder, revision)`."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(name: str, folder: str | Path, revision: str = "main") -> Path:
        repository = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / revision).write_text(COMMITS[revision])
        return Path(shutil.copytree(folder, repository / "snapshots" / COMMITS[revision]))

    return put


@pytest.fixture
def adapter(checkpoint, model, processor, tmp_path):
    """(folder of a LoRA adapter of user/base, the model with it)."""
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    wrapped = get_peft_model(model, config)
    wrapped.peft_config["default"].base_model_name_or_path = "user/base"
    wrapped.save_pretrained(tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", wrapped.base_model.model


def same(model, other) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_checkpoint_of_the_hub_is_loaded(checkpoint, model, cache):
    cache("user/base", checkpoint)
    found = find_checkpoint("user/base")
    assert found.name == "user/base" and not found.is_adapter
    assert same(found.load_model(), model)


@pytest.mark.parametrize(("name", "revision"), [("user/lora", "main"), ("user/lora@v1", "v1")])
def test_an_adapter_of_the_hub_is_loaded_with_its_model(checkpoint, adapter, cache, processor, name, revision):
    folder, expected = adapter
    cache("user/base", checkpoint)  # at main, and at no v1
    cache("user/lora", folder, revision)
    found = find_checkpoint(name)
    assert found.name == name and found.is_adapter
    assert same(found.load_model(), expected)
    assert found.load_processor().tokenizer.get_vocab() == processor.tokenizer.get_vocab()


def test_an_adapter_of_the_hub_answers(checkpoint, adapter, cache, clip):
    cache("user/base", checkpoint)
    cache("user/lora", adapter[0])
    words = [["ask", name, clip, "What?", "--max-new-tokens", "6"] for name in ("user/lora", str(adapter[0]))]
    by_name, by_folder = (CliRunner().invoke(app, typed) for typed in words)
    assert by_name.exit_code == 0, by_name.output
    assert by_name.stdout == by_folder.stdout


def test_an_adapter_of_the_hub_is_evaluated_in_a_folder(checkpoint, adapter, cache):
    cache("user/base", checkpoint)
    snapshot = cache("user/lora", adapter[0], "v1")
    found = local(find_checkpoint("user/lora@v1"))
    assert Path(found.path) == snapshot and found.is_adapter
    assert digest_weights(found.path) == digest_weights(adapter[0]) != digest_weights(checkpoint)
    assert same(found.load_model(), adapter[1])


def test_an_adapter_of_the_hub_is_not_for_vllm(checkpoint, adapter, cache):
    cache("user/base", checkpoint)
    cache("user/lora", adapter[0])
    with pytest.raises(ValueError, match="'user/lora' is an adapter. Merge it"):
        vllm_command(find_checkpoint("user/lora"))


def test_an_adapter_whose_model_is_not_there_says_so(adapter, cache):
    cache("user/lora", adapter[0])
    with pytest.raises(OSError, match="it is an adapter of 'user/base', which cannot be loaded"):
        find_checkpoint("user/lora")


def test_an_adapter_of_another_model_says_so(adapter, cache, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    cache("user/base", tmp_path / "other")
    cache("user/lora", adapter[0])
    with pytest.raises(ValueError, match="'user/lora' is not a Valley checkpoint but one of 'llama'"):
        find_checkpoint("user/lora")


def test_what_is_in_the_cache_can_be_reached_without_a_network(adapter, cache, no_network):
    cache("user/lora", adapter[0], "v1")
    check_reachable("user/lora", "v1")
    with pytest.raises(OSError, match="Cannot load 'user/lora': .* the Hub cannot be reached"):
        check_reachable("user/lora")


def test_a_model_beside_an_adapter_is_whole(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "both")
    (folder / "adapter_config.json").write_text("{}")
    assert not Checkpoint(str(folder)).is_adapter
