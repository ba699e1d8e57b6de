"""One plan of the fault lab, chosen so that the worst of each part falls in it; ``make soak`` runs the drawn ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import RunningBroker
from tests.integration.pipeline import wait_until
from tests.lab import transaction
from tests.lab.plan import Plan, Step
from tests.lab.stage import stage
from tests.lab.trial import trial
from tests.s3 import S3Server
from workers import kafka_client

pytestmark = pytest.mark.timeout(500)

PLAN = Plan(
    seed=0,
    sinks="topic and files",
    partitions=4,
    readers=2,
    conditions=frozenset({"poison text"}),
    topic={"format": "binary", "dim": 64},
    files={"precision": "float16", "dim": 16, "rotate": {"rows": 300, "seconds": 1}},
    steps=(
        Step(("reader killed", "S3 answers 500, but stores"), 0.5),
        Step(("broker killed",), 0.5),
        Step(("encoder killed", "S3 killed"), 0.5),
    ),
)


@pytest.mark.soak
def test_readers_encoders_broker_and_store_die_and_each_record_comes_once(s3: S3Server, tmp_path: Path) -> None:
    """``s3`` says why there is no S3 server, where there is none; the lab starts one of its own."""
    with stage(tmp_path) as servers:
        result = trial(PLAN, servers, 5_000)
    assert result.sound, "\n".join([*result.findings.examples, result.trouble])


def test_a_transaction_is_seen_while_it_is_open(
    broker: RunningBroker, make_topic: Callable[..., str], unique_name: Callable[[], str]
) -> None:
    topic = make_topic(2)
    producer = kafka_client.bare_producer(broker.settings, transactional_id=unique_name(), acks="all")
    try:
        producer.init_transactions()
        with transaction.watched(broker.settings, topic) as is_open:
            assert not is_open()
            for end in (producer.commit_transaction, producer.abort_transaction):
                producer.begin_transaction()
                producer.send(topic, b"a", partition=1).get(10)
                assert is_open()
                end()
                # The broker writes the mark of its end after it has said that it will.
                wait_until(lambda: not is_open(), 10, lambda: "it stays open")
    finally:
        producer.close(timeout=5)
