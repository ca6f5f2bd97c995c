# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
import pytest

from transformers_valley.tables import format_table


ROWS = [("part", "weights"), ("vision_tower", 7), ("head", "1,000")]


def test_a_markdown_table_has_columns_of_equal_width():
    assert format_table(ROWS, "lr").splitlines() == [
        "| part         | weights |",
        "| ------------ | ------: |",
        "| vision_tower |       7 |",
        "| head         |   1,000 |",
    ]


def test_a_rule_has_at_least_three_characters():
    assert format_table([("a", "b"), (1, 2)], "lr").splitlines()[1] == "| --- | --: |"


def test_plain_text_has_no_rule_and_no_spaces_at_the_end():
    assert format_table([("a", "b"), ("long", "")], "ll", markdown=False) == "a     b\nlong"


@pytest.mark.parametrize("align", ["l", "lrr"])
def test_every_column_needs_an_alignment(align):
    with pytest.raises(ValueError):
        format_table(ROWS, align)
