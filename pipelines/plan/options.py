"""The options of ``plan``.

Comes in: a parser. Goes out: the parser with options. Never here: what they do, or a heavy import.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def add_options(parser: argparse.ArgumentParser, positive: Callable[[str], int]) -> None:
    """Add them; ``positive`` reads a whole number from 1 up."""
    add = parser.add_argument
    add("--for", dest="job", choices=("run", "batch"), help="which command; default: batch where batch.inputs is set")
    add("--records", type=positive, metavar="N", help="how many to sample; default: 2,000")
    add("--tokens-per-s", type=_above_zero, metavar="N", help="what one replica embeds in a second")
    add("--measure", action="store_true", help="measure that here, for a few seconds, with the model")
    add(
        "--price-per-hour",
        type=_above_zero,
        metavar="PRICE",
        help="of one replica, in any currency; default: batch.price_per_hour",
    )
    add("--json", action="store_true", help="a JSON object, and no table")


def _above_zero(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"a number above 0 is needed, not {text!r}")
    return number
