"""The pipeline around simulated GPUs: what a hot partition costs, and how long a record waits for its vector.

Comes in: a stage. Goes out: drain times, and latencies from append to committed vector. Never here: a model.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.bench.pipeline.children import pipeline
from pipelines.bench.pipeline.feed import Arrivals, Feed
from pipelines.bench.pipeline.part import Part, spread
from pipelines.bench.pipeline.simulated import TOKENS_PER_S
from pipelines.bench.pipeline.stage import PARTITIONS, TOKENS, Stage
from workers.errors import EnvironmentFault

REPLICAS = 2
# Slow enough that the encoders are the bottleneck, also where readers and broker share two cores with everything.
REPLICA_TOKENS_PER_S = 25_000.0
CAPACITY = REPLICAS * REPLICA_TOKENS_PER_S / TOKENS  # records per second
HOT = 0.9
# Of many readers one has the hot partition, and must fill encoders of which its part is a quarter.
HOT_READERS, HOT_REPLICAS, HOT_TOKENS_PER_S = 4, 8, 10_000.0
HOT_CAPACITY = HOT_REPLICAS * HOT_TOKENS_PER_S / TOKENS
LOADS = (0.1, 0.5, 0.9)
INTERVALS_S = (1.0, 0.1)
MODULE = ("pipelines.stand_in", "pipelines.bench.pipeline.simulated:SimulatedEncoder")
SETTLE_S = 5.0


def hot_partition(stage: Stage, *, records: int, rounds: int) -> Part:
    """A backlog in even partitions, and one of which partition 0 has nine in ten, in turn.

    Raises:
        EnvironmentFault: the pipeline fails.
    """
    stage.fill("hot-even", records)
    stage.fill("hot-one", records, first=HOT)
    found: dict[str, list[float]] = {"hot-even": [], "hot-one": []}
    for number, source in itertools.product(range(rounds), found):
        name = f"{source}-{number}"
        plain = stage.settings(name, source, pool=_pool(HOT_REPLICAS), readers={"count": HOT_READERS, "cpus": 0.25})
        with _simulated(stage, name, plain, HOT_TOKENS_PER_S), stage.progress(name) as progress:
            progress.reach(1)
            first, begin = progress.now(), time.monotonic()
            end = progress.reach(records)
            found[source].append((records - first) / (end - begin))
    shares = [100 * hot / even for hot, even in zip(found["hot-one"], found["hot-even"], strict=True)]
    return Part(
        "hot",
        "A hot partition, while the encoders are the bottleneck",
        ("backlog", "records/s", "of even partitions"),
        [
            (f"{PARTITIONS} even partitions", spread(found["hot-even"]), "100 %"),
            (f"{100 * HOT:.0f} % of the records in one", spread(found["hot-one"]), f"{spread(shares, 1)} %"),
        ],
        (
            f"{records:,} records, {HOT_READERS} readers, {HOT_REPLICAS} simulated GPUs of {HOT_TOKENS_PER_S:,.0f} tokens/s: "
            f"{HOT_CAPACITY:,.0f} records/s at most.",
        ),
        {"records": records, "records_per_s": found, "percent": shares},
    )


def latency(stage: Stage, *, seconds: float) -> Part:
    """Records at a steady rate: how long each takes from its append to its vector, as a reader of committed records sees it.

    Raises:
        EnvironmentFault: the pipeline fails, or does not keep up.
    """
    rows, values = [], []
    for interval in INTERVALS_S:
        source = f"latency-{interval:g}-in"
        stage.fill(source, PARTITIONS)
        name = f"latency-{interval:g}"
        plain = stage.settings(
            name,
            source,
            pool=_pool(REPLICAS),
            readers={"count": 1, "cpus": 0.25},
            delivery={"commit_interval_s": interval},
        )
        with _simulated(stage, name, plain, REPLICA_TOKENS_PER_S), stage.progress(name) as progress:
            progress.reach(PARTITIONS)
            for load in LOADS:
                waits = _waits(stage, source, plain["outputs"][0]["topic"], load * CAPACITY, seconds)
                p50, p99 = np.percentile(waits, (50, 99))
                rows.append(
                    (f"{100 * load:.0f} % of {CAPACITY:,.0f} records/s", f"{interval:g}", f"{p50:,.0f}", f"{p99:,.0f}")
                )
                values.append(
                    {"load": load, "commit_interval_s": interval, "p50_ms": p50, "p99_ms": p99, "records": len(waits)}
                )
    return Part(
        "latency",
        "From append to committed vector",
        ("load", "delivery.commit_interval_s", "p50 ms", "p99 ms"),
        rows,
        (
            f"{REPLICAS} simulated GPUs of {REPLICA_TOKENS_PER_S:,.0f} tokens/s, one reader, {seconds:.0f} s for each row, the "
            f"first {SETTLE_S:.0f} not counted. A vector can be read once its transaction is committed, so half the commit "
            "interval is in the median.",
        ),
        {"rows": values},
    )


def _pool(replicas: int) -> dict[str, Any]:
    return {"min": replicas, "max": replicas, "cpus_per_replica": 0.1}


def _simulated(stage: Stage, name: str, plain: dict[str, Any], tokens_per_s: float) -> Any:
    return pipeline(stage.write(name, plain), MODULE, **{TOKENS_PER_S: str(tokens_per_s)})


def _waits(stage: Stage, source: str, out: str, rate: float, seconds: float) -> Sequence[float]:
    """Milliseconds that each record took, in the order of arrival."""
    with Arrivals(stage, out) as arrivals, Feed(stage, source, rate) as feed:
        start = time.time()
        time.sleep(seconds)
        feed.stop()
        if not arrivals.reach(feed.sent):
            raise EnvironmentFault(f"of {feed.sent:,} records only {len(arrivals.found):,} came out")
        found = arrivals.found[:]
    return [1000 * (each.at - each.produced) for each in found if each.produced > start + SETTLE_S]
