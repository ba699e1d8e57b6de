"""Parquet on a real S3 server, beside a topic: the server dies, a reader dies, the pipeline starts anew; each record is once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow.parquet as pq
import pytest
import yaml

from pipelines.configure import load
from pipelines.model import Model
from pipelines.outputs import chain, file_outlets
from tests.conftest import RunningBroker
from tests.integration.pipeline import Pipeline, reading, value_of, wait_until
from tests.integration.test_exactly_once import Feeder, Sent
from tests.s3 import S3Server
from tests.tiny_model import make_tiny_bert
from workers import metrics
from workers.records import TopicPartition
from workers.settings import ParquetOutput

pytestmark = pytest.mark.timeout(300)

COUNT = 4_000


@pytest.fixture
def settings(
    broker: RunningBroker, make_topic: Callable[..., str], unique_name: Callable[[], str], tmp_path: Path
) -> dict[str, Any]:
    """A pipeline from a topic into a topic; a test adds its files."""
    return {
        "model": {"name": str(make_tiny_bert(tmp_path / "model"))},
        "source": {"topics": [make_topic(4)], "group": unique_name(), "text": "text", "id": "id"},
        "outputs": [{"kind": "kafka", "topic": make_topic(4), "dim": 8}],
        "dead_letter": {"topic": make_topic(1, max_message_bytes=2_000_000)},
        "kafka": {"bootstrap_servers": broker.bootstrap_servers},
        "readers": {"count": 2, "cpus": 0.25},
        "pool": {"cpus_per_replica": 0.5},
        "delivery": {"commit_interval_s": 0.3},
    }


def documents(count: int) -> list[Sent]:
    return [
        Sent(
            f"key-{n % 97}".encode(),
            json.dumps({"id": str(n), "text": f"text number {n}", "title": f"t{n}"}).encode(),
            (),
            good=True,
        )
        for n in range(count)
    ]


def test_the_server_and_a_reader_die_and_files_and_topic_have_each_record_once(
    broker: RunningBroker, s3: S3Server, bucket: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    uri = f"s3://{bucket}/vectors of mine"
    settings["outputs"].append(
        {
            "kind": "parquet",
            "uri": uri,
            "precision": "int8",
            "include": ["title"],
            "rotate": {"rows": 200, "seconds": 2},
        }
    )
    sent = documents(COUNT)
    # However long the start takes, most are sent while server and reader die.
    parts = sent[: COUNT // 8], sent[COUNT // 8 :]
    first, feeder = (Feeder(broker.settings, settings["source"]["topics"][0], part, COUNT / 25) for part in parts)
    files = s3.data / bucket / "vectors of mine"
    pipeline = Pipeline(tmp_path, settings)
    topic = settings["outputs"][0]["topic"]

    def rows() -> int:
        return sum(pq.read_metadata(file).num_rows for file in files.rglob("*.parquet")) if files.exists() else 0

    with reading(broker.settings, topic) as out, pipeline:
        first.start()
        wait_until(lambda: rows() > 0, 120, pipeline.tail)
        feeder.start()
        s3.stop()
        at = out.poll()
        wait_until(
            lambda: out.poll() > at + 200, 60, lambda: f"the topic does not wait for the store\n{pipeline.tail()}"
        )
        s3.start()
        pipeline.kill("ServeReplica:stream-embedder:Reader")
        before = rows()
        wait_until(lambda: rows() > before or rows() >= COUNT, 60, pipeline.tail)
        feeder.join(60)
        assert [each.failure for each in (first, feeder) if each.failure or each.is_alive()] == []
        wait_until(lambda: out.poll() >= COUNT and rows() >= COUNT, 90, lambda: f"{rows()} rows\n{pipeline.tail()}")
        assert pipeline.terminate() == 0, pipeline.tail()
        out.poll()

    assert sorted(int(value_of(record)["id"]) for record in out.records) == list(range(COUNT))
    glob = f"{files}/**/*.parquet"
    found = pl.read_parquet(glob)
    assert sorted(map(int, found["id"])) == list(range(COUNT))
    assert duckdb.sql(f"select count(*), count(distinct id) from read_parquet('{glob}')").fetchall() == [(COUNT, COUNT)]
    assert set(found["title"]) == {f"t{n}" for n in range(COUNT)}
    assert found.schema["embedding"] == pl.Array(pl.Int8, 32)
    puts = [request for request in s3.requests(bucket) if request.operation == "PutObject"]
    assert any(request.status == 200 for request in puts)


def check(settings: Mapping[str, Any], tmp_path: Path, environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    config = tmp_path / "check.yaml"
    config.write_text(yaml.safe_dump(dict(settings)), encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", "pipelines", "check", "-c", str(config)],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_check_says_in_one_sentence_what_keeps_files_from_being_put(
    s3: S3Server, bucket: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    settings["outputs"] = [{"kind": "parquet", "uri": f"s3://{bucket}/lake"}]
    good = check(settings, tmp_path, {})
    assert good.returncode == 0, good.stderr
    assert f"ok     s3://{bucket}/lake takes files" in good.stdout
    assert list((s3.data / bucket).rglob("*.parquet")) == []
    for environ, uri, sentence in (
        (
            s3.add_user(),
            f"s3://{bucket}/lake",
            "these credentials may not list, read or write it (AccessDenied): grant",
        ),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, f"s3://{bucket}/lake", "the store refuses the credentials"),
        ({}, "s3://no-such-bucket-here/lake", "there is no such bucket"),
        ({}, "file:///proc/nowhere", "file:///proc/nowhere: "),
    ):
        settings["outputs"][0]["uri"] = uri
        began = time.monotonic()
        refused = check(settings, tmp_path, environ)
        lines = [line for line in refused.stderr.splitlines() if line.startswith("wrong")]
        assert refused.returncode == 1 and len(lines) == 1, (refused.stdout, refused.stderr)
        assert sentence in lines[0] and "Traceback" not in refused.stderr
        assert time.monotonic() - began < 60


def test_files_of_another_pipeline_are_named_with_what_they_are(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["outputs"] = [{"kind": "parquet", "uri": (tmp_path / "lake").as_uri()}]
    source = settings["source"]
    config = tmp_path / "pipeline.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    model = Model.open(load(config, [], {}).settings)
    output = model.settings.outputs[0]
    assert isinstance(output, ParquetOutput)
    (outlet,) = file_outlets(model, metrics.Metrics())
    theirs = chain(model, output)
    folder = theirs.find(TopicPartition(source["topics"][0], 2), None).folder
    theirs.put(theirs.file(folder, 0, 5, lambda notes: outlet.renderer.file([], notes)))

    assert check(settings, tmp_path, {}).returncode == 0
    ours, source["group"] = source["group"], "another"
    refused = check(settings, tmp_path, {})
    assert refused.returncode == 1
    assert f"was written by group {ours}, and ours is another" in refused.stderr
    source["group"] = ours
    settings["outputs"][0]["dim"] = 16
    refused = check(settings, tmp_path, {})
    assert refused.returncode == 1 and "holds vectors with fingerprint" in refused.stderr
