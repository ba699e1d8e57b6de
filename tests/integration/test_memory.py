"""A reader's memory: flat over a million records, and under its ceiling while a sink does not take what comes.

``python -m pytest -s -m soak tests/integration/test_memory.py`` prints the table.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pytest

from pipelines.broker import Broker
from tests.integration.pipeline import Pipeline, reading, wait_until
from tests.tiny_model import make_tiny_bert
from workers import kafka_client, kafka_topics
from workers.errors import StreamEmbedderError

RECORDS = 1_000_000
# Until here the reader fills its limits, its allocator finds its size, and every path is taken once.
WARM = 200_000
LIMIT_RECORDS = 20_000
LIMIT_BYTES = 8 << 20
MIB = 1 << 20
# What a record in flight costs beside its own bytes: itself, its document, its tokens, its place in the ledger.
RECORD_COST = 5 << 10
# A row of this test's, in memory.
ROW_BYTES = 200
PAUSE_S = 20.0
DIM = 16


@dataclass(frozen=True)
class Look:
    """The reader at one moment: MiB of resident memory, and what the group has committed."""

    at: float
    rss: float
    committed: int


@dataclass
class Sampler(threading.Thread):
    """Looks once a second."""

    pipeline: Pipeline
    broker: Broker
    pid: int
    looks: list[Look] = field(default_factory=list)
    in_flight: float = 0.0
    held: float = 0.0
    committed: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        began = time.monotonic()
        asking = threading.Thread(target=self._ask, daemon=True)
        asking.start()
        while not self.stop.wait(1.0):
            with contextlib.suppress(OSError):
                self.looks.append(Look(time.monotonic() - began, resident(self.pid), self.committed))
            found = self.pipeline.scrape()
            self.in_flight = max(self.in_flight, found.get("in_flight_records", 0.0))
            self.held = max(self.held, held(found))
        asking.join(30)

    def _ask(self) -> None:
        """What is committed; on a thread of its own, because a broker that is paused does not say."""
        while not self.stop.wait(0.5):
            with contextlib.suppress(StreamEmbedderError), kafka_client.admin(self.broker.settings) as client:
                while not self.stop.wait(0.5):
                    self.committed = sum(kafka_topics.committed_offsets(client, "group").values())

    def level(self) -> float:
        """Memory now: the median of the last twenty looks."""
        return statistics.median(look.rss for look in self.looks[-20:])


def resident(pid: int) -> float:
    """Resident memory of a process, in MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / MIB


def by_minute(looks: list[Look]) -> list[float]:
    """The highest level in each minute, in MiB."""
    last = int(looks[-1].at // 60)
    return [max((look.rss for look in looks if look.at // 60 == minute), default=0.0) for minute in range(last + 1)]


def held(found: dict[str, float]) -> float:
    """Bytes that count against ``limits.bytes``."""
    return found.get("in_flight_bytes", 0.0) + found.get("file_bytes_waiting", 0.0)


def value(number: int) -> bytes:
    """A small document, of which no two are alike."""
    return json.dumps(
        {"id": str(number), "text": f"stream {number} of texts, vector {number * 7919 % 10_007}"}
    ).encode()


class Feeder(threading.Thread):
    """Produces as fast as it can."""

    def __init__(self, broker: Broker, topic: str, count: int) -> None:
        super().__init__(daemon=True)
        self.broker, self.topic, self.count = broker, topic, count
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            producer = kafka_client.bare_producer(
                self.broker.settings,
                linger_ms=20,
                batch_size=256 << 10,
                compression_type="lz4",
                delivery_timeout_ms=120_000,
            )
            for number in range(self.count):
                last = producer.send(self.topic, key=b"%d" % number, value=value(number))
                if number % 20_000 == 0:
                    last.get(timeout=120)
            producer.flush(timeout=120)
            producer.close()
        except BaseException as error:
            self.failure = error


@pytest.fixture
def run(own_broker: Broker, tmp_path: Path) -> Iterator[Pipeline]:
    kafka_topics.create_topics(own_broker.settings, {"in": 4, "out": 4, "dead": 1})
    settings: dict[str, Any] = {
        "model": {"name": str(make_tiny_bert(tmp_path / "model"))},
        "source": {"topics": ["in"], "group": "group", "text": "text", "id": "id"},
        "outputs": [
            {"topic": "out", "dim": DIM, "format": "binary"},
            {
                "kind": "parquet",
                "uri": (tmp_path / "lake").as_uri(),
                "dim": DIM,
                "rotate": {"rows": 10_000, "seconds": 5},
            },
        ],
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap_servers": own_broker.bootstrap_servers},
        "readers": {"cpus": 0.5},
        "pool": {"cpus_per_replica": 0.5, "gpus_per_replica": 0},
        "limits": {"records": LIMIT_RECORDS, "bytes": LIMIT_BYTES},
    }
    with Pipeline(tmp_path, settings, "pipelines.stand_in pipelines.stub:StubEncoder") as pipeline:
        wait_until(lambda: "running; SIGTERM" in pipeline.tail(), 120, pipeline.tail)
        yield pipeline


@contextlib.contextmanager
def refusing(folder: Path) -> Iterator[None]:
    """The folder takes no file, from root either: another file is where it was."""
    aside = folder.with_name("aside")
    folder.rename(aside)
    folder.touch()
    try:
        yield
    finally:
        folder.unlink()
        aside.rename(folder)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_flat_over_a_million_records(run: Pipeline, own_broker: Broker, tmp_path: Path) -> None:
    """The broker freezes for a while, then the folder of the files refuses them: the limits hold, and nothing grows."""
    reader = run.wait_for("ServeReplica:stream-embedder:Reader")[0]
    empty = resident(reader)
    feeder, sampler = Feeder(own_broker, "in", RECORDS), Sampler(run, own_broker, reader)
    feeder.start()
    sampler.start()
    table: list[tuple[str, float, float]] = [("empty", empty, 0)]

    def comes_to(count: int) -> None:
        seen = [-1, time.monotonic()]

        def moves() -> bool:
            if sampler.committed != seen[0]:
                seen[:] = sampler.committed, time.monotonic()
            assert time.monotonic() - seen[1] < 120, f"stands at {seen[0]} of {count}\n{run.tail()}"
            return sampler.committed >= count

        wait_until(moves, 3000, run.tail)

    def note(name: str) -> None:
        table.append((name, sampler.level(), sampler.committed))

    comes_to(WARM)
    note("warm")
    warm, begin = sampler.level(), len(sampler.looks)
    comes_to(2 * WARM)
    note("flowing")
    own_broker.pause()
    time.sleep(PAUSE_S)
    note("broker frozen")
    own_broker.resume()
    comes_to(3 * WARM)
    note("flowing")
    with refusing(tmp_path / "lake"):
        wait_until(lambda: held(run.scrape()) >= LIMIT_BYTES, 300, run.tail)
        time.sleep(PAUSE_S)
        note("files refused")
        at = sampler.committed
        time.sleep(3)
        assert sampler.committed == at, "the files did not stall the source"
    comes_to(4 * WARM)
    note("flowing")
    comes_to(RECORDS)
    note("done")
    sampler.stop.set()
    sampler.join(60)
    feeder.join(10)
    assert feeder.failure is None
    looks = sampler.looks[begin:]
    peak = max(look.rss for look in looks)
    # Rows that wait, what the client has fetched, and what is on its way to the store: each may be as large as the limit.
    ceiling = empty + (LIMIT_RECORDS * RECORD_COST + 3 * LIMIT_BYTES) / MIB
    level = max(statistics.median(look.rss for look in looks[at : at + 10]) for at in range(len(looks) - 9))
    rate = (looks[-1].committed - looks[0].committed) / (looks[-1].at - looks[0].at)
    lines = [f"{name:14} {rss:7.1f} MiB   {count:9,} records" for name, rss, count in table]
    lines += [f"{'highest level':14} {level:7.1f} MiB   {level / warm - 1:+.1%} of warm"]
    lines += [f"{'peak':14} {peak:7.1f} MiB   {peak / warm - 1:+.1%} of warm; ceiling {ceiling:.0f} MiB"]
    lines += [
        f"in flight at most {sampler.in_flight:,.0f} records, {sampler.held / MIB:.1f} MiB; {rate:,.0f} records/s"
    ]
    lines += ["peaks of each minute: " + " ".join(f"{peak:.0f}" for peak in by_minute(sampler.looks))]
    print("\n" + "\n".join(lines))
    assert run.wait_for("ServeReplica:stream-embedder:Reader") == [reader], "the reader was replaced"
    assert level <= 1.10 * warm, "it grows"
    assert peak <= ceiling, "not even for a second"
    assert LIMIT_RECORDS / 2 < sampler.in_flight <= LIMIT_RECORDS
    # What is in flight when the partitions pause becomes rows, which are larger than their records.
    assert LIMIT_BYTES <= sampler.held <= LIMIT_BYTES + LIMIT_RECORDS * ROW_BYTES
    assert run.terminate() == 0, run.tail()
    check_outputs(own_broker, tmp_path / "lake")


def check_outputs(broker: Broker, lake: Path) -> None:
    """Each record once, in the topic and in the files."""
    seen = bytearray(RECORDS)
    with reading(broker.settings, "out") as out:
        until = time.monotonic() + 300
        count = 0
        while count < RECORDS and time.monotonic() < until:
            out.poll()
            for record in out.records:
                seen[int(record.key)] += 1
            count += len(out.records)
            out.records.clear()
        for _ in range(5):
            out.poll()
    assert (count, len(out.records), seen.count(1)) == (RECORDS, 0, RECORDS)
    rows = duckdb.sql(f"select count(*), count(distinct id) from read_parquet('{lake}/**/*.parquet')").fetchall()
    assert rows == [(RECORDS, RECORDS)]
