# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The look that all charts share, for eyes of every kind and at half their size.

In go numbers of others; out come matplotlib's settings. matplotlib is imported when a chart is drawn.
"""

from contextlib import AbstractContextManager


__all__ = ["COLOURS", "FAINT", "INK", "MARKERS", "WRONG", "chart_style", "place_legend"]

# The palette of Okabe and Ito, which colour-blind people can distinguish. Each series has a marker besides.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"
INK, FAINT, WRONG = "#262626", "#6b6b6b", COLOURS[1]
LONGEST_NAME = 28  # characters of a name in a legend


def chart_style() -> AbstractContextManager:
    """Matplotlib's settings for a chart: `with chart_style(): figure = Figure(...)`, up to `figure.savefig`."""
    import matplotlib
    from cycler import cycler

    return matplotlib.rc_context(
        {
            "axes.axisbelow": True,
            "axes.edgecolor": FAINT,
            "axes.grid": True,
            "axes.labelcolor": INK,
            "axes.prop_cycle": cycler(color=COLOURS),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlecolor": INK,
            "axes.titlelocation": "left",
            "axes.titlesize": 14,
            "axes.titleweight": "bold",
            "figure.facecolor": "white",  # a dark page shows the chart as a white card
            "font.size": 12,
            "grid.color": "#e3e3e3",
            "legend.frameon": False,
            "legend.labelcolor": INK,
            "lines.linewidth": 2.2,
            "lines.markersize": 6,
            "savefig.dpi": 130,
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
        }
    )


def place_legend(axes, side: str = "upper") -> None:
    """Put the legend of a chart above or, `"lower"`, below its figure, where it covers nothing. Long names lose their
    middle."""
    handles, names = axes.get_legend_handles_labels()
    half = LONGEST_NAME // 2
    names = [name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[-half + 1 :]}" for name in names]
    axes.figure.legend(handles, names, loc=f"outside {side} left", ncols=3)
