"""The demo's settings: the caller's, with topics and a group of the demo's own, and as the file that ``run`` is given.

Comes in: the caller's settings and a broker. Goes out: settings and YAML. Never here: Kafka, or a default that is not the
demo's own.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import SecretStr

from workers.settings import DeadLetterSettings, KafkaOutput, KafkaSettings, PoolSettings, Settings, SourceSettings


@dataclass(frozen=True, slots=True)
class Names:
    """The demo's own topics and group, which nobody else has."""

    documents: str
    vectors: str
    dead: str
    group: str

    @classmethod
    def new(cls) -> Names:
        """Names with a random part."""
        stem = f"demo-{uuid.uuid4().hex[:8]}"
        return cls(f"{stem}-documents", f"{stem}-vectors", f"{stem}-dead", stem)

    @property
    def topics(self) -> tuple[str, str, str]:
        """The three topics."""
        return self.documents, self.vectors, self.dead


def demo_settings(settings: Settings, kafka: KafkaSettings, names: Names) -> Settings:
    """The caller's settings with the demo's own topics, group and broker."""
    return settings.model_copy(
        update={
            "kafka": kafka,
            "source": SourceSettings(topics=(names.documents,), group=names.group, text="{title}: {body}"),
            "outputs": (KafkaOutput(topic=names.vectors, include=("title",)),),
            "dead_letter": DeadLetterSettings(topic=names.dead),
            "pool": _whole_machine(settings),
        }
    )


def _whole_machine(settings: Settings) -> PoolSettings:
    """One replica on all the cores that the reader leaves, unless the caller chose."""
    if settings.pool.model_fields_set:
        return settings.pool
    return settings.pool.model_copy(
        update={"cpus_per_replica": max(1.0, (os.cpu_count() or 1) - settings.readers.cpus)}
    )


def pipeline_yaml(settings: Settings) -> str:
    """The settings as a file for ``run``, secrets included."""
    return yaml.safe_dump(_plain(settings.model_dump(exclude_defaults=True)), allow_unicode=True, sort_keys=False)


def shown_yaml(settings: Settings) -> str:
    """The part of the settings that the demo shows: no connection, so no secret."""
    shown = settings.model_dump(exclude_defaults=True, include={"source", "outputs", "dead_letter"})
    return yaml.safe_dump(_plain(shown), allow_unicode=True, sort_keys=False).rstrip()


def _plain(value: Any) -> Any:
    """What YAML can hold."""
    match value:
        case dict():
            return {key: _plain(entry) for key, entry in value.items()}
        case list() | tuple():
            return [_plain(entry) for entry in value]
        case SecretStr():
            return value.get_secret_value()
        case Path():
            return str(value)
        case _:
            return value
