# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What the three temporal modules of the paper keep of time, on clips in which time decides the answer.

    python examples/ablate_temporal.py          # 18 tiny Valleys, 100 minutes of CPU for two cores; again, it goes on
    python examples/ablate_temporal.py --fast   # the same in a minute, too short to learn anything

Lamps in a grid of 4 x 4 go on and off. Which of two comes first (order), which is on for longer (duration), whether
they are ever on together (simultaneity), whether a lamp is there at all (presence, which needs no time). Each module
is trained with three seeds, with and without the frame tokens that stand beside its grid, on 8 frames of a clip; then
it is tested on other clips, with 2 to 32 frames. The vision tower is pretrained here once, and frozen.
"""

import argparse
import json
import random
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn
from tqdm import tqdm
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from transformers_valley import ValleyConfig, ValleyForConditionalGeneration
from transformers_valley.evaluation.benchmark import Column
from transformers_valley.evaluation.statistics import Estimate, estimate
from transformers_valley.plots import chart_style
from transformers_valley.tables import format_table
from transformers_valley.whole_files import whole_file, write_whole


MODULES = {"mean": "v1, mean", "importance": "v2, importance", "transformer": "v3, transformer"}
KINDS = ("presence", "duration", "order", "simultaneity")
SEEDS = (0, 1, 2)
MOMENTS = 32  # of a clip
TRAIN_FRAMES, TEST_FRAMES = 8, (2, 4, 8, 16, 32)

GRID, CELL = 4, 8  # a lamp is a patch
PATCHES, SIZE = GRID**2, GRID * CELL
COLOURS = {"red": (225, 45, 45), "green": (45, 185, 60), "blue": (50, 80, 235), "yellow": (240, 220, 50)}
WORDS = ["<video>", "<s>", "first", "longer", "together", "there", "yes", "no", *COLOURS]
IDS = {word: i for i, word in enumerate(WORDS)}
WIDTH = 64


@dataclass(frozen=True)
class Scale:
    train: int = 12_000  # clips
    test: int = 1_200
    steps: int = 1_500
    tower_steps: int = 300
    batch: int = 64


FAST = Scale(train=128, test=40, steps=3, tower_steps=3, batch=16)


# --- Clips -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lamp:
    """In its cell, on from moment `start` up to `end`."""

    colour: str
    cell: int
    start: int
    end: int


@dataclass(frozen=True)
class Clip:
    lamps: tuple[Lamp, ...]
    kind: str
    question: tuple[str, str, str]  # a word for the kind, and two colours
    answer: str


def random_clip(seed: str, index: int) -> Clip:
    """A clip with three lamps and a question about the first two, whose answers are equally frequent."""
    rng = random.Random(f"{seed}/{index}")
    kind = KINDS[index % len(KINDS)]
    colours, cells = rng.sample(list(COLOURS), 4), rng.sample(range(PATCHES), 3)
    coin = rng.random() < 0.5
    spans = [*_spans(kind, coin, rng), _span(rng.randint(4, 12), rng)]
    lamps = tuple(Lamp(c, cell, *span) for c, cell, span in zip(colours, cells, spans, strict=False))
    first, second = colours[:2] if rng.random() < 0.5 else colours[1::-1]
    if kind == "presence":
        absent = colours[3]  # no lamp has it
        return Clip(lamps, kind, ("there", colours[0] if coin else absent, "there"), "yes" if coin else "no")
    if kind == "simultaneity":
        return Clip(lamps, kind, ("together", first, second), "yes" if coin else "no")
    word = {"order": "first", "duration": "longer"}[kind]
    return Clip(lamps, kind, (word, first, second), colours[0] if coin else colours[1])


def _span(length: int, rng: random.Random) -> tuple[int, int]:
    start = rng.randint(0, MOMENTS - length)
    return start, start + length


def _spans(kind: str, coin: bool, rng: random.Random) -> list[tuple[int, int]]:
    """When the first two lamps are on. Heads: the first comes first, is on for longer, or both are on together."""
    if kind == "presence":
        return [_span(rng.randint(4, 12), rng) for _ in range(2)]
    if kind == "duration":
        spans = [_span(rng.randint(14, 22), rng), _span(rng.randint(4, 8), rng)]
        return spans if coin else spans[::-1]
    lengths = [rng.randint(5, 10) for _ in range(2)]
    while True:  # order and simultaneity: lengths tell nothing
        starts = [rng.randint(0, MOMENTS - length) for length in lengths]
        (a, b), (c, d) = ((start, start + length) for start, length in zip(starts, lengths, strict=True))
        overlap = min(b, d) - max(a, c)
        if kind == "order" and abs(a - c) >= 6 and (a < c) == coin:
            return [(a, b), (c, d)]
        if kind == "simultaneity" and (overlap >= 5 if coin else overlap <= -3):
            return [(a, b), (c, d)]


def draw(clip: Clip, moments: np.ndarray) -> np.ndarray:
    """Frames of a clip, float32 (T, 3, SIZE, SIZE) from 0 to 1."""
    frames = np.full((len(moments), 3, SIZE, SIZE), 0.1, np.float32)
    for lamp in clip.lamps:
        y, x = (lamp.cell // GRID) * CELL, (lamp.cell % GRID) * CELL
        on = (moments >= lamp.start) & (moments < lamp.end)
        frames[on, :, y + 1 : y + CELL - 1, x + 1 : x + CELL - 1] = np.array(COLOURS[lamp.colour])[:, None, None] / 255
    return frames


def moments(count: int) -> np.ndarray:
    """Moments of `count` frames, evenly from the first to the last."""
    return np.linspace(0, MOMENTS - 1, count).round().astype(int)


# --- Models ----------------------------------------------------------------------------------------------------------


def make_config(module: str) -> ValleyConfig:
    vision = CLIPVisionConfig(
        image_size=SIZE,
        patch_size=CELL,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
    )
    text = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=128,
        initializer_range=0.06,  # the usual 0.02 is meant for far wider layers
        bos_token_id=IDS["<s>"],
        eos_token_id=None,
        pad_token_id=None,
    )
    return ValleyConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=len(WORDS) + 1,  # there are none
        video_token_id=IDS["<video>"],
        temporal_module=module,
        temporal_num_heads=4,
        temporal_intermediate_size=2 * WIDTH,
        temporal_dropout=0.0,  # a small model on endless clips needs none
    )


def pretrain_tower(scale: Scale) -> CLIPVisionModel:
    """Teaches a tower the colour of each patch, and by its first token which colours a frame has."""
    torch.set_num_threads(1)  # matrices this small gain nothing from a second core; a second process does
    torch.manual_seed(0)
    tower = CLIPVisionModel(make_config("mean").vision_config)
    patch_head, frame_head = nn.Linear(WIDTH, len(COLOURS) + 1), nn.Linear(WIDTH, len(COLOURS))
    parameters = [*tower.parameters(), *patch_head.parameters(), *frame_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3)
    names = list(COLOURS)
    for step in tqdm(range(scale.tower_steps), desc="vision tower"):
        clips = [random_clip("tower", step * 128 + i) for i in range(128)]
        times = [np.array([random.Random(step * 128 + i).randrange(MOMENTS)]) for i in range(128)]
        pixels = torch.from_numpy(np.concatenate([draw(*pair) for pair in zip(clips, times, strict=True)]))
        patches = torch.zeros(128, PATCHES, dtype=torch.long)
        for row, (clip, (moment,)) in enumerate(zip(clips, times, strict=True)):
            for lamp in clip.lamps:
                if lamp.start <= moment < lamp.end:
                    patches[row, lamp.cell] = 1 + names.index(lamp.colour)
        present = torch.stack([(patches == 1 + i).any(1) for i in range(len(names))], dim=1).float()
        features = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
        loss = F.cross_entropy(patch_head(features[:, 1:]).flatten(0, 1), patches.flatten())
        loss = loss + F.binary_cross_entropy_with_logits(frame_head(features[:, 0]), present)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"vision tower: loss {loss.item():.4f}")
    return tower


@torch.no_grad()
def encode(tower: CLIPVisionModel, clips: list[Clip], frames: int) -> torch.Tensor:
    """What the frozen tower makes of clips: (clips, frames, 1 + PATCHES, WIDTH)."""
    found = []
    for start in range(0, len(clips), 100):
        pixels = np.concatenate([draw(clip, moments(frames)) for clip in clips[start : start + 100]])
        hidden = tower(pixel_values=torch.from_numpy(pixels), output_hidden_states=True).hidden_states[-2]
        found.append(hidden.unflatten(0, (-1, frames)))
    return torch.cat(found)


def prompts(clips: list[Clip], frames: int) -> torch.Tensor:
    """(clips, 1 + PATCHES + frames + 3)."""
    visual = [IDS["<s>"]] + [IDS["<video>"]] * (PATCHES + frames)
    return torch.tensor([visual + [IDS[word] for word in clip.question] for clip in clips])


def answer_logits(
    model: ValleyForConditionalGeneration, ids: torch.Tensor, features: torch.Tensor, uses_frame_tokens: bool
) -> torch.Tensor:
    """What the model says next, (clips, words). Without frame tokens, no position attends to theirs."""
    count, frames = features.shape[:2]
    mask = torch.ones_like(ids)
    if not uses_frame_tokens:
        mask[:, 1 + PATCHES : 1 + PATCHES + frames] = 0
    visual = BaseModelOutputWithPooling(last_hidden_state=features.flatten(0, 1))
    output = model(
        input_ids=ids,
        attention_mask=mask,
        mm_encoder_outputs={"video": visual},
        video_num_frames=[frames] * count,
        logits_to_keep=1,
    )
    return output.logits[:, -1]


def train_and_test(features: Path, module: str, uses_frame_tokens: bool, seed: int, scale: Scale) -> list[dict]:
    """One model; for each test clip and number of frames, whether it is right. What is there already is read."""
    tokens = "with" if uses_frame_tokens else "without"
    file = features.parent / f"{module}_{tokens}_frame_tokens_seed_{seed}_{scale.steps}_steps.json"
    if file.exists():
        return json.loads(file.read_text())
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = ValleyForConditionalGeneration(make_config(module))
    data = torch.load(features, mmap=True)
    clips = [random_clip("train", i) for i in range(scale.train)]
    ids, answers = prompts(clips, TRAIN_FRAMES), torch.tensor([IDS[clip.answer] for clip in clips])
    trained = [p for name, p in model.named_parameters() if "vision_tower" not in name]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, scale.steps, pct_start=0.1, cycle_momentum=False)
    model.train()
    order = torch.Generator().manual_seed(seed)
    for _ in range(scale.steps):
        rows = torch.randint(scale.train, (scale.batch,), generator=order)
        logits = answer_logits(model, ids[rows], data["train"][rows], uses_frame_tokens)
        loss = F.cross_entropy(logits, answers[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    tests, results = [random_clip("test", i) for i in range(scale.test)], []
    for frames in TEST_FRAMES:
        asked = prompts(tests, frames)
        for start in range(0, scale.test, 100):
            part = slice(start, start + 100)
            with torch.no_grad():
                said = answer_logits(model, asked[part], data["test"][part][:, moments(frames)], uses_frame_tokens)
            for index, word in enumerate(said.argmax(-1).tolist(), start=start):
                right = WORDS[word] == tests[index].answer
                results.append({"clip": index, "kind": tests[index].kind, "frames": frames, "right": right})
    about = {"module": module, "frame_tokens": uses_frame_tokens, "seed": seed, "loss": round(loss.item(), 4)}
    results = [{**about, **result} for result in results]
    write_whole(file, json.dumps(results).encode())
    return results


# --- What came out ---------------------------------------------------------------------------------------------------


def accuracy(results: list[dict], **wanted) -> Estimate:
    """In percent, over clips and seeds; the interval resamples clips."""
    found = [r for r in results if all(r[key] == value for key, value in wanted.items())]
    return estimate(
        Column("right", ((1.0, tuple((str(i), str(r["clip"]), r["right"]) for i, r in enumerate(found))),), 100)
    )


def make_table(results: list[dict]) -> str:
    header = ["frame tokens", "module", *KINDS]
    rows = []
    for tokens in (True, False):
        for module, title in MODULES.items():
            cells = []
            for kind in KINDS:
                about = {"module": module, "frame_tokens": tokens, "frames": TRAIN_FRAMES, "kind": kind}
                found = accuracy(results, **about)
                seeds = [accuracy(results, seed=seed, **about).value for seed in SEEDS]
                cells.append(
                    f"{found.value:.1f} [{found.low:.1f}, {found.high:.1f}] ({min(seeds):.0f}–{max(seeds):.0f})"
                )
            rows.append(["with" if tokens else "without", title, *cells])
    return format_table([header, *rows], "llrrrr")


def draw_results(results: list[dict], file: Path) -> None:
    """Above, accuracy by kind of question; below, by the number of frames at test time."""
    with chart_style():
        figure = Figure(figsize=(11, 7), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=[1, 1.1])
        for axes, tokens in zip(above.subplots(1, 2, sharey=True), (True, False), strict=True):
            for shift, (module, title) in enumerate(MODULES.items()):
                found = [
                    accuracy(results, module=module, frame_tokens=tokens, frames=TRAIN_FRAMES, kind=kind)
                    for kind in KINDS
                ]
                places = [i + (shift - 1) * 0.2 for i in range(len(KINDS))]
                axes.errorbar(places, [e.value for e in found], _spread(found), fmt="o", capsize=3, label=title)
            axes.axhline(50, color="gray", linestyle=":")
            axes.set_xticks(range(len(KINDS)), KINDS)
            axes.set(title=f"{'with' if tokens else 'without'} frame tokens, {TRAIN_FRAMES} frames", ylim=(30, 103))
            axes.grid(axis="y", alpha=0.3)
        above.axes[0].set_ylabel("right, % (95%)")
        above.axes[1].legend(frameon=False, loc="center left")
        for axes, kind in zip(below.subplots(1, len(KINDS), sharey=True), KINDS, strict=True):
            for (module, title), colour in zip(MODULES.items(), ("C0", "C1", "C2"), strict=True):
                for tokens, style in ((True, "-"), (False, "--")):
                    found = [
                        accuracy(results, module=module, frame_tokens=tokens, frames=count, kind=kind)
                        for count in TEST_FRAMES
                    ]
                    label = title if tokens else f"{title}, no frame tokens"
                    axes.errorbar(
                        *(TEST_FRAMES, [e.value for e in found], _spread(found)),
                        **{"linestyle": style, "color": colour, "marker": ".", "capsize": 2, "label": label},
                    )
            axes.set_xscale("log", base=2)
            axes.set_xticks(TEST_FRAMES, TEST_FRAMES)
            axes.axhline(50, color="gray", linestyle=":")
            axes.set(title=kind, xlabel="frames at test time")
            axes.grid(axis="y", alpha=0.3)
        below.axes[0].set_ylabel("right, % (95%)")
        below.legend(*below.axes[0].get_legend_handles_labels(), frameon=False, ncols=3, loc="outside lower center")
        figure.savefig(file, dpi=110)


def _spread(found: list[Estimate]) -> list[list[float]]:
    return [[max(0.0, e.value - e.low) for e in found], [max(0.0, e.high - e.value) for e in found]]


def main(folder: Path, scale: Scale) -> list[dict]:
    began = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"features_{scale.train}.pt"
    if not file.exists():
        tower = pretrain_tower(scale).eval()
        features = {
            "train": encode(tower, [random_clip("train", i) for i in range(scale.train)], TRAIN_FRAMES),
            "test": encode(tower, [random_clip("test", i) for i in range(scale.test)], MOMENTS),
        }
        with whole_file(file) as unfinished, open(unfinished, "wb") as archive:
            torch.save(features, archive)
        del features
    jobs = [(module, tokens, seed) for seed in SEEDS for module in MODULES for tokens in (True, False)]
    results = []
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        trained = [pool.submit(train_and_test, file, *job, scale) for job in jobs]
        for job, future in zip(jobs, tqdm(trained, desc="models"), strict=True):
            results += future.result()
            tqdm.write(f"{job}: loss {results[-1]['loss']}, {time.perf_counter() - began:.0f} s")
    write_whole(folder / "results.json", json.dumps(results).encode())
    print(f"\nRight in percent, with 95% intervals and (worst to best seed); chance is 50.\n\n{make_table(results)}\n")
    draw_results(results, folder / "ablation.png")
    print(f"{time.perf_counter() - began:.0f} s; the picture is {folder / 'ablation.png'}")
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="a few steps on a few clips: does it run?")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/ablate_temporal"), help="folder of what it writes"
    )
    given = parser.parse_args()
    main(given.output, FAST if given.fast else Scale())
