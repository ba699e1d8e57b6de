"""What every part runs on: a broker of its own, topics that nobody else has, texts of one length.

Comes in: a folder. Goes out: filled topics, plain settings, how far a topic has come. Never here: measuring.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from pipelines.bench import shape
from pipelines.bench.options import SHAPE
from pipelines.bench.texts import corpus, random_words
from pipelines.broker import local_broker
from pipelines.model import Model
from workers import kafka_client, kafka_topics
from workers.errors import EnvironmentFault
from workers.settings import KafkaSettings, Settings

PARTITIONS = 4
TOKENS = 100
DISTINCT = 512
PATIENCE_S = 120.0


@dataclass(frozen=True)
class Stage:
    """A running broker and a working folder; ``name`` is a model's as settings take it, or :data:`SHAPE`, which is made up."""

    kafka: KafkaSettings
    folder: Path
    name: str

    @cached_property
    def model(self) -> str:
        """As settings take it."""
        return str(shape.write(self.folder / "model")) if self.name == SHAPE else self.name

    def settings(self, name: str, source: str, **sections: Mapping[str, Any]) -> dict[str, Any]:
        """Plain settings of a pipeline from ``source`` into topics called after ``name``, which are made here."""
        out, dead = f"{name}-out", f"{name}-dead"
        kafka_topics.create_topics(self.kafka, {out: PARTITIONS, dead: 1})
        plain: dict[str, Any] = {
            "kafka": {"bootstrap_servers": self.kafka.bootstrap_servers},
            "model": {"name": self.model},
            "source": {"topics": [source], "group": name, "id": "{id}", "text": "{text}"},
            "outputs": [{"kind": "kafka", "topic": out, "format": "binary"}],
            "dead_letter": {"topic": dead},
        }
        for section, fields in sections.items():
            plain[section] = {**plain.get(section, {}), **fields} if isinstance(fields, Mapping) else fields
        return plain

    def write(self, name: str, plain: Mapping[str, Any]) -> Path:
        """Settings as a file for ``run``."""
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(dict(plain)), encoding="utf-8")
        return path

    @cached_property
    def opened(self) -> Model:
        """The model, as every part uses it."""
        return Model.open(Settings.model_validate({"model": {"name": self.model}}))

    @cached_property
    def texts(self) -> list[str]:
        """Texts, each cut where it has :data:`TOKENS` tokens, or one less where a word has two; real ones for a real model."""
        tokenizer = self.opened.tokenizer()
        found = []
        for text in random_words(4 * DISTINCT, shape.words()) if self.name == SHAPE else corpus(4 * DISTINCT):
            words = text.split()
            low, high = 1, len(words)
            while low < high:  # the most words that fit
                middle = (low + high + 1) // 2
                (tokens,) = tokenizer.encode([" ".join(words[:middle])], [None])
                low, high = (middle, high) if getattr(tokens, "total", 0) <= TOKENS else (low, middle - 1)
            (tokens,) = tokenizer.encode([" ".join(words[:low])], [None])
            if getattr(tokens, "total", 0) >= TOKENS - 2:
                found.append(" ".join(words[:low]))
            if len(found) == DISTINCT:
                break
        return found

    def distinct(self) -> Iterator[str]:
        """The texts, then the same with their words turned by one, and so on: of one length, and none soon again.

        A reader encodes equal texts that wait side by side once, which is not what is measured.
        """
        for turn in itertools.count():
            for text in self.texts:
                words = text.split()
                cut = turn % len(words)
                yield " ".join([*words[cut:], *words[:cut]])

    def fill(self, topic: str, records: int, *, first: float | None = None) -> None:
        """Make a topic of JSON records with texts; ``first``: the share of them that partition 0 gets, else all get as many."""
        kafka_topics.create_topics(self.kafka, {topic: PARTITIONS})
        producer = kafka_client.bare_producer(self.kafka, linger_ms=20, batch_size=256 << 10)
        try:
            others = itertools.cycle(range(1, PARTITIONS))
            texts = self.distinct()
            for number in range(records):
                if first is None:
                    partition = number % PARTITIONS
                else:
                    partition = 0 if (number + 1) * first - int(number * first) >= 1 else next(others)
                value = json.dumps({"id": str(number), "text": next(texts)}).encode()
                producer.send(topic, value, key=b"%d" % number, partition=partition)
                if number % 20_000 == 0:
                    producer.flush(60)  # its memory has no bound of its own
            producer.flush(60)
        finally:
            producer.close(timeout=5)

    @contextlib.contextmanager
    def progress(self, group: str) -> Iterator[Progress]:
        """How far a pipeline has come: what its group has committed."""
        with kafka_client.admin(self.kafka) as client:
            yield Progress(client, group)


class Progress:
    """Records whose outcomes a group has committed."""

    def __init__(self, client: Any, group: str) -> None:
        self._client = client
        self._group = group

    def now(self) -> int:
        """How many, from the first."""
        return sum(kafka_topics.committed_offsets(self._client, self._group).values())

    def reach(
        self, goal: int, patience_s: float = PATIENCE_S, wait: Callable[[], None] = lambda: time.sleep(0.05)
    ) -> float:
        """Wait until there are so many; returns the moment, by the monotonic clock. ``wait`` is called between two looks.

        Raises:
            EnvironmentFault: there is no progress for ``patience_s``.
        """
        found, since = -1, time.monotonic()
        while (now := self.now()) < goal:
            if now > found:
                found, since = now, time.monotonic()
            elif time.monotonic() - since > patience_s:
                raise EnvironmentFault(
                    f"{found:,} of {goal:,} records are out, and for {patience_s:.0f} s no more came"
                )
            wait()
        return time.monotonic()


@contextlib.contextmanager
def staged(model: str) -> Iterator[Stage]:
    """A stage, and its end."""
    with tempfile.TemporaryDirectory(prefix="bench-pipeline-") as folder, local_broker() as servers:
        yield Stage(KafkaSettings(bootstrap_servers=servers), Path(folder), model)
