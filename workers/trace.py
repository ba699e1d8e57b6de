"""What the rooms say of a batch of records on its way from the source to its commit; here nobody listens.

Comes in: moments, batch by batch. Goes out: nothing; ``workers.otel`` makes spans of them, where ``telemetry.traces`` is on. Never
here: a text, a key, a wait, or an error: whoever tells something goes on as if nobody had heard it.

A batch is what is decoded and tokenised together: some hundred records of one partition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar

from workers.records import Batch, Origin, Record, TopicPartition

type_result = TypeVar("type_result")
type_ready = Callable[[int], None]


class Waiting(Protocol):
    """A text that waits for its vector."""

    @property
    def origin(self) -> Origin:
        """Where its record came from."""


class Complete(Protocol):
    """The records of a partition that are about to be committed."""

    @property
    def topic_partition(self) -> TopicPartition:
        """The partition."""

    @property
    def epoch(self) -> int:
        """Its assignment."""

    @property
    def next_offset(self) -> int:
        """All those of the assignment below this offset."""


class Commit:
    """One attempt to commit. A context manager: what leaves it as an exception is how the attempt failed."""

    def __enter__(self) -> Commit:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        pass

    def begin(self, complete: Iterable[Complete]) -> None:
        """These are what is committed."""

    def step(self, name: str, records: int | None = None) -> None:
        """The step before has ended, and this one begins; ``records``: how many it writes."""

    def done(self) -> None:
        """The last step has ended, and the attempt has succeeded."""


def _nobody(_: int) -> None:
    pass


_COMMIT = Commit()
_PREPARING: AbstractContextManager[type_ready] = nullcontext(_nobody)
_PUTTING: AbstractContextManager[None] = nullcontext()


class Trace:
    """Who is told, by a reader and its parts, from any thread. All methods are quick, and none raises."""

    def received(self, batches: Iterable[Sequence[Record]]) -> None:
        """The source has handed these over."""

    def preparing(self, batch: Sequence[Record]) -> AbstractContextManager[type_ready]:
        """A batch is decoded and tokenised inside; say how many texts of it wait for an encoder then."""
        return _PREPARING

    def sent(self, rows: Sequence[Sequence[Waiting]], call: Batch) -> Batch:
        """A call with these texts goes to an encoder; what is to be sent."""
        return call

    def retried(self, call: Batch, cause: str) -> None:
        """A call has failed, and is sent again."""

    def answered(self, call: Batch, error: BaseException | None) -> None:
        """A call that was sent is over."""

    def commit(self) -> Commit:
        """A commit may begin."""
        return _COMMIT

    def committed(self, partition: TopicPartition, epoch: int, below: int) -> None:
        """An assignment's records below this offset are committed."""

    def putting(self, output: str, partition: TopicPartition, start: int, below: int) -> AbstractContextManager[None]:
        """A file of a partition's records from ``start`` on, and below another offset, is put inside."""
        return _PUTTING

    def given_up(self, partitions: Iterable[TopicPartition], why: str) -> None:
        """What is held of these partitions' records will have no outcome here."""

    def parent(self, origin: Origin) -> bytes | None:
        """What a record's output says in its header ``traceparent``."""
        return None

    def close(self) -> None:
        """Nothing more comes; takes two seconds at most."""


class ReplicaTrace:
    """Who is told by an encoder replica."""

    def timed(self, call: Batch, work: Callable[[], type_result]) -> Callable[[], type_result]:
        """A call waits for its turn from now on; what to do when it is there."""
        return work

    def close(self) -> None:
        """Nothing more comes; takes two seconds at most."""


UNTRACED = Trace()
