"""What a source is: something that owns partitions, hands their records over in order, and can say how far it got.

Comes in: nothing but settings. Goes out: records and assignments, to a listener. Never here: I/O, or a particular broker.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from workers.records import Position, Record, TopicPartition


class SourceListener(Protocol):
    """Who takes what the source reads. All calls but :meth:`parting` are quick and never block on I/O."""

    def assigned(self, partition: TopicPartition, epoch: int, position: Position) -> None:
        """A partition is ours from ``position`` on; its records will carry ``epoch``."""

    def place(self, partition: TopicPartition, epoch: int, position: Position) -> Position | None:
        """Where to start a partition of which ``position`` is committed; None: not known yet, ask again soon."""

    def skipped(self, partition: TopicPartition, offset: int) -> None:
        """A partition goes on at ``offset``: what was not read before it is gone from the source. The assignment goes on."""

    def parting(self, partitions: Iterable[TopicPartition]) -> None:
        """Partitions will be revoked next: what is nearly done may be finished, in a few seconds at most."""

    def revoked(self, partitions: Iterable[TopicPartition], *, lost: bool) -> None:
        """Partitions are ours no longer: what is in flight for them must not be written. Called on any thread."""

    def received(self, records: Sequence[Record]) -> None:
        """Records of one partition, in order."""

    def reached(self, partition: TopicPartition, epoch: int, offset: int) -> None:
        """There is no record of a partition below ``offset`` but those that were received: what is left holds none."""

    def room(self) -> int:
        """How many records may be read now; 0: reading should pause."""


class Source(Protocol):
    """A consumer-group member. ``run`` belongs to one thread; the other methods may be called from any.

    ``last_poll`` is when the source last showed life, in monotonic seconds.
    """

    last_poll: float

    def run(self, listener: SourceListener) -> None:
        """Read until :meth:`stop`, then leave the group; raises what the source cannot recover from."""

    def quiesce(self) -> None:
        """Read no more, but stay in the group."""

    def stop(self) -> None:
        """End :meth:`run`."""

    def membership(self, timeout_s: float) -> object:
        """What a sink must present to commit for this member.

        Raises:
            CommitError: there is no stable membership within ``timeout_s``.
        """

    def committed(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, Position]:
        """What the group has committed, without those partitions that have nothing.

        Raises:
            RetryableError: the coordinator did not answer in time.
        """

    def begin_anew(self, partitions: Iterable[TopicPartition]) -> None:
        """End the assignments of partitions for which somebody else commits; those that are ours still begin anew."""

    def commit(self, positions: Mapping[TopicPartition, Position]) -> None:
        """Commit outside a transaction, soon (at-least-once delivery).

        Raises:
            CommitError: an earlier commit was refused.
        """
