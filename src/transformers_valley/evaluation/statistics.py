# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""How far a number can be trusted: bootstrap intervals, paired comparisons, agreement of judges.

Clips are resampled, not questions: ten questions about one clip are right or wrong together more often than not, and
intervals that treat them as independent are too narrow. All seeds are fixed, so that a report can be made again.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from .benchmark import Column


RESAMPLES = 2000
SEED = 0


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval, over `count` items; all are `None` where there is nothing to count."""

    value: float | None
    low: float | None
    high: float | None
    count: int


def estimate(column: Column, resamples: int = RESAMPLES, least: float = 0.0) -> Estimate:
    """
    The value of a column, and the interval that resampling its clips gives.

    Where all n clips say the same, resampling knows no doubt. Then the interval of a percentage is that of the exact
    binomial (Clopper-Pearson): none of n right still allows for a share p with (1 - p)^n = 2.5%.

    Args:
        column ([`Column`]):
            What to estimate.
        resamples (`int`, *optional*, defaults to 2000):
            How often clips are drawn again.
        least (`float`, *optional*, defaults to 0.0):
            The smallest value that a percentage can have: -1 where it is a difference.
    """
    groups = [_sums(values) for _, values in column.groups]
    if not groups or any(len(sums) == 0 for sums, _ in groups):
        return Estimate(None, None, None, column.count)
    weights = np.array([weight for weight, _ in column.groups]) / sum(weight for weight, _ in column.groups)
    means = np.array([sums.sum() / counts.sum() for sums, counts in groups])
    drawn = _resample(groups, resamples) @ weights
    low, high = np.percentile(drawn, [2.5, 97.5])
    seen = {value for _, values in column.groups for _, _, value in values}
    if column.scale == 100 and seen in ({-1.0}, {0.0}, {1.0}):
        doubt = 1 - 0.025 ** (1 / sum(len(sums) for sums, _ in groups))
        low, high = (max(least, low - doubt), min(1.0, high + doubt))
    value, low, high = (float(number * column.scale) for number in (means @ weights, low, high))
    return Estimate(value, low, high, column.count)


@dataclass(frozen=True)
class Comparison:
    """
    Two columns over the items that both have.

    Attributes:
        difference ([`Estimate`]): the second less the first, over `count` common items.
        p_value (`float`, *optional*): two-sided. For yes and no of McNemar's exact test, otherwise of the bootstrap.
        test (`str`): which of the two.
        only_first, only_second (`int`): items that only one has right, for yes and no.
    """

    difference: Estimate
    p_value: float | None
    test: str
    only_first: int
    only_second: int


def compare(first: Column, second: Column, resamples: int = RESAMPLES) -> Comparison:
    """
    Compare two columns item by item, joined by id.

    Raises:
        ValueError: if they are not the same number.
    """
    if first.name != second.name or [w for w, _ in first.groups] != [w for w, _ in second.groups]:
        raise ValueError(f"{first.name!r} and {second.name!r} are different numbers and cannot be compared.")
    pairs = []
    for (weight, values), (_, others) in zip(first.groups, second.groups, strict=True):
        known = {name: value for name, _, value in values}
        pairs.append((weight, tuple((n, clip, (known[n], v)) for n, clip, v in others if n in known)))
    differences = Column(
        first.name, tuple((w, tuple((n, c, b - a) for n, c, (a, b) in rows)) for w, rows in pairs), first.scale
    )
    difference = estimate(differences, resamples, least=-1.0)
    both = [pair for _, rows in pairs for _, _, pair in rows]
    only_first, only_second = (sum(pair == which for pair in both) for which in ((1, 0), (0, 1)))
    if difference.value is None:
        return Comparison(difference, None, "none", only_first, only_second)
    if len(pairs) == 1 and set(value for pair in both for value in pair) <= {0, 1}:
        return Comparison(difference, mcnemar(only_first, only_second), "McNemar", only_first, only_second)
    groups = [_sums(values) for _, values in differences.groups]
    weights = np.array([weight for weight, _ in differences.groups]) / sum(w for w, _ in differences.groups)
    drawn = _resample(groups, resamples) @ weights
    tail = min((drawn <= 0).mean(), (drawn >= 0).mean())
    return Comparison(difference, float(min(1.0, 2 * max(tail, 1 / resamples))), "bootstrap", only_first, only_second)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's exact test: a fair coin over the items that only one of two has right."""
    n, k = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return 1.0
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k + 1)]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """
    Cohen's kappa: agreement of two judges beyond chance. 1 is perfect, 0 is chance.

    Args:
        first, second (`Sequence`):
            Their verdicts on the same items. Numbers are weighted by the square of their difference, so that 4 against
            5 is nearly agreement; other verdicts agree or do not.

    Returns:
        `float`, or `None` where a judge gives one verdict to all and agreement by chance is undefined.
    """
    if len(first) != len(second):
        raise ValueError(f"The judges gave {len(first)} and {len(second)} verdicts: join them by id first.")
    labels = sorted(set(first) | set(second))
    if len(labels) < 2:
        return None
    are_numbers = all(isinstance(label, int | float) for label in labels)
    weights = np.array([[float((a - b) ** 2 if are_numbers else a != b) for b in labels] for a in labels])
    seen = np.zeros_like(weights)
    for a, b in zip(first, second, strict=True):
        seen[labels.index(a), labels.index(b)] += 1 / len(first)
    by_chance = (weights * np.outer(seen.sum(1), seen.sum(0))).sum()
    return None if by_chance == 0 else float(1 - (weights * seen).sum() / by_chance)


def _sums(values: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Sum and count of the values of each clip."""
    by_clip: dict[str, list[float]] = {}
    for _, clip, value in values:
        by_clip.setdefault(clip, []).append(value)
    return np.array([sum(v) for v in by_clip.values()]), np.array([len(v) for v in by_clip.values()])


def _resample(groups: list[tuple[np.ndarray, np.ndarray]], resamples: int) -> np.ndarray:
    """Means of groups whose clips are drawn again with replacement: (resamples, groups)."""
    generator = np.random.default_rng(SEED)
    means = np.empty((resamples, len(groups)))
    for column, (sums, counts) in enumerate(groups):
        for row in range(resamples):  # one by one: all draws together would not fit into memory
            drawn = generator.integers(len(sums), size=len(sums))
            means[row, column] = sums[drawn].sum() / counts[drawn].sum()
    return means


__all__ = ["Comparison", "Estimate", "compare", "estimate", "kappa", "mcnemar"]
