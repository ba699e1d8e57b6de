"""Whose turn it is at the device, which does one thing at a time: queries go first, and the stream is not forgotten.

Comes in: work of either kind. Goes out: futures of what it returns, computed in one thread. Never here: what the work is.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

# After so much of queries' work since the stream's next call came, that call has its turn: whoever asks without end slows
# the stream down, and does not stop it.
PATIENCE_S = 1.0

type_result = TypeVar("type_result")


class Turns:
    """Two lines before one thread, which ends with the process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock``: seconds, to measure what queries take."""
        self._clock = clock
        self._queries: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._stream: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._taken_s = 0.0  # by queries, since the first of the stream's line has stood there
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def submit(self, work: Callable[[], type_result], *, query: bool) -> Future[type_result]:
        """Have ``work`` done in its turn; a future that is cancelled before that is passed over."""
        future: Future[type_result] = Future()
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="forward", daemon=True)
                self._thread.start()
            if not query and not self._stream:
                self._taken_s = 0.0
            (self._queries if query else self._stream).append((future, work))
            self._changed.notify()
        return future

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._queries or self._stream):
                    self._changed.wait()
                query = bool(self._queries) and not (self._stream and self._taken_s >= PATIENCE_S)
                future, work = (self._queries if query else self._stream).popleft()
                if not query:
                    self._taken_s = 0.0
            if not future.set_running_or_notify_cancel():
                continue
            started = self._clock()
            found, failed = None, None
            try:
                found = work()
            except BaseException as error:  # noqa: BLE001 - the caller's, whatever it is
                failed = error
            if query:
                with self._changed:
                    self._taken_s += self._clock() - started
            if failed is None:
                future.set_result(found)
            else:
                future.set_exception(failed)
            # While the next one is awaited, nothing of this one is held: it is the caller's alone.
            del future, work, found, failed
