"""Which topic the lines are of that a command is given.

Comes in: a command's options. Goes out: what they say. Never here: how such lines are read, or a heavy import.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple


class OfTopic(NamedTuple):
    """``topic``; or the one that each line's own ``field`` names; neither: one without a mapping."""

    topic: str | None = None
    field: str | None = None

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Add what says it to a command's options."""
        parser.add_argument("--topic", metavar="TOPIC", help="read lines as this topic's values; see source.mappings")
        parser.add_argument(
            "--topic-field", metavar="FIELD", help="read each line as a value of the topic that its own FIELD names"
        )

    @classmethod
    def of(cls, options: argparse.Namespace) -> OfTopic:
        """What the options say."""
        return cls(options.topic, options.topic_field)


UNSAID = OfTopic()
