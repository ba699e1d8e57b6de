"""Header names that are not UTF-8: read without an error, and written again byte for byte.

Comes in: batches that kafka-python parses. Goes out: their header names, as text. Never here: header values, or what a name
means.

Kafka's brokers never look at a header's name, so any producer may put any bytes there. kafka-python wants UTF-8, and drops
the whole batch where one name is not.
"""

from __future__ import annotations

from typing import Any, SupportsIndex, overload

from kafka.record.default_records import DefaultRecordBatch


class HeaderName(str):
    """A name whose bytes are not UTF-8: those stand as lone surrogates, and ``encode`` gives back what was read."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        """The bytes as they were read; the client encodes names strictly, and would refuse them."""
        return super().encode(encoding, "surrogateescape" if errors == "strict" else errors)


class _Lenient(bytearray):
    """A batch whose pieces decode whatever they hold. The client decodes nothing of a batch but header names."""

    @overload
    def __getitem__(self, at: SupportsIndex, /) -> int: ...
    @overload
    def __getitem__(self, at: slice, /) -> bytearray: ...
    def __getitem__(self, at: SupportsIndex | slice, /) -> int | bytearray:
        found = super().__getitem__(at)
        return _Lenient(found) if isinstance(found, bytearray) else found

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        try:
            return super().decode(encoding, errors)
        except UnicodeDecodeError:
            return HeaderName(super().decode(encoding, "surrogateescape"))


_strict = DefaultRecordBatch._read_msg


def _read_msg(batch: Any) -> Any:
    try:
        return _strict(batch)
    except UnicodeDecodeError:
        # The position moves only when a record is whole, so this one is read again, and those after it as leniently.
        batch._buffer = _Lenient(batch._buffer)
        return _strict(batch)


def keep_all_names() -> None:
    """Have every client of this process read and write all header names."""
    DefaultRecordBatch._read_msg = _read_msg
