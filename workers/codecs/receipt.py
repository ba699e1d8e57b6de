"""Which dead letters have been sent again: receipts, which lie in the dead letters' own topic and partition.

Comes in: offsets that were sent, or records of the dead-letter topic. Goes out: the receipts, or what they say. Never here:
the dead letters themselves.

A receipt is written in the transaction that sends its dead letters, so there is one if and only if they were sent. It comes
after them in their own partition, so Kafka, which deletes a partition from its beginning, never deletes it before them. A
consumer group's offsets would do neither job: they cannot skip some and keep the others, and Kafka forgets those of a group
without members after a week.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

from workers.records import Message, Origin, Record

HEADER = "embedding-replayed-letters"
# So many spans of offsets stay below 1 KB, which every topic takes.
SPANS = 32

type_span = tuple[int, int]


def render_receipts(topic: str, partition: int, offsets: Sequence[int], now_ms: int) -> Iterator[Message]:
    """What says that the dead letters at ``offsets``, in ascending order, have been sent.

    A receipt has a key of its own, so that it outlives compaction; its value lists offsets as ``12-40 43``.
    """
    spans = list(_joined((offset, offset) for offset in offsets))
    for start in range(0, len(spans), SPANS):
        part = spans[start : start + SPANS]
        count = sum(last - first + 1 for first, last in part)
        value = " ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in part)
        key = f"{HEADER} {partition}/{part[0][0]}"
        yield Message(topic, key.encode(), value.encode(), ((HEADER, str(count).encode()),), now_ms, partition)


def parse_receipt(record: Record) -> list[type_span] | None:
    """The spans of offsets, both ends included, that a receipt names; None: the record is no receipt."""
    # A copy of a receipt that became a dead letter has our other headers too.
    if [name for name, _ in record.headers] != [HEADER] or record.value is None:
        return None
    if re.fullmatch(rb"\d{1,19}(-\d{1,19})?( \d{1,19}(-\d{1,19})?)*", record.value) is None:
        return None
    ends = [span.split("-") for span in record.value.decode().split(" ")]
    return [(int(span[0]), int(span[-1])) for span in ends]


class Receipts:
    """All that receipts say of a topic: whether the dead letter at a place has been sent."""

    def __init__(self) -> None:
        self._spans: dict[int, list[type_span]] = {}
        self._unsorted: set[int] = set()

    def add(self, record: Record) -> bool:
        """Take in a record of the dead-letter topic, if it is a receipt; returns whether it is."""
        spans = parse_receipt(record)
        if spans is None:
            return False
        self._spans.setdefault(record.origin.partition, []).extend(spans)
        self._unsorted.add(record.origin.partition)
        return True

    def __contains__(self, place: Origin) -> bool:
        """Whether the dead letter at ``place`` has been sent."""
        if place.partition in self._unsorted:
            self._spans[place.partition] = list(_joined(sorted(self._spans[place.partition])))
            self._unsorted.remove(place.partition)
        spans = self._spans.get(place.partition, [])
        at = bisect_right(spans, place.offset, key=lambda span: span[0]) - 1
        return at >= 0 and place.offset <= spans[at][1]


def _joined(spans: Iterable[type_span]) -> Iterator[type_span]:
    """Spans in ascending order, those that touch made one."""
    waiting: type_span | None = None
    for first, last in spans:
        if waiting is not None and first <= waiting[1] + 1:
            waiting = (waiting[0], max(waiting[1], last))
            continue
        if waiting is not None:
            yield waiting
        waiting = (first, last)
    if waiting is not None:
        yield waiting
