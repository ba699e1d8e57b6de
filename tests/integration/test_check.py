"""``check``, as a user runs it: one clear sentence for each thing that is wrong, and the exit code that says whose it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipelines.cli import main
from tests.conftest import RunningBroker
from workers import kafka_client
from workers.kafka_client import bare_producer

FINGERPRINT = "delivery.allow_fingerprint_change"


@pytest.fixture
def check(
    broker: RunningBroker,
    make_topic: Callable[..., str],
    unique_name: Callable[[], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, list[str]]]:
    """``check(*flags)`` on settings that are right → exit code, and the sentences on standard error."""
    settings = {
        "source": {"topics": [make_topic(2)], "group": unique_name()},
        "outputs": [{"topic": make_topic(2)}],
        "dead_letter": {"topic": make_topic(1, max_message_bytes=2_000_000)},
        "kafka": {"bootstrap_servers": broker.bootstrap_servers},
    }
    config = tmp_path / "pipeline.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")

    def run(*flags: str) -> tuple[int, list[str]]:
        code = main(["check", "-c", str(config), *flags])
        said = capsys.readouterr()
        run.out = said.out  # type: ignore[attr-defined]
        return code, said.err.splitlines()

    return run


def test_ids_that_no_deletion_has_are_said(check: Callable[..., tuple[int, list[str]]], tmp_path: Path) -> None:
    """A row of files is deleted by its key; vectors in topics stand under theirs, whatever their id."""
    uri = (tmp_path / "files").as_uri()
    files = json.dumps([{"kind": "parquet", "uri": uri}])
    assert check("--outputs", files) == (0, [])
    code, [said] = check("--outputs", files, "--source.id", "{id}")
    assert code == 0 and said.startswith("warn   source.id takes ids from the value")
    assert f"below {uri} (outputs.0)" in said and "by the column key" in said


def test_nothing_is_wrong(check: Callable[..., tuple[int, list[str]]]) -> None:
    assert check() == (0, [])


@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        (["--kafka.bootstrap_servers", "127.0.0.1:1"], 1, "no Kafka broker answers at 127.0.0.1:1"),
        (["--source.topics", "nowhere"], 1, "topic nowhere does not exist"),
        (["--outputs.0.topic", "nowhere"], 1, "topic nowhere does not exist"),
        (["--source.topics", "[]", "--source.pattern", "no-such-.*"], 1, "matches no topic"),
        (["--model.name", "/nowhere/model"], 1, "/nowhere/model"),
        (["--outputs.0.dim", "385"], 2, "outputs.0.dim (385) is larger than the 384 dimensions"),
        (["--outputs.0.precision", "int8_ranges", "--outputs.0.ranges", "/nowhere.npz"], 1, "ranges file /nowhere.npz"),
        (["--model.max_tokens", "100000"], 2, "model.max_tokens (100000) is larger"),
        (["--pool.max_batch_token", "1"], 2, "did you mean pool.max_batch_tokens?"),
        (["--source.text", "{title"], 2, "source.text"),
        (
            ["--kafka", "{security_protocol: SSL, ssl_cafile: /nowhere/ca.pem}"],
            1,
            "ssl_cafile: there is no file /nowhere/ca",
        ),
    ],
)
def test_one_thing_is_wrong(
    check: Callable[..., tuple[int, list[str]]], flags: list[str], code: int, sentence: str
) -> None:
    found, said = check(*flags)
    assert (found, len(said)) == (code, 1), said
    assert sentence in said[0]


def test_an_output_that_cannot_hold_a_vector(
    check: Callable[..., tuple[int, list[str]]], make_topic: Callable[..., str]
) -> None:
    small = make_topic(1, max_message_bytes=3000)
    code, said = check("--outputs.0.topic", small)
    assert (code, len(said)) == (1, 1)
    assert "384 dimensions as json takes about" in said[0]
    assert f"topic {small} takes records up to 3,000" in said[0]
    assert check("--outputs.0.topic", small, "--outputs.0.format", "binary", "--outputs.0.precision", "float16")[0] == 0
    for precision in ("int8", "binary", "ubinary"):
        assert check("--outputs.0.topic", small, "--outputs.0.precision", precision)[0] == 0


def test_dead_letters_that_would_not_fit(
    check: Callable[..., tuple[int, list[str]]], make_topic: Callable[..., str]
) -> None:
    code, said = check("--dead_letter.topic", make_topic(1))
    assert code == 0, "it may never happen, and run starts"
    assert said[0].startswith("warn ") and "a dead letter may take" in said[0]


def test_topics_that_delete_by_age_say_so(
    check: Callable[..., tuple[int, list[str]]], make_topic: Callable[..., str]
) -> None:
    """Vectors and dead letters keep the timestamps of what they were made of, which may be years old."""
    dead = make_topic(1, max_message_bytes=2_000_000, retention_ms=2 * 86_400_000)
    out = make_topic(1, retention_ms=-1)
    assert check("--dead_letter.topic", dead, "--outputs.0.topic", out) == (0, [])
    said = check.out  # type: ignore[attr-defined]
    assert f"topic {dead}: 1 partitions; it deletes records 2 days after the timestamp of their source" in said
    assert f"topic {out}: 1 partitions\n" in said


def test_an_output_of_another_vector_space(
    check: Callable[..., tuple[int, list[str]]], broker: RunningBroker, make_topic: Callable[..., str]
) -> None:
    topic = make_topic(2)
    producer = bare_producer(broker.settings)
    value = json.dumps({"id": "1", "embedding": [1.0], "fingerprint": "feedfacefeedface"}).encode()
    producer.send(topic, key=b"1", value=value, partition=1)
    producer.send(topic, key=b"1", value=kafka_client.NULL, partition=1)
    producer.flush()
    producer.close()
    code, said = check("--outputs.0.topic", topic)
    assert (code, len(said)) == (1, 1)
    assert "feedfacefeedface" in said[0]
    assert FINGERPRINT in said[0]
    assert check("--outputs.0.topic", topic, f"--{FINGERPRINT}", "true") == (0, [])
