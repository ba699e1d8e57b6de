"""Embeddings as outputs hold them, read back.

Comes in: a record of an output topic, in any of our formats. Goes out: its vector as it is written, or those of its chunks, and
what it says of itself; nothing of what is no embedding of ours. Never here: what the vector means in numbers, or which of a key's
records counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import orjson

from workers.codecs.base import id_of, type_vector
from workers.codecs.binary import CHUNK_HEADERS, DTYPES, FINGERPRINT_HEADER, SCALE_HEADER, SPANS_HEADER
from workers.errors import PoisonError
from workers.records import Record
from workers.settings import Settings
from workers.settings.outputs import JSON_FIELDS, WHOLE_FIELDS

if TYPE_CHECKING:
    from workers.codecs.fields import Values
    from workers.codecs.wire import Registry

_CHUNK = {"index", "count", "start", "end"}
PACKED = ("binary", "ubinary")


class Space(NamedTuple):
    """Which vectors can be compared with each other; ``model`` and ``fingerprint`` are "" where nothing says them."""

    model: str
    fingerprint: str
    dim: int
    precision: str

    @property
    def width(self) -> int:
        """Components of a vector as it is written."""
        return self.dim // 8 if self.precision in PACKED else self.dim

    def __str__(self) -> str:
        named = [f"model {self.model}"] if self.model else []
        named += [f"fingerprint {self.fingerprint}"] if self.fingerprint else []
        return ", ".join([*named, f"{self.dim} dims", self.precision])


class Stored(NamedTuple):
    """One embedding, or where ``values`` is None the deletion of what had its ``key``.

    ``key`` is the source record's, else the id: the latest of a key counts. ``values``: [space.width] in the precision's type.
    ``chunk``: which of its document's it is, and how many those are; then its id ends in ``#`` and the number, and so does its key
    where each chunk is a record of its own. ``more``: it is another chunk of the record that the one before is of, and counts
    beside it.
    """

    key: bytes | str
    id: str
    space: Space | None = None
    values: type_vector | None = None
    scale: np.float32 | None = None
    fields: Mapping[str, object] = {}
    chunk: tuple[int, int] | None = None
    more: bool = False


class StoredReader:
    """Reads records of output topics."""

    def __init__(self, settings: Settings, registry: Registry | None = None) -> None:
        """``registry``: who knows the schemas of records in Avro; by default the one that the settings name."""
        self._settings = settings
        self._registry = registry

    def read(self, record: Record) -> list[Stored]:
        """The record's embedding, those of its chunks, or what it deletes; nothing: it is none of these.

        Raises:
            RetryableError: the schema registry does not answer.
            EnvironmentFault: what a connection to it needs cannot be read.
        """
        if record.value is None:
            return [] if record.key is None else [Stored(record.key, id_of(record))]
        found: list[Stored] = []
        if record.value.startswith(b"{"):
            found = _of_object(record, _parsed(record.value))
        headers = dict(record.headers)
        if not found and "embedding-precision" in headers:
            found = _of_headers(record, headers)
        if not found and record.value.startswith(b"\0") and FINGERPRINT_HEADER in headers:
            try:
                found = _of_object(record, self._avro.read(record))
            except PoisonError:
                return []
        return found

    @cached_property
    def _avro(self) -> Values:
        from workers.codecs.schemas import values_of_outputs  # noqa: PLC0415 - only what is used

        return values_of_outputs(self._settings, self._registry)


def _parsed(value: bytes) -> object:
    try:
        return orjson.loads(value)
    except ValueError:
        return None


def _of_object(record: Record, value: Any) -> list[Stored]:
    """An embedding from a JSON object, from an Avro record, which has the same fields, or from a point of Qdrant's."""
    match value:
        case {"collection_name": str(), "vector": list(numbers), "payload": dict(payload)}:
            return _of_object(record, {**payload, "embedding": numbers})
        case {
            "id": str(name),
            "embedding": list(numbers),
            "dim": int(dim),
            "precision": str(precision),
            "model": str(model),
            "fingerprint": str(fingerprint),
        }:
            scale = value.get("scale")
            fields = {name: field for name, field in value.items() if name not in JSON_FIELDS}
            number: tuple[object, object] | None = None
            if isinstance(fields.get("chunk"), dict) and fields["chunk"].keys() == _CHUNK:
                chunk = fields.pop("chunk")  # ours too; a chunk's text is shown as what is included
                number = (chunk["index"], chunk["count"])
            found = _stored(record, name, Space(model, fingerprint, dim, precision), numbers, scale, fields, number)
            return [] if found is None else [found]
        case {
            "id": str(name),
            "chunks": list(chunks),
            "dim": int(dim),
            "precision": str(precision),
            "model": str(model),
            "fingerprint": str(fingerprint),
        }:
            fields = {name: field for name, field in value.items() if name not in JSON_FIELDS | WHOLE_FIELDS}
            space = Space(model, fingerprint, dim, precision)
            return _whole([_of_chunk(record, name, space, chunk, fields, len(chunks)) for chunk in chunks])
    return []


def _of_chunk(
    record: Record, name: str, space: Space, chunk: Any, fields: Mapping[str, object], count: int
) -> Stored | None:
    """One of a record's chunks; its text is shown as what is included."""
    match chunk:
        case {"index": int(index), "embedding": list(numbers)}:
            said = {"chunk_text": chunk["text"]} if "text" in chunk else {}
            number = (index, count)
            return _stored(
                record, f"{name}#{index}", space, numbers, chunk.get("scale"), said | {**fields}, number, name
            )
    return None


def _whole(chunks: Sequence[Stored | None]) -> list[Stored]:
    """A record's chunks; nothing where one of them is none."""
    found = [chunk for chunk in chunks if chunk is not None]
    if len(found) < len(chunks):
        return []
    return [chunk._replace(more=number > 0) for number, chunk in enumerate(found)]


def _of_headers(record: Record, headers: Mapping[str, bytes | None]) -> list[Stored]:
    """An embedding from a binary record, or those of its chunks."""
    said = {name: (content or b"").decode("utf-8", "replace") for name, content in headers.items()}
    dim, precision = said.get("embedding-dim", ""), said["embedding-precision"]
    if not dim.isdecimal() or precision not in DTYPES or record.value is None:
        return []
    space = Space(said.get("embedding-model", ""), said.get(FINGERPRINT_HEADER, ""), int(dim), precision)
    name = said.get("embedding-id") or id_of(record)
    try:
        values = np.frombuffer(record.value, DTYPES[precision])
        scales = [float(scale) for scale in said[SCALE_HEADER].split(",")] if SCALE_HEADER in said else []
        if SPANS_HEADER not in said:
            index, count = (said.get(header) for header in CHUNK_HEADERS[:2])
            number = None if index is None or count is None else (int(index), int(count))
            found = _stored(record, name, space, values, scales[0] if scales else None, {}, number)
            return [] if found is None else [found]
        vectors = values.reshape(len(said[SPANS_HEADER].split(",")), -1)
    except ValueError:
        return []
    if scales and len(scales) != len(vectors):
        return []
    return _whole(
        [
            _stored(record, f"{name}#{n}", space, vector, scales[n] if scales else None, {}, (n, len(vectors)), name)
            for n, vector in enumerate(vectors)
        ]
    )


def _stored(
    record: Record,
    name: str,
    space: Space,
    numbers: object,
    scale: object,
    fields: Mapping[str, object],
    chunk: tuple[object, object] | None = None,
    of: str | None = None,
) -> Stored | None:
    """An embedding called ``name``; ``chunk``: its number, and how many there are; ``of``: the id of the document that it is of."""
    if space.precision not in DTYPES:
        return None
    try:
        values = np.asarray(numbers, DTYPES[space.precision])
    except (ValueError, TypeError, OverflowError):
        return None
    if space.dim < 1 or values.shape != (space.width,):
        return None
    found = np.float32(scale) if isinstance(scale, int | float) else None
    number: tuple[int, int] | None = None
    match chunk:
        case (int(index), int(count)):
            number = (index, count)
    return Stored((of or name) if record.key is None else record.key, name, space, values, found, fields, number)
