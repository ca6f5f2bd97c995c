# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""From an answer to what is known about it, and from items to the numbers of the benchmarks, by published formulas.

The last three functions do the same from plain lists, as `metrics/` offers them.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from ..string_match import contains, is_exact, parse_choice
from .benchmark import Column, Item, mean_of, weighted_mean_of
from .statistics import estimate


def measure(
    record: Mapping[str, Any], verdicts: Sequence[Mapping[str, Any]] = (), aspects: Sequence[str] = ()
) -> dict[str, float]:
    """
    What is known about an answer.

    Args:
        record (`dict`):
            Of `predictions.jsonl`.
        verdicts (`list[dict]`, *optional*):
            Those of a judge on it, of `verdicts.jsonl`.
        aspects (`list[str]`, *optional*):
            What the judge of the run is asked about it, whether it was or not.

    Returns:
        `dict`: `exact` and `contains` against the references; `choice` where there are choices, with an answer that
        chooses none as wrong and `unparsed`; what the verdicts say (see [`measure_verdict`]); and `correct`, from 0 to
        1: the judge's word where it is asked, otherwise the choice, otherwise the exact match. What a judge did not
        decide is not there. Nothing is where the question was not answered.
    """
    if record["answer"] is None:
        return {}
    answer, references, found = record["answer"], record["answers"], {"empty": float(not record["answer"].strip())}
    if references and record["choices"]:
        letter = parse_choice(answer, record["choices"])
        found |= {"choice": float(letter in references), "unparsed": float(letter is None)}
    elif references:
        found |= {"exact": float(is_exact(answer, references)), "contains": float(contains(answer, references))}
    for verdict in verdicts:
        found |= measure_verdict(verdict, references)
    aspects = [*aspects, *(verdict["aspect"] for verdict in verdicts if verdict["aspect"] not in aspects)]
    decisive = [_DECISIVE[aspect] for aspect in aspects if aspect in _DECISIVE] or ["choice", "exact"]
    decided = [found[name] for name in decisive if name in found]
    found |= {"correct": decided[0]} if decided else {}
    scores = [found[aspect] for aspect in aspects if aspect in found and aspect != "bertscore"]
    return found | ({"score": sum(scores) / len(scores)} if scores else {})


_DECISIVE = {"qa": "yes", "choice": "judged_choice"}  # what the judge is asked, and the measure that comes of it


def measure_verdict(verdict: Mapping[str, Any], references: Sequence[str] = ()) -> dict[str, float]:
    """
    What a judge's verdict says, by the protocol of Video-ChatGPT and beside it without its two slips.

    The protocol takes `int()` of the score, so that a 4.8, which its own prompt shows as an example, is a 4; and it
    looks for "yes", then for "no", anywhere in the word, so that "unknown" is a no. `score_full` and `yes_strict` do
    neither.
    """
    aspect, found = verdict["aspect"], {}
    if verdict.get("unjudged"):
        return found
    if aspect == "choice":
        return {"judged_choice": float(verdict["choice"] in references)} if references else {}
    if aspect == "bertscore":
        return {"bertscore": verdict["score"]}
    name = "score" if aspect == "qa" else aspect
    found |= {name: float(int(verdict["score"])), f"{name}_full": float(verdict["score"])}
    if aspect == "qa":
        word = verdict["pred"].strip().lower()
        if "yes" in word or "no" in word:
            found["yes"] = float("yes" in word)
        if word in ("yes", "no"):
            found["yes_strict"] = float(word == "yes")
    return found


def judged_columns(items: Sequence[Item]) -> list[Column]:
    """Open-ended questions: accuracy and score as the paper's Table 1 has them; beside them strictly, and by words."""
    return [
        mean_of("Acc.", items, "yes", 100),
        mean_of("Score", items, "score"),
        mean_of("Acc., strict", items, "yes_strict", 100),
        mean_of("Score, not truncated", items, "score_full"),
        mean_of("exact match", items, "exact", 100),
        mean_of("contained", items, "contains", 100),
    ]


# Of the paper's Table 2, and what the judge is asked.
VIDEO_CHATGPT_ASPECTS = {
    "COR": "correctness",
    "DO": "detail",
    "CU": "context",
    "TU": "temporal",
    "CON": "consistency",
}


def video_chatgpt_columns(items: Sequence[Item]) -> list[Column]:
    """The five scores of Video-ChatGPT's benchmark, and the same with scores that are not truncated."""
    names = VIDEO_CHATGPT_ASPECTS
    full = [mean_of(f"{name}, not truncated", items, f"{aspect}_full") for name, aspect in names.items()]
    return [*(mean_of(name, items, aspect) for name, aspect in names.items()), *full]


SCIENCEQA_CLASSES = {  # TXT and IMG overlap: a question may have both (tools/evaluate_acc.py)
    "NAT": lambda facts: facts["subject"] == "natural science",
    "SOC": lambda facts: facts["subject"] == "social science",
    "LAN": lambda facts: facts["subject"] == "language science",
    "TXT": lambda facts: facts["has_text"],
    "IMG": lambda facts: facts["has_image"],
    "NO": lambda facts: not facts["has_text"] and not facts["has_image"],
    "G1-6": lambda facts: facts["grade"] <= 6,
    "G7-12": lambda facts: facts["grade"] > 6,
    "Average": lambda facts: True,
}


def scienceqa_facts(problem: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the classes of a problem."""
    grade = int(problem["grade"].removeprefix("grade"))
    has = {"has_text": bool(problem["hint"]), "has_image": bool(problem["image"])}
    return {"subject": problem["subject"], "grade": grade, **has}


def scienceqa_columns(items: Sequence[Item]) -> list[Column]:
    """Accuracy in the eight classes of ScienceQA, and over all."""
    return [
        mean_of(name, [item for item in items if belongs(item.record["facts"])], "choice", 100)
        for name, belongs in SCIENCEQA_CLASSES.items()
    ]


VIDEO_BENCH_GROUPS = {  # data sets and their weights: Step3_compute_scores.py at 3c83913
    "Video-Exclusive": {"ActivityNet": 1, "MSVD": 1, "MSRVTT": 1, "TGIF": 1, "Youcook2": 1, "Ucfcrime": 1, "MOT": 0.5},
    "Prior-Knowledge": {"TVQA": 1, "MV": 1, "NBA": 1},
    "Decision-Making": {"Driving-exam": 0.5, "Driving-decision-making": 1, "SQA3D": 1},
}


def video_bench_columns(items: Sequence[Item]) -> list[Column]:
    """Weighted means of Video-Bench's groups and their plain mean, of the judge's letters and of the model's own."""
    names = chain(*VIDEO_BENCH_GROUPS.values())
    by_source = {name: [item for item in items if item.record["source"] == name] for name in names}
    groups = {
        title: [(weight, by_source[name]) for name, weight in weights.items()]
        for title, weights in VIDEO_BENCH_GROUPS.items()
    }
    # The mean of three means: a data set weighs what it does in its group, over three.
    shares = [
        (weight / sum(weight for weight, _ in members) / 3, part)
        for members in groups.values()
        for weight, part in members
    ]
    return [
        weighted_mean_of(title + remark, members, measure, 100)
        for measure, remark in (("judged_choice", ""), ("choice", ", own letter"))
        for title, members in {"All": shares, **groups}.items()
    ]


def video_bench_submission(items: Sequence[Item]) -> dict[str, dict]:
    """`Video_Bench_Input.json` for the Space LanguageBind/Video-Bench: all questions that were answered and judged."""
    found: dict[str, dict] = {}
    for item in items:
        record, letter = item.record, next((v["choice"] for v in item.verdicts if not v["unjudged"]), None)
        if letter is not None:
            told = {"video_id": record["facts"]["video_id"], "question": record["question"]}
            told |= {"output_sequence": record["answer"], "output_chatgpt_choice": letter}
            found.setdefault(record["source"], {})[record["facts"]["key"]] = told
    return found


def video_qa_scores(verdicts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """
    Accuracy (%) and score (0 to 5) of Video-ChatGPT's judge, by its protocol and beside it strictly.

    Args:
        verdicts (`list[dict]`):
            `pred` and `score` of each reply that could be read.
    """
    items = [
        Item({"id": str(i), "clip": str(i)}, measure_verdict({"aspect": "qa", **verdict}))
        for i, verdict in enumerate(verdicts)
    ]
    names = {
        "Acc.": "accuracy",
        "Score": "score",
        "Acc., strict": "accuracy_strict",
        "Score, not truncated": "score_not_truncated",
    }
    return _named(judged_columns(items), names)


def scienceqa_accuracy(predictions: Sequence[int], problems: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """
    Accuracy (%) of the eight classes of ScienceQA and over all.

    Args:
        predictions (`list[int]`):
            The number of the choice, from 0; -1 where none was made, which is wrong.
        problems (`list[dict]`):
            Of `problems.json`: `answer`, `subject`, `grade`, `hint` and `image` are looked at.
    """
    items = [
        Item(
            {"id": str(i), "clip": str(i), "facts": scienceqa_facts(problem)},
            {"choice": float(prediction == problem["answer"])},
        )
        for i, (prediction, problem) in enumerate(zip(predictions, problems, strict=True))
    ]
    return _named(scienceqa_columns(items))


def video_bench_scores(
    predictions: Sequence[str], references: Sequence[str], data_sets: Sequence[str]
) -> dict[str, float]:
    """
    Accuracy (%) of the three groups of Video-Bench and their plain mean; those without one answer in each of their
    data sets are left out.

    Args:
        predictions, references (`list[str]`):
            Letters.
        data_sets (`list[str]`):
            Where each question comes from, such as `MOT`.
    """
    rows = enumerate(zip(predictions, references, data_sets, strict=True))
    items = [
        Item({"id": str(i), "clip": str(i), "source": data_set}, {"judged_choice": float(letter == right)})
        for i, (letter, right, data_set) in rows
    ]
    return _named(video_bench_columns(items)[:4])


def _named(columns: Sequence[Column], names: Mapping[str, str] | None = None) -> dict[str, float]:
    values = {(names or {}).get(c.name, c.name): estimate(c, resamples=1).value for c in columns}
    kept = names.values() if names else values
    return {name: values[name] for name in kept if values[name] is not None}


__all__ = [
    "SCIENCEQA_CLASSES",
    "VIDEO_BENCH_GROUPS",
    "VIDEO_CHATGPT_ASPECTS",
    "judged_columns",
    "measure",
    "measure_verdict",
    "scienceqa_accuracy",
    "scienceqa_columns",
    "scienceqa_facts",
    "video_bench_columns",
    "video_bench_scores",
    "video_bench_submission",
    "video_chatgpt_columns",
    "video_qa_scores",
]
