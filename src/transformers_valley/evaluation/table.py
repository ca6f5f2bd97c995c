# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""A table once, written as Markdown, CSV and LaTeX."""

import csv
import io
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from ..tables import format_table
from .statistics import Estimate


Cell = str | int | float | None | Estimate


@dataclass(frozen=True)
class Table:
    """
    Rows below a header.

    Attributes:
        name (`str`): of its file and label.
        title (`str`): above it.
        header (`list[str]`): of its columns.
        rows (`list[list]`): cells: texts, numbers, or an [`Estimate`], shown with its interval.
        notes (`list[str]`): below it; what a reader has to know before comparing.
    """

    name: str
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = field(default_factory=tuple)

    def shown_rows(self) -> list[list[str]]:
        """The rows as people read them."""
        return [[_shown(cell) for cell in row] for row in self.rows]

    def to_markdown(self, left_out: Collection[str] = ()) -> str:
        """With its notes, except those that stand elsewhere."""
        rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in self.shown_rows()]
        table = format_table([self.header, *rows], "l" + "r" * (len(self.header) - 1))
        notes = [note for note in self.notes if note not in left_out]
        return "\n\n".join([f"### {self.title}", table, *notes]) + "\n"

    def to_csv(self) -> str:
        """The interval of a number stands in two columns of its own, `NAME low` and `NAME high`."""
        wide = [any(isinstance(row[i], Estimate) for row in self.rows) for i in range(len(self.header))]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        parts = [[n, f"{n} low", f"{n} high"] if w else [n] for n, w in zip(self.header, wide, strict=True)]
        writer.writerow([name for names in parts for name in names])
        for row in self.rows:
            cells = []
            for cell, is_wide in zip(row, wide, strict=True):
                value = cell.value if isinstance(cell, Estimate) else cell
                bounds = [cell.low, cell.high] if isinstance(cell, Estimate) else [None, None]
                cells += [value, *(bounds if is_wide else [])]
            writer.writerow(["" if cell is None else cell for cell in cells])
        return text.getvalue()

    def to_latex(self) -> str:
        """Needs the package booktabs."""
        rows = [list(map(_latex, row)) for row in [self.header, *self.shown_rows()]]
        lines = [" & ".join(cells) + r" \\" for cells in rows]
        return "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{_latex(' '.join([f'{self.title}.', *self.notes]))}}}",
                rf"\label{{tab:{self.name}}}",
                rf"\begin{{tabular}}{{l{'r' * (len(self.header) - 1)}}}",
                r"\toprule",
                lines[0],
                r"\midrule",
                *lines[1:],
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
                "",
            ]
        )


def common_notes(tables: Sequence[Table]) -> list[str]:
    """What holds for all tables: written once, below the last."""
    return [note for note in tables[0].notes if all(note in table.notes for table in tables)] if tables else []


def _shown(cell: Cell) -> str:
    if isinstance(cell, Estimate):
        return "–" if cell.value is None else f"{cell.value:.2f} [{cell.low:.2f}, {cell.high:.2f}]"
    if isinstance(cell, float):
        return f"{cell:.3g}"
    return "–" if cell in (None, "") else f"{cell:,}" if isinstance(cell, int) else cell


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--"}
_LATEX |= {c: f"\\{c}" for c in "&%$#_{}"}


def _latex(text: str) -> str:
    return re.sub("|".join(map(re.escape, _LATEX)), lambda match: _LATEX[match[0]], text)


__all__ = ["Cell", "Table", "common_notes"]
