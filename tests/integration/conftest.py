"""What integration tests share: a broker that lets nobody in without a password, a token or a certificate; Ray's folder."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.secure_broker import SecureBroker, secure_broker
from workers import kafka_topics


@pytest.fixture(scope="package")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureBroker]:
    """With topics ``in``, ``out`` and ``dead``, which hold what tests leave in them."""
    with secure_broker(tmp_path_factory.mktemp("secured")) as made:
        kafka_topics.create_topics(made.plain, {"in": 1, "out": 1})
        kafka_topics.create_topics(made.plain, {"dead": 1}, **{"max.message.bytes": "2000000"})
        yield made


@contextlib.contextmanager
def own_ray_folder() -> Iterator[Path]:
    """Where Ray keeps its sessions meanwhile; short, for its sockets."""
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="se-", dir="/tmp", ignore_cleanup_errors=True) as folder,
    ):
        patch.setenv("RAY_TMPDIR", folder)
        yield Path(folder)


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where Ray keeps its sessions during the test."""
    with own_ray_folder() as folder:
        yield folder
