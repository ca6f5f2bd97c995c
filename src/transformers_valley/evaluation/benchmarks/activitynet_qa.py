# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""ActivityNet-QA: ten questions about each of 800 test videos (Yu et al. 2019).

Files: `MILVLG/activitynet-qa: dataset/{split}_{q,a}.json` (Apache-2.0), or Chat-UniVi's joined list. Clips:
`v_<video_name>`, in any container. 8,000 test questions.
Numbers: accuracy and score of a judge (paper, Table 1).
Option `asks_politely`: LLaVA-NeXT and lmms-eval ask for one word, with a capital and a question mark; the paper's
peers ask as the file does, in lower case and without one.
"""

from collections.abc import Iterator

from ..annotations import AnnotationFiles, Clips, read_open_ended
from ..benchmark import Benchmark, Sample, chat_about
from ..scores import judged_columns


# Of the field `type`, in the order of the paper of ActivityNet-QA.
TYPES = ("motion", "spatial", "temporal", "yes/no", "colour", "object", "location", "number", "other")


def load(files: AnnotationFiles, clips: Clips, split: str, asks_politely: bool = False) -> Iterator[Sample]:
    for row in read_open_ended(files):
        name, question = str(row["video"]), row["question"]
        if asks_politely:
            question = f"{question.capitalize()}? Answer the question using a single word or phrase."
        kind = row["type"]
        yield Sample(
            row["id"],
            chat_about(question, video=clips.find(name if name.startswith("v_") else f"v_{name}", name)),
            (str(row["answer"]),),
            source=f"ActivityNet-QA {split}",
            type=TYPES[kind] if isinstance(kind, int) and 0 <= kind < len(TYPES) else "",
        )


BENCHMARK = Benchmark(
    "activitynet_qa",
    "ActivityNet-QA",
    load,
    judged_columns,
    judged_by="video_chatgpt",
    aspects=lambda record: ("qa",),
)
