"""The seam to the encoders: batches go out, vectors come back; a dead replica's batch goes to another.

Comes in: a batch of token arrays. Goes out: a future of its vectors, and of the texts that no encoder can take. Never
here: text, Kafka, or a model. Encoding is pure, so sending a batch twice is harmless, and losing an answer costs time only.

What happens to a batch that fails:

- nothing ran (no replica, queue full): wait, send again, for as long as it takes;
- the replica died, hung, or raised: send again; after a few times ask whether a known-good text passes. If not, the
  encoders are down, and we wait. If it does, the batch is halved until the text that does it is alone, and refused.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

import numpy as np

from workers import log, metrics
from workers.deadline import Deadline
from workers.errors import RetryableError
from workers.records import Batch, Computed, DeadLetter, type_vectors
from workers.trace import UNTRACED, Trace

LOG = log.get(__name__)

# A batch is under suspicion after so many failures that were its own or its replica's.
SUSPICIOUS = 3
# A half of a suspected batch is halved at its first failure: each may be a replica's death, and halving what is innocent only
# makes smaller calls. The text that is alone in the end is tried as often as a whole batch before it is refused.
SUSPICIOUS_HALF = 1
BACKOFF_S = (0.1, 5.0)
MOST_CALLS = 256


class Failure(Enum):
    """What a failed call says about the batch."""

    NOTHING_RAN = "unavailable"
    REPLICA_DIED = "died"
    TIMED_OUT = "timeout"
    RAISED = "raised"


@dataclass(frozen=True, slots=True)
class Answer:
    """A batch's outcome: float32 ``vectors`` [n, dim], and by row those texts that were ``refused`` (their rows are 0).

    ``tokens`` are those that were computed, in so many ``seconds``, without the wait for it.
    """

    vectors: type_vectors
    refused: dict[int, DeadLetter] = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0


class PoolClosed(RetryableError):
    """The pool was closed while a batch was under way."""


class _OtherAnswer(RetryableError):
    """A replica answers in other terms than ours: it is of before an update, or of after it."""


class NoAnswer(RetryableError):
    """No encoder has answered by a batch's deadline."""


class EncoderPool(Protocol):
    """Encoders, wherever they run."""

    def submit(self, batch: Batch, deadline: Deadline | None = None) -> Future[Answer]:
        """Send a batch; the future fails with :class:`PoolClosed`, and after a deadline with :class:`NoAnswer`, only."""

    def capacity(self) -> int:
        """How many batches may be under way now, for this caller."""

    def close(self) -> None:
        """Give up what is under way."""


class RetryingPool:
    """An EncoderPool over a blocking ``call``. It owns its threads: one per batch under way."""

    def __init__(
        self,
        call: Callable[[Batch], Computed],
        *,
        dim: int,
        canary: Batch,
        classify: Callable[[Exception], Failure],
        capacity: Callable[[], int],
        meter: metrics.Metrics,
        trace: Trace = UNTRACED,
        heard: Callable[[float, float], None] = lambda took_s, computed_s: None,
    ) -> None:
        """``canary``: one text that every encoder must be able to take; ``classify`` reads an exception of ``call``.

        ``heard``: told of each call that succeeds, from its thread: the seconds that it took, and those computed of them.
        """
        self._call = call
        self._dim = dim
        self._canary = canary
        self._classify = classify
        self._capacity = capacity
        self._meter = meter
        self._trace = trace
        self._heard = heard
        self._closed = threading.Event()
        self._threads = ThreadPoolExecutor(MOST_CALLS, thread_name_prefix="encode")

    def submit(self, batch: Batch, deadline: Deadline | None = None) -> Future[Answer]:
        """Send a batch; it is not sent again after ``deadline``, if it has one."""
        try:
            return self._threads.submit(self._encode, batch, deadline)
        except RuntimeError:  # the threads are shut down
            closed: Future[Answer] = Future()
            closed.set_exception(PoolClosed("the encoder pool is closed"))
            return closed

    def capacity(self) -> int:
        """How many batches may be under way now."""
        return min(MOST_CALLS, self._capacity())

    def close(self) -> None:
        """Give up what is under way; calls that are out are not waited for."""
        self._closed.set()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _encode(self, batch: Batch, deadline: Deadline | None) -> Answer:
        started = time.monotonic()
        answer = self._attempt(batch, deadline)
        self._meter.observe(metrics.ENCODE_SECONDS, time.monotonic() - started)
        return answer

    def _attempt(self, batch: Batch, deadline: Deadline | None, attempts: int = 0) -> Answer:
        suspicions = 0
        delay = BACKOFF_S[0]
        limit = SUSPICIOUS_HALF if attempts and len(batch) > 1 else SUSPICIOUS
        while not self._closed.is_set():
            attempts += 1
            started = time.monotonic()
            try:
                vectors, seconds = self._checked(self._call(batch), batch)
            except Exception as error:  # noqa: BLE001 - whatever a replica raises; it is classified, counted and retried
                failure = Failure.NOTHING_RAN if isinstance(error, _OtherAnswer) else self._classify(error)
                self._meter.add(metrics.CALLS_RETRIED, cause=failure.value)
                self._trace.retried(batch, failure.value)
                LOG.warning(
                    "call failed %s",
                    log.fields(cause=failure.value, error=type(error).__name__, texts=len(batch), attempts=attempts),
                )
            else:
                self._heard(time.monotonic() - started, seconds)
                return Answer(vectors, tokens=batch.tokens, seconds=seconds)
            suspicions += failure is not Failure.NOTHING_RAN
            if suspicions >= limit and self._encoders_work():
                return self._bisect(batch, deadline, attempts, failure)
            if deadline is not None and deadline.expired:
                raise NoAnswer("no encoder has answered in time")
            # Jitter, so that readers do not come back in step.
            pause = delay * (0.5 + random.random())  # noqa: S311
            self._closed.wait(pause if deadline is None else min(pause, deadline.remaining()))
            delay = min(2 * delay, BACKOFF_S[1])
        raise PoolClosed("the encoder pool is closed")

    def _bisect(self, batch: Batch, deadline: Deadline | None, attempts: int, failure: Failure) -> Answer:
        if len(batch) == 1:
            LOG.warning("text refused %s", log.fields(cause=failure.value, tokens=batch.tokens, attempts=attempts))
            letter = DeadLetter(
                "encode",
                f"encoder_{failure.value}",
                f"the encoder failed on this text ({batch.tokens} tokens), while it works on others",
                attempts,
            )
            return Answer(np.zeros((1, self._dim), np.float32), {0: letter})
        self._meter.add(metrics.BATCHES_BISECTED)
        middle = len(batch) // 2
        left = self._attempt(batch.slice(0, middle), deadline, attempts)
        right = self._attempt(batch.slice(middle, len(batch)), deadline, attempts)
        refused = left.refused | {middle + row: letter for row, letter in right.refused.items()}
        vectors = np.concatenate((left.vectors, right.vectors))
        return Answer(vectors, refused, left.tokens + right.tokens, left.seconds + right.seconds)

    def _encoders_work(self) -> bool:
        try:
            return bool(np.isfinite(self._checked(self._call(self._canary), self._canary).vectors).all())
        except Exception:  # noqa: BLE001 - any failure means the same: the encoders are down, so no text is to blame
            return False

    def _checked(self, answer: Any, batch: Batch) -> Computed:
        if not isinstance(answer, Computed):
            raise _OtherAnswer(f"an encoder answered with {type(answer).__name__}")
        vectors = answer.vectors
        if not isinstance(vectors, np.ndarray) or vectors.shape != (len(batch), self._dim):
            raise RetryableError(f"an encoder answered with {getattr(vectors, 'shape', type(vectors).__name__)}")
        return Computed(np.asarray(vectors, np.float32), answer.seconds)


def timed(encode: Callable[[Batch], type_vectors], batch: Batch) -> Computed:
    """What ``encode`` makes of a batch, and the seconds that it took."""
    started = time.monotonic()
    return Computed(encode(batch), time.monotonic() - started)


def local_pool(
    encode: Callable[[Batch], type_vectors], *, dim: int, canary: Batch, meter: metrics.Metrics
) -> RetryingPool:
    """An encoder in this process, one batch at a time: for unit tests and small jobs."""
    lock = threading.Lock()

    def call(batch: Batch) -> Computed:
        with lock:
            return timed(encode, batch)

    return RetryingPool(
        call, dim=dim, canary=canary, classify=lambda _: Failure.RAISED, capacity=lambda: 2, meter=meter
    )


def serve_pool(
    send: Callable[[Batch], Any],
    *,
    dim: int,
    canary: Batch,
    capacity: Callable[[], int],
    timeout_s: float,
    meter: metrics.Metrics,
    trace: Trace = UNTRACED,
    heard: Callable[[float, float], None] = lambda took_s, computed_s: None,
) -> RetryingPool:
    """The encoder replicas behind a Ray Serve deployment.

    ``send`` is ``handle.encode.remote``, or that of another method that takes a Batch and answers with a :class:`Computed`.
    """
    from ray import exceptions as ray_errors  # noqa: PLC0415 - Ray only where it is used
    from ray.serve import exceptions as serve_errors  # noqa: PLC0415

    def call(batch: Batch) -> Computed:
        response = send(batch)
        try:
            computed: Computed = response.result(timeout_s=timeout_s)
        except TimeoutError:
            response.cancel()
            raise
        return computed

    def classify(error: Exception) -> Failure:
        match error:
            case serve_errors.BackPressureError() | serve_errors.DeploymentUnavailableError():
                return Failure.NOTHING_RAN
            case ray_errors.ActorUnavailableError():
                return Failure.NOTHING_RAN
            case ray_errors.ActorDiedError() | ray_errors.RayActorError():
                return Failure.REPLICA_DIED
            case TimeoutError():
                return Failure.TIMED_OUT
            case _:
                return Failure.RAISED

    return RetryingPool(
        call, dim=dim, canary=canary, classify=classify, capacity=capacity, meter=meter, trace=trace, heard=heard
    )
