# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""A model learns from preferences between its own answers, so that it speaks less of what is not there.

    python examples/quickstart.py             # makes the model: the one of stage 1, which still makes things up
    python examples/fewer_hallucinations.py   # 13 minutes on two busy CPU cores, into outputs/fewer_hallucinations

The model describes new clips of moving shapes, each several times. A judge marks colours and shapes that the caption
of the clip does not have, `write_pairs` makes preferences of the answers, and TRL's `DPOTrainer` learns them. What is
printed is measured on clips that are new again: the share of descriptions that speak of a colour or a shape that is
not there, before and after, of the likeliest answers and of sampled ones. It falls by half where answers are sampled,
and rises where the likeliest are taken: docs/how-to/train_on_preferences.md. Here the judge is a few lines, which know
the truth; `valley data judge` asks a language model in its place, and all the rest is the same.
"""

import os


os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here needs the network

import argparse
import json
import time
from pathlib import Path

import torch
from moving_shapes import (
    CAPTION_QUESTION,
    COLOURS,
    SHAPES,
    caption,
    clear_output,
    draw_frames,
    random_clip,
    write_video,
)
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline, set_seed
from transformers.utils import logging
from trl import DPOConfig, DPOTrainer

from transformers_valley.data.build.hallucinations import check_hallucinations
from transformers_valley.data.build.pairs import write_pairs
from transformers_valley.data.preferences import load_preferences
from transformers_valley.endpoint import Reply
from transformers_valley.training import set_trainable
from transformers_valley.training.preferences import PreferenceCollator


OBJECTS = {*COLOURS, *SHAPES}
WRITTEN = {  # into the folder of the output
    *("answers.jsonl", "captions.jsonl", "clean.jsonl", "clean.jsonl.marked.jsonl", "pairs.jsonl"),
    *("checkpoint", "held-out", "preferences"),
}
TRAINED = ["model.multi_modal_projector", "model.temporal_module", "model.language_model", "lm_head"]


class Judge:
    """In the place of an `Endpoint`: marks the colours and shapes of an answer that its caption does not have."""

    def ask(self, requests: list[dict], **kwargs) -> list[Reply]:
        replies = []
        for request in requests:
            told, answers = request["messages"][-1]["content"].split("Answers:")
            marked = sorted(OBJECTS & set(answers.split()) - set(told.split()))
            replies.append(Reply(key="", text=json.dumps({"objects": marked})))
        return replies


def make_clips(folder: Path, world: str, count: int) -> dict[str, str]:
    """Clips of a world of their own, and the caption of each."""
    (folder / world).mkdir(parents=True)
    captions = {}
    for index in tqdm(range(count), desc=f"clips, {world}"):
        clip = random_clip(world, index)
        write_video(folder / world / f"{index:05}.mp4", draw_frames(clip))
        captions[str(folder / world / f"{index:05}.mp4")] = caption(clip)
    return captions


def describe(checkpoint: Path, clips: list[str], batch_size: int = 50, **how) -> list[str]:
    """What a model says of each clip."""
    pipe, answers = pipeline("video-text-to-text", model=str(checkpoint)), []
    for start in tqdm(range(0, len(clips), batch_size), desc="descriptions"):
        some = clips[start : start + batch_size]
        asked = {"batch_size": batch_size, "return_full_text": False, "generate_kwargs": how}
        answers += [said[0]["generated_text"] for said in pipe(some, [CAPTION_QUESTION] * len(some), **asked)]
    return answers


def measure(checkpoint: Path, captions: dict[str, str], **how) -> dict[str, float]:
    """Shares of descriptions that speak of what is not there, and that are right to the letter."""
    set_seed(0)
    said = list(zip(describe(checkpoint, list(captions), **how), captions.values(), strict=True))
    return {
        "made up": sum(bool(OBJECTS & set(answer.split()) - set(truth.split())) for answer, truth in said) / len(said),
        "right": sum(answer == truth for answer, truth in said) / len(said),
        "words": sum(len(answer.split()) for answer, _ in said) / len(said),
    }


def write_lines(file: Path, records: list[dict]) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def make_pairs(checkpoint: Path, captions: dict[str, str], samples: int, folder: Path) -> Path:
    """The model's own answers, judged, as preferences."""
    clips = [clip for clip in captions for _ in range(samples)]
    answers = describe(checkpoint, clips, do_sample=True, temperature=0.6)  # near to what it would say anyway
    turns = [
        [{"from": "human", "value": f"<video>\n{CAPTION_QUESTION}"}, {"from": "gpt", "value": a}] for a in answers
    ]
    rows = [{"video": clip, "conversations": said} for clip, said in zip(clips, turns, strict=True)]
    known = [{"video": clip, "caption": truth} for clip, truth in captions.items()]
    files = write_lines(folder / "answers.jsonl", rows), write_lines(folder / "captions.jsonl", known)
    verdicts = check_hallucinations(*files, folder / "clean.jsonl", Judge())
    pairs = write_pairs(folder / "clean.jsonl", folder / "pairs.jsonl")
    print(f"{verdicts.marked} of {len(rows)} answers are marked; {pairs}")
    return folder / "pairs.jsonl"


def learn(checkpoint: Path, pairs: Path, folder: Path, steps: int) -> Path:
    model, processor = (kind.from_pretrained(checkpoint) for kind in (AutoModelForImageTextToText, AutoProcessor))
    set_trainable(model, TRAINED)
    args = DPOConfig(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=16,
        learning_rate=1e-4,  # of a tiny model; one that knows the world needs 5e-6 or less
        warmup_steps=steps // 10,
        beta=0.2,
        loss_type=["sigmoid", "sft"],  # the better answers are learnt as such, too, or both become less likely
        loss_weights=[1.0, 0.5],
        remove_unused_columns=False,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        logging_steps=10,
    )
    trainer = DPOTrainer(
        model=model,
        ref_model=AutoModelForImageTextToText.from_pretrained(checkpoint),
        args=args,
        train_dataset=load_preferences([pairs]),
        processing_class=processor,
        data_collator=PreferenceCollator(processor),
    )
    trainer.train()
    trainer.save_model()
    return folder


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("outputs/quickstart/stage1"))
    parser.add_argument("--output", type=Path, default=Path("outputs/fewer_hallucinations"))
    parser.add_argument("--clips", type=int, default=250, help="to learn from")
    parser.add_argument("--held-out", type=int, default=200, help="to measure on")
    parser.add_argument("--samples", type=int, default=5, help="answers about each clip")
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args(argv)
    began = time.perf_counter()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    set_seed(0)
    clear_output(args.output, "fewer_hallucinations", WRITTEN)
    held_out = make_clips(args.output, "held-out", args.held_out)
    ways = {"greedy": {}, "sampled": {"do_sample": True, "temperature": 1.0}}
    found = {f"before, {way}": measure(args.model, held_out, **how) for way, how in ways.items()}
    pairs = make_pairs(args.model, make_clips(args.output, "preferences", args.clips), args.samples, args.output)
    taught = learn(args.model, pairs, args.output / "checkpoint", args.steps)
    found |= {f"after, {way}": measure(taught, held_out, **how) for way, how in ways.items()}
    for when, shares in found.items():
        print(
            f"{when:<16}{shares['made up']:6.1%} of {args.held_out} descriptions speak of a colour or a shape that is "
            f"not there, {shares['right']:6.1%} are right to the letter, {shares['words']:.1f} words"
        )
    print(f"{time.perf_counter() - began:.0f} s in all. Pairs and checkpoint are in {args.output}.")
    return found


if __name__ == "__main__":
    main()
