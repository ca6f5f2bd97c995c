# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Tests never touch the network, and every test gets its own copy of the tiny model and processor."""

import os


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import copy

import pytest
import torch
from clips import write_clip
from huggingface_hub import HfApi
from tiny import tiny_processor, tiny_tokenizer, tiny_valley


torch.set_num_threads(1)


@pytest.fixture(scope="session")
def _tiny():
    tokenizer = tiny_tokenizer()
    return tiny_valley(tokenizer=tokenizer), tiny_processor(tokenizer)


@pytest.fixture
def model(_tiny):
    return copy.deepcopy(_tiny[0])


@pytest.fixture
def processor(_tiny):
    return copy.deepcopy(_tiny[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the tests of one module write the clips they share."""
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def clip(folder):
    """90 frames at 25 per second: 3.6 seconds."""
    return write_clip(folder / "clip.mp4", 90)


@pytest.fixture
def no_network(monkeypatch):
    """A machine from which the Hub cannot be reached, without HF_HUB_OFFLINE."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    nobody = HfApi(endpoint="http://127.0.0.1:9")  # no one listens at this port
    monkeypatch.setattr("transformers_valley.checkpoint.model_info", nobody.model_info)


@pytest.fixture(scope="session")
def checkpoint(_tiny, tmp_path_factory):
    """A saved model and processor."""
    folder = str(tmp_path_factory.mktemp("checkpoint"))
    for part in _tiny:
        part.save_pretrained(folder)
    return folder
