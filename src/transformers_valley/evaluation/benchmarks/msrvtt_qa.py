# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""MSRVTT-QA: short questions about 2,990 test clips of MSR-VTT, answered in one word (Xu et al. 2017).

Files: any layout of `read_open_ended`. Clips: `video<N>.mp4`. The size of the test split is not checked: its file
could not be had. The data set states no licence.
Numbers: accuracy and score of a judge (paper, Table 1). Video-ChatGPT's own, 49.3, are of the validation split.
"""

from collections.abc import Iterator

from ..annotations import AnnotationFiles, Clips, read_open_ended
from ..benchmark import Benchmark, Sample, chat_about
from ..scores import judged_columns
from .msvd_qa import first_word


def load(files: AnnotationFiles, clips: Clips, split: str) -> Iterator[Sample]:
    for row in read_open_ended(files):
        video = row["video"]
        messages = chat_about(row["question"], video=clips.find(f"video{video}" if isinstance(video, int) else video))
        yield Sample(row["id"], messages, (str(row["answer"]),), source=f"MSRVTT-QA {split}", type=first_word(row))


BENCHMARK = Benchmark(
    "msrvtt_qa", "MSRVTT-QA", load, judged_columns, judged_by="video_chatgpt", aspects=lambda record: ("qa",)
)
