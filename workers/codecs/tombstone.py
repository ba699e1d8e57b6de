"""Deletes, passed through.

Comes in: a record with a null value, or one whose older vector has to go. Goes out: a null value under its key. Never here:
the decision which records those are.
"""

from __future__ import annotations

from workers.records import Message, Record


def render_tombstone(record: Record, topic: str) -> Message:
    """A null value with the record's key, headers and timestamp."""
    return Message(topic, record.key, None, record.headers, record.timestamp_ms)
