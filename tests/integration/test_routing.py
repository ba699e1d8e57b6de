"""Calls through a real Serve go to the shortest of their sender's lines; nobody is asked for room, and the dead get no more."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from pipelines import cluster
from tests.integration.conftest import own_ray_folder
from tests.integration.pipeline import wait_until
from workers.settings import Settings

pytestmark = [pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

REPLICAS, MOST = 4, 2
APP = "routing"
PATIENCE_S = 120.0


class Replica:
    """Says who it is and how many calls it had with this one, after so many seconds."""

    def __init__(self) -> None:
        self._under_way = 0
        self._broken = False

    async def call(self, seconds: float) -> tuple[int, int]:
        if self._broken:
            raise RuntimeError("broken")
        self._under_way += 1
        most = self._under_way
        await asyncio.sleep(seconds)
        self._under_way -= 1
        return os.getpid(), most

    async def break_down(self) -> None:
        self._broken = True

    async def large(self, mebibytes: int) -> np.ndarray:
        return np.ones(mebibytes << 18, np.float32)

    async def die(self) -> None:
        os._exit(1)


@pytest.fixture(scope="module")
def handle() -> Iterator[Any]:
    """Of four replicas."""
    from ray import serve

    from workers.routing import shortest_line

    with own_ray_folder(), cluster.connected(Settings()):
        serve.start(proxy_location="Disabled")
        deployment = serve.deployment(Replica).options(
            num_replicas=REPLICAS,
            # More callers than there are: what a replica would hold back is not what is looked at.
            **shortest_line(most=MOST, callers=50),
            ray_actor_options={"num_cpus": 0},
            health_check_period_s=1,
        )
        yield serve.run(deployment.bind(), name=APP, route_prefix=None)
        serve.shutdown()


def at_once(handle: Any, count: int, seconds: float) -> list[tuple[int, int]]:
    responses = [handle.call.remote(seconds) for _ in range(count)]
    return [response.result(timeout_s=PATIENCE_S) for response in responses]


def test_lines_are_equal_and_nobody_is_asked(handle: Any, monkeypatch: pytest.MonkeyPatch):
    from ray.serve._private.request_router import replica_wrapper
    from ray.serve.request_router import RunningReplica

    at_once(handle, 1, 0.0)  # Serve asks replicas that are new
    asked: list[bool] = []
    probed: list[object] = []
    send, probe = replica_wrapper.ActorReplicaWrapper.send_request_python, RunningReplica.get_queue_len

    def sending(self: Any, pr: Any, *, with_rejection: bool) -> Any:
        asked.append(with_rejection)
        return send(self, pr, with_rejection=with_rejection)

    async def probing(self: Any, **given: Any) -> int:
        probed.append(self.replica_id)
        return await probe(self, **given)

    monkeypatch.setattr(replica_wrapper.ActorReplicaWrapper, "send_request_python", sending)
    monkeypatch.setattr(RunningReplica, "get_queue_len", probing)
    for _ in range(3):
        answers = at_once(handle, MOST * REPLICAS, 3.0)
        assert sorted(Counter(pid for pid, _ in answers).values()) == [MOST] * REPLICAS
    assert asked == [False] * (3 * MOST * REPLICAS)
    assert probed == []


def test_more_than_fits_waits_and_replicas_are_kept_busy(handle: Any, monkeypatch: pytest.MonkeyPatch):
    from workers import routing

    monkeypatch.setattr(routing, "TAKEN_S", 10 * PATIENCE_S)  # who waits looks again when it is woken, and never else
    answers = at_once(handle, 5 * MOST * REPLICAS, 1.0)
    mosts = {pid: max(most for who, most in answers if who == pid) for pid, _ in answers}
    assert mosts == dict.fromkeys(mosts, MOST), "as many as may be, and no more"
    assert len(answers) == 5 * MOST * REPLICAS
    counts = Counter(pid for pid, _ in answers)
    assert len(counts) == REPLICAS
    assert min(counts.values()) > 5 * MOST / 2, "none idles while others have lines"


def test_large_answers_that_are_let_go_at_once(handle: Any):
    """Of over 100 KiB: Ray keeps them elsewhere, and has ended the process of who waited for their end alone."""

    def ask(mebibytes: int) -> float:
        answer: np.ndarray = handle.large.remote(mebibytes).result(timeout_s=PATIENCE_S)
        return float(answer.sum())

    with ThreadPoolExecutor(MOST * REPLICAS) as threads:
        assert set(threads.map(ask, [1] * 200)) == {float(1 << 18)}


def test_who_is_dead_gets_no_calls_and_who_takes_its_place_does(handle: Any):
    from ray.exceptions import RayActorError

    before = {pid for pid, _ in at_once(handle, MOST * REPLICAS, 2.0)}
    with pytest.raises(RayActorError):
        handle.die.remote().result(timeout_s=PATIENCE_S)

    def answered() -> set[int]:
        with ThreadPoolExecutor(MOST * REPLICAS) as threads:
            return {pid for pid, _ in threads.map(lambda _: tried(handle), range(MOST * REPLICAS))}

    living = answered()
    assert len(living & before) == REPLICAS - 1
    wait_until(lambda: len(answered()) == REPLICAS, PATIENCE_S, lambda: "no replica takes the place of the dead one")


def test_who_fails_at_once_does_not_get_all_calls(handle: Any):
    handle.break_down.remote().result(timeout_s=PATIENCE_S)
    failed = 0
    for _ in range(50):
        try:
            handle.call.remote(0.0).result(timeout_s=PATIENCE_S)
        except RuntimeError:
            failed += 1
            time.sleep(0.1)  # the router hears of it on a thread of its own
    assert failed <= 10, "all, without distrust"


def tried(handle: Any) -> tuple[int, int]:
    """One call, again where its replica was dead."""
    from ray.exceptions import RayActorError

    for _ in range(3):
        try:
            found: tuple[int, int] = handle.call.remote(1.0).result(timeout_s=PATIENCE_S)
        except RayActorError:
            continue
        return found
    raise AssertionError("three calls in a row went to the dead")
