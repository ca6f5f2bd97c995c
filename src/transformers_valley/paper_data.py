# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What the paper's model learned from: names, sizes, licences and origins, for cards of models and of data sets."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingData:
    """
    A row of a card's table of data.

    Args:
        name (`str`):
            What it is called: an id of the Hub or words. Of a path the card tells the last part.
        rows (`str`, *optional*):
            How many rows, as its source counts them.
        license (`str`, *optional*):
            Of the annotations, as their source states it.
        url (`str`, *optional*):
            Its page.
        remark (`str`, *optional*):
            What else a reader has to know: whose clips or images, and whether they can still be had.
        hub_id (`str`, *optional*):
            Its id on the Hub, for the metadata.
    """

    name: str
    rows: str | None = None
    license: str | None = None
    url: str | None = None
    remark: str | None = None
    hub_id: str | None = None


# Paper, Section 4.3. Licences: README of RupertLuo/Valley for its two sets, README of haotian-liu/LLaVA for the
# instructions, the data set's card for the CC3M subset. VideoChat's page states none.
PAPER_DATA = (
    TrainingData(
        "Valley-702k",
        "702k",
        "CC BY-NC 4.0",
        "https://huggingface.co/datasets/luoruipu1/Valley-webvid2M-Pretrain-703K",
        "clips of WebVid-2M, which has been withdrawn",
        "luoruipu1/Valley-webvid2M-Pretrain-703K",
    ),
    TrainingData(
        "LLaVA-CC3M-Pretrain-595K",
        "595k",
        "other: the terms of CC3M, and of BLIP for its captions",
        "https://huggingface.co/datasets/liuhaotian/LLaVA-CC3M-Pretrain-595K",
        "images of CC3M",
        "liuhaotian/LLaVA-CC3M-Pretrain-595K",
    ),
    TrainingData(
        "Valley-Instruct-73k",
        "73k",
        "CC BY-NC 4.0",
        "https://huggingface.co/datasets/luoruipu1/Valley-Instruct-73k",
        "clips of JukinMedia and VATEX, under their own terms",
        "luoruipu1/Valley-Instruct-73k",
    ),
    TrainingData(
        "LLaVA-Instruct-150K",
        "150k",
        "CC BY-NC 4.0",
        "https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K",
        "images of COCO, under their own terms",
        "liuhaotian/LLaVA-Instruct-150K",
    ),
    TrainingData(
        "VideoChat-instruct-11K",
        "11k",
        None,
        "https://github.com/OpenGVLab/InternVideo/tree/main/Data/instruction_data",
        "clips of WebVid-10M, which has been withdrawn",
    ),
)

# And what its makers released in the place of Valley-Instruct-73k.
KNOWN_DATA = (
    *PAPER_DATA,
    TrainingData(
        "Valley-Instruct-65k",
        "65k",
        "CC BY-NC 4.0",
        "https://huggingface.co/datasets/luoruipu1/Valley-Instruct-65k",
        "corrects the 73k; clips of JukinMedia and VATEX, under their own terms",
        "luoruipu1/Valley-Instruct-65k",
    ),
)


__all__ = ["KNOWN_DATA", "PAPER_DATA", "TrainingData"]
