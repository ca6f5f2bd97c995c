# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Captions to instructions, by a language model: conversations, complex reasoning and detailed descriptions, as the
paper made Valley-Instruct.

In goes a file of `title, caption, video`; out come rows, and beside them the answers that are none, with the reason.
The prompts are those of the paper, in `valley_instruct.json`. A model behind an OpenAI-compatible server writes. Its
answers are kept by the endpoint's cache, so that a run that was killed pays for nothing twice.
"""

import ast
import hashlib
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TextIO

from ...endpoint import Endpoint, Reply
from ...whole_files import whole_file
from .captions import Caption, read_captions


# Of 73 thousand rows in the paper: 37 of conversations, 26 of complex reasoning, 10 of detailed descriptions.
SHARES = {"conversation": 37, "complex_reasoning": 26, "detailed_description": 10}
BATCH = 1000  # captions whose answers are held in memory
WORDS = (150, 200)  # of a detailed description, as its prompt asks
COPIED = 12  # words of the caption in a row, which no description may have
# Words by which an answer tells of a text in the place of a clip, as the prompt of conversations names them.
_FORBIDDEN = re.compile(
    r"\b(specif(?:y|ies|ied)|mention(?:s|ed|ing)?|descriptions?|text|provided information|sentences?|captions?)\b",
    re.IGNORECASE,
)
_FROM_TEXT = re.compile(r"\b(captions?|provided information|the title)\b", re.IGNORECASE)
_REFUSAL = re.compile(r"\b(as an ai\b|language model|i'm sorry|i cannot|i can't assist)", re.IGNORECASE)
# LLaVA's instructions for detailed descriptions (its paper, appendix), of clips.
DETAIL_QUESTIONS = (
    "Describe the following video.",
    "Provide a detailed description of the given video.",
    "Give an elaborate explanation of the video you see.",
    "Share a comprehensive rundown of the presented video.",
    "Offer a thorough analysis of the video.",
    "Explain the various aspects of the video before you.",
    "Clarify the contents of the displayed video with great detail.",
    "Characterize the video using a well-detailed description.",
    "Break down the elements of the video in a detailed manner.",
    "Walk through the important details of the video.",
    "Portray the video with a rich, descriptive narrative.",
    "Narrate the contents of the video with precision.",
    "Analyze the video in a comprehensive and detailed manner.",
    "Illustrate the video through a descriptive explanation.",
    "Examine the video closely and share its details.",
    "Write an exhaustive depiction of the given video.",
)


@dataclass
class Built:
    """What became of captions: rows and rejected answers by kind, the reasons by how often they came, and how many
    records were no captions."""

    rows: Counter = field(default_factory=Counter)
    rejected: Counter = field(default_factory=Counter)
    reasons: Counter = field(default_factory=Counter)
    unread: int = 0


def build_instructions(
    file: str | os.PathLike,
    output: str | os.PathLike,
    endpoint: Endpoint,
    limit: int | None = None,
    attempts: int = 2,
    seed: int = 42,
    progress: bool = True,
    **request: Any,
) -> Built:
    """
    Let a model write instructions about clips that it knows by their captions alone.

    Args:
        file (`str`):
            See [`read_captions`].
        output (`str`):
            The JSONL file of rows, which appears whole; `OUTPUT.rejected.jsonl` stands beside it.
        endpoint ([`Endpoint`]):
            The model. Give it a `cache`, or nothing is kept of a run that is killed. What failed is asked again in the
            next run.
        limit (`int`, *optional*):
            Captions, to try it.
        attempts (`int`, *optional*, defaults to 2):
            How often an answer is asked for that was not a row.
        seed (`int`, *optional*, defaults to 42):
            Of which caption becomes what kind, and of questions.
        progress (`bool`, *optional*, defaults to `True`):
            Whether there is a bar.
        **request:
            Further arguments of `chat.completions.create`, such as `temperature`.

    Raises:
        EndpointError: if the server answers nobody. What was answered is in its cache.
        ValueError: if no caption can be read.
        DiskFullError: if the disk is full.
    """
    output, built = Path(output), Built()
    rejected = output.with_name(f"{output.name}.rejected.jsonl")
    captions = itertools.islice(_readable(file, built), limit)
    with whole_file(rejected) as rejected_part, whole_file(output) as part:
        with part.open("w", encoding="utf-8") as rows, rejected_part.open("w", encoding="utf-8") as others:
            while batch := list(itertools.islice(captions, BATCH)):
                _build_batch(batch, endpoint, built, (rows, others), attempts, seed, progress, request)
        if not built.rows and not built.rejected:
            raise ValueError(f"{file} has no caption that can be read: {built.unread} records are none.")
    return built


def _readable(file: str | os.PathLike, built: Built) -> Iterator[Caption]:
    for caption in read_captions(file):
        if isinstance(caption, ValueError):
            built.unread += 1
        else:
            yield caption


def _build_batch(
    captions: list[Caption],
    endpoint: Endpoint,
    built: Built,
    files: tuple[TextIO, TextIO],
    attempts: int,
    seed: int,
    progress: bool,
    request: dict[str, Any],
) -> None:
    kinds = [choose_kind(caption, seed) for caption in captions]
    outcomes: list[Any] = [None] * len(captions)
    waiting = list(range(len(captions)))
    for attempt in range(attempts):
        # Another seed makes another request: the answer that was not a row is not taken from the cache again.
        again = {"seed": seed + attempt} if attempt else {}
        requests = [request | again | {"messages": prompt(captions[i], kinds[i])} for i in waiting]
        replies = endpoint.ask(requests, retry_failed=True, desc="Instructions", progress=progress)
        for i, reply in zip(waiting, replies, strict=True):
            try:
                outcomes[i] = to_turns(reply, captions[i], kinds[i], seed)
            except ValueError as error:
                outcomes[i] = {"reason": str(error), "reply": reply.text}
        waiting = [i for i in waiting if isinstance(outcomes[i], dict)]
        if not waiting:
            break
    for caption, kind, outcome in zip(captions, kinds, outcomes, strict=True):
        about = {"id": f"{caption.id}_{kind}", caption.kind: caption.path, "type": kind}
        if isinstance(outcome, dict):
            built.rejected[kind] += 1
            built.reasons[re.sub(r"\d+|'.*?'", "…", outcome["reason"])] += 1
            files[1].write(json.dumps(about | outcome, ensure_ascii=False) + "\n")
        else:
            built.rows[kind] += 1
            files[0].write(json.dumps(about | {"conversations": outcome}, ensure_ascii=False) + "\n")


# --- what is asked ---


def choose_kind(caption: Caption, seed: int = 42) -> str:
    """What a caption becomes: drawn by the paper's shares, from its id alone."""
    place = _draw(f"{seed} kind {caption.id}", sum(SHARES.values()))
    for kind, share in SHARES.items():
        if place < share:
            return kind
        place -= share
    raise AssertionError


def prompt(caption: Caption, kind: str) -> list[dict[str, str]]:
    """The messages that ask for an instruction: the system prompt, the paper's example if it has one, the caption."""
    described = _prompts()[kind]
    messages = [{"role": "system", "content": described["system"]}]
    for user, assistant in described["examples"]:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    values = {"title": caption.title or "", "caption": caption.text}
    user = re.sub(r"\{(title|caption)\}", lambda match: values[match[1]], described["user"])
    if not caption.title:
        user = re.sub(r"^\[title\]\n\n", "", user, flags=re.IGNORECASE)
    return [*messages, {"role": "user", "content": user}]


@cache
def _prompts() -> dict[str, Any]:
    return json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))["prompts"]


def _draw(what: str, count: int) -> int:
    return int.from_bytes(hashlib.blake2b(what.encode(), digest_size=8).digest(), "little") % count


# --- what is answered ---


def to_turns(reply: Reply, caption: Caption, kind: str, seed: int = 42) -> list[dict[str, str]]:
    """
    The turns of a row, of a model's answer.

    Args:
        reply ([`Reply`]):
            The answer.
        caption ([`Caption`]), kind (`str`):
            What was asked about.
        seed (`int`, *optional*, defaults to 42):
            Of the question that a description answers.

    Returns:
        `list[dict]` of LLaVA's turns, the clip's placeholder in the first.

    Raises:
        ValueError: if the answer is not a row; it says why.
    """
    if reply.text is None:
        raise ValueError(f"there is no answer: {reply.error}")
    if reply.finish_reason == "length":
        raise ValueError("the answer was truncated: allow more tokens")
    text = reply.text.strip()
    if kind == "detailed_description":
        question = DETAIL_QUESTIONS[_draw(f"{seed} question {caption.id}", len(DETAIL_QUESTIONS))]
        pairs = [(question.replace("video", caption.kind), text)]
        if not WORDS[0] <= (count := len(text.split())) <= WORDS[1]:
            raise ValueError(f"the description has {count} words, expected {WORDS[0]} to {WORDS[1]}")
    else:
        pairs = list(find_pairs(text))
        if not pairs:
            raise ValueError("the answer holds no object with a question and an answer")
        if kind == "complex_reasoning" and len(pairs) != 1:
            raise ValueError(f"the answer holds {len(pairs)} questions, expected one")
    forbidden = _FORBIDDEN if kind == "conversation" else _FROM_TEXT
    for question, answer in pairs:
        if not question.strip() or not answer.strip():
            raise ValueError("a question or an answer is empty")
        if re.search(r"<(image|video)>", question + answer):
            raise ValueError("a text spells the placeholder of a clip")
        for place, words in (("question", question), ("answer", answer)):
            if kind == "detailed_description" and place == "question":
                continue  # ours
            if match := forbidden.search(words):
                raise ValueError(f"the {place} has the word {match[0]!r}, which tells of a text and not of a clip")
            if match := _REFUSAL.search(words):
                raise ValueError(f"the {place} says {match[0]!r}")
        if copied := _copied(answer, caption.text):
            raise ValueError(f"the answer copies the caption: {copied!r}")
    turns = []
    for index, (question, answer) in enumerate(pairs):
        shown = f"<{caption.kind}>\n" if index == 0 else ""
        turns += [{"from": "human", "value": shown + question.strip()}, {"from": "gpt", "value": answer.strip()}]
    return turns


_NAMES = (("question", "answer"), ("q", "a"))


def find_pairs(text: str) -> Iterator[tuple[str, str]]:
    """Questions and answers of all objects in a text: JSON, with line breaks in strings, or as Python writes it."""
    position = 0
    while (position := text.find("{", position)) >= 0:
        found, position = _read_object(text, position)
        fields = {str(name).lower().strip(): value for name, value in found.items()}
        for names in _NAMES:
            values = [fields.get(name) for name in names]
            if all(isinstance(value, str) for value in values):
                yield values[0], values[1]
                break


def _read_object(text: str, start: int) -> tuple[dict, int]:
    """The object that begins there and where it ends; an empty one, and the next place, if there is none."""
    try:
        found, end = json.JSONDecoder(strict=False).raw_decode(text, start)
        return found, end
    except ValueError:
        pass
    for match in re.finditer(r"\}", text[start : start + 20_000]):
        try:
            found = ast.literal_eval(text[start : start + match.end()])
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        return (found if isinstance(found, dict) else {}), start + match.end()
    return {}, start + 1


def _copied(answer: str, caption: str) -> str | None:
    """Words of the caption that stand in the answer in a row, if they are many."""
    told, given = (re.findall(r"\w+", text.lower()) for text in (answer, caption))
    runs = {" ".join(given[i : i + COPIED]) for i in range(len(given) - COPIED + 1)}
    found = (" ".join(told[i : i + COPIED]) for i in range(len(told) - COPIED + 1))
    return next((run for run in found if run in runs), None)


__all__ = ["Built", "build_instructions", "choose_kind", "find_pairs", "prompt", "to_turns"]
