"""The input cut into pieces, each of which one replica reads from its beginning to its end.

Comes in: files. Goes out: pieces that follow from the files and the settings alone, so that another run has the same; and a
piece's rows. Never here: who reads which.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, cast

from pipelines.batch import csv_file, lines
from pipelines.batch.inputs import InputFile
from pipelines.batch.object_file import AHEAD_BYTES, ObjectFile, buffered
from pipelines.batch.rows import FileRow, Part, Read, parts
from workers.codecs import id_template, prompt_template, text_template
from workers.errors import EnvironmentFault, SettingsError
from workers.object_store import Location, ObjectStore
from workers.settings import BatchSettings, Settings

# Lines are read from any byte on; a piece of so many is seconds of work for a GPU, and enough to sort by length.
PIECE_BYTES = 16 << 20
_LOOKING = 16  # files that are looked into at the same time
_MOST_UNPACKED = 64 << 20  # of the beginning of a packed file


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a file that is read on its own: bytes ``start`` to ``stop`` of lines, or rows, those of ``groups``.

    ``weight`` says how much work it is: bytes of the input.
    """

    file: InputFile
    start: int
    stop: int
    weight: int
    groups: tuple[int, ...] = ()

    @property
    def uri(self) -> str:
        """Whose rows they are."""
        return self.file.uri

    def __str__(self) -> str:
        return f"{self.file.uri} from {'row' if self.groups else 'byte'} {self.start}"


@dataclass(frozen=True, slots=True)
class Plan:
    """All pieces, and the files that cannot be read with the reason."""

    files: int
    pieces: tuple[Piece, ...]
    broken: tuple[str, ...]


class Stores:
    """The stores that files lie in, each opened once. For any number of threads."""

    def __init__(self) -> None:
        self._opened: dict[Location, ObjectStore] = {}

    def file(self, file: InputFile) -> ObjectFile:
        """The file, from its beginning."""
        store = self._opened.get(file.root)
        if store is None:
            store = self._opened[file.root] = ObjectStore(file.root)
        return ObjectFile(store, file.stored)


def file_digest(file: InputFile) -> str:
    """Names a file in the names of what is made of it."""
    return hashlib.sha256(file.uri.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def version_digest(file: InputFile, batch: BatchSettings) -> str:
    """Changes when the file does, or the way that it is cut."""
    told = f"{file.stored.size} {file.stored.version} {file.format} {PIECE_BYTES} {batch.rows} {batch.bytes}"
    return hashlib.sha256(told.encode()).hexdigest()[:8]


class Fields:
    """What of a row is needed: top-level names, and those that must be there."""

    def __init__(self, settings: Settings) -> None:
        every = (text_template(settings), id_template(settings), prompt_template(settings.model))
        templates = [template for template in every if template is not None]
        include = [settings.source.include.get(name, name) for output in settings.outputs for name in output.include]
        looked = [*(name for template in templates for name in template.fields), *(name for name in include if name)]
        self.names = list(dict.fromkeys(name.partition(".")[0] for name in looked))
        self._required = dict.fromkeys(path[0] for template in templates for path in template.needed)

    def missing(self, columns: Sequence[str]) -> str | None:
        """A column that every row needs, and that is not among these; None: there is none."""
        return next((name for name in self._required if name not in columns), None)

    def require_in(self, file: InputFile, columns: Sequence[str]) -> None:
        """Refuse a table that lacks a column which every row needs: that is a mistake in the settings, and no bad row.

        Raises:
            SettingsError: one is missing.
        """
        if (name := self.missing(columns)) is not None:
            there = ", ".join(list(columns)[:20]) or "none"
            raise SettingsError(
                f"{file.uri} has no column {name}, which source.text, source.id or the model's prompt names; its columns: {there}"
            )


def plan(files: Sequence[InputFile], settings: Settings) -> Plan:
    """Cut files into pieces, in their order; looks into those that are tables.

    Raises:
        SettingsError: a table lacks a column that the settings name.
    """
    stores, fields = Stores(), Fields(settings)

    def cut(file: InputFile) -> list[Piece] | str:
        try:
            with _said_of(file):
                return _cut(file, stores, fields, settings.batch)
        except EnvironmentFault as error:
            return str(error)

    with ThreadPoolExecutor(_LOOKING, thread_name_prefix="plan") as threads:
        found = list(threads.map(cut, files))
    pieces = [piece for each in found if not isinstance(each, str) for piece in each]
    return Plan(len(files), tuple(pieces), tuple(each for each in found if isinstance(each, str)))


def _cut(file: InputFile, stores: Stores, fields: Fields, batch: BatchSettings) -> list[Piece]:
    size = file.stored.size
    if file.format == "parquet":
        return _cut_parquet(file, stores, fields, batch.rows)
    if file.format == "csv":
        with contextlib.closing(_unpacked(file, buffered(stores.file(file)))) as stream:
            columns = csv_file.header(stream, file.delimiter)
        if columns:
            fields.require_in(file, columns)
    if file.format == "csv" or file.packed:
        return [Piece(file, 0, size, size)]
    return [
        Piece(file, at, min(at + PIECE_BYTES, size), min(PIECE_BYTES, size - at)) for at in range(0, size, PIECE_BYTES)
    ]


def _cut_parquet(file: InputFile, stores: Stores, fields: Fields, most_rows: int) -> list[Piece]:
    """Whole row groups, small ones together."""
    from pipelines.batch import parquet_file  # noqa: PLC0415 - only who reads Parquet pays for pyarrow

    opened = parquet_file.open_parquet(cast("BinaryIO", stores.file(file)))
    fields.require_in(file, parquet_file.columns_of(opened))
    found: list[Piece] = []
    for number, group in enumerate(parquet_file.groups(opened, fields.names)):
        if not group.rows:
            continue  # a piece of its own would have the name of the one after it, which starts at the same row
        last = found[-1] if found else None
        if last is not None and last.stop - last.start + group.rows <= most_rows:
            found[-1] = Piece(
                file, last.start, last.stop + group.rows, last.weight + group.bytes, (*last.groups, number)
            )
        else:
            found.append(Piece(file, group.start, group.start + group.rows, group.bytes, (number,)))
    return found


def parts_of(piece: Piece, stores: Stores, columns: Sequence[str], batch: BatchSettings) -> Iterator[Part]:
    """Read a piece, part by part.

    Raises:
        EnvironmentFault: the file is out of reach, has changed, or is broken.
    """
    with contextlib.closing(rows_of(piece, stores, columns)) as rows:
        yield from parts(rows, batch.rows, batch.bytes)


def rows_of(
    piece: Piece, stores: Stores, columns: Sequence[str], *, ahead: int = AHEAD_BYTES
) -> Generator[Read, None, None]:
    """Read a piece, row by row; errors as above. ``ahead``: of all but Parquet, the bytes that are read ahead."""
    with _said_of(piece.file), contextlib.ExitStack() as opened:
        yield from _read(piece, stores.file(piece.file), columns, opened, ahead)


def rows_at(
    file: InputFile, stores: Stores, columns: Sequence[str], spans: Sequence[tuple[int, int]]
) -> list[list[FileRow]]:
    """Of a Parquet file the rows of each of these spans of them, which do not overlap; see :func:`parquet_file.parquet_spans`.

    Raises:
        EnvironmentFault: as above.
    """
    from pipelines.batch import parquet_file  # noqa: PLC0415

    with _said_of(file):
        opened = parquet_file.open_parquet(cast("BinaryIO", stores.file(file)))
        return parquet_file.parquet_spans(opened, file.uri, columns, spans)


def beginning_of(piece: Piece, stores: Stores, most: int) -> tuple[list[Read], float]:
    """The rows in the first ``most`` bytes of a file that is read from its beginning on, and the share of it that those are.

    Raises:
        EnvironmentFault: as above.
    """
    file = piece.file
    with _said_of(file):
        packed = stores.file(file).read(most)
        text, used = _unpacked_beginning(packed) if file.packed else (packed, len(packed))
        share = used / max(1, piece.stop)
        rows = list(_rows_of_text(file, cast("BinaryIO", io.BytesIO(text)), 0, None, lambda at: at / max(1, len(text))))
    # The last one is cut off, unless the file ends with it.
    return (rows, 1.0) if share >= 1.0 else (rows[:-1], share)


def _read(
    piece: Piece, raw: ObjectFile, columns: Sequence[str], opened: contextlib.ExitStack, ahead: int
) -> Iterator[Read]:
    file, size = piece.file, max(1, piece.stop - piece.start)

    def done(offset: int) -> float:
        return min(1.0, (offset - piece.start) / size)

    if file.format == "parquet":
        from pipelines.batch import parquet_file  # noqa: PLC0415

        parquet = parquet_file.open_parquet(cast("BinaryIO", raw))
        return parquet_file.parquet_rows(parquet, file.uri, piece.groups, piece.start, columns, done)
    stream = opened.enter_context(contextlib.closing(_unpacked(file, buffered(raw, ahead))))
    stop: int | None = piece.stop
    share: Callable[[int], float] = done
    if file.packed:
        # What is unpacked of it is longer than the file: how far the file is read says how much that is.
        stop, share = None, lambda _: min(1.0, raw.tell() / size)
    return _rows_of_text(file, stream, piece.start, stop, share)


def _rows_of_text(
    file: InputFile, stream: BinaryIO, start: int, stop: int | None, share: Callable[[int], float]
) -> Iterator[Read]:
    if file.format == "csv":
        return csv_file.csv_rows(stream, file.uri, file.delimiter, share)
    of = lines.json_rows if file.format == "jsonl" else lines.text_rows
    return of(stream, file.uri, start, stop, share)


def _unpacked_beginning(packed: bytes) -> tuple[bytes, int]:
    """What the first bytes of a packed file unpack to, and how many of them that took."""
    text, rest = bytearray(), packed
    while rest and len(text) < _MOST_UNPACKED:
        member = zlib.decompressobj(wbits=31)
        text += member.decompress(rest, _MOST_UNPACKED - len(text))
        rest = member.unused_data or member.unconsumed_tail
        if not member.eof:
            break
    return bytes(text), len(packed) - len(rest)


def _unpacked(file: InputFile, stream: BinaryIO) -> BinaryIO:
    return cast("BinaryIO", gzip.GzipFile(fileobj=stream, mode="rb")) if file.packed else stream


@contextlib.contextmanager
def _said_of(file: InputFile) -> Iterator[None]:
    """Faults name the file."""
    try:
        yield
    except EnvironmentFault as error:
        said = str(error)
        raise EnvironmentFault(said if str(file.root) in said else f"{file.uri}: {said}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise EnvironmentFault(f"{file.uri}: it is not packed by gzip, or not whole") from None
