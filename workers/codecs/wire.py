"""Which schema a record is in, and which of its bytes are in it.

Comes in: a record. Goes out: the schema, read once, and the value's body. Never here: a format, or how a registry is reached.

Confluent's wire format puts a magic byte 0 and the schema's id, four bytes, before the value; for Protobuf also which message of
the schema's file it is. The newer form leaves the value alone and has a header, of the same make or with a magic byte 1 and the
schema's GUID, sixteen bytes. A header goes before.
"""

from __future__ import annotations

import struct
import uuid
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, NamedTuple, Protocol, TypeVar

from workers.codecs.base import SCHEMA_HEADER, bytes_of
from workers.codecs.varint import zigzag
from workers.errors import PoisonError, RetryableError
from workers.records import Record
from workers.schema_registry import Incomplete, Schema, Unusable, type_schema_id

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

# Nobody nests messages deeper.
_MOST_INDEXES = 32
MOST_READ = 200
_NAMES = {"AVRO": "Avro", "PROTOBUF": "Protobuf", "JSON": "JSON Schema"}


class Framed(NamedTuple):
    """A value taken apart: its schema's id, which message of the schema it is (Protobuf), and the rest."""

    id: type_schema_id
    indexes: tuple[int, ...]
    body: bytes


class Registry(Protocol):
    """Who knows schemas."""

    def schema(self, id: type_schema_id) -> Schema | None:
        """See :meth:`workers.schema_registry.SchemaRegistry.schema`."""


class Schemas(Protocol[T_co]):
    """Says which schema a record is in."""

    def of(self, record: Record) -> tuple[T_co, tuple[int, ...] | None, bytes]:
        """The schema as it was read; which of its messages the record is, None where nothing says so; and the value's body.

        Raises:
            PoisonError: stage ``decode``.
            RetryableError: the registry does not answer, or there is no room here to read what it says.
        """


class OneSchema(Generic[T]):
    """Every record is in the same schema, and nothing stands before the value."""

    def __init__(self, schema: T) -> None:
        self._schema = schema

    def of(self, record: Record) -> tuple[T, tuple[int, ...] | None, bytes]:
        """See :class:`Schemas`."""
        return self._schema, None, bytes_of(record)


class RegisteredSchemas(Generic[T]):
    """Records name their schemas."""

    def __init__(self, registry: Registry, kind: str, read: Callable[[Schema], T]) -> None:
        """``read`` makes of a schema what decodes; ValueError: it is none, or none that we take; the sentence says why."""
        self._registry = registry
        self._kind = kind
        self._read = read
        self._known: OrderedDict[type_schema_id, T | ValueError] = OrderedDict()

    def of(self, record: Record) -> tuple[T, tuple[int, ...] | None, bytes]:
        """See :class:`Schemas`."""
        framed = unframe(record, indexed=self._kind == "PROTOBUF")
        found = self._known.get(framed.id)
        if found is None:
            found = self._ask(framed.id)
        self._known.move_to_end(framed.id)  # what goes when there is no more room is what was longest not used
        if isinstance(found, ValueError):
            raise _bad_schema(framed.id, found)
        return found, framed.indexes, framed.body

    def _ask(self, id: type_schema_id) -> T | ValueError:
        try:
            schema = self._registry.schema(id)
        except Incomplete as error:
            raise PoisonError("decode", "unknown_schema", f"the schema with id {id} is not whole: {error}") from None
        except Unusable as error:  # remembered there, and for a while: what is gone may come back
            raise _bad_schema(id, error) from None
        if schema is None:
            raise PoisonError("decode", "unknown_schema", f"the schema registry has no schema with the id {id}")
        if schema.kind != self._kind:
            kind, wanted = _NAMES.get(schema.kind, "another kind"), _NAMES[self._kind]
            raise PoisonError("decode", "other_format", f"the schema with id {id} is of {kind}, and not of {wanted}")
        made: T | ValueError
        try:
            made = self._read(schema)
        except ValueError as error:
            made = ValueError(str(error))
        except (OSError, MemoryError) as error:
            # This machine's fault, such as a full disk, and not the schema's.
            raise RetryableError(f"the schema with id {id} cannot be read here now ({type(error).__name__})") from None
        except Exception as error:  # noqa: BLE001 - anybody's schema may not end the reader of all records
            made = ValueError(f"it cannot be read ({type(error).__name__})")
        self._known[id] = made
        if len(self._known) > MOST_READ:
            self._known.popitem(last=False)
        return made


def _bad_schema(id: type_schema_id, why: ValueError) -> PoisonError:
    return PoisonError("decode", "bad_schema", f"the schema with id {id} is not one that we take: {why}")


def unframe(record: Record, *, indexed: bool) -> Framed:
    """Take a value in Confluent's wire format apart; ``indexed``: it says which message of its schema it is.

    Raises:
        PoisonError: stage ``decode``, class ``not_framed``: it is not in that format.
    """
    value = bytes_of(record)
    header = next((found for name, found in record.headers if name == SCHEMA_HEADER), None)
    source = value if header is None else header
    what = "value" if header is None else f"header {SCHEMA_HEADER}"
    try:
        id, at = _id(source, what)
        indexes, at = _indexes(source, at) if indexed else ((), at)
    except (IndexError, struct.error):
        raise PoisonError("decode", "not_framed", f"the {what} ends within the id of its schema") from None
    except ValueError:
        raise PoisonError("decode", "not_framed", "the value names its message by a number without an end") from None
    return Framed(id, indexes, value[at:] if header is None else value)


def frame(id: int, body: bytes) -> bytes:
    """A value in Confluent's wire format, of a schema that has one message."""
    return struct.pack(">bI", 0, id) + body


def _id(source: bytes, what: str) -> tuple[type_schema_id, int]:
    if source[0] == 0:
        return struct.unpack_from(">I", source, 1)[0], 5
    if source[0] == 1 and what != "value":
        if len(source) < 17:
            raise IndexError
        return uuid.UUID(bytes=bytes(source[1:17])), 17
    raise PoisonError(
        "decode",
        "not_framed",
        f"the {what} does not begin as Confluent's wire format does, with a zero and a schema's id; source.schema_file reads "
        "values without",
    )


def _indexes(source: bytes, at: int) -> tuple[tuple[int, ...], int]:
    count, at = zigzag(source, at)
    if not 0 <= count <= _MOST_INDEXES:
        raise PoisonError("decode", "not_framed", "the value names a message that lies too deep in its schema")
    found = []
    for _ in range(count):
        number, at = zigzag(source, at)
        found.append(number)
    return tuple(found) or (0,), at
