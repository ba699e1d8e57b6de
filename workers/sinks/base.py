"""What a sink is: messages go in, and are there for readers once the commit has happened.

Comes in: ready messages. Goes out: a promise, kept or broken by an exception. Never here: rendering, or the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from workers.records import Message, Position, TopicPartition


class Sink(Protocol):
    """Used by one thread. After any exception the next call must be :meth:`abandon`."""

    def open(self) -> None:
        """Connect, and settle what an earlier incarnation left open.

        Raises:
            RetryableError: not now.
            EnvironmentFault: not without somebody changing something.
        """

    def refuses(self, message: Message) -> str | None:
        """Why the destination would refuse this message for good: a reason from a bounded set, or None."""

    def takes_compressed(self, message: Message) -> bool:
        """Whether a message that is refused as too large is taken compressed, and :meth:`write` will do that."""

    def write(self, messages: Sequence[Message]) -> None:
        """Hand messages over, and return when every one is acknowledged.

        Raises:
            RetryableError: at least one is not; nothing of this write may become visible.
        """

    def commit(self, positions: Mapping[TopicPartition, Position], membership: object) -> None:
        """Make the written messages visible and move the group to ``positions``, together where the guarantee says so.

        Raises:
            CommitError: it failed, or nobody knows.
        """

    def abandon(self) -> None:
        """Throw away what is under way, whatever its state."""

    def close(self) -> None:
        """Release everything; never raises."""
