# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What a resumed run has to share with the one before, and what may change."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import ModelConfig, SFTConfig

from transformers_valley.data import load_rows
from transformers_valley.training import ValleyArguments, set_trainable
from transformers_valley.training.settings import _digest_rows, describe_run


def describe(checkpoint, rows, tmp_path, **training):
    training_args = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", **training)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    set_trainable(model, ["model.multi_modal_projector"])
    processor = AutoProcessor.from_pretrained(checkpoint)
    return describe_run(ValleyArguments([]), training_args, ModelConfig(), model, processor, load_rows([rows]))


@pytest.mark.parametrize(
    ("training", "group"),
    [
        ({"per_device_train_batch_size": 4}, "other"),  # eight rows: every step is full
        ({"per_device_train_batch_size": 3}, "same"),  # one process would leave the last step short
        ({"per_device_train_batch_size": 4, "train_sampling_strategy": "group_by_length"}, "same"),
    ],
)
def test_the_number_of_processes_may_change_where_every_step_is_full(checkpoint, rows, tmp_path, training, group):
    run = describe(checkpoint, rows, tmp_path, **training)
    assert "processes" in run[group] and "rows in a step" in run["same"]


def test_settings_are_the_same_in_another_process(checkpoint, rows, tmp_path):
    first, second = (describe(checkpoint, rows, tmp_path) for _ in range(2))
    assert first == second == json.loads(json.dumps(first))


def test_rows_may_move_but_not_change(rows, tmp_path):
    records = json.loads(rows.read_text())
    for record in records:
        for kind in record.keys() & {"video", "image"}:
            record[kind] = Path(record[kind]).name
    (tmp_path / "moved.json").write_text(json.dumps(records))
    digest = _digest_rows(load_rows([rows]))
    assert _digest_rows(load_rows([tmp_path / "moved.json"], "/elsewhere")) == digest
    assert _digest_rows(load_rows([rows]).to_iterable_dataset()) == digest
    (tmp_path / "turned.json").write_text(json.dumps(records[::-1]))
    assert _digest_rows(load_rows([tmp_path / "turned.json"])) != digest


@pytest.mark.parametrize("column", ["images", "start", "end"])
def test_which_image_and_which_seconds_are_of_the_rows(column, rows):
    def change(row, value):
        row["images"] = [value] if column == "images" else []
        for block in row["messages"][0]["content"]:
            block |= {} if column == "images" else {column: value}
        return row

    before, after = ("a/1.png", "a/2.png") if column == "images" else (1.0, 2.0)
    one, other, moved = (
        _digest_rows(load_rows([rows]).map(change, fn_kwargs={"value": value}))
        for value in (before, after, before.replace("a/", "b/") if column == "images" else before)
    )
    assert one == moved != other
