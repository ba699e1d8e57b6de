"""One reader of three has all the records, and every encoder works for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import RunningBroker
from tests.integration.pipeline import Pipeline, produce_texts, reading, wait_until
from tests.slow_encoder import JOURNAL
from tests.tiny_model import make_tiny_bert

pytestmark = pytest.mark.timeout(600)
READERS, ENCODERS, RECORDS = 3, 4, 4_000


def test_a_hot_partition_has_all_encoders(
    broker: RunningBroker, make_topic: Callable[..., str], unique_name: Callable[[], str], tmp_path: Path
) -> None:
    """Its reader's part is two calls of the eight, which would keep two encoders at work at most."""
    source, out = make_topic(READERS), make_topic(1)
    journal = tmp_path / "journal"
    journal.mkdir()
    settings = {
        "model": {"name": str(make_tiny_bert(tmp_path / "model"))},
        "source": {"topics": [source], "group": unique_name(), "id": "{id}"},
        "outputs": [{"topic": out}],
        "dead_letter": {"topic": make_topic(1)},
        "kafka": {"bootstrap_servers": broker.bootstrap_servers},
        "readers": {"count": READERS, "cpus": 0.1},
        "pool": {"min": ENCODERS, "max": ENCODERS, "cpus_per_replica": 0.1, "gpus_per_replica": 0},
        "delivery": {"commit_interval_s": 0.3},
    }
    pipeline = Pipeline(tmp_path, settings, "pipelines.stand_in tests.slow_encoder:SlowEncoder")
    pipeline.environment[JOURNAL] = str(journal)
    with reading(broker.settings, out) as found, pipeline:
        wait_until(lambda: "running; SIGTERM" in pipeline.tail(200), 120, pipeline.tail)
        # The first backlog may meet encoders that its reader has not heard of.
        for number in range(2):
            for path in journal.iterdir():
                path.unlink()
            produce_texts(broker.settings, source, range(number * RECORDS, (number + 1) * RECORDS), partition=0)
            wait_until(lambda whole=(number + 1) * RECORDS: found.poll() >= whole, 150, pipeline.tail)  # type: ignore[misc]
            if (most := most_at_once(journal)) == ENCODERS:
                break
        assert pipeline.terminate() == 0, pipeline.tail()
    assert most == ENCODERS


def most_at_once(journal: Path) -> int:
    """How many calls were computed at the same moment, at most."""
    changes: list[tuple[float, int]] = []
    for path in journal.iterdir():
        for line in path.read_text(encoding="utf-8").splitlines():
            began, ended = map(float, line.split())
            changes += [(began, 1), (ended, -1)]
    most = now = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most
