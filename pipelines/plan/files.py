"""A sample of files: lines and rows from anywhere in them, of what can only be read from its beginning the beginning.

Comes in: pieces of files, as a batch job cuts them. Goes out: blocks of rows, read as the job reads them. Never here: what a
row means.
"""

from __future__ import annotations

import contextlib
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipelines.batch.inputs import InputFile
from pipelines.batch.pieces import Fields, Piece, Stores, beginning_of, rows_at, rows_of
from pipelines.plan.blocks import BLOCK_RECORDS, Block, Sampled, sample, sample_known
from pipelines.windows import SEED, Window, Windows
from workers.records import Record
from workers.settings import Settings

# A line's length is guessed at by the beginnings of a few files.
_GUESS_BYTES, _GUESS_FILES = 64 << 10, 3
_WIDTH_BYTES = (4 << 10, 4 << 20)
_READ_AHEAD = 64 << 10
# Of all files that are read from their beginnings, so many bytes of so many of them.
_FRONT_BYTES, _FRONT_FILES = 512 << 10, 30
_LEAST_FRONT_BYTES = 16 << 10


def sample_files(pieces: Sequence[Piece], settings: Settings, wanted: int) -> list[Sampled]:
    """About ``wanted`` rows, of each kind of file by its share of the bytes.

    Raises:
        EnvironmentFault: a file cannot be read.
    """
    stores, columns = Stores(), Fields(settings).names
    weight = sum(piece.weight for piece in pieces)

    def share(some: Sequence[Piece]) -> int:
        return max(BLOCK_RECORDS, round(wanted * sum(piece.weight for piece in some) / max(1, weight)))

    front = [piece for piece in pieces if piece.file.format == "csv" or piece.file.packed]
    tables = [piece for piece in pieces if piece.file.format == "parquet"]
    lines = [piece for piece in pieces if piece.file.format in ("jsonl", "text") and not piece.file.packed]

    def read_lines(window: Window) -> Sequence[Record]:
        cut = replace(lines[window.part], start=window.start, stop=window.stop)
        with contextlib.closing(rows_of(cut, stores, columns, ahead=_READ_AHEAD)) as found:
            return [each.row for each in found]

    def read_rows(windows: Sequence[Window]) -> Mapping[Window, Sequence[Record]]:
        by_file, rows = defaultdict[InputFile, list[Window]](list), dict[Window, Sequence[Record]]()
        for window in windows:
            by_file[tables[window.part].file].append(window)
        for file, some in by_file.items():
            read = rows_at(file, stores, columns, [(window.start, window.stop) for window in some])
            rows.update(zip(some, read, strict=True))
        return rows

    found = []
    if lines:
        width = _line_bytes(lines, stores) * BLOCK_RECORDS
        spans = [(piece.start, piece.stop) for piece in lines]
        found.append(sample(Windows(spans, _between(width, _WIDTH_BYTES)), share(lines), read_lines))
    if tables:
        spans, rows = [(piece.start, piece.stop) for piece in tables], sum(piece.stop - piece.start for piece in tables)
        width = BLOCK_RECORDS if rows > share(tables) else max(1, rows)
        found.append(sample_known(Windows(spans, width), share(tables), read_rows))
    if front:
        found.append(_from_the_front(front, stores))
    return found


def _line_bytes(pieces: Sequence[Piece], stores: Stores) -> int:
    """About the bytes of a line."""
    read = ends = 0
    for piece in random.Random(SEED).sample(pieces, min(_GUESS_FILES, len(pieces))):  # noqa: S311 - no secret
        beginning = stores.file(piece.file).read(_GUESS_BYTES) or b""
        read, ends = read + len(beginning), ends + beginning.count(b"\n")
    return read // max(1, ends)


def _between(value: int, bounds: tuple[int, int]) -> int:
    return min(max(value, bounds[0]), bounds[1])


def _from_the_front(pieces: Sequence[Piece], stores: Stores) -> Sampled:
    """CSV, whose fields may hold line ends, and what is packed: some files, each as likely as another, by their beginnings."""
    some = random.Random(SEED).sample(pieces, min(_FRONT_FILES, len(pieces)))  # noqa: S311 - no secret
    most = max(_LEAST_FRONT_BYTES, _FRONT_BYTES // len(some))
    blocks, whole = list[Block](), len(some) == len(pieces)
    for piece in some:
        rows, share = beginning_of(piece, stores, most)
        whole &= share >= 1.0
        before = 0.0
        for start in range(0, len(rows), BLOCK_RECORDS):
            group = rows[start : start + BLOCK_RECORDS]
            blocks.append(Block([each.row for each in group], (group[-1].done - before) * share * piece.stop))
            before = group[-1].done
    return Sampled(sum(piece.stop for piece in pieces), tuple(blocks), whole, from_the_front=not whole)
