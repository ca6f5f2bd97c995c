# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""How many rows may be bad, over workers that end with each epoch, and what is written down of them."""

import json

import pytest
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


@pytest.mark.parametrize("share", [0, -1, 2])
def test_a_share_that_makes_no_sense(share):
    with pytest.raises(ValueError, match=f"max_bad_share must be above 0 and at most 1, got {share}"):
        BadRows(max_share=share)
