"""The calls that one sender has under way, by whom they went to. Pure, but for the clock.

Comes in: calls that will go, went and ended. Goes out: members, the shortest line first. Never here: what a member is.

Senders do not know of each other: each has an order of its own among lines of equal length, which begins at another place, so
that their calls fall side by side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Generic, TypeVar

# A call that is to go to somebody and has not gone after so long was given up.
TAKEN_S = 1.0
# Multiples of it, modulo 1, are spread evenly, however many there are (Weyl's sequence of the golden ratio).
GOLDEN = (5**0.5 - 1) / 2

type_member = TypeVar("type_member", bound=Hashable)


class Lines(Generic[type_member]):
    """The calls of one sender that are under way, by member. Pure, but for the clock."""

    def __init__(self, start: float, clock: Callable[[], float] = time.monotonic) -> None:
        """``start``: at which share of the members, from 0 to 1, this sender prefers to begin."""
        self._start = start % 1
        self._clock = clock
        self._order: list[type_member] = []
        self._calls: dict[type_member, int] = {}
        self._taken: dict[Hashable, tuple[type_member, float]] = {}

    def renew(self, members: Iterable[type_member]) -> None:
        """These are there now; who stays keeps its line."""
        ordered = sorted(members, key=str)
        first = int(self._start * len(ordered))
        self._order = ordered[first:] + ordered[:first]
        self._calls = {member: self._calls.get(member, 0) for member in self._order}

    def by_length(self, most: int) -> Iterator[type_member]:
        """Members whose line is shorter than ``most``, the shortest first, equal ones in this sender's order."""
        if not self._order:
            return
        shortest = min(self._order, key=self._calls.__getitem__)  # nearly always the answer
        if self._calls[shortest] >= most:
            return
        yield shortest
        levels: list[list[type_member]] = [[] for _ in range(most)]
        for member in self._order:
            if member != shortest and self._calls[member] < most:
                levels[self._calls[member]].append(member)
        for level in levels:
            yield from level

    def take(self, call: Hashable, member: type_member) -> None:
        """``call`` will be sent to ``member``, and counts from now on."""
        self.give_back(call)
        now = self._clock()
        for late in [other for other, (_, since) in self._taken.items() if since < now - TAKEN_S]:
            self.give_back(late)
        self._taken[call] = (member, now)
        self._count(member, 1)

    def give_back(self, call: Hashable) -> None:
        """``call`` is not sent to whom it was to be sent, if it was."""
        if call in self._taken:
            member, _ = self._taken.pop(call)
            self._count(member, -1)

    def sent(self, call: Hashable, member: type_member) -> None:
        """``call`` is sent to ``member``, whoever was to have it."""
        self.give_back(call)
        self._count(member, 1)

    def ended(self, member: type_member) -> None:
        """A call that was sent there is answered, or failed."""
        self._count(member, -1)

    def length(self, member: type_member) -> int:
        """How many calls are under way there, or will be at once."""
        return self._calls.get(member, 0)

    def _count(self, member: type_member, change: int) -> None:
        if member in self._calls:
            self._calls[member] = max(0, self._calls[member] + change)
