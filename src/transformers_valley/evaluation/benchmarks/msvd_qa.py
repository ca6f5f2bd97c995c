# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""MSVD-QA: short questions about 504 YouTube clips, answered in one word (Xu et al. 2017).

Files: any layout of `read_open_ended`; with numbered clips also `youtube_mapping.txt`, one `<clip> vid<N>` per line.
Clips: `<clip>.avi`, or `vid<N>.avi` as the authors call them. 13,157 test questions. The data set states no licence.
Numbers: accuracy and score of a judge (paper, Table 1). Video-ChatGPT's own, 64.9, are of the validation split.
"""

from collections.abc import Iterator

from ..annotations import AnnotationFiles, Clips, read_open_ended
from ..benchmark import Benchmark, Sample, chat_about
from ..scores import judged_columns


def load(files: AnnotationFiles, clips: Clips, split: str) -> Iterator[Sample]:
    mapping = files.find("youtube_mapping.txt")
    clip_names = {number: name for name, number in map(str.split, mapping.read_text().splitlines())} if mapping else {}
    for row in read_open_ended(files):
        names = [row["video"]]
        if isinstance(row["video"], int):
            number = f"vid{row['video']}"
            names = [clip_names[number], number] if number in clip_names else [number]
        messages = chat_about(row["question"], video=clips.find(*names))
        yield Sample(row["id"], messages, (str(row["answer"]),), source=f"MSVD-QA {split}", type=first_word(row))


def first_word(row: dict) -> str:
    """The kind of a question: MSVD-QA and MSRVTT-QA ask what, who, how, when and where."""
    word = row["question"].split()[0].lower() if row["question"].split() else ""
    return word if word in ("what", "who", "how", "when", "where") else "other"


BENCHMARK = Benchmark(
    "msvd_qa", "MSVD-QA", load, judged_columns, judged_by="video_chatgpt", aspects=lambda record: ("qa",)
)
