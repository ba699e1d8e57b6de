"""Refused records, byte for byte, with the reason in headers.

Comes in: a record and why it was refused. Goes out: the record for the dead-letter topic. Never here: a piece of the text.
"""

from __future__ import annotations

from workers.records import DeadLetter, Message, Record


def render_dead_letter(record: Record, letter: DeadLetter, topic: str, fingerprint: str) -> Message:
    """The record with its key, value, timestamp and headers, and headers ``embedding-error-*``.

    A dead letter that was sent round again, and refused again, carries the newer reason alone.
    """
    origin = record.origin
    about = {
        "topic": origin.topic,
        "partition": origin.partition,
        "offset": origin.offset,
        "timestamp": record.timestamp_ms,
        "stage": letter.stage,
        "class": letter.reason,
        "message": letter.message,
        "attempts": letter.attempts,
        "fingerprint": fingerprint,
    }
    # A message is a sentence of ours, but may name a field from the settings; nothing here may fail.
    ours = {f"embedding-error-{name}": str(value).encode("utf-8", "replace") for name, value in about.items()}
    kept = tuple(header for header in record.headers if header[0] not in ours)
    return Message(topic, record.key, record.value, (*kept, *ours.items()), record.timestamp_ms)
