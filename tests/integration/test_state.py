"""The state topic on a real broker: a table's changes, readers that end anywhere, and what is there afterwards.

Readers are the production loop in this process, around an encoder whose vector is a hash of the text.
"""

from __future__ import annotations

import contextlib
import json
import random
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import yaml

from pipelines.assemble import stream_reader
from pipelines.cli import main
from pipelines.model import Model
from pipelines.outputs import topic_outlets
from pipelines.stub import vectors_of
from tests.batch_job import Job
from tests.conftest import RunningBroker
from tests.fakes import CANARY, fake_vector, texts_of
from tests.integration.pipeline import reading, value_of, wait_until
from tests.integration.test_records import produce
from tests.tiny_model import make_tiny_bert
from workers import kafka_client, kafka_topics, metrics
from workers.errors import PoisonError
from workers.pool import Failure, RetryingPool, timed
from workers.reader import StreamReader
from workers.records import Batch, Tokens, type_vectors
from workers.settings import Settings
from workers.text.chunks import Piece

EXAMPLES = Path(__file__).parents[2] / "deploy" / "examples"
pytestmark = pytest.mark.timeout(600)
DIM = 16
CHUNK = 12
PARTITIONS = 3


class Characters:
    """One token per character."""

    def encode(self, texts: Any, prompts: Any) -> list[Tokens | PoisonError]:
        return [Tokens(np.fromiter(map(ord, text), np.int32), len(text)) for text in texts]


class Cut(Characters):
    """The same in chunks of :data:`CHUNK` characters."""

    def chunks(self, texts: Any, prompts: Any) -> list[list[Piece]]:
        return [
            [
                Piece(start, start + len(part), self.encode([part], None)[0])  # type: ignore[arg-type]
                for start, part in cut(text)
            ]
            for text in texts
        ]


def cut(text: str) -> list[tuple[int, str]]:
    return [(start, text[start : start + CHUNK]) for start in range(0, len(text), CHUNK)]


def vectors(batch: Batch) -> type_vectors:
    return np.stack([fake_vector(text, DIM) for text in texts_of(batch)])


class Running:
    """A reader in a thread."""

    def __init__(self, settings: Settings, slot: str, *, own_tokenizer: bool = False) -> None:
        """``own_tokenizer``: the model's; else a token per character, and chunks of a few."""
        model = Model.open(settings)
        stub: Any = Cut() if settings.model.chunked else Characters()
        self.meter = metrics.Metrics()
        pool = RetryingPool(
            partial(timed, partial(vectors_of, dim=model.widest) if own_tokenizer else vectors),
            dim=model.widest,
            canary=CANARY,
            classify=lambda _: Failure.RAISED,
            capacity=lambda: 4,
            meter=self.meter,
        )
        self.reader: StreamReader = stream_reader(
            settings,
            model,
            topic_outlets(model),
            model.tokenizer() if own_tokenizer else stub,
            pool,
            slot=lambda: slot,
            cuda=False,
            meter=self.meter,
        )
        self.thread = threading.Thread(target=self.reader.run, daemon=True)
        self.thread.start()

    def value(self, metric: metrics.Metric, **labels: str) -> float:
        self.reader.check()
        return self.meter.value(metric, **labels)

    def committed(self) -> float:
        return self.value(metrics.RECORDS_COMMITTED)

    def crash(self) -> None:
        """Nothing that is in flight is finished."""
        self.reader.stop()
        self.thread.join(30)

    def drain(self) -> None:
        assert self.reader.drain(10)
        self.thread.join(30)


@pytest.fixture
def table(
    broker: RunningBroker, make_topic: Callable[..., str], unique_name: Callable[[], str], tmp_path: Path
) -> Iterator[dict[str, Any]]:
    """Plain settings of a pipeline with a state, two outputs, and topics that ``topics create`` has made."""
    names = {part: f"{unique_name()}-{part}" for part in ("out", "dead", "state", "group")}
    (tmp_path / "model").mkdir()
    plain: dict[str, Any] = {
        "model": {"name": str(make_tiny_bert(tmp_path / "model"))},
        "source": {"topics": [make_topic(PARTITIONS)], "group": names["group"], "text": "{text}"},
        "outputs": [
            {"kind": "kafka", "topic": names["out"], "dim": DIM, "include": ["rank"]},
            {"kind": "parquet", "uri": f"file://{tmp_path}/lake", "dim": DIM, "rotate": {"rows": 400, "seconds": 2}},
        ],
        "dead_letter": {"topic": names["dead"]},
        "state": {"topic": names["state"]},
        "delivery": {"commit_interval_s": 0.1},
        "kafka": {"bootstrap_servers": broker.bootstrap_servers},
    }
    config = tmp_path / "pipeline.yaml"
    config.write_text(json.dumps(plain))
    assert main(["topics", "create", "-c", str(config)]) == 0
    yield plain | {"config": str(config)}
    kafka_topics.delete_topics(broker.settings, [names[part] for part in ("out", "dead", "state")])


def of(plain: dict[str, Any]) -> Settings:
    return Settings.model_validate({name: value for name, value in plain.items() if name != "config"})


@contextlib.contextmanager
def running(plain: dict[str, Any], *, own_tokenizer: bool = False) -> Iterator[Running]:
    found = Running(of(plain), f"{plain['source']['group']}.0", own_tokenizer=own_tokenizer)
    try:
        yield found
    finally:
        found.crash()


def value(text: str, rank: int = 0) -> bytes:
    return json.dumps({"text": text, "rank": rank}).encode()


def test_a_replay_encodes_what_has_changed_and_tells_deletes_apart(
    broker: RunningBroker, table: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    topic, kafka = table["source"]["topics"][0], broker.settings
    produce(kafka, topic, *[(b"k%d" % n, value(f"text {n:04}")) for n in range(400)])
    with running(table) as first:
        wait_until(lambda: first.committed() >= 400, 60, lambda: "the first pass")
        first.drain()
        encoded = first.value(metrics.TOKENS_ENCODED)
    assert encoded == 400 * len("text 0000")
    # The same again, with a tenth of the texts changed, an included field, a delete and what comes back after it.
    again = [(b"k%d" % n, value(f"{'text' if n % 10 else 'news'} {n:04}")) for n in range(400)]
    produce(kafka, topic, *again, (b"k1", value("text 0001", rank=1)), (b"k2", None), (b"k2", value("text 0002")))
    with reading(kafka, table["outputs"][0]["topic"]) as out:
        with running(table) as second:
            wait_until(lambda: second.committed() >= 403, 60, lambda: "the second pass")
            second.drain()
            assert second.value(metrics.RECORDS_COMMITTED, outcome="unchanged") == 360
            assert second.value(metrics.TOKENS_UNCHANGED) == 360 * len("text 0000")
            assert second.value(metrics.TOKENS_ENCODED) == 42 * len("text 0000")
        wait_until(lambda: out.poll() >= 400 + 43, 30, lambda: f"{len(out.records)} records")
        assert len(out.records) == 443
        k2 = [record.value is not None for record in out.records if record.key == b"k2"]
        assert k2 == [True, False, True]
    # And all of it once more: what is there in the end stays, whatever the versions before it come to.
    assert main(["offsets", "reset", "--to", "earliest", "-c", table["config"]]) == 0
    with running(table) as third:
        wait_until(lambda: third.committed() >= 803, 60, lambda: "the third pass")
        assert third.value(metrics.TOKENS_ENCODED) < encoded
    assert "text 0" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["documents", "chunks"])
def test_the_examples_follow_their_topics(
    broker: RunningBroker, table: dict[str, Any], make_topic: Callable[..., str], name: str
) -> None:
    """Each as it is written, but for names and addresses: an update that changes nothing, one that shortens, a delete."""
    found: dict[str, Any] = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    found["source"] |= {"topics": table["source"]["topics"], "group": table["source"]["group"]}
    found["outputs"][0]["topic"] = table["outputs"][0]["topic"]
    for output in found["outputs"][1:]:
        output.update({"uri": table["outputs"][1]["uri"]} if "uri" in output else {"topic": make_topic(1)})
    found |= {section: table[section] for section in ("dead_letter", "state", "kafka", "delivery")}
    long, short = "A sentence of some words. " * 60, "A sentence of some words."
    body = {"a": short, "b": long}

    def article(id: str, body: str) -> tuple[bytes, bytes]:
        return id.encode(), json.dumps({"title": f"Title {id}", "body": body}).encode()

    produce(
        broker.settings,
        table["source"]["topics"][0],
        *(article(id, text) for id, text in body.items()),
        article("c", long),
    )
    produce(broker.settings, table["source"]["topics"][0], article("a", short), article("b", short), (b"c", None))
    chunked = name == "chunks"
    with reading(broker.settings, table["outputs"][0]["topic"]) as out, running(found, own_tokenizer=True) as stream:
        wait_until(lambda: stream.committed() >= 6, 60, lambda: "six records")
        stream.drain()
        assert stream.value(metrics.RECORDS_COMMITTED, outcome="unchanged") == 1
        wait_until(lambda: out.poll() > (12 if chunked else 4), 30, lambda: f"{len(out.records)} records")
        out.finish()
    there = {record.key: record.value and value_of(record) for record in out.records}
    left = {key for key, each in there.items() if each}
    assert left == ({b"a#0", b"b#0"} if chunked else {b"a", b"b"})
    assert {there[key]["title"] for key in left} == {"Title a", "Title b"}
    if chunked:
        assert there[b"b#0"]["chunk"] == {"index": 0, "count": 1, "start": 0, "end": len(short)}
        assert len([key for key in there if key.startswith(b"c#")]) > 2
        with reading(broker.settings, found["outputs"][1]["topic"]) as whole:
            wait_until(lambda: whole.poll() >= 5, 30, lambda: f"{len(whole.records)} records")
        counts = [(each.key, len(value_of(each)["chunks"]) if each.value else None) for each in whole.records]
        many = counts[1][1]
        assert many is not None and many > 2
        assert counts == [(b"a", 1), (b"b", many), (b"c", many), (b"b", 1), (b"c", None)]


def test_check_wants_a_state_topic_that_keeps_what_it_is_given(
    table: dict[str, Any], make_topic: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "-c", table["config"]]) == 0
    assert "a partition for each of the source's" in capsys.readouterr().out
    for topic, complaint in (
        (make_topic(PARTITIONS), "set its cleanup.policy to compact"),
        (make_topic(1, cleanup_policy="compact"), "has 1 partitions and topic"),
    ):
        assert main(["check", "-c", table["config"], "--state.topic", topic]) == 1
        assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("events", "overflow"),
    [
        (5_000, "chunk"),
        pytest.param(100_000, "truncate", marks=pytest.mark.soak),
        pytest.param(100_000, "chunk", marks=pytest.mark.soak),
    ],
)
def test_whatever_dies_the_outputs_are_what_the_final_table_says(
    broker: RunningBroker,
    table: dict[str, Any],
    make_topic: Callable[..., str],
    tmp_path: Path,
    events: int,
    overflow: str,
) -> None:
    """Inserts, updates (longer, shorter, of nothing) and deletes, over readers that end anywhere and pass partitions on."""
    table["model"]["overflow"] = overflow
    if overflow == "chunk":
        lake = {**table["outputs"][1], "uri": f"file://{tmp_path}/whole", "chunks": "together"}
        table["outputs"] += [{"topic": make_topic(2), "dim": DIM, "chunks": "together"}, lake]
    chance, topic = random.Random(events), table["source"]["topics"][0]
    final: dict[bytes, str] = {}
    log: list[tuple[bytes, str | None]] = []
    for _ in range(events):
        key = b"k%d" % chance.randrange(events // 12)
        what = chance.random()
        if what < 0.1:
            final.pop(key, None)
            log.append((key, None))
        else:
            same = final.get(key) if what < 0.6 else None
            final[key] = same or f"{key.decode()} says {chance.randrange(10 ** chance.randrange(1, 40))}"
            log.append((key, final[key]))
    members: list[Running] = []
    for number, start in enumerate(range(0, events, events // 6)):
        batch = log[start : start + events // 6]
        for partition in range(PARTITIONS):
            mine = [(key, None if text is None else value(text)) for key, text in batch if hash_of(key) == partition]
            produce(broker.settings, topic, *mine, partition=partition)
        members.append(Running(of(table), f"{table['source']['group']}.{number % 2}"))
        half = chance.randrange(events // 6)
        wait_until(lambda half=half: lag(broker, table) <= half, 60, lambda: f"{lag(broker, table)} records behind")
        if len(members) == 2:
            members.pop(0).crash()
    last = members.pop()
    wait_until(lambda: lag(broker, table) == 0, 120, lambda: f"{lag(broker, table)} records behind")
    last.drain()

    if overflow == "chunk":
        parts = {b"%s#%d" % (key, n): part for key, text in final.items() for n, (_, part) in enumerate(cut(text))}
    else:
        parts = final
    wanted = vectors_of_a_batch(final, table, tmp_path / "batch")
    assert set(wanted) == set(parts)
    assert all(np.allclose(wanted[key], fake_vector(text, DIM), atol=1e-6) for key, text in parts.items())
    with reading(broker.settings, table["outputs"][0]["topic"]) as out:
        out.finish()
        there = {
            record.key: value_of(record)["embedding"] if record.value is not None else None for record in out.records
        }
        assert {key for key, vector in there.items() if vector is not None} == set(wanted)
        assert all(np.allclose(there[key], vector, atol=1e-6) for key, vector in wanted.items())
        if overflow != "chunk":
            assert len(out.records) < events * 0.75, "what changes nothing is written"
        else:
            homes = {
                record.key: {other.partition for other in out.records if other.key == record.key}
                for record in out.records[:50]
            }
            assert all(len(home) == 1 for home in homes.values()), "a chunk's key in two partitions is never compacted"
    rows = duckdb.sql(
        f'SELECT key, arg_max(embedding, "offset") AS v, arg_max(deleted, "offset") AS gone FROM \'{tmp_path}/lake/**/*.parquet\' '
        "GROUP BY key"
    ).fetchall()
    lake = {key: vector for key, vector, gone in rows if not gone}
    assert set(lake) == set(wanted)
    assert all(np.allclose(lake[key], vector, atol=1e-6) for key, vector in wanted.items())

    if overflow == "chunk":
        documents = {key: [fake_vector(part, DIM) for _, part in cut(text)] for key, text in final.items()}
        with reading(broker.settings, table["outputs"][2]["topic"]) as out:
            out.finish()
            held = {record.key: record.value and value_of(record)["chunks"] for record in out.records}
        assert {key for key, chunks in held.items() if chunks} == set(documents)
        rows = duckdb.sql(
            f'SELECT key, arg_max(chunks, "offset"), arg_max(deleted, "offset") FROM \'{tmp_path}/whole/**/*.parquet\' '
            "GROUP BY key"
        ).fetchall()
        lake_of_whole = {key: chunks for key, chunks, gone in rows if not gone}
        assert set(lake_of_whole) == set(documents)
        for key, wanted_of_key in documents.items():
            for chunks in (held[key], lake_of_whole[key]):
                assert len(chunks) == len(wanted_of_key)
                assert np.allclose([chunk["embedding"] for chunk in chunks], wanted_of_key, atol=1e-6)


def vectors_of_a_batch(final: dict[bytes, str], table: dict[str, Any], folder: Path) -> dict[bytes, list[float]]:
    """What a batch job makes of the final table, by the keys of a stream's records."""
    chunked = table["model"]["overflow"] == "chunk"
    job = Job(
        folder,
        call=vectors,
        dim=DIM,
        tokenizer=Cut() if chunked else Characters(),
        model=table["model"],
        source={"text": "{text}", "id": "{id}"},
        outputs=[{"kind": "parquet", "uri": f"file://{folder}/vectors", "dim": DIM}],
    )
    folder.mkdir()
    job.texts("table.jsonl", [{"id": key.decode(), "text": text} for key, text in final.items()])
    job.run()
    assert not job.dead()
    return {row["id"].encode(): row["embedding"] for row in job.rows()}


def hash_of(key: bytes) -> int:
    return int(key[1:]) % PARTITIONS


def lag(broker: RunningBroker, table: dict[str, Any]) -> int:
    topic = table["source"]["topics"][0]
    with kafka_client.admin(broker.settings) as client:
        ends = kafka_topics.end_offsets(client, kafka_topics.describe_topics(client, [topic]))
        at = kafka_topics.committed_offsets(client, table["source"]["group"])
    return sum(end - at.get(partition, 0) for partition, end in ends.items())
