"""One commit, as numbered steps. The order of the steps is the guarantee.

Comes in: the ledger's completed prefixes. Goes out: outputs, dead letters and offsets, together. Never here: a wait for
an encoder; nothing is written before its outcome is known.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from workers import log, metrics
from workers.codecs.base import Renderer, type_vector
from workers.codecs.dead_letter import render_dead_letter
from workers.codecs.tombstone import render_tombstone
from workers.encoder.quantize import Projection, has_direction
from workers.errors import CommitError, PoisonError, RetryableError, StreamEmbedderError
from workers.offsets import OffsetLedger, Prefix
from workers.records import DeadLetter, Embedding, Message, Outcome, Record, Settled, Tombstone
from workers.sinks.base import Sink
from workers.sources.base import Source

LOG = log.get(__name__)

# For each output by name, its vector and scale of each row that has one.
type_projected = dict[str, dict[int, tuple[type_vector, np.float32 | None]]]

# A transaction of this many records costs 5 % of what one of a single record costs per record; more only adds latency.
MOST_RECORDS = 2_000
MEMBERSHIP_WAIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Outlet:
    """One output: what is made of the vector, and how the result is written down."""

    name: str
    topic: str
    projection: Projection
    renderer: Renderer


@dataclass(frozen=True, slots=True)
class DeadLetterOutlet:
    """Where refused records go; ``tombstone``: their older vectors are deleted from the outputs."""

    topic: str
    fingerprint: str
    tombstone: bool


class Checkpoint:
    """Moves completed prefixes from the ledger to the sink. Used by one thread; ``lock`` guards the ledger."""

    def __init__(
        self,
        ledger: OffsetLedger,
        lock: threading.Condition,
        source: Source,
        sink: Sink,
        outlets: Sequence[Outlet],
        dead_letters: DeadLetterOutlet,
        meter: metrics.Metrics,
        failpoint: Callable[[str], None] = lambda _: None,
    ) -> None:
        """``failpoint`` is called with the name of each step's end; tests crash there."""
        self._ledger = ledger
        self._lock = lock
        self._source = source
        self._sink = sink
        self._outlets = outlets
        self._dead_letters = dead_letters
        self._meter = meter
        self._failpoint = failpoint
        self._names = [outlet.name for outlet in outlets] + [f"kafka:{dead_letters.topic}"]

    def open(self) -> None:
        """Connect the sink, as often as it takes; errors as :meth:`workers.sinks.base.Sink.open`."""
        self._sink.abandon()  # what an attempt that failed left behind
        self._sink.open()

    def close(self) -> None:
        """Release the sink."""
        self._sink.close()

    def commit(self) -> int:
        """Commit what is complete; returns the number of records (0: nothing was).

        Raises:
            RetryableError: it failed or is in doubt; call :meth:`recover` before anything else.
        """
        started = time.monotonic()
        # Step 1: the completed prefix of every partition.
        with self._lock:
            prefixes = self._ledger.drain(MOST_RECORDS)
        if not prefixes:
            return 0
        # Step 2: render, before anything is open. What cannot be written becomes a dead letter here.
        prefixes, messages = self._render(prefixes)
        # Step 3: begin, write, flush; every record acknowledged.
        self._sink.write(messages)
        self._failpoint("written")
        # Step 4: a stable membership of the group: what fences us from a successor.
        membership = self._source.membership(MEMBERSHIP_WAIT_S)
        # Step 5: every partition still ours, looked at after the membership was taken.
        with self._lock:
            if not self._ledger.owns(prefixes):
                raise CommitError("a partition was revoked while its outcomes were being written")
        # Step 6: offsets and commit.
        self._sink.commit({prefix.topic_partition: prefix.position(self._names) for prefix in prefixes}, membership)
        self._failpoint("committed")
        # Step 7: forget.
        with self._lock:
            for prefix in prefixes:
                self._ledger.release(prefix)
            self._lock.notify_all()
        settled = [entry for prefix in prefixes for entry in prefix.settled]
        self._count(settled)
        self._meter.observe(metrics.COMMIT_SECONDS, time.monotonic() - started)
        return len(settled)

    def recover(self) -> None:
        """After a failed commit: find out what became of it, keep the rest for the next one.

        Raises:
            RetryableError: not to be found out yet; call again.
            StreamEmbedderError: somebody else commits for our partitions.
        """
        # A new producer under the same transactional id settles the old transaction, one way or the other …
        self._sink.abandon()
        self._sink.open()
        with self._lock:
            epochs = self._ledger.epochs
        # … and then the group's offsets say which way, because they were part of it.
        positions = self._source.committed(epochs)
        settled: list[Settled] = []
        with self._lock:
            try:
                for partition, position in positions.items():
                    settled += self._ledger.resolve(partition, epochs[partition], position.offset)
            except ValueError as error:
                raise StreamEmbedderError(str(error)) from error
            self._lock.notify_all()
        if settled:
            LOG.info("commit in doubt had happened %s", log.fields(records=len(settled)))
            self._count(settled)

    def _render(self, prefixes: Sequence[Prefix]) -> tuple[list[Prefix], list[Message]]:
        messages: list[Message] = []
        rendered: list[Prefix] = []
        for prefix in prefixes:
            vectors = self._project(prefix)
            settled: list[Settled] = []
            for row, entry in enumerate(prefix.settled):
                outcome, out = self._render_one(entry, row, vectors, prefix)
                messages += [_placed(message, entry.record) for message in out]
                settled.append(Settled(entry.record, outcome))
            rendered.append(replace(prefix, settled=tuple(settled)))
        return rendered, messages

    def _project(self, prefix: Prefix) -> type_projected:
        """What each output writes: all its vectors cut, normalised and quantised together."""
        rows = [row for row, entry in enumerate(prefix.settled) if isinstance(entry.outcome, Embedding)]
        if not rows:
            return {outlet.name: {} for outlet in self._outlets}
        full = np.stack([prefix.settled[row].outcome.vector for row in rows])  # type: ignore[union-attr]
        found: type_projected = {}
        for outlet in self._outlets:
            # A vector with nothing in its first dimensions is left out; the others go on without it.
            sound = has_direction(full, outlet.projection.dim)
            kept = [row for row, good in zip(rows, sound, strict=True) if good]
            found[outlet.name] = dict(zip(kept, outlet.projection(full[sound]).rows(), strict=True))
        return found

    def _render_one(
        self, entry: Settled, row: int, vectors: type_projected, prefix: Prefix
    ) -> tuple[Outcome, list[Message]]:
        record = entry.record
        outcome = entry.outcome
        offset = record.origin.offset
        wanted = [outlet for outlet in self._outlets if offset >= prefix.already.get(outlet.name, 0)]
        if isinstance(outcome, Embedding | Tombstone):
            try:
                return outcome, [
                    self._checked(self._message(outlet, entry, vectors[outlet.name].get(row))) for outlet in wanted
                ]
            except PoisonError as error:
                outcome = DeadLetter(error.stage, error.reason, error.message)
        out: list[Message] = []
        if offset >= prefix.already.get(self._names[-1], 0):
            dead = render_dead_letter(record, outcome, self._dead_letters.topic, self._dead_letters.fingerprint)
            if (reason := self._sink.refuses(dead)) is not None:
                mend = "raise its max.message.bytes" if reason == "too_large" else "set its cleanup.policy to delete"
                raise RetryableError(
                    f"the dead letter of {record.origin} does not fit into topic {dead.topic} ({reason}, {dead.size} bytes): "
                    f"{mend}; until then this reader commits nothing"
                )
            out.append(dead)
        if self._dead_letters.tombstone and record.key is not None:
            out += self._deletes(record, wanted)
        return outcome, out

    def _deletes(self, record: Record, wanted: Sequence[Outlet]) -> list[Message]:
        """Tombstones for a refused record's key, without the record's headers where they do not fit.

        An output that does not take the key alone has never had a vector under it.
        """
        whole = [render_tombstone(record, outlet.topic) for outlet in wanted]
        fitting = [one if self._sink.refuses(one) is None else replace(one, headers=()) for one in whole]
        return [one for one in fitting if self._sink.refuses(one) is None]

    def _message(
        self, outlet: Outlet, entry: Settled, projected: tuple[type_vector, np.float32 | None] | None
    ) -> Message:
        if not isinstance(entry.outcome, Embedding):
            return render_tombstone(entry.record, outlet.topic)
        if projected is None:
            raise PoisonError(
                "output", "no_direction", f"the vector has no length in its first {outlet.projection.dim} dimensions"
            )
        return outlet.renderer.render(entry.record, entry.outcome, *projected)

    def _checked(self, message: Message) -> Message:
        reason = self._sink.refuses(message)
        if reason == "too_large":
            raise PoisonError(
                "output", reason, f"the output record has {message.size} bytes, more than topic {message.topic} takes"
            )
        if reason is not None:
            raise PoisonError(
                "output", reason, f"topic {message.topic} is compacted, and takes no record without a key"
            )
        return message

    def _count(self, settled: Sequence[Settled]) -> None:
        meter = self._meter
        meter.add(metrics.COMMITS)
        meter.set(metrics.LAST_COMMIT, time.time())
        counts = {"embedding": 0, "tombstone": 0, "dead_letter": 0}
        tokens = truncated = 0
        for entry in settled:
            match entry.outcome:
                case Embedding() as embedding:
                    counts["embedding"] += 1
                    tokens += embedding.tokens
                    truncated += embedding.truncated
                case Tombstone():
                    counts["tombstone"] += 1
                case DeadLetter() as letter:
                    counts["dead_letter"] += 1
                    meter.add(metrics.DEAD_LETTERS, stage=letter.stage, reason=letter.reason)
        for kind, count in counts.items():
            if count:
                meter.add(metrics.RECORDS_COMMITTED, count, outcome=kind)
        meter.add(metrics.TOKENS_COMMITTED, tokens)
        meter.add(metrics.TEXTS_TRUNCATED, truncated)


def _placed(message: Message, record: Record) -> Message:
    """A record without a key stays with its source partition's number, so that its order is kept."""
    return message if message.key is not None else replace(message, partition=record.origin.partition)
