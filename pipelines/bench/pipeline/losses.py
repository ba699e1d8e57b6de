"""The stream while nodes are lost: one that is told, one that is not, and the head.

Comes in: a stage. Goes out: what came out each second, the longest silence after each loss, and whether each record came once.
Never here: a model; the encoders stand for GPUs.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from pipelines.bench.pipeline.feed import Arrival, Arrivals, Feed
from pipelines.bench.pipeline.nodes import ENCODER, HEAD, READER, Nodes
from pipelines.bench.pipeline.part import Part, Timeline
from pipelines.bench.pipeline.simulated import TOKENS_PER_S
from pipelines.bench.pipeline.stage import PARTITIONS, TOKENS, Stage
from pipelines.loopback import end, end_with_us
from workers.errors import EnvironmentFault

ENCODERS = READERS = 2
REPLICA_TOKENS_PER_S = 25_000.0
RATE = 0.4 * ENCODERS * REPLICA_TOKENS_PER_S / TOKENS  # one encoder is enough for it
HEAD_AWAY_S = 5.0
PATIENCE_S = 180.0


class Loss(NamedTuple):
    """What was lost: when, how long until the node had gone or was back, calls that failed, and until when it was watched.

    ``begin``, ``end``: seconds since 1970.
    """

    words: str
    begin: float
    took_s: float
    failed_calls: int
    end: float


def measure(stage: Stage, *, seconds: float) -> Part:
    """A steady stream over a head and three nodes; ``seconds`` of it around each loss.

    Raises:
        EnvironmentFault: Ray or the pipeline does not come up, or stands still.
    """
    folder = stage.folder / "losses"
    folder.mkdir()
    with Nodes(folder, cpus=2, **{TOKENS_PER_S: str(REPLICA_TOKENS_PER_S)}) as nodes:
        for name in (HEAD, "a", "b", "c"):
            nodes.start(name)
        stage.fill("losses-in", PARTITIONS)
        plain = stage.settings(
            "losses",
            "losses-in",
            pool={"min": ENCODERS, "max": ENCODERS, "cpus_per_replica": 1, "gpus_per_replica": 0},
            readers={"count": READERS, "cpus": 0.5},
            ray={"address": nodes.address},
        )
        driver = _driver(stage.write("losses", plain), nodes)
        watchdog = end_with_us(driver.pid)
        try:
            with stage.progress("losses") as progress:
                progress.reach(PARTITIONS, PATIENCE_S)
            with Arrivals(stage, plain["outputs"][0]["topic"]) as arrivals, Feed(stage, "losses-in", RATE) as feed:
                losses = _lose(nodes, folder, seconds)
                feed.stop()
                if arrivals.reach(feed.sent):  # otherwise the table says what is missing
                    time.sleep(2)  # one that comes twice would come now
                found, sent = arrivals.found[:], feed.sent
        finally:
            end(driver, watchdog)
    return _part(found, sent, losses, seconds)


def _driver(config: Path, nodes: Nodes) -> subprocess.Popen[bytes]:
    words = ["pipelines.stand_in", "pipelines.bench.pipeline.simulated:SimulatedEncoder", "-c", str(config)]
    with config.with_suffix(".log").open("ab") as out:
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", *words],
            env=os.environ | nodes.environ | {"HF_HUB_OFFLINE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            process_group=0,
        )


def _lose(nodes: Nodes, folder: Path, seconds: float) -> list[Loss]:
    """Each loss in turn; between two, everything is there again."""

    def told() -> None:
        nodes.end(_encoding(nodes))

    def untold() -> None:
        nodes.kill(_encoding(nodes))
        _whole(nodes)

    def head() -> None:
        nodes.kill(HEAD)
        time.sleep(HEAD_AWAY_S)
        nodes.start(HEAD)

    ways: list[tuple[str, Callable[[], None], str | None]] = [
        ("a node by SIGTERM", told, "d"),
        ("a node by SIGKILL", untold, "e"),
        (f"the head by SIGKILL, back after {HEAD_AWAY_S:.0f} s", head, None),
    ]
    losses = []
    for words, lose, successor in ways:
        _whole(nodes)
        time.sleep(seconds)
        failed, begin = _failed_calls(folder), time.time()
        lose()
        took = time.time() - begin
        if successor is not None:
            nodes.start(successor)
        time.sleep(seconds)
        losses.append(Loss(words, begin, took, _failed_calls(folder) - failed, time.time()))
    return losses


def _encoding(nodes: Nodes) -> str:
    """A node that has an encoder, and rather no reader."""
    encoders, readers = nodes.of(ENCODER), nodes.of(READER)
    having = [name for name, count in encoders.items() if count]
    if not having:
        raise EnvironmentFault("no node runs an encoder")
    return min(having, key=lambda name: readers[name])


def _whole(nodes: Nodes) -> None:
    """Wait until every replica runs somewhere."""
    deadline = time.monotonic() + PATIENCE_S
    while sum(nodes.of(ENCODER).values()) < ENCODERS or sum(nodes.of(READER).values()) < READERS:
        if time.monotonic() > deadline:
            raise EnvironmentFault(f"after {PATIENCE_S:.0f} s the replicas are not all back")
        time.sleep(0.5)


def _failed_calls(folder: Path) -> int:
    """What the readers said of calls to encoders, in Ray's own logs, so that no driver is needed to hear it."""
    logs = {
        log.resolve() for log in folder.glob("ray/session_*/logs/worker-*.err")
    }  # session_latest is one of them again
    return sum(line.count("call failed") for log in logs for line in log.open(encoding="utf-8", errors="replace"))


def _part(found: Sequence[Arrival], sent: int, losses: Sequence[Loss], seconds: float) -> Part:
    times = Counter(each.key for each in found)
    missing = sum(b"%d" % number not in times for number in range(sent))
    twice = sum(count - 1 for count in times.values())
    if not found:
        raise EnvironmentFault("no record came out")
    start = found[0].at
    counts = Counter(int(each.at - start) for each in found)
    per_second = [float(counts[second]) for second in range(int(found[-1].at - start) + 1)]
    rows = [
        (loss.words, f"{loss.took_s:.1f}", f"{loss.failed_calls}", f"{_silence(found, loss.begin, loss.end):.1f}")
        for loss in losses
    ]
    return Part(
        "losses",
        "Nodes lost under a steady stream",
        ("lost", "took s", "failed calls", "longest silence s"),
        rows,
        (
            f"{sent:,} records, {RATE:,.0f} a second, through {READERS} readers and {ENCODERS} simulated GPUs of "
            f"{REPLICA_TOKENS_PER_S:,.0f} tokens/s on three Ray nodes and a head with fault tolerance (RocksDB), all on this "
            f"machine: {missing} lost, {twice} twice. A node by SIGTERM took until it had gone, one by SIGKILL until other "
            "processes stood in for it, the head until it was back. Silence is between two arrivals at a reader of committed "
            f"records, until {seconds:.0f} s after that; a commit comes once a second.",
        ),
        {
            "sent": sent,
            "lost": missing,
            "twice": twice,
            "records_per_s": per_second,
            "losses": [
                {
                    **loss._asdict(),
                    "silence_s": _silence(found, loss.begin, loss.end),
                    "begin": loss.begin - start,
                    "end": loss.end - start,
                }
                for loss in losses
            ],
        },
        Timeline(
            "records/s committed",
            per_second,
            [(loss.words, loss.begin - start, loss.begin - start + max(loss.took_s, 1.0)) for loss in losses],
        ),
    )


def _silence(found: Sequence[Arrival], begin: float, end: float) -> float:
    """The longest time without an arrival."""
    times = [begin, *(each.at for each in found if begin < each.at < end), end]
    return max(later - earlier for earlier, later in itertools.pairwise(times))
