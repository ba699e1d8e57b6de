"""The options of ``report``.

Comes in: a parser. Goes out: the parser with options. Never here: what they do, or a heavy import.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from pipelines.of_topic import OfTopic


def add_options(parser: argparse.ArgumentParser, positive: Callable[[str], int]) -> None:
    """Add them; ``positive`` reads a whole number from 1 up."""

    def dims(text: str) -> tuple[int, ...]:
        return tuple(positive(part.strip()) for part in text.split(","))

    add = parser.add_argument
    add("--texts", type=positive, metavar="N", help="how many to draw from all; default: 2,000")
    add("--dims", type=dims, default=(), metavar="N,N", help="to cut to; default: powers of two, and the outputs'")
    add("--min-recall", type=_share, metavar="SHARE", help="what is enough; default: 0.95")
    OfTopic.add_options(parser)
    add("--out", type=Path, default=Path("report"), metavar="FOLDER", help="for JSON and the page; default: report")


def _share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"a number above 0, at most 1, is needed, not {text!r}")
    return number
