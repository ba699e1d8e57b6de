"""Where requests wait for their vectors: calls to the encoders, each of what waits, as many at a time as they take.

Comes in: token ids. Goes out: unit vectors, or a refusal by the deadline. Never here: text, HTTP, or Ray. All of it runs in one
event loop, but for the pool's callbacks.

Nothing lingers: while a call is under way, what comes meanwhile gathers for the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future

from pipelines.queries.line import Line, Waiting
from pipelines.queries.refusal import Refusal, full
from workers import log, metrics
from workers.deadline import Deadline
from workers.outcomes import is_sound
from workers.pool import Answer, EncoderPool
from workers.records import Batch, type_ids, type_vectors

LOG = log.get(__name__)

# More tokens than this are not let in while others wait: it is what they all would have to wait for.
MOST_WAITING_TOKENS = 1_000_000
# When to ask again after an answer that did not come in time: encoders are starting, or busy.
RETRY_S = 5


class Desk:
    """For all requests of one replica."""

    def __init__(self, pool: EncoderPool, *, dim: int, budget: int, meter: metrics.Metrics) -> None:
        """``pool`` makes vectors of ``dim`` dimensions; ``budget``: tokens of one call."""
        self._pool = pool
        self._dim = dim
        self._budget = budget
        self._meter = meter
        self._line = Line()
        self._waiting = 0
        self._tokens = 0
        self._under_way = 0
        meter.set(metrics.QUERIES_WAITING, 0)
        meter.set(metrics.QUERY_CALLS, 0)

    @property
    def starved(self) -> bool:
        """Whether somebody waits, and there is no encoder to ask."""
        return len(self._line) > 0 and self._pool.capacity() == 0

    async def embed(self, ids: Sequence[type_ids], deadline: Deadline) -> type_vectors:
        """Vectors of texts: float32 [texts, dim], unit length, in their order.

        Raises:
            Refusal: too many wait already (429); no encoder has answered by the deadline (503); a text has no vector (400).
        """
        tokens = sum(map(len, ids))
        if self._waiting and self._tokens + tokens > MOST_WAITING_TOKENS:
            raise full()
        waiting = Waiting.of(ids, self._dim, deadline, asyncio.get_running_loop().create_future())
        self._count(1, tokens)
        self._line.join(waiting)
        try:
            self.send()
            await asyncio.wait_for(waiting.done, deadline.remaining())
        except TimeoutError:
            raise Refusal(
                503, "no encoder has answered in time; try again", code="no_answer", retry_s=RETRY_S
            ) from None
        finally:
            self._line.leave(waiting)
            self._count(-1, -tokens)
        return waiting.vectors

    def send(self) -> None:
        """Send what waits, as far as there is an encoder for it; also for who has seen one come."""
        while self._under_way < self._pool.capacity() and (rows := self._line.take(self._budget)):
            self._under_way += 1
            self._meter.set(metrics.QUERY_CALLS, self._under_way)
            self._send(rows, asyncio.get_running_loop())

    def _send(self, rows: list[tuple[Waiting, int]], loop: asyncio.AbstractEventLoop) -> None:
        batch = Batch.of([waiting.ids[number] for waiting, number in rows])
        last = max((waiting.deadline for waiting, _ in rows), key=Deadline.remaining)
        self._pool.submit(batch, last).add_done_callback(
            lambda future: loop.call_soon_threadsafe(self._answered, rows, future)
        )

    def _answered(self, rows: list[tuple[Waiting, int]], future: Future[Answer]) -> None:
        self._under_way -= 1
        self._meter.set(metrics.QUERY_CALLS, self._under_way)
        try:
            answer = future.result()
        except Exception as error:  # noqa: BLE001 - the pool's own, or a bug's: whoever waits is told, and asks again
            LOG.warning("queries not answered %s", log.fields(error=type(error).__name__, texts=len(rows)))
            for waiting, _ in rows:
                _end(waiting, Refusal(503, "no encoder has answered; try again", code="no_answer", retry_s=RETRY_S))
        else:
            self._meter.add(metrics.QUERY_ENCODER_SECONDS, answer.seconds)
            sound = is_sound(answer.vectors)
            for row, (waiting, number) in enumerate(rows):
                if row in answer.refused:
                    letter = answer.refused[row]
                    _end(waiting, Refusal(400, letter.message, code=letter.reason, param="input"))
                elif not sound[row]:
                    message = "the model gave no vector of finite, unit length for a text"
                    _end(waiting, Refusal(400, message, code="not_finite", param="input"))
                else:
                    waiting.vectors[number] = answer.vectors[row]
                    waiting.missing -= 1
                    if waiting.missing == 0 and not waiting.done.done():
                        waiting.done.set_result(None)
        self.send()

    def _count(self, requests: int, tokens: int) -> None:
        self._waiting += requests
        self._tokens += tokens
        self._meter.set(metrics.QUERIES_WAITING, self._waiting)


def _end(waiting: Waiting, why: Refusal) -> None:
    if not waiting.done.done():
        waiting.done.set_exception(why)
