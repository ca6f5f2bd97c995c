# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Intervals, comparisons and agreement, against numbers from textbooks and by hand."""

import math
import random

import pytest

from transformers_valley.evaluation.benchmark import Column
from transformers_valley.evaluation.statistics import compare, estimate, kappa, mcnemar


def column(values, clips=None, scale=100.0, weight=1.0) -> Column:
    clips = clips or [str(i) for i in range(len(values))]
    rows = tuple((str(i), clip, float(value)) for i, (clip, value) in enumerate(zip(clips, values, strict=True)))
    return Column("right", ((weight, rows),), scale)


def test_value_is_the_mean_and_the_interval_that_of_a_share():
    found = estimate(column([1] * 60 + [0] * 40))
    deviation = 100 * math.sqrt(0.6 * 0.4 / 100)
    assert found.value == pytest.approx(60) and found.count == 100
    assert found.low == pytest.approx(60 - 1.96 * deviation, abs=1.5)
    assert found.high == pytest.approx(60 + 1.96 * deviation, abs=1.5)


def test_report_can_be_made_again_to_the_digit():
    values = column([1, 0, 1, 1, 0, 1, 0, 1])
    assert estimate(values) == estimate(values)


def test_questions_about_one_clip_do_not_count_as_ten():
    """100 questions about 10 clips, each right or wrong as a whole, are ten coins and no hundred."""
    values = [i % 2 for i in range(10) for _ in range(10)]
    clips = [str(i) for i in range(10) for _ in range(10)]
    together, apart = estimate(column(values, clips)), estimate(column(values))
    assert together.value == apart.value == 50
    assert together.high - together.low > 2.5 * (apart.high - apart.low)


def test_clips_with_more_questions_weigh_more():
    assert estimate(column([1, 1, 1, 0], ["a", "a", "a", "b"])).value == 75


def test_weighted_mean_of_groups():
    first, second = column([1, 1, 0, 0]).groups[0][1], column([1, 1, 1, 0]).groups[0][1]
    found = estimate(Column("all", ((1.0, first), (0.5, second)), 100.0))
    assert found.value == pytest.approx((50 + 0.5 * 75) / 1.5) and found.count == 8


def test_group_without_answers_leaves_the_mean_open():
    found = estimate(Column("all", ((1.0, column([1]).groups[0][1]), (1.0, ())), 100.0))
    assert (found.value, found.low, found.high) == (None, None, None)


@pytest.mark.parametrize(("value", "bounds"), [(0, (0, 30.85)), (1, (69.15, 100))])
def test_ten_equal_answers_leave_a_doubt(value, bounds):
    """Clopper-Pearson for 0 or 10 of 10; resampling would give an interval of no width."""
    found = estimate(column([value] * 10))
    assert (found.low, found.high) == pytest.approx(bounds, abs=0.01)


def test_score_has_no_bound_that_is_known():
    found = estimate(column([4, 4, 4], scale=1.0))
    assert (found.low, found.value, found.high) == (4, 4, 4)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [(0, 0, 1.0), (1, 9, 22 / 1024), (5, 5, 1.0), (0, 6, 2 / 64), (400, 500, 9.5e-4)],
)
def test_mcnemar_is_a_fair_coin(only_first, only_second, p):
    assert mcnemar(only_first, only_second) == pytest.approx(p, rel=0.02)
    assert mcnemar(only_second, only_first) == mcnemar(only_first, only_second)


def test_comparison_joins_by_id_and_leaves_out_what_one_lacks():
    first, second = column([1, 0, 0, 1]), column([1, 1, 1, 1])
    shuffled = Column("right", ((1.0, second.groups[0][1][::-1][:3]),), 100.0)
    found = compare(first, shuffled)
    assert found.difference.count == 3 and found.difference.value == pytest.approx(100 * 2 / 3)
    assert (found.only_first, found.only_second, found.test) == (0, 2, "McNemar")
    assert found.p_value == pytest.approx(0.5)


def test_same_answers_differ_by_nothing_with_a_doubt_both_ways():
    found = compare(column([1, 0] * 10), column([1, 0] * 10))
    assert found.difference.value == 0 and found.p_value == 1
    assert -17 < found.difference.low < -16 and 16 < found.difference.high < 17


def test_all_lost_leaves_as_much_doubt_as_all_won():
    lost, won = (compare(column(a), column(b)).difference for a, b in (([1] * 3, [0] * 3), ([0] * 3, [1] * 3)))
    assert (lost.value, lost.low) == (-100, -100) and (won.value, won.high) == (100, 100)
    assert lost.high == pytest.approx(-won.low) and won.low == pytest.approx(29.2, abs=0.1)


def test_scores_are_compared_by_bootstrap():
    draw = random.Random(0)
    first = [draw.choice([1, 2, 3]) for _ in range(80)]
    found = compare(column(first, scale=1.0), column([value + draw.choice([0, 1]) for value in first], scale=1.0))
    assert found.test == "bootstrap" and found.p_value < 0.01 and found.difference.low > 0


def test_different_numbers_are_not_compared():
    with pytest.raises(ValueError, match="different numbers"):
        compare(column([1]), Column("Score", ((1.0, ()),), 1.0))


def test_kappa_of_the_textbook():
    """Cohen's example: 20 both yes, 15 both no, 5 and 10 apart: observed 0.7, by chance 0.5."""
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert kappa(first, second) == pytest.approx(0.4)


def test_kappa_of_scores_weighs_how_far_they_are_apart():
    near, far = kappa([0, 1, 4, 5, 2], [1, 2, 5, 4, 3]), kappa([0, 1, 4, 5, 2], [5, 4, 1, 0, 3])
    assert near > 0.7 and far < 0
    assert kappa([1, 2, 3], [1, 2, 3]) == 1


def test_kappa_is_open_where_all_verdicts_are_one():
    assert kappa(["yes"] * 3, ["yes"] * 3) is None
    with pytest.raises(ValueError, match="join them by id"):
        kappa(["yes"], [])
