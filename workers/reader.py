"""The loop: poll → decode → tokenise → batch → submit → settle → checkpoint, in threads of its own.

Comes in: a source, a decoder, a tokenizer, a pool, a checkpoint. Goes out: committed outcomes. Never here: anything of
Kafka's, Ray's or the model's own; the parts know that.

- The poll thread is the source's. It only hands records over, and asks whether there is room.
- The work thread decodes, tokenises, sends calls, and settles what comes back.
- The commit thread (the caller of :meth:`StreamReader.run`) writes what is complete.
- Outputs that are files have a thread each, which puts them as they fill.

They share the ledger under one lock, and hold it for memory operations only.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial

from workers import log, metrics, outcomes
from workers.checkpoint import MOST_RECORDS, Checkpoint
from workers.codecs.base import Decoder
from workers.deadline import Deadline
from workers.errors import EnvironmentFault, RetryableError, StreamEmbedderError
from workers.flow import Flow
from workers.gathering import Gathering
from workers.intake import CHUNK_BYTES, Intake
from workers.offsets import OffsetLedger
from workers.pool import Answer, EncoderPool, PoolClosed
from workers.records import Origin, Outcome, Record, TopicPartition
from workers.settings import LimitSettings
from workers.sinks.files import FileOutput
from workers.sources.base import Source
from workers.state import Known
from workers.trace import UNTRACED, Trace
from workers.window import Call, Window

LOG = log.get(__name__)
IDLE_S = 0.25
STALL_S = 60.0


@dataclass(frozen=True, slots=True)
class ReaderOptions:
    """Numbers that a reader runs by. Times in seconds, batches in tokens."""

    limits: LimitSettings
    max_batch_tokens: int
    reject_overflow: bool = False
    commit_interval_s: float = 1.0
    linger_s: float = 0.01


class StreamReader:
    """One member of the pipeline's consumer group."""

    def __init__(
        self,
        source: Source,
        decoder: Decoder,
        tokenizer: outcomes.TextTokenizer,
        pool: EncoderPool,
        options: ReaderOptions,
        meter: metrics.Metrics,
        checkpoint: Callable[[OffsetLedger, threading.Condition], Checkpoint],
        *,
        topics: Sequence[str] = (),
        files: Sequence[FileOutput] = (),
        known: Known | None = None,
        trace: Trace = UNTRACED,
    ) -> None:
        """``checkpoint`` is made here, over the ledger and the lock that it shares with the loop.

        ``topics``: names of the outputs that are topics, the dead letters' included; ``files``: the other outputs; ``known``:
        the state, where one is kept; ``trace`` is told of batches, and closed at the end.
        """
        self._source = source
        reject = options.reject_overflow
        self._understand = partial(
            outcomes.prepare, decoder=decoder, tokenizer=tokenizer, reject_overflow=reject, memory=known
        )
        self._pool = pool
        self._options = options
        self._meter = meter
        self._trace = trace
        whole = isinstance(tokenizer, outcomes.CuttingTokenizer)
        most_bytes = CHUNK_BYTES if whole else None
        self._intake = Intake(topics, files, options.limits, meter, known, most_bytes=most_bytes, trace=trace)
        self._flow, self.progress = Flow(meter), self._intake.progress
        self._lock, self._ledger = self._intake.lock, self._intake.ledger
        self._files = tuple(files)
        self._checkpoint = checkpoint(self._ledger, self._lock)
        self._window = Window(options.max_batch_tokens, options.linger_s)
        self._gathering = Gathering()
        self._answers: deque[tuple[Call, Answer | None]] = deque()
        self._under_way = 0
        self._deadline = Deadline(0)
        self._draining = threading.Event()
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self.left = 0  # after run: records that were read and are not committed, which are read again

    # ---- life

    def run(self) -> None:
        """Read, encode and commit until :meth:`drain` or :meth:`stop`, or until something fails for good.

        Raises:
            StreamEmbedderError: what cannot be mended by trying again.
        """
        loops = {"poll": lambda: self._source.run(self._intake), "work": self._work}
        loops |= {output.name: partial(self._write_files, output) for output in self._files}
        threads = [
            threading.Thread(target=self._guarded, args=(loop,), name=name, daemon=True) for name, loop in loops.items()
        ]
        try:
            if self._retry(self._checkpoint.open, "sink not open"):
                for thread in threads:
                    thread.start()
                self._commit_loop()
        except BaseException as error:  # noqa: BLE001 - kept, so that check() can say it; raised below
            self._fail(error)
        finally:
            self._stop.set()
            self.left = self._intake.held()
            self._source.stop()
            self._pool.close()
            self._intake.close()
            for output in self._files:
                output.stop()
            self._wake()
            for started in (thread for thread in threads if thread.ident is not None):
                started.join(10)
            self._checkpoint.close()
            self._trace.close()
            self._ended.set()
        if self._failure is not None:
            raise self._failure

    def drain(self, timeout_s: float) -> bool:
        """Stop reading, finish the calls that are out, commit, leave the group; whether :meth:`run` has ended by then.

        Records that were read and not yet sent to an encoder are given up: nothing of them is committed, so they are read
        again. ``timeout_s`` bounds the calls; committing and leaving come after.
        """
        self._deadline = Deadline(timeout_s)
        self._source.quiesce()
        self._draining.set()
        self._wake()
        return self._ended.wait(timeout_s + 10)

    def stop(self) -> None:
        """End :meth:`run` at once; what is in flight is read again by the next owner."""
        self._stop.set()
        self._wake()

    def check(self) -> None:
        """Raise when the reader is of no more use.

        Raises:
            StreamEmbedderError: it has failed, or its poll thread stalls.
        """
        if self._failure is not None:
            raise StreamEmbedderError(f"the reader has failed: {self._failure}")
        since = time.monotonic() - self._source.last_poll
        if since > STALL_S and not self._ended.is_set():
            raise StreamEmbedderError(f"the reader has not polled for {since:.0f} s")

    def _guarded(self, target: Callable[[], None]) -> None:
        try:
            target()
        except BaseException as error:  # noqa: BLE001 - a thread's end is the reader's end, whatever the cause
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            if isinstance(error, Exception) and not isinstance(error, StreamEmbedderError):
                # A library's message may quote the record that it failed at.
                where = "; ".join(
                    f"{at.filename}:{at.lineno} {at.name}" for at in traceback.extract_tb(error.__traceback__)
                )
                error = StreamEmbedderError(f"a defect of this program: {type(error).__name__} at {where}")
            self._failure = error
            LOG.error("reader failed %s", log.fields(error=error))
        self.stop()

    def _wake(self) -> None:
        with self._lock:
            self._lock.notify_all()

    # ---- work thread

    def _work(self) -> None:
        while not self._stop.is_set():
            self._flow.calls(self._under_way)
            with self._lock:
                if not (self._answers or self._stop.is_set() or (self._intake.ready and not self._window.full)):
                    self._lock.wait(IDLE_S if self._window.empty else max(0.001, self._options.linger_s))
                answers, self._answers = self._answers, deque()
                records = () if self._window.full else self._intake.take()
                epochs = self._intake.after_an_end()
            if epochs is not None:
                self._window.keep(epochs)
                self._gathering.keep(epochs)
            if self._draining.is_set():
                self._gathering.give_up(self._window.clear())
            elif records:
                self._prepare(records)
            for call, answer in answers:
                if answer is not None:
                    self._flow.done(call.batch.tokens, call.shared_tokens, answer.seconds)
                    self._window.measured(answer.tokens, answer.seconds)
                    self._settle(self._gathering.whole(outcomes.answered(call.rows, answer)))
            # After settling: a drain must not take the work for done before its outcomes are in the ledger.
            with self._lock:
                self._under_way -= len(answers)
                self._meter.set(metrics.CALLS_IN_FLIGHT, self._under_way)
                self._lock.notify_all()
            self._submit()

    def _prepare(self, records: Sequence[Record]) -> None:
        with self._intake.holding(records), self._trace.preparing(records) as ready:
            started = time.monotonic()
            texts, settled = self._understand(records)
            ready(len(texts))
            self._gathering.expect(texts)
            tokens = self._window.add(texts, time.monotonic())
            self._flow.prepared(len(records), tokens, time.monotonic() - started)
            self._settle(settled)

    def _submit(self) -> None:
        while not self._draining.is_set() and self._under_way < self._pool.capacity():
            call = self._window.take(time.monotonic())
            if call is None:
                return
            call = replace(call, batch=self._trace.sent(call.rows, call.batch))
            with self._lock:
                self._under_way += 1
                self._intake.measure()
            self._flow.calls(self._under_way, call.batch.tokens)
            self._send(call)

    def _send(self, call: Call) -> None:
        def answered(future: Future[Answer]) -> None:
            error = None if future.cancelled() else future.exception()
            answer = None if future.cancelled() or error is not None else future.result()
            if error is not None and not isinstance(error, PoolClosed):
                self._fail(error)  # without an outcome its texts would hold up their partitions, and nobody would know
            self._trace.answered(call.batch, error)
            with self._lock:
                self._answers.append((call, answer))
                self._lock.notify_all()

        self._pool.submit(call.batch).add_done_callback(answered)

    def _settle(self, settled: Sequence[tuple[Origin, Outcome]]) -> None:
        with self._lock:
            dropped = sum(not self._ledger.settle(origin, outcome) for origin, outcome in settled)
            self._lock.notify_all()
        if dropped:
            self._meter.add(metrics.OUTCOMES_DROPPED, dropped, why="stale")

    # ---- threads of the outputs that are files

    def _write_files(self, output: FileOutput) -> None:
        def progress(partition: TopicPartition, epoch: int, offset: int) -> None:
            with self._lock:
                self._ledger.advance(partition, epoch, output.key, offset)
                self._lock.notify_all()

        output.run(progress)

    # ---- commit thread

    def _commit_loop(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            with self._lock:
                self._lock.wait(min(IDLE_S, max(0.01, due - time.monotonic())))
                draining = self._draining.is_set()
                finished = draining and (self._under_way == 0 or self._deadline.expired)
                ready = self._ledger.ready(MOST_RECORDS)
                untold = self._ledger.untold
            if (ready or untold) and (ready >= MOST_RECORDS or draining or time.monotonic() >= due):
                due = time.monotonic() + self._options.commit_interval_s
                if not self._commit():
                    return
            elif finished and not ready and not self._flush_files():
                return

    def _flush_files(self) -> bool:
        """At the end of a drain: put what waits for its file; whether that leaves something to commit."""
        for output in self._files:
            output.flush(self._deadline.remaining())
        with self._lock:
            return self._ledger.untold

    def _commit(self) -> bool:
        """Commit once; False when it failed and there is no time left to find out how."""
        try:
            self._checkpoint.commit()
            with self._lock:
                self._intake.measure()
        except RetryableError as error:
            cause = type(error.__cause__ or error).__name__
            self._meter.add(metrics.COMMITS_FAILED, cause=cause)
            LOG.warning("commit failed %s", log.fields(cause=cause, error=error))
            return self._retry(self._checkpoint.recover, "commit not resolved")
        return True

    def _retry(self, step: Callable[[], None], what: str) -> bool:
        """Do ``step`` until it succeeds; False when the reader stops, or a drain runs out of time, before that."""
        delay = 0.2
        while not self._stop.is_set() and not (self._draining.is_set() and self._deadline.expired):
            try:
                step()
            except (RetryableError, EnvironmentFault) as error:
                LOG.warning("%s %s", what, log.fields(retry_in_s=delay, error=error))
                self._stop.wait(delay)
                delay = min(2 * delay, 5.0)
            else:
                return True
        return False
