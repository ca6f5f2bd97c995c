# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Sample answers: the same rows, before, on the way and after, and a run that does not change by them."""

import json

import pytest
import torch
from runs import previews, steps, train, with_bad
from transformers import pipeline

from transformers_valley.data import load_rows
from transformers_valley.data.decode import BadSampleError
from transformers_valley.training import previews as module
from transformers_valley.training.previews import answer_row, pick_rows


def test_the_same_rows_are_answered_before_on_the_way_and_after(run, rows):
    written = previews(run)
    assert [(line["step"], line["question"], line["reference"]) for line in written] == [
        (step, f"Question {number}?", f"Answer {number}.")
        for step in (0, 3, 4)
        for number in (0, 5)  # of ten
    ]
    assert written[0]["answer"] != written[-2]["answer"]  # it has learnt in between


def test_the_last_answers_are_those_of_the_saved_model(run, rows):
    pipe = pipeline("video-text-to-text", model=run.args.output_dir)
    records = json.loads(rows.read_text())
    for line, record in zip(previews(run)[-2:], (records[0], records[5]), strict=True):
        clip = record["video"]
        answer = pipe(clip, line["question"], max_new_tokens=module.PREVIEW_TOKENS, return_full_text=False)
        assert line["answer"] == answer[0]["generated_text"]


@pytest.mark.parametrize("config", ["stage2_instruct.yaml", pytest.param("stage2_lora.yaml", marks=pytest.mark.slow)])
def test_sample_answers_do_not_change_the_run(checkpoint, rows, tmp_path, config):
    """The temporal module has dropout, LoRA too: one random number more would show in every later loss."""
    losses = []
    for number, preview_steps in enumerate((0, 1)):
        options = {"num_train_epochs": 2, "learning_rate": 1e-3, "preview_data": rows, "num_previews": 2}
        options["preview_steps"] = preview_steps
        trainer = train(checkpoint, rows, tmp_path / str(number), config, **options)
        losses.append([(entry["loss"], entry["grad_norm"]) for entry in steps(trainer)])
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert not (tmp_path / "0" / "previews.jsonl").exists() and len(previews(trainer)) == 5 * 2


def test_answering_leaves_the_mode_and_the_random_numbers_as_they_were(model, processor, rows):
    (row,) = pick_rows(load_rows([rows]), 1, processor)
    model.gradient_checkpointing_enable()
    for training in (True, False):
        model.train(training)
        state = torch.random.get_rng_state()
        answer_row(model, processor, row)
        assert model.training == training and torch.equal(state, torch.random.get_rng_state())


def test_only_the_first_question_is_asked(model, processor, rows, tmp_path):
    picture = json.loads(rows.read_text())[2]["image"]
    image = {"type": "image", "path": picture}
    messages = [
        {"role": "user", "content": [image, {"type": "text", "text": "First?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "One."}]},
        {"role": "user", "content": [image, {"type": "text", "text": "Second?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Two."}]},
    ]
    (tmp_path / "rows.json").write_text(json.dumps([{"messages": messages}]))
    (row,) = pick_rows(load_rows([tmp_path / "rows.json"]), 1, processor)
    answer = answer_row(model, processor, row)
    assert (answer["question"], answer["reference"]) == ("First?", "One.")


def test_an_assistant_that_speaks_first_is_not_asked(model, processor, tmp_path):
    said = [("assistant", "Welcome."), ("user", "First?"), ("assistant", "One.")]
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in said]
    (tmp_path / "rows.json").write_text(json.dumps([{"messages": messages[:1]}, {"messages": messages}]))
    (row,) = pick_rows(load_rows([tmp_path / "rows.json"]), 1, processor)
    answer = answer_row(model, processor, row)
    assert (answer["question"], answer["reference"]) == ("First?", "One.")


def test_rows_are_spread_over_the_files(rows, processor):
    data = load_rows([rows, rows])
    asked = [row["messages"][0]["content"][-1]["text"] for row in pick_rows(data, 4, processor)]
    assert asked == ["Question 0?", "Question 4?"] * 2
    assert len(pick_rows(data, 100, processor)) == 16


def test_an_answer_cannot_move_the_cursor():
    shown = module._show({"id": None, "question": "Q", "answer": "a\n\x1b[2Jb", "reference": "R"})
    assert shown.splitlines() == ["     question  Q", "       answer  a [2Jb", "    reference  R"]


def test_a_row_that_cannot_be_read_gets_no_sample_answers(checkpoint, rows, tmp_path):
    spoilt = tmp_path / "spoilt.json"
    spoilt.write_text(json.dumps(with_bad(json.loads(rows.read_text()), 0, 4)))
    options = {"preview_data": spoilt, "num_previews": 2, "max_steps": 1}
    with pytest.raises(BadSampleError, match="Row 'row-0' of 'spoilt' cannot be trained on: .*gone.mp4"):
        train(checkpoint, rows, tmp_path / "raise", **options)
    trainer = train(checkpoint, rows, tmp_path / "skip", on_bad_sample="skip", **options)
    assert [line["question"] for line in previews(trainer)] == ["Question 1?", "Question 5?"] * 2
