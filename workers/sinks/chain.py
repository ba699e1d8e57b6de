"""A chain of files for each source partition, each put where none is: exactly once without a transaction.

Comes in: files' bytes, and where each begins. Goes out: where a chain ends. Never here: rows, or when a file is full.

A file is named by the offset that it starts at alone, and says in its footer where it ends; the next one starts there. Who
puts a file first has moved the chain on; who comes second, be it a reader that was thrown out of its group and does not know
it yet, finds the name taken, reads where the file ends, and goes on from there. So no two files hold the same offset, and
whoever reads all files sees each record's outcome once.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from workers.errors import EnvironmentFault, StreamEmbedderError
from workers.object_store import Location, ObjectStore
from workers.records import TopicPartition

type_answer = TypeVar("type_answer")

# Footers hold the schema, statistics of a few dozen columns, and our notes.
TAIL_BYTES = 64 << 10

_NAME = re.compile(r"\d{20}\.parquet")
_PROBE = "_stream-embedder-probe"

type_notes = Callable[[bytes], Mapping[str, str] | None]


class OtherChain(StreamEmbedderError):
    """The chain is another pipeline's; trying again does not mend that."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a partition's chain lies, and where it ends: the offset that its next file starts at; None: nobody has said."""

    folder: str
    end: int | None


@dataclass(frozen=True, slots=True)
class ChainFile:
    """A file on its way; ``token`` tells it from one of the same name."""

    path: str
    end: int
    token: str
    content: bytes


class Chain:
    """The chains of one output. Every method blocks on the store, and raises EnvironmentFault when that does not answer."""

    def __init__(
        self,
        location: Location,
        read_notes: type_notes,
        topic_id: Callable[[str], str],
        *,
        group: str,
        fingerprint: str,
        any_fingerprint: bool = False,
        writing: bool = True,
    ) -> None:
        """Nothing is asked of the store here.

        Args:
            location: what lies above all chains.
            read_notes: the notes of a file by its last bytes; None: by more of them; ValueError: it is no file of ours.
            topic_id: Kafka's id of a topic, which a topic that is made anew under its name does not share.
            group: whose chain it is.
            fingerprint: of our vectors.
            any_fingerprint: go on with a chain of other vectors.
            writing: False only looks, and makes no folder.
        """
        self.location = location
        self._read_notes = read_notes
        self._topic_id = topic_id
        self._group = group
        self._fingerprint = fingerprint
        self._any = any_fingerprint
        self._writing = writing
        self._opened: ObjectStore | None = None

    def find(self, partition: TopicPartition, hint: int | None) -> Place:
        """Where a partition's chain ends.

        ``hint``: where our own is known to have ended once; files before that are not looked at, and need not be there.

        Raises:
            OtherChain: another group, or one of another fingerprint, has written it.
        """
        folder = self._folder(partition)
        path = self._last(folder, hint)
        return Place(folder, hint if path is None else self._end(path, self._notes(path)))

    def latest_fingerprint(self, partition: TopicPartition, hint: int | None = None) -> str | None:
        """Whose vectors a partition's last file holds; None: there is none, or it does not say."""
        path = self._last(self._folder(partition), hint)
        return None if path is None else self._notes(path).get("fingerprint")

    def file(self, folder: str, start: int, end: int, write: Callable[[Mapping[str, str]], bytes]) -> ChainFile:
        """The file that covers the offsets ``start`` to ``end`` (exclusive); ``write``: its bytes, with these notes."""
        token = secrets.token_hex(8)
        notes = {"start": str(start), "end": str(end), "group": self._group, "write": token}
        return ChainFile(f"{folder}/{start:020d}.parquet", end, token, write(notes))

    def put(self, file: ChainFile) -> int:
        """Put a file where none is; returns where the one ends that is there now. May be called again after any fault.

        Raises:
            OtherChain: what is there is another pipeline's.
        """
        if self._ask(lambda store: store.put_if_absent(file.path, file.content)):
            return file.end
        notes = self._notes(file.path)
        if notes.get("write") == file.token:  # an attempt whose answer was lost
            return file.end
        return self._end(file.path, notes)

    def probe(self) -> None:
        """Find out whether the store lets us list, read, and put only where nothing is.

        Raises:
            EnvironmentFault: it does not; the sentence says what is missing.
        """
        self._ask(lambda store: store.put_if_absent(_PROBE, b"probe"))
        refused = not self._ask(lambda store: store.put_if_absent(_PROBE, b"probe"))
        self._ask(lambda store: store.tail(_PROBE, 1))
        self._ask(lambda store: store.names("topic-probe"))
        with contextlib.suppress(EnvironmentFault):  # a right to delete is not needed
            self._ask(lambda store: store.remove(_PROBE))
        if not refused:
            raise EnvironmentFault(
                f"{self.location}: the store puts an object over one that is there although it is asked not to (If-None-Match): "
                "exactly once cannot be kept there; choose a store that has conditional writes"
            )

    def _folder(self, partition: TopicPartition) -> str:
        return f"topic-{partition.topic}/id-{self._topic_id(partition.topic)}/partition-{partition.partition}"

    def _last(self, folder: str, hint: int | None) -> str | None:
        """The last file of a chain."""
        names = self._ask(lambda store: store.names(folder, "" if hint is None else f"{hint:020d}"))
        last = next((name for name in reversed(names) if _NAME.fullmatch(name)), None)
        return None if last is None else f"{folder}/{last}"

    def _notes(self, path: str) -> Mapping[str, str]:
        most = TAIL_BYTES
        while True:
            tail = self._tail(path, most)
            try:
                notes = self._read_notes(tail)
            except ValueError:
                raise OtherChain(
                    f"{self.location}/{path} is no Parquet file of a stream-embedder: move it away"
                ) from None
            if notes is not None:
                return notes
            most *= 16

    def _tail(self, path: str, most: int) -> bytes:
        return self._ask(lambda store: store.tail(path, most))

    def _end(self, path: str, notes: Mapping[str, str]) -> int:
        group, fingerprint = notes.get("group"), notes.get("fingerprint")
        if not notes.get("end", "").isdecimal() or group is None:
            raise OtherChain(f"{self.location}/{path} is no Parquet file of a stream-embedder: move it away")
        if group != self._group:
            raise OtherChain(
                f"{self.location}/{path} was written by group {group}, and ours is {self._group}: two pipelines cannot share "
                "a prefix; choose another uri"
            )
        if fingerprint != self._fingerprint and not self._any:
            raise OtherChain(
                f"{self.location}/{path} holds vectors with fingerprint {fingerprint}, ours is {self._fingerprint}: another "
                "model, prompt, template, dim, precision or ranges wrote them, and the two do not compare; choose another "
                "uri, or set delivery.allow_fingerprint_change: true"
            )
        return int(notes["end"])

    def _ask(self, what: Callable[[ObjectStore], type_answer]) -> type_answer:
        """Ask the store; after a fault it is opened anew, with the credentials that are there then."""
        try:
            self._opened = store = self._opened or ObjectStore(self.location, writing=self._writing)
            return what(store)
        except EnvironmentFault:
            self._opened = None
            raise
