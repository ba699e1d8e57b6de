"""What tests share: a real Kafka broker and topics on it, a real S3 server and buckets on it, a real schema registry.

``KAFKA_BOOTSTRAP_SERVERS`` names a broker that runs already; without it one is started, once for all the tests.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import hypothesis
import pytest

from pipelines.broker import Broker, local_broker
from tests import s3 as s3_server
from tests import schema_registry as registry_server
from workers import kafka_topics
from workers.errors import StreamEmbedderError
from workers.settings import KafkaSettings

# How long an example takes says how busy the machine is, and nothing of the code.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

os.environ["HF_HUB_OFFLINE"] = "1"  # tests load the packaged model and tiny ones of their own, never a hub's
# Small models gain nothing from a second thread, and threads that wait for each other on a busy machine lose a lot.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell that starts tests in the background has them, and what they start, ignore Ctrl-C; some send it to their own processes.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _log_as_it_begins() -> None:
    """Undo what a test before has configured: pytest listens at a logger that does not propagate, and would hear it twice."""
    logger = logging.getLogger("stream_embedder")
    logger.propagate = True
    logger.setLevel(logging.NOTSET)
    for handler in [one for one in logger.handlers if type(one) is logging.StreamHandler]:
        logger.removeHandler(handler)


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


# ---- servers that are fetched or built once


def _do_without(reason: Exception, *, all_that_is_missing_is_go: bool = False) -> NoReturn:
    """Skip what needs a server that is not to be had here, and say why; in CI fail, unless Go alone is missing.

    Maven is what the README asks for; Go is what a machine may do without.
    """
    if os.environ.get("CI") and not all_that_is_missing_is_go:
        raise reason
    pytest.skip(str(reason))


# ---- S3


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test with the S3 server may have to wait until it is built, the first with the registry until it is fetched."""
    late = {}
    if not s3_server.PROGRAM.is_file():
        late["s3"] = s3_server.BUILD_S
    if not registry_server.PROGRAM.is_dir():
        late["registry"] = registry_server.FETCH_S
    for item in items:
        for name in late.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.timeout(late[name] + 500))


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3_server.S3Server]:
    """The S3 server that all tests share."""
    try:
        s3_server.gateway()
    except s3_server.NoServer as reason:
        _do_without(reason, all_that_is_missing_is_go=shutil.which("go") is None)
    with s3_server.S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def bucket(s3: s3_server.S3Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A new bucket on ``s3``; this process's environment, and so its children's, is that of the server's root user."""
    for name in os.environ:
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, value in s3.environ.items():
        monkeypatch.setenv(name, value)
    return s3.add_bucket(request.node.name)


# ---- the schema registry


@pytest.fixture(scope="session")
def registry() -> Iterator[registry_server.RegistryServer]:
    """The schema registry that all tests share."""
    try:
        registry_server.program()
    except registry_server.NoRegistry as reason:
        _do_without(reason)
    with registry_server.registry_server() as server:
        yield server


# ---- Ray
