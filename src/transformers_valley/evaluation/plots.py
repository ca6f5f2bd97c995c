# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Numbers with their intervals as a picture."""

import os
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from ..plots import MARKERS, chart_style, place_legend
from .statistics import Estimate


MOST = 40  # groups; with more, their names would run into each other


def draw_bars(
    file: str | os.PathLike,
    title: str,
    measure: str,
    most: float,
    groups: Sequence[str],
    series: Mapping[str, Sequence[Estimate]],
) -> None:
    """
    Draw points with their 95% intervals, a line for each group and a colour for each series.

    Args:
        file (path): the picture; its suffix chooses the format.
        title (`str`), measure (`str`): above it and below it.
        most (`float`): the largest value that the measure can have, where its axis ends.
        groups (`list[str]`): from top to bottom.
        series (`dict[str, list[Estimate]]`): for each of its names one number per group.
    """
    shown = groups[:MOST]
    with chart_style():
        figure = Figure(figsize=(10, 1.5 + 0.2 * len(shown) * (len(series) + 0.6)), layout="constrained")
        axes = figure.subplots()
        for index, (name, estimates) in enumerate(series.items()):
            offset = (index - (len(series) - 1) / 2) * 0.8 / len(series)
            points = [(row + offset, e) for row, e in enumerate(estimates[:MOST]) if e.value is not None]
            values = [e.value for _, e in points]
            # A mean of a skewed resample can lie a hair outside of its own percentiles.
            spread = [[max(0, e.value - e.low) for _, e in points], [max(0, e.high - e.value) for _, e in points]]
            marker = MARKERS[index % len(MARKERS)]
            rows = [y for y, _ in points]
            axes.errorbar(values, rows, xerr=spread, fmt=marker, capsize=3, label=name, zorder=3)
        axes.set_yticks(range(len(shown)), shown)
        axes.grid(axis="y", visible=False)
        left_out = f", {len(groups) - MOST} groups left out" if len(groups) > MOST else ""
        axes.set(title=title, xlabel=f"{measure}, with 95% intervals{left_out}")
        axes.set_xlim(-0.02 * most, 1.02 * most)  # a marker at either end is whole
        axes.set_ylim(len(shown) - 0.5, -0.5)
        if len(series) > 1:
            place_legend(axes, "lower")
        figure.savefig(file)


__all__ = ["draw_bars"]
