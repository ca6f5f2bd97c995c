# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The speed of a training step: Valley against LLaVA-NeXT-Video of transformers, and the ways to run it, in one run.

    python benchmarks/training.py                      # everything; on a GPU with models of 7 and 13 billion weights
    python benchmarks/training.py --frames 8           # fewer frames
    python benchmarks/training.py --only peers packing

Every step is one of TRL's `SFTTrainer`. Weights are random: speed does not depend on what they say. On a CPU the parts
are small, and as large to each other as ViT-L/14 and a LLaMA of 7 billion weights: 1 to 20. Variants run in turn, so
that a drifting machine hits all of them; what is printed is the median of all steps but the first of each turn.

"MB" is what a training adds to its model at the peak: gradients, optimizer and activations. "wait" is the share of
the time in which a step waits for its batch.
"""

import argparse
import gc
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from common import DTYPE, IMAGE, ON_GPU, VIDEO, build, forget_peak, matrix_arithmetic, parts, peak, synchronize
from datasets import Dataset
from peft import PeftConfig
from PIL import Image
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPImageProcessor,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
)
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

from transformers_valley import ValleyConfig, ValleyForConditionalGeneration, ValleyProcessor, ValleyVideoProcessor
from transformers_valley.configuration_valley import add_special_tokens
from transformers_valley.data import load_rows
from transformers_valley.training import ValleyDataCollator, cache_vision_features, set_trainable


ROUNDS, STEPS = 3, 2  # turns, and steps in each after one that is not counted
BATCH = 4 if ON_GPU else 2
QUESTION, ANSWER = 32, 32  # tokens
STAGE1 = ["model.multi_modal_projector", "model.temporal_module"]
STAGE2 = [*STAGE1, "model.language_model", "lm_head"]
STAGES = {"stage 1": STAGE1, "stage 2": STAGE2}

# On a CPU smaller than the other benchmark's, since a step costs more than an answer. TRL's head scores every position
# there, and only those that are learnt on a GPU: few words make up for that.
SIZES = ("7B", "13B") if ON_GPU else ("25M",)


class Result(NamedTuple):
    """Seconds of a step, share of the time spent waiting for a batch, megabytes added at the peak."""

    seconds: float
    wait: float
    megabytes: float


# --- Models ----------------------------------------------------------------------------------------------------------


def build_valley(
    size: str, trained: list[str], dtype: torch.dtype | None = None, attention: str = "sdpa"
) -> nn.Module:
    """A Valley whose named modules train, in float32; the others are in `dtype`. `attention` is the words'."""
    vision, text = parts(size)
    config = ValleyConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, video_token_id=VIDEO)
    model = build(ValleyForConditionalGeneration, config, dtype or frozen_dtype())
    model.set_attn_implementation({"text_config": attention})
    set_trainable(model, trained)
    return model


def build_peer(size: str, trained: list[str], image_size: int) -> nn.Module:
    """LLaVA-NeXT-Video with the same parts; its projector is of two layers."""
    vision, text = parts(size, image_size)
    config = LlavaNextVideoConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        spatial_pool_mode="average",
    )
    model = build(LlavaNextVideoForConditionalGeneration, config, frozen_dtype())
    set_trainable(model, [name for name in trained if "temporal" not in name])
    return model


def frozen_dtype() -> torch.dtype:
    return torch.bfloat16 if ON_GPU else torch.float32


def tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {token: index for index, token in enumerate(["<s>", "</s>", *alphabet])}
    model = Tokenizer(BPE(words, []))
    model.pre_tokenizer, model.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    found = PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    add_special_tokens(found)
    return found


def processor(**sampling: Any) -> ValleyProcessor:
    return ValleyProcessor(CLIPImageProcessor(), ValleyVideoProcessor(**sampling), tokenizer(), patch_size=14)


# --- Training --------------------------------------------------------------------------------------------------------


class Clock(TrainerCallback):
    """Notes when steps begin and end."""

    def __init__(self):
        self.begins, self.ends = [], []

    def on_step_begin(self, args, state, control, **kwargs):
        synchronize()
        self.begins.append(time.perf_counter())

    def on_step_end(self, args, state, control, **kwargs):
        synchronize()
        self.ends.append(time.perf_counter())


def train(
    build_model: Callable[[], nn.Module],
    rows: Dataset | list[dict[str, Any]],
    collator: Callable | None = None,
    steps: int = STEPS,
    prepare: Callable[[SFTTrainer], Any] = lambda trainer: None,
    peft_config: PeftConfig | None = None,
    **options: Any,
) -> list[Result]:
    """
    Train some steps.

    Args:
        build_model:
            Gives the model.
        rows (`datasets.Dataset` or `list[dict]`):
            Rows for the collator; or batches that are there already, which are taken in turn.
        prepare:
            What is done before the first step.
        peft_config (`peft.PeftConfig`, *optional*):
            Of adapters.
        **options:
            Of `SFTConfig`.
    """
    model = build_model()
    if collator is None:
        batches, rows = rows, Dataset.from_dict({"index": range(len(rows))})
        collator = lambda chosen: {name: part for name, part in batches[chosen[0]["index"]].items()}  # noqa: E731
        options = {"per_device_train_batch_size": 1, "train_sampling_strategy": "sequential"} | options
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        defaults = dict(output_dir=folder, max_steps=steps + 1, learning_rate=1e-6, use_cpu=not ON_GPU, bf16=ON_GPU)
        quiet = dict(report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True)
        data = dict(remove_unused_columns=False, max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
        settings = defaults | quiet | data | {"gradient_checkpointing": False} | options
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(**settings),
            data_collator=collator,
            train_dataset=rows,
            processing_class=processor(),
            peft_config=peft_config,
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        prepare(trainer)
        before = forget_peak()
        trainer.train()
        megabytes = peak() - before
    spans = zip(clock.ends[:-1], clock.begins[1:], clock.ends[1:], strict=True)  # but for the first
    results = [Result(end - last, (begin - last) / (end - last), megabytes) for last, begin, end in spans]
    del trainer, model
    gc.collect()
    return results


def in_turn(variants: dict[str, Callable[[], Iterable[Result]]]) -> dict[str, Result | None]:
    """The median of each variant; `None` where the GPU has too little memory."""
    found = {name: [] for name in variants}
    for _ in range(ROUNDS):
        for name, run in variants.items():
            if found[name] is not None:
                try:
                    found[name] += run()
                except torch.OutOfMemoryError:
                    found[name] = None
    return {
        name: results and Result(*(statistics.median(column) for column in zip(*results, strict=True)))
        for name, results in found.items()
    }


def header(title: str, row: str) -> None:
    print(f"\n{title}\n{'':<34}{'s per step':>11}{'rows/s':>9}{'wait':>7}{'MB':>8}   {row}")


def line(name: str, result: Result | None, rows: float, note: str = "") -> None:
    if result is None:
        print(f"{name:<34}{'out of memory':>11}", flush=True)
        return
    seconds, wait, megabytes = result
    print(f"{name:<34}{seconds:>11.3f}{rows / seconds:>9.2f}{wait:>7.0%}{megabytes:>8.0f}   {note}", flush=True)


def show(results: dict[str, Result | None], rows: float, notes: dict[str, str] | None = None) -> None:
    """Lines with the speed of each variant as a multiple of that of the first."""
    first = next(iter(results.values()))
    for name, result in results.items():
        ratio = f"{first.seconds / result.seconds:.2f}x" if first and result else ""
        line(name, result, rows, f"{ratio:<8}{(notes or {}).get(name, '')}")


def batch(num_tokens: int, frames: int, image_size: int = 224, rows: int = BATCH) -> dict[str, torch.Tensor]:
    """Rows of one clip each, a question before it and an answer after it."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(300, 2000, (rows, QUESTION + ANSWER), generator=generator)
    clip = torch.full((rows, num_tokens), VIDEO)
    ids = torch.cat([words[:, :QUESTION], clip, words[:, QUESTION:]], dim=1)
    labels = ids.clone()
    labels[:, :-ANSWER] = -100
    pixels = torch.rand(rows, frames, 3, image_size, image_size, generator=generator)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "pixel_values_videos": pixels,
    }


# --- What is measured ------------------------------------------------------------------------------------------------


def peers(lengths: list[int]) -> None:
    """Valley against LLaVA-NeXT-Video: same parts, same rows; with Valley's pixels, and with its own 336."""
    size = SIZES[0]
    for frames in lengths:
        for stage, trained in STAGES.items():
            header(f"{frames} frames, {stage}, {size}, {BATCH} rows", "times Valley's seconds per row, positions")
            tokens = {"Valley": 256 + frames, "LLaVA-NeXT-Video, 224": 64 * frames}
            tokens["LLaVA-NeXT-Video, 336"] = 144 * frames
            variants = {}
            for name, count in tokens.items():
                image_size = 336 if "336" in name else 224
                build_model = partial(build_valley, size, trained)
                if name != "Valley":
                    build_model = partial(build_peer, size, trained, image_size)
                batches = [batch(count, frames, image_size)] * (STEPS + 1)
                # As in the recipes, and as TRL does by default.
                variants[name] = partial(train, build_model, batches, gradient_checkpointing=True)
            results = in_turn(variants)
            ours = results["Valley"]
            for name, result in results.items():
                ratio = f"{result.seconds / ours.seconds:.2f}x" if ours and result else ""
                line(name, result, BATCH, f"{ratio:<8}{tokens[name] + QUESTION + ANSWER}")


def limits(lengths: list[int]) -> None:
    """Arithmetic of a step, counted while it runs, against that of a large product of matrices in this run."""
    fastest = matrix_arithmetic()
    print(f"\nProducts of matrices: {fastest / 1e12:.3f} TFLOP/s, {DTYPE}")
    frames = lengths[0]
    for size in SIZES:
        header(f"{frames} frames, {size}, layers recomputed", "TFLOP/s, share of the products' (recomputing counts)")
        for stage, trained in STAGES.items():
            batches = [batch(256 + frames, frames)] * (STEPS + 1)
            run = partial(train, partial(build_valley, size, trained), gradient_checkpointing=True)
            (result,) = in_turn({stage: partial(run, batches)}).values()
            if result is None:
                line(stage, None, BATCH)
                continue
            with FlopCounterMode(display=False) as counter:
                run(batches[:1], steps=0)
            speed = counter.get_total_flops() / result.seconds
            line(stage, result, BATCH, f"{speed / 1e12:.3f}  {speed / fastest:.0%}")


def write_rows(folder: Path, count: int) -> Dataset:
    """Rows as in stage 2 of the paper (Section 4.3): of 234, 150 have an image and the others a clip.

    A clip has a frame for every two seconds, of 40 seconds in the mean (Section 3). How long the texts of these sets
    are the paper does not say: the lengths here are made up, most of them short and a few long.
    """
    shuffle = random.Random(0)
    Image.new("RGB", (320, 240), "blue").save(folder / "picture.png")
    write_clip(folder / "clip.mp4", seconds=120)
    rows = []
    for _ in range(count):
        if shuffle.random() < 150 / 234:
            visual = {"type": "image", "path": "picture.png"}
        else:
            visual = {"type": "video", "path": "clip.mp4", "end": min(120.0, 4 + shuffle.expovariate(1 / 36))}
        length = int(min(1500, shuffle.lognormvariate(5.2, 0.9)))  # median 180 tokens
        question = [visual, {"type": "text", "text": "w" * (length // 4)}]
        answer = {"role": "assistant", "content": "w" * (length - length // 4)}
        rows.append({"messages": [{"role": "user", "content": question}, answer]})
    file = folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return load_rows([file], folder)


def write_clip(path: Path, seconds: float, rate: int = 10) -> None:
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=rate, width=320, height=240, pix_fmt="yuv420p")
        for index in range(int(seconds * rate)):
            picture = np.full((240, 320, 3), 40, np.uint8)
            picture[80:160, index % 240 : index % 240 + 80] = (200, index % 256, 90)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())


def packing(lengths: list[int]) -> None:
    """Rows of mixed length: padded as they come, padded beside rows of their length, packed."""
    size, count = SIZES[0], 32
    with tempfile.TemporaryDirectory() as folder:
        rows = write_rows(Path(folder), count)
        encoder = ValleyDataCollator(processor())
        encoded = [encoder.encode(row) for row in rows]  # once: what is timed is the model
    sizes = [len(row["input_ids"]) for row in encoded]
    random_order = random.Random(1).sample(range(count), count)
    by_length = sorted(range(count), key=sizes.__getitem__)  # what `group_by_length` comes to in a small set
    ways = {
        "padded": (random_order, False, "sdpa"),
        "padded, group_by_length": (by_length, False, "sdpa"),
        "packed, sdpa": (random_order, True, "sdpa"),
    }
    for together in (4, 16):
        variants, notes = {}, {}
        for name, (order, pack, attention) in ways.items():
            chosen = [order[start : start + together] for start in range(0, count, together)]
            batches = [join([encoded[index] for index in members], pack) for members in chosen]
            positions = sum(found["input_ids"].numel() for found in batches)
            notes[name] = f"{positions} positions, {1 - sum(sizes) / positions:.0%} of them padding"
            # The first step is not counted. A mean, not a median: each step is of another length.
            build_model = partial(build_valley, size, STAGE2, attention=attention)
            run = partial(train, build_model, [batches[0], *batches], steps=len(batches))
            variants[name] = partial(mean_of, run)
        header(f"{count} rows of {sum(sizes)} tokens, {together} a step, stage 2, {size}", "times the speed of padded")
        show(in_turn(variants), together, notes)


def mean_of(run: Callable[[], list[Result]]) -> list[Result]:
    return [Result(*(statistics.fmean(column) for column in zip(*run(), strict=True)))]


def join(rows: list[dict[str, torch.Tensor]], pack: bool) -> dict[str, Any]:
    """A batch of rows that are encoded already."""
    collator = ValleyDataCollator(processor(), padding_free=pack)
    collator.encode = lambda row: row
    return collator(rows)


def tower(lengths: list[int]) -> None:
    """What a vision tower costs that is trained or frozen, and what recomputing the layers of both models costs."""
    size, frames = SIZES[0], lengths[0]
    for stage, trained in STAGES.items():
        header(f"{frames} frames, {stage}, {size}, {BATCH} rows", "times the speed of the first")
        batches = [batch(256 + frames, frames)] * (STEPS + 1)
        variants = {}
        for name, modules in (("tower trained", [*trained, "model.vision_tower"]), ("tower frozen", trained)):
            for recompute in (False, True):
                key = f"{name}, layers {'recomputed' if recompute else 'kept'}"
                build_model = partial(build_valley, size, modules)
                variants[key] = partial(train, build_model, batches, gradient_checkpointing=recompute)
        show(in_turn(variants), BATCH)


def precision(lengths: list[int]) -> None:
    """float32; bfloat16 as in the recipes, whose trained weights stay float32 under autocast; all in bfloat16."""
    size, frames = SIZES[0], lengths[0]
    for stage, trained in STAGES.items():
        header(f"{frames} frames, {stage}, {size}, {BATCH} rows", "times the speed of float32")
        batches = [batch(256 + frames, frames)] * (STEPS + 1)
        variants = {
            "float32": partial(train, partial(build_valley, size, trained, torch.float32), batches, bf16=False),
            "bfloat16, masters float32": partial(
                train, partial(build_valley, size, trained, torch.bfloat16), batches, bf16=True
            ),
            "all bfloat16": partial(train, partial(build_bfloat16, size, trained), batches, bf16=False),
        }
        show(in_turn(variants), BATCH)


def build_bfloat16(size: str, trained: list[str]) -> nn.Module:
    """Trained weights in bfloat16, too, with which they learn worse: for comparison."""
    return build_valley(size, trained, torch.bfloat16).to(torch.bfloat16)


def kernels(lengths: list[int]) -> None:
    """The optimizer in one kernel or in several, and the model compiled."""
    size, frames = SIZES[0], lengths[0]
    header(f"{frames} frames, stage 2, {size}, {BATCH} rows", "times the speed of the first")
    run = partial(train, partial(build_valley, size, STAGE2), [batch(256 + frames, frames)] * (STEPS + 1))
    variants = {
        "optimizer fused": partial(run, optim="adamw_torch_fused"),
        "optimizer not fused": partial(run, optim="adamw_torch"),
        "fused, model compiled": partial(run, optim="adamw_torch_fused", torch_compile=True),
    }
    show(in_turn(variants), BATCH)


def workers(lengths: list[int]) -> None:
    """Clips decoded by the training process, and by others beside it."""
    size, steps = SIZES[0], 8
    with tempfile.TemporaryDirectory() as folder:
        rows = write_rows(Path(folder), BATCH * (steps + 2))
        collator = ValleyDataCollator(processor())
        header(f"files to steps, stage 1, {size}, {BATCH} rows", "times the speed without workers")
        variants = {}
        for number in (0, 1, 2):
            options = dict(per_device_train_batch_size=BATCH, dataloader_num_workers=number)
            build_model = partial(build_valley, size, STAGE1)
            run = partial(train, build_model, rows, collator, steps, **options)
            variants[f"{number} workers"] = partial(mean_of, run)
        show(in_turn(variants), BATCH)


def features(lengths: list[int]) -> None:
    """Stage 1 from files: decoded and through the tower, or its features from disk (`cache_vision_features`)."""
    size, count = SIZES[0], 4 * BATCH
    for frames in lengths:
        with tempfile.TemporaryDirectory() as folder:
            write_clip(Path(folder, "clip.mp4"), seconds=60)
            rows = []
            for start in range(count):  # parts of one file, each of which has features of its own
                clip = {"type": "video", "path": "clip.mp4", "start": start}
                question = {"role": "user", "content": [clip, {"type": "text", "text": "w" * QUESTION}]}
                rows.append({"messages": [question, {"role": "assistant", "content": "w" * ANSWER}]})
            file = Path(folder, "rows.jsonl")
            file.write_text("\n".join(map(json.dumps, rows)))
            options = dict(per_device_train_batch_size=BATCH, dataloader_num_workers=1, num_train_epochs=9)
            sampling = dict(num_frames=frames, fps=None)

            def run(
                prepare: Callable[[SFTTrainer], Any], file=file, options=options, sampling=sampling
            ) -> list[Result]:
                collator = ValleyDataCollator(processor(**sampling))
                build_model = partial(build_valley, size, STAGE1)
                return mean_of(
                    partial(train, build_model, load_rows([file], file.parent), collator, 6, prepare, **options)
                )

            cache = Path(folder, "features")

            def read_features(trainer: SFTTrainer, cache=cache) -> None:
                collator, rows = trainer.data_collator, trainer.train_dataset
                parts = trainer.model, collator.processor, [rows], trainer.args
                collator.features = cache_vision_features(cache, *parts)

            variants = {
                "decoded, through the tower": partial(run, lambda trainer: None),
                "features from disk": partial(run, read_features),
            }
            results = in_turn(variants)
            stored = [path.stat().st_size for path in cache.rglob("*.safetensors")]
            header(f"{frames} frames from files, stage 1, {size}, {BATCH} rows", "times the speed of the first")
            show(results, BATCH, {"features from disk": f"{statistics.mean(stored) / 2**20:.2f} MB a clip"})


SECTIONS = {
    section.__name__: section for section in (peers, packing, tower, precision, kernels, workers, features, limits)
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 32], help="how many frames of the clip")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="what to measure")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    where = torch.cuda.get_device_name() if ON_GPU else f"{torch.get_num_threads()} CPU threads"
    print(f"{where}, torch {torch.__version__}, {ROUNDS} turns of {STEPS} steps")
    for section in arguments.only:
        SECTIONS[section](arguments.frames)
