"""The dead-letter topic, read: which dead letters there are, which were sent again, and which are wanted.

Comes in: settings and what the user wants to see. Goes out: dead letters, one after another, and whether each has been
replayed. Never here: what is printed (``dead_letters_text``), or a record that is sent (``replay``).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from workers import kafka_client, kafka_records, kafka_topics
from workers.codecs.dead_letter import Refused, parse_dead_letter
from workers.codecs.receipt import Receipts
from workers.errors import EnvironmentFault, SettingsError
from workers.kafka_topics import Topic
from workers.records import TopicPartition
from workers.settings import KafkaSettings, Settings

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record lies: in the dead-letter topic when ``topic`` is None, else in a source topic."""

    topic: str | None
    partition: int
    offset: int

    @classmethod
    def parse(cls, text: str) -> Place:
        """``PARTITION/OFFSET``, or ``TOPIC/PARTITION/OFFSET`` of the source.

        Raises:
            SettingsError: it is neither.
        """
        match = re.fullmatch(r"(?:([A-Za-z0-9._-]+)/)?(\d{1,9})/(\d{1,18})", text)
        if match is None:
            raise SettingsError(
                f"{text!r} is no place of a dead letter: write PARTITION/OFFSET of the dead-letter topic, as list prints it, "
                "or TOPIC/PARTITION/OFFSET of the source"
            )
        return cls(match[1], int(match[2]), int(match[3]))

    def holds(self, refused: Refused) -> bool:
        """Whether the dead letter lies here, or came from here."""
        at = refused.place if self.topic is None else refused.record.origin
        return (self.topic or at.topic, self.partition, self.offset) == (at.topic, at.partition, at.offset)

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}" if self.topic else f"{self.partition}/{self.offset}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which dead letters are meant; what is empty or None leaves none out. ``since_ms`` goes by the source record's time."""

    stages: Collection[str] = ()
    classes: Collection[str] = ()
    topics: Collection[str] = ()
    places: Collection[Place] = ()
    since_ms: int | None = None

    def __call__(self, refused: Refused) -> bool:
        """Whether this one is meant."""
        return (
            (not self.stages or refused.stage in self.stages)
            and (not self.classes or refused.reason in self.classes)
            and (not self.topics or refused.record.origin.topic in self.topics)
            and (not self.places or any(place.holds(refused) for place in self.places))
            and (self.since_ms is None or refused.record.timestamp_ms >= self.since_ms)
        )


def parse_since(text: str, now: datetime.datetime) -> int:
    """A moment as Unix milliseconds: ISO 8601 (UTC when it names no zone), or how long ago, such as ``90m``, ``2h``, ``7d``.

    Raises:
        SettingsError: it is neither.
    """
    try:
        if match := re.fullmatch(r"(\d{1,9})([smhdw])", text):
            moment = now - datetime.timedelta(seconds=int(match[1]) * _UNITS[match[2]])
        else:
            moment = datetime.datetime.fromisoformat(text)
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=datetime.UTC)
    except (ValueError, OverflowError):
        raise SettingsError(
            f"--since {text}: write a timestamp such as 2026-05-01T00:00:00Z, or how long ago: 90m, 2h, 7d"
        ) from None
    return int(moment.timestamp() * 1000)


class DeadLetterTopic:
    """The dead-letter topic of a pipeline, as it is when it is read; it may grow meanwhile."""

    def __init__(self, kafka: KafkaSettings, topic: Topic) -> None:
        """Nothing is read yet."""
        self.topic = topic
        self._kafka = kafka
        self.others = 0  # records seen by the latest :meth:`letters` that are neither dead letters of ours nor receipts

    @classmethod
    def find(cls, settings: Settings) -> DeadLetterTopic:
        """Look the topic of ``dead_letter.topic`` up.

        Raises:
            EnvironmentFault: there is none, we may not read it, or no broker answers.
        """
        name = settings.dead_letter.topic
        with kafka_client.admin(settings.kafka) as client:
            topics = kafka_topics.describe_topics(client, [name])
        require_topic(settings.kafka, topics, name, "READ", "read")
        return cls(settings.kafka, topics[name])

    def ends(self) -> dict[TopicPartition, int]:
        """Where each partition ends now, with what is not committed yet."""
        with kafka_client.admin(self._kafka) as client:
            return kafka_topics.end_offsets(client, {self.topic.name: self.topic})

    def receipts(
        self, ends: Mapping[TopicPartition, int] | None = None, starts: Mapping[TopicPartition, int] | None = None
    ) -> Receipts:
        """Which dead letters have been sent again; ``starts`` and ``ends`` as ``kafka_records.committed_records`` has them."""
        found = Receipts()
        for records in kafka_records.committed_records(self._kafka, self.topic, starts=starts, ends=ends):
            for record in records:
                found.add(record)
        return found

    def letters(
        self, ends: Mapping[TopicPartition, int] | None = None, starts: Mapping[TopicPartition, int] | None = None
    ) -> Iterator[Refused]:
        """The dead letters, in order per partition; what else is in the topic is counted in ``others``."""
        self.others = 0
        receipts = Receipts()
        for records in kafka_records.committed_records(self._kafka, self.topic, starts=starts, ends=ends):
            for record in records:
                refused = parse_dead_letter(record)
                if refused is not None:
                    yield refused
                elif not receipts.add(record):
                    self.others += 1

    def at(self, place: Place) -> list[Refused]:
        """The dead letters of a place: one, or of a source's place as many as there were refusals.

        Raises:
            EnvironmentFault: there is none.
        """
        name = self.topic.name
        if place.topic is not None:
            found = [refused for refused in self.letters() if place.holds(refused)]
        elif place.partition < self.topic.partitions:
            here = {TopicPartition(name, place.partition): place.offset}
            first = next(self.letters(starts=here), None)
            found = [first] if first is not None and place.holds(first) else []
        else:
            raise EnvironmentFault(
                f"topic {name} has the partitions 0 to {self.topic.partitions - 1}: there is no {place}"
            )
        if not found:
            raise EnvironmentFault(
                f"topic {name} holds no dead letter {'of' if place.topic else 'at'} {place}: dead-letters list says which "
                "there are"
            )
        return found


def require_topic(
    kafka: KafkaSettings, topics: Mapping[str, Topic], name: str, operation: str | None = None, verb: str = ""
) -> None:
    """Hold a topic against what is to be done with it.

    Raises:
        EnvironmentFault: it does not exist, or we may not.
    """
    if name not in topics:
        raise EnvironmentFault(
            f"topic {name} does not exist, or this user may not see it: create it, or correct the settings"
        )
    allowed = topics[name].operations
    # A broker too old to say which operations are allowed says nothing.
    if operation is not None and allowed and operation not in allowed:
        raise EnvironmentFault(
            f"{kafka.who} may not {verb} topic {name}: grant {operation.title()} on it (kafka-acls.sh --add)"
        )
