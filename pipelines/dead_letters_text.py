"""The commands ``dead-letters list`` and ``dead-letters show``: what was refused, and why.

Comes in: settings, and which dead letters are wanted. Goes out: a table and lines, JSON, or one dead letter's facts. Never
here: a key or a value that was not asked for, or a character that could steer a terminal.
"""

from __future__ import annotations

import datetime
import heapq
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.dead_letters import DeadLetterTopic, Place, Wanted
from workers.codecs.dead_letter import Refused
from workers.errors import EnvironmentFault, SettingsError
from workers.records import TopicPartition
from workers.settings import Settings

LINES = 20  # how many dead letters list prints when it is not told


@dataclass(slots=True)
class _Count:
    """Dead letters of one stage and class."""

    waiting: int = 0
    replayed: int = 0
    first_ms: int = sys.maxsize
    last_ms: int = -1
    topics: set[str] = field(default_factory=set)

    def add(self, refused: Refused, *, replayed: bool) -> None:
        """Count one."""
        self.waiting += not replayed
        self.replayed += replayed
        self.first_ms = min(self.first_ms, refused.record.timestamp_ms)
        self.last_ms = max(self.last_ms, refused.record.timestamp_ms)
        self.topics.add(refused.record.origin.topic)


def run_list(settings: Settings, wanted: Wanted, *, last: int | None, replayed: bool, keys: bool, as_json: bool) -> int:
    """Print how many dead letters there are by stage and class, and the ``last`` ones that wait, by their records' time.

    ``replayed``: those that were sent again too; ``as_json``: a JSON object per dead letter and nothing else, all of them
    unless ``last`` says how many; ``keys``: with the records' keys.

    Raises:
        EnvironmentFault: the topic is not there, or we may not read it.
        RetryableError: the broker does not answer.
    """
    topic = DeadLetterTopic.find(settings)
    most = LINES if last is None and not as_json else last
    # A receipt comes after what it is about, so all of them are read first.
    receipts = topic.receipts()
    counts: dict[tuple[str, str], _Count] = {}
    latest: list[tuple[int, int, Mapping[str, Any]]] = []
    for number, refused in enumerate(topic.letters()):
        if not wanted(refused):
            continue
        sent = refused.place in receipts
        counts.setdefault((refused.stage, refused.reason), _Count()).add(refused, replayed=sent)
        if (sent and not replayed) or most == 0:
            continue
        facts = _facts(refused, sent=sent, key=keys)
        if most is None:
            print(json.dumps(facts))
            continue
        heapq.heappush(latest, (refused.record.timestamp_ms, number, facts))
        if len(latest) > most:
            heapq.heappop(latest)
    shown = [facts for _, _, facts in sorted(latest, key=lambda entry: entry[:2])]
    if as_json:
        for line in shown:
            print(json.dumps(line))
        return 0
    _print_counts(topic, counts)
    if shown:
        print(f"\nthe latest {len(shown):,} {'' if replayed else 'that wait'}".rstrip() + ", by their records' time:\n")
        _print_columns([_COLUMNS, *map(_line, shown)])
    return 0


def _facts(refused: Refused, *, sent: bool, key: bool) -> dict[str, Any]:
    """A dead letter for JSON: all but its value and headers, and the key only with ``key``."""
    record, place = refused.record, refused.place
    facts = {
        "partition": place.partition,
        "offset": place.offset,
        "replayed": sent,
        "source": {
            "topic": record.origin.topic,
            "partition": record.origin.partition,
            "offset": record.origin.offset,
        },
        "timestamp_ms": record.timestamp_ms,
        "stage": refused.stage,
        "class": refused.reason,
        "message": refused.message,
        "attempts": refused.attempts,
        "replays": refused.replays,
        "fingerprint": refused.fingerprint,
        "key_bytes": None if record.key is None else len(record.key),
        "value_bytes": None if record.value is None else len(record.value),
        "headers": len(record.headers),
    }
    return facts | ({"key": None if record.key is None else printable(record.key)} if key else {})


_COLUMNS = ("at", "source", "time", "stage", "class", "attempts", "replays", "fingerprint", "key", "value", "message")


def _line(facts: Mapping[str, Any]) -> tuple[str, ...]:
    source = facts["source"]
    key = _size(facts["key_bytes"])
    if facts.get("key") is not None:
        key = facts["key"] if len(facts["key"]) <= 40 else f"{facts['key'][:39]}…"
    return (
        f"{facts['partition']}/{facts['offset']}",
        f"{safe(source['topic'])}/{source['partition']}/{source['offset']}",
        moment(facts["timestamp_ms"]),
        safe(facts["stage"]),
        safe(facts["class"]),
        str(facts["attempts"]),
        str(facts["replays"]),
        safe(facts["fingerprint"]),
        key,
        _size(facts["value_bytes"]),
        safe(facts["message"]) + (" (replayed)" if facts["replayed"] else ""),
    )


def _print_counts(topic: DeadLetterTopic, counts: Mapping[tuple[str, str], _Count]) -> None:
    waiting = sum(count.waiting for count in counts.values())
    replayed = sum(count.replayed for count in counts.values())
    others = f"; {topic.others:,} other records lie there" if topic.others else ""
    print(f"{topic.topic.name}: {waiting:,} dead letters wait, {replayed:,} were replayed{others}")
    if not counts:
        return
    rows = [("stage", "class", "wait", "replayed", "first", "last", "source topics")]
    for (stage, reason), count in sorted(counts.items(), key=lambda entry: (-entry[1].waiting, entry[0])):
        rows.append(
            (
                safe(stage),
                safe(reason),
                f"{count.waiting:,}",
                f"{count.replayed:,}",
                moment(count.first_ms),
                moment(count.last_ms),
                ", ".join(safe(name) for name in sorted(count.topics)),
            )
        )
    print()
    _print_columns(rows)


def _print_columns(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def run_show(settings: Settings, places: Sequence[str], *, payload: bool, out: Path | None) -> int:
    """Print all that is known of the dead letters at ``places``; with ``payload`` their keys and values too.

    ``out``: write the one dead letter's value to this file, byte for byte.

    Raises:
        EnvironmentFault: there is no such dead letter, the topic cannot be read, or the file cannot be written.
        SettingsError: a place is none, or ``out`` is given and there are several dead letters.
    """
    wanted = [Place.parse(place) for place in places]
    if not wanted:
        raise SettingsError(
            "show needs a place: PARTITION/OFFSET, as list prints it, or TOPIC/PARTITION/OFFSET of the source"
        )
    topic = DeadLetterTopic.find(settings)
    found = [refused for place in wanted for refused in topic.at(place)]
    if out is not None:
        if len(found) > 1:
            several = ", ".join(f"{refused.place.partition}/{refused.place.offset}" for refused in found)
            raise SettingsError(f"--out takes the value of one dead letter, and these are {several}: name one of them")
        _write(found[0], out)
    for number, refused in enumerate(found):
        # Its receipt, if there is one, lies behind it in its partition.
        here = TopicPartition(topic.topic.name, refused.place.partition)
        sent = refused.place in topic.receipts(starts={here: refused.place.offset})
        if number:
            print()
        for name, text in _about(topic, refused, sent=sent, payload=payload):
            print(f"{name:<13}{text}" if text else name)
    return 0


def _about(topic: DeadLetterTopic, refused: Refused, *, sent: bool, payload: bool) -> Iterable[tuple[str, str]]:
    record, place = refused.record, refused.place
    yield "dead letter", f"{topic.topic.name}/{place.partition}/{place.offset}{', replayed' if sent else ''}"
    yield "source", f"{safe(record.origin.topic)}/{record.origin.partition}/{record.origin.offset}"
    yield "time", f"{moment(record.timestamp_ms)}, the source record's"
    yield "stage", safe(refused.stage)
    yield "class", safe(refused.reason)
    yield "message", safe(refused.message)
    yield "attempts", str(refused.attempts)
    yield "replays", f"{refused.replays} before it was refused"
    yield "fingerprint", safe(refused.fingerprint)
    yield "headers", str(len(record.headers))
    for name, value in record.headers:
        yield "", f"{safe(name)}: {'null' if value is None else printable(value)}"
    yield "key", _size(record.key if record.key is None else len(record.key))
    if payload and record.key is not None:
        yield "", printable(record.key)
    yield "value", _size(record.value if record.value is None else len(record.value))
    if payload and record.value is not None:
        yield "", printable(record.value)


def _write(refused: Refused, out: Path) -> None:
    if refused.record.value is None:
        raise EnvironmentFault(f"--out {out}: the dead letter's value is null, there is nothing to write")
    try:
        out.write_bytes(refused.record.value)
    except OSError as error:
        raise EnvironmentFault(f"--out {out}: {error.strerror}") from None


def printable(data: bytes) -> str:
    r"""Bytes as text on one line: UTF-8 where it is, ``\xNN`` where it is not or would steer a terminal; a backslash is two."""
    return "".join(_escaped(character) for character in data.decode("utf-8", "surrogateescape"))


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if character.isprintable() and character != "\\":
        return character
    named = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character)
    return named or "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8"))


def safe(text: str) -> str:
    """A header's text, which anybody may have written, without what would steer a terminal."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def _size(count: int | None) -> str:
    return "null" if count is None else f"{count:,} B"


def moment(timestamp_ms: int) -> str:
    """Unix milliseconds as ISO 8601 in UTC; what no calendar has, as the number that it is."""
    try:
        found = datetime.datetime.fromtimestamp(timestamp_ms / 1000, datetime.UTC)
    except (ValueError, OverflowError, OSError):
        return f"{timestamp_ms} ms"
    return found.isoformat(timespec="milliseconds").replace("+00:00", "Z")
