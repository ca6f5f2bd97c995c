# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Preferences about clips train through TRL's own `DPOTrainer`."""

import json

import pytest
import torch
from clips import write_clip
from PIL import Image
from transformers import AutoModelForImageTextToText
from trl import DPOConfig, DPOTrainer

from transformers_valley.data.decode import BadSampleError
from transformers_valley.data.preferences import load_preferences, to_preference
from transformers_valley.training.preferences import PreferenceCollator


USER = {"role": "user", "content": [{"type": "video", "path": "clip.mp4"}, {"type": "text", "text": "What?"}]}


def chat(**fields):
    return {"messages": [USER], "chosen": "A dog.", "rejected": "A cat.", **fields}


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write_clip(tmp_path / "clip.mp4", 30, fps=10)
    Image.new("RGB", (40, 40), "blue").save(tmp_path / "a.png")
    answered = [USER, {"role": "assistant", "content": "A park."}, {"role": "user", "content": "Who?"}]
    records = [
        chat(),
        {"image": "a.png", "question": "Which colour?", "chosen": "Blue.", "rejected": "It is red, as far as I see."},
        chat(messages=answered),
        chat(messages=[{"role": "user", "content": "Hi"}], chosen="Hello.", rejected="No."),
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, records)))
    return load_preferences([tmp_path / "pairs.jsonl"], tmp_path)


@pytest.mark.parametrize(
    "record",
    [
        chat(),
        {"prompt": [USER], "chosen": [{"role": "assistant", "content": "A dog."}], "rejected": "A cat."},
        {
            "conversations": [{"from": "human", "value": "<video>What?"}],
            "videos": ["clip.mp4"],
            "chosen": {"from": "gpt", "value": "A dog."},
            "rejected": {"from": "gpt", "value": "A cat."},
        },
        {"video": "clip.mp4", "question": "What?", "chosen": "A dog.", "rejected": "A cat."},
    ],
)
def test_forms_of_other_tools_are_read(record):
    row = to_preference(record)
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
    assert row["messages"][0]["content"][0]["path"] == "clip.mp4"
    assert row["messages"][1]["content"][0]["text"] == "A dog." and row["rejected"] == "A cat."


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": [USER], "chosen": "A dog."}, "expected `chosen` and `rejected`"),
        (chat(rejected="A dog. "), "are equal"),
        (chat(rejected=""), "an answer of the assistant is empty"),
        (chat(chosen=3), "`chosen` is the number 3"),
        (chat(messages=[USER, {"role": "assistant", "content": "x"}]), "ends with an answer"),
        (chat(weight=2), "`weight`"),
    ],
)
def test_what_is_no_preference_is_refused(record, message):
    with pytest.raises(ValueError, match=message):
        to_preference(record)


def test_a_batch_holds_both_answers_and_what_is_shown_twice(rows, processor):
    batch = PreferenceCollator(processor)(list(rows))
    assert "labels" not in batch and len(batch["input_ids"]) == 8
    said = [
        processor.decode(ids[mask == 1])
        for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    ]
    expected = ["A dog.", "Blue.", "A dog.", "Hello.", "A cat.", "It is red, as far as I see.", "A cat.", "No."]
    assert [text.replace("</s>", "").strip() for text in said] == expected
    assert len(batch["pixel_values_videos"]) == 4 and len(batch["pixel_values"]) == 2
    assert batch["pixel_values_videos"][:2].equal(batch["pixel_values_videos"][2:])


def test_a_row_that_cannot_be_read_ends_the_run(rows, processor, tmp_path):
    (tmp_path / "clip.mp4").unlink()
    with pytest.raises(BadSampleError, match="pairs:0"):
        PreferenceCollator(processor)(list(rows))


def test_a_row_without_room_for_its_last_answer_is_bad(processor, tmp_path):
    """An earlier answer is the same in both: it must not be taken for the preference."""
    said = [("user", "Hi"), ("assistant", "Hello."), ("user", "Which colour?")]
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in said]
    (tmp_path / "pairs.jsonl").write_text(json.dumps(chat(messages=messages, chosen="Blue.", rejected="Red.")))
    rows = list(load_preferences([tmp_path / "pairs.jsonl"]))
    start = PreferenceCollator(processor)(rows)["completion_mask"][0].argmax().item()
    assert PreferenceCollator(processor, max_length=start + 1)(rows)["completion_mask"].sum(1).tolist() == [1, 1]
    with pytest.raises(BadSampleError, match=f"no word within max_length={start} to learn from"):
        PreferenceCollator(processor, max_length=start)(rows)


def test_dpo_learns_to_prefer(rows, checkpoint, processor, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    args = DPOConfig(
        str(tmp_path / "out"),
        max_steps=6,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        remove_unused_columns=False,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )
    trainer = DPOTrainer(
        model=model,
        args=args,
        train_dataset=rows,
        processing_class=processor,
        data_collator=PreferenceCollator(processor),
    )
    before = model.model.temporal_module.state_dict() if hasattr(model.model, "temporal_module") else {}
    before = {name: value.clone() for name, value in before.items()}
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "rewards/accuracies" in entry]
    assert entries[0]["loss"] == pytest.approx(0.6931, abs=1e-3)  # the model is its own reference
    assert entries[-1]["rewards/accuracies"] == 1 and entries[-1]["rewards/margins"] > 0.1
    after = model.model.temporal_module.state_dict()
    assert any(not torch.equal(after[name], value) for name, value in before.items())  # clips take part
