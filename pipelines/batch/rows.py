"""A file's rows, as records of a source that never grows; and what becomes one file of each output.

Comes in: what a format's reader made of a row. Goes out: records whose origin is the file and the row's place in it, and
what is in their fields. Never here: a file, or a topic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from workers.codecs import decoder_for, fields_decoder, prompt_template
from workers.codecs.base import Decoder
from workers.codecs.json import JsonValues
from workers.errors import PoisonError
from workers.records import Origin, Record, frozen
from workers.settings import Settings


@frozen
class FileRow(Record):
    """One row.

    Its origin is the file's URI, partition 0, and as offset the number of the row (Parquet) or of the byte that it starts
    at; ``value`` is the row's line, None where there is none; ``fields`` what is in it, None: what JSON makes of the line;
    ``refused`` why it cannot be read; ``held`` its bytes, for the ceiling of a part.
    """

    fields: Mapping[str, object] | None = None
    refused: PoisonError | None = None
    held: int = 0


def row(
    file: str,
    offset: int,
    value: bytes | None,
    *,
    fields: Mapping[str, object] | None = None,
    refused: PoisonError | None = None,
    held: int | None = None,
) -> FileRow:
    """A row of a file; ``held`` None: as long as its line."""
    size = len(value or b"") if held is None else held
    return FileRow(Origin(file, 0, offset, 0), None, value, -1, (), fields, refused, size)


class RowValues:
    """Reads a :class:`FileRow`; see :class:`workers.codecs.fields.Values`."""

    def __init__(self) -> None:
        self._json = JsonValues()

    def read(self, record: Record) -> object:
        """The row's fields."""
        assert isinstance(record, FileRow)
        if record.refused is not None:
            raise record.refused
        return self._json.read(record) if record.fields is None else record.fields


def decoder_of(settings: Settings, prompts: Mapping[str, str], *, of_files: bool) -> Decoder:
    """What understands a job's records: rows of files, or records of topics as the stream does; ``prompts``: the model's own.

    Raises:
        SettingsError, EnvironmentFault: see :func:`workers.codecs.decoder_for`.
    """
    if not of_files:
        return decoder_for(settings, prompts=prompts)
    return fields_decoder(settings, RowValues(), prompt_template(settings.model, prompts))


class Part(NamedTuple):
    """Rows, or a topic's records, that become one file of each output: the ``number``-th of its piece, perhaps the ``last``.

    ``share`` of the piece is done with it, 0 to 1. ``gone``: offsets of it that their topic has lost.
    """

    number: int
    rows: Sequence[Record]
    last: bool
    share: float
    gone: int = 0


class Read(NamedTuple):
    """A row, and how much of its piece is read with it, 0 to 1."""

    row: FileRow
    done: float


def parts(read: Iterable[Read], most_rows: int, most_bytes: int) -> Iterator[Part]:
    """Cut a piece's rows into parts; they follow from the piece and the two ceilings alone.

    A piece without rows is one part without any.
    """
    number, before, now = 0, 0.0, 0.0
    rows: list[FileRow] = []
    held = 0
    for found, done in read:
        if rows and (len(rows) >= most_rows or held + found.held > most_bytes):
            yield Part(number, rows, last=False, share=max(0.0, now - before))
            number, rows, held, before = number + 1, [], 0, now
        rows.append(found)
        held += found.held
        now = done
    yield Part(number, rows, last=True, share=max(0.0, 1.0 - before))
