"""How calls scale with encoder replicas: through Ray Serve, as the pipeline sends them, and to plain actors beside.

Comes in: how many replicas, how long a call takes. Goes out: calls per second for each count, and how far that is from linear.
Never here: Kafka, a model, or a GPU: a replica sleeps for as long as a GPU would compute.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import ray
from ray import serve
from ray.serve.schema import LoggingConfig

from pipelines.bench.pipeline.part import Curve, Part
from pipelines.bench.pipeline.simulated import Device
from workers import metrics
from workers.pool import Failure, RetryingPool, serve_pool
from workers.records import Batch, Computed
from workers.routing import shortest_line

TEXTS, TOKENS, DIM = 64, 100, 256
IN_FLIGHT = 2  # calls per replica, as pool.in_flight has it
WARM_S = 2.0
TIMEOUT_S = 60.0
APP = "bench-replicas"


class Caller:
    """One reader's side of the pool: it keeps every replica supplied, and counts the answers."""

    def __init__(self, handle: Any, actors: Sequence[Any]) -> None:
        """Over a Serve ``handle``, or over ``actors`` where there is none."""
        self._batch = Batch.of([np.arange(TOKENS, dtype=np.int32)] * TEXTS)
        self._under_way = 0
        self._changed = threading.Condition()
        canary = self._batch.slice(0, 1)
        meter = metrics.Metrics()
        if handle is not None:
            self._pool = serve_pool(
                handle.encode.remote, dim=DIM, canary=canary, capacity=lambda: 256, timeout_s=TIMEOUT_S, meter=meter
            )
        else:
            self._pool = RetryingPool(
                _least_busy(actors),
                dim=DIM,
                canary=canary,
                classify=lambda _: Failure.RAISED,
                capacity=lambda: 256,
                meter=meter,
            )

    def drive(self, under_way: int, seconds: float) -> tuple[float, float]:
        """Calls answered per second with so many under way, and this process's CPU seconds per call."""
        done = 0

        def answered(_: object) -> None:
            nonlocal done
            with self._changed:
                done += 1
                self._under_way -= 1
                self._changed.notify()

        begin, first, cpu = time.perf_counter(), 0, 0.0
        warm = False
        while (now := time.perf_counter()) < begin + seconds:
            if not warm and now - begin >= WARM_S:
                warm, begin, first, cpu = True, now, done, time.process_time()
            with self._changed:
                self._changed.wait_for(lambda: self._under_way < under_way, 0.1)
                room = under_way - self._under_way
                self._under_way += room
            for _ in range(room):
                self._pool.submit(self._batch).add_done_callback(answered)
        count, spent = done - first, time.perf_counter() - begin
        used = time.process_time() - cpu
        with self._changed:
            self._changed.wait_for(lambda: self._under_way == 0, TIMEOUT_S)
        return count / spent, used / max(1, count)


def _least_busy(actors: Sequence[Any]) -> Callable[[Batch], Computed]:
    busy, lock = [0] * len(actors), threading.Lock()

    def call(batch: Batch) -> Computed:
        with lock:
            place = min(range(len(busy)), key=busy.__getitem__)
            busy[place] += 1
        try:
            computed: Computed = ray.get(actors[place].encode.remote(batch), timeout=TIMEOUT_S)
        finally:
            with lock:
                busy[place] -= 1
        return computed

    return call


def measure(*, most: int, call_ms: float, seconds: float, callers: int) -> Part:
    """1, 2, 4, … up to ``most`` replicas, each count for ``seconds``, by ``callers`` readers at a time."""
    counts = [2**power for power in range(most.bit_length()) if 2**power <= most]
    found: dict[str, list[tuple[float, float]]] = {"Ray Serve": [], "plain actors": []}
    with _cluster():
        for count in counts:
            for way, reach in (("Ray Serve", partial(_served, callers=callers)), ("plain actors", _plain)):
                with reach(count, call_ms / 1000) as (handle, actors):
                    found[way].append(_drive(handle, actors, count, seconds, callers))
    ideal = [1000 * count / call_ms for count in counts]
    rows = []
    for place, count in enumerate(counts):
        cells = [f"{count}", f"{ideal[place]:,.0f}"]
        for way in found:
            rate, cpu = found[way][place]
            cells += [f"{rate:,.1f}", f"{100 * rate / ideal[place]:.0f} %", f"{1000 * cpu:.2f}"]
        rows.append(tuple(cells))
    return Part(
        "replicas",
        f"Simulated GPUs, {call_ms:g} ms a call",
        (
            "replicas",
            "linear, calls/s",
            "Ray Serve, calls/s",
            "of linear",
            "caller's CPU, ms/call",
            "plain actors, calls/s",
            "of linear",
            "caller's CPU, ms/call",
        ),
        rows,
        (
            f"Calls of {TEXTS} texts with {TOKENS} tokens, answered with {DIM} dimensions, {IN_FLIGHT} under way for each replica, "
            f"by {callers} {'reader' if callers == 1 else 'readers'}; broker, callers and all replicas share this machine's cores.",
        ),
        {
            "call_ms": call_ms,
            "callers": callers,
            "replicas": counts,
            "calls_per_s": {way: [rate for rate, _ in pairs] for way, pairs in found.items()},
            "caller_cpu_s_per_call": {way: [cpu for _, cpu in pairs] for way, pairs in found.items()},
        },
        Curve(
            "replicas",
            "calls per second",
            {
                way: [(float(count), rate) for count, (rate, _) in zip(counts, pairs, strict=True)]
                for way, pairs in found.items()
            },
            [(float(count), rate) for count, rate in zip(counts, ideal, strict=True)],
        ),
    )


def _drive(handle: Any, actors: Sequence[Any], count: int, seconds: float, callers: int) -> tuple[float, float]:
    caller_class = ray.remote(Caller).options(num_cpus=0, max_concurrency=2)
    made = [caller_class.remote(handle, list(actors)) for _ in range(callers)]
    try:
        each = -(-IN_FLIGHT * count // callers)
        found = ray.get([caller.drive.remote(each, seconds) for caller in made])
    finally:
        for caller in made:
            ray.kill(caller)
    rate = sum(calls for calls, _ in found)
    return rate, sum(calls * cpu for calls, cpu in found) / rate


@contextmanager
def _cluster() -> Iterator[None]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address="local", include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    try:
        quiet = LoggingConfig(log_level="ERROR", enable_access_log=False)
        serve.start(proxy_location="Disabled", logging_config=quiet)
        yield
    finally:
        ray.shutdown()


@contextmanager
def _served(count: int, call_s: float, *, callers: int) -> Iterator[tuple[Any, Sequence[Any]]]:
    quiet = LoggingConfig(log_level="ERROR", enable_access_log=False)
    deployment = serve.deployment(Device).options(
        name="Encoder",
        num_replicas=count,
        **shortest_line(most=IN_FLIGHT, callers=callers),
        ray_actor_options={"num_cpus": 0},
    )
    yield serve.run(deployment.bind(DIM, call_s), name=APP, route_prefix=None, logging_config=quiet), ()
    serve.delete(APP)


@contextmanager
def _plain(count: int, call_s: float) -> Iterator[tuple[Any, Sequence[Any]]]:
    device_class = ray.remote(Device).options(num_cpus=0)
    actors = [device_class.remote(DIM, call_s) for _ in range(count)]
    yield None, actors
    for actor in actors:
        ray.kill(actor)
