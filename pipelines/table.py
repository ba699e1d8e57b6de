"""A table as text: aligned for a terminal, or in Markdown.

Comes in: titles and cells. Goes out: lines. Never here: what the cells mean. The first column is words, the others figures.
"""

from __future__ import annotations

from collections.abc import Sequence


def plain(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart; words to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = [titles, ["─" * width for width in widths], *rows]
    return "\n".join("  ".join(_placed(line, widths)).rstrip() for line in lines)


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same for a README."""
    lines = [f"| {' | '.join(line)} |" for line in (titles, *rows)]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(titles) - 1), *lines[1:]])


def _placed(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.ljust(width) if index == 0 else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]
