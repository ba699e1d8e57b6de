"""Looking at something that may never answer: one look at a time, on a thread of its own.

Comes in: a call that blocks. Goes out: its answer, or a sentence once patience is over. Never here: what is looked at.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from workers.errors import EnvironmentFault

type_answer = TypeVar("type_answer")


class Looks(Generic[type_answer]):
    """A look that is begun and not over is waited for again, so that those that hang do not pile up."""

    def __init__(self, look: Callable[[], type_answer], whom: str) -> None:
        """``whom``: who is to answer, in a sentence."""
        self._look = look
        self._whom = whom
        self._under_way: Future[type_answer] | None = None
        self._began = 0.0

    def begin(self) -> None:
        """Look, unless a look is under way."""
        if self._under_way is None:
            self._began = time.monotonic()
            self._under_way = future = Future[type_answer]()
            # A thread that Python does not wait for when it ends.
            threading.Thread(target=self._run, args=(future,), name="look", daemon=True).start()

    @property
    def under_way(self) -> bool:
        """Whether a look is not over."""
        return self._under_way is not None

    def within(self, seconds: float) -> type_answer:
        """The answer; the look is begun if there is none.

        Raises:
            EnvironmentFault: none came in so many seconds.
            Exception: whatever the look raised.
        """
        self.begin()
        future = self._under_way
        assert future is not None
        try:
            answer = future.result(max(0.0, seconds))
        except TimeoutError:
            if future.done():
                self._under_way = None
                raise
            asked_s = time.monotonic() - self._began
            raise EnvironmentFault(f"{self._whom} has not answered yet, after {asked_s:.0f} s") from None
        except BaseException:
            if future.done():
                self._under_way = None
            raise
        self._under_way = None
        return answer

    def _run(self, future: Future[type_answer]) -> None:
        try:
            future.set_result(self._look())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            future.set_exception(error)
