"""What Kafka says of a pipeline: its group, how far that is, and how long the next records have waited.

Comes in: settings. Goes out: one look, with new clients each time, so nothing is remembered of a broker that has gone. Never
here: what is thought of it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from pipelines.positions import Standing, standings
from workers import kafka_client, kafka_groups, kafka_records
from workers.errors import EnvironmentFault, RetryableError
from workers.kafka_groups import Group
from workers.records import TopicPartition
from workers.settings import Settings

NEXT_S = 5.0


@dataclass(frozen=True, slots=True)
class Lane:
    """A partition. ``waits``: whether there is a record to read, ``age_s``: how old that is, both None where nobody knows."""

    standing: Standing
    waits: bool | None = False
    age_s: float | None = None

    @property
    def partition(self) -> TopicPartition:
        """Which one."""
        return self.standing.partition

    @property
    def behind(self) -> bool:
        """Whether there is something to read. Marks of transactions alone are nothing; what is not known may be."""
        return self.standing.lag > 0 and self.waits is not False


@dataclass(frozen=True, slots=True)
class Seen:
    """One look, at ``at`` (monotonic seconds). ``why``: what could not be seen."""

    at: float
    group: Group
    lanes: tuple[Lane, ...]
    why: str | None = None

    @property
    def lag(self) -> int:
        """Offsets that are behind, over all partitions that have something to read."""
        return sum(lane.standing.lag for lane in self.lanes if lane.behind)

    @property
    def age_s(self) -> float | None:
        """How old the oldest of the next records is; 0 where nothing waits."""
        ages = [lane.age_s for lane in self.lanes if lane.behind]
        return max((age for age in ages if age is not None), default=None if ages else 0.0)


def look(settings: Settings) -> Seen:
    """Look once; takes some seconds at most while all brokers answer.

    Raises:
        EnvironmentFault: no broker answers, or a topic or a right is missing.
        RetryableError: the brokers do not answer now.
    """
    with kafka_client.admin(settings.kafka) as client:
        found = standings(client, settings)
        group = kafka_groups.describe(client, settings.source.group)
    at, now_ms, why = time.monotonic(), time.time() * 1000, None
    dated: dict[TopicPartition, int | None] = {}
    if starts := {one.partition: one.following for one in found if one.lag}:
        try:
            dated = kafka_records.next_records(settings.kafka, starts, NEXT_S)
        except (EnvironmentFault, RetryableError) as error:
            why = f"the age of the next records is not known: {error}"
    return Seen(at, group, tuple(_lane(one, dated, now_ms) for one in found), why)


def _lane(standing: Standing, dated: dict[TopicPartition, int | None], now_ms: float) -> Lane:
    if not standing.lag:
        return Lane(standing)
    if standing.partition not in dated:
        return Lane(standing, None)
    stamp = dated[standing.partition]
    if stamp is None:
        return Lane(standing, False)
    return Lane(standing, True, max(0.0, (now_ms - stamp) / 1000) if stamp >= 0 else None)
