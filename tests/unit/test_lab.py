"""The fault lab's own parts: a plan is its seed's, the checker sees every kind of damage, and the proxy fails as it is told."""

from __future__ import annotations

import http.client
import http.server
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pytest

from tests.lab import checker
from tests.lab.documents import Document, documents
from tests.lab.faults import STRIKE
from tests.lab.plan import FAULTS, S3_FAULTS, TOPIC_FAULTS, WHAT, Plan
from tests.lab.s3_proxy import S3Proxy
from tests.tiny_model import make_tiny_bert

WIDTH, DIM, MAX_TOKENS = 64, 16, 128
COUNT = 1_000


class KafkaRecord(NamedTuple):
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


class Outputs(NamedTuple):
    """A run without a fault: what a right pipeline would have written."""

    sent: dict[int, checker.Sent]
    topic: list[KafkaRecord]
    dead: list[KafkaRecord]
    rows: list[dict[str, Any]]
    vectors: checker.Vectors

    def findings(self) -> checker.Findings:
        findings = checker.Findings()
        checker.check_topic(self.sent, self.topic, "json", self.vectors, findings)
        checker.check_dead_letters(self.sent, self.dead, findings)
        schema = pa.schema(
            [
                ("id", pa.string()),
                ("embedding", pa.list_(pa.float32(), DIM)),
                ("tokens", pa.int32()),
                ("truncated", pa.bool_()),
                ("deleted", pa.bool_()),
                ("partition", pa.int32()),
                ("offset", pa.int64()),
                ("timestamp", pa.timestamp("ms", "UTC")),
                ("key", pa.binary()),
            ]
        )
        checker.check_files(self.sent, pa.Table.from_pylist(self.rows, schema), self.vectors, findings)
        return findings


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    model = make_tiny_bert(tmp_path_factory.mktemp("model"), width=WIDTH)
    made = list(documents(COUNT, 5, long=True))
    source = [
        KafkaRecord(n % 3, n // 3, 1_700_000_000_000 + n, each.key, each.value, each.headers)
        for n, each in enumerate(made)
    ]
    findings = checker.Findings()
    sent = checker.source(source, made, findings)
    assert not findings
    oracle = checker.Oracle(model, MAX_TOKENS)
    vectors = checker.Vectors(sent, oracle, WIDTH, DIM)
    wholes, tokens, cuts = oracle([document.text for document in made], WIDTH)
    topic, dead, rows = [], [], []
    for record, document in zip(source, made, strict=True):
        if document.outcome not in ("vector", "tombstone"):
            about = {"partition": record.partition, "offset": record.offset, "stage": document.outcome}
            ours = [(f"embedding-error-{name}", str(value).encode()) for name, value in about.items()]
            dead.append(record._replace(headers=[*record.headers, *ours]))
            continue
        row = {"partition": record.partition, "offset": record.offset, "timestamp": record.timestamp, "key": record.key}
        if document.outcome == "tombstone":
            topic.append(record)
            rows.append({**row, "id": "", "embedding": None, "tokens": 0, "truncated": False, "deleted": True})
            continue
        n = document.number
        vector = (np.sign(wholes[n][:DIM]) / 4).tolist()
        about = {"id": f"id-{n}", "embedding": vector, "tokens": tokens[n], "truncated": cuts[n]}
        topic.append(record._replace(value=orjson.dumps(about)))
        rows.append({**row, **about, "deleted": False})
    assert any(row["truncated"] for row in rows) and any(row["deleted"] for row in rows)
    return Outputs(sent, topic, dead, rows, vectors)


def test_right_outputs_have_no_findings(right: Outputs) -> None:
    assert not right.findings()


def _topic(change: Callable[[list[KafkaRecord]], object]) -> Callable[[Outputs], Outputs]:
    def damage(outputs: Outputs) -> Outputs:
        records = list(outputs.topic)
        change(records)
        return outputs._replace(topic=records)

    return damage


def _rows(change: Callable[[list[dict[str, Any]]], object]) -> Callable[[Outputs], Outputs]:
    def damage(outputs: Outputs) -> Outputs:
        rows = [dict(row) for row in outputs.rows]
        change(rows)
        return outputs._replace(rows=rows)

    return damage


def _dead(change: Callable[[list[KafkaRecord]], object]) -> Callable[[Outputs], Outputs]:
    def damage(outputs: Outputs) -> Outputs:
        records = list(outputs.dead)
        change(records)
        return outputs._replace(dead=records)

    return damage


def _edit(records: list[KafkaRecord], **more: Any) -> None:
    records[7] = records[7]._replace(**more)


def _other_vector(records: list[KafkaRecord]) -> None:
    value, other = orjson.loads(records[7].value or b""), orjson.loads(records[8].value or b"")
    _edit(records, value=orjson.dumps(value | {"embedding": other["embedding"]}))


def _swap(records: list[Any]) -> None:
    records[10], records[13] = records[13], records[10]


DAMAGE: dict[str, tuple[str, Callable[[Outputs], Outputs]]] = {
    "a record is not in the topic": ("lost", _topic(lambda records: records.pop(7))),
    "a record is twice in the topic": ("twice", _topic(lambda records: records.append(records[-1]))),
    "two records are swapped": ("out of order", _topic(_swap)),
    "a record comes again, later": ("out of order", _topic(lambda records: records.append(records[7]))),
    "a vector is another text's": ("altered", _topic(_other_vector)),
    "a key is another": ("altered", _topic(lambda records: _edit(records, key=b"other"))),
    "a header is missing": ("altered", _topic(lambda records: _edit(records, headers=records[7].headers[:2]))),
    "a time is another": ("altered", _topic(lambda records: _edit(records, timestamp=5))),
    "a vector became a delete": ("altered", _topic(lambda records: _edit(records, value=None))),
    "a row is missing": ("lost", _rows(lambda rows: rows.pop(7))),
    "a row is there twice": ("twice", _rows(lambda rows: rows.append(rows[7]))),
    "two rows are swapped": ("out of order", _rows(_swap)),
    "a row has another offset": ("altered", _rows(lambda rows: rows[7].update(offset=10**6))),
    "a row has another vector": ("altered", _rows(lambda rows: rows[7].update(embedding=[0.25] * DIM))),
    "a row is cut, and does not say so": (
        "altered",
        _rows(lambda rows: next(row for row in rows if row["truncated"]).update(truncated=False)),
    ),
    "a delete is no delete": (
        "altered",
        _rows(lambda rows: next(row for row in rows if row["deleted"]).update(deleted=False)),
    ),
    "a dead letter is missing": ("lost", _dead(lambda records: records.pop(3))),
    "a dead letter has another value": ("altered", _dead(lambda records: _edit(records, value=b"{}"))),
    "a good record is a dead letter": (
        "refused wrongly",
        lambda outputs: outputs._replace(
            dead=[
                *outputs.dead,
                outputs.dead[0]._replace(headers=[*outputs.topic[0].headers, *outputs.dead[0].headers[3:]]),
            ]
        ),
    ),
}


@pytest.mark.parametrize(("kind", "damage"), DAMAGE.values(), ids=DAMAGE.keys())
def test_the_checker_sees_damage(right: Outputs, kind: str, damage: Callable[[Outputs], Outputs]) -> None:
    assert damage(right).findings().counts[kind] >= 1


def test_a_record_that_the_source_does_not_hold_is_the_labs_own_fault() -> None:
    made: list[Document] = list(documents(20, 1))
    findings = checker.Findings()
    records = [KafkaRecord(0, n, 0, each.key, each.value, each.headers) for n, each in enumerate(made)]
    checker.source(records[1:], made, findings)
    assert findings.counts["lost"] == 1


def test_a_plan_is_its_seeds_and_seeds_differ() -> None:
    assert Plan.of(7) == Plan.of(7) != Plan.of(8)
    drawn = {fault for seed in range(1, 101) for fault in Plan.of(seed).faults}
    assert drawn > {*FAULTS, *TOPIC_FAULTS, *S3_FAULTS} == STRIKE.keys() and drawn == WHAT.keys()
    assert all(not S3_FAULTS.keys() & set(Plan.of(seed, "topic").faults) for seed in range(50))
    assert {Plan.of(seed).sinks for seed in range(3)} == {"topic", "files", "topic and files"}


class _Store(http.server.BaseHTTPRequestHandler):
    stored: list[bytes]

    def do_PUT(self) -> None:
        self.stored.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def store() -> Iterator[tuple[S3Proxy, list[bytes]]]:
    stored: list[bytes] = []
    handler = type("Store", (_Store,), {"stored": stored})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with S3Proxy(server.server_port) as proxy:
            yield proxy, stored
        server.shutdown()
        thread.join()


def put(proxy: S3Proxy, body: bytes) -> int | None:
    """The answer's status; None: the connection ended without one."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
    try:
        connection.request("PUT", "/bucket/key", body)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except (http.client.BadStatusLine, ConnectionError):
        return None
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("fault", "status", "stored"),
    [
        ("refuse", 500, False),
        ("deny what was done", 500, True),
        ("lose the answer", None, True),
        ("full", 507, False),
    ],
)
def test_the_proxy_fails_some_requests_as_it_is_told(
    store: tuple[S3Proxy, list[bytes]], fault: str, status: int | None, stored: bool
) -> None:
    proxy, kept = store
    assert put(proxy, b"before") == 200 and kept == [b"before"]
    proxy.fault = fault
    answers = [put(proxy, b"%d" % n) for n in range(20)]
    failed = [n for n, answer in enumerate(answers) if answer != 200]
    assert failed and all(answers[n] == status for n in failed) and proxy.done[fault] == len(failed)
    assert all((b"%d" % n in kept) is stored for n in failed)
    proxy.fault = None
    assert put(proxy, b"after") == 200


def test_documents_are_their_seeds() -> None:
    assert list(documents(200, 3)) == list(documents(200, 3)) != list(documents(200, 4))
    made = list(documents(3_000, 1, poison=True, long=True))
    assert [each.number for each in made] == list(range(3_000))
    assert {each.outcome for each in made} == {"vector", "tombstone", "decode", "text", "encode"}
