"""Records embedded anew beside live traffic, and the check before the new vectors take the old ones' place.

``python -m tests.reembed --records 50000`` shows it on this machine, with a Kafka broker and the packaged model:

1. ``run`` embeds the records of a topic into another one, and then live records at a steady rate: how long each takes from its
   append to its committed vector, alone.
2. ``batch`` embeds all that the topic holds anew, for another dim, into files, while the live records go on: how long they take
   now, in all of that time, and in the part of it in which vectors are written.
3. A second pipeline goes on from where the batch ended (``offsets reset --to batch``), until it has what came meanwhile.
4. ``cutover`` passes; one record is taken out of the files, and it fails.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from pipelines.bench.pipeline.feed import Arrival, Arrivals, Feed
from pipelines.bench.pipeline.stage import PARTITIONS, Stage, staged
from tests.batch_kill import WORDS
from tests.integration.pipeline import Pipeline, wait_until
from workers import kafka_client, kafka_topics

SOURCE, OLD = "docs", "old"
# Live records are not counted before this: the model has just been loaded.
SETTLE_S = 5.0


def produce(stage: Stage, count: int) -> None:
    """Records of some eight tokens under keys ``r0`` and so on."""
    draw = random.Random(8)
    kafka_topics.create_topics(stage.kafka, {SOURCE: PARTITIONS, OLD: PARTITIONS, "dead": 1})
    producer = kafka_client.bare_producer(stage.kafka, linger_ms=20, batch_size=256 << 10)
    for n in range(count):
        value = json.dumps({"id": f"r{n}", "text": f"{n}: {' '.join(draw.choices(WORDS, k=3))}"}).encode()
        producer.send(SOURCE, value, key=b"r%d" % n, partition=n % PARTITIONS)
        if n % 20_000 == 0:
            producer.flush(60)
    producer.flush(60)
    producer.close(timeout=5)


def settings_of(stage: Stage, group: str, output: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """A pipeline from the one source."""
    return {
        "kafka": {"bootstrap_servers": stage.kafka.bootstrap_servers},
        "source": {"topics": [SOURCE], "group": group, "text": "text", "id": "id"},
        "outputs": [output],
        "dead_letter": {"topic": "dead"},
        "pool": {"gpus_per_replica": 0},
        **sections,
    }


def committed(stage: Stage, group: str) -> int:
    """Records that a group is through with."""
    with kafka_client.admin(stage.kafka) as client:
        return sum(kafka_topics.committed_offsets(client, group).values())


def written(stage: Stage) -> int:
    """Records that the source has."""
    with kafka_client.admin(stage.kafka) as client:
        return sum(kafka_topics.end_offsets(client, kafka_topics.describe_topics(client, [SOURCE])).values())


def said(name: str, waits: Sequence[Arrival]) -> str:
    """A line of the table."""
    if not waits:
        raise SystemExit(f"no live record came {name}: give more --seconds, or more --records")
    took = [1000 * (each.at - each.produced) for each in waits]
    p50, p90, p99, most = np.quantile(took, [0.5, 0.9, 0.99, 1.0])
    return f"| {name} | {len(took):,} | {p50:.0f} | {p90:.0f} | {p99:.0f} | {most:.0f} |"


def command(config: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """``stream-embedder`` with these settings."""
    line = [sys.executable, "-m", "pipelines", *words, "-c", str(config)]
    return subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)


def remove_one(folder: Path) -> str:
    """Take a live record's row out of the files; its id."""
    for path in sorted(folder.rglob("batch-*/*.parquet")):
        table = pq.read_table(path)
        if len(table):
            victim: str = table.column("id")[0].as_py()
            pq.write_table(table.filter(pc.not_equal(table.column("id"), victim)), path)
            return victim
    raise SystemExit("the batch has written no files")


def shown(folder: Path, stage: Stage, words: argparse.Namespace) -> None:
    """All of it."""
    live = settings_of(
        stage, "live", {"topic": OLD, "format": "binary"}, delivery={"commit_interval_s": words.commit_interval_s}
    )
    anew = settings_of(
        stage,
        "anew",
        {"kind": "parquet", "uri": f"file://{folder}/anew", "dim": 256, "rotate": {"seconds": 2}},
        batch={"share": words.share, "rows": 2000},
        dead_letter={"topic": "dead", "uri": f"file://{folder}/dead"},
    )
    for name in ("live", "job", "anew"):
        (folder / name).mkdir()
    config = folder / "anew.yaml"
    config.write_text(yaml.safe_dump(anew))
    produce(stage, words.records)
    print("| live records | | p50 ms | p90 ms | p99 ms | most ms |\n|---|---:|---:|---:|---:|---:|")
    with Pipeline(folder / "live", live) as running:
        wait_until(lambda: committed(stage, "live") >= words.records, 900, running.tail)
        time.sleep(SETTLE_S)
        with Arrivals(stage, OLD) as arrivals, Feed(stage, SOURCE, words.live_per_s) as feed:
            time.sleep(SETTLE_S)
            began = time.time()
            time.sleep(words.seconds)
            print(said("alone", [each for each in arrivals.found if each.produced > began]), flush=True)
            started = time.time()
            with Pipeline(folder / "job", anew, "pipelines batch --json") as job:
                wait_until(lambda: any(folder.glob("anew/batch-*/*.parquet")), 300, job.tail)
                at_work = time.time()
                assert job.process is not None
                assert job.process.wait(1800) == 0, job.tail()
                ended = time.time()
                summary = json.loads(job.tail(1))
            feed.stop()
            assert arrivals.reach(feed.sent), "live records were lost"
            beside = [each for each in arrivals.found if started < each.produced < ended]
            print(said("beside the whole job, its start included", beside))
            print(said("beside it at work", [each for each in beside if each.produced > at_work]))
        assert running.terminate() == 0, running.tail()
    print(
        f"\nembedded anew: {summary['rows']:,} records, {summary['tokens']:,} tokens, with batch.share {words.share:g}, in "
        f"{summary['working_seconds']:.0f} s at work ({summary['rows_per_second']:.0f} records/s, the encoder computing for "
        f"{summary['encoders_busy']:.0%} of it); the forecast after the first tenth was off by "
        f"{summary['eta_error_after_first_tenth']:+.0%}\n",
        flush=True,
    )
    reset = command(config, "offsets", "reset", "--to", "batch")
    assert reset.returncode == 0, reset.stderr
    with Pipeline(folder / "anew", anew) as following:
        wait_until(lambda: committed(stage, "anew") >= written(stage), 300, following.tail)
        assert following.terminate() == 0, following.tail()
    check = ("cutover", "--old-topic", OLD)
    passed = command(config, *check)
    print(f"{passed.stdout}{passed.stderr}exit code {passed.returncode}")
    assert passed.returncode == 0
    victim = remove_one(folder / "anew")
    failed = command(config, *check, "--keys")
    print(f"\nwithout {victim}:\n\n{failed.stdout}{failed.stderr}exit code {failed.returncode}")
    assert failed.returncode == 1 and f"NO: 1 missing, such as {victim}" in failed.stdout


def main() -> None:
    """Parse the words, and show it."""
    parser = argparse.ArgumentParser(prog="python -m tests.reembed")
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument("--share", type=float, default=0.5, help="batch.share")
    parser.add_argument("--live-per-s", type=float, default=15.0, help="live records a second, of 100 tokens each")
    parser.add_argument("--seconds", type=float, default=40.0, help="for which live records are alone")
    parser.add_argument("--commit-interval-s", type=float, default=0.1, help="of the live pipeline")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, staged("all-MiniLM-L6-v2") as stage:
        shown(Path(folder), stage, words)


if __name__ == "__main__":
    main()
