# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Video-Bench: multiple choice over 13 data sets in three groups (Ning et al. 2023).

Files: `PKU-YuanGroup/Video-Bench: Eval_QA/<name>_QA_new.json` (Apache-2.0), 17,036 questions; those of the files that
are there are asked. Clips: the media folder holds `Eval_video/`. The leaderboard keeps the answers, except
`MOT_QA.json`; others can be given in `answers.json`, data set to question id to letter.
Numbers: correct over judged, weighted means of three groups, and their plain mean (paper, Table 3); a file to submit.
"""

from collections.abc import Iterator
from itertools import chain

from ..annotations import AnnotationFiles, Clips
from ..benchmark import Benchmark, Sample, chat_about
from ..scores import VIDEO_BENCH_GROUPS, video_bench_columns, video_bench_submission


def load(files: AnnotationFiles, clips: Clips, split: str) -> Iterator[Sample]:
    known = files.read("answers.json") if files.find("answers.json") else {}
    if files.find("MOT_QA.json"):
        known = {"MOT": {key: row["answer"] for key, row in files.read("MOT_QA.json").items()}, **known}
    names = list(chain(*VIDEO_BENCH_GROUPS.values()))
    for name in [name for name in names if files.find(f"{name}_QA_new.json")] or names[:1]:
        for key, row in files.read(f"{name}_QA_new.json").items():
            choices = {letter: str(text) for letter, text in sorted(row["choices"].items())}
            answers = (known[name][key],) if key in known.get(name, ()) else ()
            messages = chat_about(prompt(row["question"], choices), video=str(clips.folder / row["vid_path"]))
            facts = {"key": key, "video_id": row["video_id"]}
            yield Sample(f"{name}/{key}", messages, answers, choices, source=name, facts=facts)


def prompt(question: str, choices: dict[str, str]) -> str:
    """As the README's sample code writes it, spaces included. It has no form for the one item with a single choice."""
    listed, number = " ".join(f"{letter}.{text}" for letter, text in choices.items()), len(choices)
    begin, end = ("Choices: " if number == 6 else " "), ("" if number in (4, 6) else " ")
    among = f"{'zero one two three four five six'.split()[number]} options {', '.join(choices)}"
    return f"{question}{begin}{listed} \n Among the {among} above, the one closest to the correct answer is:{end}"


BENCHMARK = Benchmark(
    "video_bench",
    "Video-Bench",
    load,
    video_bench_columns,
    judged_by="video_bench",
    aspects=lambda record: ("choice",),
    export=video_bench_submission,
)
