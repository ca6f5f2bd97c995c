# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Batches of real clips and images, some of them damaged, some rows too long; packed batches against padded ones."""

import json
import pickle
from pathlib import Path

import pytest
import sft
import torch
from clips import write_clip
from datasets import Dataset
from launching import arguments, launch, needs_deepspeed
from PIL import Image
from test_stages import STAGE1, STAGE2
from tiny import NUM_PATCHES
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from transformers_valley.data.decode import BadSampleError
from transformers_valley.data.lengths import add_lengths, clip_tokens, count_tokens, image_tokens
from transformers_valley.data.load import FEATURES, iter_records
from transformers_valley.training import ValleyArguments, ValleyDataCollator, set_trainable
from transformers_valley.training.prepare import prepare_rows


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Good clips and pictures, and damaged ones."""
    folder = tmp_path_factory.mktemp("media")
    write_clip(folder / "short.mp4", 20, fps=10)
    write_clip(folder / "long.mp4", 50, fps=10)
    Image.new("RGB", (40, 40), "blue").save(folder / "picture.png")
    whole = (folder / "long.mp4").read_bytes()
    (folder / "torn.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "text.mp4").write_bytes(b"no video")
    picture = (folder / "picture.png").read_bytes()
    (folder / "torn.png").write_bytes(picture[: len(picture) - 20])
    return folder


def record(name, visual="", question="What?", answer=None):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer or f"Answer {name}."}]
    kind = {".mp4": {"video": visual}, ".png": {"image": visual}}.get(Path(str(visual)).suffix, {})
    return {"id": name, "conversations": turns, **kind}


def make_rows(folder, records, name="rows") -> Dataset:
    file = folder / f"{name}.json"
    file.write_text(json.dumps(records))
    rows = [row for _, _, row in iter_records([file], folder)]
    return Dataset.from_list([json.loads(json.dumps(row)) for row in rows], features=FEATURES)


MIXED = ["short.mp4", "picture.png", "", "long.mp4"]


@pytest.fixture
def mixed(media):
    return make_rows(media, [record(f"{i}", visual) for i, visual in enumerate(MIXED)])


def answers(processor, batch) -> list[str]:
    """What each row of a padded batch learns."""
    return [processor.decode(labels[labels != -100]).strip() for labels in batch["labels"]]


# --- what a batch holds ---


@pytest.mark.parametrize("multiple", [None, 16])
def test_a_batch_is_that_of_trl(processor, mixed, multiple):
    rows = list(mixed)
    found = ValleyDataCollator(processor, pad_to_multiple_of=multiple)(rows)
    trl = DataCollatorForVisionLanguageModeling(processor, assistant_only_loss=True, pad_to_multiple_of=multiple)
    expected = trl(rows)
    assert found.keys() == expected.keys() | {"placeholder_counts"}
    for name in expected.keys() - {"video_num_frames"}:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)
    assert found["attention_mask"].shape[1] % (multiple or 1) == 0
    # What the model reads as Python's numbers stays on the CPU, wherever the batch goes.
    assert found["video_num_frames"] == [1, 3]
    assert found["placeholder_counts"] == {
        "image": [0, NUM_PATCHES + 1, 0, 0],
        "video": [NUM_PATCHES + 1, 0, 0, NUM_PATCHES + 3],
    }


def test_visuals_are_never_learnt(processor, mixed):
    batch = ValleyDataCollator(processor, assistant_only_loss=False)(list(mixed))
    learnt = batch["labels"][batch["labels"] != -100]
    text = processor.decode(learnt)
    assert "What?" in text and "Answer 3." in text
    assert not any(token in text for token in ("<video>", "<image>", "<im_start>", "<vi_end>"))


# --- bad rows ---

BAD = {
    "missing clip": (record("x", "gone.mp4"), "gone.mp4: there is no such file"),
    "no clip": (record("x", "text.mp4"), "text.mp4: .+"),
    "torn clip": (record("x", "torn.mp4"), "torn.mp4: .+"),
    "missing image": (record("x", "gone.png"), "gone.png: there is no such file"),
    "torn image": (record("x", "torn.png"), "torn.png: not a readable image"),
    "past its end": (
        {
            "id": "x",
            "messages": [
                {"role": "user", "content": [{"type": "video", "path": "short.mp4", "start": 60}]},
                {"role": "assistant", "content": "Hm."},
            ],
        },
        "short.mp4: start=60.0 is past its end",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_row_is_named_with_its_file_and_the_reason(processor, media, bad):
    rows = make_rows(media, [record("a"), BAD[bad][0]])
    with pytest.raises(BadSampleError, match=rf"Row 'x' of 'rows' cannot be trained on: .*{BAD[bad][1]}"):
        ValleyDataCollator(processor)(list(rows))


def test_a_row_that_the_template_refuses_is_named(processor, media):
    row = make_rows(media, [record("a")])[0]
    row["messages"][0]["role"] = "tool"
    with pytest.raises(BadSampleError, match="Row 'a' of 'rows' cannot be trained on: .*not tool"):
        ValleyDataCollator(processor)([row])


@pytest.mark.parametrize("token", ["<video>", "</s>", "<im_end>"])
def test_a_control_token_in_a_text_is_learnt_as_text(processor, media, token):
    row = make_rows(media, [record("a", "short.mp4")])[0]
    row["messages"][1]["content"][0]["text"] = f"It says {token}, I think."
    batch = ValleyDataCollator(processor)([row])
    (answer,) = answers(processor, batch)
    assert answer == f"It says {token}, I think.</s>"
    index = processor.tokenizer.convert_tokens_to_ids(token)
    assert (batch["labels"] == index).sum() == (token == "</s>")  # that of the end


def test_the_error_crosses_process_borders(processor, media):
    error = pickle.loads(pickle.dumps(BadSampleError("x", "rows", "a.mp4", "it is torn.")))
    assert (error.id, error.source, error.file, error.reason) == ("x", "rows", "a.mp4", "it is torn.")
    try:
        ValleyDataCollator(processor)([make_rows(media, [record("x", "gone.mp4")])[0]])
    except BadSampleError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")  # what torch makes of it there
    with pytest.raises(BadSampleError) as caught:
        wrapped.reraise()
    last = str(caught.value).strip().splitlines()[-1]
    assert "Row 'x' of 'rows' cannot be trained on" in last and last.endswith("gone.mp4: there is no such file.")


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (3, 0), (2, 2), (7, 1)])
def test_a_bad_row_is_left_out_and_written_down(processor, media, tmp_path, batch_size, workers):
    bad = {1: "gone.mp4", 2: "torn.png", 6: "text.mp4"}
    rows = make_rows(media, [record(f"{i}", bad.get(i, MIXED[i % 4])) for i in range(7)])
    file = tmp_path / "out" / "bad_samples" / "rank0.jsonl"
    collator = ValleyDataCollator(processor, on_bad_sample="skip", bad_sample_file=file, max_bad_share=1)
    batches = list(DataLoader(rows, batch_size, num_workers=workers, collate_fn=collator))
    learnt = [answer for batch in batches for answer in answers(processor, batch) if answer]
    assert learnt == [f"Answer {i}.</s>" for i in (0, 3, 4, 5)]
    entries = sorted((json.loads(line) for line in file.read_text().splitlines()), key=lambda entry: entry["id"])
    assert [entry["id"] for entry in entries] == ["1", "2", "6"] and {entry["source"] for entry in entries} == {"rows"}
    assert entries[0]["file"].endswith("gone.mp4") and entries[0]["reason"] == "there is no such file."
    assert collator.bad_rows.count() == (7, 3)


@pytest.mark.parametrize("padding_free", [False, True])
def test_a_batch_without_a_good_row_teaches_nothing(processor, model, media, padding_free):
    rows = make_rows(media, [record("x", "gone.mp4"), record("y", "torn.png")])
    options = {"on_bad_sample": "skip", "max_bad_share": 1, "padding_free": padding_free}
    batch = ValleyDataCollator(processor, **options)(list(rows))
    assert batch["input_ids"].numel() == 2 and (batch["labels"] == -100).all() and "pixel_values" not in batch
    labels = batch.pop("labels")
    model.train()
    logits = model(**batch).logits
    assert logits.isfinite().all() and labels.shape == logits.shape[:2]


# --- long rows ---


def two_visuals(tail: str) -> dict:
    content = [{"type": "video", "path": "short.mp4"}, {"type": "text", "text": "and"}]
    content += [{"type": "video", "path": "long.mp4"}, {"type": "text", "text": "What?"}]
    return {"id": "x", "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": tail}]}


def test_a_long_row_is_cut_after_its_last_visual(processor, media):
    row = make_rows(media, [two_visuals("A red circle. " * 20)])[0]
    whole = ValleyDataCollator(processor)([row])
    length = whole["input_ids"].shape[1]
    end = (whole["input_ids"][0] == processor.tokenizer.convert_tokens_to_ids("<vi_end>")).nonzero().max().item() + 1
    cut = ValleyDataCollator(processor, max_length=length - 3)([row])
    for name in ("input_ids", "labels", "attention_mask"):
        torch.testing.assert_close(cut[name], whole[name][:, : length - 3])
    torch.testing.assert_close(cut["pixel_values_videos"], whole["pixel_values_videos"])
    first = (whole["labels"][0] != -100).nonzero().min().item()
    ValleyDataCollator(processor, max_length=first + 1)([row])
    for limit in (first, end):
        with pytest.raises(BadSampleError, match=f"holds no word within max_length={limit} to learn from"):
            ValleyDataCollator(processor, max_length=limit)([row])
    for limit in (end - 1, end - 5, 40):
        with pytest.raises(BadSampleError, match=f"last visual ends at token {end}, and max_length={limit} may not"):
            ValleyDataCollator(processor, max_length=limit)([row])


def test_a_long_row_is_dropped(processor, media):
    rows = make_rows(media, [two_visuals("A red circle. " * 20), record("b")])
    collator = ValleyDataCollator(processor, 100, on_bad_sample="skip", on_long_row="drop")
    assert answers(processor, collator(list(rows))) == ["Answer b.</s>"]
    with pytest.raises(BadSampleError, match=r"it has \d+ tokens, more than max_length=100"):
        ValleyDataCollator(processor, 100, on_long_row="drop")([rows[0]])


def test_max_length_holds_a_visual(processor):
    image = image_tokens(processor)
    assert image == NUM_PATCHES + 5
    with pytest.raises(
        ValueError, match=f"max_length={image} has no room for a visual.*an image takes {image} tokens"
    ):
        ValleyDataCollator(processor, max_length=image)
    ValleyDataCollator(processor, max_length=image + 1)


@pytest.mark.parametrize(
    "option", [{"on_bad_sample": "drop"}, {"on_long_row": "skip"}, {"max_bad_share": 0}, {"max_bad_share": 2}]
)
def test_options_that_make_no_sense(processor, option):
    with pytest.raises(ValueError, match=next(iter(option))):
        ValleyDataCollator(processor, **option)


# --- lengths ---


@pytest.mark.parametrize("rule", [{"fps": 2.0}, {"num_frames": 5}, {"fps": 10.0, "max_frames": 7}])
def test_lengths_are_those_of_batches(processor, media, rule):
    for name, value in ({"fps": None, "num_frames": None} | rule).items():
        setattr(processor.video_processor, name, value)
    part = {"type": "video", "path": "long.mp4", "start": 1.5, "end": 3.2}
    picture = {"type": "image", "path": "picture.png"}
    chat = [{"role": "user", "content": [part, picture, part, {"type": "text", "text": "What?"}]}]
    chat += [{"role": "assistant", "content": "This."}, *chat, {"role": "assistant", "content": "That. " * 9}]
    rows = make_rows(media, [*(record(f"{i}", visual) for i, visual in enumerate(MIXED)), {"messages": chat}])
    batch = ValleyDataCollator(processor)(list(rows))
    assert add_lengths(rows, processor)["length"][:] == batch["attention_mask"].sum(1).tolist()


def test_clips_are_opened_only_where_that_decides(processor, media, monkeypatch):
    rows = make_rows(media, [record("x", "gone.mp4"), record("y", "short.mp4"), record("z")])["messages"][:]
    exact = count_tokens(rows, processor)
    text = exact[0] - clip_tokens(processor, 1)
    assert exact[1] == exact[0]  # one frame in two seconds; a clip that is missing counts as one

    def fail(*args, **kwargs):
        raise AssertionError("a clip was opened")

    monkeypatch.setattr(type(processor.video_processor), "count_frames", fail)
    for limit in (text + clip_tokens(processor, 256), text + clip_tokens(processor, 0)):
        found = count_tokens(rows, processor, limit)
        assert [length > limit for length in found] == [limit < exact[0]] * 2 + [False]
    with pytest.raises(AssertionError, match="a clip was opened"):
        count_tokens(rows, processor, text + clip_tokens(processor, 1))
    monkeypatch.undo()
    processor.video_processor.fps, processor.video_processor.num_frames = None, 4
    monkeypatch.setattr("transformers_valley.video_decoding.resolve", fail)
    assert count_tokens(rows, processor)[0] == text + clip_tokens(processor, 4)


def run_arguments(tmp_path, on_long_row="cut", **training):
    training_args = SFTConfig(str(tmp_path / "out"), use_cpu=True, bf16=False, report_to="none", **training)
    return ValleyArguments(data=["rows.json"], on_long_row=on_long_row), training_args


@pytest.mark.parametrize("rule", ["cut", "drop"])
def test_long_rows_are_told_before_training(processor, media, tmp_path, capsys, rule):
    rows = make_rows(media, [record("a"), record("b", "gone.mp4"), record("c", answer="A red circle. " * 90)])
    kept = prepare_rows(rows, processor, *run_arguments(tmp_path, rule, max_length=300))
    printed = capsys.readouterr().out
    assert "rows: 1 of 3 rows are longer than max_length=300" in printed and f"on_long_row={rule}" in printed
    assert kept["id"][:] == (["a", "b"] if rule == "drop" else ["a", "b", "c"])
    assert kept.column_names == rows.column_names
    prepare_rows(rows, processor, *run_arguments(tmp_path, rule, max_length=3000))
    assert not capsys.readouterr().out


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_held_out_rows_are_prepared_as_those_trained_on(checkpoint, media, tmp_path, strategy):
    """A held-out row that is too long would end the run at its first evaluation, and so would one without a length."""
    for name, answer in (("rows", "Yes."), ("held", "A red circle. " * 90)):
        (tmp_path / f"{name}.json").write_text(json.dumps([record("a"), record("b"), record("c", answer=answer)]))
    flags = arguments("stage2_instruct.yaml", checkpoint, tmp_path / "rows.json", tmp_path / "out")
    flags += ["--eval_data", str(tmp_path / "held.json"), "--eval_strategy", "steps", "--eval_steps", "1"]
    flags += ["--max_length", "300", "--on_long_row", "drop", "--train_sampling_strategy", strategy]
    trainer = sft.main([*flags, "--max_steps", "1", "--preview_steps", "0"])
    assert trainer.eval_dataset["held"]["id"][:] == ["a", "b"]
    assert [entry["step"] for entry in trainer.state.log_history if "eval_held_loss" in entry] == [1]


def test_all_rows_are_too_long(processor, media, tmp_path):
    rows = make_rows(media, [record("a", answer="A red circle. " * 90)])
    with pytest.raises(ValueError, match="Every row is longer than max_length=100"):
        prepare_rows(rows, processor, *run_arguments(tmp_path, "drop", max_length=100))


def test_batches_of_like_length(checkpoint, media, tmp_path):
    """transformers' sampler finds the column it needs, and puts long rows together."""
    file = media / "lengths.json"
    long = "What happens in the video? " * 20
    file.write_text(json.dumps([record(f"{i}", "", long if i % 2 else "Hi", "Yes.") for i in range(32)]))
    mixed = {}
    for strategy in ("random", "group_by_length"):
        overrides = {"train_sampling_strategy": strategy, "max_steps": 1, "per_device_train_batch_size": 2}
        overrides["vision_model_name_or_path"] = ""
        trainer = sft.main(arguments("stage1_align.yaml", checkpoint, file, tmp_path / strategy, **overrides))
        batches = [batch["attention_mask"].sum(1).tolist() for batch in trainer.get_train_dataloader()]
        assert len(batches) == 16 and len({length for batch in batches for length in batch}) == 2
        mixed[strategy] = sum(first != second for first, second in batches)
    assert mixed["group_by_length"] <= 4 < mixed["random"]  # at most one in each sorted group of eight rows


# --- packed batches ---


def loss_and_gradients(model, batch):
    """The mean loss over what is learnt, as TRL computes it, and the gradient of every trained weight."""
    model.zero_grad()
    labels = batch["labels"]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    loss.backward()
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("stage", [STAGE1, STAGE2], ids=["stage1", "stage2"])
def test_a_packed_batch_has_the_loss_and_the_gradients_of_a_padded_one(
    processor, model, mixed, media, attention, stage
):
    model.config.temporal_dropout = 0.0
    model.model.temporal_module.dropout.p = 0.0
    model.set_attn_implementation(attention)
    model.train()
    set_trainable(model, stage)
    rows = [*mixed, make_rows(media, [two_visuals("Both.")])[0]]
    padded = ValleyDataCollator(processor)(rows)
    packed = ValleyDataCollator(processor, padding_free=True)(rows)
    assert packed["input_ids"].shape == (1, padded["attention_mask"].sum())
    assert "attention_mask" not in packed and len(packed["cu_seq_lens_q"]) == len(rows) + 1
    expected_loss, expected = loss_and_gradients(model, padded)
    loss, found = loss_and_gradients(model, packed)
    torch.testing.assert_close(loss, expected_loss, rtol=0, atol=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5, msg=name)
    # Rows do see one another where nothing tells where they begin, or with a cache: the test can fail.
    for change in ({"position_ids": torch.arange(packed["input_ids"].shape[1])[None]}, {"use_cache": True}):
        blurred, _ = loss_and_gradients(model, packed | change | {"cu_seq_lens_q": None})
        assert (blurred - expected_loss).abs() > 1e-4


@pytest.mark.parametrize("config", ["stage2_instruct.yaml", pytest.param("stage1_align.yaml", marks=pytest.mark.slow)])
def test_sft_trains_packed_batches_to_the_same_losses(checkpoint, media, tmp_path, config):
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, temporal_dropout=0.0)
    model.save_pretrained(tmp_path / "start")
    AutoProcessor.from_pretrained(checkpoint).save_pretrained(tmp_path / "start")
    file = media / "packed.json"
    file.write_text(json.dumps([record(f"{i}", visual, "What? " * i) for i, visual in enumerate(MIXED * 3)]))
    logs = []
    for pack in (False, True):
        overrides = {"vision_model_name_or_path": ""} if config.startswith("stage1") else {}
        overrides |= {"media_root": media, "pack_batches": pack, "learning_rate": 1e-3, "warmup_steps": 0}
        trainer = sft.main(arguments(config, tmp_path / "start", file, tmp_path / str(pack), **overrides))
        logs.append([entry for entry in trainer.state.log_history if "loss" in entry])
    assert len(logs[0]) == 3
    for padded, packed in zip(*logs, strict=True):
        assert packed["loss"] == pytest.approx(padded["loss"], abs=1e-5)
        assert packed["grad_norm"] == pytest.approx(padded["grad_norm"], rel=1e-4)
        assert packed["num_tokens"] == padded["num_tokens"]


def test_packed_batches_are_not_padded(processor):
    with pytest.raises(ValueError, match="pad_to_multiple_of=8"):
        ValleyDataCollator(processor, padding_free=True, pad_to_multiple_of=8)


# --- the command ---


def test_sft_skips_and_writes_down_bad_rows(checkpoint, media, tmp_path):
    file = media / "some.json"
    file.write_text(json.dumps([record(f"{i}", "gone.mp4" if i == 2 else MIXED[i % 4]) for i in range(8)]))
    overrides = {"media_root": media, "on_bad_sample": "skip", "dataloader_num_workers": 1}
    trainer = sft.main(arguments("stage2_instruct.yaml", checkpoint, file, tmp_path / "out", **overrides))
    assert trainer.state.global_step == 2
    (line,) = (tmp_path / "out" / "bad_samples" / "rank0.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "2"


def test_sft_streams_rows(checkpoint, media, tmp_path):
    file = media / "streamed.jsonl"
    file.write_text("\n".join(json.dumps(record(f"{i}", MIXED[i % 4])) for i in range(8)))
    overrides = {"media_root": media, "streaming": True, "max_steps": 3, "per_device_train_batch_size": 2}
    trainer = sft.main(arguments("stage2_instruct.yaml", checkpoint, file, tmp_path / "out", **overrides))
    assert trainer.state.global_step == 3 and "streamed" in (tmp_path / "out" / "README.md").read_text()


def launch_two(tmp_path, checkpoint, file, config="ddp_cpu", **overrides):
    """`examples/sft.py` on two processes, stage 1, in the order of the file."""
    overrides |= {"vision_model_name_or_path": "", "train_sampling_strategy": "sequential"}
    flags = arguments("stage1_align.yaml", checkpoint, file, tmp_path / "two", **overrides)
    precision = ("--mixed_precision", "no") if config == "zero2" else ()
    return launch(tmp_path / "two.txt", config, sft.__file__, *flags, launch_flags=precision)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_row_ends_two_processes(checkpoint, media, tmp_path, workers):
    """One process meets it; the launcher ends both, soon, and the row is named."""
    file = media / "two.json"
    file.write_text(json.dumps([record(f"{i}", "gone.mp4" if i == 5 else MIXED[i % 4]) for i in range(8)]))
    options = {"media_root": media, "per_device_train_batch_size": 1, "dataloader_num_workers": workers}
    ended, log = launch_two(tmp_path, checkpoint, file, **options)
    assert ended != 0 and "local_rank: 1" in log  # row 5 is the third of the second process
    assert "BadSampleError: Row '5' of 'two' cannot be trained on" in log
    assert "gone.mp4: there is no such file." in log


@pytest.mark.slow
@pytest.mark.parametrize("config", ["ddp_cpu", "zero2"])
def test_two_processes_leave_out_the_same_rows_as_one(checkpoint, media, tmp_path, config):
    """In the second step one process has good rows alone and the other has none, in the third no process has any."""
    if config == "zero2":
        needs_deepspeed()
    file = media / "skipped.json"
    bad = {1: "gone.mp4", 6: "torn.mp4", 7: "gone.png", **dict.fromkeys(range(8, 12), "gone.mp4")}
    file.write_text(json.dumps([record(f"{i}", bad.get(i, MIXED[i % 4])) for i in range(16)]))
    options = {"media_root": media, "on_bad_sample": "skip", "max_bad_share": 1, "learning_rate": 1e-3}
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, temporal_dropout=0.0)
    model.save_pretrained(tmp_path / "start")
    AutoProcessor.from_pretrained(checkpoint).save_pretrained(tmp_path / "start")
    options |= {"per_device_train_batch_size": 2}
    ended, log = launch_two(tmp_path, tmp_path / "start", file, config, **options)
    assert ended == 0, log
    written = [Path(tmp_path, "two", "bad_samples", f"rank{rank}.jsonl").read_text() for rank in range(2)]
    ids = [[json.loads(line)["id"] for line in text.splitlines()] for text in written]
    assert ids == [["1", "8", "9"], ["6", "7", "10", "11"]]  # a batch of two for each in turn
    options |= {"vision_model_name_or_path": "", "train_sampling_strategy": "sequential"}
    options |= {"per_device_train_batch_size": 4}
    sft.main(arguments("stage1_align.yaml", tmp_path / "start", file, tmp_path / "one", **options))
    logs = [json.loads((tmp_path / run / "trainer_state.json").read_text())["log_history"] for run in ("one", "two")]
    losses = [[entry["loss"] for entry in log if "loss" in entry] for log in logs]
    assert len(losses[0]) == 4 and losses[0] == pytest.approx(losses[1], abs=1e-5) and losses[0][2] == 0


@pytest.mark.slow
def test_two_processes_evaluate_the_same_rows_as_one(checkpoint, media, tmp_path):
    """The bad ones, of which one process has more, are in no batch of either."""
    held = media / "held.json"
    held.write_text(json.dumps([record(f"{i}", "gone.mp4" if i in (1, 4, 5, 7) else MIXED[i % 4]) for i in range(9)]))
    file = media / "learnt.json"
    file.write_text(json.dumps([record(f"{i}", MIXED[i % 4]) for i in range(4)]))
    options = {"media_root": media, "on_bad_sample": "skip", "max_bad_share": 1, "learning_rate": 0}
    options |= {"eval_data": held, "eval_strategy": "epoch", "per_device_eval_batch_size": 1, "preview_steps": 0}
    ended, log = launch_two(tmp_path, checkpoint, file, per_device_train_batch_size=2, **options)
    assert ended == 0 and "4 of 9 rows of the validation set 'held' are bad" in log, log
    options |= {"vision_model_name_or_path": ""}
    sft.main(arguments("stage1_align.yaml", checkpoint, file, tmp_path / "one", **options))
    logs = [json.loads((tmp_path / run / "trainer_state.json").read_text())["log_history"] for run in ("one", "two")]
    losses = [[entry["eval_held_loss"] for entry in log if "eval_held_loss" in entry] for log in logs]
    assert len(losses[0]) == 1 and losses[0] == pytest.approx(losses[1], abs=1e-5)
