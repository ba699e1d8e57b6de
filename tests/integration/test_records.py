"""``run`` on records as users have them: Avro by a registry that fails meanwhile, and a table's changes by Debezium."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest
import yaml

from pipelines.cli import main
from tests.conftest import RunningBroker
from tests.integration.pipeline import Pipeline, Reader, reading, value_of, wait_until
from tests.schema_registry import Gateway, RegistryServer, basic
from tests.tiny_model import make_tiny_bert
from workers import kafka_client
from workers.settings import KafkaSettings

pytestmark = pytest.mark.timeout(500)

EXAMPLES = Path(__file__).parents[2] / "deploy" / "examples"
DIM = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bert(tmp_path_factory.mktemp("model"))


@pytest.fixture
def names(make_topic: Callable[..., str], unique_name: Callable[[], str]) -> dict[str, str]:
    dead = make_topic(1, max_message_bytes=2_000_000)
    return {"in": make_topic(2), "out": make_topic(2, cleanup_policy="compact"), "dead": dead, "group": unique_name()}


def example(name: str, broker: RunningBroker, names: dict[str, str], model: Path) -> dict[str, Any]:
    """An example with what is this test's own: model, addresses, names."""
    found: dict[str, Any] = yaml.safe_load((EXAMPLES / name).read_text())
    found["model"] = {"name": str(model)}
    found["source"] |= {"topics": [names["in"]], "group": names["group"]}
    found["outputs"][0] |= {"topic": names["out"], "dim": DIM}
    found["dead_letter"] = {"topic": names["dead"]}
    found["kafka"] = {"bootstrap_servers": broker.bootstrap_servers}
    found |= {"readers": {"cpus": 0.25}, "pool": {"cpus_per_replica": 0.5, "gpus_per_replica": 0}}
    found["delivery"] = {"commit_interval_s": 0.3}
    return found


def produce(
    kafka: KafkaSettings, topic: str, *records: tuple[bytes | None, bytes | None], headers: Any = (), partition: int = 0
) -> None:
    producer = kafka_client.bare_producer(kafka)
    for key, value in records:
        sent = kafka_client.NULL if value is None else value
        producer.send(topic, key=key, value=sent, headers=list(headers), partition=partition)
    producer.flush(timeout=60)
    producer.close(timeout=5)


def by_key(out: Reader) -> dict[bytes, Any]:
    """The latest record of each key."""
    return {record.key: record for record in out.records}


def letters(dead: Reader) -> list[tuple[str, str]]:
    found = [dict(record.headers) for record in dead.records]
    return [(each["embedding-error-stage"].decode(), each["embedding-error-class"].decode()) for each in found]


BOOK: dict[str, Any] = {
    "type": "record",
    "name": "Book",
    "namespace": "shop",
    "fields": [
        {"name": "title", "type": "string"},
        {"name": "summary", "type": ["null", "string"], "default": None},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2}},
    ],
}


def avro(id: int, schema: dict[str, Any], **value: object) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), value)
    return struct.pack(">bI", 0, id) + out.getvalue()


def test_avro_in_and_out(
    broker: RunningBroker, registry: RegistryServer, names: dict[str, str], model: Path, tmp_path: Path
) -> None:
    from decimal import Decimal

    price = Decimal("12.50")
    newer = {**BOOK, "fields": [*BOOK["fields"], {"name": "pages", "type": "int", "default": 0}]}
    id = registry.register(f"{names['in']}-value", json.dumps(BOOK))
    with Gateway(registry) as gateway:
        gateway.authorization = basic("embedder", "s3cret")
        wanted = example("avro.yaml", broker, names, model)
        wanted["registry"] = {"url": gateway.url, "username": "embedder", "password": "s3cret"}
        pipeline = Pipeline(tmp_path, wanted)
        first = [(b"k%d" % n, avro(id, BOOK, title=f"stream {n}", summary="a text", price=price)) for n in range(20)]
        produce(broker.settings, names["in"], *first, headers=[("trace", b"1")])
        produce(
            broker.settings, names["in"], (b"bad", struct.pack(">bI", 0, 999_999)), (b"plain", b"{}"), (b"k0", None)
        )
        kafka = broker.settings
        with reading(kafka, names["out"]) as out, reading(kafka, names["dead"]) as dead, pipeline:
            wait_until(lambda: out.poll() >= 21 and dead.poll() >= 2, 180, pipeline.tail)
            assert letters(dead) == [("decode", "unknown_schema"), ("decode", "not_framed")]

            # The registry fails, and a schema comes that nobody has asked for yet: everything waits, nothing is refused.
            later = registry.register(f"{names['in']}-value", json.dumps(newer))
            gateway.fail = 503
            produce(
                kafka, names["in"], (b"new", avro(later, newer, title="stream", summary=None, price=price, pages=3))
            )
            wait_until(lambda: "decoding waits" in pipeline.tail(), 60, pipeline.tail)
            gateway.fail = None
            wait_until(lambda: out.poll() >= 22, 60, pipeline.tail)
            assert dead.poll() == 2
            assert pipeline.terminate() == 0, pipeline.tail()
            assert "s3cret" not in pipeline.log.read_text()

        latest = by_key(out)
        assert latest[b"k0"].value is None
        assert latest.keys() == {b"new", *(key for key, _ in first)}
        schema_id = {struct.unpack_from(">bI", record.value) for record in latest.values() if record.value is not None}
        ((magic, number),) = schema_id
        assert magic == 0
        # A consumer needs the registry and nothing of ours.
        schema = json.loads(registry.ask(f"/schemas/ids/{number}")["schema"])
        found = {
            key: fastavro.schemaless_reader(io.BytesIO(record.value[5:]), fastavro.parse_schema(dict(schema)), None)
            for key, record in latest.items()
            if record.value is not None
        }
        assert (found[b"k1"]["title"], found[b"k1"]["price"], found[b"new"]["price"]) == ("stream 1", "12.50", "12.50")
        for value in found.values():
            assert np.linalg.norm(value["embedding"]) == pytest.approx(1, abs=1e-3)
            assert (len(value["embedding"]), value["dim"]) == (DIM, DIM)
            assert value["fingerprint"] == schema["fingerprint"] and value["fingerprint"] in schema["doc"]
        assert dict(latest[b"k1"].headers)["trace"] == b"1"
        assert registry.ask(f"/subjects/{names['out']}-value/versions") == [1]

        # Whose vectors these are is seen without the registry too.
        assert main(["check", "-c", str(pipeline.config)]) == 0
        assert main(["check", "-c", str(pipeline.config), "--outputs.0.dim", "8"]) == 1


def test_what_check_says_of_a_registry(
    broker: RunningBroker,
    registry: RegistryServer,
    names: dict[str, str],
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Gateway(registry) as gateway:
        gateway.authorization = basic("embedder", "s3cret")
        wanted = example("avro.yaml", broker, names, model)
        wanted["registry"] = {"url": gateway.url, "username": "embedder", "password": "s3cret"}
        config = Pipeline(tmp_path, wanted).config

        def check(*flags: str) -> tuple[int, list[str], str]:
            code = main(["check", "-c", str(config), *flags])
            said = capsys.readouterr()
            return code, said.err.splitlines(), said.out

        code, wrong, right = check()
        assert (code, wrong) == (0, [])
        assert f"subject {names['out']}-value takes the schema of kafka:{names['out']}" in right
        for flags, sentence in (
            (["--registry.username", "other"], "does not let user other in (HTTP 401)"),
            (["--registry.url", "http://127.0.0.1:1"], "127.0.0.1:1 does not answer: nobody listens there"),
            (["--registry.url", f"{gateway.url}/elsewhere"], "is registry.url right?"),
            (["--registry.auto_register", "false"], f"subject {names['out']}-value does not have the schema"),
            (["--source.schema_file", "/nowhere.avsc"], "source.schema_file /nowhere.avsc cannot be read"),
        ):
            code, wrong, _ = check(*flags)
            assert (code, len(wrong)) == (1, 1), wrong
            assert sentence in wrong[0]

        # Somebody else's schema has the subject, and the registry lets in only what goes with it.
        other = {"type": "record", "name": "stream_embedder.Embedding", "fields": [{"name": "id", "type": "int"}]}
        registry.register(f"{names['out']}-value", json.dumps(other))
        registry.compatibility(f"{names['out']}-value", "BACKWARD")
        code, wrong, _ = check()
        assert (code, len(wrong)) == (1, 1)
        assert f"subject {names['out']}-value would not take the schema" in wrong[0]
        assert check("--registry.subject_strategy", "topic_record_name")[0] == 0

        # What the settings name and the source's latest schema does not have: other records may.
        registry.register(f"{names['in']}-value", json.dumps(BOOK))
        code, wrong, _ = check("--registry.subject_strategy", "topic_record_name", "--source.text", "titel")
        assert (code, wrong) == (
            0,
            [f"warn   source.text names titel, which the latest schema of subject {names['in']}-value does not have"],
        )
        mapping = json.dumps([{"topics": [names["in"]], "text": "{% if titel %}{{ title }}{% endif %}"}])
        code, wrong, _ = check("--registry.subject_strategy", "topic_record_name", "--source.mappings", mapping)
        assert (code, len(wrong)) == (0, 1)
        assert wrong[0].startswith("warn   source.mappings.0: source.text names titel, which the latest schema")


def test_a_table_follows_its_changes(broker: RunningBroker, names: dict[str, str], model: Path, tmp_path: Path) -> None:
    """Inserts, an update, a deletion with its tombstone, and what else Debezium sends: the compacted output is the table."""
    schema = {"type": "struct", "name": "shop.public.books.Envelope", "fields": []}

    def event(op: str, before: dict[str, Any] | None, after: dict[str, Any] | None) -> bytes:
        payload = {"before": before, "after": after, "source": {"table": "books"}, "op": op, "ts_ms": 1}
        return json.dumps({"schema": schema, "payload": payload}).encode()

    def key(id: int) -> bytes:
        return json.dumps({"schema": {"type": "struct"}, "payload": {"id": id}}).encode()

    def row(id: int, title: str) -> dict[str, Any]:
        return {"id": id, "title": title, "summary": None, "price": None}

    events: list[tuple[bytes | None, bytes | None]] = [
        (key(n), event("r", None, row(n, f"token {n}"))) for n in range(5)
    ]
    events += [
        (key(1), event("u", row(1, "token 1"), row(1, "a newer stream"))),
        (key(2), event("d", row(2, "token 2"), None)),
        (key(2), None),
        (key(3), event("u", None, row(3, "__debezium_unavailable_value"))),
        (b"beat", json.dumps({"schema": schema, "payload": {"ts_ms": 1}}).encode()),
        (b"ddl", json.dumps({"source": {}, "databaseName": "shop", "ddl": "ALTER", "tableChanges": []}).encode()),
        (key(5), event("c", None, row(5, "stream"))),
    ]
    produce(broker.settings, names["in"], *events)
    pipeline = Pipeline(tmp_path, example("debezium.yaml", broker, names, model))
    kafka = broker.settings
    with reading(kafka, names["out"]) as out, reading(kafka, names["dead"]) as dead, pipeline:
        wait_until(lambda: out.poll() >= 9 and dead.poll() >= 3, 180, pipeline.tail)
        assert pipeline.terminate() == 0, pipeline.tail()
    assert letters(dead) == [("decode", "unavailable_value"), ("decode", "heartbeat"), ("decode", "schema_change")]
    latest = by_key(out)
    table = {
        found["id"]: found["title"] for found in map(value_of, (r for r in latest.values() if r.value is not None))
    }
    assert table == {"0": "token 0", "1": "a newer stream", "3": "token 3", "4": "token 4", "5": "stream"}
    assert latest[key(2)].value is None
