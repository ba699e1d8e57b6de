"""CSV files, with a header line: RFC 4180, in UTF-8, fields in double quotes where they hold line ends.

Comes in: an open file. Goes out: a row for each of its own, fields by the header's names; an empty one is null. Never here: a
guess at types: fields are text.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from typing import BinaryIO

from pipelines.batch.lines import MOST_LINE
from pipelines.batch.rows import Read, row
from workers.codecs.base import utf8
from workers.errors import EnvironmentFault, PoisonError

_BOM = b"\xef\xbb\xbf"


class _Lines:
    """The file's lines as text, with the bytes of those that the row at hand took."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.at = 0
        self.taken: list[bytes] = []

    def __iter__(self) -> Iterator[str]:
        while line := self._stream.readline(MOST_LINE):
            self.taken.append(line)
            # What is not UTF-8 is refused row by row.
            yield (line.removeprefix(_BOM) if self.at == 0 else line).decode("utf-8", "surrogateescape")

    def row(self) -> tuple[int, bytes]:
        """Where the row that was just read starts, and its bytes."""
        start, value = self.at, b"".join(self.taken)
        self.at += len(value)
        self.taken = []
        return start, value


def header(stream: BinaryIO, delimiter: str) -> list[str]:
    """The names of the columns, in the file's first row; none in an empty file.

    Raises:
        EnvironmentFault: there is no such row.
    """
    return _header(_reader(_Lines(stream), delimiter))


def csv_rows(stream: BinaryIO, file: str, delimiter: str, done: Callable[[int], float]) -> Iterator[Read]:
    """A row for each after the header; ``done``: the share of the file that is read up to an offset."""
    text = _Lines(stream)
    reader = _reader(text, delimiter)
    names = _header(reader)
    text.row()
    while True:
        fields, refused = None, None
        try:
            values = next(reader, None)
            if values is None:
                return
            if len(values) != len(names):
                what = f"the row has {len(values)} columns, and the header {len(names)}"
                refused = PoisonError("decode", "wrong_columns", what)
        except csv.Error:
            values = [""]
            refused = PoisonError("decode", "invalid_csv", "the row is not CSV: its quotes do not match")
        offset, value = text.row()
        if not values:  # an empty line
            continue
        try:
            utf8(value)
        except PoisonError as error:
            refused = error
        if refused is None:
            fields = {name: found or None for name, found in zip(names, values, strict=True)}
        yield Read(row(file, offset, value, fields=fields, refused=refused), done(text.at))


def _reader(text: _Lines, delimiter: str) -> Iterator[list[str]]:
    csv.field_size_limit(MOST_LINE)
    return csv.reader(iter(text), delimiter=delimiter, strict=True)


def _header(reader: Iterator[list[str]]) -> list[str]:
    try:
        names = next(reader, [])
        "".join(names).encode()
    except (csv.Error, UnicodeEncodeError):
        raise EnvironmentFault("its first line is no CSV in UTF-8 with the columns' names") from None
    return names
