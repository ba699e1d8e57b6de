"""One commit, as numbered steps. The order of the steps is the guarantee.

Comes in: the ledger's completed prefixes. Goes out: outputs, dead letters and offsets, together; rows to the outputs that are
files, which follow in their own time. Never here: a wait for an encoder or for a file; nothing is written before its outcome
is known.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from workers import log, metrics
from workers.errors import CommitError, EnvironmentFault, StreamEmbedderError
from workers.offsets import OffsetLedger
from workers.outlets import DeadLetterOutlet, FileOutlet, Outlet, Outlets, Rendered
from workers.records import Chunked, DeadLetter, Embedding, Settled, Tombstone, TopicPartition, Unchanged
from workers.sinks.base import Sink
from workers.sources.base import Source
from workers.state import Known
from workers.trace import UNTRACED, Commit, Trace

LOG = log.get(__name__)

# A transaction of this many records costs 5 % of what one of a single record costs per record; more only adds latency.
MOST_RECORDS = 2_000
MEMBERSHIP_WAIT_S = 5.0


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
        files: Sequence[FileOutlet] = (),
        known: Known | None = None,
        trace: Trace = UNTRACED,
    ) -> None:
        """``failpoint`` is called with the name of each step's end; tests crash there. ``known``: the state, where one is kept.

        ``trace`` is told of commits.
        """
        self._ledger = ledger
        self._lock = lock
        self._source = source
        self._sink = sink
        self._outlets = Outlets(outlets, files, dead_letters, sink.refuses, sink.takes_compressed, known)
        self._known = known
        self._meter = meter
        self._failpoint = failpoint
        self._trace = trace
        self._files = files
        self._attempt: list[Rendered] = []

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
        with self._trace.commit() as told:
            return self._commit(told)

    def _commit(self, told: Commit) -> int:
        started = time.monotonic()
        # Step 1: the completed prefix of every partition, and where that puts the group. Files that move on meanwhile are told
        # of next time: the state topic gets what belongs to these positions, no less and no more.
        with self._lock:
            drained = self._ledger.drain(MOST_RECORDS)
            if not drained and not self._ledger.untold:
                return 0
            positions = self._ledger.positions(drained)
            ours = {partition: self._ledger.epochs[partition] for partition in positions}
        # Step 2: render, before anything is open. What cannot be written becomes a dead letter here.
        told.begin(drained)
        told.step("render")
        self._attempt, messages = self._outlets.render(drained)
        prefixes = [rendered.prefix for rendered in self._attempt]
        if self._known is not None:
            changes = {rendered.prefix.topic_partition: rendered.changes for rendered in self._attempt}
            messages += self._known.due(positions, changes)
        # Step 3: begin, write, flush; every record acknowledged.
        told.step("send", len(messages))
        self._sink.write(messages)
        self._failpoint("written")
        # Step 4: a stable membership of the group: what fences us from a successor.
        told.step("membership")
        membership = self._source.membership(MEMBERSHIP_WAIT_S)
        # Step 5: every partition still ours, looked at after the membership was taken.
        with self._lock:
            if not self._ledger.owns(ours):
                raise CommitError("a partition was revoked while its outcomes were being written")
        # Step 6: offsets and commit.
        told.step("offsets")
        self._sink.commit(positions, membership)
        told.done()
        self._failpoint("committed")
        # Step 7: forget; what files hold is theirs now.
        with self._lock:
            for prefix in prefixes:
                self._ledger.release(prefix)
            self._ledger.told(positions)
            self._lock.notify_all()
        for rendered in self._attempt:
            self._hand_over(rendered, rendered.prefix.next_offset)
        if self._known is not None:
            self._known.told(positions, ours)
        settled = [entry for prefix in prefixes for entry in self._outlets.new_of(prefix.already, prefix.settled)]
        self._count(settled)
        self._meter.observe(metrics.COMMIT_SECONDS, time.monotonic() - started)
        return sum(len(prefix.settled) for prefix in prefixes)

    def recover(self) -> None:
        """After a failed commit: find out what became of it, keep the rest for the next one.

        Raises:
            RetryableError: not to be found out yet; call again.
        """
        # A new producer under the same transactional id settles the old transaction, one way or the other …
        self._sink.abandon()
        self._sink.open()
        with self._lock:
            epochs = self._ledger.epochs
        # … and then the group's offsets say which way, because they were part of it.
        positions = self._source.committed(epochs)
        tried = {rendered.prefix.topic_partition: rendered.prefix.next_offset for rendered in self._attempt}
        settled: list[Settled] = []
        already = {rendered.prefix.topic_partition: rendered.prefix.already for rendered in self._attempt}
        ends: dict[TopicPartition, int] = {}
        foreign: list[TopicPartition] = []
        with self._lock:
            for partition, position in positions.items():
                try:
                    done = self._ledger.resolve(partition, epochs[partition], position)
                except ValueError as error:
                    LOG.warning("somebody else commits %s", log.fields(error=error))
                    foreign.append(partition)
                    continue
                if done and done[-1].record.origin.offset >= tried.get(partition, 0):
                    # We have not written all of these. There are no rows of them, and no state: a file that another record ends
                    # would lack them for good.
                    LOG.warning("somebody else commits %s", log.fields(partition=partition, committed=position.offset))
                    foreign.append(partition)
                elif done:
                    settled += self._outlets.new_of(already.get(partition, {}), done)
                    ends[partition] = done[-1].record.origin.offset + 1
            self._lock.notify_all()
        if foreign:
            # A successor, of whom we have not heard yet: this reader was thrown out of its group.
            self._source.begin_anew(foreign)
        for rendered in self._attempt:
            if (reached := ends.get(rendered.prefix.topic_partition)) is not None:
                self._hand_over(rendered, reached)
        if self._known is not None:
            self._known.told(positions, epochs)
        self._attempt = []
        if ends:
            LOG.info("commit in doubt had happened %s", log.fields(records=len(settled)))
            self._count(settled)

    def _hand_over(self, rendered: Rendered, end: int) -> None:
        """Give the state and the outputs of files what is committed of a prefix, its records below ``end``."""
        prefix = rendered.prefix
        self._trace.committed(prefix.topic_partition, prefix.epoch, end)
        if self._known is not None:
            try:
                self._known.released(prefix.topic_partition, prefix.epoch, rendered.changes, end)
            except EnvironmentFault as error:
                # The ledger has forgotten these records: who goes on without their rows and changes would lose them.
                raise StreamEmbedderError(str(error)) from error
        for outlet, rows in zip(self._files, rendered.below(end), strict=True):
            outlet.output.append(prefix.topic_partition, prefix.epoch, rows, end)

    def _count(self, settled: Sequence[Settled]) -> None:
        meter = self._meter
        meter.add(metrics.COMMITS)
        meter.set(metrics.LAST_COMMIT, time.time())
        counts = {"embedding": 0, "tombstone": 0, "dead_letter": 0, "unchanged": 0}
        tokens = truncated = saved = chunks = 0
        for entry in settled:
            match entry.outcome:
                case Embedding() as embedding:
                    counts["embedding"] += 1
                    tokens += embedding.tokens
                    truncated += embedding.truncated
                case Chunked(parts):
                    counts["embedding"] += 1
                    chunks += len(parts)
                    tokens += sum(part.tokens for part in parts)
                case Tombstone():
                    counts["tombstone"] += 1
                case Unchanged() as unchanged:
                    counts["unchanged"] += 1
                    saved += unchanged.tokens
                case DeadLetter() as letter:
                    counts["dead_letter"] += 1
                    meter.add(metrics.DEAD_LETTERS, stage=letter.stage, reason=letter.reason)
        for kind, count in counts.items():
            if count:
                meter.add(metrics.RECORDS_COMMITTED, count, outcome=kind)
        meter.add(metrics.TOKENS_COMMITTED, tokens)
        meter.add(metrics.TEXTS_TRUNCATED, truncated)
        if saved:
            meter.add(metrics.TOKENS_UNCHANGED, saved)
        if chunks:
            meter.add(metrics.CHUNKS_COMMITTED, chunks)
