"""Which parts are there, over all outputs: what a job need not do, and what it counts of that.

Comes in: outlets and the input's files, or pieces of topics. Goes out: tasks, pieces of which something is missing; tallies.
Never here: Ray.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipelines.batch.finished import Lying, PieceName, Tally, tally
from pipelines.batch.inputs import InputFile
from pipelines.batch.outlets import BatchOutlet, dead_letter_location, lying_in, probe
from pipelines.batch.pieces import Piece, file_digest, version_digest
from pipelines.batch.topic import TopicPiece
from workers.codecs.parquet import read_notes
from workers.settings import Settings

_READING = 16  # footers that are read at the same time
_AT_ONCE = 64


@dataclass(slots=True)
class Task:
    """A piece of which something is missing; ``there``: for each output, the numbers of the parts that it has.

    ``failures`` are attempts that ended in a fault, ``deaths`` those that ended with their replica; ``fault`` says of the last
    one how.
    """

    piece: Piece | TopicPiece
    name: PieceName
    there: list[frozenset[int]]
    failures: int = 0
    deaths: int = 0
    fault: str = ""


class There:
    """What lies in the outputs, as it was when they were last looked at."""

    def __init__(
        self, outlets: Sequence[BatchOutlet], inputs: Iterable[InputFile | TopicPiece], settings: Settings
    ) -> None:
        """Nothing is asked of the stores here. ``inputs``: files, or all pieces of topics."""
        self._outlets = outlets
        self._settings = settings
        self._any = settings.delivery.allow_fingerprint_change
        self._names = {
            each.uri: (each.digest, each.version)
            if isinstance(each, TopicPiece)
            else (file_digest(each), version_digest(each, settings.batch))
            for each in inputs
        }
        self._named: Mapping[str, tuple[str, str]] = {
            digest: (version, uri) for uri, (digest, version) in self._names.items()
        }
        self._lying: list[dict[PieceName, Lying]] = []
        self._counted: set[str] = set()

    @property
    def folders(self) -> tuple[str, ...]:
        """Where the outputs' files lie below their URIs."""
        return tuple(outlet.folder for outlet in self._outlets)

    def look(self) -> None:
        """Ask the stores.

        Raises:
            EnvironmentFault: a store does not answer, or holds what does not go together with ours.
        """
        self._lying = lying_in(self._outlets, self._named, any_settings=self._any)

    def probe(self) -> None:
        """Find out whether the stores take files.

        Raises:
            EnvironmentFault: one does not.
        """
        for location in (*(outlet.location for outlet in self._outlets), dead_letter_location(self._settings)):
            probe(self._settings, location)

    def name(self, piece: Piece | TopicPiece) -> PieceName:
        """The piece, in the names of its parts."""
        digest, version = self._names[piece.uri]
        return PieceName(digest, version, piece.start)

    def numbers(self, name: PieceName) -> list[frozenset[int]]:
        """For each output, the parts of a piece that it has."""
        return [frozenset(found[name].paths) if name in found else frozenset() for found in self._lying]

    def tasks(self, pieces: Iterable[Piece | TopicPiece]) -> list[Task]:
        """The pieces of which something is missing, the largest first, so that none is left over at the end."""
        found = []
        for piece in pieces:
            name = self.name(piece)
            if not all(name in there and there[name].whole for there in self._lying):
                found.append(Task(piece, name, self.numbers(name)))
        return sorted(found, key=lambda task: -task.piece.weight)

    def count(self, names: Iterable[PieceName]) -> Tally:
        """What those parts count that every output has, each part once in the life of this object.

        Raises:
            EnvironmentFault: a footer cannot be read.
        """
        paths = []
        for name in names:
            whole = frozenset.intersection(*self.numbers(name)) if self._lying else frozenset[int]()
            paths += [self._lying[0][name].paths[number] for number in sorted(whole)]
        paths = [path for path in paths if path not in self._counted]
        self._counted.update(paths)
        store = self._outlets[0].store
        some = [paths[start : start + _AT_ONCE] for start in range(0, len(paths), _AT_ONCE)]
        with ThreadPoolExecutor(_READING, thread_name_prefix="count") as threads:
            return sum(threads.map(lambda each: tally(store, each, read_notes), some), Tally())
