"""Where a partition starts: at the output that is furthest behind.

Comes in: what the group has committed. Goes out: the same, with each output's own position. Never here: Kafka, or a wait in
the thread that asks: chains of files are looked up, and the state is read, by threads of their own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from workers import log
from workers.errors import EnvironmentFault, RetryableError
from workers.records import Position, TopicPartition
from workers.sinks.files import FileOutput
from workers.state import Known

LOG = log.get(__name__)

LEAST_BACKOFF_S, MOST_BACKOFF_S = 0.2, 5.0


class _Asked:
    """One assignment that waits for its place: the answer, once it is asked for, and when to ask again."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.answer: Future[Position | None] | None = None
        self.not_before = 0.0
        self.delay_s = LEAST_BACKOFF_S

    def again(self) -> None:
        self.answer = None
        self.not_before = time.monotonic() + self.delay_s
        self.delay_s = min(2 * self.delay_s, MOST_BACKOFF_S)


class Placing:
    """Looks chains and states up. :meth:`place` is called by one thread, again and again until it answers."""

    def __init__(self, topics: Sequence[str], files: Sequence[FileOutput], known: Known | None = None) -> None:
        """Names of the outputs that are topics, the outputs that are files, and the state, where one is kept."""
        self._topics = tuple(topics)
        self._files = tuple(files)
        self._known = known
        self._asked: dict[TopicPartition, _Asked] = {}
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="placing")
        self._stop = threading.Event()

    def place(self, partition: TopicPartition, epoch: int, committed: Position) -> Position | None:
        """The position to start an assignment at; None while a store or the state is being asked.

        Raises:
            OtherChain: an output's chain is another pipeline's.
        """
        if not self._files and self._known is None:
            return committed
        if self._stop.is_set():
            return None
        asked = self._asked.get(partition)
        if asked is None or asked.epoch != epoch:
            asked = self._asked[partition] = _Asked(epoch)
        try:
            return self._answer(partition, asked, committed)
        except Exception as error:
            if self._stop.is_set():  # a look-up that was cut short by the end is no failure
                return None
            if not isinstance(error, EnvironmentFault | RetryableError):
                raise
            LOG.warning("not placed %s", log.fields(partition=partition, retry_in_s=asked.delay_s, error=error))
            asked.again()
            return None

    def _answer(self, partition: TopicPartition, asked: _Asked, committed: Position) -> Position | None:
        if asked.answer is None:
            if time.monotonic() >= asked.not_before:
                asked.answer = self._threads.submit(self._look_up, partition, asked.epoch, committed)
            return None
        if not asked.answer.done():
            return None
        found = asked.answer.result()
        if found is None:  # given up, because it was not wanted for a moment
            asked.again()
            return None
        self._asked.pop(partition, None)
        return found

    def revoke(self, partitions: Iterable[TopicPartition]) -> None:
        """Look nothing up of partitions that are ours no longer."""
        for partition in partitions:
            self._asked.pop(partition, None)

    def close(self) -> None:
        """Wait for no answer any longer."""
        self._stop.set()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _look_up(self, partition: TopicPartition, epoch: int, committed: Position) -> Position | None:
        # Where a file's output is behind, its records are read again, and the topics must not take them twice.
        outputs = {name: committed.outputs.get(name, committed.offset) for name in self._topics}
        reached = max(outputs.values(), default=committed.offset)
        for output in self._files:
            end = output.find(partition, committed.outputs.get(output.key))
            outputs[output.key] = committed.offset if end is None else end
        start = min(outputs.values())
        if self._known is None:
            return replace(committed, offset=start, outputs=outputs)
        started = time.monotonic()
        keys = self._known.load(partition, epoch, lambda: self._wanted(partition, epoch))
        if keys is None:
            return None
        LOG.info(
            "state read %s", log.fields(partition=partition, keys=keys, seconds=round(time.monotonic() - started, 1))
        )
        # The state is as of what is committed: a file may have been put that the group has not been told of, and its records
        # are read again for the state. Where it has not been kept all along, what it says of older records is not believed.
        outputs[self._known.mark] = committed.outputs.get(self._known.mark, reached)
        return replace(committed, offset=min(start, committed.offset), outputs=outputs)

    def _wanted(self, partition: TopicPartition, epoch: int) -> bool:
        asked = self._asked.get(partition)
        return not self._stop.is_set() and asked is not None and asked.epoch == epoch
