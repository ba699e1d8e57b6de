"""``check``, as a user runs it: one clear sentence for each thing that is wrong, and the exit code that says whose it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipelines.broker import Broker
from pipelines.cli import main
from tests.conftest import RunningBroker
from workers import kafka_client, kafka_topics
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
        return code, capsys.readouterr().err.splitlines()

    return run


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
        (["--kafka.ssl_cafile", "/nowhere/ca.pem"], 1, "kafka.ssl_cafile: there is no file /nowhere/ca.pem"),
        (["--kafka.security_protocol", "SSL"], 1, "no Kafka broker answers"),
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
    assert code == 1
    assert "a dead letter may take" in said[0]


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


def test_rights_that_are_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A user who may see the topics, read the source, and no more."""
    from kafka.admin import ACL, ACLOperation, ACLPermissionType, ResourcePattern, ResourceType

    login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    extra = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl.plain.sasl.jaas.config": f'{login} user_app="s3cret-word";',
    }
    with Broker(tmp_path / "broker", extra=extra, listeners={"SASL": "SASL_PLAINTEXT"}) as broker:
        kafka_topics.create_topics(broker.settings, {"in": 1, "out": 1})
        kafka_topics.create_topics(broker.settings, {"dead": 1}, **{"max.message.bytes": "2000000"})

        def allow(kind: ResourceType, name: str, *operations: ACLOperation) -> None:
            with kafka_client.admin(broker.settings) as client:
                client.create_acls(
                    [
                        ACL("User:app", "*", operation, ACLPermissionType.ALLOW, ResourcePattern(kind, name))
                        for operation in operations
                    ]
                )

        for topic in ("in", "out", "dead"):
            allow(ResourceType.TOPIC, topic, ACLOperation.DESCRIBE, ACLOperation.DESCRIBE_CONFIGS)
        allow(ResourceType.TOPIC, "in", ACLOperation.READ)
        flags = [
            "check", "--source.topics", "in", "--source.group", "g", "--outputs", "[{topic: out}]",
            "--dead_letter.topic", "dead", "--kafka.bootstrap_servers", broker.address("SASL"),
            "--kafka.security_protocol", "SASL_PLAINTEXT", "--kafka.sasl_mechanism", "PLAIN",
            "--kafka.sasl_username", "app", "--delivery.cluster", "c", "--kafka.sasl_password",
        ]  # fmt: skip

        def check(password: str = "s3cret-word") -> tuple[int, str]:
            code = main([*flags, password])
            said = capsys.readouterr()
            assert "s3cret-word" not in said.err + said.out
            return code, said.err

        code, said = check("wrong")
        assert code == 1
        assert "sasl_password" in said
        code, said = check()
        assert code == 1
        assert "group g" in said
        allow(ResourceType.GROUP, "g", ACLOperation.READ)
        code, said = check()
        assert code == 1
        assert "app may not write to topic out" in said
        allow(ResourceType.TOPIC, "out", ACLOperation.WRITE, ACLOperation.READ)
        allow(ResourceType.TOPIC, "dead", ACLOperation.WRITE)
        code, said = check()
        assert code == 1
        assert "transactional" in said
        allow(ResourceType.TRANSACTIONAL_ID, "c.g.check", ACLOperation.WRITE, ACLOperation.DESCRIBE)
        assert check() == (0, "")
