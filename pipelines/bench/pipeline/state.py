"""The state of many keys: how long a reader takes to read it, and what it costs to hold and to ask.

Comes in: a stage, a number of keys. Goes out: a table. Never here: a pipeline; the state topic is filled as its sink fills it.
"""

from __future__ import annotations

import random
import resource
import time
from pathlib import Path

from pipelines.bench.pipeline.part import Part
from pipelines.bench.pipeline.stage import Stage
from workers import kafka_topics, metrics
from workers.errors import EnvironmentFault
from workers.records import Document, Message, Origin, Record, TopicPartition
from workers.sinks.kafka import IdempotentSink
from workers.state import Change, Digests, Entry, Known
from workers.state.entry import state_key, write_entry
from workers.state.kafka_log import state_log

TOPIC, SOURCE = "state", TopicPartition("documents", 0)
WRITE = 50_000
ASKED = 20_000


def measure(stage: Stage, *, keys: int) -> Part:
    """Fill a partition of a state topic, read it as a reader that was given its partition does, ask it, change it.

    Raises:
        EnvironmentFault: the broker does not take or give the records.
    """
    kafka_topics.create_topics(stage.kafka, {TOPIC: 1}, **{"cleanup.policy": "compact"})
    _fill(stage, keys)
    digests = Digests(["f"])
    known = Known(TOPIC, state_log(stage.kafka, TOPIC), digests, skip=True)
    before = _memory()
    started = time.monotonic()
    if known.load(SOURCE, 1, lambda: True) != keys:
        raise EnvironmentFault(f"the state topic does not hold {keys:,} keys")
    read_s = time.monotonic() - started
    after = _memory()
    known.assign(SOURCE, 1, 0)
    picks = random.Random(0).sample(range(keys), min(keys, ASKED))  # noqa: S311
    found = [(_record(number), Document(str(number), "text")) for number in picks]
    started = time.monotonic()
    known.recognise(found)
    ask_us = 1e6 * (time.monotonic() - started) / len(found)
    entry = Entry(b"\1" * 16, 100)
    changes = [Change(n, state_key(SOURCE.topic, b"%d" % number), entry) for n, number in enumerate(picks)]
    started = time.monotonic()
    for start in range(0, len(changes), 2_000):
        known.released(SOURCE, 1, changes[start : start + 2_000], start + 2_000)
    put_us = 1e6 * (time.monotonic() - started) / len(changes)
    held = known.disk_bytes
    known.close()
    own, mapped = (after[kind] - before[kind] for kind in ("RssAnon", "RssFile"))
    values = {
        "keys": keys,
        "read_s": read_s,
        "keys_per_s": keys / read_s,
        "disk_bytes": held,
        "own_bytes": own,
        "cached_bytes": mapped,
        "peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "ask_us": ask_us,
        "put_us": put_us,
    }
    row = (
        f"{keys:,} keys",
        f"{read_s:,.1f}",
        f"{keys / read_s:,.0f}",
        f"{held / 2**20:,.0f}",
        f"{own / 2**20:,.0f}",
        f"{ask_us:,.1f}",
        f"{put_us:,.1f}",
    )
    return Part(
        "state",
        "The state of many keys",
        (
            "one partition",
            "seconds to read",
            "keys/s",
            "MiB on disk",
            "MiB of memory",
            "µs to ask a key",
            "µs to change one",
        ),
        [row],
        (
            "Read from the state topic when a partition is assigned, into a file that has no name. Memory is what the process "
            "has of its own; the system keeps of the file in memory what there is room for.",
        ),
        values,
    )


def _fill(stage: Stage, keys: int) -> None:
    sink = IdempotentSink(stage.kafka, [TOPIC], metrics.Metrics(), commit=lambda _: None)
    sink.open()
    try:
        for start in range(0, keys, WRITE):
            value = write_entry(Entry(start.to_bytes(16, "big"), 100))
            sink.write(
                [
                    Message(TOPIC, state_key(SOURCE.topic, b"%d" % number), value, (), -1, SOURCE.partition)
                    for number in range(start, min(keys, start + WRITE))
                ]
            )
    finally:
        sink.close()


def _record(number: int) -> Record:
    return Record(Origin(*SOURCE, number, 1), b"%d" % number, b"", -1)


def _memory() -> dict[str, int]:
    """This process's memory in bytes: its own, and what it has mapped of files."""
    path = Path("/proc/self/status")
    lines = path.read_text(encoding="ascii").splitlines() if path.is_file() else []
    found = {
        name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines) if "Rss" in name
    }
    return {"RssAnon": found.get("RssAnon", 0), "RssFile": found.get("RssFile", 0)}
