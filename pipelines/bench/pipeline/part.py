"""One table of the report.

Comes in: what a part has measured. Goes out: text, Markdown, and values for JSON. Never here: measuring.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.table import markdown, plain


@dataclass(frozen=True, slots=True)
class Part:
    """A title, a table, sentences about it; ``values``: the same as numbers, every round of it; ``curve``: what is drawn."""

    name: str
    title: str
    titles: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: tuple[str, ...]
    values: dict[str, Any]
    curve: Curve | Timeline | None = None

    def text(self) -> str:
        """For a terminal."""
        return "\n\n".join([self.title, plain(self.titles, self.rows), "\n".join(self.notes)])

    def markdown(self) -> str:
        """For a README."""
        return "\n\n".join([f"**{self.title}**", markdown(self.titles, self.rows), "\n".join(self.notes)])


@dataclass(frozen=True, slots=True)
class Curve:
    """Lines over one axis. ``lines``: name to points; ``ideal``: what would be linear."""

    across: str
    up: str
    lines: dict[str, list[tuple[float, float]]]
    ideal: list[tuple[float, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Timeline:
    """One figure for each second, and what happened when. ``events``: words, from second, to second."""

    up: str
    points: list[float]
    events: list[tuple[str, float, float]]


def spread(values: Sequence[float], places: int = 0) -> str:
    """The median, and from what to what."""
    median = statistics.median(values)
    if len(values) == 1:
        return f"{median:,.{places}f}"
    return f"{median:,.{places}f} ({min(values):,.{places}f}–{max(values):,.{places}f})"
