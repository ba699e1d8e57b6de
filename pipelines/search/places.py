"""Where vectors lie: files below a folder or a prefix of an object store, or a topic.

Comes in: a path, a URI, or a topic's name. Goes out: what lies there, some thousands at a time, in the order in which it was
written. Never here: what is done with it, or a file that is not Parquet.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipelines.dead_letters import require_topic
from workers import kafka_client, kafka_records, kafka_topics
from workers.codecs.stored import Stored, StoredReader
from workers.errors import EnvironmentFault, SettingsError
from workers.object_store import Location, ObjectStore, is_uri
from workers.records import Record
from workers.settings import Settings

MOST_FILES = 100_000
SUFFIX = ".parquet"


class Files:
    """Parquet files below a folder or a URI, or one of them."""

    def __init__(self, where: str, flag: str = "--in") -> None:
        """Nothing is read yet. ``flag``: what names the place on the command line.

        Raises:
            SettingsError: it is no place that files can lie at.
            EnvironmentFault: there is nothing of that name on this machine.
        """
        self.name = where
        self.others = 0
        if is_uri(where):
            try:
                self._location = Location.parse(where)
            except ValueError as error:
                raise SettingsError(f"{flag} {where.partition('?')[0]}: {error}") from None
            return
        try:
            path = Path(where).expanduser().resolve()
        except (RuntimeError, OSError):
            raise SettingsError(f"{flag} {where}: there is no such folder") from None
        if not path.exists():
            raise EnvironmentFault(f"{flag} {where}: there is no such file or folder")
        self._location = Location("file", "", str(path))

    def __iter__(self) -> Iterator[list[Stored]]:
        """The rows of every file, by the files' names, which are in the order of their offsets.

        Raises:
            EnvironmentFault: the store does not answer, or a file is not one of ours.
        """
        from workers.codecs.parquet_rows import stored_rows  # noqa: PLC0415 - heavy

        for name, content in self.contents():
            try:
                yield from stored_rows(content)
            except ValueError as error:
                raise EnvironmentFault(f"{self.name}: {name} cannot be searched: {error}") from None

    def contents(self) -> Iterator[tuple[str, bytes | memoryview]]:
        """The files' names and contents, by the names.

        Raises:
            EnvironmentFault: the store does not answer.
        """
        here = self._location
        if here.scheme != "file" or not Path(here.prefix).is_file():
            store = ObjectStore(here)
            found = [each for each in store.listing(MOST_FILES) if _is_data(each.path)]
            for each in found:
                yield each.path, store.read(each, 0, each.size)
            if found or not here.prefix.endswith(SUFFIX):
                return
        # Nothing lies below it, so it is a file itself, or nothing at all.
        above, _, name = here.prefix.rpartition("/")
        store = ObjectStore(Location(here.scheme, here.bucket, above or ("/" if here.scheme == "file" else "")))
        if (one := store.stat(name)) is not None:
            yield name, store.read(one, 0, one.size)


def _is_data(path: str) -> bool:
    """Whether a file below the place is part of the table; what begins with _ or . is not, to any engine."""
    return path.endswith(SUFFIX) and not any(part.startswith(("_", ".")) for part in path.split("/"))


class TopicRecords:
    """An output topic, as a read_committed reader sees it; no group is used, and nothing committed."""

    def __init__(self, settings: Settings, topic: str) -> None:
        """Nothing is read yet."""
        self.name = f"topic {topic}"
        self.others = 0  # records that are no embeddings of ours, by the latest reading
        self.log_append_time = False  # whether the broker dates the records, by the latest reading
        self._settings = settings
        self._topic = topic

    def __iter__(self) -> Iterator[list[Stored]]:
        """The embeddings and deletions, in order per partition.

        Raises:
            EnvironmentFault: there is no such topic, we may not read it, or no broker answers.
            RetryableError: the broker or the schema registry does not answer now.
        """
        reader = StoredReader(self._settings)
        self.others = 0
        for records in self.records():
            found = [reader.read(record) for record in records]
            self.others += sum(not rows for rows in found)
            yield [row for rows in found for row in rows]

    def records(self) -> Iterator[list[Record]]:
        """All that is committed, a partition's share at a time and in its order. Errors as above, but for the registry's."""
        kafka = self._settings.kafka
        with kafka_client.admin(kafka) as client:
            topics = kafka_topics.describe_topics(client, [self._topic])
        require_topic(kafka, topics, self._topic, "READ", "read")
        self.log_append_time = topics[self._topic].log_append_time
        yield from kafka_records.committed_records(kafka, topics[self._topic])
