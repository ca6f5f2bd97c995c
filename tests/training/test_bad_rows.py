# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""How many rows may be bad, over workers that end with each epoch, and what is written down of them."""

import json

import pytest
from runs import train, with_bad
from test_collator import make_rows, record
from torch.utils.data import DataLoader

from transformers_valley.data.decode import BadSampleError
from transformers_valley.training import ValleyDataCollator
from transformers_valley.training.bad_rows import BadRows


ERROR = BadSampleError("x", "rows", "gone.mp4", "there is no such file.")


def test_too_many_bad_rows_end_the_run(processor, tmp_path):
    """One early bad row does not; three of three do."""
    rows = make_rows(tmp_path, [record("good"), *(record(f"{i}", "gone.mp4") for i in range(3))])
    options = {"on_bad_sample": "skip", "bad_sample_file": tmp_path / "bad.jsonl"}
    collator = ValleyDataCollator(processor, max_bad_share=0.5, **options)
    for _ in range(3):  # a bad row of two each time
        list(DataLoader(rows.select([0, 3]), 1, num_workers=2, collate_fn=collator))
    collator = ValleyDataCollator(processor, **options)
    for _ in range(2):
        list(DataLoader([rows[3]], 1, num_workers=1, collate_fn=collator))
    with pytest.raises(ValueError, match="3 of the 3 rows that this process has read are bad") as caught:
        list(DataLoader([rows[3]], 1, num_workers=1, collate_fn=collator))
    last = str(caught.value).strip().splitlines()[-1]
    assert "3 of the 3 rows" in last and "bad.jsonl" in last and "gone.mp4: there is no such file" in last


@pytest.mark.parametrize(("bad", "read"), [(3, 3), (13, 100), (73, 1000), (569, 10_000)])
def test_the_share_that_ends_a_run_is_the_documented_one(bad, read):
    assert BadRows().exceeds_share(bad, read) and not BadRows().exceeds_share(bad - 1, read)


def test_every_bad_row_is_a_line(tmp_path):
    rows = BadRows(tmp_path / "new" / "bad.jsonl", max_share=1)
    for _ in range(2):
        rows.add_read()
        rows.add_bad(ERROR)
    lines = (tmp_path / "new" / "bad.jsonl").read_text().splitlines()
    entry = {"id": "x", "source": "rows", "file": "gone.mp4", "reason": "there is no such file."}
    assert [json.loads(line) for line in lines] == [entry] * 2


def test_without_a_file_a_bad_row_is_a_warning(caplog):
    rows = BadRows(max_share=1)
    rows.add_read()
    rows.add_bad(ERROR)
    assert "Row 'x' of 'rows' cannot be trained on: gone.mp4" in caplog.text and "left out" in caplog.text


def test_bad_rows_do_not_count_in_an_evaluation(checkpoint, rows, tmp_path):
    """Alone in their batches, they would lower its loss: TRL gives a batch that teaches nothing 0.0."""
    records = json.loads(rows.read_text())
    values = {}
    for name, held in (("all", with_bad(records, 1, 4)), ("good", [*records[:1], *records[2:4], *records[5:]])):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "held.json"
        file.write_text(json.dumps(held))
        options = {"eval_data": file, "eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 1}
        options |= {"on_bad_sample": "skip", "max_bad_share": 1, "preview_steps": 0, "dataloader_num_workers": 2}
        trainer = train(checkpoint, rows, tmp_path / name / "out", **options)
        logged = {key: value for entry in trainer.state.log_history for key, value in entry.items()}
        values[name] = [logged[f"eval_held_{key}"] for key in ("loss", "entropy", "mean_token_accuracy")]
    assert values["all"] == values["good"]
    written = (tmp_path / "all" / "out" / "bad_samples" / "rank0.jsonl").read_text().splitlines()
    assert {json.loads(line)["id"] for line in written} == {"row-1", "row-4"} and len(written) == 2


def test_a_validation_set_of_bad_rows_alone_ends_the_run(checkpoint, rows, tmp_path):
    held = tmp_path / "held.json"
    held.write_text(json.dumps(with_bad(json.loads(rows.read_text())[:2], 0, 1)))
    options = {"eval_data": held, "eval_strategy": "epoch", "on_bad_sample": "skip", "max_bad_share": 1}
    with pytest.raises(ValueError, match="Every row of the validation set 'held' is bad: .*rank0.jsonl says why"):
        train(checkpoint, rows, tmp_path / "out", **options)


@pytest.mark.parametrize("share", [0, -1, 2])
def test_a_share_that_makes_no_sense(share):
    with pytest.raises(ValueError, match=f"max_bad_share must be above 0 and at most 1, got {share}"):
        BadRows(max_share=share)
