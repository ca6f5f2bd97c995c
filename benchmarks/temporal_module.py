# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Valley's v3 temporal module against `torch.nn.TransformerEncoderLayer`, which it equals: time and memory, one run.

    python benchmarks/temporal_module.py

The layer computes every time step and keeps the last; the module computes one query per patch position and neither
keys nor values. Prints ratios (layer / module) at the width of CLIP ViT-L/14, and the largest difference of results.
"""

import statistics
import time

import torch
from common import memory, reset_peak_memory
from torch import nn
from transformers import CLIPVisionConfig

from transformers_valley import ValleyConfig
from transformers_valley.modeling_valley import ValleyTemporalTransformer, _sinusoidal_positions


WIDTH, PATCHES, ROUNDS = 1024, 256, 5
LENGTHS = (1, 8, 32, 128)


def build():
    torch.manual_seed(0)
    config = ValleyConfig(vision_config=CLIPVisionConfig(hidden_size=WIDTH, num_attention_heads=16))
    module = ValleyTemporalTransformer(config).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.02)
    layer = nn.TransformerEncoderLayer(WIDTH, 8, 2048, dropout=0.1).eval()
    names = {
        name: f"self_attn.{name}" if name.startswith(("in_proj", "out_proj")) else name for name in module.state_dict()
    }
    layer.load_state_dict({names[name]: value for name, value in module.state_dict().items()})
    return module, layer


def run_module(module, clip):
    return module(clip, [len(clip)])[0]


def run_layer(layer, clip):
    return layer(clip + _sinusoidal_positions(len(clip), WIDTH, clip)[:, None])[-1] + clip.mean(0)


@torch.no_grad()
def compare(length):
    module, layer = build()
    clip = torch.randn(length, PATCHES, WIDTH)
    difference = (run_module(module, clip) - run_layer(layer, clip)).abs().max().item()
    seconds, megabytes = {run_module: [], run_layer: []}, {}
    for _ in range(ROUNDS):  # in turn, so that a drifting machine hits both
        for run, part in ((run_module, module), (run_layer, layer)):
            before = reset_peak_memory()
            start = time.perf_counter()
            run(part, clip)
            seconds[run].append(time.perf_counter() - start)
            megabytes[run] = (memory("VmHWM") - before) / 1024
    ours, theirs = (statistics.median(seconds[run]) * 1e3 for run in (run_module, run_layer))
    memories = " ".join(f"{megabytes[run]:>11.0f}" for run in (run_module, run_layer))
    print(f"{length:>6} {ours:>11.1f} {theirs:>11.1f} {theirs / ours:>6.1f}x {memories} {difference:>11.1e}")


if __name__ == "__main__":
    print(f"{torch.get_num_threads()} threads, float32, {PATCHES} patches of {WIDTH}, median of {ROUNDS}")
    print("frames   module ms    layer ms   ratio   module MB    layer MB  difference")
    for frames in LENGTHS:
        compare(frames)
