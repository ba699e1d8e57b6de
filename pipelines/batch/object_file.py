"""A stored object as a file that can be read from anywhere in it.

Comes in: an object that was listed. Goes out: its bytes, if it is still the same. Never here: what they mean.
"""

from __future__ import annotations

import io
from typing import Any, BinaryIO, cast

from workers.object_store import ObjectStore, StoredObject

# What is read ahead where a file is read from its beginning on: a store's answer takes as long for a few bytes.
AHEAD_BYTES = 4 << 20


class ObjectFile(io.RawIOBase):
    """Reads by ranges; every method may raise EnvironmentFault: out of reach, or changed since it was listed."""

    def __init__(self, store: ObjectStore, stored: StoredObject) -> None:
        self._store = store
        self._stored = stored
        self._at = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._stored.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        """The byte that is read next."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, as far as the object reaches."""
        view = memoryview(buffer).cast("B")
        end = min(self._stored.size, self._at + len(view))
        if end <= self._at:
            return 0
        data = self._store.read(self._stored, self._at, end)
        view[: len(data)] = data
        self._at = end
        return len(data)


def buffered(file: ObjectFile, ahead: int = AHEAD_BYTES) -> BinaryIO:
    """The file for reading on and on, so many bytes ahead."""
    return cast("BinaryIO", io.BufferedReader(file, ahead))
