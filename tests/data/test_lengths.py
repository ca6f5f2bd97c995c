# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Lengths told without decoding are those of the batch. More of them: `tests/training/test_collator.py`."""

import math

import pytest
from clips import write_clip
from datasets import Dataset
from PIL import Image
from tokenizers.processors import TemplateProcessing

from transformers_valley.data import lengths, to_row
from transformers_valley.data.decode import BadSampleError
from transformers_valley.data.lengths import VISUALS_END, add_lengths, count_tokens
from transformers_valley.data.rows import FEATURES, fill_features
from transformers_valley.training import ValleyDataCollator


def make_rows(*contents, answer="Yes."):
    rows = [
        to_row({"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]})
        for content in contents
    ]
    return Dataset.from_list(
        [fill_features(row | {"id": str(i), "source": "rows"}) for i, row in enumerate(rows)], features=FEATURES
    )


@pytest.fixture
def as_trained(processor):
    """Tokens of each row as a batch has them."""
    return lambda rows: ValleyDataCollator(processor)(list(rows))["attention_mask"].sum(1).tolist()


@pytest.fixture
def show(clip):
    return lambda **settings: [{"type": "video", "path": clip, **settings}, {"type": "text", "text": "What?"}]


SETTINGS = [
    {"num_frames": 6},
    {"fps": 2.5},
    {"fps": 10, "max_frames": 5},
    {"start": 1, "end": 2, "fps": 5},
    {"max_frames": 1},
]


@pytest.mark.parametrize("rule", [{"num_frames": 4, "fps": None}, {"num_frames": None, "fps": 1.0}])
def test_settings_of_a_clip_are_counted(processor, as_trained, show, rule):
    vars(processor.video_processor).update(rule)
    rows = make_rows(*(show(**settings) for settings in SETTINGS), show())
    assert add_lengths(rows, processor)["length"][:] == as_trained(rows)


def test_bounds_lie_on_the_side_of_the_length(processor, as_trained, show):
    rows = make_rows(*(show(**settings) for settings in SETTINGS), show())
    lengths = as_trained(rows)
    for limit in range(min(lengths) - 1, max(lengths) + 2):
        found = count_tokens([row["messages"] for row in rows], processor, limit)
        assert [length > limit for length in found] == [length > limit for length in lengths], limit


@pytest.mark.parametrize("spelt", ["What does </s> mean?", "<video> or <vi_end> <image>", "<s><unk></s>"])
def test_control_tokens_that_a_text_spells_are_counted_as_text(processor, as_trained, show, tmp_path, spelt):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    text, image = {"type": "text", "text": spelt}, {"type": "image", "path": str(tmp_path / "a.png")}
    rows = make_rows([text], [*show(fps=5), text], [image, *show(), text, image, text], answer=f"It is {spelt}")
    counted = add_lengths(rows, processor)
    assert counted["length"][:] == as_trained(rows)
    placeholders = {processor.image_token_id, processor.video_token_id}
    for row, end in zip(rows, counted[VISUALS_END][:], strict=True):
        ids = ValleyDataCollator(processor).encode(row)["input_ids"].tolist()
        shown = [i for i, token in enumerate(ids) if token in placeholders]
        assert end == (shown[-1] + 2 if shown else 0)


@pytest.mark.parametrize(
    "settings",
    [{"start": 2, "end": 1}, {"start": 1, "end": 1}, {"start": -1}, {"end": 0}, {"start": math.nan}, {"end": math.inf}]
    + [{"fps": 0}, {"num_frames": -1}, {"max_frames": 0}],
)
def test_a_part_that_no_clip_has_ends_no_count(processor, show, settings):
    """Its row is bad, which a batch says."""
    (length,) = count_tokens([row["messages"] for row in make_rows(show(**settings))], processor)
    assert length == count_tokens([row["messages"] for row in make_rows(show(num_frames=1))], processor)[0]


@pytest.mark.parametrize("around", ["$A", "<s> $A", "<s> $A </s>"])
@pytest.mark.parametrize("writes_bos", [True, False])
def test_what_the_tokenizer_writes_around_a_text_is_counted(processor, as_trained, show, around, writes_bos):
    """A template that writes no start leaves it to the tokenizer, if that writes none at the end."""
    processor.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=around, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    if not writes_bos:
        processor.chat_template = processor.chat_template.replace("{{- bos_token -}}", "")
    rows = make_rows("Who?", show(num_frames=3), "What does </s> mean?")
    counted, encoded = add_lengths(rows, processor), [ValleyDataCollator(processor).encode(row) for row in rows]
    assert counted["length"][:] == as_trained(rows)
    starts = sum(row["input_ids"].tolist().count(1) for row in encoded)
    assert starts == (3 if writes_bos or around == "<s> $A" else 0)
    end = encoded[1]["input_ids"].tolist().index(processor.tokenizer.convert_tokens_to_ids("<vi_end>")) + 1
    assert counted[VISUALS_END][:] == [0, end, 0]


REFUSING = """{%- for message in messages -%}{%- for block in message.content -%}
{%- if block.type == "text" and "tool" in block.text -%}{{- raise_exception("No tools.") -}}{%- endif -%}
{%- endfor -%}{%- endfor -%}"""


@pytest.mark.parametrize("spelt", ["", " </s>"])
def test_a_row_that_the_chat_template_refuses_ends_no_count(processor, as_trained, show, spelt):
    """A batch names it; what its visuals take is counted, and all of the others."""
    processor.chat_template = REFUSING + processor.chat_template
    tool = {"type": "text", "text": f"A tool{spelt}"}
    rows = make_rows("Who?", [*show(num_frames=3), tool], [tool], show(num_frames=2))
    counted = add_lengths(rows, processor)
    good, clip = as_trained(rows.select([0, 3])), lengths.clip_tokens(processor, 3)
    assert counted["length"][:] == [good[0], clip, 1, good[1]] and counted[VISUALS_END][1:3] == [clip, 0]
    with pytest.raises(BadSampleError, match="Row '1' of 'rows' cannot be trained on: No tools."):
        ValleyDataCollator(processor)([rows[1]])


def test_lengths_are_counted_again_when_a_clip_changes(processor, tmp_path, monkeypatch):
    """A clip that was missing arrives; another replaces it; a copy of the rows is read from the cache."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    vars(processor.video_processor).update(fps=1.0, num_frames=None)
    path = tmp_path / "clip.mp4"
    rows = make_rows([{"type": "video", "path": str(path)}], "No clip.")
    counted = []
    for seconds in (None, 3, 7):
        if seconds is not None:
            write_clip(path, seconds * 10, fps=10)
        counted.append(add_lengths(rows, processor)["length"][0])
    assert counted == [counted[0], counted[0] + 2, counted[0] + 6]


def test_clips_that_are_not_opened_are_not_looked_at(processor, clip, tmp_path, monkeypatch):
    vars(processor.video_processor).update(fps=None, num_frames=4)
    rows = make_rows([{"type": "video", "path": clip}], [{"type": "video", "path": clip, "fps": 5}])
    looked_at = []
    monkeypatch.setattr(lengths, "find", lambda path: looked_at.append(path) or path)
    add_lengths(rows.select([0]), processor)
    assert not looked_at
    add_lengths(rows, processor)
    assert looked_at == [clip]
