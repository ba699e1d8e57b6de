"""A batch job from a real S3 server to it: found by patterns, read by ranges, put once, and refused by a bucket that may not."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import obstore
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.batch.inputs import find
from pipelines.batch.outlets import probe
from tests.batch_job import Job, texts
from tests.s3 import S3Server
from workers.errors import EnvironmentFault
from workers.object_store import Location


def put(s3: S3Server, bucket: str, path: str, content: bytes) -> None:
    obstore.put(s3.store(bucket), path, content)


def parquet(rows: list[object]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=3)
    return sink.getvalue()


def on_s3(tmp_path: Path, bucket: str, *inputs: str) -> Job:
    return Job(
        tmp_path,
        batch={"inputs": [f"s3://{bucket}/{name}" for name in inputs], "rows": 4},
        outputs=[{"kind": "parquet", "uri": f"s3://{bucket}/out/vectors", "include": ["title"]}],
    )


def rows(s3: S3Server, bucket: str, folder: str) -> list[dict]:
    return pl.read_parquet(s3.data / bucket / folder / "**/*.parquet").to_dicts()


def test_a_job_from_a_bucket_to_it_is_done_once(tmp_path: Path, s3: S3Server, bucket: str):
    put(s3, bucket, "in/2026/a.parquet", parquet(texts(10)))
    lines = "".join(json.dumps(row) + "\n" for row in [*texts(9, "m"), {"id": "bad", "text": ""}])
    put(s3, bucket, "in/2026/05/b.jsonl.gz", gzip.compress(lines.encode()))
    put(s3, bucket, "in/2026/_SUCCESS", b"")
    put(s3, bucket, "in/2025/c.jsonl", b'{"id": "no", "text": "of another year"}\n')
    job = on_s3(tmp_path, bucket, "in/2026")
    _, made, _ = job.run(3)
    assert made.parts == 3
    found, made, _ = on_s3(tmp_path, bucket, "in/2026/**/*.*").run()  # the same files, by another name
    assert found.parts == 3 and (found + made).rows == 19 and (found + made).refused == 1
    written = rows(s3, bucket, "out/vectors")
    assert sorted(row["id"] for row in written) == sorted([f"n{n}" for n in range(10)] + [f"m{n}" for n in range(9)])
    assert {row["topic"] for row in written} == {
        f"s3://{bucket}/in/2026/a.parquet",
        f"s3://{bucket}/in/2026/05/b.jsonl.gz",
    }
    (dead,) = rows(s3, bucket, "out/vectors-dead-letters")
    assert (dead["class"], json.loads(dead["value"])["id"]) == ("empty", "bad")


def test_a_file_by_its_name_and_one_that_is_not_there(tmp_path: Path, s3: S3Server, bucket: str):
    put(s3, bucket, "in/a.jsonl", b'{"id": "1", "text": "t"}\n')
    (file,) = find([f"s3://{bucket}/in/a.jsonl"], "auto", [])
    assert file.uri == f"s3://{bucket}/in/a.jsonl"
    for absent in ("in/b.jsonl", "in/*.csv"):
        with pytest.raises(EnvironmentFault, match="names no file that can be read"):
            find([f"s3://{bucket}/{absent}"], "auto", [])
    with pytest.raises(EnvironmentFault, match="s3://no-such-bucket-here"):
        find(["s3://no-such-bucket-here/in"], "auto", [])


def test_a_bucket_that_may_not_be_written_is_said_before_anything_starts(
    tmp_path: Path, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
):
    for name, value in s3.add_user().items():
        monkeypatch.setenv(name, value)
    job = on_s3(tmp_path, bucket, "in")
    with pytest.raises(EnvironmentFault, match=f"s3://{bucket}/out/vectors"):
        probe(job.settings, Location.parse(f"s3://{bucket}/out/vectors"))
