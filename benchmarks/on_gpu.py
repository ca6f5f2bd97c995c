# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Everything that waits for a GPU, in one command of at most ten minutes: the tests, and the speed at 7B and 13B.

    python benchmarks/on_gpu.py                       # on one H100 or H200; writes outputs/on_gpu/on_gpu.{json,md}
    python benchmarks/on_gpu.py --wheels FOLDER       # without a network, with the packages that lack from a folder
    python benchmarks/on_gpu.py --only tests training
    python benchmarks/on_gpu.py --dry-run             # the same on a CPU with tiny models, in some minutes

Weights are random and made on the GPU: speed does not depend on what they say. Every figure is the median of some
rounds after one that is not counted, and stands beside what it can be compared with: the peer's figure in this run,
the limit of the GPU measured in this run, or what `valley train estimate` says.

Each section is a process of its own, so that an error of the GPU ends one of them and no other. It is stopped when its
time is over; what it has measured until then is kept.
"""

import argparse
import contextlib
import dataclasses
import gc
import importlib.metadata
import importlib.util
import json
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from packaging.requirements import Requirement


ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "examples" / "configs"
HAS_FLASH = importlib.util.find_spec("flash_attn") is not None
SHOWN = "torch triton transformers trl peft accelerate datasets av bitsandbytes flash-attn".split()


class Row(NamedTuple):
    """A figure, and what it is compared with."""

    measure: str
    value: float | None = None
    against: str = ""
    reference: float | None = None
    note: str = ""


class Scale(NamedTuple):
    """How large models and measurements are."""

    sizes: tuple[str, str]  # in `common.SHAPES`
    frames: tuple[int, ...]
    chunks: tuple[int, ...]  # frames that go through the tower at once
    copied: int  # bytes
    side: int  # of the matrices
    rounds: int
    rows: int  # of a step, unless the recipe has fewer
    text: tuple[int, int]  # tokens of the shortest and of the longest row


FULL = Scale(("7B", "13B"), (8, 32, 128), (32, 64, 128), 2**30, 8192, 3, 16, (64, 448))
TINY = Scale(("tiny", "tiny"), (2, 3, 4), (1, 2, 4), 2**20, 64, 1, 2, (16, 32))
TINY_SHAPE = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)

# A section gives its cases one by one: a name, and what measures its rows. It imports what it needs by itself: the
# process that starts the sections has to leave the GPU alone, and to run where packages lack.
Cases = Iterator[tuple[str, Callable[[], list[Row]]]]


# --- Sections --------------------------------------------------------------------------------------------------------


def tests(scale: Scale) -> Cases:
    """`pytest -m gpu`."""
    yield "pytest -m gpu", partial(run_tests, "cpu" if scale is TINY else "cuda")


def run_tests(device: str) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "gpu",
            "-v",
            "-rs",
            f"--junitxml={report}",
            "tests/test_gpu.py",
        ]
        environment = os.environ | {"VALLEY_TEST_DEVICE": device}
        lines = []
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                print(line, end="", flush=True)
                lines.append(line)
        tail = "".join(lines[-40:])
        if not report.exists():
            raise RuntimeError(f"pytest ended with {process.returncode}\n{tail}")
        suite = ElementTree.parse(report).getroot().find("testsuite")
    total, failures, errors, skipped = (int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped"))
    failed = failures + errors
    return [
        Row("passed", total - failed - skipped, "all", total, f"{skipped} skipped\n{tail}"),
        Row("failed", failed, "all", total),
    ]


def limits(scale: Scale) -> Cases:
    """What the GPU does at most."""
    import common

    yield "copy, read and written", lambda: [Row("GB/s", common.memory_bandwidth(scale.copied) / 1e9)]
    yield (
        f"product of matrices of {scale.side} x {scale.side}, {common.DTYPE}",
        lambda: [Row("TFLOP/s", common.matrix_arithmetic(scale.side) / 1e12)],
    )


def tower(scale: Scale) -> Cases:
    """ViT-L/14 at 224 pixels, as far as Valley uses it."""
    import common
    import generation
    import torch

    from transformers_valley import ValleyConfig, ValleyModel

    vision, text = common.parts(scale.sizes[0])
    text.num_hidden_layers = 0
    model = common.build(ValleyModel, ValleyConfig(vision_config=vision, text_config=text))
    frames = torch.randn(2 * max(scale.chunks), 3, 224, 224, dtype=common.DTYPE, device=common.DEVICE)
    limit = common.matrix_arithmetic(scale.side) / generation.tower_operations(vision, model.vision_feature_index)

    @torch.no_grad()
    def run(chunk: int) -> list[Row]:
        model.config.vision_chunk_size = chunk
        seconds = common.median_seconds(lambda: model.encode_frames(frames), scale.rounds)
        return [Row("frames/s", len(frames) / seconds, "arithmetic", limit)]

    for chunk in scale.chunks:
        yield f"{chunk} frames at a time", partial(run, chunk)


def answer(index: int, scale: Scale) -> Cases:
    """Prefill and decoding against the limits, and LLaVA-NeXT-Video beside it, with the same tower and decoder."""
    import common
    import generation
    import torch

    size, found = scale.sizes[index], {}
    family = generation.build_family(size)
    bandwidth, arithmetic = common.memory_bandwidth(scale.copied), common.matrix_arithmetic(scale.side)

    def run(name: str, frames: int, **options: str) -> list[Row]:
        pixels = torch.randn(1, frames, 3, 224, 224, dtype=common.DTYPE, device=common.DEVICE)
        inputs = generation.prompt(generation.tokens_of(name, frames)) | {"pixel_values_videos": pixels}
        result = generation.measure(family[name], inputs, **options)
        against, ours = ("", None) if name == "Valley" else ("Valley", found.get(frames))
        found.setdefault(frames, result)
        speed = generation.operations(name, size, frames) / result.first
        read = generation.bytes_read(name, size, frames) * result.rate
        return [
            Row("s to the first token", result.first, against, ours and ours.first),
            Row("TFLOP/s until then", speed / 1e12, "arithmetic", arithmetic / 1e12),
            Row("tokens/s after it", result.rate, against, ours and ours.rate),
            Row("GB/s read for them", read / 1e9, "bandwidth", bandwidth / 1e9),
        ]

    for frames in scale.frames:
        for name in ("Valley", "LLaVA-NeXT-Video"):
            yield f"{name}, {size}, {frames} frames", partial(run, name, frames)
    if index == 0:  # transformers compiles it on a GPU, which takes about a minute
        frames = scale.frames[1]
        case = f"Valley, {size}, {frames} frames, static cache"
        yield case, partial(run, "Valley", frames, cache_implementation="static")


BITS = {"bfloat16": (16, {}), "8 bits": (8, {"load_in_8bit": True}), "4 bits": (4.5, {"load_in_4bit": True})}


def fewer_bits(scale: Scale) -> Cases:
    """Memory and speed of a checkpoint that bitsandbytes loads in fewer bits: only the decoder's matrices change."""
    import common
    import generation

    model = generation.build_valley(scale.sizes[0])
    names = [name for name, part in model.named_parameters() if ".language_model.layers." in name and part.ndim == 2]
    counts = {name: part.numel() for name, part in model.named_parameters()}
    matrices = sum(counts[name] for name in names)
    rest = 2 * (sum(counts.values()) - matrices)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        del model
        gc.collect()
        common.forget_peak()
        found = {}
        for name, (bits, options) in BITS.items():
            expected = (matrices * bits / 8 + rest) / 2**30  # four bits have a scale of 32 for 64 weights
            run = partial(run_bits, scale, folder, options, expected, found)
            yield f"{name}, {scale.sizes[0]}, {scale.frames[0]} frames", run


def run_bits(scale: Scale, folder: str, options: dict, expected: float, found: dict) -> list[Row]:
    import common
    import generation
    import torch
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    if options and not importlib.util.find_spec("bitsandbytes"):
        return [Row("skipped", note="bitsandbytes is not installed")]
    if options:
        left = ["model.vision_tower", "model.multi_modal_projector", "model.temporal_module", "lm_head"]
        quantization = BitsAndBytesConfig(**options, llm_int8_skip_modules=left, bnb_4bit_compute_dtype=common.DTYPE)
        options = {"quantization_config": quantization}
    start = time.perf_counter()
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=common.DTYPE, device_map=str(common.DEVICE), **options
    )
    common.synchronize()
    seconds = time.perf_counter() - start
    frames = scale.frames[0]
    pixels = torch.randn(1, frames, 3, 224, 224, dtype=common.DTYPE, device=common.DEVICE)
    inputs = generation.prompt(generation.tokens_of("Valley", frames)) | {"pixel_values_videos": pixels}
    held = model.get_memory_footprint() / 2**30
    result = generation.measure(model, inputs)
    if not options:
        found["bfloat16"] = result
    full = found.get("bfloat16")
    return [
        Row("s to load", seconds),
        Row("GiB of weights", held, "arithmetic", expected),
        Row("s to the first token", result.first, "bfloat16", full and full.first),
        Row("tokens/s after it", result.rate, "bfloat16", full and full.rate),
    ]


RECIPES = {  # file and optimizer
    "stage 1": ("stage1_align", "adamw_torch_fused"),
    "stage 2, LoRA": ("stage2_lora", "adamw_torch_fused"),
    "stage 2, whole, 8-bit AdamW": ("stage2_instruct", "adamw_bnb_8bit"),  # 65 GiB for 7B
    "stage 2, whole": ("stage2_instruct", "adamw_torch_fused"),  # 102 GiB
}


def training(scale: Scale) -> Cases:
    """A step of each recipe, padded and packed, with rows of unlike length."""
    import common
    import yaml

    from transformers_valley import ValleyConfig

    vision, text = common.parts(scale.sizes[0])
    # Estimates take seconds of a CPU each: they are made beside the measurements.
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(2, get_context("spawn")) as pool:
        ValleyConfig(vision_config=vision, text_config=text).save_pretrained(folder)
        cases = []
        for name, (file, optimizer) in RECIPES.items():
            recipe = yaml.safe_load((CONFIGS / f"{file}.yaml").read_text()) | {"optim": optimizer}
            count = recipe["per_device_train_batch_size"] = min(recipe["per_device_train_batch_size"], scale.rows)
            flags = dict(model_name_or_path=folder, vision_model_name_or_path="", optim=optimizer)
            flags |= dict(config=CONFIGS / f"{file}.yaml", per_device_train_batch_size=count)
            for pack, tokens in ((False, max(scale.text)), (True, sum(scale.text) // 2)):
                expected = pool.submit(estimate_gib, flags, scale.frames[0], tokens)
                case = f"{name}, {scale.sizes[0]}, {scale.frames[0]} frames, {'packed' if pack else 'padded'}"
                cases.append((case, partial(run_step, scale, recipe, pack, expected)))
        yield from cases


def run_step(scale: Scale, recipe: dict, pack: bool, expected: Future) -> list[Row]:
    import common
    import torch
    from training import build_valley, join, train
    from trl import ModelConfig, get_peft_config

    if "bnb" in recipe["optim"] and not importlib.util.find_spec("bitsandbytes"):
        return [Row("skipped", note="bitsandbytes is not installed")]
    count = recipe["per_device_train_batch_size"]
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    adapters = get_peft_config(ModelConfig(**{name: value for name, value in recipe.items() if name in known}))
    trained = recipe.get("trainable_modules") or [f"model.{name}" for name in adapters.modules_to_save]
    attention = "flash_attention_2" if pack and HAS_FLASH else "sdpa"
    build = partial(build_valley, scale.sizes[0], trained, torch.bfloat16, attention)
    batch = join([make_row(scale.frames[0], int(length)) for length in torch.linspace(*scale.text, count)], pack)
    options = dict(gradient_checkpointing=True, bf16=True, optim=recipe["optim"], peft_config=adapters)
    try:
        steps = train(build, [batch] * (scale.rounds + 1), steps=scale.rounds, **options)
    except torch.OutOfMemoryError:
        return [Row("GiB at the peak", None, "estimate", expected.result(), "out of memory")]
    seconds = statistics.median(step.seconds for step in steps)
    return [
        Row("s per step", seconds, note=f"{count} rows, {attention}"),
        Row("GiB at the peak", common.peak() / 1024, "estimate", expected.result()),
    ]


def make_row(frames: int, length: int) -> dict:
    """A row of the collator: a clip between words, the second half of which is learnt."""
    import torch
    from common import VIDEO

    words = torch.randint(300, 2000, (length,))
    ids = torch.cat([words[: length // 2], torch.full((256 + frames,), VIDEO), words[length // 2 :]])
    labels = torch.where(torch.arange(len(ids)) < len(ids) - length // 2, -100, ids)
    clip = {"pixel_values_videos": torch.rand(1, frames, 3, 224, 224), "video_num_frames": torch.tensor([frames])}
    return {"input_ids": ids, "labels": labels} | clip


def estimate_gib(flags: dict[str, object], num_frames: int, text_tokens: int) -> float:
    """What `valley train estimate` says of a recipe on one GPU."""
    from transformers_valley.training.estimate import GIB, estimate, read_recipe

    arguments = read_recipe([part for name, value in flags.items() for part in (f"--{name}", str(value))])
    found = estimate(*arguments, num_gpus=1, num_frames=num_frames, text_tokens=text_tokens)
    (memory,) = found.memory.values()
    return memory.total(found.recompute) / GIB


SECTIONS = {  # and seconds that each may take, less than ten minutes in all
    "tests": (tests, 180),
    "limits": (limits, 20),
    "tower": (tower, 30),
    "answer_7b": (partial(answer, 0), 90),
    "answer_13b": (partial(answer, 1), 60),
    "fewer_bits": (fewer_bits, 80),
    "training": (training, 115),
}


def run_section(name: str, scale: Scale, file: Path) -> None:
    """Measure the cases of a section, each of which adds its rows to the file as soon as they are there."""
    import common
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    common.SHAPES["tiny"] = TINY_SHAPE, TINY_SHAPE | {"vocab_size": 2006}

    def write(case: str, rows: list[Row]) -> None:
        with file.open("a") as lines:
            for row in rows:
                entry = {"section": name, "case": case} | row._asdict()
                lines.write(json.dumps(entry) + "\n")
                print(" | ".join(cells(entry)), flush=True)

    try:
        if scale is FULL and not common.ON_GPU:
            raise RuntimeError(f"torch {torch.__version__} sees no GPU")
        for case, run in SECTIONS[name][0](scale):
            try:
                rows = run()
            except torch.OutOfMemoryError:
                rows = [Row("out of memory")]
            except Exception as error:  # the next case may go well
                traceback.print_exc()
                rows = [Row("error", note=f"{type(error).__name__}: {error}")]
            write(case, rows)
            gc.collect()
            torch.cuda.empty_cache()
    except Exception as error:
        traceback.print_exc()
        write("", [Row("error", note=f"{type(error).__name__}: {error}")])


# --- The run ---------------------------------------------------------------------------------------------------------


def start_section(name: str, arguments: argparse.Namespace) -> list[dict]:
    """Rows of a section, which a process of its own measures."""
    seconds = SECTIONS[name][1]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.jsonl")
        command = [sys.executable, __file__, "--section", name, "--output", str(file)]
        environment = os.environ | {"PYTHONPATH": search_path(), "HF_HUB_OFFLINE": "1"}
        if arguments.dry_run:
            command.append("--dry-run")
            environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}  # which tiny models are fastest with
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        problem = None
        try:
            if status := process.wait(None if arguments.dry_run else seconds):
                problem = f"ended with {status}"
        except subprocess.TimeoutExpired:
            problem = f"stopped after {seconds} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it has started, too
            process.wait()
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    if problem:
        rows.append({"section": name, "case": ""} | Row("error", note=problem)._asdict())
    return rows


def search_path(*folders: Path) -> str:
    """What `PYTHONPATH` has to be, so that this checkout is measured, and no wheel of it."""
    return os.pathsep.join([str(ROOT / "src"), *map(str, folders), os.environ.get("PYTHONPATH", "")])


def describe_machine(dry_run: bool) -> dict[str, str]:
    """Device, driver and versions."""
    found = {"device": f"{platform.machine()}, {os.cpu_count()} CPU cores, dry run with tiny models"}
    if not dry_run:
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        try:
            lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
        except (OSError, subprocess.CalledProcessError) as error:
            sys.exit(f"No GPU was found ({error}). `--dry-run` tries all this on a CPU.")
        found = {"device (name, memory, driver)": "; ".join(lines)}
    found["python"] = platform.python_version()
    for package in SHOWN:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def write_results(folder: Path, machine: dict[str, str], seconds: dict[str, float], rows: list[dict]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    results = {"machine": machine, "seconds": seconds, "rows": rows}
    (folder / "on_gpu.json").write_text(json.dumps(results, indent=1))
    lines = [", ".join(f"{name} {value}" for name, value in machine.items()), ""]
    lines += [
        "| section | case | measure | value | against | | value / it | |",
        "| --- | --- | --- | ---: | --- | ---: | ---: | --- |",
    ]
    lines += [f"| {' | '.join(cells(row))} |" for row in rows]
    (folder / "on_gpu.md").write_text("\n".join(lines) + "\n")


def cells(row: dict) -> list[str]:
    value, reference = row["value"], row["reference"]
    ratio = f"{value / reference:.2f}" if value is not None and reference else ""
    figures = ["" if figure is None else f"{figure:,.4g}" for figure in (value, reference)]
    note = (row["note"].splitlines() or [""])[0].replace("|", "\\|")
    return [row["section"], row["case"], row["measure"], figures[0], row["against"], figures[1], ratio, note]


# --- Packages --------------------------------------------------------------------------------------------------------


def read_requirements() -> list[str]:
    import tomllib  # of Python 3.11

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["train"], "pytest"]


def find_unmet(requirements: list[str]) -> tuple[list[str], list[str]]:
    """Requirements that this Python does not meet; and those of packages that are there, where only a version differs.

    Others often ask for narrower versions than work, so that the second list may be harmless.
    """
    wanted, seen, unmet, doubtful = [(Requirement(text), True) for text in requirements], set(), {}, {}
    for requirement, is_ours in wanted:  # which grows
        name, text = requirement.name, requirement.name + str(requirement.specifier)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            unmet.setdefault(name, text)
            continue
        if not requirement.specifier.contains(distribution.version, prereleases=True):
            (unmet if is_ours else doubtful)[name] = text
        elif name not in seen:
            seen.add(name)
            for further in map(Requirement, distribution.requires or []):
                extras = requirement.extras or {""}
                if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in extras):
                    wanted.append((further, False))
    return sorted(unmet.values()), sorted(doubtful.values())


def explain_unmet(unmet: list[str]) -> str:
    names = shlex.join(unmet)
    target = f"--python-version {platform.python_version()} --only-binary :all:"
    for tag in ("manylinux_2_28", "manylinux2014"):
        target += f" --platform {tag}_{platform.machine()}"
    return (
        f"This Python lacks: {', '.join(unmet)}.\n"
        f"Install them: pip install {names}\n"
        f"Or, if there is no network, fetch them elsewhere: pip download --no-deps --dest wheels {target} {names}\n"
        "and pass --wheels wheels."
    )


def run_with_wheels(folder: Path, argv: list[str]) -> int:
    """This command once more, with the wheels of a folder installed where nothing else is changed by them."""
    wheels = sorted(map(str, folder.glob("*.whl")))
    if not wheels:
        sys.exit(f"{folder} has no wheels.")
    with tempfile.TemporaryDirectory() as target:
        # Without --no-deps pip would want torch in the folder, too: it does not look at what is installed elsewhere.
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", target]
        subprocess.run([*pip, *wheels], check=True)
        environment = os.environ | {"PYTHONPATH": search_path(Path(target))}
        return subprocess.run([sys.executable, __file__, *argv], env=environment).returncode


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/on_gpu"), help="folder for the results")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="what to measure")
    parser.add_argument("--wheels", help="folder of wheels to use beside or in place of what is installed")
    parser.add_argument("--dry-run", action="store_true", help="tiny models on the CPU")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.wheels:
        return run_with_wheels(Path(arguments.wheels), [*argv, "--wheels", ""])
    if arguments.section:
        run_section(arguments.section, TINY if arguments.dry_run else FULL, arguments.output)
        return 0
    unmet, doubtful = find_unmet(read_requirements())
    if unmet:
        sys.exit(explain_unmet(unmet))

    machine, rows, seconds = describe_machine(arguments.dry_run), [], {}
    if doubtful:
        machine["other versions than asked for"] = ", ".join(doubtful)
    print(*(f"{name}: {value}" for name, value in machine.items()), sep="\n", flush=True)
    for name in arguments.only:
        start = time.monotonic()
        rows += start_section(name, arguments)
        seconds[name] = round(time.monotonic() - start, 1)
        write_results(arguments.output, machine, seconds, rows)
    print((arguments.output / "on_gpu.md").read_text())
    return int(any(row["measure"] == "error" or row["measure"] == "failed" and row["value"] for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
