"""What the way costs beside the client library: our reader, and the shortest loop that moves the same bytes exactly once.

Comes in: a stage. Goes out: records per second, CPU per record, and their ratio, round by round. Never here: the loops, which
run in processes of their own (``loops``).
"""

from __future__ import annotations

import base64
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.bench.pipeline.children import run_loop
from pipelines.bench.pipeline.part import Part, spread
from pipelines.bench.pipeline.stage import TOKENS, Stage
from workers import kafka_client

# What each thread of a reader does, by how its name begins.
THREADS = {
    "poll": "taking records over from the client",
    "work": "decoding, batching and settling",
    "commit": "rendering, and handing to the producer",
    "kafka-io-stream-embedder": "the consumer's network",
    "kafka-python-producer": "sending",
}
NAMES = {
    "bare": "kafka-python alone: poll, produce, commit",
    "ours": "stream-embedder, an encoder that answers at once",
}


def measure(stage: Stage, *, records: int, rounds: int) -> Part:
    """Both loops in turn over the same topic, ``rounds`` times.

    Raises:
        EnvironmentFault: a loop fails.
    """
    source = "plumbing-in"
    stage.fill(source, records)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
    sample: Any = None
    for number in range(rounds):
        for loop in ("ours", "bare"):  # the first of ours makes the record that the other one produces
            settings = stage.settings(f"plumbing-{loop}-{number}", source)
            job: dict[str, Any] = {"loop": loop, "records": records, "tokens": TOKENS, "settings": settings}
            if sample is not None:
                job |= {
                    "value": base64.b64encode(sample.value).decode(),
                    "headers": [(name, (value or b"").decode()) for name, value in sample.headers],
                }
            found[loop].append(run_loop(job))
            sample = sample or _first(stage, settings["outputs"][0]["topic"])
    cpu = {name: [1e6 * figures["cpu_s"] / figures["records"] for figures in rounds] for name, rounds in found.items()}
    per_core = [100 * theirs / own for theirs, own in zip(cpu["bare"], cpu["ours"], strict=True)]
    rows = [
        (
            NAMES[name],
            spread([figures["records"] / figures["wall_s"] for figures in found[name]]),
            spread(cpu[name], 1),
            spread([1e6 / one for one in cpu[name]]),
            f"{max(figures['peak_mib'] for figures in found[name]):,.0f}",
        )
        for name in NAMES
    ]
    size = len(sample.value) + sum(len(name) + len(value or b"") for name, value in sample.headers)
    return Part(
        "plumbing",
        "The way without the encoder",
        ("loop", "records/s", "CPU µs per record", "records per CPU second", "peak MiB"),
        rows,
        (
            f"{records:,} JSON records with texts of {TOKENS} tokens, tokenised beforehand, into records of {size:,} bytes, in "
            f"transactions of up to 2,000, one process each, medians of {rounds} rounds in turn (from least to most).",
            f"Per core the reader moves {spread(per_core)} % of what kafka-python alone does.",
            f"Where the reader's CPU goes: {_profile(found['ours'])}.",
        ),
        {
            "records": records,
            "bytes": size,
            "rounds": found,
            "per_core_percent": per_core,
            "records_per_core": 1e6 / statistics.median(cpu["ours"]),
        },
    )


def growth(stage: Stage, *, records: int) -> Part:
    """The reader alone over so many records, and over ten times as many.

    Raises:
        EnvironmentFault: a loop fails.
    """
    rows, rounds = [], []
    for count in (records, 10 * records):
        source = f"growth-{count}"
        stage.fill(source, count)
        settings = stage.settings(f"growth-{count}-run", source)
        figures = run_loop({"loop": "ours", "records": count, "tokens": TOKENS, "settings": settings})
        rounds.append(figures)
        rows.append(
            (
                f"{count:,} records",
                f"{figures['wall_s']:,.1f}",
                f"{figures['records'] / figures['wall_s']:,.0f}",
                f"{1e6 * figures['cpu_s'] / figures['records']:,.1f}",
                f"{figures['peak_mib']:,.0f}",
            )
        )
    return Part(
        "growth",
        "Ten times the records",
        ("through the reader", "seconds", "records/s", "CPU µs per record", "peak MiB"),
        rows,
        ("The reader of the first table, once each.",),
        {"rounds": rounds},
    )


def _profile(rounds: Sequence[Mapping[str, Any]]) -> str:
    """The threads' shares, largest first."""
    totals: dict[str, float] = {}
    for figures in rounds:
        for name, seconds in figures["threads"].items():
            work = next((words for start, words in THREADS.items() if name.startswith(start)), "the rest")
            totals[work] = totals.get(work, 0.0) + seconds
    whole = sum(totals.values()) or 1.0
    ranked = sorted(totals.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{work} {100 * seconds / whole:.0f} %" for work, seconds in ranked if seconds / whole >= 0.005)


def _first(stage: Stage, topic: str) -> Any:
    """A record of a topic."""
    consumer = kafka_client.bare_consumer(stage.kafka, auto_offset_reset="earliest")
    try:
        consumer.subscribe([topic])
        while True:
            for records in consumer.poll(500, max_records=1).values():
                return records[0]
    finally:
        consumer.close()
