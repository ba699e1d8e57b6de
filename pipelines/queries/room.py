"""How much memory all requests may take at a time, and who has how much of it. Pure; for one thread.

Comes in: what a request holds, in bytes, as it changes. Goes out: a refusal when there is no room. Never here: a wait.
"""

from __future__ import annotations

from types import TracebackType

from pipelines.queries.refusal import full


class Room:
    """So many bytes for all."""

    def __init__(self, most: int) -> None:
        """``most``: bytes. One request that wants more has them when it is alone."""
        self._most = most
        self.taken = 0

    def share(self) -> Share:
        """A request's part, given back at the end of a ``with``."""
        return Share(self)

    def move(self, before: int, now: int) -> None:
        """Let a share change its size."""
        others = self.taken - before
        if now > before and others > 0 and others + now > self._most:
            raise full()
        self.taken = others + now


class Share:
    """What one request holds."""

    def __init__(self, room: Room) -> None:
        """``room``: of all."""
        self._room = room
        self._bytes = 0

    def holds(self, size: int) -> None:
        """Hold so many bytes from now on.

        Raises:
            Refusal: there is no room; as many as before are held.
        """
        self._room.move(self._bytes, size)
        self._bytes = size

    def __enter__(self) -> Share:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.holds(0)
