"""Refused records, byte for byte, with the reason in headers; and back again.

Comes in: a record and why it was refused, or a record of the dead-letter topic. Goes out: the record for the dead-letter
topic, or what was refused and why, and the record to send again. Never here: a piece of the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from workers.records import DeadLetter, Message, Origin, Record

_PREFIX = "embedding-error-"
_NAMES = frozenset(
    _PREFIX + name
    for name in (
        "topic",
        "partition",
        "offset",
        "timestamp",
        "stage",
        "class",
        "message",
        "attempts",
        "fingerprint",
    )
)
# How often the record was sent again: who sees it grow sees a record go round.
REPLAYED = "embedding-replayed"


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
    ours = {_PREFIX + name: str(value).encode("utf-8", "replace") for name, value in about.items()}
    kept = tuple(header for header in record.headers if header[0] not in ours)
    return Message(topic, record.key, record.value, (*kept, *ours.items()), record.timestamp_ms)


@dataclass(frozen=True, slots=True)
class Refused:
    """A dead letter as it was read.

    ``place`` is where it lies in the dead-letter topic; ``record`` is the source record as it was, its origin the one in the
    source; ``stage``, ``reason`` and ``message`` as in :class:`workers.records.DeadLetter`; ``replays`` counts how often the
    record had been sent again before it was refused.
    """

    place: Origin
    record: Record
    stage: str
    reason: str
    message: str
    attempts: int
    fingerprint: str
    replays: int


def parse_dead_letter(record: Record) -> Refused | None:
    """What :func:`render_dead_letter` wrote; None: the record is not one of ours."""
    # The last of a name counts: ours come after what the record had before.
    ours = {name.removeprefix(_PREFIX): value for name, value in record.headers if name in _NAMES}
    try:
        origin = Origin(_text(ours, "topic"), _number(ours, "partition"), _number(ours, "offset"), 0)
        stage, reason = _text(ours, "stage"), _text(ours, "class")
        timestamp = _number(ours, "timestamp", record.timestamp_ms)
        attempts = _number(ours, "attempts", 1)
    except (KeyError, ValueError):
        return None
    if not origin.topic or origin.partition < 0 or origin.offset < 0:
        return None
    kept = tuple(header for header in record.headers if header[0] not in _NAMES)
    # A source record without a time was dated by the broker when its dead letter was written.
    refused = Record(origin, record.key, record.value, timestamp if timestamp >= 0 else record.timestamp_ms, kept)
    return Refused(
        record.origin,
        refused,
        stage,
        reason,
        _text(ours, "message", ""),
        attempts,
        _text(ours, "fingerprint", ""),
        _replays(record),
    )


def render_replay(refused: Refused, topic: str, partition: int | None) -> Message:
    """The source record again: its key, value, timestamp and headers, and one header that counts the replays."""
    record = refused.record
    kept = tuple(header for header in record.headers if header[0] != REPLAYED)
    count = str(refused.replays + 1).encode()
    return Message(topic, record.key, record.value, (*kept, (REPLAYED, count)), record.timestamp_ms, partition)


def _replays(record: Record) -> int:
    found = [value for name, value in record.headers if name == REPLAYED]
    # At most nine digits: int() refuses thousands of them, and nothing goes round so often.
    return int(found[-1]) if found and found[-1] and found[-1].isdigit() and len(found[-1]) < 10 else 0


def _text(ours: Mapping[str, bytes | None], name: str, default: str | None = None) -> str:
    value = ours.get(name)
    if value is None:
        if default is None:
            raise KeyError(name)
        return default
    return value.decode("utf-8", "replace")


def _number(ours: Mapping[str, bytes | None], name: str, default: int | None = None) -> int:
    value = ours.get(name)
    if value is None and default is not None:
        return default
    return int(value or b"")
