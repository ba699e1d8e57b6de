"""A pipeline's world in plain memory for models of the checkpoint: a broker, a store, readers with real parts.

Comes in: what happens, moment by moment. Goes out: what a ``read_committed`` reader and a glob over the files see. Never here:
what should happen; the tests say that.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tests.fakes import TOPIC, FakeRenderer
from workers import metrics
from workers.checkpoint import Checkpoint
from workers.encoder.quantize import Projection
from workers.errors import CommitError, PoisonError, RetryableError
from workers.intake import Intake
from workers.object_store import Location
from workers.outlets import DeadLetterOutlet, FileOutlet, Outlet
from workers.placing import _Asked
from workers.records import (
    DeadLetter,
    Document,
    Embedding,
    Message,
    Origin,
    Outcome,
    Position,
    Record,
    Tombstone,
    TopicPartition,
    Unchanged,
)
from workers.settings import LimitSettings, Rotation
from workers.sinks.chain import Chain
from workers.sinks.files import FileOutput
from workers.state import Digests, Known
from workers.state.entry import KEY_BYTES

PARTITIONS = [TopicPartition(TOPIC, n) for n in range(3)]
# What becomes of a record. ``large``: for one topic of two. ``rowless``: the files' format cannot write it.
KINDS = ("text", "text", "gone", "refused", "keyless", "large", "rowless")
OUT, WIDE, DEAD, LAKE, STATE = "vectors", "wide", "documents.dead", "lake", "documents.state"
TOPICS = (OUT, WIDE, DEAD)
WIDE_MOST, DEAD_MOST = 400, 100
UNIT = np.array([1.0, 0.0], np.float32)
# What happens to a transaction. ``late``: all of it is on its way when the client gives up, and arrives or not when the
# client goes; ``pending``: the offsets have arrived, and the client's successor decides.
FATES = ("ok", "ok", "ok", "ok", "ok", "refused", "unheard", "late", "lost", "pending", "aborted")

# Where something else may happen: in a commit, and in what comes after one that failed.
IN_COMMIT = ("write", "written", "membership", "commit", "arrived", "committed")
IN_RECOVERY = ("abandon", "opened", "asked", "answered")
HAPPENINGS = (
    *("works", "puts", "other works", "moves", "moves and comes back"),
    *("is kicked", "is kicked and hears", "dies"),
)
RECORDS = 16

type_seen = tuple[int, str]
type_happening = tuple[str, TopicPartition, list[int] | None]


def outcome_of(kind: str, origin: Origin) -> Outcome:
    match kind:
        case "gone":
            return Tombstone()
        case "refused" | "keyless":
            return DeadLetter("decode", "invalid", "no")
    return Embedding(document_of(kind, f"{origin.partition}-{origin.offset}"), UNIT, 1, False)


def document_of(kind: str, text: str) -> Document:
    return Document(f"{kind}-{text}".ljust(WIDE_MOST if kind == "large" else 1, "x"), text)


def expected(kind: str, output: str, *, deletes: bool) -> str | None:
    """What an output must hold of a record."""
    match kind:
        case "text":
            return None if output == DEAD else "vector"
        case "gone":
            return None if output == DEAD else "deletion"
    if output == DEAD:
        return "letter"
    return "deletion" if deletes and kind != "keyless" else None


class Dies(BaseException):
    """The process ends here."""


class Rows:
    """A format of files: rows are lists of offset and what it is."""

    class Batch(list[Any]):
        @property
        def num_rows(self) -> int:
            return len(self)

        nbytes = num_rows

    def row(self, held: Record, embedding: Embedding, _vector: object, _scale: object) -> type_seen:
        if embedding.document.id.startswith("rowless"):
            raise PoisonError("output", "unrenderable", "no")
        return held.origin.offset, "vector"

    def deletion(self, held: Record) -> type_seen:
        return held.origin.offset, "deletion"

    def batch(self, rows: Sequence[Any]) -> Batch:
        return self.Batch(rows)

    def after(self, batch: Batch, offset: int) -> Batch:
        return self.Batch(row for row in batch if row[0] >= offset)

    def file(self, batches: Sequence[Batch], notes: Mapping[str, str]) -> bytes:
        return json.dumps({"rows": [row for batch in batches for row in batch], "notes": notes}).encode()


class Store(dict[str, bytes]):
    """An object store."""

    def put_if_absent(self, path: str, content: bytes) -> bool:
        return self.setdefault(path, content) is content

    def names(self, folder: str, start: str) -> list[str]:
        found = sorted(path.removeprefix(f"{folder}/") for path in self if path.startswith(f"{folder}/"))
        return [name for name in found if name >= start]

    def tail(self, path: str, _most: int) -> bytes:
        return self[path]


class MemoryChain(Chain):
    """A real chain over it."""

    def __init__(self, store: Store) -> None:
        location = Location.parse("file:///nowhere")
        super().__init__(location, lambda b: json.loads(b)["notes"], lambda _: "id", group="g", fingerprint="f")
        self._store = store
        self._any = True

    def _ask(self, what: Callable[[Any], Any]) -> Any:
        return what(self._store)


class Broker:
    """Topics, and a group with one generation at a time. ``owner`` is who the group says reads a partition."""

    def __init__(self) -> None:
        self.generation = 0
        self.members: set[Reader] = set()
        self.owner: dict[TopicPartition, Reader] = {}
        self.positions: dict[TopicPartition, Position] = {}
        self.pending: dict[str, tuple[list[Message], Mapping[TopicPartition, Position], bool]] = {}
        self.topics: dict[str, list[Message]] = defaultdict(list)

    def rebalance(self) -> None:
        self.generation += 1
        for member in self.members:
            member.generation = self.generation

    def accept(self, reader: Reader, positions: Mapping[TopicPartition, Position], membership: object) -> None:
        """Take the offsets of a transaction; what is accepted may still come to nothing."""
        if membership != self.generation:
            raise CommitError("fenced: the group has gone on")
        for partition in positions:
            assert self.owner.get(partition) is reader, f"{partition} is somebody else's, and its commit is not fenced"

    def apply(self, messages: Iterable[Message], positions: Mapping[TopicPartition, Position]) -> None:
        """Messages and offsets become visible together."""
        for partition, position in positions.items():
            before = self.positions.get(partition, Position(0))
            assert position.offset >= before.offset, "the group goes back"
            assert all(position.outputs[name] >= at for name, at in before.own.items()), "an output goes back"
        self.positions |= positions
        for message in messages:
            self.topics[message.topic].append(message)

    def state_of(self, partition: TopicPartition) -> Iterator[list[tuple[bytes, bytes | None]]]:
        """The state topic's records of a partition, a few at a time."""
        for message in self.topics[STATE]:
            if message.partition == partition.partition:
                assert message.key is not None and len(message.key) == KEY_BYTES
                yield [(message.key, message.value)]

    def committed(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, Position]:
        """As a ``read_committed`` member sees it."""
        wanted = set(partitions)
        if any(wanted & set(positions) for _, positions, _ in self.pending.values()):
            raise RetryableError("a transaction is being decided")
        return {partition: self.positions[partition] for partition in wanted if partition in self.positions}


class Reader:
    """One process: the parts as a reader has them, but that the test is its threads. It is its own source and sink."""

    def __init__(self, slot: str, broker: Broker, store: Store, *, deletes: bool, stateful: bool = False) -> None:
        self.slot, self.broker = slot, broker
        self.generation = 0
        self.steady = self.writes = self.opens = True
        self.fate = "ok"
        self.at: dict[str, Callable[[], None]] = {}
        self.failed = self.opened = False
        self.written: list[Message] = []
        self.late: tuple[list[Message], Mapping[TopicPartition, Position], object] | None = None
        self.narrow = False
        self.unplaced: dict[TopicPartition, int] = {}
        self.looked_up: dict[TopicPartition, Position] = {}
        self.next: dict[TopicPartition, int] = {}
        self.flight: list[Origin] = []
        self.epoch = 0
        meter = metrics.Metrics()
        rows, projection = Rows(), Projection(2)
        self.lake = FileOutput(LAKE, LAKE, MemoryChain(store), rows, Rotation(), most_bytes=1 << 30, meter=meter)
        self.known = Known(STATE, broker.state_of, Digests(["f"]), skip=True) if stateful else None
        self.documents: dict[Origin, Document] = {}
        self.intake = Intake([f"kafka:{name}" for name in TOPICS], [self.lake], LimitSettings(), meter, self.known)
        self.checkpoint = Checkpoint(
            self.intake.ledger,
            self.intake.lock,
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            [Outlet(f"kafka:{name}", name, projection, FakeRenderer(name)) for name in (OUT, WIDE)],
            DeadLetterOutlet(DEAD, "f", deletes),
            meter,
            self.moment,
            [FileOutlet(projection, rows, self.lake)],
            self.known,
        )

    def moment(self, name: str) -> None:
        if (event := self.at.pop(name, None)) is not None:
            event()

    # ---- the sink

    def open(self) -> None:
        assert not self.opened and not self.failed, "opened over a producer that lives"
        if not self.opens:
            self.failed = True
            raise RetryableError("no producer now")
        if self.slot in self.broker.pending:
            messages, positions, comes = self.broker.pending.pop(self.slot)
            if comes:
                self.broker.apply(messages, positions)
        self.opened = True
        self.moment("opened")

    def takes_compressed(self, message: Message) -> bool:
        return False

    def refuses(self, message: Message) -> str | None:
        most = {WIDE: WIDE_MOST, DEAD: DEAD_MOST if self.narrow else 1 << 20}
        return "too_large" if message.size > most.get(message.topic, 1 << 20) else None

    def write(self, messages: Sequence[Message]) -> None:
        assert self.opened and not self.failed, "write after a failure"
        self.moment("write")
        if not self.writes:
            self.failed = True
            raise RetryableError("a record was not acknowledged")
        self.written = list(messages)

    def commit(self, positions: Mapping[TopicPartition, Position], membership: object) -> None:
        assert self.opened and not self.failed, "commit after a failure"
        self.moment("commit")
        messages, self.written = self.written, []
        self.failed = True
        match self.fate:
            case "ok" | "unheard":
                self.broker.accept(self, positions, membership)
                self.broker.apply(messages, positions)
            case "late":
                self.late = messages, positions, membership
            case "pending" | "aborted":
                self.broker.accept(self, positions, membership)
                self.broker.pending[self.slot] = messages, positions, self.fate == "pending"
        self.moment("arrived")
        if self.fate != "ok":
            raise CommitError(f"in doubt: {self.fate}")
        self.failed = False

    def abandon(self) -> None:
        self.moment("abandon")
        self.opened = self.failed = False
        self.written = []
        late, self.late = self.late, None
        if late is not None and late[2] == self.broker.generation:
            self.broker.accept(self, late[1], late[2])
            self.broker.apply(late[0], late[1])

    # ---- the source

    def membership(self, _timeout_s: float) -> object:
        if not self.steady:
            raise CommitError("no stable member at the moment")
        found = self.generation
        self.moment("membership")
        return found

    def committed(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, Position]:
        self.moment("asked")
        found = self.broker.committed(partitions)
        self.moment("answered")
        return found

    def begin_anew(self, partitions: Sequence[TopicPartition]) -> None:
        assert self not in self.broker.members, "a member is told that somebody else commits"
        self.gone(partitions, lost=True)
        for partition in partitions:
            self.given(partition)

    # ---- what the threads do

    def given(self, partition: TopicPartition) -> None:
        self.epoch += 1
        self.unplaced[partition] = self.epoch

    def gone(self, partitions: Sequence[TopicPartition], *, lost: bool) -> None:
        for partition in partitions:
            self.unplaced.pop(partition, None)
            self.looked_up.pop(partition, None)
        self.intake.revoked(partitions, lost=lost)

    def place(self, partition: TopicPartition, *, whole: bool) -> None:
        """Find out where to start, and start; or leave the second half for later."""
        if (epoch := self.unplaced.get(partition)) is None:
            return
        if partition not in self.looked_up:
            try:
                committed = self.broker.committed([partition]).get(partition, Position(0))
            except RetryableError:
                return
            self.intake._placing._asked[partition] = _Asked(epoch)
            found = self.intake._placing._look_up(partition, epoch, committed)
            assert found is not None
            self.looked_up[partition] = found
        if whole:
            del self.unplaced[partition]
            position = self.looked_up.pop(partition)
            self.intake.assigned(partition, epoch, position)
            self.next[partition] = position.offset

    def read(self, log: Sequence[Record], partition: TopicPartition, count: int) -> None:
        epoch = self.intake.ledger.epochs.get(partition)
        if epoch is None:
            return
        found = [one for one in log if one.origin.offset >= self.next[partition]][:count]
        if found:
            self.next[partition] = found[-1].origin.offset + 1
            again = [replace(one, origin=replace(one.origin, epoch=epoch)) for one in found]
            self.intake.received(again)
            self.intake.inbox.clear()
            self.flight += [one.origin for one in again if self.known is None or not self.unchanged(one)]

    def unchanged(self, one: Record) -> bool:
        """Whether a record is found to change nothing before it is encoded, and so is settled; its value is its text."""
        assert self.known is not None
        kind, text = (one.value or b"").decode().split(":")
        found: Document | Tombstone | PoisonError = document_of(kind, text)
        if kind == "gone":
            found = Tombstone()
        elif kind in ("refused", "keyless"):
            found = PoisonError("decode", "invalid", "no")
        ((_, found_out),) = self.known.recognise([(one, found)])
        if isinstance(found_out, Unchanged):
            return self.intake.ledger.settle(one.origin, found_out)
        if isinstance(found_out, Document):
            self.documents[one.origin] = found_out
        return False

    def settle(self, picks: Iterable[int], kinds: Mapping[tuple[TopicPartition, int], str]) -> None:
        """Outcomes come in any order, and also those of assignments that have ended."""
        for pick in picks:
            if self.flight:
                origin = self.flight.pop(pick % len(self.flight))
                outcome = outcome_of(kinds[origin.topic_partition, origin.offset], origin)
                if isinstance(outcome, Embedding) and self.known is not None:
                    outcome = replace(outcome, document=self.documents[origin])
                self.intake.ledger.settle(origin, outcome)

    def put(self, partition: TopicPartition, between: Callable[[], None] = lambda: None) -> None:
        """Put a partition's file; ``between`` that and the reader's hearing of it."""

        def progress(partition: TopicPartition, epoch: int, offset: int) -> None:
            between()
            self.intake.ledger.advance(partition, epoch, LAKE, offset)

        lane = self.lake._lanes.get(partition)
        if lane is not None and lane.waits:
            self.lake._put(lane, lane.position, lane.taken, list(lane.batches), progress)
