# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""`valley serve` with vLLM: which engine, and its command line."""

import importlib.util
import json
import os
import shutil

import pytest
import torch
from typer.testing import CliRunner

from transformers_valley.checkpoint import find_checkpoint
from transformers_valley.vllm_plugin import command
from transformers_valley.vllm_plugin.requests import HOSTS_VARIABLE, STOP_VARIABLE
from valley_cli.app import app


def options_of(words):
    pairs = zip(words, [*words[1:], ""], strict=True)
    return {name: "" if value.startswith("--") else value for name, value in pairs if name.startswith("--")}


def test_options_are_translated(checkpoint, tmp_path):
    words, environment = command.vllm_command(
        find_checkpoint(checkpoint),
        host="0.0.0.0",
        port=81,
        folders=[tmp_path],
        max_batch=16,
        api_key="secret",
        quantization="bnb-4bit",
        more=["--max-model-len", "99"],
    )
    assert words[3:5] == ["serve", checkpoint] and words[-2:] == ["--max-model-len", "99"]
    options = options_of(words)
    assert options.items() >= {
        ("--host", "0.0.0.0"),
        ("--port", "81"),
        ("--max-num-seqs", "16"),
        ("--allowed-local-media-path", str(tmp_path)),
        ("--served-model-name", os.path.basename(checkpoint)),
        ("--dtype", "float32"),  # vLLM's own auto would make it smaller
        ("--quantization", "bitsandbytes"),
        ("--override-generation-config", '{"temperature": 0}'),
        ("--trust-request-mm-kwargs", ""),
    }
    assert "secret" not in words and environment["VLLM_API_KEY"] == "secret"


def test_what_the_checkpoint_says_of_answers_is_kept(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "do_sample": True, "stop_strings": ["###"]}))
    words, environment = command.vllm_command(find_checkpoint(str(folder)))
    assert "--override-generation-config" not in words
    assert environment[STOP_VARIABLE] == '["###"]'
    assert environment["VLLM_MAX_STOP_STRINGS"] == "5"  # a request still has its four
    path.write_text(json.dumps({**settings, "num_beams": 4}))
    with pytest.raises(ValueError, match="num_beams=4 of the checkpoint"):
        command.vllm_command(find_checkpoint(str(folder)))


def test_what_listens_at_loopback_is_called_by_no_other_name(checkpoint):
    """A web page can reach it under a name of its own."""

    def hosts(**options):
        _, environment = command.vllm_command(find_checkpoint(checkpoint), **options)
        return json.loads(environment[HOSTS_VARIABLE])

    assert "example.org" in hosts(allowed_hosts=["example.org"], host="0.0.0.0")
    assert hosts()[:2] == ["localhost", "127.0.0.1"] and hosts(host="0.0.0.0") == []


@pytest.mark.parametrize("key", ["", " "])
def test_an_empty_key_is_refused(checkpoint, key):
    """vLLM takes it as none, and its server is open."""
    with pytest.raises(ValueError, match="--api-key is empty: leave it out"):
        command.vllm_command(find_checkpoint(checkpoint), api_key=key)


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"device": "cuda:1"}, "CUDA_VISIBLE_DEVICES"),
        ({"attn_implementation": "sdpa"}, "attention of its own"),
        ({"quantization": "bnb-8bit"}, "bnb-4bit"),
        ({"folders": ["a", "b"]}, "give one folder"),
    ],
)
def test_what_vllm_cannot_do_is_refused(checkpoint, options, reason):
    with pytest.raises(ValueError, match=f"{reason}.*--engine transformers"):
        command.vllm_command(find_checkpoint(checkpoint), **options)


def test_an_adapter_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="merge_and_unload"):
        command.vllm_command(command.Checkpoint(str(tmp_path)))


def test_vllm_is_chosen_where_it_is_installed_beside_a_gpu(monkeypatch):
    assert not command.is_ready("auto", None)  # neither of them is here
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert not command.is_ready("auto", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert command.is_ready("auto", None)
    assert not command.is_ready("cpu", None) and not command.is_ready("auto", "sdpa")


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_engine_vllm_says_what_is_missing(checkpoint):
    result = CliRunner().invoke(app, ["serve", checkpoint, "--engine", "vllm"])
    assert result.exit_code == 1 and 'pip install "transformers-valley[vllm]"' in result.output


def test_options_of_vllm_need_its_engine(checkpoint):
    result = CliRunner().invoke(
        app, ["serve", checkpoint, "--engine", "transformers", "--vllm-args", "--max-model-len 9"]
    )
    assert result.exit_code == 1 and "--vllm-args" in result.output
