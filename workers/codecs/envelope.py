"""What change data capture wraps a row in.

Comes in: a record's value. Goes out: the row, or None where it was deleted. Never here: a guess: an event that holds no row is
refused by its name.

Debezium's event says what happened (``op``: create, read, update, delete) and how the row is ``after`` it. Flattened by its
ExtractNewRecordState it is the row with ``__deleted`` beside its columns. Either may be in Kafka Connect's own envelope.
"""

from __future__ import annotations

import base64
import hashlib
import uuid
from collections.abc import Mapping

from workers.codecs.connect import as_typed
from workers.codecs.json import parse_json
from workers.codecs.plain import UNAVAILABLE
from workers.errors import PoisonError

# What stands for a large column that did not change, which some databases do not send (``unavailable.value.placeholder``).
PLACEHOLDER = "__debezium_unavailable_value"
# Bytes and maps may be text, by ``binary.handling.mode`` and ``hstore.handling.mode``; a UUID is the placeholder's, of version 3
# without a namespace.
_RAW = PLACEHOLDER.encode()
_UUID = str(uuid.UUID(bytes=hashlib.md5(_RAW, usedforsecurity=False).digest(), version=3))
_SCALARS = (
    PLACEHOLDER,
    _RAW,
    base64.b64encode(_RAW).decode(),
    _RAW.hex(),
    _UUID,
    f'{{"{PLACEHOLDER}":"{PLACEHOLDER}"}}',
)
# Arrays have one, but for those of numbers, which are its bytes.
_NUMBERS = list(_RAW)
_DELETED = "__deleted"
_KEPT = ("c", "r", "u")
# Events without a row, by a field that no other has.
_OTHERS = (
    ("ddl", "schema_change", "a change of a table's schema"),
    ("tableChanges", "schema_change", "a change of a table's schema"),
    ("data_collections", "transaction", "the bounds of a transaction"),
)


class ConnectEnvelope:
    """``{schema, payload}``, as Kafka Connect's JsonConverter writes it with ``schemas.enable``."""

    def open(self, value: object) -> object:
        """See :class:`workers.codecs.fields.Envelope`. A null payload is what a null value is to Connect: a deletion."""
        if not is_connect(value):
            message = "the value is not Kafka Connect's envelope, an object of schema and payload"
            raise PoisonError("decode", "not_an_envelope", message)
        return payload(value)


class DebeziumEnvelope:
    """Change events, whole or flattened."""

    def open(self, value: object) -> object:
        """See :class:`workers.codecs.fields.Envelope`."""
        if is_connect(value):
            value = payload(value)
            if value is None:
                return None
        if not isinstance(value, Mapping):
            raise PoisonError("decode", "not_an_envelope", "the value is not an object, as a change event is")
        if _DELETED in value:
            return None if value[_DELETED] in ("true", True) else _row(value)
        if "op" in value and ("after" in value or "before" in value or value["op"] in ("m", "t")):
            return self._event(value)
        raise _refusal(value)

    def _event(self, value: Mapping[str, object]) -> object:
        match value["op"]:
            case "d":
                return None
            case "t":
                message = "the table was truncated, and no key says which vectors that deletes: delete them yourself"
                raise PoisonError("decode", "truncate", message)
            case "m":
                raise PoisonError("decode", "message", "the event is a message in the database's log, and holds no row")
            case op if op not in _KEPT:
                raise PoisonError("decode", "not_an_envelope", "the change event's op is none that we know")
        after = value.get("after")
        if isinstance(after, str):
            after = parse_json(after)  # MongoDB's documents travel as JSON
        if not isinstance(after, Mapping):
            message = (
                "the change event does not say how the row is after it; MongoDB's need capture.mode "
                "change_streams_update_full"
            )
            raise PoisonError("decode", "no_after", message)
        return _row(after)


def is_connect(value: object) -> bool:
    """Whether a value is Kafka Connect's envelope."""
    return isinstance(value, Mapping) and value.keys() == {"schema", "payload"}


def payload(value: object) -> object:
    """What is in Kafka Connect's envelope, its types as its schema says.

    Raises:
        PoisonError: schema and payload do not go together.
    """
    assert isinstance(value, Mapping)
    return as_typed(value["schema"], value["payload"])


def _row(columns: Mapping[str, object]) -> Mapping[str, object]:
    """A row; columns that did not travel are marked, so that nothing is made of their placeholder."""
    return {name: UNAVAILABLE if _held_back(value) else value for name, value in columns.items() if name != _DELETED}


def _held_back(value: object) -> bool:
    """Whether a column is the placeholder in any of the shapes that Debezium gives it, by the column's type."""
    match value:
        case str() | bytes():
            return value in _SCALARS
        case [str() | bytes() as only]:
            return only in _SCALARS
        case list():
            return value == _NUMBERS
        case Mapping() if len(value) == 1:
            return value.get(PLACEHOLDER) == PLACEHOLDER
    return False


def _refusal(value: Mapping[str, object]) -> PoisonError:
    for field, reason, what in _OTHERS:
        if field in value:
            return PoisonError(
                "decode", reason, f"the event is {what}, and holds no row: read the tables' topics alone"
            )
    if value.get("status") in ("BEGIN", "END"):
        return PoisonError(
            "decode",
            "transaction",
            "the event is the bounds of a transaction, and holds no row: read the tables' topics alone",
        )
    if value.keys() == {"ts_ms"}:
        return PoisonError(
            "decode", "heartbeat", "the event is a heartbeat, and holds no row: read the tables' topics alone"
        )
    return PoisonError(
        "decode",
        "not_an_envelope",
        "the value is no change event: it has neither op and after nor __deleted; source.envelope none reads plain rows, and "
        "delete.tombstone.handling.mode rewrite flattens with __deleted",
    )
