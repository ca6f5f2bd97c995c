# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""ScienceQA: school questions with choices, about half of them with a text or an image (Lu et al. 2022).

Files: `problems.json` and `pid_splits.json` of `lupantech/ScienceQA` (CC BY-NC-SA 4.0), 4,241 test questions. Images:
`<split>/<pid>/image.png` below the media folder.
Numbers: accuracy in eight classes and over all (paper, Table 5). An answer without a letter is wrong, as LLaVA counts.
Option `partial`: go on where `problems.json` lacks questions of the split.
"""

from collections.abc import Iterator

from ..annotations import AnnotationFiles, Clips
from ..benchmark import Benchmark, Sample, chat_about
from ..scores import scienceqa_columns, scienceqa_facts


def load(files: AnnotationFiles, clips: Clips, split: str, partial: bool = False) -> Iterator[Sample]:
    problems, splits = files.read("problems.json"), files.read("pid_splits.json")
    if split not in splits:
        raise ValueError(f"pid_splits.json of {files.path} has no split {split!r}, only {sorted(splits)}.")
    there = {pid: problems[pid] for pid in splits[split] if pid in problems}
    if len(there) < len(splits[split]) and not partial:
        raise ValueError(
            f"problems.json of {files.path} lacks {len(splits[split]) - len(there)} of the {len(splits[split])} "
            f"questions of {split}. Is it truncated? Download it again, or ask the others with the option partial."
        )
    for pid, problem in there.items():
        choices = dict(zip("ABCDE", problem["choices"], strict=False))
        right = "ABCDE"[problem["answer"]]
        image = str(clips.folder / split / pid / problem["image"]) if problem["image"] else None
        about = {"source": f"ScienceQA {split}", "type": problem["subject"], "facts": scienceqa_facts(problem)}
        yield Sample(
            pid,
            chat_about(prompt(problem), image=image),
            (right,),
            choices,
            example=f"The answer is {right}.",
            **about,
        )


def prompt(problem: dict) -> str:
    """The format QCM of the authors (`models/base_prompt.py`); a caption stands in the image's place there."""
    options = " ".join(f"({letter}) {choice}" for letter, choice in zip("ABCDE", problem["choices"], strict=False))
    text = f"Question: {problem['question']}\nContext: {problem['hint'] or 'N/A'}\nOptions: {options}\nAnswer:"
    return text.replace("  ", " ").strip()


BENCHMARK = Benchmark("science_qa", "ScienceQA", load, scienceqa_columns)
