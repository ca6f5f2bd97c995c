# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What the benchmarks share: the device, memory at its peak, models of random weights, the limits of the machine."""

import ctypes
import gc
import statistics
import time
from pathlib import Path

import torch
from torch import nn


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
DTYPE = torch.bfloat16 if ON_GPU else torch.float32


def build(model_class: type, config, dtype: torch.dtype = DTYPE) -> nn.Module:
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with DEVICE:
            torch.manual_seed(0)
            model = model_class(config).eval()
    finally:
        torch.set_default_dtype(default)
    return model


def synchronize() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def forget_peak() -> float:
    """Megabytes in use, from which on the next peak counts."""
    gc.collect()
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system, or the next run would find it there
    return reset_peak_memory() / 1024


def peak() -> float:
    return torch.cuda.max_memory_allocated() / 2**20 if ON_GPU else memory("VmHWM") / 1024


def memory(field):
    """Kilobytes of this process, as Linux counts them."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


def reset_peak_memory():
    """Forget the highest memory so far, and say what is in use now."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def memory_bandwidth() -> float:
    """Bytes per second of a copy, those that are read and those that are written."""
    source = torch.empty(2**30 if ON_GPU else 2**28, dtype=torch.uint8, device=DEVICE)
    target, seconds = torch.empty_like(source), []
    for _ in range(20):
        synchronize()
        start = time.perf_counter()
        target.copy_(source)
        synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * source.numel() / statistics.median(seconds)


def matrix_arithmetic() -> float:
    """Operations per second of a product of two square matrices."""
    size = 8192 if ON_GPU else 2048
    matrix, seconds = torch.randn(size, size, dtype=DTYPE, device=DEVICE), []
    for _ in range(20):
        synchronize()
        start = time.perf_counter()
        matrix @ matrix
        synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds)
