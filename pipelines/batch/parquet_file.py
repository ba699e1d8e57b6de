"""Parquet files: which rows lie in which group, and the rows of some groups.

Comes in: an open file, and the columns that are needed. Goes out: groups, or a row for each of theirs, in plain Python values.
Never here: columns that nobody needs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.batch.object_file import AHEAD_BYTES
from pipelines.batch.rows import FileRow, Read, row
from workers.errors import EnvironmentFault, PoisonError

_BATCH_ROWS = 1024


class Group(NamedTuple):
    """A row group: its first row in the file, its rows, and the bytes of the columns that are needed."""

    start: int
    rows: int
    bytes: int


def open_parquet(stream: BinaryIO) -> Any:
    """The file, opened.

    Raises:
        EnvironmentFault: it is no Parquet file, or is broken.
    """
    try:
        # A group's columns are read as they are needed: whole, they may be gigabytes.
        return pq.ParquetFile(pa.PythonFile(stream, mode="r"), pre_buffer=False, buffer_size=AHEAD_BYTES)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise EnvironmentFault("it is no Parquet file, or a broken one") from error


def columns_of(parquet: Any) -> list[str]:
    """The names of the file's columns."""
    return list(parquet.schema_arrow.names)


def groups(parquet: Any, columns: Sequence[str]) -> list[Group]:
    """The file's row groups, in order."""
    metadata, found, start = parquet.metadata, [], 0
    wanted = set(columns)
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = (group.column(place) for place in range(group.num_columns))
        size = sum(chunk.total_compressed_size for chunk in chunks if chunk.path_in_schema.partition(".")[0] in wanted)
        found.append(Group(start, group.num_rows, size))
        start += group.num_rows
    return found


def parquet_rows(
    parquet: Any,
    file: str,
    numbers: Sequence[int],
    start: int,
    columns: Sequence[str],
    done: Callable[[int], float],
) -> Iterator[Read]:
    """The rows of the groups ``numbers``, the first of which is the file's row ``start``; ``done``: the share up to a row.

    Raises:
        EnvironmentFault: a group is broken.
    """
    offset = start
    for batch in _batches(parquet, numbers, columns):
        for found in _rows(batch, file, offset):
            yield Read(found, done(found.origin.offset + 1))
        offset += batch.num_rows


def parquet_spans(
    parquet: Any, file: str, columns: Sequence[str], spans: Sequence[tuple[int, int]]
) -> list[list[FileRow]]:
    """The rows of each of these spans of the file's rows (begin and end), which do not overlap.

    A group is read once at most, and no further than to the last row that is asked for: nothing leads to a row but those before.

    Raises:
        EnvironmentFault: a group is broken.
    """
    found: list[list[FileRow]] = [[] for _ in spans]
    for number, group in enumerate(groups(parquet, ())):
        within = [
            place
            for place, (start, stop) in enumerate(spans)
            if start < group.start + group.rows and stop > group.start
        ]
        if not within:
            continue
        offset, last = group.start, max(spans[place][1] for place in within)
        with contextlib.closing(_batches(parquet, [number], columns)) as batches:
            for batch in batches:
                end = offset + batch.num_rows
                for place in within:
                    first, stop = max(spans[place][0], offset), min(spans[place][1], end)
                    if first < stop:
                        found[place] += _rows(batch.slice(first - offset, stop - first), file, first)
                offset = end
                if offset >= last:
                    break
    return found


def _batches(parquet: Any, numbers: Sequence[int], columns: Sequence[str]) -> Generator[Any, None, None]:
    names = set(columns)
    wanted = [name for name in columns_of(parquet) if name in names]
    try:
        yield from parquet.iter_batches(_BATCH_ROWS, row_groups=list(numbers), columns=wanted, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise EnvironmentFault("a group of its rows cannot be read: the file is broken") from error


def _rows(batch: Any, file: str, offset: int) -> Iterator[FileRow]:
    """The rows of a batch, the first of which is the file's row ``offset``."""
    for number, fields in enumerate(plain_rows(batch), offset):
        refused = fields if isinstance(fields, PoisonError) else None
        values = None if isinstance(fields, PoisonError) else fields
        held = 0 if values is None else sum(map(_size, values.values()))
        yield row(file, number, None, fields=values, refused=refused, held=held)


def plain_rows(batch: Any) -> Iterator[Mapping[str, object] | PoisonError]:
    """The rows of a batch or table as Python has them; where that fails for all together, one by one."""
    names = batch.schema.names
    if not names:
        yield from [{}] * batch.num_rows
        return
    plain = [_plain(column) for column in batch.columns]
    try:
        yield from [
            dict(zip(names, values, strict=True)) for values in zip(*(c.to_pylist() for c in plain), strict=True)
        ]
        return
    except (pa.ArrowException, ValueError, OverflowError):
        pass
    for number in range(batch.num_rows):
        try:
            yield {name: column[number].as_py() for name, column in zip(names, plain, strict=True)}
        except (pa.ArrowException, ValueError, OverflowError):
            yield PoisonError(
                "decode", "invalid_value", "a column holds bytes that are no UTF-8, or a time out of range"
            )


def _plain(column: Any) -> Any:
    """Python's times have microseconds; what a time has below those is dropped."""
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        return column.cast(pa.timestamp("us", column.type.tz), safe=False)
    return column


def _size(value: object) -> int:
    """About the bytes of a value."""
    match value:
        case str() | bytes():
            return len(value)
        case list():
            return sum(map(_size, value))
        case Mapping():
            return sum(map(_size, value.values()))
        case _:
            return 8
