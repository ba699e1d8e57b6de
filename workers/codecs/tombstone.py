"""Deletes, passed through.

Comes in: a record with a null value, or one whose older vector has to go. Goes out: a null value under its key. Never here:
the decision which records those are.
"""

from __future__ import annotations

from workers.codecs.base import kept_headers
from workers.records import Message, Record


def render_tombstone(record: Record, topic: str) -> Message:
    """A null value with the record's key, the headers that outputs keep, and timestamp."""
    return Message(topic, record.key, None, kept_headers(record), record.timestamp_ms)
