"""The options of ``status``.

Comes in: a parser. Goes out: the parser with options. Never here: what they do, or a heavy import.
"""

from __future__ import annotations

import argparse

WAIT_S = 10.0
TIMEOUT_S = 15.0


def add_status(parser: argparse.ArgumentParser) -> None:
    """Add them."""
    add = parser.add_argument
    add("--watch", action="store_true", help="again and again, every two seconds; on no terminal, a line each time")
    add("--json", action="store_true", help="a JSON object, and no table")
    add(
        "--wait",
        type=_seconds,
        default=WAIT_S,
        metavar="SECONDS",
        help=f"how long a lag may stand still before it counts as stalled; default: {WAIT_S:g}",
    )
    add(
        "--timeout",
        type=_seconds,
        default=TIMEOUT_S,
        metavar="SECONDS",
        help=f"how long Kafka, and Ray beside it, have for an answer; default: {TIMEOUT_S:g}",
    )
    add(
        "--no-fingerprints", action="store_true", help="leave out whose vectors the outputs hold, which reads the model"
    )


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 86_400:
        raise argparse.ArgumentTypeError(f"a number of seconds above 0 is needed, not {text!r}")
    return number
