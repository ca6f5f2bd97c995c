# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What a run tells of itself: in its log entries, its sample answers, its table and its picture."""

import json
import math
import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import sft
import torch
from clips import write_clip
from launching import arguments, launch
from matplotlib.figure import Figure
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText, pipeline
from transformers.integrations import TensorBoardCallback
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from transformers_valley.data import load_rows
from transformers_valley.data.decode import BadSampleError
from transformers_valley.training import ValleyDataCollator, callbacks
from transformers_valley.training.callbacks import (
    answer_row,
    count_parameters,
    draw_training,
    parameter_table,
    pick_rows,
    smooth,
)


MEASURED = {
    "tokens_per_second",
    "clips_per_second",
    "padding_share",
    "data_wait_share",
    "memory_gib",
    "bad_samples",
    "bad_sample_share",
}


@pytest.fixture(scope="module", autouse=True)
def short_answers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "PREVIEW_TOKENS", 8)
        yield


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Eight rows: clips of two lengths, an image, text only. Questions differ, so that answers can be told apart."""
    folder = tmp_path_factory.mktemp("rows")
    short, long = (write_clip(folder / f"{frames}.mp4", frames, fps=10) for frames in (20, 50))
    Image.new("RGB", (40, 40), "blue").save(folder / "picture.png")
    visuals = [{"video": short}, {"video": long}, {"image": str(folder / "picture.png")}, {}] * 2
    records = []
    for number, visual in enumerate(visuals):
        turns = [{"from": "human", "value": f"Question {number}?"}, {"from": "gpt", "value": f"Answer {number}."}]
        records.append({"id": f"row-{number}", **visual, "conversations": turns})
    file = folder / "rows.json"
    file.write_text(json.dumps(records))
    return file


def _with_bad(records, *bad):
    """Records of which some show a clip that is not there."""
    return [record | {"video": "gone.mp4"} if number in bad else record for number, record in enumerate(records)]


def train(checkpoint, rows, out, config="stage2_instruct.yaml", **overrides):
    flags = arguments(config, checkpoint, rows, out)
    for name, value in overrides.items():
        flags += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return sft.main(flags)


def steps(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture(scope="module")
def run(checkpoint, rows, tmp_path_factory):
    """Four steps with everything that can be seen."""
    out = tmp_path_factory.mktemp("run")
    bad = out / "bad_samples"
    bad.mkdir()
    (bad / "rank0.jsonl").write_text('{"id": "a"}\n{"id": "b"}\n')
    (bad / "rank1.jsonl").write_text('{"id": "c"}\n')
    other = out / "other.json"
    other.write_text(json.dumps(json.loads(rows.read_text())[:2]))
    spoilt = out / "spoilt.json"
    spoilt.write_text(json.dumps(_with_bad(json.loads(rows.read_text()), 3)))
    options = {"num_train_epochs": 2, "learning_rate": 1e-3, "report_to": "tensorboard"}
    options |= {"eval_data": [rows, other], "eval_strategy": "steps", "eval_steps": 2}
    options |= {"on_bad_sample": "skip", "max_bad_share": 1}
    (out / "previews.jsonl").write_text("{}\n")  # of an earlier run, as the bad samples
    return train(checkpoint, spoilt, out, preview_steps=3, num_previews=2, **options)


# --- Log entries ---


def test_every_log_entry_of_a_step_says_how_fast_it_was(run):
    for entry in steps(run):
        assert entry.keys() >= MEASURED | {"loss", "grad_norm", "learning_rate", "num_tokens", "epoch"}
        assert entry["tokens_per_second"] > 0 and entry["clips_per_second"] > 0 and entry["memory_gib"] > 0.1
        assert 0 <= entry["padding_share"] < 1 and 0 < entry["data_wait_share"] < 1
    others = [entry for entry in run.state.log_history if "loss" not in entry]
    assert not any(MEASURED & entry.keys() for entry in others)


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
    monitor = callbacks.RunMonitor(None)
    batch = {"input_ids": torch.zeros(1, 30), "position_ids": torch.zeros(1, 30), "video_num_frames": torch.ones(3)}
    monitor._count_batch(model.train(), (), batch)
    monitor._count_batch(model.eval(), (), batch)  # an evaluation is not counted
    assert (monitor._tokens, monitor._positions, monitor._clips) == (30, 30, 3)


def test_lora_is_counted_alike(checkpoint, rows, tmp_path):
    trainer = train(checkpoint, rows, tmp_path, "stage2_lora.yaml", per_device_train_batch_size=8, lora_r=4)
    (entry,) = steps(trainer)
    assert entry["clips_per_second"] / entry["tokens_per_second"] == pytest.approx(4 / entry["num_tokens"])


def test_time_is_told_apart(checkpoint, rows, tmp_path, monkeypatch):
    """By a clock that goes on when something happens: 3 s for a batch, 1 s in the model, 100 s for what is no step."""
    now = 0.0
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(perf_counter=lambda: now))

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
    takes(100, callbacks, "answer_row")
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
    """One of eight in each of two epochs of two steps; the loader is a batch ahead, and ten held-out rows are read."""
    counts = [entry["bad_samples"] for entry in steps(run)]
    assert counts == sorted(counts) and counts[1] == 1 and counts[-1] == 2
    assert steps(run)[-1]["bad_sample_share"] == 2 / (2 * 8 + 10)
    written = Path(run.args.output_dir, "bad_samples", "rank0.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in written] == ["row-3"] * 2  # and no longer those of an earlier run


def test_a_row_that_cannot_be_read_gets_no_sample_answers(checkpoint, rows, tmp_path):
    spoilt = tmp_path / "spoilt.json"
    spoilt.write_text(json.dumps(_with_bad(json.loads(rows.read_text()), 0, 4)))
    options = {"preview_data": spoilt, "num_previews": 2, "max_steps": 1}
    with pytest.raises(BadSampleError, match="Row 'row-0' of 'spoilt' cannot be trained on: .*gone.mp4"):
        train(checkpoint, rows, tmp_path / "raise", **options)
    trainer = train(checkpoint, rows, tmp_path / "skip", on_bad_sample="skip", **options)
    assert [line["question"] for line in previews(trainer)] == ["Question 1?", "Question 5?"] * 2


def test_every_evaluation_file_has_values_of_its_own(run):
    entries = [entry for entry in run.state.log_history if any(key.startswith("eval_") for key in entry)]
    assert [entry["step"] for entry in entries] == [2, 2, 4, 4]
    for entry, source in zip(entries, ["rows", "other"] * 2, strict=True):
        for name in ("loss", "entropy", "mean_token_accuracy"):
            assert entry[f"eval_{source}_{name}"] >= 0
        assert not {"eval_loss", "eval_entropy", "eval_mean_token_accuracy"} & entry.keys()


@pytest.mark.slow
def test_two_processes_are_measured_as_one(checkpoint, rows, tmp_path):
    flags = arguments("stage2_instruct.yaml", checkpoint, rows, tmp_path / "out", preview_data=rows)
    ended, log = launch(tmp_path / "log.txt", "ddp_cpu", sft.__file__, *flags)
    assert ended == 0, log
    (entry,) = (e for e in json.loads((tmp_path / "out/trainer_state.json").read_text())["log_history"] if "loss" in e)
    assert entry["clips_per_second"] / entry["tokens_per_second"] == pytest.approx(4 / entry["num_tokens"], rel=1e-4)
    lines = (tmp_path / "out" / "previews.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0] * 4 + [1] * 4  # written once


# --- Sample answers ---


def previews(trainer):
    return [json.loads(line) for line in Path(trainer.args.output_dir, "previews.jsonl").read_text().splitlines()]


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
        answer = pipe(clip, line["question"], max_new_tokens=callbacks.PREVIEW_TOKENS, return_full_text=False)
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


def test_rows_are_spread_over_the_files(rows, processor):
    data = load_rows([rows, rows])
    asked = [row["messages"][0]["content"][-1]["text"] for row in pick_rows(data, 4, processor)]
    assert asked == ["Question 0?", "Question 4?"] * 2
    assert len(pick_rows(data, 100, processor)) == 16


def test_an_answer_cannot_move_the_cursor():
    shown = callbacks._show({"id": None, "question": "Q", "answer": "a\n\x1b[2Jb", "reference": "R"})
    assert shown.splitlines() == ["     question  Q", "       answer  a [2Jb", "    reference  R"]


# --- Table and picture ---


def test_parameters_are_printed_and_stored(checkpoint, rows, tmp_path, capsys):
    options = {"vision_model_name_or_path": "", "disable_tqdm": False}
    trainer = train(checkpoint, rows, tmp_path / "out", "stage1_align.yaml", **options)
    table = (tmp_path / "out" / "parameters.md").read_text().strip()
    printed = capsys.readouterr()
    assert table in printed.out and table == parameter_table(trainer.model)
    assert re.search(r"1/2 \[\d\d:\d\d<\d\d:\d\d", printed.err)  # a progress bar with the time that is left
    assert "'data_wait_share': " in printed.out
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in trainer.model.parameters() if not p.requires_grad)
    assert table.splitlines()[-1].split() == ["|", "all", "|", f"{trained:,}", "|", f"{frozen:,}", "|"]
    assert f"{trained:,} trained, {frozen:,} frozen" in (tmp_path / "out" / "README.md").read_text()


def test_adapters_count_for_the_part_they_are_in(model):
    plain = count_parameters(model)
    assert list(plain) == ["vision_tower", "temporal_module", "multi_modal_projector", "language_model", "lm_head"]
    lora = LoraConfig(
        r=2, target_modules=["v_proj"], exclude_modules=".*vision.*", modules_to_save=["temporal_module"]
    )
    counts = count_parameters(get_peft_model(model, lora))
    assert counts["temporal_module"] == (sum(plain["temporal_module"]), 0)  # not its untrained copy as well
    assert counts["language_model"] == (2 * 2 * (48 + 24), sum(plain["language_model"]))
    assert counts["vision_tower"] == (0, sum(plain["vision_tower"]))


def test_parameters_in_four_bits_count_in_full(checkpoint):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from transformers import BitsAndBytesConfig

    quantized = AutoModelForImageTextToText.from_pretrained(
        checkpoint, quantization_config=BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["lm_head"])
    )
    whole = AutoModelForImageTextToText.from_pretrained(checkpoint)
    sums = [{part: sum(pair) for part, pair in count_parameters(model).items()} for model in (quantized, whole)]
    assert sums[0] == sums[1]


def test_the_run_is_drawn(run):
    picture = Image.open(Path(run.args.output_dir, "training.png"))
    assert picture.size == (1300, 910)
    colours = {colour for _, colour in picture.convert("RGB").getcolors(maxcolors=1 << 20)}
    assert {(0x2F, 0x6D, 0xB3), (0xD1, 0x60, 0x3D), (0x3F, 0x8F, 0x5B)} <= colours  # training, two evaluations
    assert "tokens per second" in Path(run.args.output_dir, "README.md").read_text()


def test_a_run_that_was_stopped_after_one_step_is_drawn(tmp_path):
    draw_training([{"loss": 1.0, "learning_rate": 0.0, "step": 1}], tmp_path / "training.png")
    assert (tmp_path / "training.png").exists()


def test_a_fall_at_the_beginning_does_not_flatten_the_rest(tmp_path, monkeypatch):
    losses = [2 + 8 * math.exp(-step / 50) for step in range(10_000)]
    assert smooth(losses)[0] > 7
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure.axes[0].get_ylim()[1]))
    entries = [{"loss": loss, "learning_rate": 0.0, "step": step} for step, loss in enumerate(losses, start=1)]
    draw_training(entries, tmp_path / "training.png")
    draw_training(entries[:50], tmp_path / "training.png")
    assert drawn[0] < 3 and drawn[1] > 9


@pytest.mark.parametrize("length", [1, 2, 30, 1000])
def test_smoothing_keeps_what_is_straight(length):
    assert smooth([3.0] * length) == pytest.approx([3.0] * length)
    line = torch.arange(length).tolist()
    inner = slice(length // 10, length - length // 10)
    assert smooth(line)[inner] == pytest.approx(line[inner], abs=1e-6)
