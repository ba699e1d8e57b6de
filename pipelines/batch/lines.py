"""Files of lines: JSON objects, or texts.

Comes in: an open file, and which bytes of it. Goes out: a row for each line that starts there. Never here: a line's JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO

from pipelines.batch.rows import Read, row
from workers.codecs.base import utf8
from workers.errors import PoisonError

# A longer line is refused, and not held; no model reads a hundredth of it.
MOST_LINE = 64 << 20

_BOM = b"\xef\xbb\xbf"


def lines(stream: BinaryIO, start: int, stop: int | None) -> Iterator[tuple[int, bytes | None]]:
    """The lines that start in the bytes ``start`` to ``stop`` (None: to the end), without their ends, each with its offset.

    White space alone is no line. None stands for a line that is longer than :data:`MOST_LINE`.
    """
    at = start
    if start > 0:
        # A line that started before belongs to the bytes before; where one starts exactly here, this reads its end.
        stream.seek(start - 1)
        at = start - 1 + sum(map(len, _line(stream)))
    while stop is None or at < stop:
        found = _line(stream)
        first = next(found, b"")
        size = len(first) + sum(map(len, found))
        if size == 0:
            return
        line = None if size > MOST_LINE else first.rstrip(b"\r\n")
        if line is not None and at == 0:
            line = line.removeprefix(_BOM)
        if line is None or line.strip():
            yield at, line
        at += size


def _line(stream: BinaryIO) -> Iterator[bytes]:
    """The next line, in pieces of at most :data:`MOST_LINE` and a bit."""
    while piece := stream.readline(MOST_LINE + 2):
        yield piece
        if piece.endswith(b"\n"):
            return


def json_rows(
    stream: BinaryIO, file: str, start: int, stop: int | None, done: Callable[[int], float]
) -> Iterator[Read]:
    """A row for each line, to be read as JSON; ``done``: the piece's share that is read up to an offset."""
    for offset, line in lines(stream, start, stop):
        refused = None if line is not None else _too_long()
        yield Read(row(file, offset, line, refused=refused), done(offset + len(line or b"")))


def text_rows(
    stream: BinaryIO, file: str, start: int, stop: int | None, done: Callable[[int], float]
) -> Iterator[Read]:
    """A row for each line, its field ``text`` the line."""
    for offset, line in lines(stream, start, stop):
        fields, refused = None, None
        try:
            fields = {"text": utf8(line)} if line is not None else None
            refused = _too_long() if line is None else None
        except PoisonError as error:
            refused = error
        yield Read(row(file, offset, line, fields=fields, refused=refused), done(offset + len(line or b"")))


def _too_long() -> PoisonError:
    return PoisonError("decode", "too_large", f"the line has more than {MOST_LINE >> 20} MiB")
