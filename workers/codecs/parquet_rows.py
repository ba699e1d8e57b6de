"""Embeddings in Parquet files, read back: our own, and what other engines made of them.

Comes in: a file. Goes out: its rows as :class:`workers.codecs.stored.Stored`, or of a file of somebody's own, as they are. Never
here: which files, or which of a key's rows counts.

The footer says model, dim and precision. An engine that writes files anew, to merge small ones, leaves it out; the columns then
say as much as they can.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from workers.codecs.base import type_vector
from workers.codecs.parquet import NOTES
from workers.codecs.parquet_vectors import TYPES
from workers.codecs.stored import Space, Stored
from workers.settings.outputs import CHUNK_PARQUET_FIELDS, PARQUET_FIELDS

ROWS = 4_096
# Of chunks, beside their text, which is shown as what is included.
_CHUNK = CHUNK_PARQUET_FIELDS - {"chunk_text"}
# Bytes that are no UTF-8, or a time out of range.
_NO_VALUE = (pa.ArrowException, ValueError, OverflowError)
_VECTORS = {"float": "float32", "double": "float32", "halffloat": "float16", "int8": "int8"}


def stored_rows(content: bytes | memoryview) -> Iterator[list[Stored]]:
    """The rows of a file, some thousands at a time, in its order.

    Raises:
        ValueError: it is no Parquet file, or holds no embeddings of ours; the sentence says which, and quotes no value.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(pa.py_buffer(content)))
        schema = file.schema_arrow
        notes = _notes(schema)
        ours = PARQUET_FIELDS | _CHUNK if _CHUNK.issubset(schema.names) else PARQUET_FIELDS
        columns = [name for name in schema.names if name not in ours or name in _READ]
        precision, dim = _precision(schema, notes), int(notes.get("dim", 0))
        for batch in file.iter_batches(ROWS, columns=columns):
            if _is_whole(schema):
                yield _rows_of_chunks(batch, notes.get("model", ""), precision, dim)
            else:
                yield _rows(batch, notes.get("model", ""), precision, dim)
    except UnicodeDecodeError:
        raise ValueError("a column of text holds bytes that are no UTF-8") from None
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"it is no Parquet file, or is broken ({type(error).__name__})") from None


_READ = frozenset({"id", "embedding", "scale", "deleted", "fingerprint", "key"})
WHOLE = "chunks"


def _notes(schema: pa.Schema) -> dict[str, str]:
    return {
        name.decode("utf-8", "replace")[len(NOTES) :]: value.decode("utf-8", "replace")
        for name, value in (schema.metadata or {}).items()
        if name.startswith(NOTES.encode())
    }


def _precision(schema: pa.Schema, notes: Mapping[str, str]) -> str:
    """What the vectors' components are: as the footer says, else by their type where that leaves no doubt."""
    names, kind = schema.names, None
    if _is_whole(schema):
        chunk = schema.field(WHOLE).type.value_type
        names, kind = [*names, *(field.name for field in chunk)], chunk.field("embedding").type
    elif "embedding" in names:
        kind = schema.field("embedding").type
    if kind is None or "id" not in names:
        raise ValueError("it has no columns id and embedding, as our outputs have")
    if not (pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise ValueError(f"its column embedding is of type {kind}, and a vector is a list of numbers")
    if not pa.types.is_string(schema.field("id").type) and not pa.types.is_large_string(schema.field("id").type):
        raise ValueError(f"its column id is of type {schema.field('id').type}, and our ids are text")
    said = notes.get("precision")
    if said is not None:
        if said not in TYPES:
            raise ValueError("its footer names a precision that this version does not know")
        return said
    found = _VECTORS.get(str(kind.value_type))
    if found is None or (found == "int8" and "scale" not in names):
        raise ValueError(
            f"its vectors are of {kind.value_type}, which several precisions are, and no footer of ours says which: search "
            "the files that the pipeline wrote"
        )
    return found


def _rows(batch: pa.RecordBatch, model: str, precision: str, dim: int) -> list[Stored]:
    vectors = _vectors(batch.column("embedding"), precision)
    width = next((len(vector) for vector in vectors if vector is not None), 0)
    dim = dim or width
    count = batch.num_rows

    def column(name: str, missing: Any = None) -> list[Any]:
        return batch.column(name).to_pylist() if name in batch.schema.names else [missing] * count

    included = {name: _held(batch.column(name)) for name in batch.schema.names if name not in PARQUET_FIELDS}
    ids, keys, scales = column("id"), column("key"), column("scale")
    fingerprints = column("fingerprint", "")
    spaces = {each: Space(model, each or "", dim, precision) for each in set(fingerprints)}
    if width and any(space.width != width for space in spaces.values()):
        raise ValueError(f"its vectors have {width} components, and its footer says {dim} dims in {precision}")
    found = []
    for row, vector in enumerate(vectors):
        key = keys[row] if isinstance(keys[row], bytes) else ids[row]
        if vector is None:
            found.append(Stored(key, ids[row]))
            continue
        fields = {name: values[row] for name, values in included.items()}
        scale = None if scales[row] is None else np.float32(scales[row])
        found.append(Stored(key, ids[row], spaces[fingerprints[row]], vector, scale, fields))
    return found


def _is_whole(schema: pa.Schema) -> bool:
    """Whether rows have all of a document's chunks; an included field may be called so too."""
    kind = schema.field(WHOLE).type if WHOLE in schema.names else pa.null()
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_struct(kind.value_type):
        return False
    return {"index", "embedding"}.issubset(field.name for field in kind.value_type)


def _rows_of_chunks(batch: pa.RecordBatch, model: str, precision: str, dim: int) -> list[Stored]:
    """The chunks of rows that have all of a document's, each as a row of its own would have it."""
    chunks = batch.column(WHOLE)
    counts = chunks.value_lengths().fill_null(1).to_numpy()
    numbers = np.repeat(np.arange(batch.num_rows), counts)
    there = np.repeat(chunks.is_valid().to_numpy(zero_copy_only=False), counts)
    # A deletion has no chunks, and is a row without a vector.
    places = pa.array(np.where(there, np.cumsum(there) - 1, 0), pa.int64(), mask=~there)
    one = chunks.flatten().take(places)
    of_chunk = {field.name: pc.struct_field(one, field.name) for field in one.type}
    of_row = {name: batch.column(name).take(pa.array(numbers)) for name in batch.schema.names if name != WHOLE}
    of_row |= {name: of_chunk[name] for name in ("embedding", "scale") if name in of_chunk}
    if "text" in of_chunk:
        of_row["chunk_text"] = of_chunk["text"]
    found, before = [], -1
    indexes = of_chunk["index"].to_pylist()
    for number, index, row in zip(numbers, indexes, _rows(pa.record_batch(of_row), model, precision, dim), strict=True):
        name = row.id if index is None else f"{row.id}#{index}"
        found.append(row._replace(id=name, more=number == before))
        before = number
    return found


def _vectors(column: Any, precision: str) -> list[type_vector | None]:
    """Each row's vector; None where there is none."""
    flat = column.flatten().to_numpy(zero_copy_only=False)  # without the rows that are null
    there = column.is_valid().to_pylist()
    count = sum(there)
    lengths = {len(flat) // count} if pa.types.is_fixed_size_list(column.type) and count else None
    if lengths is None:
        lengths = set(column.value_lengths().drop_null().to_pylist()) if count else set()
    if len(lengths) > 1 or lengths == {0}:
        raise ValueError("its vectors are not of one length")
    wanted = TYPES[precision].to_pandas_dtype()
    matrix = iter(flat.reshape(count, -1).astype(wanted, copy=False)) if count else iter(())
    return [next(matrix) if each else None for each in there]


def column_names(file: Path | bytes | memoryview) -> list[str]:
    """The columns of any Parquet file, by its path or its content.

    Raises:
        ValueError: it is none.
        OSError: it cannot be read.
    """
    return [str(name) for name in _opened(file).schema_arrow.names]


def plain_rows(file: Path | bytes | memoryview, columns: Sequence[str]) -> Iterator[dict[str, object] | None]:
    """The rows of any Parquet file, with these columns; values as Python has them, None for a row that it cannot have.

    Errors as above.
    """
    opened = _opened(file)
    try:
        for batch in opened.iter_batches(ROWS, columns=list(columns)):
            yield from _values(batch)
    except pa.ArrowException as error:
        raise ValueError(f"it is no Parquet file, or is broken ({type(error).__name__})") from None


def _values(batch: pa.RecordBatch) -> Iterator[dict[str, object] | None]:
    names, columns = batch.schema.names, [_microseconds(column) for column in batch.columns]
    try:
        rows = zip(*(column.to_pylist() for column in columns), strict=True)
        yield from [dict(zip(names, row, strict=True)) for row in rows]
        return
    except _NO_VALUE:
        pass
    for number in range(batch.num_rows):
        try:
            yield {name: column[number].as_py() for name, column in zip(names, columns, strict=True)}
        except _NO_VALUE:
            yield None


def _held(column: Any) -> list[object]:
    """A column's values as Python has them, None where it cannot."""
    return [None if row is None else row["of"] for row in _values(pa.record_batch([column], ["of"]))]


def _microseconds(column: Any) -> Any:
    # Python's times have no more; what a time has below those is dropped.
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        return column.cast(pa.timestamp("us", column.type.tz), safe=False)
    return column


def _opened(file: Path | bytes | memoryview) -> Any:
    try:
        return pq.ParquetFile(file if isinstance(file, Path) else pa.BufferReader(pa.py_buffer(file)))
    except pa.ArrowException as error:
        raise ValueError(f"it is no Parquet file, or is broken ({type(error).__name__})") from None
