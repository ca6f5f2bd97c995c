# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Captions to a smaller, balanced set of them, as LLaVA chose 595K of CC3M, and the paper 702K of WebVid2M.

In goes a file of captions; out comes a JSONL file of records that ask for a short description. LLaVA's rule: count in
how many captions each noun phrase stands; pass over those in fewer than 3; then, the rarest first, take the captions
of each, a random 100 of those that have more. So a caption is taken if a phrase of it stands in 3 to 100, or if it is
drawn for one that stands in more. Neither code nor lists were published: the size can be met, the list cannot.

Nothing grows with the number of captions but 12 bytes for each of their phrases.
"""

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ...whole_files import claim_folder, disk_full_errors, whole_file
from .captions import Caption, read_captions


CHUNK = 20_000  # captions between two points that a killed run can resume from
FEWEST_PHRASES = 0.5  # of a caption on average: fewer mean that the language or the pipeline is wrong
# LLaVA's eleven brief instructions, of clips (haotian-liu/LLaVA, dvlab-research/LLaMA-VID). The first is that of the
# record in the paper's appendix B.1.
QUESTIONS = (
    "Describe the following {} concisely.",
    "Provide a brief description of the given {}.",
    "Offer a succinct explanation of the {} presented.",
    "Summarize the visual content of the {}.",
    "Give a short and clear explanation of the subsequent {}.",
    "Share a concise interpretation of the {} provided.",
    "Present a compact description of the {}'s key features.",
    "Relay a brief, clear account of the {} shown.",
    "Render a clear and concise summary of the {}.",
    "Write a terse but informative summary of the {}.",
    "Create a compact narrative representing the {} presented.",
)
Phrases = Callable[[Iterable[str]], Iterator[list[str]]]


@dataclass
class Selection:
    """What became of some captions: how many there are, how many could not be read, how many are chosen; and how many
    different phrases they have, of which too rare, and frequent ones."""

    captions: int = 0
    unread: int = 0
    chosen: int = 0
    phrases: int = 0
    rare: int = 0
    frequent: int = 0
    first_error: str | None = None


def select_captions(
    file: str | os.PathLike,
    output: str | os.PathLike,
    phrases: Phrases,
    least: int = 3,
    most: int = 100,
    seed: int = 42,
) -> Selection:
    """
    Choose captions, and write them as records.

    Phrases are kept in `OUTPUT.phrases` until all is done: a run that was killed resumes.

    Args:
        file (`str`):
            See [`read_captions`].
        output (`str`):
            The JSONL file of records, which appears whole.
        phrases (`Callable`):
            Gives the noun phrases of texts, such as [`NounPhrases`]. Its `name`, if it has one, tells it from others.
        least, most (`int`, *optional*, default to 3 and 100):
            A phrase that fewer captions have is passed over, and of one that more have, so many are drawn.
        seed (`int`, *optional*, defaults to 42):
            Of what is drawn, captions and questions.

    Raises:
        ValueError: if no caption can be read, phrases are too few to be true, or `OUTPUT.phrases` is of another file
            or pipeline.
        DiskFullError: if the disk is full.
    """
    if not 1 <= least <= most:
        raise ValueError(f"least={least} and most={most}, expected 1 <= least <= most.")
    work = Path(f"{output}.phrases")
    found = Selection()
    with disk_full_errors("phrases and records", Path(output).parent):
        name = getattr(phrases, "name", getattr(phrases, "__name__", type(phrases).__name__))
        made_of = {"file": os.path.abspath(file), "size": os.path.getsize(file), "phrases": name}
        claim_folder(work / "made_of.json", made_of)
        hashes, places = _mine(file, work, phrases, found)
        is_chosen = _choose(hashes, places, found, least, most, seed)
        _write(file, Path(output), is_chosen, seed)
        shutil.rmtree(work)
    return found


def _captions(file: str | os.PathLike) -> Iterator[Caption]:
    return (caption for caption in read_captions(file) if isinstance(caption, Caption))


def _mine(file: str | os.PathLike, work: Path, phrases: Phrases, found: Selection) -> tuple[np.ndarray, np.ndarray]:
    """A hash of each phrase of each caption, and the number of the caption."""
    parts = []
    with tqdm(desc="Finding noun phrases", unit=" captions", disable=None) as bar:
        captions = _counted(file, found)
        for number in itertools.count():
            texts = [caption.text for caption in itertools.islice(captions, CHUNK)]
            if not texts:
                break
            path = work / f"{number:06d}.npy"
            if not path.exists():
                _keep(path, _hash_all(texts, phrases, number, bar))
            part = np.load(path)
            if len(part) < FEWEST_PHRASES * len(texts):
                path.unlink()
                raise ValueError(
                    f"{len(texts)} captions have {len(part)} noun phrases, such as {texts[0][:80]!r}: the pipeline "
                    "does not know their language, or finds no phrases (spaCy needs a parser and an attribute ruler)."
                )
            parts.append(part)
            bar.n = found.captions
            bar.refresh()
    if not parts:
        raise ValueError(f"{file} has no caption that can be read. The first: {found.first_error}")
    pairs = np.concatenate(parts)
    return pairs["phrase"], pairs["caption"]


def _counted(file: str | os.PathLike, found: Selection) -> Iterator[Caption]:
    for caption in read_captions(file):
        if isinstance(caption, ValueError):
            found.unread += 1
            found.first_error = found.first_error or str(caption)
        else:
            found.captions += 1
            yield caption


_PAIR = np.dtype([("phrase", np.uint64), ("caption", np.uint32)])


def _hash_all(texts: list[str], phrases: Phrases, number: int, bar: tqdm) -> np.ndarray:
    pairs = []
    for place, chunks in enumerate(phrases(texts), number * CHUNK):
        for phrase in sorted(set(chunks)):  # a caption counts once
            digest = hashlib.blake2b(phrase.encode(), digest_size=8).digest()
            pairs.append((int.from_bytes(digest, "little"), place))
        bar.update()
    return np.array(pairs, _PAIR)


def _keep(path: Path, array: np.ndarray) -> None:
    with whole_file(path) as part, part.open("wb") as file:
        np.save(file, array)


def _choose(hashes: np.ndarray, places: np.ndarray, found: Selection, least: int, most: int, seed: int) -> np.ndarray:
    order = np.argsort(hashes, kind="stable")
    values, starts, counts = np.unique(hashes[order], return_index=True, return_counts=True)
    places = places[order]
    found.phrases, found.rare = len(values), int((counts < least).sum())
    found.frequent = int((counts > most).sum())
    is_chosen = np.zeros(found.captions, dtype=bool)
    taken = np.repeat((counts >= least) & (counts <= most), counts)
    is_chosen[places[taken]] = True
    for index in np.flatnonzero(counts > most):
        # By the phrase itself, so that one more caption elsewhere changes nothing that is drawn for this one.
        generator = np.random.default_rng([seed, int(values[index])])
        having = places[starts[index] : starts[index] + counts[index]]
        is_chosen[generator.choice(having, most, replace=False)] = True
    found.chosen = int(is_chosen.sum())
    return is_chosen


def _write(file: str | os.PathLike, output: Path, is_chosen: np.ndarray, seed: int) -> None:
    with whole_file(output) as part, part.open("w", encoding="utf-8") as lines:
        for place, caption in enumerate(_captions(file)):
            if is_chosen[place]:
                lines.write(json.dumps(_record(caption, seed), ensure_ascii=False) + "\n")


def _record(caption: Caption, seed: int) -> dict:
    digest = hashlib.blake2b(f"{seed} {caption.id}".encode(), digest_size=8).digest()
    question = QUESTIONS[int.from_bytes(digest, "little") % len(QUESTIONS)].format(caption.kind)
    return {
        "id": caption.id,
        caption.kind: caption.path,
        "conversations": [
            {"from": "human", "value": f"{question}\n<{caption.kind}>"},
            {"from": "gpt", "value": caption.text},
        ],
    }


__all__ = ["QUESTIONS", "Selection", "select_captions"]
