# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What a launch has to be: processes that know each other, and what DeepSpeed compiles with."""

import os
import shutil
import sys
import sysconfig
from pathlib import Path


def check_launch(args) -> None:
    """
    Refuse a launch that would train wrongly, or stop deep inside a library.

    Args:
        args (`transformers.TrainingArguments`):
            Of the run, such as `SFTConfig`.

    Raises:
        ValueError: for FSDP, and if fewer processes train together than were asked for.
        RuntimeError: if DeepSpeed has to compile something and what it compiles with is missing; it names what.
    """
    if args.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true":
        raise ValueError(
            "FSDP is not supported: TRL's fused head reads a sharded lm_head, whose gradient comes out wrong. Spread "
            "the model with DeepSpeed: examples/accelerate/zero2.yaml or zero3.yaml."
        )
    started = int(os.environ.get("WORLD_SIZE", 1))
    if args.world_size < started:
        raise ValueError(
            f"{started} processes were started and each would train alone, on {args.device}. On a CPU add "
            "`--use_cpu true`; on GPUs see that torch finds them (torch.cuda.is_available())."
        )
    # Accelerate's launcher of a single process sets the first, and the second too when asked for several. A scheduler
    # would name a machine.
    asked = "ACCELERATE_USE_CPU" in os.environ and os.environ.get("MASTER_ADDR") == "127.0.0.1"
    if asked and "WORLD_SIZE" not in os.environ:
        raise ValueError(
            "Accelerate was asked for several processes and started one, as it does for `--cpu` and for "
            "`distributed_type: MULTI_CPU`. Launch with examples/accelerate/ddp_cpu.yaml, or ask for one process."
        )
    if args.deepspeed_plugin is not None and (what := _compiled(args)) and (missing := missing_build_tools()):
        raise RuntimeError(
            f"DeepSpeed compiles {what}, for which this machine lacks {', '.join(missing)}. Install them (Debian, "
            "Ubuntu: apt install g++ python3-dev ninja-build), or do without: examples/accelerate/ddp_cpu.yaml on a "
            "CPU, no offload on GPUs."
        )


def _compiled(args) -> str | None:
    """What DeepSpeed would compile for a run."""
    if args.device.type == "cpu":
        return "its communication between processes on a CPU"
    offload = "zero_optimization.offload_optimizer.device"
    if args.deepspeed_plugin.hf_ds_config.get_value(offload) in ("cpu", "nvme"):
        return "an optimizer for the CPU that it is offloaded to"
    return None


def missing_build_tools() -> list[str]:
    """
    What torch needs to compile an extension and this machine lacks, in words.

    pip puts ninja beside the interpreter, where only an activated environment looks for it: that folder is put first
    into `PATH`, for this process and those it starts.
    """
    from torch.utils.cpp_extension import get_cxx_compiler

    beside = Path(sys.executable).parent
    if (beside / "ninja").exists():
        os.environ["PATH"] = os.pathsep.join([str(beside), os.environ.get("PATH", "")])
    compiler = get_cxx_compiler()
    found = {
        "ninja": shutil.which("ninja"),
        f"a C++ compiler ({compiler})": shutil.which(compiler),
        f"Python.h of Python {sys.version_info.major}.{sys.version_info.minor}": (
            Path(sysconfig.get_path("include")) / "Python.h"
        ).exists(),
    }
    return [name for name, there in found.items() if not there]


__all__ = ["check_launch", "missing_build_tools"]
