# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What benchmarks share: the device, shapes of models, random weights, the peak of memory, limits of the machine."""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
DTYPE = torch.bfloat16 if ON_GPU else torch.float32

IMAGE, VIDEO = 258, 259  # the first ids that a token for each byte leaves free
VIT_L = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)
SHAPES = {  # vision tower and language model
    "7B": (VIT_L, dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)),
    "13B": (VIT_L, dict(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40)),
    # For a CPU: ViT-S/14 beside a small language model; and the proportions of 7B, 1 to 23, few words among them.
    "60M": (
        dict(hidden_size=384, intermediate_size=1536, num_hidden_layers=12, num_attention_heads=6),
        dict(hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8),
    ),
    "25M": (
        dict(hidden_size=128, intermediate_size=512, num_hidden_layers=6, num_attention_heads=2),
        dict(hidden_size=1024, intermediate_size=2752, num_hidden_layers=2, num_attention_heads=16, vocab_size=2006),
    ),
}


def parts(size: str, image_size: int = 224) -> tuple[CLIPVisionConfig, LlamaConfig]:
    """Configs of the vision tower and the language model."""
    vision, text = SHAPES[size]
    text = {"vocab_size": 32006, "max_position_embeddings": 65536} | text
    return CLIPVisionConfig(image_size=image_size, patch_size=14, **vision), LlamaConfig(**text)


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


def median_seconds(run: Callable[[], object], rounds: int = 20) -> float:
    """Over some rounds, after one that is not counted."""
    seconds = []
    for _ in range(rounds + 1):
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def memory_bandwidth(size: int = 2**30 if ON_GPU else 2**28) -> float:
    """Bytes per second of a copy, those that are read and those that are written."""
    source = torch.ones(size, dtype=torch.uint8, device=DEVICE)  # what was never written may not be read at all
    target = torch.empty_like(source)
    return 2 * size / median_seconds(lambda: target.copy_(source))


def matrix_arithmetic(side: int = 8192 if ON_GPU else 2048) -> float:
    """Operations per second of a product of two square matrices."""
    left, right = (torch.randn(side, side, dtype=DTYPE, device=DEVICE) for _ in range(2))
    return 2 * side**3 / median_seconds(lambda: left @ right)
