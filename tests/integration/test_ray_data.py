"""``pipelines.batch.Encode``: in this process, and in Ray Data as the README shows it; ``encode``'s vectors, in plain Parquet."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import cluster
from pipelines.batch import Encode
from pipelines.encode import run_encode
from tests.tiny_model import make_tiny_bert
from workers.errors import EnvironmentFault, SettingsError
from workers.settings import Settings

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[2]
OUTPUTS = {
    "embedding": {},
    "bits": {"dim": 16, "precision": "ubinary"},
    "small": {"dim": 8, "precision": "int8"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Settings of section model."""
    return {"name": str(make_tiny_bert(tmp_path_factory.mktemp("model"))), "dtype": "float32"}


@pytest.fixture(scope="module")
def encode(model: dict[str, object]) -> Encode:
    return Encode(model=model, text="{title|}{text}", outputs=OUTPUTS)


def documents(count: int = 60) -> list[dict[str, Any]]:
    return [{"n": n, "title": "ab" * (n % 3) or None, "text": f"text number {n} " * (n % 50 + 1)} for n in range(count)]


def by_encode(model: dict[str, object], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the command ``encode`` makes of the same rows."""
    out = io.BytesIO()
    lines = io.BytesIO("".join(json.dumps(row) + "\n" for row in rows).encode())
    settings = Settings(model=model, source={"text": "{title|}{text}"})
    run_encode(settings, dim=None, precision="float32", texts=(), lines=lines, out=out)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def compare(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for row, wanted in zip(found, expected, strict=True):
        assert row["embedding"] == pytest.approx(wanted["embedding"], abs=5e-6)
        assert (row["tokens"], row["truncated"]) == (wanted["tokens"], wanted["truncated"])
        assert row["embedding_error"] is None


def test_a_table_comes_back_with_the_vectors_of_encode(encode: Encode, model: dict[str, object]):
    rows = documents()
    table = encode(pa.Table.from_pylist(rows))
    assert table.column_names == [
        *("n", "title", "text"),
        *("embedding", "bits", "small", "small_scale", "tokens", "truncated", "embedding_error"),
    ]
    assert table.select(["n", "title", "text"]).to_pylist() == rows
    expected = by_encode(model, rows)
    compare(table.to_pylist(), expected)
    assert any(row["truncated"] for row in expected)
    for row in table.to_pylist():
        vector = np.array(row["embedding"])
        assert row["bits"] == np.packbits(vector[:16] > 0).tolist()
        cut = vector[:8] / np.linalg.norm(vector[:8])
        assert np.array(row["small"]) * row["small_scale"] == pytest.approx(cut, abs=5e-3)
    assert encode.fingerprints["embedding"] == expected[0]["fingerprint"]


def test_a_row_without_a_vector_comes_back_with_the_reason(encode: Encode):
    rows = [{"text": "good"}, {"text": None}, {"text": "  "}, {"text": "good too"}]
    found = encode(pa.Table.from_pylist(rows)).to_pylist()
    assert [row["embedding_error"] and row["embedding_error"].split(":")[0] for row in found] == [
        *(None, "text/missing_field", "text/empty", None)
    ]
    for row in found[1:3]:
        added = ("embedding", "bits", "small", "small_scale", "tokens", "truncated")
        assert [row[name] for name in added] == [None] * 6
    assert found[3]["embedding"] is not None and "embedding" not in rows[0]


def test_a_block_without_rows_has_the_same_types(encode: Encode):
    whole = pa.Table.from_pylist(documents(3))
    assert encode(whole.slice(0, 0)).schema == encode(whole).schema
    assert encode(whole).schema.field("embedding").type == pa.list_(
        pa.field("element", pa.float32(), nullable=False), 32
    )


def test_any_engine_reads_what_is_written(encode: Encode, tmp_path: Path):
    table = encode(pa.Table.from_pylist([*documents(5), {"text": ""}]))
    pq.write_table(table, tmp_path / "a.parquet")
    expected = table["embedding"].to_pylist()
    assert pl.read_parquet(tmp_path / "a.parquet")["embedding"].to_list() == expected
    (found,) = duckdb.sql(f"select list(embedding) from '{tmp_path}/a.parquet'").fetchall()[0]
    assert [None if each is None else list(each) for each in found] == expected


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"outputs": {"v": {"dim": 64}}}, r"outputs.v.dim \(64\) is larger than the 32 dimensions"),
        ({"outputs": {"v": {"precision": "int3"}}}, "precision: Input should be"),
        ({"outputs": {"v": {"precision": "int8_ranges"}}}, "precision int8_ranges needs ranges"),
        ({"text": "{title"}, "source.text: '{title' has an opening brace"),
        ({"model": {"nam": "x"}}, "model.nam: Extra inputs are not permitted"),
        ({"device": "gpu"}, "device is auto, cuda or cpu"),
    ],
)
def test_what_does_not_go_together_is_a_sentence(model: dict[str, object], arguments: dict[str, Any], says: str):
    with pytest.raises(SettingsError, match=says):
        Encode(**{"model": model, **arguments})


def test_columns_that_are_missing_or_taken_are_named(encode: Encode):
    with pytest.raises(SettingsError, match="the table has no column text; it has body, title"):
        encode(pa.table({"body": ["a"], "title": ["b"]}))
    with pytest.raises(SettingsError, match="the table has a column tokens already"):
        encode(pa.table({"text": ["a"], "tokens": [1]}))


def test_an_encoder_that_fails_at_everything_is_a_fault_and_no_loop(
    model: dict[str, object], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("workers.pool.BACKOFF_S", (0.001, 0.002))
    broken = Encode(model=model)

    def fail(*_: object) -> None:
        raise RuntimeError("a kernel failed")

    monkeypatch.setattr(broken._encoder._encoder, "encode", fail)
    with pytest.raises(EnvironmentFault, match=r"the encoder fails at every text \(RuntimeError\)"):
        broken(pa.table({"text": ["a"]}))


# ------------------------------------------------------------------ Ray Data


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A Ray of this module's own."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        with cluster.connected(Settings()):
            yield ray.get_runtime_context().gcs_address


def test_the_example_of_the_readme_runs(tmp_path: Path, model: dict[str, object], address: str):
    pytest.importorskip("pandas", reason="Ray Data needs it: stream-embedder[data]")
    (example,) = re.findall(r"```python\n(import ray\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    rows = documents(200)
    (tmp_path / "in").mkdir()
    for part in range(2):
        pq.write_table(pa.Table.from_pylist(rows[part::2]), tmp_path / f"in/{part}.parquet")
    for theirs, ours in {
        '"s3://bucket/documents"': repr(str(tmp_path / "in")),
        '"s3://bucket/vectors"': repr(str(tmp_path / "out")),
        '{"name": "google/embeddinggemma-300m", "prompt": "document"}': repr(model),
        "{title}\\n{body}": "{title|}{text}",
        '"dim": 256': '"dim": 32',
        '"dim": 512': '"dim": 16',
        "num_gpus=1": "num_cpus=0.5",
        "max_size=8": "max_size=1",
    }.items():
        assert example.count(theirs) == 1, theirs
        example = example.replace(theirs, ours)
    environ = os.environ | {"RAY_ADDRESS": address, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", example], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=400, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    files = list((tmp_path / "out").rglob("*.parquet"))
    for file in files:
        schema = pq.read_schema(file)
        assert schema.field("embedding").type == pa.list_(pa.field("element", pa.float32(), nullable=False), 32)
        assert schema.field("bits").type.list_size == 2 and schema.field("bits").type.value_type == pa.uint8()
    found = pl.read_parquet(tmp_path / "out/*.parquet").sort("n").to_dicts()
    compare(found, by_encode(model, rows))
