"""``topics create``, ``offsets show`` and ``offsets reset`` on a real broker, as a user runs them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from pipelines.cli import main
from tests.conftest import RunningBroker
from workers import kafka_client, kafka_groups, kafka_topics
from workers.records import TopicPartition


class Said(NamedTuple):
    """What a command ended with and printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def names(unique_name: Callable[[], str]) -> dict[str, str]:
    return {part: f"{unique_name()}-{part}" for part in ("in", "out", "dead", "group")}


@pytest.fixture
def command(
    broker: RunningBroker, names: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Said]]:
    """``command("topics", "create", …)`` on the settings of a pipeline whose topics are deleted afterwards."""
    settings = {
        "source": {"topics": [names["in"]], "group": names["group"]},
        "outputs": [{"topic": names["out"]}],
        "dead_letter": {"topic": names["dead"]},
        "kafka": {"bootstrap_servers": broker.bootstrap_servers},
    }
    config = tmp_path / "pipeline.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")

    def run(*words: str) -> Said:
        code = main([*words, "-c", str(config)])
        return Said(code, *capsys.readouterr())

    yield run
    kafka_topics.delete_topics(broker.settings, [names["in"], names["out"], names["dead"]])


def described(broker: RunningBroker, names: dict[str, str]) -> dict[str, kafka_topics.Topic]:
    with kafka_client.admin(broker.settings) as client:
        found = kafka_topics.describe_topics(client, [names["in"], names["out"], names["dead"]])
    return {part: found[name] for part, name in names.items() if name in found}


def test_topics_are_made_as_the_pipeline_needs_them_and_check_is_content(
    command: Callable[..., Said], broker: RunningBroker, names: dict[str, str]
) -> None:
    kafka_topics.create_topics(broker.settings, {names["in"]: 3}, **{"max.message.bytes": "2000000"})
    assert "would be created" in command("topics", "create", "--dry-run").out
    assert set(described(broker, names)) == {"in"}
    made = command("topics", "create")
    assert made.code == 0 and f"{names['in']}" in made.out and "was there, stays as it is" in made.out
    found = described(broker, names)
    assert found["out"].partitions == 3 and found["out"].compacted
    assert (found["dead"].partitions, found["dead"].compacted, found["dead"].retention_ms) == (1, False, -1)
    assert found["dead"].max_message_bytes > 2_000_000
    assert command("check", "--source.id", "{id}").err == ""
    assert command("topics", "create").out.count("was there, stays as it is") == 3


def test_topics_for_records_without_keys(
    command: Callable[..., Said], broker: RunningBroker, names: dict[str, str]
) -> None:
    assert command("topics", "create", "--keyless", "--partitions", "2").code == 0
    found = described(broker, names)
    assert {part: topic.partitions for part, topic in found.items()} == {"in": 2, "out": 2, "dead": 2}
    assert not found["out"].compacted


def test_what_the_broker_refuses_is_a_sentence(command: Callable[..., Said], names: dict[str, str]) -> None:
    said = command("topics", "create", "--replication", "7")
    assert said.code == 1 and len(said.err.splitlines()) == 1
    assert f"the broker refuses to create topic {names['in']}" in said.err


def fill(broker: RunningBroker, topic: str, counts: list[int]) -> None:
    producer = kafka_client.bare_producer(broker.settings)
    for partition, count in enumerate(counts):
        for number in range(count):
            producer.send(topic, b"text", partition=partition, timestamp_ms=1_000 * (number + 1))
    producer.flush(timeout=30)
    producer.close(timeout=5)


def test_offsets_are_shown_and_reset(
    command: Callable[..., Said], broker: RunningBroker, names: dict[str, str]
) -> None:
    topic = names["in"]
    kafka_topics.create_topics(broker.settings, {topic: 2})
    fill(broker, topic, [10, 4])

    def shown() -> dict[int, tuple[int | None, int]]:
        said = command("offsets", "show", "--json")
        assert said.code == 0, said.err
        return {line["partition"]: (line["committed"], line["lag"]) for line in map(json.loads, said.out.splitlines())}

    assert shown() == {0: (None, 10), 1: (None, 4)}
    assert "none" in command("offsets", "show").out
    assert "nothing was changed" in command("offsets", "reset", "--to", "latest", "--dry-run").out
    assert shown() == {0: (None, 10), 1: (None, 4)}
    assert command("offsets", "reset", "--to", "latest").code == 0
    assert shown() == {0: (10, 0), 1: (4, 0)}
    assert command("offsets", "reset", "--to", "3", f"{topic}/0").code == 0
    assert shown() == {0: (3, 7), 1: (4, 0)}
    # The first record since the seventh second is the seventh; partition 1 has none so late.
    assert command("offsets", "reset", "--to", "1970-01-01T00:00:07Z").code == 0
    assert shown() == {0: (6, 4), 1: (4, 0)}
    assert command("offsets", "reset", "--to", "earliest", topic).code == 0
    assert shown() == {0: (0, 10), 1: (0, 4)}
    text = command("offsets", "show", f"{topic}/1").out
    assert f"{topic}/1" in text and f"{topic}/0" not in text and "0 members, lag 4" in text


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--to", "99"], 1, "has the offsets 0 to 4, and 99 is none of them"),
        (["--to", "soon"], 2, "--to soon: write earliest, latest, batch, an offset"),
        (["--to", "latest", "elsewhere/0"], 2, "'elsewhere/0' is no topic of the source"),
        (["--to", "latest", "--source.topics", "nowhere"], 1, "topic nowhere does not exist"),
    ],
)
def test_a_reset_that_cannot_be_is_a_sentence(
    command: Callable[..., Said],
    broker: RunningBroker,
    names: dict[str, str],
    words: list[str],
    code: int,
    sentence: str,
) -> None:
    kafka_topics.create_topics(broker.settings, {names["in"]: 1})
    fill(broker, names["in"], [4])
    said = command("offsets", "reset", *words)
    assert (said.code, len(said.err.splitlines())) == (code, 1), said.err
    assert sentence in said.err


def test_a_group_with_members_is_left_alone(
    command: Callable[..., Said], broker: RunningBroker, names: dict[str, str]
) -> None:
    from kafka import KafkaConsumer

    kafka_topics.create_topics(broker.settings, {names["in"]: 1})
    fill(broker, names["in"], [4])
    consumer = kafka_client.connect(KafkaConsumer, broker.settings, group_id=names["group"], enable_auto_commit=False)
    consumer.subscribe([names["in"]])
    try:
        while not consumer.assignment():
            kafka_client.finish_join(consumer)
            consumer.poll(100)
        said = command("offsets", "reset", "--to", "latest")
        assert said.code == 1 and "has 1 members, which would go on from where they are: stop the pipeline" in said.err
        assert "1 members" in command("offsets", "show").out
        # One that joins between the look and the commit is refused by the broker itself.
        with kafka_client.admin(broker.settings) as client, pytest.raises(Exception, match="stop the pipeline first"):
            kafka_groups.commit_for(client, names["group"], {TopicPartition(names["in"], 0): 2})
    finally:
        consumer.close()
