# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The command that people type: its flags, and several processes of it on this machine's CPU, none of which outlives
its test."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from transformers_valley.training.checks import missing_build_tools


ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "examples" / "configs"
TIMEOUT = 600  # seconds; the first launch with DeepSpeed compiles


def arguments(config, model, rows, output, **overrides):
    """Flags of `examples/sft.py` for a short and silent run of a recipe on the CPU, in float32."""
    options = {
        "model_name_or_path": model,
        "data": rows,
        "output_dir": output,
        "dtype": "float32",
        "bf16": False,
        "use_cpu": True,
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "dataloader_num_workers": 0,
        "dataloader_persistent_workers": False,
        "report_to": "none",
        "disable_tqdm": True,
        **overrides,
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return ["--config", str(CONFIGS / config), *flags]


@contextlib.contextmanager
def launched(log: Path, config: str, script: str | Path, *flags, launch_flags=()) -> Iterator[subprocess.Popen]:
    """
    `accelerate launch` of a script on two processes with a file of examples/accelerate; killed on leaving.

    What it writes goes to a file: a pipe that nobody empties would stop it.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(ROOT / "examples" / "accelerate" / f"{config}.yaml")]
    command += ["--num_processes", "2", "--main_process_port", "0", *launch_flags, str(script), *map(str, flags)]
    # Also on a machine with GPUs: these tests are about processes, and run on its CPU.
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    environment["HF_DATASETS_CACHE"] = str(log.parent / "cache")
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "examples"), os.environ.get("PYTHONPATH", "")])
    with open(log, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        try:
            yield process
        finally:
            kill(process)


def kill(process: subprocess.Popen) -> None:
    """kill -9 of a launcher and of all that it started: torch puts each into a session of its own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        family = [parent, *parent.children(recursive=True)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family)
    process.wait()


def launch(log: Path, config: str, script: str | Path, *flags, launch_flags=()) -> tuple[int, str]:
    """Exit status and output of a launch that comes to its end."""
    with launched(log, config, script, *flags, launch_flags=launch_flags) as process:
        try:
            ended = process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            ended = None
    if ended is None:
        pytest.fail(f"{config} did not end within {TIMEOUT} s: one process waits for another.\n{log.read_text()}")
    return ended, log.read_text()


def needs_deepspeed() -> None:
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    if missing := missing_build_tools():
        pytest.skip(f"DeepSpeed compiles with what is not here: {', '.join(missing)}")
