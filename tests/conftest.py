"""What tests share: a real Kafka broker and topics on it.

``KAFKA_BOOTSTRAP_SERVERS`` names a broker that runs already; without it one is started, once for all the tests.
"""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.broker import Broker, local_broker
from workers import kafka_topics
from workers.errors import StreamEmbedderError
from workers.settings import KafkaSettings

os.environ["HF_HUB_OFFLINE"] = "1"  # tests load the packaged model and tiny ones of their own, never a hub's


# ---- Kafka


@dataclass(frozen=True, slots=True)
class RunningBroker:
    """A broker that answers; not ours to stop."""

    bootstrap_servers: str

    @property
    def settings(self) -> KafkaSettings:
        return KafkaSettings(bootstrap_servers=self.bootstrap_servers)


@pytest.fixture(scope="session")
def broker() -> Iterator[RunningBroker]:
    """The broker that all tests share. Use topics from ``make_topic``, and groups named by ``unique_name``."""
    with local_broker(os.environ.get("KAFKA_BOOTSTRAP_SERVERS")) as bootstrap_servers:
        yield RunningBroker(bootstrap_servers)


@pytest.fixture
def make_topic(broker: RunningBroker, request: pytest.FixtureRequest) -> Iterator[Callable[..., str]]:
    """``make_topic(partitions=1, **configs)`` → the name of a new topic on ``broker``, deleted after the test.

    Configs are the topic's, with underscores for dots: ``make_topic(3, max_message_bytes=2000)``.
    """
    made: list[str] = []

    def make(partitions: int = 1, **configs: object) -> str:
        name = _unique(request.node.name)
        dotted = {key.replace("_", "."): str(value) for key, value in configs.items()}
        kafka_topics.create_topics(broker.settings, {name: partitions}, **dotted)
        made.append(name)
        return name

    yield make
    if made:
        with contextlib.suppress(StreamEmbedderError):  # a topic left behind is no failure of the test
            kafka_topics.delete_topics(broker.settings, made)


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Broker]:
    """A started broker of the test's own, to kill, pause and restart; always local, whatever the environment says."""
    with Broker(tmp_path / "broker") as started:
        yield started


@pytest.fixture
def unique_name(request: pytest.FixtureRequest) -> Callable[[], str]:
    """``unique_name()`` → a name for a group or a transactional id that no other test has."""
    return lambda: _unique(request.node.name)


def _unique(stem: str) -> str:
    """The stem in Kafka's letters, and some random ones."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', stem)[:80].strip('-')}-{uuid.uuid4().hex[:8]}"


# ---- Ray
