"""The calls that one sender has under way, by whom they went to. Pure, but for the clock.

Comes in: calls that will go, went, ended and failed. Goes out: the member with the shortest line. Never here: what a member is.

Senders do not know of each other: each has an order of its own among lines of equal length, which begins at another place, so
that their calls fall side by side.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

# A call that is to go to somebody and has not gone after so long was given up.
TAKEN_S = 1.0
# Who failed is the last choice for so long: somebody who fails at once has the shortest line.
DISTRUST_S = 10.0
# Multiples of it, modulo 1, are spread evenly, however many there are (Weyl's sequence of the golden ratio).
GOLDEN = (5**0.5 - 1) / 2

type_member = TypeVar("type_member", bound=Hashable)


class Lines(Generic[type_member]):
    """For one sender, on one thread."""

    def __init__(self, start: float, clock: Callable[[], float] = time.monotonic) -> None:
        """``start``: at which share of the members, from 0 to 1, this sender prefers to begin."""
        self._start = start % 1
        self._clock = clock
        self._order: list[type_member] = []
        self._calls: dict[type_member, int] = {}
        self._taken: deque[tuple[type_member, float]] = deque()
        self._distrusted: dict[type_member, float] = {}

    def renew(self, members: Iterable[type_member]) -> None:
        """These are there now; a line stays as long as there are calls in it, also of who is gone and may come back."""
        ordered = sorted(members, key=str)
        first = int(self._start * len(ordered))
        self._order = ordered[first:] + ordered[:first]
        waiting = {member: calls for member, calls in self._calls.items() if calls}
        self._calls = {member: 0 for member in self._order} | waiting

    def shortest(self, most: int | None) -> type_member | None:
        """Whose line is the shortest, of those who have not failed lately if there are any; None where all have ``most`` calls.

        Without ``most`` there is no limit. Of those who have failed, whose last failure is the longest ago comes first.
        """
        self._expire()
        if not self._order:
            return None
        if not self._distrusted:
            member = min(self._order, key=self._calls.__getitem__)
        else:
            trusted = [
                member for member in self._order if self._has_room(member, most) and member not in self._distrusted
            ]
            member = min(trusted or self._order, key=lambda each: (self._calls[each], self._distrusted.get(each, 0.0)))
        return member if self._has_room(member, most) else None

    def take(self, member: type_member) -> None:
        """A call will be sent to ``member``, and counts from now on."""
        self._taken.append((member, self._clock()))
        self._count(member, 1)

    def sent(self, member: type_member) -> None:
        """A call is sent to ``member``: the first of those that were to be, if there is one."""
        for place, (taken, _) in enumerate(self._taken):
            if taken == member:
                del self._taken[place]
                return
        self._count(member, 1)

    def ended(self, member: type_member) -> None:
        """A call that was sent there is answered, or failed."""
        self._count(member, -1)

    def failed(self, member: type_member) -> None:
        """``member`` failed at a call, or cannot be reached."""
        self._distrusted[member] = self._clock() + DISTRUST_S

    def length(self, member: type_member) -> int:
        """How many calls are under way there, or will be at once."""
        return self._calls.get(member, 0)

    def _has_room(self, member: type_member, most: int | None) -> bool:
        return most is None or self._calls[member] < most

    def _expire(self) -> None:
        now = self._clock()
        while self._taken and self._taken[0][1] < now - TAKEN_S:
            self._count(self._taken.popleft()[0], -1)
        for member in [member for member, until in self._distrusted.items() if until <= now]:
            del self._distrusted[member]

    def _count(self, member: type_member, change: int) -> None:
        self._calls[member] = max(0, self._calls.get(member, 0) + change)
