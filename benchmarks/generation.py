# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The speed of an answer: Valley against LLaVA-NeXT-Video and Video-LLaVA of transformers, on one clip in one run.

    python benchmarks/generation.py                      # everything; on a GPU with models of 7 and 13 billion weights
    python benchmarks/generation.py --frames 8 32        # fewer frames
    python benchmarks/generation.py --only followup attention

All three models share the weights of one vision tower and one language model, and read the same pixels; Valley leaves
out the last layer of the tower, whose output none of them reads. Weights are random: speed does not depend on what
they say. LLaVA-NeXT-Video's released checkpoints see 336 pixels and spend
144 tokens a frame; here it sees the 224 of the others, and spends 64. Decoding the clip is the same for all and is
timed by `video_sampling.py`.

"first" is the time from pixels to the first token, "tokens/s" the rate after it, memory what the run adds at its peak.
"prefill" is the language model alone: from the features of the clip to the first token. Beside a ratio stands the one
of the operations up to the first token, or of the bytes that are read for each token after it.
"""

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
import transformers
from common import (
    DEVICE,
    DTYPE,
    IMAGE,
    ON_GPU,
    SHAPES,
    VIDEO,
    build,
    forget_peak,
    matrix_arithmetic,
    memory_bandwidth,
    parts,
    peak,
    synchronize,
)
from packaging.version import Version
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    CompileConfig,
    DynamicCache,
    LlamaConfig,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    StoppingCriteria,
    StoppingCriteriaList,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)
from transformers.utils import logging

from transformers_valley import ValleyConfig, ValleyForConditionalGeneration, ValleyVideoProcessor


NEW_TOKENS, ROUNDS = 32, 3
CACHE = "cache" if Version(transformers.__version__) >= Version("5.24") else "past_key_values"
ANSWER = {"do_sample": False, "eos_token_id": -1, "pad_token_id": 0}  # no token ends an answer: all are equally long
LONGEST = 20.0  # seconds after which a measurement is not repeated
QUESTION = list(range(100, 116))  # 16 tokens, before and after the clip

SIZES = ("7B", "13B") if ON_GPU else ("60M", "25M")


class Result(NamedTuple):
    """Seconds to the first token, tokens per second after it, and megabytes that a run adds at its peak."""

    first: float
    rate: float
    megabytes: float


def build_valley(size: str, dtype: torch.dtype = DTYPE) -> ValleyForConditionalGeneration:
    vision, text = parts(size)
    config = ValleyConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, video_token_id=VIDEO)
    return build(ValleyForConditionalGeneration, config, dtype)


def build_family(size: str) -> dict[str, nn.Module]:
    """The three models, made of one vision tower and one language model."""
    vision, text = parts(size)
    tower, decoder = build(CLIPVisionModel, vision), build(AutoModelForCausalLM.from_config, text)
    empty = dict(zip(("vision_config", "text_config"), parts(size), strict=True))
    empty["text_config"].num_hidden_layers = 0
    ids = dict(image_token_index=IMAGE, video_token_index=VIDEO)

    valley = ValleyConfig(**empty, image_token_id=IMAGE, video_token_id=VIDEO)
    family = {
        "Valley": build(ValleyForConditionalGeneration, valley),
        "LLaVA-NeXT-Video": build(
            LlavaNextVideoForConditionalGeneration, LlavaNextVideoConfig(**empty, **ids, spatial_pool_mode="average")
        ),
        "Video-LLaVA": build(VideoLlavaForConditionalGeneration, VideoLlavaConfig(**empty, **ids)),
    }
    for name, model in family.items():
        if name == "Valley":  # it keeps the layers that it uses
            kept = model.model.vision_tower.state_dict()
            model.model.vision_tower.load_state_dict({key: tower.state_dict()[key] for key in kept})
        elif name == "Video-LLaVA":
            model.model.video_tower, model.model.image_tower = tower, nn.Identity()
        else:
            model.model.vision_tower = tower
        model.model.language_model, model.lm_head = decoder.model, decoder.lm_head
        model.config.text_config = model.model.config.text_config = text
    return family


def tokens_of(name: str, frames: int) -> int:
    """Feature positions of a clip: 16 x 16 patches a frame; pooled over time, pooled 2 x 2, or all of them and CLS."""
    return {"Valley": 256 + frames, "LLaVA-NeXT-Video": 64 * frames, "Video-LLaVA": 257 * frames}[name]


def tower_operations(vision: CLIPVisionConfig, num_layers: int) -> float:
    """Operations on a frame, in products of matrices."""
    patches, width = (vision.image_size // vision.patch_size) ** 2, vision.hidden_size
    tokens = patches + 1
    linear = 2 * tokens * (4 * width**2 + 2 * width * vision.intermediate_size)
    return 2 * patches * 3 * vision.patch_size**2 * width + num_layers * (linear + 4 * tokens**2 * width)


def prefill_operations(text: LlamaConfig, positions: int) -> float:
    """Operations of the language model up to the first token. Attention is causal: half of all pairs."""
    width = text.hidden_size
    linear = 2 * positions * (4 * width**2 + 3 * width * text.intermediate_size)
    return text.num_hidden_layers * (linear + 2 * positions**2 * width) + 2 * width * text.vocab_size


def operations(name: str, size: str, frames: int) -> float:
    """Operations from pixels to the first token, without projector and temporal module, which take some hundredths."""
    vision, text = parts(size)
    num_layers = vision.num_hidden_layers - (name == "Valley")  # which leaves out the last one
    return frames * tower_operations(vision, num_layers) + prefill_operations(text, positions_of(name, frames))


def bytes_read(name: str, size: str, frames: int, dtype: torch.dtype = DTYPE) -> float:
    """Bytes that are read for one token: the weights of layers and head, keys and values of what came before."""
    text = parts(size)[1]
    width = text.hidden_size
    layer = 4 * width**2 + 3 * width * text.intermediate_size + 2 * width * positions_of(name, frames)
    return dtype.itemsize * (text.num_hidden_layers * layer + width * text.vocab_size)


def positions_of(name: str, frames: int) -> int:
    """Of the prompt."""
    return tokens_of(name, frames) + 1 + 2 * len(QUESTION)


def prompt(num_tokens: int, *more: int) -> dict[str, torch.Tensor]:
    ids = torch.tensor([[1, *QUESTION, *[VIDEO] * num_tokens, *QUESTION, *more]], device=DEVICE)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def sample_clip(lengths: list[int]) -> dict[int, torch.Tensor]:
    """Pixels `(1, T, 3, 224, 224)` of T frames of a clip that is made here."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        with av.open(path, "w") as container:
            stream = container.add_stream("libx264", rate=10, width=320, height=240, pix_fmt="yuv420p")
            for index in range(150):
                picture = np.full((240, 320, 3), 40, np.uint8)
                picture[80:160, index : index + 80] = (200, index, 90)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            container.mux(stream.encode())
        processor = ValleyVideoProcessor()
        clips = {n: processor(path, num_frames=n, return_tensors="pt")["pixel_values_videos"] for n in lengths}
    return {length: clip.to(DEVICE, DTYPE) for length, clip in clips.items()}


class Clock(StoppingCriteria):
    """Notes when each token is there, and stops nothing."""

    def __init__(self):
        synchronize()
        self.times = [time.perf_counter()]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs) -> torch.Tensor:
        synchronize()
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def measure(model: nn.Module, inputs: dict, **options) -> Result:
    """One answer, as `in_turn` measures several."""
    return in_turn({"": partial(answer, model, inputs, **options)})[""]


def in_turn(runs: dict[str, Callable[[], Result]]) -> dict[str, Result]:
    """Median over some rounds, after one that is not counted; what takes long is counted once.

    Runs take turns, so that a drifting machine hits all of them.
    """
    found = {name: [] for name in runs}
    for _ in range(ROUNDS + 1):
        for name, run in runs.items():
            if len(found[name]) < 2 or found[name][-1].first <= LONGEST:
                found[name].append(run())
    columns = {name: zip(*results[1:], strict=True) for name, results in found.items()}
    return {name: Result(*map(statistics.median, column)) for name, column in columns.items()}


def answer(model: nn.Module, inputs: dict, after: Callable[[], object] = gc.collect, **options) -> Result:
    before, clock = forget_peak(), Clock()
    options["stopping_criteria"] = StoppingCriteriaList([clock])
    model.generate(**inputs, **ANSWER, **options, max_new_tokens=NEW_TOKENS + 1)
    start, first, *_, last = clock.times
    result = Result(first - start, NEW_TOKENS / (last - first), peak() - before)
    after()
    return result


def header(title: str, row: str) -> None:
    print(f"\n{title}\n{'':<24}{'tokens':>8}{'first s':>10}{'tokens/s':>10}{'MB':>8}   {row}")


def line(name: str, tokens: int, result: Result, note: str) -> None:
    first, rate, megabytes = result
    print(f"{name:<24}{tokens:>8}{first:>10.3f}{rate:>10.1f}{megabytes:>8.0f}   {note}", flush=True)


def peers(lengths: list[int]) -> None:
    """Valley against two models of transformers, with the same parts and the same pixels."""
    clips = sample_clip(lengths)
    for size in SIZES:
        family = build_family(size)
        for frames in lengths:
            header(f"{frames} frames, {size}, {DTYPE}, sdpa", "peer / Valley (by arithmetic): first, s per token, MB")
            inputs = {
                name: prompt(tokens_of(name, frames)) | {"pixel_values_videos": clips[frames]} for name in family
            }
            results = in_turn({name: partial(answer, family[name], inputs[name]) for name in family})
            ours = results["Valley"]
            for name, result in results.items():
                first, later = arithmetic_ratios(name, size, frames)
                ratios = f"{result[0] / ours[0]:.2f}x ({first:.2f}x)  {ours[1] / result[1]:.2f}x ({later:.2f}x)"
                line(name, positions_of(name, frames), result, f"{ratios}  {result[2] / ours[2]:.2f}x")
        del family


def arithmetic_ratios(name: str, size: str, frames: int) -> tuple[float, float]:
    """What a peer takes over what Valley takes: operations to the first token, bytes for each token after it."""
    return tuple(count(name, size, frames) / count("Valley", size, frames) for count in (operations, bytes_read))


def proportions(lengths: list[int]) -> None:
    """What arithmetic alone expects of peers, at each size."""
    for size in SHAPES:
        print(f"\n{size}, peer / Valley by arithmetic: operations to the first token, bytes for each token after it")
        for frames in lengths:
            for name in ("LLaVA-NeXT-Video", "Video-LLaVA"):
                first, later = arithmetic_ratios(name, size, frames)
                print(f"{f'{frames} frames':<12}{name:<18}{first:>8.2f}x{later:>8.2f}x")


def followup(lengths: list[int]) -> None:
    """A second question about a clip: everything anew, with the vision features kept, with the cache kept."""
    model, clips = build_valley(SIZES[0]), sample_clip(lengths)
    for frames in lengths:
        header(f"{frames} frames, second question", "anew / this: first")
        tokens = tokens_of("Valley", frames)
        before, after = prompt(tokens), prompt(tokens, *QUESTION)
        pixels = {"pixel_values_videos": clips[frames]}
        with torch.no_grad():
            features = {"video": model.get_video_features(**pixels)}
            read = DynamicCache(config=model.config)
            model(**before, **pixels, logits_to_keep=1, **{CACHE: read})

        anew = measure(model, after | pixels)
        kept = measure(model, after, mm_encoder_outputs=features)
        # Cutting off what was asked and answered makes the next round a second question, too.
        cached = measure(
            model,
            after,
            after=partial(forget_answer, read, read.get_seq_length()),
            **{CACHE: read},
        )
        for name, result in (("anew", anew), ("features kept", kept), ("cache kept", cached)):
            line(name, len(after["input_ids"][0]), result, f"{anew[0] / result[0]:.2f}x")


def forget_answer(cache: DynamicCache, length: int) -> None:
    """Cut a cache to its first tokens."""
    cache.crop(length - cache.get_seq_length())


def attention(lengths: list[int]) -> None:
    """Eager attention, sdpa, and sdpa with a static cache and a compiled decoding step."""
    model, frames = build_valley(SIZES[0]), lengths[len(lengths) // 2]
    inputs = prompt(tokens_of("Valley", frames)) | {"pixel_values_videos": sample_clip([frames])[frames]}
    header(f"{frames} frames, ways to run", "eager / this: first, s per token")
    compiled = CompileConfig(mode="reduce-overhead" if ON_GPU else "default", fullgraph=True)
    compiled._compile_all_devices = True
    ways = {
        "eager": ("eager", {}),
        "sdpa": ("sdpa", {}),
        "sdpa, static": ("sdpa", {"cache_implementation": "static", "disable_compile": True}),
        "sdpa, static, compiled": ("sdpa", {"cache_implementation": "static", "compile_config": compiled}),
    }
    eager = None
    for name, (implementation, options) in ways.items():
        model.set_attn_implementation(implementation)
        result = measure(model, inputs, **options)
        eager = eager or result
        line(name, inputs["input_ids"].shape[1], result, f"{eager[0] / result[0]:.2f}x  {result[1] / eager[1]:.2f}x")


def precision(lengths: list[int]) -> None:
    """float32 against bfloat16."""
    frames = lengths[len(lengths) // 2]
    clip = sample_clip([frames])[frames]
    header(f"{frames} frames, precision", "float32 / this: first, s per token")
    full = None
    for dtype in (torch.float32, torch.bfloat16):
        inputs = prompt(tokens_of("Valley", frames)) | {"pixel_values_videos": clip.to(dtype)}
        result = measure(build_valley(SIZES[0], dtype), inputs)
        full = full or result
        ratios = f"{full[0] / result[0]:.2f}x  {result[1] / full[1]:.2f}x"
        line(str(dtype), inputs["input_ids"].shape[1], result, ratios)


def limits(lengths: list[int]) -> None:
    """The language model's prefill against the arithmetic, its decoding against the memory, measured here.

    Prefill cannot be faster than its products of matrices, decoding not than reading weights and cache for each token.
    """
    bandwidth, arithmetic = memory_bandwidth(), matrix_arithmetic()
    print(
        f"\nMemory: {bandwidth / 1e9:.1f} GB/s (a copy, read and written); arithmetic: "
        f"{arithmetic / 1e12:.2f} TFLOP/s (a product of matrices, {DTYPE})"
    )
    for size in SIZES:
        model, text = build_valley(size), parts(size)[1]
        header(f"{size}, {DTYPE}, sdpa", "prefill tokens/s, their share of the limit; of decoding, its limit")
        for frames in lengths:
            inputs, pixels = prompt(tokens_of("Valley", frames)), sample_clip([frames])[frames]
            with torch.no_grad():
                features = {"video": model.get_video_features(pixels)}
            result = measure(model, inputs, mm_encoder_outputs=features)
            count = inputs["input_ids"].shape[1]
            share = prefill_operations(text, count) / result[0] / arithmetic
            limit = bandwidth / bytes_read("Valley", size, frames)
            note = f"{count / result[0]:.0f}/s  {share:.0%}   {result[1] / limit:.0%} of {limit:.1f}/s"
            line(f"{frames} frames", count, result, note)
        del model, features


SECTIONS = {section.__name__: section for section in (peers, proportions, followup, attention, precision, limits)}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 32, 128], help="how many frames of the clip")
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=SIZES, help="how large the models are")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="what to measure")
    arguments = parser.parse_args()
    SIZES = arguments.sizes
    logging.set_verbosity_error()
    device = torch.cuda.get_device_name() if ON_GPU else f"{torch.get_num_threads()} threads"
    print(
        f"{device}, torch {torch.__version__}, language model {', '.join(SIZES)}, {NEW_TOKENS} tokens after the first"
    )
    for name in arguments.only:
        SECTIONS[name](arguments.frames)
