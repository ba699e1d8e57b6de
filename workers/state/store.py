"""The entries of one partition, on this machine's disk.

Comes in: keys and values of the state topic. Goes out: the value of a key. Never here: what they mean, or anything that has to
outlive the process: the file has no name from the moment it is open, so nobody has to clean up.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lmdb

from workers.errors import EnvironmentFault

# Address space that is reserved, not memory: the file grows as it fills, and what does not fit into memory stays on disk.
MOST_BYTES = 64 << 30
# LMDB knows a file by its inode, which the next file may get before the last one is forgotten.
# Reentrant: a store that nobody has closed is closed by the collector, which may come while another one opens.
_OPENING = threading.RLock()


class Store:
    """A map from bytes to bytes. One thread at a time."""

    def __init__(self, folder: Path | None = None) -> None:
        """``folder``: where the file goes; None: where temporary files go.

        Raises:
            EnvironmentFault: there can be none.
        """
        try:
            with _OPENING:
                handle, path = tempfile.mkstemp(prefix="stream-embedder-state-", dir=folder)
                os.close(handle)
                try:
                    # What a crash leaves of it is worth nothing, so nothing waits for the disk.
                    self._env: Any = lmdb.open(
                        path, subdir=False, lock=False, sync=False, metasync=False, map_size=MOST_BYTES, readahead=False
                    )
                finally:
                    os.unlink(path)
        except (OSError, lmdb.Error) as error:
            raise EnvironmentFault(
                f"no file for the state in {folder or tempfile.gettempdir()}: {error}; TMPDIR says where temporary files go"
            ) from error

    def get(self, keys: Iterable[bytes]) -> list[bytes | None]:
        """The value of each key, None where there is none."""
        with self._env.begin() as txn:
            return [txn.get(key) for key in keys]

    def put(self, items: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Set values; None removes the key.

        Raises:
            EnvironmentFault: the disk is full.
        """
        try:
            with self._env.begin(write=True) as txn:
                for key, value in items:
                    if value is None:
                        txn.delete(key)
                    else:
                        txn.put(key, value)
        except (OSError, lmdb.Error) as error:
            raise EnvironmentFault(f"the state cannot be kept in {tempfile.gettempdir()}: {error}") from error

    def __len__(self) -> int:
        return int(self._env.stat()["entries"])

    def __del__(self) -> None:
        if hasattr(self, "_env"):
            self.close()

    @property
    def bytes(self) -> int:
        """What it takes on disk."""
        return int((self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"])

    def close(self) -> None:
        """Give the disk back."""
        with _OPENING:
            self._env.close()
