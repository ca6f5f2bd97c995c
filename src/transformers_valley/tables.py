# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Tables as text, with columns of equal width.

Input: rows of cells. Output: Markdown that also reads well in a terminal, or plain text.
"""

from collections.abc import Sequence
from typing import Any


def format_table(rows: Sequence[Sequence[Any]], align: str, markdown: bool = True) -> str:
    """
    Format a table.

    Args:
        rows (`list[list]`):
            The cells of each row, those of the header first.
        align (`str`):
            A letter for each column: `l` for left, `r` for right.
        markdown (`bool`, *optional*, defaults to `True`):
            `False` for columns that two spaces part, without a rule below the header.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    least = 3 if markdown else 0
    widths = [max(least, *map(len, column)) for column in zip(*cells, strict=True)]
    pad = {"l": str.ljust, "r": str.rjust}
    lines = [[pad[side](*cell) for side, *cell in zip(align, row, widths, strict=True)] for row in cells]
    if not markdown:
        return "\n".join("  ".join(line).rstrip() for line in lines)
    rule = ["-" * width if side == "l" else "-" * (width - 1) + ":" for side, width in zip(align, widths, strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))


__all__ = ["format_table"]
