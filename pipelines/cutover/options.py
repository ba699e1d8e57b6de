"""The options of ``cutover``.

Comes in: a parser. Goes out: the parser with options. Never here: what they do, or a heavy import.
"""

from __future__ import annotations

import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add them."""
    add = parser.add_argument
    add("--old", metavar="PLACE", help="the old output: a folder of Parquet files, one of them, or s3://… and the like")
    add("--old-topic", metavar="TOPIC", help="or the topic that it is")
    add(
        "--until", metavar="TIME", help="leave out what is later: 2026-05-01T00:00:00Z, or 5m, 2h ago; default: nothing"
    )
    add("--keys", action="store_true", help="name the documents that are not right by their ids")
    add("--json", action="store_true", help="a JSON object for each new output")
