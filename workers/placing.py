"""Where a partition starts: at the output that is furthest behind.

Comes in: what the group has committed. Goes out: the same, with each output's own position. Never here: Kafka, or a wait in
the thread that asks: chains of files are looked up, and the state is read, by threads of their own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from workers import log
from workers.errors import EnvironmentFault, RetryableError
from workers.records import Position, TopicPartition
from workers.sinks.files import FileOutput
from workers.state import Known

T = TypeVar("T")

LOG = log.get(__name__)

MOST_BACKOFF_S = 5.0


class Placing:
    """Looks chains up. :meth:`place` is called by one thread, again and again until it answers."""

    def __init__(self, topics: Sequence[str], files: Sequence[FileOutput], known: Known | None = None) -> None:
        """Names of the outputs that are topics, the outputs that are files, and the state, where one is kept."""
        self._topics = tuple(topics)
        self._files = tuple(files)
        self._known = known
        self._asked: dict[TopicPartition, tuple[int, Future[Position]]] = {}
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="placing")
        self._stop = threading.Event()

    def place(self, partition: TopicPartition, epoch: int, committed: Position) -> Position | None:
        """The position to start an assignment at; None while a store is being asked.

        Raises:
            OtherChain: an output's chain is another pipeline's.
        """
        if not self._files and self._known is None:
            return committed
        try:
            if self._asked.get(partition, (None, None))[0] != epoch:
                self._asked[partition] = epoch, self._threads.submit(self._look_up, partition, epoch, committed)
            answer = self._asked[partition][1]
            if not answer.done():
                return None
            del self._asked[partition]
            return answer.result()
        except Exception:
            if self._stop.is_set():  # a look-up that was cut short by the end is no failure
                return None
            raise

    def close(self) -> None:
        """Wait for no answer any longer."""
        self._stop.set()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _look_up(self, partition: TopicPartition, epoch: int, committed: Position) -> Position:
        # Where a file's output is behind, its records are read again, and the topics must not take them twice.
        outputs = {name: committed.outputs.get(name, committed.offset) for name in self._topics}
        for output in self._files:
            outputs[output.key] = self._end(output, partition, epoch, committed)
        if self._known is None:
            return Position(min(outputs.values()), outputs)
        # A file may have been put that the group has not been told of; the state has not heard of its records either.
        known, started = self._known, time.monotonic()
        keys = self._asking(
            lambda: known.load(partition, epoch, lambda: self._wanted(partition, epoch)),
            partition,
            epoch,
            "state not read",
        )
        LOG.info(
            "state read %s",
            log.fields(partition=partition, keys=keys, seconds=round(time.monotonic() - started, 1)),
        )
        return Position(committed.offset, outputs)

    def _end(self, output: FileOutput, partition: TopicPartition, epoch: int, committed: Position) -> int:
        hint = committed.outputs.get(output.key)
        end = self._asking(
            lambda: output.find(partition, hint), partition, epoch, "chain not found", output=output.name
        )
        return committed.offset if end is None else end

    def _asking(self, ask: Callable[[], T], partition: TopicPartition, epoch: int, what: str, **fields: object) -> T:
        """Ask until there is an answer, or the assignment has ended."""
        delay = 0.2
        while True:
            try:
                return ask()
            except (EnvironmentFault, RetryableError) as error:
                LOG.warning("%s %s", what, log.fields(**fields, partition=partition, retry_in_s=delay, error=error))
                if self._stop.wait(delay) or not self._wanted(partition, epoch):
                    raise
            delay = min(2 * delay, MOST_BACKOFF_S)

    def _wanted(self, partition: TopicPartition, epoch: int) -> bool:
        return not self._stop.is_set() and self._asked.get(partition, (None, None))[0] == epoch
