"""What an output says of its vectors, read from files or from a topic.

Comes in: a place. Goes out: marks, in the order in which they were written. Never here: a vector, or what follows from marks.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.cutover.documents import Held, Mark, Version
from pipelines.search.places import Files, TopicRecords
from workers.codecs.stored import StoredReader
from workers.errors import EnvironmentFault
from workers.records import Record
from workers.settings import Settings

_NEEDED = ("id", "deleted", "fingerprint")
_WANTED = (*_NEEDED, "key", "topic", "partition", "offset", "timestamp", "chunk_index", "chunk_count")


def held(settings: Settings, place: Files | TopicRecords) -> Held:
    """All that lies at a place.

    Raises:
        EnvironmentFault: it cannot be read, a file is not one of ours, or there is too much.
        RetryableError: the broker or the schema registry does not answer now.
    """
    found = Held(by_offset=isinstance(place, Files))
    for marks in _of_files(place) if isinstance(place, Files) else _of_topic(settings, place):
        found.add(marks)
    return found


def _of_files(place: Files) -> Iterator[list[Mark]]:
    from workers.codecs.parquet_rows import column_names, plain_rows  # noqa: PLC0415 - heavy

    for name, content in place.contents():
        try:
            there = column_names(content)
            if absent := [column for column in _NEEDED if column not in there]:
                raise ValueError(f"it has no column {absent[0]}, as our outputs have")
            rows = plain_rows(content, [column for column in _WANTED if column in there])
            found = [_of_row(row) for row in rows if row is not None]
        except ValueError as error:
            raise EnvironmentFault(f"{place.name}: {name} cannot be compared: {error}") from None
        yield found


def _of_row(row: Mapping[str, Any]) -> Mark:
    name, key, stamp = str(row["id"]), row.get("key"), row.get("timestamp")
    offset = row.get("offset")
    version = Version(
        row.get("topic") or "",
        row.get("partition") or 0,
        -1 if offset is None else offset,
        int(stamp.timestamp() * 1000) if isinstance(stamp, datetime.datetime) else -1,
    )
    index, count = row.get("chunk_index"), row.get("chunk_count")
    chunk = None if index is None or count is None else (index, count)
    fingerprint = None if row["deleted"] else row["fingerprint"] or ""
    return _mark(key if isinstance(key, bytes) else name, name, fingerprint, version, chunk)


def _of_topic(settings: Settings, place: TopicRecords) -> Iterator[list[Mark]]:
    reader = StoredReader(settings)
    for records in place.records():
        appended = place.log_append_time
        yield [mark for record in records if (mark := _of_record(reader, record, appended=appended)) is not None]


def _of_record(reader: StoredReader, record: Record, *, appended: bool) -> Mark | None:
    stored = reader.read(record)
    if not stored:
        return None
    first = stored[0]
    topic, _, rest = (dict(record.headers).get("embedding-source") or b"").decode("utf-8", "replace").partition("/")
    partition, _, offset = rest.partition("/")
    known = partition.isdecimal() and offset.isdecimal()
    where = (topic, int(partition), int(offset)) if known else ("", 0, -1)
    version = Version(*where, record.timestamp_ms, appended)
    fingerprint = None if first.space is None else first.space.fingerprint
    # Chunks that come together are there together, under one key.
    chunk = first.chunk if len(stored) == 1 or first.chunk is None else (first.chunk[0], 1)
    return _mark(first.key, first.id, fingerprint, version, chunk)


def _mark(
    key: bytes | str, name: str, fingerprint: str | None, version: Version, chunk: tuple[int, int] | None
) -> Mark:
    if chunk is None:
        return Mark(key, name, fingerprint, version)
    index, count = chunk
    return Mark(key, name.removesuffix(f"#{index}"), fingerprint, version, count, index)
