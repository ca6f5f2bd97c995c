# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What a run tells of itself: in its log entries and its table."""

import gc
import json
import re
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import sft
import torch
from launching import arguments, launch
from runs import previews, steps, train
from transformers import TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from transformers_valley.data import load_rows
from transformers_valley.training import ValleyDataCollator, clear_errors, monitor
from transformers_valley.training import previews as previews_module
from transformers_valley.training.monitor import ProgressBar, ProgressTable
from transformers_valley.training.parameters import parameter_table


MEASURED = {
    "tokens_per_second",
    "clips_per_second",
    "padding_share",
    "data_wait_share",
    "memory_gib",
    "bad_samples",
    "bad_sample_share",
}


def test_every_log_entry_of_a_step_says_how_fast_it_was(run):
    for entry in steps(run):
        assert entry.keys() >= MEASURED | {"loss", "grad_norm", "learning_rate", "num_tokens", "epoch"}
        assert entry["tokens_per_second"] > 0 and entry["clips_per_second"] > 0 and entry["memory_gib"] > 0.1
        assert 0 <= entry["padding_share"] < 1 and 0 < entry["data_wait_share"] < 1
    assert [entry["step"] for entry in steps(run)] == [1, 2, 3, 4]


def test_tensorboard_gets_what_the_state_keeps(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = Path(run.args.output_dir).glob("runs/*/events*")
    events = EventAccumulator(str(file)).Reload()
    for name in {*MEASURED, "loss", "learning_rate", "grad_norm"}:
        written = [event.value for event in events.Scalars(f"train/{name}")]
        assert written == pytest.approx([entry[name] for entry in steps(run)]), name
    texts = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("train/preview_2/text_summary")]
    answers = previews(run)[1::2]
    assert len(texts) == len(answers) == 3
    for text, answer in zip(texts, answers, strict=True):
        assert "Question 5?" in text and "Answer 5." in text and answer["question"] == "Question 5?"


def test_tokens_and_clips_and_padding_are_counted(checkpoint, rows, tmp_path, processor):
    """Their ratios are known, whatever the clock says; so is the sum over accumulated batches."""
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "preview_steps": 0}
    (entry,) = steps(train(checkpoint, rows, tmp_path / "out", **options))
    assert entry["clips_per_second"] / entry["tokens_per_second"] == pytest.approx(4 / entry["num_tokens"])
    trainer = train(checkpoint, rows, tmp_path / "out", per_device_train_batch_size=8)
    (entry,) = steps(trainer)
    collator = DataCollatorForVisionLanguageModeling(processor, assistant_only_loss=True)
    mask = collator([dict(row) for row in load_rows([rows])])["attention_mask"]
    assert entry["num_tokens"] == mask.sum()
    assert entry["padding_share"] == pytest.approx(1 - mask.float().mean().item())


def test_rows_packed_without_a_mask_have_no_padding(model):
    counted = monitor.RunMonitor(None)
    batch = {"input_ids": torch.zeros(1, 30), "position_ids": torch.zeros(1, 30), "video_num_frames": torch.ones(3)}
    counted._count_batch(model.train(), (), batch)
    counted._count_batch(model.eval(), (), batch)  # an evaluation is not counted
    assert (counted._tokens, counted._positions, counted._clips) == (30, 30, 3)


def test_lora_is_counted_alike(checkpoint, rows, tmp_path):
    trainer = train(checkpoint, rows, tmp_path, "stage2_lora.yaml", per_device_train_batch_size=8, lora_r=4)
    (entry,) = steps(trainer)
    assert entry["clips_per_second"] / entry["tokens_per_second"] == pytest.approx(4 / entry["num_tokens"])


def test_time_is_told_apart(checkpoint, rows, tmp_path, monkeypatch):
    """By a clock that goes on when something happens: 3 s for a batch, 1 s in the model, 100 s for what is no step."""
    now = 0.0
    monkeypatch.setattr(monitor, "time", SimpleNamespace(perf_counter=lambda: now))

    def takes(seconds, owner, name):
        function = getattr(owner, name)

        def slow(*args, **kwargs):
            nonlocal now
            now += seconds
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, slow)

    takes(3, ValleyDataCollator, "__call__")
    takes(1, SFTTrainer, "compute_loss")
    takes(100, SFTTrainer, "evaluate")
    takes(100, SFTTrainer, "_save_checkpoint")
    takes(100, previews_module, "answer_row")
    takes(100, TensorBoardCallback, "on_log")
    options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "report_to": "tensorboard"}
    options |= {"eval_data": rows, "eval_strategy": "steps", "eval_steps": 1, "preview_steps": 1, "num_previews": 1}
    options |= {"save_strategy": "steps", "save_steps": 1, "save_only_model": True}
    entries = steps(train(checkpoint, rows, tmp_path, **options))
    tokens = (after - before for before, after in pairwise([0, *(entry["num_tokens"] for entry in entries)]))
    seconds = [number / entry["tokens_per_second"] for number, entry in zip(tokens, entries, strict=True)]
    waited = [entry["data_wait_share"] * total for entry, total in zip(entries, seconds, strict=True)]
    # The loader is one batch ahead, from the first step to the last.
    assert waited == pytest.approx([9, 6, 6, 3])
    assert seconds == pytest.approx([11, 8, 8, 5])


def test_bad_samples_of_this_run_are_counted_and_their_share_is_that_of_the_rows_read(run):
    """One of eight in each of two epochs of two steps; ten held-out rows are read before the run and in it."""
    counts = [entry["bad_samples"] for entry in steps(run)]
    assert counts == sorted(counts) and counts[1] == 1 and counts[-1] == 2
    assert steps(run)[-1]["bad_sample_share"] == 2 / (2 * 8 + 2 * 10)
    written = Path(run.args.output_dir, "bad_samples", "rank0.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in written] == ["row-3"] * 2  # and no longer those of an earlier run


def test_every_evaluation_file_has_values_of_its_own(run):
    entries = [entry for entry in run.state.log_history if "eval_rows_loss" in entry or "eval_other_loss" in entry]
    assert [entry["step"] for entry in entries] == [2, 2, 4, 4] and not any("eval_loss" in entry for entry in entries)
    for name in ("entropy", "mean_token_accuracy"):
        for source in ("rows", "other"):
            found = [entry for entry in run.state.log_history if f"eval_{source}_{name}" in entry]
            assert [entry["step"] for entry in found] == [2, 4] and found[0][f"eval_{source}_{name}"] >= 0


@pytest.mark.slow
def test_two_processes_are_measured_as_one(checkpoint, rows, tmp_path):
    flags = arguments("stage2_instruct.yaml", checkpoint, rows, tmp_path / "out", preview_data=rows)
    ended, log = launch(tmp_path / "log.txt", "ddp_cpu", sft.__file__, *flags)
    assert ended == 0, log
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    entry = {name: value for part in history[:2] for name, value in part.items()}
    assert entry["clips_per_second"] / entry["tokens_per_second"] == pytest.approx(4 / entry["num_tokens"], rel=1e-4)
    lines = (tmp_path / "out" / "previews.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0] * 4 + [1] * 4  # written once


def test_parameters_are_printed_and_stored(checkpoint, rows, tmp_path, capsys):
    options = {"vision_model_name_or_path": "", "disable_tqdm": False}
    trainer = train(checkpoint, rows, tmp_path / "out", "stage1_align.yaml", **options)
    table = (tmp_path / "out" / "parameters.md").read_text().strip()
    printed = capsys.readouterr()
    assert table in printed.out and table == parameter_table(trainer.model)
    assert re.search(r"1/2 \[\d\d:\d\d<\d\d:\d\d", printed.err)  # a progress bar with the time that is left
    header, *table_rows = (line.split() for line in printed.out.splitlines() if "/2 " in line or "clips/s" in line)
    assert header == ["step", "loss", "learning", "rate", "clips/s", "time", "left"]
    assert [row[0] for row in table_rows] == ["1/2", "2/2"] and table_rows[-1][-1] == "0:00:00"
    assert float(table_rows[0][1]) == pytest.approx(steps(trainer)[0]["loss"], abs=1e-4)
    assert "{'loss'" not in printed.out and "data_wait_share" not in printed.out
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in trainer.model.parameters() if not p.requires_grad)
    assert table.splitlines()[-1].split() == ["|", "all", "|", f"{trained:,}", "|", f"{frozen:,}", "|"]
    assert f"{trained:,} trained, {frozen:,} frozen" in (tmp_path / "out" / "README.md").read_text()


def test_an_error_is_the_last_line(tmp_path, capsys):
    args, state = TrainingArguments(str(tmp_path), use_cpu=True), TrainerState(max_steps=4, is_world_process_zero=True)
    with pytest.raises(ValueError), clear_errors(tmp_path):
        ProgressBar().on_train_begin(args, state, None)
        raise ValueError("A row is bad.")
    print("A row is bad.", file=sys.stderr)
    gc.collect()  # a bar that is left open writes once more when it goes
    assert capsys.readouterr().err.endswith("\nA row is bad.\n")


def test_the_time_left_begins_with_the_first_step(capsys, monkeypatch):
    """Sample answers, which come before it, are not part of a step."""
    clock = iter([100.0, 110.0])
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: next(clock))
    table, state = ProgressTable(), TrainerState(max_steps=4, is_world_process_zero=True)
    for event in (table.on_train_begin, table.on_step_begin):
        event(None, state, None)
    state.global_step = 1
    table.on_log(None, state, None, logs={"loss": 1, "learning_rate": 0, "clips_per_second": 1, "bad_samples": 0})
    assert capsys.readouterr().out.splitlines()[-1].endswith("0:00:30")
