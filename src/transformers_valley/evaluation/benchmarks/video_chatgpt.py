# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The generative benchmark of Video-ChatGPT: free answers about 499 videos, scored in five aspects (Maaz et al. 2024).

Files: `generic_qa.json`, `temporal_qa.json`, `consistency_qa.json`, as in `PKU-YuanGroup/Chat-UniVi`: 1,996, 499 and
499 items (CC BY 4.0, or CC BY-NC-SA 4.0 as its README says). Clips: `<video_name>`, in any container.
Numbers: five scores from 0 to 5 (paper, Table 2). Generic answers are judged three times; for consistency a question
is asked in two wordings, whose answers are judged together. 33 generic questions occur twice: the id is the position.
"""

from collections.abc import Iterator

from ..annotations import AnnotationFiles, Clips
from ..benchmark import Benchmark, Sample, chat_about
from ..scores import video_chatgpt_columns


ASPECTS = {
    "generic": ("correctness", "detail", "context"),
    "temporal": ("temporal",),
    "consistency": ("consistency",),
}


def load(files: AnnotationFiles, clips: Clips, split: str) -> Iterator[Sample]:
    for kind in ASPECTS:
        for position, row in enumerate(files.read(f"{kind}_qa.json")):
            name, video = f"{kind}/{position}", clips.find(row["video_name"])
            about = {"answers": (row["A"],), "source": "Video-ChatGPT", "type": kind}
            if kind != "consistency":
                yield Sample(name, chat_about(row["Q"], video=video), **about)
                continue
            first = {"facts": {"second": f"{name}/2"}}  # it is judged, with the answer to the other wording beside it
            yield Sample(f"{name}/1", chat_about(row["Q1"], video=video), **about, **first)
            yield Sample(f"{name}/2", chat_about(row["Q2"], video=video), **about)


def aspects(record: dict) -> tuple[str, ...]:
    is_second = record["type"] == "consistency" and "second" not in record["facts"]
    return () if is_second else ASPECTS[record["type"]]


BENCHMARK = Benchmark(
    "video_chatgpt",
    "Video-ChatGPT",
    load,
    video_chatgpt_columns,
    main="score",
    judged_by="video_chatgpt",
    aspects=aspects,
)
