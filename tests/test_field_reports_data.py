# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What users of other projects reported of their data, tried here: a row per kind of report, and its neighbours.

`REPORTS` holds the smallest record of each kind and what becomes of it: what the row says, or the reason why it is
refused. A report that reaches us becomes a row here before it is mended.
"""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from transformers_valley.data import load_rows, to_row
from transformers_valley.data.check import check_data
from transformers_valley.data.decode import BadSampleError, visuals_of
from transformers_valley.training import ValleyDataCollator


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def chat(content="What?", answer="A dog.", **fields):
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}], **fields}


def talk(question="What?", answer="A dog.", **fields):
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}], **fields}


def clip(**settings):
    return [{"type": "video", "path": "a.mp4", **settings}, {"type": "text", "text": "What?"}]


def turn(**fields):
    return {"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A dog.", **fields}]}


def qa(answer):
    return {"video": "a.mp4", "question": "What?", "answer": answer}


def told(record):
    """What a record becomes: its turns, with each visual and its settings in brackets; or why it is refused."""
    try:
        row = to_row(record)
    except ValueError as error:
        return f"refused: {error}"

    def say(block):
        if block["type"] == "text":
            return block["text"]
        visual = next(visuals)
        if block["type"] == "image":
            return f"[{visual.source}]"
        return f"[{' '.join(map(str, visual.source.values()))}]"

    visuals = visuals_of(row)
    return "\n".join(
        f"{message['role']}: {' '.join(say(block) for block in message['content'])}" for message in row["messages"]
    )


SHOWN = "user: [a.mp4] What?\nassistant: A dog."
TEXT = "user: What?\nassistant: A dog."
IMAGE = "user: [b.jpg] What?\nassistant: A dog."
REPORTS = {
    "clips in a field of another name": [
        ("hiyouga/LlamaFactory #6839", chat("<video>What?", videos=["a.mp4"]), SHOWN),
        ("hiyouga/LlamaFactory #9146", chat("<video>What?", video="a.mp4"), SHOWN),
        ("unslothai/unsloth #5085", chat(videos=["a.mp4"]), SHOWN),
        ("neighbour", talk("<video>What?", videos=["a.mp4"]), SHOWN),
        ("neighbour", talk(images=["b.jpg"]), IMAGE),
        ("neighbour", chat(image="b.jpg"), IMAGE),
        ("neighbour", talk(video_path="a.mp4"), "refused: .*`video_path`, .*call it `video`"),
        ("neighbour", chat(clip_file="a.mp4"), "refused: .*`clip_file`, which tells of a clip"),
        ("neighbour", talk(video_id="a"), "refused: .*`video_id`, .*call it `video`"),
        ("neighbour", qa("A dog.") | {"frames": ["1.jpg"]}, "refused: .*`frames`"),
        (
            "neighbour",
            chat([{"type": "text", "text": "?", "video": "a.mp4"}]),
            "refused: .*a block of text has .*`video`",
        ),
    ],
    "a system prompt that is lost": [
        ("zjysteven/lmms-finetune #5", talk(system="In French."), f"system: In French.\n{TEXT}"),
        ("NVIDIA-NeMo/Automodel #3143", chat(system="In French."), f"system: In French.\n{TEXT}"),
        (
            "2U1/Qwen-VL-Series-Finetune #63",
            {"conversations": [{"from": "system", "value": "In French."}, *talk()["conversations"]]},
            f"system: In French.\n{TEXT}",
        ),
        ("neighbour", qa("A dog.") | {"system": "In French."}, f"system: In French.\n{SHOWN}"),
        ("neighbour", talk(system_prompt="In French."), "refused: .*`system_prompt`, .*call it `system`"),
        ("neighbour", chat(instruction="In French."), "refused: .*`instruction`"),
        ("neighbour", chat(system=["In French."]), "refused: .*`system` is a list of 1, expected text"),
    ],
    "a part of a clip under other names": [
        ("QwenLM/Qwen2.5-VL", chat(clip(video_start=1, video_end=2)), "refused: .*'video_end' is called 'end'"),
        ("neighbour", chat(clip(nframes=2)), "refused: .*'nframes' is called 'num_frames'"),
        ("neighbour", chat(clip(start_time=1)), "refused: .*unknown keys \\['start_time'\\]"),
        ("neighbour", chat(clip(start=1, end=2)), "user: [a.mp4 1.0 2.0] What?\nassistant: A dog."),
        ("neighbour", talk(video="a.mp4", start=1, end=2), "user: [a.mp4 1.0 2.0] What?\nassistant: A dog."),
        ("neighbour", talk(video="a.mp4", start_time=1), "refused: .*`start_time`, .*call it `start`"),
        ("neighbour", talk(video="a.mp4", timestamps=[1, 2]), "refused: .*`timestamps`, which tells of a time"),
        ("neighbour", talk(video="a.mp4", start=1, duration=1), "refused: .*write `end`"),
        ("neighbour", chat(clip(start="00:01")), "refused: .*`start` of a clip is the text '00:01'"),
        ("neighbour", chat(clip(), start=1), "refused: .*write `start` into the block"),
    ],
    "frames of a clip by its own rule (modelscope/ms-swift #6039)": [
        ("modelscope/ms-swift #6039", chat(clip(max_frames=4)), "user: [a.mp4 4] What?\nassistant: A dog."),
        ("neighbour", chat(clip(fps=2)), "user: [a.mp4 2.0] What?\nassistant: A dog."),
        ("neighbour", chat(clip(fps=2, num_frames=4)), "refused: .*both `fps` and `num_frames`: keep one"),
    ],
    "turns that are not to be learnt": [
        ("THUDM/slime #377", turn(loss=False), "refused: .*a message has the fields `loss`"),
        ("hiyouga/LlamaFactory #9630", turn(weight=0), "refused: .*a message has the fields `weight`"),
        ("neighbour", talk(weight=0.5), "refused: .*`weight`, which tells of how much it counts"),
        ("neighbour", chat(loss_mask=[0, 1]), "refused: .*`loss_mask`"),
        ("neighbour", chat(rejected="A cat."), "refused: .*`rejected`"),
        ("neighbour", turn(weight=None), TEXT),
    ],
    "calls of tools": [
        ("ProfSynapse/Synaptic-Tuner #42", turn(content="", tool_calls=[{}]), "refused: .*the fields `tool_calls`"),
        ("neighbour", turn(content=None), "refused: .*the content of a message is null"),
        ("neighbour", chat(tools=[{}]), "refused: .*`tools`, which tells of tools"),
        ("neighbour", turn(role="tool"), "refused: .*the role 'tool' is unknown"),
        ("neighbour", turn(reasoning_content="Hm."), "refused: .*the fields `reasoning_content`"),
    ],
    "empty answers": [
        ("LAION-AI/Open-Assistant #2438", talk(answer=""), "refused: .*an answer of the assistant is empty"),
        ("neighbour", chat(answer=""), "refused: .*an answer of the assistant is empty"),
        ("neighbour", chat(answer=" \n "), "refused: .*an answer of the assistant is empty"),
        ("neighbour", chat(answer=[{"type": "text", "text": ""}]), "refused: .*an answer of the assistant is empty"),
        ("neighbour", qa(" "), "refused: .*an answer of the assistant is empty"),
        ("neighbour", {"video": "a.mp4", "QA": [{"q": "?", "a": ""}]}, "refused: .*an answer of the assistant is"),
        ("neighbour", chat([]), "refused: .*a turn of the user is empty"),
    ],
    "texts that spell placeholders and control tokens": [
        ("hiyouga/LlamaFactory #5658", talk(answer="Use <video>."), "user: What?\nassistant: Use <video>."),
        ("QwenLM/Qwen #24", chat("What does </s> mean?"), "user: What does </s> mean?\nassistant: A dog."),
        ("neighbour", chat("The <video> tag?"), "user: The <video> tag?\nassistant: A dog."),
        ("neighbour", chat(answer="<vi_start><im_end>"), "user: What?\nassistant: <vi_start><im_end>"),
        ("neighbour", talk("<video>What?"), "refused: .*1 places for videos, and names 0"),
        ("neighbour", talk(answer="<video> shows", video="a.mp4"), "refused: .*stands in a turn of 'gpt'"),
    ],
    "a clip as a list of frames": [
        (
            "modelscope/ms-swift #4290",
            talk("<video>?", video=["1.jpg", "2.jpg"]),
            "refused: .*1 places for videos, .* 2",
        ),
        ("neighbour", chat(videos=[["1.jpg", "2.jpg"]]), "refused: .*put its frames into a folder"),
        ("neighbour", chat([{"type": "video", "video": ["1.jpg"]}]), "refused: .*path of a clip is a list of 1"),
    ],
    "parts of clips that only an id names": [
        (
            "RupertLuo/Valley #20",
            talk(v_id="zkbnKBewRLA_000069_000079", video="v_zkbnKBewRLA.mp4", source="VATEX"),
            "user: [VATEX/v_zkbnKBewRLA.mp4 69.0 79.0] What?\nassistant: A dog.",
        ),
        (
            "neighbour",
            talk(v_id="a_b-c_d_e_f_000001_000002", video="a.mp4", source="VATEX"),
            "user: [VATEX/a.mp4 1.0 2.0] What?\nassistant: A dog.",
        ),
        ("neighbour", talk(v_id="12", video="a.mp4"), SHOWN),
    ],
    "types": [
        ("neighbour", talk(answer=None), "refused: .*a turn of 'gpt' is null, expected text"),
        ("neighbour", talk(answer=3), "refused: .*a turn of 'gpt' is the number 3, expected text"),
        ("neighbour", talk(video={"path": "a.mp4"}), "refused: .*the path of a clip is an object with the fields"),
        ("neighbour", chat([{"type": "image"}], images="b.jpg"), "user: [b.jpg]\nassistant: A dog."),
        ("neighbour", talk(video=[None]), "refused: .*the path of a clip is null"),
        ("neighbour", {"messages": "[]"}, "refused: .*`messages` is the text"),
    ],
}


@pytest.mark.parametrize(
    ("record", "right"),
    [
        pytest.param(record, right, id=f"{kind}: {source} {number}")
        for kind, rows in REPORTS.items()
        for number, (source, record, right) in enumerate(rows)
    ],
)
def test_a_record_becomes_what_it_says_or_is_refused_by_name(record, right):
    import re

    found = told(record)
    assert re.match(right, found, re.DOTALL) if right.startswith("refused: ") else found == right, found


def test_every_kind_has_two_neighbours_that_no_report_names():
    for kind, rows in REPORTS.items():
        assert sum(source == "neighbour" for source, _, _ in rows) >= 2, kind


# --- parts of clips that cannot be: CelebV-HQ/CelebV-HQ #11, jayleicn/moment_detr #22 ---

PARTS = {
    "the start is the end (jayleicn/moment_detr #22)": {"start": 1, "end": 1},
    "a negative end (CelebV-HQ/CelebV-HQ #11)": {"end": -2},
    "the end before the start": {"start": 2, "end": 1},
    "a negative start": {"start": -1, "end": 1},
    "no end at all": {"end": math.inf},
    "not a number": {"start": math.nan},
    "no frames": {"num_frames": 0},
    "a rate of nothing": {"fps": 0.0},
    "beyond the clip": {"start": 60},
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_a_part_that_cannot_be_is_a_bad_sample_with_its_row(clip, processor, tmp_path, part):
    content = [{"type": "video", "path": clip, **part}, {"type": "text", "text": "What?"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps(chat(content, id="odd")))
    (row,) = load_rows([tmp_path / "rows.jsonl"])
    with pytest.raises(BadSampleError, match="Row 'odd' of 'rows' cannot be trained on"):
        ValleyDataCollator(processor).encode(row)
    (error,) = check_data([tmp_path / "rows.jsonl"], processor=processor, max_length=2048, num_proc=1).bad
    assert error.id == "odd" and error.file == clip


# --- text that cannot be stored: daaain/claude-code-log #144, notatallshaw/nab #825 ---

UNSTORABLE = {
    "in an answer (daaain/claude-code-log #144)": chat(answer="bad \ud83d"),
    "in a question": talk("bad \ud83d"),
    "in a path (notatallshaw/nab #825)": talk(video="a\udce4.mp4"),
    "in a system prompt": chat(system="\ud83d"),
    "in a choice": qa("a") | {"choices": ["a", "\ud83d"]},
}


@pytest.mark.parametrize("record", UNSTORABLE.values(), ids=UNSTORABLE)
def test_half_an_emoji_is_told_alike_by_load_stream_and_check(tmp_path, record):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(record) + "\n")
    for streaming in (False, True):
        with pytest.raises(ValueError, match=r"rows.jsonl, record 0: .* holds a lone surrogate, '\\ud"):
            load_rows([file], streaming=streaming)
    (error,) = check_data([file], num_proc=1).bad
    assert "rows.jsonl, record 0" in error.reason and "lone surrogate" in error.reason


def test_an_id_of_half_an_emoji_can_be_printed(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(chat(id="a\ud83d")) + "\n")
    (row,) = load_rows([tmp_path / "rows.jsonl"])
    assert row["id"] == "a\\ud83d"


# --- causes that are cut off: huggingface/dataset-viewer #3011, oobabooga/textgen #4325 ---

FILES = {
    "nested too deep (huggingface/dataset-viewer #3011)": ("[" * 100_000, "nested too deep"),
    "a number without end": ('[{"id": ' + "9" * 5000 + "}]", "4300 digits"),
    "torn": ('[{"id": 1}, {"id"', "it ends too early"),
    "a pointer of Git LFS": ("version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "a page of a failed download": ("<!DOCTYPE html>", "HTML or XML"),
    "CSV under another name": ("video,question,answer\n", "looks like CSV"),
}


@pytest.mark.parametrize(("content", "cause"), FILES.values(), ids=FILES)
def test_the_cause_is_told(tmp_path, content, cause):
    (tmp_path / "rows.json").write_text(content)
    with pytest.raises(ValueError, match=f"rows.json.*{cause}|rows.json, record 0.*"):
        load_rows([tmp_path / "rows.json"])


# --- rows with other columns side by side: QwenLM/Qwen3-VL #196 ---


def test_rows_with_clips_images_and_text_alone_share_a_data_set(tmp_path):
    lines = [talk(video="a.mp4"), chat(clip(start=1)), talk(image="b.jpg"), chat(), qa("A dog.")]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = load_rows([tmp_path / "rows.jsonl"])
    assert [[visual.modality for visual in visuals_of(row)] for row in rows] == [
        ["video"],
        ["video"],
        ["image"],
        [],
        ["video"],
    ]


# --- texts that spell control tokens, trained as they are asked: QwenLM/Qwen #24 ---


@pytest.mark.parametrize("spelt", ["What does </s> mean?", "<s>Hi<unk>", "The <video> tag, <vi_start> and <image>"])
def test_a_question_is_trained_as_it_is_asked(processor, tmp_path, spelt):
    (tmp_path / "rows.jsonl").write_text(json.dumps(chat(spelt)))
    (row,) = load_rows([tmp_path / "rows.jsonl"])
    trained = ValleyDataCollator(processor).encode(row)["input_ids"]
    asked = [{"role": "user", "content": [{"type": "text", "text": spelt}]}]
    prompt = processor.apply_chat_template(
        asked, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )["input_ids"][0]
    assert torch.equal(trained[: len(prompt)], prompt)


# --- pictures of more than 8 bits: python-pillow/Pillow #2574, #3011, unslothai/unsloth #10970 ---

GREY = np.arange(64 * 48, dtype=np.uint16).reshape(48, 64) * 21
PICTURES = {
    "16 bits (python-pillow/Pillow #2574)": ("a.png", GREY, None),
    "32 bits that hold 16": ("a.tiff", GREY.astype(np.int32), None),
    "floats of no known range (unslothai/unsloth #10970)": ("a.tiff", GREY.astype(np.float32) / 65535, "grey levels"),
    "8 bits": ("a.png", (GREY // 257).astype(np.uint8), None),
}


@pytest.mark.parametrize(("name", "levels", "reason"), PICTURES.values(), ids=PICTURES)
def test_a_deep_picture_is_seen_or_bad(processor, tmp_path, name, levels, reason):
    Image.fromarray(levels).save(tmp_path / name)
    (tmp_path / "rows.jsonl").write_text(json.dumps(talk(image=name)))
    (row,) = load_rows([tmp_path / "rows.jsonl"], tmp_path)
    bad = check_data([tmp_path / "rows.jsonl"], tmp_path, num_proc=1).bad
    if reason is None:
        assert not bad and ValleyDataCollator(processor).encode(row)["pixel_values"].std() > 0.3
    else:
        assert reason in bad[0].reason


# --- a file that changed: LoicGrobol/zeldarose #111 ---


def test_a_changed_file_is_read_again(tmp_path):
    file = tmp_path / "rows.jsonl"
    for answer in ("A dog.", "A cat."):
        file.write_text(json.dumps(chat(answer=answer)))
        assert load_rows([file])[0]["messages"][1]["content"][0]["text"] == answer


# --- a set whose clips are partly gone: RupertLuo/Valley #19, #32, PKU-YuanGroup/Video-LLaVA #182 ---


@pytest.mark.parametrize("record", [talk(video="gone.mp4"), talk(image="gone.jpg"), qa("A dog.")])
def test_rows_whose_media_are_gone_can_be_left_out(tmp_path, record):
    (tmp_path / "rows.jsonl").write_text(json.dumps(record) + "\n" + json.dumps(chat(id="kept")))
    assert load_rows([tmp_path / "rows.jsonl"], tmp_path, on_missing="skip")["id"][:] == ["kept"]
    with pytest.raises(ValueError, match="1 rows show clips or images that are not there"):
        load_rows([tmp_path / "rows.jsonl"], tmp_path, on_missing="raise")


# --- a stream that reads everything first: hiyouga/LlamaFactory #8633 ---


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_a_stream_gives_its_first_row_before_it_has_read_the_rest(tmp_path, name):
    good = [json.dumps(chat(id=str(i))) for i in range(3)]
    text = "[" + ",".join(good) + ",{broken" if name == "rows.json" else "\n".join(good) + "\n{broken"
    (tmp_path / name).write_text(text)
    assert next(iter(load_rows([tmp_path / name], streaming=True)))["id"] == "0"
