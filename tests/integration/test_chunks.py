"""``run`` on long documents: a record for each chunk, beside the others of its document, in a topic and in files."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from pipelines.cli import main
from pipelines.embedder import Embedder
from pipelines.model import Model
from pipelines.texts import Text
from tests.conftest import RunningBroker
from tests.integration.pipeline import Pipeline, reading, value_of, wait_until
from tests.integration.test_records import EXAMPLES, letters, produce
from tests.tiny_model import documents, make_tiny_bert
from workers.records import Embedding
from workers.settings import Settings

pytestmark = pytest.mark.timeout(400)

DIM, TOKENS = 16, 32


def test_long_documents_in_chunks(
    broker: RunningBroker,
    make_topic: Callable[..., str],
    unique_name: Callable[[], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, out, few = make_topic(3), make_topic(3, cleanup_policy="compact"), make_topic(2)
    together = make_topic(2, max_message_bytes=2_000_000)
    dead = make_topic(1, max_message_bytes=2_000_000)
    model = make_tiny_bert(tmp_path / "model")
    wanted: dict[str, Any] = yaml.safe_load((EXAMPLES / "chunks.yaml").read_text())
    wanted["model"] |= {"name": str(model), "chunk": {"tokens": TOKENS, "overlap": 4, "most": 500}}
    wanted["source"] |= {"topics": [source], "group": unique_name()}
    wanted["outputs"][0] |= {"topic": out, "dim": DIM}
    wanted["outputs"][1] |= {"topic": together, "dim": DIM}
    lake = {
        "kind": "parquet",
        "uri": f"file://{tmp_path}/lake",
        "dim": DIM,
        "rotate": {"seconds": 2},
        "chunk_text": True,
    }
    wanted["outputs"] += [lake, {**lake, "uri": f"file://{tmp_path}/whole", "chunks": "together"}]
    wanted["dead_letter"] = {"topic": dead}
    wanted["state"] = {"topic": make_topic(3, cleanup_policy="compact")}
    wanted["kafka"] = {"bootstrap_servers": broker.bootstrap_servers}
    wanted |= {"readers": {"cpus": 0.25}, "pool": {"cpus_per_replica": 0.5, "gpus_per_replica": 0}}
    wanted["delivery"] = {"commit_interval_s": 0.3}

    prose = documents(200)
    bodies = {f"d{n}": "\n\n".join(prose[n : n + 1 + n % 40]) for n in range(60)}
    bodies |= {"short": "a line", "no title": prose[3], "e\u0301": "e\u0301 " * 200}
    titles = {key: None if key == "no title" else f"title {key}" for key in bodies}
    records: list[list[tuple[bytes | None, dict[str, Any]]]] = [
        [(b"named", {"title": "x " * 99, "body": "a"})],
        [(None, {"body": prose[5]})],
        [(b"endless", {"body": "word " * 40_000})],
    ]
    for number, (key, body) in enumerate(bodies.items()):
        records[number % 3].append((key.encode(), {"title": titles[key], "body": body}))
    for partition, some in enumerate(records):
        written = [(key, json.dumps(value).encode()) for key, value in some]
        produce(broker.settings, source, *written, partition=partition)

    pipeline = Pipeline(tmp_path, wanted)
    # ``run`` looks at all that ``check`` does, before it starts; what is right is seen below.
    assert main(["check", "-c", str(pipeline.config), "--outputs.0.topic", few]) == 1
    assert f"topic {few} has 2 partitions and {source} 3: chunks go to" in capsys.readouterr().err
    with (
        reading(broker.settings, out) as vectors,
        reading(broker.settings, together) as documents_whole,
        reading(broker.settings, dead) as refused,
        pipeline,
    ):

        def whole() -> bool:
            vectors.poll()
            last = [value["id"] for value in map(value_of, vectors.records) if _is_last(value)]
            return len(set(last)) > len(bodies) and refused.poll() >= 2

        wait_until(whole, 180, pipeline.tail)
        wait_until(lambda: documents_whole.poll() > len(bodies), 30, pipeline.tail)
        assert pipeline.terminate() == 0, pipeline.tail()
    vectors.records.sort(key=lambda record: (record.partition, record.offset))
    assert sorted(letters(refused)) == [("tokenize", "no_room"), ("tokenize", "too_many_chunks")]

    # Every chunk once, by its key, all of a document one after another where its record was.
    chunks: dict[str, list[dict[str, Any]]] = defaultdict(list)
    places: dict[str, set[int]] = defaultdict(set)
    for record in vectors.records:
        value = value_of(record)
        name, _, number = value["id"].rpartition("#")
        assert value["chunk"]["index"] == int(number) == len(chunks[name])
        assert record.key == value["id"].encode()
        chunks[name].append(value)
        places[name].add(record.partition)
    keyless = next(name for name in chunks if name.startswith(source))
    assert set(chunks) == {*bodies, keyless}
    for number, key in enumerate(bodies):
        assert places[key] == {number % 3}
    for name, values in chunks.items():
        body = bodies.get(name, prose[5])
        assert {value["chunk"]["count"] for value in values} == {len(values)}
        done = 0
        for value in values:
            span = value["chunk"]
            assert value["chunk_text"] == body[span["start"] : span["end"]]
            assert not body[done : span["start"]].strip() and span["end"] > done
            assert value["tokens"] <= TOKENS and not value["truncated"] and value["title"] == titles.get(name)
            done = span["end"]
        assert not body[done:].strip()
    assert max(map(len, chunks.values())) > 20 and len(chunks["short"]) == 1

    # Each vector is that of the chunk's text by itself, behind its document's title.
    embedder = Embedder(Model.open(Settings(model={"name": str(model), "max_tokens": TOKENS})))
    values = [value for name in ("d39", "short", "no title", "e\u0301") for value in chunks[name]]
    prompts = [f"{value['title']}: " if value["title"] else "" for value in values]
    texts = [Text("", value["chunk_text"], prompt) for value, prompt in zip(values, prompts, strict=True)]
    for value, alone in zip(values, embedder.embed(texts, DIM), strict=True):
        assert isinstance(alone, Embedding) and alone.tokens == value["tokens"]
        assert np.dot(value["embedding"], alone.vector) > 0.999, value["id"]

    rows = {row["id"]: row for row in pq.read_table(tmp_path / "lake").to_pylist()}
    assert rows.keys() == {value["id"] for values in chunks.values() for value in values}
    for values in chunks.values():
        for value in values:
            row = rows[value["id"]]
            assert (row["key"].decode(), row["chunk_text"]) == (value["id"], value["chunk_text"])
            assert {name: row[f"chunk_{name}"] for name in value["chunk"]} == value["chunk"]

    # All of a document in one record or row is what its chunks are, under its own key.
    of_whole = {value["id"]: (record.key, value) for record in documents_whole.records for value in [value_of(record)]}
    table = {row["id"]: row for row in pq.read_table(tmp_path / "whole").to_pylist()}
    assert len(documents_whole.records) == len(of_whole) and of_whole.keys() == table.keys() == chunks.keys()
    for name, values in chunks.items():
        key, value = of_whole[name]
        assert key == (None if name == keyless else name.encode()) and value["title"] == titles.get(name)
        assert [(each["embedding"], each["start"], each["end"]) for each in value["chunks"]] == [
            (each["embedding"], each["chunk"]["start"], each["chunk"]["end"]) for each in values
        ]
        assert [(each["index"], each["text"]) for each in table[name]["chunks"]] == [
            (each["chunk"]["index"], each["chunk_text"]) for each in values
        ]
        assert table[name]["tokens"] == value["tokens"] == sum(each["tokens"] for each in values)


def _is_last(value: dict[str, Any]) -> bool:
    return bool(value["chunk"]["index"] + 1 == value["chunk"]["count"])
