# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
import shutil
import sys
import sysconfig
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import HfDeepSpeedConfig
from trl import SFTConfig

from transformers_valley.training import launch
from transformers_valley.training.launch import check_launch, missing_build_tools


@pytest.fixture
def args(tmp_path, monkeypatch):
    for name in ("WORLD_SIZE", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_CPU", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    return SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")


def test_one_process_is_fine(args):
    check_launch(args)


def test_fsdp_is_refused_with_a_way_out(args, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP is not supported: .*lm_head.*zero2.yaml or zero3.yaml"):
        check_launch(args)


def test_processes_that_would_train_alone_are_refused(args, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were started and each would train alone, on cpu.*--use_cpu"):
        check_launch(args)


def test_one_process_in_place_of_several_is_refused(args, monkeypatch):
    """The environment that `accelerate launch --cpu --num_processes 2` makes."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    check_launch(args)
    monkeypatch.setenv("MASTER_ADDR", "node1")  # of a scheduler
    check_launch(args)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(ValueError, match="asked for several processes and started one.*ddp_cpu.yaml"):
        check_launch(args)


def test_what_deepspeed_lacks_is_named(args, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    check_launch(args)  # nothing is compiled without DeepSpeed
    args.deepspeed_plugin = object()
    with pytest.raises(
        RuntimeError,
        match=r"communication.*lacks ninja, a C\+\+ compiler \(c\+\+\), Python.h of.*apt install",
    ):
        check_launch(args)


@pytest.mark.parametrize(("device", "compiles"), [("cpu", True), ("nvme", True), ("none", False)])
def test_an_offloaded_optimizer_is_compiled_on_gpus_too(device, compiles, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(launch, "missing_build_tools", lambda: ["ninja"])
    config = HfDeepSpeedConfig({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": device}}})
    plugin = SimpleNamespace(hf_ds_config=config)
    args = SimpleNamespace(fsdp=None, world_size=1, device=torch.device("cuda"), deepspeed_plugin=plugin)
    with pytest.raises(RuntimeError, match="an optimizer for the CPU.*lacks ninja") if compiles else nullcontext():
        check_launch(args)


def test_ninja_is_found_beside_the_interpreter(monkeypatch, tmp_path):
    (tmp_path / "ninja").touch(mode=0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert "ninja" not in missing_build_tools()
    assert shutil.which("ninja") == str(tmp_path / "ninja")
