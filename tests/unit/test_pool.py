"""The pool: what fails for the replica's sake is sent again, what fails for the text's sake is found and refused alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial

import numpy as np
import pytest

from tests.fakes import CANARY, DIM, fake_encode, fake_vector, texts_of
from workers import metrics, pool
from workers.pool import SUSPICIOUS, SUSPICIOUS_HALF, Answer, Failure, PoolClosed, RetryingPool, local_pool, timed
from workers.records import Batch, Computed, type_vectors

WAIT_S = 20.0


class ReplicaError(Exception):
    """An exception that says how it is to be read."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.value)
        self.failure = failure


def batch_of(*texts: str) -> Batch:
    return Batch.of([np.fromiter(map(ord, text), np.int32) for text in texts])


class Replica:
    """A scripted encoder: each of ``script`` is what one call does, then all calls succeed. It remembers what it was sent."""

    def __init__(self, *script: object, canary: Callable[[], None] = lambda: None) -> None:
        self.script = list(script)
        self.canary = canary
        self.sent: list[list[str]] = []
        self.canaries = 0

    def __call__(self, batch: Batch) -> type_vectors:
        if texts_of(batch) == texts_of(CANARY):
            self.canaries += 1
            self.canary()
            return fake_encode(batch)
        self.sent.append(texts_of(batch))
        step = self.script.pop(0) if self.script else None
        if isinstance(step, Exception):
            raise step
        return fake_encode(batch) if step is None else step  # type: ignore[return-value]


type_make = Callable[..., RetryingPool]


@pytest.fixture
def meter() -> metrics.Metrics:
    return metrics.Metrics()


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, meter: metrics.Metrics) -> Iterator[type_make]:
    monkeypatch.setattr(pool, "BACKOFF_S", (0.001, 0.004))
    made: list[RetryingPool] = []

    def make(
        encode: Callable[[Batch], type_vectors],
        capacity: int = 2,
        call: Callable[[Batch], Computed] | None = None,
    ) -> RetryingPool:
        made.append(
            RetryingPool(
                call or partial(timed, encode),
                dim=DIM,
                canary=CANARY,
                classify=lambda error: error.failure if isinstance(error, ReplicaError) else Failure.RAISED,
                capacity=lambda: capacity,
                meter=meter,
            )
        )
        return made[-1]

    yield make
    for each in made:
        each.close()


def vectors_of(*texts: str) -> np.ndarray:
    return np.stack([fake_vector(text) for text in texts])


@pytest.mark.parametrize("failure", list(Failure))
def test_what_failed_once_is_sent_again(failure: Failure, make: type_make, meter: metrics.Metrics):
    replica = Replica(ReplicaError(failure))
    answer = make(replica).submit(batch_of("a", "bb")).result(WAIT_S)
    assert np.array_equal(answer.vectors, vectors_of("a", "bb"))
    assert answer.refused == {}
    assert replica.sent == [["a", "bb"]] * 2
    assert meter.value(metrics.CALLS_RETRIED, cause=failure.value) == 1
    assert meter.value(metrics.CALLS_RETRIED) == 1
    assert meter.snapshot()["encode_call_seconds_count"] == 1


def test_while_nothing_ran_nothing_is_suspected_however_long_it_takes(make: type_make):
    replica = Replica(*[ReplicaError(Failure.NOTHING_RAN)] * 40)
    answer = make(replica).submit(batch_of("a")).result(WAIT_S)
    assert answer.refused == {}
    assert len(replica.sent) == 41
    assert replica.canaries == 0


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((1, DIM), np.float32),
        np.zeros((2, DIM + 1), np.float32),
        np.zeros((3, DIM), np.float32),
        np.zeros(2 * DIM, np.float32),
        [[0.0] * DIM] * 2,
        b"vectors",
    ],
    ids=lambda wrong: f"{type(wrong).__name__}{getattr(wrong, 'shape', '')}",
)
def test_an_answer_of_the_wrong_shape_is_no_answer(wrong: object, make: type_make):
    replica = Replica(wrong)
    answer = make(replica).submit(batch_of("a", "bb")).result(WAIT_S)
    assert np.array_equal(answer.vectors, vectors_of("a", "bb"))
    assert len(replica.sent) == 2


def test_none_is_no_answer(make: type_make):
    calls = iter([None, fake_encode(batch_of("a"))])
    answer = make(lambda _: next(calls)).submit(batch_of("a")).result(WAIT_S)  # type: ignore[arg-type,return-value]
    assert np.array_equal(answer.vectors, vectors_of("a"))


def test_bare_vectors_are_no_answer(make: type_make):
    """Of a replica of before an update that says how long it took: another is asked, and no text is to blame."""
    answers = [fake_encode(CANARY)] * 10

    def call(batch: Batch) -> Computed:
        if texts_of(batch) != texts_of(CANARY) and answers:
            return answers.pop()  # type: ignore[return-value]
        return timed(fake_encode, batch)

    answer = make(fake_encode, call=call).submit(batch_of("a")).result(WAIT_S)
    assert answer.refused == {}
    assert answers == []


def test_who_listens_hears_how_long_each_call_took_and_how_much_of_it_was_computing(meter: metrics.Metrics):
    heard: list[tuple[float, float]] = []

    def call(batch: Batch) -> Computed:
        if len(batch) > 1:
            raise ReplicaError(Failure.RAISED)
        time.sleep(0.02)
        return Computed(fake_encode(batch), 0.01)

    made = RetryingPool(
        call,
        dim=DIM,
        canary=CANARY,
        classify=lambda _: Failure.RAISED,
        capacity=lambda: 1,
        meter=meter,
        heard=lambda took_s, computed_s: heard.append((took_s, computed_s)),
    )
    try:
        made.submit(batch_of("a", "b")).result(WAIT_S)
    finally:
        made.close()
    assert [computed for _, computed in heard] == [0.01, 0.01], "of those that succeeded, and not of the canary"
    assert all(took >= 0.02 for took, _ in heard)


def test_the_seconds_of_an_answer_are_those_of_its_calls_that_succeeded(make: type_make):
    def call(batch: Batch) -> Computed:
        texts = texts_of(batch)
        if len(texts) > 2 or "bad" in texts:
            raise ReplicaError(Failure.RAISED)
        return Computed(fake_encode(batch), 1.0)

    answer = make(fake_encode, call=call).submit(batch_of("a", "b", "bad", "c")).result(WAIT_S)
    assert list(answer.refused) == [2]
    assert answer.seconds == 2.0, "two halves, of which one was halved again, and one text refused"
    assert answer.tokens == 3, "without the refused one's"


@pytest.mark.parametrize("poison", [{0}, {6}, {3}, {0, 1}, {2, 5}, {0, 1, 2, 3, 4, 5, 6}])
def test_poison_is_found_and_its_neighbours_get_their_vectors(
    poison: set[int], make: type_make, meter: metrics.Metrics
):
    texts = [f"raise!{n}" if n in poison else f"text {n}" for n in range(7)]
    answer = make(fake_encode).submit(batch_of(*texts)).result(WAIT_S)
    assert set(answer.refused) == poison
    for row, text in enumerate(texts):
        expected = np.zeros(DIM) if row in poison else fake_vector(text)
        assert np.array_equal(answer.vectors[row], expected), row
    for row, letter in answer.refused.items():
        assert (letter.stage, letter.reason) == ("encode", "encoder_raised")
        assert texts[row] not in letter.message
        assert f"({len(texts[row])} tokens)" in letter.message
    assert meter.value(metrics.BATCHES_BISECTED) >= 1


def test_attempts_count_those_in_company_too(make: type_make):
    answer = make(fake_encode).submit(batch_of("raise!", "b")).result(WAIT_S)
    assert answer.refused[0].attempts == 2 * SUSPICIOUS


def test_finding_a_poison_costs_few_replicas(make: type_make, meter: metrics.Metrics):
    """Each failure may be a replica's death: as many as it takes to suspect, one for each half, and the last text's own."""
    texts = ["raise!", *(f"text {n}" for n in range(63))]
    answer = make(fake_encode).submit(batch_of(*texts)).result(WAIT_S)
    assert set(answer.refused) == {0}
    halves = 5  # of 32, 16, 8, 4 and 2 texts
    assert meter.value(metrics.CALLS_RETRIED) == SUSPICIOUS + halves * SUSPICIOUS_HALF + SUSPICIOUS


def test_a_text_that_was_alone_from_the_start_gets_as_many_chances_as_a_batch(make: type_make):
    """A trickle of texts makes calls of one; two replicas lost in a row are no fault of the text."""
    replica = Replica(*[ReplicaError(Failure.REPLICA_DIED)] * (SUSPICIOUS - 1))
    assert make(replica).submit(batch_of("a")).result(WAIT_S).refused == {}
    replica = Replica(*[ReplicaError(Failure.REPLICA_DIED)] * SUSPICIOUS)
    (letter,) = make(replica).submit(batch_of("a")).result(WAIT_S).refused.values()
    assert (letter.reason, letter.attempts) == ("encoder_died", SUSPICIOUS)


@pytest.mark.parametrize("how", ["raises", "nan", "shape"])
def test_while_the_model_is_down_nothing_is_refused(how: str, make: type_make):
    down = threading.Event()
    down.set()
    tried = 0

    def call(batch: Batch) -> type_vectors:
        nonlocal tried
        if not down.is_set():
            return fake_encode(batch)
        if texts_of(batch) != texts_of(CANARY) or how == "raises":
            tried += 1
            raise RuntimeError("out of memory")
        if how == "nan":
            return np.full((1, DIM), np.nan, np.float32)
        return np.zeros((0, DIM), np.float32)

    future = make(call).submit(batch_of("a", "raise!"))
    deadline = time.monotonic() + WAIT_S
    while tried < 5 * SUSPICIOUS and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not future.done()
    down.clear()
    answer = future.result(WAIT_S)
    assert set(answer.refused) == {1}, "the poison is found once the model works"
    assert np.array_equal(answer.vectors[0], fake_vector("a"))


def test_a_hung_text_is_refused_as_a_timeout(make: type_make):
    def call(batch: Batch) -> type_vectors:
        if any(text.startswith("hang") for text in texts_of(batch)):
            raise ReplicaError(Failure.TIMED_OUT)
        return fake_encode(batch)

    answer = make(call).submit(batch_of("a", "hang", "c")).result(WAIT_S)
    assert {row: letter.reason for row, letter in answer.refused.items()} == {1: "encoder_timeout"}


def test_the_wait_between_attempts_grows_up_to_a_limit(make: type_make, monkeypatch: pytest.MonkeyPatch):
    waits: list[float] = []
    monkeypatch.setattr(pool, "BACKOFF_S", (0.1, 0.8))
    made = make(Replica(*[ReplicaError(Failure.NOTHING_RAN)] * 8))

    class Impatient(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0)
            return False

    monkeypatch.setattr(made, "_closed", Impatient())
    made.submit(batch_of("a")).result(WAIT_S)
    for wait, middle in zip(waits, [0.1, 0.2, 0.4, 0.8, 0.8, 0.8, 0.8, 0.8], strict=True):
        assert 0.5 * middle <= wait <= 1.5 * middle
    assert len({wait / middle for wait, middle in zip(waits, [0.1, 0.2, 0.4], strict=False)}) == 3, "with jitter"


def test_close_ends_what_waits_for_its_next_attempt(make: type_make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool, "BACKOFF_S", (60.0, 60.0))
    failing = threading.Event()

    def call(_: Batch) -> type_vectors:
        failing.set()
        raise ReplicaError(Failure.NOTHING_RAN)

    made = make(call)
    future = made.submit(batch_of("a"))
    assert failing.wait(WAIT_S)
    made.close()
    assert isinstance(future.exception(5), PoolClosed)


def test_close_waits_for_no_call_that_is_out(make: type_make):
    out, go = threading.Event(), threading.Event()

    def call(batch: Batch) -> type_vectors:
        out.set()
        go.wait(WAIT_S)
        return fake_encode(batch)

    made = make(call)
    future = made.submit(batch_of("a"))
    assert out.wait(WAIT_S)
    started = time.monotonic()
    made.close()
    assert time.monotonic() - started < WAIT_S / 2
    assert not future.done()
    go.set()
    assert isinstance(future.result(WAIT_S), Answer)


def test_a_batch_sent_to_a_closed_pool_fails_with_pool_closed(make: type_make):
    """Not at the sender: a reader that ends closes the pool while its work thread may be about to send."""
    made = make(fake_encode)
    made.close()
    future: Future[Answer] = made.submit(batch_of("a"))
    assert isinstance(future.exception(5), PoolClosed)


def test_capacity_is_the_callers_up_to_the_threads_that_there_are(make: type_make):
    assert make(fake_encode, capacity=7).capacity() == 7
    assert make(fake_encode, capacity=10**6).capacity() == pool.MOST_CALLS


def test_calls_under_way_run_side_by_side(make: type_make):
    both = threading.Barrier(2)

    def call(batch: Batch) -> type_vectors:
        both.wait(WAIT_S)
        return fake_encode(batch)

    made = make(call)
    for future in [made.submit(batch_of("a")), made.submit(batch_of("b"))]:
        assert future.result(WAIT_S).refused == {}


def test_the_local_pool_encodes_one_batch_at_a_time(meter: metrics.Metrics):
    inside = 0
    most = 0

    def encode(batch: Batch) -> type_vectors:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.01)
        inside -= 1
        return fake_encode(batch)

    made = local_pool(encode, dim=DIM, canary=CANARY, meter=meter)
    began = time.monotonic()
    try:
        answers = [future.result(WAIT_S) for future in [made.submit(batch_of("a")) for _ in range(6)]]
    finally:
        made.close()
    assert most == 1
    assert all(answer.seconds >= 0.01 for answer in answers)
    assert sum(answer.seconds for answer in answers) <= time.monotonic() - began, "the wait for a turn is not in them"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Serve's own, at import
def test_what_ray_raises_is_read_as_what_it_says_about_the_batch(meter: metrics.Metrics):
    from ray import exceptions as ray_errors
    from ray.serve import exceptions as serve_errors

    read = pool.serve_pool(None, dim=DIM, canary=CANARY, capacity=lambda: 1, timeout_s=1, meter=meter)._classify
    assert read(serve_errors.BackPressureError(1, 1)) is Failure.NOTHING_RAN
    assert read(ray_errors.ActorUnavailableError("gone for now", b"0" * 16)) is Failure.NOTHING_RAN
    assert read(ray_errors.ActorDiedError()) is Failure.REPLICA_DIED
    assert read(ray_errors.RayActorError()) is Failure.REPLICA_DIED
    assert read(TimeoutError()) is Failure.TIMED_OUT
    assert read(ray_errors.GetTimeoutError()) is Failure.TIMED_OUT
    assert read(RuntimeError()) is Failure.RAISED
