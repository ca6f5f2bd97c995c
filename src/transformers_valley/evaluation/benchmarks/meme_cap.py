# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""MemeCap: what does the poster of a meme want to say? Free answers, one to four references (Hwang and Shwartz 2023).

Files: `memes-test.json` of `eujhwang/meme-cap: data/` (it states no licence), 559 memes. Images: `<img_fname>`,
anywhere below the media folder. The text in the memes, which the authors read with EasyOCR, is not in the files and
not asked. Numbers: BERTScore F1, the best of the references (paper, Table 4, whose rows were scored with different
models). Option `rationale`: tell the annotated metaphors, as MemeCap's own "chain of thought" rows do. The paper of
Valley adds a sentence to the system prompt instead, which is the option for all benchmarks.
"""

from collections.abc import Iterator

from ..annotations import IMAGE_SUFFIXES, AnnotationFiles, Clips
from ..benchmark import Benchmark, Column, Item, Sample, chat_about, mean_of


def load(files: AnnotationFiles, clips: Clips, split: str, rationale: bool = False) -> Iterator[Sample]:
    for meme in files.read(f"memes-{split}.json"):
        told = (
            f"This is a meme with the title “{meme['title']}”. The image description is “{meme['img_captions'][0]}”."
        )
        question = f"{told} What is the meme poster trying to convey?"
        if rationale:
            pairs = [f"“{pair['metaphor']}” is a metaphor for “{pair['meaning']}”." for pair in meme["metaphors"]]
            question = " ".join([question, "Rationale:", *pairs])
        stem = meme["img_fname"].rpartition(".")[0]
        yield Sample(
            meme["post_id"],
            chat_about(f"{question} Answer:", image=clips.find(stem, suffixes=IMAGE_SUFFIXES)),
            tuple(meme["meme_captions"]),
            source=f"MemeCap {split}",
        )


def columns(items: list[Item]) -> list[Column]:
    return [mean_of("BERT F1-score", items, "bertscore", 100), mean_of("empty answers", items, "empty", 100)]


BENCHMARK = Benchmark(
    "meme_cap",
    "MemeCap",
    load,
    columns,
    main="bertscore",
    judged_by="bertscore",
    aspects=lambda record: ("bertscore",),
)
