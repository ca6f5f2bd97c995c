# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""A tiny Valley from nothing, in a few minutes on two CPU cores: clips, both training stages, answers, a picture.

    python examples/quickstart.py                   # everything, into outputs/quickstart
    python examples/quickstart.py --video clip.mp4  # then show a clip of yours to the model trained there

Real Valleys join a CLIP and a LLaMA that others pretrained. Here both are tiny and pretrained in this script: the
vision tower on pictures of coloured shapes, the language model on sentences about them. What follows is the real way:
stage 1 and stage 2 through `examples/sft.py`, a checkpoint, a pipeline.
"""

import os
import time


START = time.perf_counter()
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here needs the network
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # on two cores, threads that wait must not keep others from working

import argparse
import contextlib
import json
import random
import sys
import textwrap
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import sft
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from moving_shapes import (
    CAPTION_QUESTION,
    COLOURS,
    SHAPES,
    SIZE,
    caption,
    clear_output,
    draw_frame,
    draw_frames,
    questions,
    random_clip,
    write_video,
)
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import nn
from tqdm import tqdm
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    pipeline,
    set_seed,
)
from transformers.utils import logging

import transformers_valley
from transformers_valley import ValleyForConditionalGeneration, ValleyProcessor
from transformers_valley.plots import INK, WRONG, chart_style
from transformers_valley.video_decoding import VideoDecodeError, sample_video


EXAMPLES = Path(__file__).parent
TRAIN_CLIPS, TEST_CLIPS, NUM_FRAMES = 2400, 200, 8
# Into the folder of the output.
WRITTEN = {"checkpoint", "clips", "joined", "report.json", "report.png", "stage1", "text", "video.png", "vision"}
PATCH_SIZE, HIDDEN_SIZE = 16, 128
MEAN, STD = [0.2] * 3, [0.25] * 3  # of the pictures: most of them is dark
LABELS = [*COLOURS, *SHAPES]
BINS = 8  # classes of place and angle: telling classes apart makes features that a projector can read


@contextlib.contextmanager
def step(name: str):
    """Says what is done, and how long it took."""
    print(f"\n[{time.perf_counter() - START:4.0f} s] {name}", flush=True)
    begin = time.perf_counter()
    yield
    print(f"         done in {time.perf_counter() - begin:.0f} s", flush=True)


# ---- 1. Clips, and what is asked about them -------------------------------------------------------------------------


def make_clip(path: Path, seed: str, index: int) -> None:
    write_video(path, draw_frames(random_clip(seed, index)))


def chat(turns: list[tuple[str, str]], first_block: dict) -> list[dict]:
    """Questions and answers as messages; what they are about stands before the first question."""
    messages = []
    for i, (question, answer) in enumerate(turns):
        content = [*([first_block] if i == 0 else []), {"type": "text", "text": question}]
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages


def make_data(folder: Path, seed: int) -> list[tuple[Path, str, str, str]]:
    """Writes the clips and the rows of both stages; returns (path, type, question, answer) of the held-out clips."""
    worlds = {"train": TRAIN_CLIPS, "test": TEST_CLIPS}
    jobs = [(folder / world / f"{i:05}.mp4", f"{seed} {world}", i) for world, n in worlds.items() for i in range(n)]
    for world in worlds:
        (folder / world).mkdir(parents=True)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        written = pool.map(make_clip, *zip(*jobs, strict=True), chunksize=50)
        list(tqdm(written, total=len(jobs), desc="clips"))
    with (folder / "captions.jsonl").open("w") as captions, (folder / "dialogues.jsonl").open("w") as dialogues:
        for i in range(TRAIN_CLIPS):
            clip, video = random_clip(f"{seed} train", i), {"type": "video", "path": f"train/{i:05}.mp4"}
            about = [(question, answer) for _, question, answer in questions(clip, random.Random(f"{seed} {i}"))]
            for file, turns in ((captions, [(CAPTION_QUESTION, caption(clip))]), (dialogues, about)):
                file.write(json.dumps({"messages": chat(turns, video), "images": []}) + "\n")
    held_out = [
        (folder / "test" / f"{i:05}.mp4", *asked)
        for i in range(TEST_CLIPS)
        for asked in questions(random_clip(f"{seed} test", i), random.Random(f"{seed} {i}"))
    ]
    with (folder / "held_out.jsonl").open("w") as rows:
        for path, kind, question, answer in held_out:
            row = {"video": f"test/{path.name}", "question": question, "answer": answer, "type": kind}
            rows.write(json.dumps(row) + "\n")
    return held_out


# ---- 2. A vision tower that knows shapes, a language model that knows words -----------------------------------------


def labelled_pictures(indices: range) -> tuple[torch.Tensor, ...]:
    """Single frames with what is on them: names, and classes of x, y and angle; and the names of each patch."""
    side = SIZE // PATCH_SIZE
    centres = (np.arange(side) + 0.5) * PATCH_SIZE
    pixels = np.empty((len(indices), SIZE, SIZE, 3), np.uint8)
    names = np.zeros((len(indices), len(LABELS)), np.float32)
    places = np.full((len(indices), 3), -100)  # ignored where the picture is empty
    patches = np.zeros((len(indices), side, side, len(LABELS)), np.float32)
    for row, index in enumerate(indices):
        clip = random_clip("pictures", index)
        shapes = clip.shapes_at(random.Random(index).random())
        pixels[row] = draw_frame(shapes, clip.background)
        for shape in shapes:
            names[row, [LABELS.index(shape.colour), LABELS.index(shape.name)]] = 1
            near = np.hypot(centres[:, None] - shape.y, centres - shape.x) < shape.radius + PATCH_SIZE / 4
            patches[row, near] = names[row]
            shares = np.array([shape.x / SIZE, shape.y / SIZE, shape.angle % 360 / 360])
            places[row] = np.clip(shares * BINS, 0, BINS - 1)
    pixels = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - MEAN[0]) / STD[0]
    return pixels, *map(torch.from_numpy, (names, places, patches.reshape(len(indices), -1, len(LABELS))))


def sinusoidal_grid(side: int, dim: int) -> torch.Tensor:
    """Sines and cosines of row and column: a start from which positions are learned in seconds, not hours."""
    rates = torch.pi / 2 / 10 ** (torch.arange(dim // 4) / (dim // 4))
    angles = torch.arange(side)[:, None] * rates
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.cat([waves[:, None].expand(-1, side, -1), waves.expand(side, -1, -1)], dim=2).flatten(0, 1)


def descend(modules: list[nn.Module], loss_of_step, steps: int, rate: float, name: str, line: int) -> None:
    """Plain pretraining: AdamW on one core, the rate up and down once, and a progress bar."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1, cycle_momentum=False)
    progress = tqdm(range(steps), desc=f"{name:>14}", position=line)
    for i in progress:
        loss = loss_of_step(i)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def pretrain_vision_tower(folder: Path, seed: int, steps: int = 600, batch_size: int = 64) -> None:
    """Teaches a CLIP vision model colours, shapes, places and angles, at the layer that Valley reads."""
    set_up(seed)
    config = CLIPVisionConfig(
        image_size=SIZE,
        patch_size=PATCH_SIZE,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=4 * HIDDEN_SIZE,
        num_hidden_layers=4,
        num_attention_heads=4,
    )
    tower = CLIPVisionModel(config)
    with torch.no_grad():
        grid = sinusoidal_grid(SIZE // PATCH_SIZE, HIDDEN_SIZE)
        tower.get_parameter("embeddings.position_embedding.weight")[1:] = grid
    frame_head, patch_head = nn.Linear(HIDDEN_SIZE, len(LABELS) + 3 * BINS), nn.Linear(HIDDEN_SIZE, len(LABELS))

    def loss_of_step(i: int) -> torch.Tensor:
        pixels, names, places, patches = labelled_pictures(range(i * batch_size, (i + 1) * batch_size))
        features = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
        said, where = frame_head(features[:, 0]).split([len(LABELS), 3 * BINS], dim=1)
        of_frame = F.binary_cross_entropy_with_logits(said, names)
        of_frame = of_frame + F.cross_entropy(where.unflatten(1, (3, BINS)).transpose(1, 2), places)
        return 2 * of_frame + F.binary_cross_entropy_with_logits(patch_head(features[:, 1:]), patches)

    descend([tower, frame_head, patch_head], loss_of_step, steps, 3e-3, "vision tower", 0)
    tower.save_pretrained(folder)
    size, crop_size = {"shortest_edge": SIZE}, {"height": SIZE, "width": SIZE}
    CLIPImageProcessor(size=size, crop_size=crop_size, image_mean=MEAN, image_std=STD).save_pretrained(folder)


def told_clips(count: int) -> list[list[dict]]:
    """Chats about clips told in words: all that is asked can be read in the caption."""
    chats = []
    for i in range(count):
        clip = random_clip("sentences", i)
        about = [(question, answer) for _, question, answer in questions(clip, random.Random(i))]
        chats.append(chat(about, {"type": "text", "text": caption(clip)}))
    return chats


def train_tokenizer(chats: list[list[dict]]) -> PreTrainedTokenizerFast:
    """One token per word, with the space before it, or punctuation mark."""
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    template = Path(transformers_valley.__file__).with_name("chat_template.jinja").read_text()
    empty = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    empty = PreTrainedTokenizerFast(tokenizer_object=empty, chat_template=template, eos_token="\n")
    texts = empty.apply_chat_template(chats, tokenize=False)
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text.lower())})
    vocabulary = {word: i for i, word in enumerate([*special.values(), *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.normalizer, backend.pre_tokenizer, backend.decoder = normalizers.Lowercase(), split, decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **special)


def pretrain_language_model(folder: Path, seed: int, steps: int = 120, batch_size: int = 32) -> None:
    """Teaches a LLaMA the words, the form of a chat, and to answer from what stands before the question."""
    set_up(seed)
    chats = told_clips(steps * batch_size)
    tokenizer = train_tokenizer(chats)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN_SIZE,
        intermediate_size=3 * HIDDEN_SIZE,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
        initializer_range=0.06,  # the usual 0.02 is meant for far wider layers
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    options = {"tokenize": True, "padding": True, "return_dict": True, "return_tensors": "pt"}

    def loss_of_step(i: int) -> torch.Tensor:
        rows = chats[i * batch_size : (i + 1) * batch_size]
        batch = tokenizer.apply_chat_template(rows, return_assistant_tokens_mask=True, **options)
        return model(labels=batch["input_ids"].masked_fill(batch.pop("assistant_masks") == 0, -100), **batch).loss

    descend([model], loss_of_step, steps, 2e-3, "language model", 1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def pretrain(folder: Path, seed: int) -> tuple[Path, Path]:
    """Both parts at once, each on a core of its own."""
    vision, text = folder / "vision", folder / "text"
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        parts = [pool.submit(pretrain_vision_tower, vision, seed), pool.submit(pretrain_language_model, text, seed)]
        for part in parts:
            part.result()
    return vision, text


# ---- 3. Valley ------------------------------------------------------------------------------------------------------


def join(vision: Path, text: Path, folder: Path) -> Path:
    """A Valley of the two, whose projector and temporal module know nothing yet."""
    tokenizer = AutoTokenizer.from_pretrained(text)
    model = ValleyForConditionalGeneration.from_vision_text_pretrained(
        vision, text, tokenizer=tokenizer, temporal_module="transformer", temporal_intermediate_size=512
    )
    model.save_pretrained(folder)
    ValleyProcessor.from_vision_text_pretrained(vision, tokenizer, num_frames=NUM_FRAMES).save_pretrained(folder)
    return folder


def train(stage: str, start: Path, rows: Path, folder: Path, **changes) -> list[float]:
    """A stage of `examples/sft.py` with its own YAML, but for what a tiny model on two cores needs otherwise."""
    changes = {
        "model_name_or_path": start,
        "vision_model_name_or_path": "",  # joined already
        "data": rows,
        "media_root": rows.parent,
        "output_dir": folder,
        "dtype": "float32",
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 16,
        "dataloader_num_workers": 1,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "logging_steps": 5,
        "report_to": "none",
        **changes,
    }
    flags = [part for name, value in changes.items() for part in (f"--{name}", str(value))]
    trainer = sft.main(["--config", str(EXAMPLES / "configs" / f"{stage}.yaml"), *flags])
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


# ---- 4. Answers -----------------------------------------------------------------------------------------------------


def ask(pipe, held_out: list[tuple[Path, str, str, str]], batch_size: int = 64) -> list[str]:
    """Asks every question alone, about a clip the model has never seen."""
    answers = []
    for i in tqdm(range(0, len(held_out), batch_size), desc="questions"):
        paths, _, asked, _ = zip(*held_out[i : i + batch_size], strict=True)
        results = pipe(list(paths), list(asked), batch_size=batch_size, return_full_text=False)
        answers += [result[0]["generated_text"] for result in results]
    return answers


def score(held_out: list[tuple[Path, str, str, str]], answers: list[str]) -> dict:
    """Share of answers that are right to the letter, overall and per type of question.

    Chance is what one gets by always giving the answer that is the most frequent one for the type.
    """
    by_question = {}
    for kind in sorted({kind for _, kind, _, _ in held_out}):
        pairs = [(answer, truth) for answer, (_, k, _, truth) in zip(answers, held_out, strict=True) if k == kind]
        most_frequent = Counter(truth for _, truth in pairs).most_common(1)[0][1]
        right = sum(answer == truth for answer, truth in pairs)
        by_question[kind] = {
            "accuracy": right / len(pairs),
            "chance": most_frequent / len(pairs),
            "count": len(pairs),
        }
    overall = {
        name: sum(row[name] * row["count"] for row in by_question.values()) / len(held_out)
        for name in ("accuracy", "chance")
    }
    return {**overall, "by_question": by_question}


def frames_seen(pipe, clip: Path | str) -> tuple[np.ndarray, list[float]]:
    """The frames as the model sees them, (T, SIZE, SIZE, 3) from 0 to 1, and their times in seconds."""
    inputs = pipe.processor.video_processor(clip, return_metadata=True)
    pixels = inputs["pixel_values_videos"][0] * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    return pixels.clamp(0, 1).permute(0, 2, 3, 1).numpy(), inputs["video_metadata"][0].timestamps


def draw_frames_seen(axes, frames: np.ndarray, times: list[float], columns: int) -> None:
    """Frames row by row, each above its time."""
    size = frames.shape[1]
    gap, line = 4, size // 4  # pixels between frames, and for a time
    rows = -(-len(frames) // columns)
    sheet = np.ones((rows * (size + line) + line, columns * (size + gap) - gap, 3))
    for i, (frame, second) in enumerate(zip(frames, times, strict=True)):
        top, left = i // columns * (size + line), i % columns * (size + gap)
        sheet[top : top + size, left : left + size] = frame
        axes.text(left + size / 2, top + size + line / 2, f"{second:.1f} s", ha="center", va="center", size=10)
    axes.imshow(sheet, interpolation="nearest", aspect="equal")
    axes.set_anchor("NW")
    axes.axis("off")


def write_answers(axes, answered: list[tuple[str, str, str | None]], width: int = 68) -> None:
    """A line for each question and answer, in another colour where the answer is wrong; long ones are wrapped."""
    height = 0.0
    for question, answer, truth in answered:
        wrong = truth is not None and answer != truth
        text = f"{question} {answer}" + (f"  ✗ right: {truth}" if wrong else "")
        text = textwrap.fill(text, width, subsequent_indent="   ")
        axes.text(0, 1 - height, text, va="top", size=11, color=WRONG if wrong else INK, transform=axes.transAxes)
        height += 0.085 * (1 + text.count("\n")) + 0.03
    axes.axis("off")


def draw_report(pipe, held_out, answers, losses: dict, figures: dict, path: Path, clips: int = 5) -> None:
    """Some held-out clips with question and answer, and the loss of both stages."""
    with chart_style():
        figure = Figure(figsize=(10, 2.1 * clips + 3.2), layout="constrained")
        sheet, curves = figure.subfigures(2, 1, height_ratios=[2.1 * clips, 3])
        sheet.suptitle(
            f"{figures['accuracy']:.1%} of answers about clips it has never seen are right "
            f"(chance {figures['chance']:.1%})",
            weight="bold",
        )
        for i, (seen, said) in enumerate(sheet.subplots(clips, 2, width_ratios=[3, 5])):
            clip = held_out[0][0].with_name(f"{i * TEST_CLIPS // clips:05}.mp4")
            draw_frames_seen(seen, *frames_seen(pipe, clip), columns=NUM_FRAMES // 2)
            asked = zip(held_out, answers, strict=True)
            about = [(question, answer, truth) for (of, _, question, truth), answer in asked if of == clip]
            write_answers(said, about)
        titles = ("Stage 1 (align)", "Stage 2 (instruct)")
        for axes, title, values in zip(curves.subplots(1, 2), titles, losses.values(), strict=True):
            axes.plot(np.linspace(0, 100, len(values)), values)
            axes.set(title=title, xlabel="% of the stage", ylabel="loss", ylim=(0, None))
        figure.savefig(path, dpi=100)


# ---- Everything in order --------------------------------------------------------------------------------------------


def set_up(seed: int) -> None:
    torch.set_num_threads(1)  # matrices this small gain nothing from a second core; a second process does
    set_seed(seed)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def run(folder: Path, seed: int) -> None:
    clear_output(folder, "quickstart", WRITTEN)
    with step(f"write {TRAIN_CLIPS + TEST_CLIPS} clips of moving shapes"):
        held_out = make_data(folder / "clips", seed)
    with step("pretrain a tiny vision tower on pictures of shapes and a tiny language model on sentences about them"):
        vision, text = pretrain(folder, seed)
    start = join(vision, text, folder / "joined")
    losses = {}
    with step("stage 1 (align): projector and temporal module learn from captions"):
        rows = folder / "clips" / "captions.jsonl"
        losses["stage1_align"] = train("stage1_align", start, rows, folder / "stage1")
    with step("stage 2 (instruct): and the language model, from questions and answers"):
        rows = folder / "clips" / "dialogues.jsonl"
        # A small decoder learns from small batches at a high rate; 2e-5 is for one that knows the world.
        changes = {"num_train_epochs": 2, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "logging_steps": 10}
        losses["stage2_instruct"] = train("stage2_instruct", folder / "stage1", rows, folder / "checkpoint", **changes)
    with step(f"ask {len(held_out)} questions about {TEST_CLIPS} clips it has never seen"):
        pipe = pipeline("video-text-to-text", model=str(folder / "checkpoint"))
        answers = ask(pipe, held_out)
    figures = score(held_out, answers)
    draw_report(pipe, held_out, answers, losses, figures, folder / "report.png")
    report = {**figures, "seconds": round(time.perf_counter() - START, 1), "seed": seed, "losses": losses}
    (folder / "report.json").write_text(json.dumps(report, indent=2))
    print(f"\n{'question':<14}{'accuracy':>9}{'chance':>9}{'asked':>7}")
    for kind, row in [*figures["by_question"].items(), ("all", {**figures, "count": len(held_out)})]:
        print(f"{kind:<14}{row['accuracy']:>9.1%}{row['chance']:>9.1%}{row['count']:>7}")
    print("Chance: always the answer that is most frequent for the question.")
    print(f"\n{report['seconds']:.0f} s in all. Checkpoint, report.json and report.png are in {folder}.")
    print("Ask it, in its environment (after make: source .venv/bin/activate):")
    print(f"valley ask {folder}/checkpoint {folder}/clips/test/00000.mp4 'Describe the video.'")


def show(folder: Path, clip: str) -> None:
    """Shows the model a clip, and people what the model saw."""
    pipe = pipeline("video-text-to-text", model=str(folder / "checkpoint"))
    frames, times = frames_seen(pipe, clip)
    answer = pipe(clip, CAPTION_QUESTION, return_full_text=False)[0]["generated_text"]
    with chart_style():
        figure = Figure(figsize=(10, 2.2), layout="constrained")
        seen, said = figure.subplots(1, 2, width_ratios=[3, 5])
        draw_frames_seen(seen, frames, times, columns=NUM_FRAMES // 2)
        write_answers(said, [(f"{Path(clip).name}:", "", None), (CAPTION_QUESTION, answer, None)])
        figure.savefig(folder / "video.png", dpi=100)
    print(f"\n{clip}: {len(times)} frames, at {', '.join(f'{t:.2f}' for t in times)} s")
    print(f"{CAPTION_QUESTION}  {answer}")
    print("This tiny model knows coloured shapes and nothing else: it says which of them a clip is most like.")
    print(f"The frames it saw are in {folder / 'video.png'}.")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A tiny Valley from nothing.")
    parser.add_argument("--video", help="a clip to show to the model, trained before if need be")
    parser.add_argument("--output", type=Path, default=Path("outputs/quickstart"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    set_up(args.seed)
    if args.video:
        try:  # a bad file is better known before the training than after it
            sample_video(args.video, num_frames=NUM_FRAMES)
        except VideoDecodeError as error:
            sys.exit(str(error))
    if not args.video or not (args.output / "checkpoint" / "model.safetensors").exists():
        run(args.output, args.seed)
    if args.video:
        show(args.output, args.video)


if __name__ == "__main__":
    main()
