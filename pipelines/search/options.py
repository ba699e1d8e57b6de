"""The options of ``search``.

Comes in: a parser. Goes out: the parser with options. Never here: what they do, or a heavy import.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def add_options(parser: argparse.ArgumentParser, positive: Callable[[str], int]) -> None:
    """Add them; ``positive`` reads a whole number from 1 up."""
    add = parser.add_argument
    add("--in", metavar="PLACE", help="a folder of Parquet files, one of them, or s3://… and the like")
    add("--topic", metavar="TOPIC", help="an output topic instead")
    add("--top", type=positive, metavar="N", help="how many to print; default: 5")
    add("--ranges", type=Path, metavar="FILE", help="of vectors in int8_ranges or uint8_ranges")
    add("--prompt-text", metavar="TEXT", help="what goes before a question; default: the model's query prompt")
    add("--any-fingerprint", action="store_true", help="take the model's vectors, however else they were made")
    add("--json", action="store_true", help="a JSON object per vector")
