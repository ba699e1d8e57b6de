"""10,000 records as no test of ours would write them: each ends as a vector, in the topic and in the files, or as a dead letter."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.conftest import RunningBroker
from tests.integration.pipeline import Pipeline, leaks, ray_parts, reading, wait_until
from tests.tiny_model import make_tiny_bert
from workers import kafka_client
from workers.kafka_client import NULL

pytestmark = pytest.mark.timeout(300)

COUNT = 10_000
SEED = 7
CANARY = "xq7canary"  # in every text, so that a log that quotes one shows

type_headers = list[tuple[str, bytes]]


class Fuzzed(NamedTuple):
    """A record, and what has to become of it: ``vector``, ``dead``, ``tombstone``, or ``either`` of the first two."""

    key: bytes | None
    value: bytes | None
    ends: str


def _json(rng: random.Random, **fields: Any) -> bytes:
    return json.dumps({"text": f"{CANARY} {rng.random()}", **fields}, ensure_ascii=rng.random() < 0.5).encode()


def _depth(rng: random.Random) -> bytes:
    depth = rng.choice([50, 900, 5_000, 50_000])
    return b'{"text": "%b", "x": %b1%b}' % (CANARY.encode(), b"[" * depth, b"]" * depth)


def _text(rng: random.Random) -> str:
    alphabets = (
        "abc xyz.,!?",
        "\u00e4\u00f6\u00df\u4e2d\u6587\u0434\u0430\u05d0\u0628",
        "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467\u0301\u0300",
        "\x00\x01\x1b\x7f\ufeff\u2028\u202e\ufffd\uffff",
    )
    letters = rng.choice(alphabets)
    return CANARY + "".join(rng.choices(letters, k=rng.randrange(300)))


def _value(rng: random.Random) -> tuple[bytes | None, str]:
    """A value and how it has to end."""
    number = rng.choice(["1e999", "-1e-999", "1" * 400, "0.1" + "0" * 300 + "1", "18446744073709551616", "1.50"])
    kinds: list[Callable[[], tuple[bytes | None, str]]] = [
        lambda: (rng.randbytes(rng.randrange(1, 200)), "dead"),
        lambda: (b"", "dead"),
        lambda: (_json(rng)[: rng.randrange(1, 12)], "dead"),
        lambda: (_json(rng).decode().encode("utf-16"), "dead"),
        lambda: (b"\xef\xbb\xbf" + _json(rng), "dead"),
        lambda: (_json(rng).replace(CANARY.encode(), CANARY.encode() + b"\xc3\x28"), "dead"),
        lambda: (_json(rng)[:-1] + b', "n": %b}' % rng.choice([b"NaN", b"Infinity", b"-Infinity"]), "dead"),
        lambda: (_json(rng)[:-1] + b', "title": %b}' % number.encode(), "either"),
        lambda: (b'{"text": "first", "text": "%b"}' % CANARY.encode(), "vector"),
        lambda: (_depth(rng), "either"),
        lambda: (b'{"text": "%b \\ud83d alone"}' % CANARY.encode(), "dead"),
        lambda: (b'{"text": "%b", "title": "\\udc00"}' % CANARY.encode(), "dead"),
        lambda: (json.dumps({"text": rng.choice(["", " ", "\t\n", "\u3000\u00a0"])}).encode(), "dead"),
        lambda: (json.dumps({"text": rng.choice([None, 7, True, [], {}, ["a"]])}).encode(), "dead"),
        lambda: (json.dumps(rng.choice([None, 1, "text", [], [{"text": CANARY}]])).encode(), "dead"),
        lambda: (json.dumps({"Text": CANARY}).encode(), "dead"),
        lambda: (json.dumps({"text": _text(rng)}, ensure_ascii=rng.random() < 0.5).encode(), "either"),
        lambda: (_json(rng, title=rng.choice([None, 3, {"a": [1, 2]}, "t" * 5_000])), "vector"),
        lambda: (_json(rng, text=f"{CANARY} " + "word " * rng.randrange(1, 2_000)), "vector"),
        lambda: (_json(rng), "vector"),
    ]
    return rng.choice(kinds)()


def _headers(rng: random.Random) -> type_headers:
    kinds: list[Callable[[], type_headers]] = [
        list,
        lambda: [("", b"")],
        lambda: [("twice", b"1"), ("twice", b"2")],
        lambda: [(f"h{n}", rng.randbytes(20)) for n in range(60)],
        lambda: [("\u00fcml\u00e4ut \U0001f600", b"\xff\xfe")],
        lambda: [("embedding-error-stage", b"an older reason"), ("embedding-id", b"forged")],
    ]
    return rng.choice(kinds)()


def fuzzed(rng: random.Random) -> Fuzzed:
    key = rng.choice([None, b"", b"key", rng.randbytes(12), "schl\u00fcssel".encode(), b"k" * 3_000])
    if rng.random() < 0.03:
        return Fuzzed(key, None, "dead" if key is None else "tombstone")
    value, ends = _value(rng)
    return Fuzzed(key, value, ends)


def _kept(headers: type_headers) -> type_headers:
    return [(name, value) for name, value in headers if not name.startswith("embedding-error-")]


def test_ten_thousand_fuzzed_records_end_as_vectors_or_dead_letters(
    broker: RunningBroker,
    make_topic: Callable[..., str],
    unique_name: Callable[[], str],
    tmp_path: Path,
    ray_folder: Path,
) -> None:
    rng = random.Random(SEED)
    source = make_topic(3, max_message_bytes=1_500_000)
    out, dead = make_topic(3), make_topic(2, max_message_bytes=2_500_000)
    sent = [fuzzed(rng) for _ in range(COUNT)]
    headers = [[("n", str(n).encode()), *_headers(rng)] for n in range(COUNT)]
    for n in range(0, COUNT, COUNT // 4):  # some that are as large as the topic takes
        sent[n] = Fuzzed(b"large", json.dumps({"text": f"{CANARY} " + "long " * 250_000}).encode(), "vector")
    producer = kafka_client.bare_producer(broker.settings, linger_ms=5, max_request_size=1_500_000)
    futures = [
        producer.send(source, key=one.key, value=NULL if one.value is None else one.value, headers=headers[n])
        for n, one in enumerate(sent)
    ]
    producer.flush(timeout=60)
    placed = [future.get(timeout=30) for future in futures]
    producer.close(timeout=5)

    settings = {
        "model": {"name": str(make_tiny_bert(tmp_path / "model"))},
        "source": {"topics": [source], "group": unique_name(), "text": "text"},
        "outputs": [{"topic": out, "include": ["title"]}, {"kind": "parquet", "uri": (tmp_path / "lake").as_uri()}],
        "dead_letter": {"topic": dead},
        "kafka": {"bootstrap_servers": broker.bootstrap_servers},
        "delivery": {"commit_interval_s": 0.3},
    }
    pipeline = Pipeline(tmp_path, settings)
    workers = [f"ServeReplica:stream-embedder:{name}" for name in ("Reader", "Encoder")]
    with reading(broker.settings, out) as vectors, reading(broker.settings, dead) as letters, pipeline:
        wait_until(
            lambda: vectors.poll() + letters.poll() >= COUNT,
            200,
            lambda: f"{len(vectors.records)} + {len(letters.records)}\n{pipeline.tail()}",
        )
        alive = {title: set(pipeline.parts(title)) for title in workers}
        assert pipeline.terminate() == 0, pipeline.tail()
        for _ in range(5):
            vectors.poll()
            letters.poll()

    # One reader and one encoder, the same ones at the end as at the start.
    assert {title: ray_parts(ray_folder, title) for title in workers} == alive
    assert [len(found) for found in alive.values()] == [1, 1]

    def number(record: Any) -> int:
        return next(int(value) for name, value in record.headers if name == "n")

    ended = Counter(number(record) for record in (*vectors.records, *letters.records))
    assert ended == Counter(range(COUNT)), "each once"
    for record in letters.records:
        was = sent[number(record)]
        assert (record.key, record.value) == (was.key, was.value)
        assert _kept(record.headers) == _kept(headers[number(record)])
        assert was.ends in ("dead", "either"), (number(record), dict(record.headers)["embedding-error-message"])
    embedded: dict[int, list[float] | None] = {}
    for record in vectors.records:
        was = sent[number(record)]
        assert record.key == was.key
        embedded[number(record)] = None
        if record.value is None:
            assert was.ends == "tombstone"
            continue
        assert was.ends in ("vector", "either"), number(record)
        value = json.loads(record.value)
        assert math.isclose(sum(x * x for x in value["embedding"]), 1, rel_tol=1e-4) and value["tokens"] > 0
        embedded[number(record)] = value["embedding"]

    numbers = {(place.partition, place.offset): n for n, place in enumerate(placed)}
    rows = pq.read_table(tmp_path / "lake", columns=["partition", "offset", "key", "embedding", "deleted"]).to_pylist()
    in_files = [numbers[row["partition"], row["offset"]] for row in rows]
    assert sorted(in_files) == sorted(embedded), "each good one once in the files too"
    for n, row in zip(in_files, rows, strict=True):
        vector = embedded[n]
        assert (row["key"], row["deleted"]) == (sent[n].key, vector is None)
        assert row["embedding"] == (None if vector is None else np.float32(vector).tolist())

    assert ray_folder.joinpath("ray").is_dir(), "Ray's files are where they are looked for"
    assert leaks([CANARY.encode()], ray_folder) == [], "no text in Ray's files"
    assert CANARY not in pipeline.log.read_text(errors="replace"), "no text in the logs"
