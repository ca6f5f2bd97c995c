# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What the tasks in `tasks/` call: questions as `valley evaluate` reads and asks them, and the same numbers.

A benchmark's files and clips lie in the folder of its name, such as `msvd_qa`, in that which the environment variable
`VALLEY_BENCHMARKS` names. A judge is not asked here.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..evaluation.benchmark import visuals_in
from ..evaluation.benchmarks import load_benchmark
from ..evaluation.bertscore import bertscore_f1
from ..evaluation.scores import SCIENCEQA_CLASSES, measure
from ..video_sources import load_image


FOLDER = "VALLEY_BENCHMARKS"


def load(name: str, nothing: Dataset) -> Dataset:
    """
    The questions of a benchmark in the place of the data set that lmms-eval has read.

    Raises:
        SystemExit: with the reason, if there are none. Another exception lmms-eval would hide, after five tries.
    """
    if not os.environ.get(FOLDER):
        sys.exit(f"Set {FOLDER} to the folder in which the files and clips of {name} are, in a folder {name}.")
    try:
        samples = load_benchmark(name, Path(os.environ[FOLDER], name)).samples
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    return Dataset.from_list(
        [
            {
                "id": sample.id,
                "question": sample.question,
                "answers": list(sample.answers),
                # Their keys differ from question to question, which a table cannot hold.
                **{key: json.dumps(getattr(sample, key)) for key in ("messages", "choices", "facts")},
            }
            for sample in samples
        ]
    )


msvd_qa, msrvtt_qa, meme_cap, science_qa = (
    partial(load, name) for name in ("msvd_qa", "msrvtt_qa", "meme_cap", "science_qa")
)


def doc_to_messages(doc: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For chat models: clips and images by their paths."""
    return [
        {
            "role": message["role"],
            "content": [
                part if part["type"] == "text" else {"type": part["type"], "url": part["path"]}
                for part in message["content"]
            ],
        }
        for message in json.loads(doc["messages"])
    ]


def doc_to_visual(doc: Mapping[str, Any]) -> list[Any]:
    """For models that take text and visuals apart: paths of clips, images opened."""
    return [
        load_image(block["path"]) if block["type"] == "image" else block["path"]
        for block in visuals_in(json.loads(doc["messages"]))
    ]


def doc_to_text(doc: Mapping[str, Any]) -> str:
    return doc["question"]


def doc_to_target(doc: Mapping[str, Any]) -> str:
    return doc["answers"][0]


def match_words(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """`exact_match` and `contained` of an answer."""
    found = _measure(doc, results[0])
    return {"exact_match": found["exact"], "contained": found["contains"]}


def match_choice(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the choice is right, for each class of ScienceQA that the question belongs to."""
    right, facts = _measure(doc, results[0])["choice"], json.loads(doc["facts"])
    return {name: right for name, belongs in SCIENCEQA_CLASSES.items() if belongs(facts)}


def keep_text(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What BERTScore, which takes all answers at once, compares."""
    return {"bertscore_f1": {"text": results[0], "references": doc["answers"]}}


def mean_bertscore(pairs: Sequence[Mapping[str, Any]]) -> float:
    """BERTScore F1, from 0 to 1, by `roberta-large`."""
    return bertscore_f1([pair["text"] for pair in pairs], [pair["references"] for pair in pairs])["f1"] / 100


def _measure(doc: Mapping[str, Any], answer: str) -> dict[str, float]:
    return measure({"answer": answer, "answers": doc["answers"], "choices": json.loads(doc["choices"])})
