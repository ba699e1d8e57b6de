"""Where a partition starts: at the output that is furthest behind.

Comes in: what the group has committed. Goes out: the same, with each output's own position. Never here: Kafka, or a wait in
the thread that asks: chains of files are looked up by threads of their own.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from workers import log
from workers.errors import EnvironmentFault, RetryableError
from workers.records import Position, TopicPartition
from workers.sinks.files import FileOutput

LOG = log.get(__name__)

MOST_BACKOFF_S = 5.0


class Placing:
    """Looks chains up. :meth:`place` is called by one thread, again and again until it answers."""

    def __init__(self, topics: Sequence[str], files: Sequence[FileOutput]) -> None:
        """Names of the outputs that are topics, and the outputs that are files."""
        self._topics = tuple(topics)
        self._files = tuple(files)
        self._asked: dict[TopicPartition, tuple[int, Future[Position]]] = {}
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="placing")
        self._stop = threading.Event()

    def place(self, partition: TopicPartition, epoch: int, committed: Position) -> Position | None:
        """The position to start an assignment at; None while a store is being asked.

        Raises:
            OtherChain: an output's chain is another pipeline's.
        """
        if not self._files:
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
        return Position(min(outputs.values()), outputs)

    def _end(self, output: FileOutput, partition: TopicPartition, epoch: int, committed: Position) -> int:
        delay = 0.2
        while True:
            try:
                end = output.find(partition, committed.outputs.get(output.key))
                return committed.offset if end is None else end
            except (EnvironmentFault, RetryableError) as error:
                LOG.warning(
                    "chain not found %s",
                    log.fields(output=output.name, partition=partition, retry_in_s=delay, error=error),
                )
                if self._stop.wait(delay) or self._asked.get(partition, (None, None))[0] != epoch:
                    raise
            delay = min(2 * delay, MOST_BACKOFF_S)
