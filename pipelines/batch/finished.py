"""What earlier runs have finished: files named by what they were made of, so that a look at the names is enough.

Comes in: an output's place, and the pieces. Goes out: which parts of each piece lie there, and what their footers count.
Never here: a file's rows.

A part of a piece is one file of each output, ``<uri>/batch-<settings>/<file>-<version>-<start>-<number>[-last].parquet``:
``settings`` says what decides its content beside the input, ``file`` whose rows they are, ``version`` what the file was like
and how it was cut. It is put whole, where nothing is; so it is there once, whatever dies, and however many jobs run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from workers.errors import EnvironmentFault
from workers.object_store import ObjectStore, StoredObject

MOST_PARTS = 10_000_000

_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{8})-(\d{16})-(\d{6})(-last)?\.parquet")
_FOLDER = re.compile(r"batch-([0-9a-f]{16})")
# A footer of a dozen columns in one row group, and a few notes.
_TAIL_BYTES = 16 << 10


class PieceName(NamedTuple):
    """A piece, in the names of its parts."""

    file: str
    version: str
    start: int

    def part(self, number: int, *, last: bool) -> str:
        """What the file of one of its parts is called."""
        return f"{self.file}-{self.version}-{self.start:016d}-{number:06d}{'-last' if last else ''}.parquet"


def settings_digest(*told: object) -> str:
    """Names what decides an output's content beside the input."""
    return hashlib.sha256(repr(told).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def folder_of(settings: str) -> str:
    """The folder of the parts that were made with these settings."""
    return f"batch-{settings}"


@dataclass(slots=True)
class Lying:
    """The parts of one piece that lie in one output: their paths by number, and the number of the last, if that is there."""

    paths: dict[int, str] = field(default_factory=dict)
    last: int | None = None

    @property
    def whole(self) -> bool:
        """Whether nothing of the piece is missing."""
        return self.last is not None and len(self.paths) == self.last + 1


def lying(
    store: ObjectStore,
    folder: str,
    named: Mapping[str, tuple[str, str]],
    *,
    any_settings: bool,
) -> dict[PieceName, Lying]:
    """What lies in an output.

    Args:
        store: the output's.
        folder: of our settings.
        named: each input file's digest → the digest of its version, and its URI.
        any_settings: whether vectors of other settings may lie beside ours.

    Raises:
        EnvironmentFault: what lies there does not go together with what this job would add.
    """
    found: dict[PieceName, Lying] = {}
    for stored in store.listing(MOST_PARTS):
        if not stored.path.endswith(".parquet"):
            continue
        above, _, name = stored.path.rpartition("/")
        matched = _NAME.fullmatch(name) if above == folder else None
        if matched is None:
            if not any_settings:
                raise EnvironmentFault(_other(store, above, stored))
            continue
        piece = PieceName(matched[1], matched[2], int(matched[3]))
        version, uri = named.get(piece.file, (piece.version, ""))
        if version != piece.version:
            raise EnvironmentFault(
                f"{store.location}/{stored.path} was made of another version of {uri}, or with other batch.rows or "
                "batch.bytes, and its rows would be there twice: remove what was made of it "
                f"({folder}/{piece.file}-{piece.version}-*), or choose another uri"
            )
        there = found.setdefault(piece, Lying())
        there.paths[int(matched[4])] = stored.path
        if matched[5]:
            there.last = int(matched[4])
    return found


def _other(store: ObjectStore, above: str, stored: StoredObject) -> str:
    what = "was made with other settings" if _FOLDER.fullmatch(above) else "was not written by batch"
    return (
        f"{store.location}/{stored.path} {what}: another model, prompt, template, dim, precision, id or included fields; whoever "
        "reads all files would get both: choose another uri, or set delivery.allow_fingerprint_change: true"
    )


class Tally(NamedTuple):
    """What became of rows: ``rows`` embedded, ``tokens`` and ``truncated`` of them; ``refused``; ``parts`` that they are.

    Of a topic: ``deleted`` are tombstones, which are rows too; ``gone``, offsets that it lost before they were read.
    """

    rows: int = 0
    tokens: int = 0
    truncated: int = 0
    refused: int = 0
    parts: int = 0
    deleted: int = 0
    gone: int = 0

    def __add__(self, other: object) -> Tally:
        assert isinstance(other, Tally)
        return Tally(*(one + two for one, two in zip(self, other, strict=True)))

    @property
    def notes(self) -> dict[str, str]:
        """For a part's footer."""
        names = ("rows", "tokens", "truncated", "refused", "deleted", "gone")
        return {name: str(getattr(self, name)) for name in names}


def tally(store: ObjectStore, paths: Iterable[str], read_notes: Callable[[bytes], Mapping[str, str] | None]) -> Tally:
    """What the footers of parts count.

    Raises:
        EnvironmentFault: one cannot be read, or is no file of ours.
    """
    total = Tally()
    for path in paths:
        most = _TAIL_BYTES
        try:
            while (notes := read_notes(store.tail(path, most))) is None:
                most *= 16
            rows, tokens = int(notes["rows"]), int(notes["tokens"])
            more = int(notes.get("deleted", 0)), int(notes.get("gone", 0))
            total += Tally(rows, tokens, int(notes["truncated"]), int(notes["refused"]), 1, *more)
        except (ValueError, KeyError):
            raise EnvironmentFault(f"{store.location}/{path} is no file that batch has written: move it away") from None
    return total
