"""A schema registry, and what it has said already.

Comes in: ids and subjects. Goes out: schemas and ids. Never here: HTTP, or what a schema means.

A schema never changes under its id, so it is kept for as long as there is room. That an id is unknown, or its schema none that can
be taken, is kept for a while: who floods a topic with ids that do not exist must not flood the registry.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from workers import log
from workers.errors import RetryableError
from workers.schema_registry.http import MOST_BYTES, NotFound, TooLarge, Transport
from workers.schema_registry.schema import Incomplete, Refused, Schema, Unusable, type_schema_id
from workers.settings import RegistrySettings

LOG = log.get(__name__)

MOST_SCHEMAS = 1_000
MOST_UNKNOWN = 10_000
UNKNOWN_S = 30.0
# A registry of several may answer from one that has not heard of a new schema yet: it is asked again after the first time,
# if that has not been done for the second.
SECOND_LOOK_S, SECOND_LOOK_EVERY_S = 0.5, 10.0
MOST_REFERENCES = 200
# Registries count schemas by Java's int. What does not fit one is to them no id, but a path that they do not have or understand.
_MOST_ID = (1 << 31) - 1
_TOO_LARGE = f"it, or one that it refers to, takes more than {MOST_BYTES:,} bytes"


class SchemaRegistry:
    """One registry's schemas. Thread-safe; connects when it is first asked."""

    def __init__(self, settings: RegistrySettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._transport = Transport(settings)
        self._clock = clock
        self._lock = threading.Lock()
        self._schemas: OrderedDict[type_schema_id, Schema] = OrderedDict()
        self._unknown: OrderedDict[type_schema_id, tuple[float, Unusable | None]] = OrderedDict()
        self._next_second_look = 0.0

    def schema(self, id: type_schema_id) -> Schema | None:
        """The schema that has this id; None: the registry knows of none.

        Raises:
            Unusable: it refers to too many others or to one that is gone, or is too large.
            RetryableError: the registry does not answer, or not as one.
            EnvironmentFault: what we need for a connection cannot be read.
        """
        with self._lock:
            if (found := self._schemas.get(id)) is not None:
                self._schemas.move_to_end(id)
                return found
            until, unusable = self._unknown.get(id, (0.0, None))
            if self._clock() < until:
                if unusable is not None:
                    raise type(unusable)(str(unusable))
                return None
        try:
            schema = self._ask(id)
        except Unusable as error:
            self._remember(id, error)
            raise
        if schema is None and self._clock() >= self._next_second_look:
            time.sleep(SECOND_LOOK_S)
            schema = self._ask(id)
            self._next_second_look = self._clock() + SECOND_LOOK_EVERY_S
        if schema is None:
            self._remember(id, None)
            return None
        with self._lock:
            _put(self._schemas, id, schema, MOST_SCHEMAS)
        LOG.info("schema read %s", log.fields(id=id, kind=schema.kind))
        return schema

    def _remember(self, id: type_schema_id, unusable: Unusable | None) -> None:
        with self._lock:
            _put(self._unknown, id, (self._clock() + UNKNOWN_S, unusable), MOST_UNKNOWN)

    def _ask(self, id: type_schema_id) -> Schema | None:
        by_guid = isinstance(id, uuid.UUID)  # which older registries, and others than Confluent's, do not know
        odd = isinstance(id, uuid.UUID) or id > _MOST_ID
        try:
            return self._read(
                self._transport.ask("GET", "schemas", "guids" if by_guid else "ids", str(id), no_such_path=odd)
            )
        except NotFound as error:
            if error.code == HTTPStatus.NOT_FOUND:
                self._require_registry()
            return None
        except TooLarge:
            raise Unusable(_TOO_LARGE) from None

    def _require_registry(self) -> None:
        """Raise RetryableError where what has no such path is no registry at all: one that knows ids says what it has not."""
        with contextlib.suppress(NotFound):
            self._transport.ask("GET", "schemas", "ids", "0")

    def register(self, subject: str, schema: Schema) -> int:
        """The id of a schema under a subject, where it is put unless the settings say that it must be there.

        Raises:
            Refused: the registry does not take it, or it is not there and may not be put.
            RetryableError: as above.
            EnvironmentFault: as above.
        """
        if not self._settings.auto_register:
            if (found := self.registered(subject, schema)) is None:
                raise Refused(
                    f"it is not there, and registry.auto_register is off: register it under subject {subject}"
                )
            return found
        try:
            return _number(self._transport.ask("POST", "subjects", subject, "versions", body=_body(schema)), "id")
        except NotFound as error:
            raise Refused(f"the registry says {error.code} of subject {subject}") from None

    def registered(self, subject: str, schema: Schema) -> int | None:
        """The id that a schema has under a subject already; None: it has none. Errors as above."""
        try:
            return _number(self._transport.ask("POST", "subjects", subject, body=_body(schema)), "id")
        except NotFound:
            return None

    def compatible(self, subject: str, schema: Schema) -> bool:
        """Whether the registry would take a schema as a subject's next one. Errors as above."""
        try:
            answer = self._transport.ask(
                "POST", "compatibility", "subjects", subject, "versions", "latest", body=_body(schema)
            )
        except NotFound:
            return True  # the subject's first
        return isinstance(answer, dict) and answer.get("is_compatible") is True

    def latest(self, subject: str) -> Schema | None:
        """A subject's latest schema; None: there is none. Errors as above, and :class:`Unusable`."""
        try:
            return self._read(self._transport.ask("GET", "subjects", subject, "versions", "latest"))
        except NotFound:
            return None
        except TooLarge:
            raise Unusable(_TOO_LARGE) from None

    def kinds(self) -> list[str]:
        """The kinds of schemas that the registry takes: the cheapest thing to ask it. Errors as above."""
        try:
            answer = self._transport.ask("GET", "schemas", "types")
        except NotFound:
            return ["AVRO"]  # one from before there were others
        if not isinstance(answer, list):
            raise RetryableError("the schema registry does not answer as one: is registry.url right?")
        return [str(kind) for kind in answer]

    def _read(self, answer: Any) -> Schema:
        found: dict[str, str] = {}
        try:
            self._collect(answer, found)
            return Schema(answer.get("schemaType") or "AVRO", answer["schema"], tuple(found.items()))
        except (KeyError, TypeError, AttributeError):
            raise RetryableError("the schema registry answers with a schema that is none") from None
        except NotFound as error:
            raise Incomplete(f"it refers to one that the registry does not have any more ({error.code})") from None

    def _collect(self, answer: Any, found: dict[str, str], depth: int = 0) -> None:
        """The references of a schema and, before them, theirs."""
        for reference in answer.get("references") or ():
            name, subject, version = reference["name"], reference["subject"], reference["version"]
            if name in found:
                continue
            if len(found) >= MOST_REFERENCES or depth >= MOST_REFERENCES:
                raise Unusable(f"it refers to more than {MOST_REFERENCES} others")
            # A version that was deleted is still what those were made with that refer to it.
            inner = self._transport.ask("GET", "subjects", subject, "versions", str(version), deleted=True)
            self._collect(inner, found, depth + 1)
            found[name] = str(inner["schema"])


def _put(cache: OrderedDict[type_schema_id, Any], id: type_schema_id, value: object, most: int) -> None:
    cache[id] = value
    cache.move_to_end(id)
    while len(cache) > most:
        cache.popitem(last=False)


def _body(schema: Schema) -> dict[str, str]:
    return {"schema": schema.text} if schema.kind == "AVRO" else {"schema": schema.text, "schemaType": schema.kind}


def _number(answer: Any, name: str) -> int:
    number = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(number, int) or isinstance(number, bool):
        raise RetryableError("the schema registry does not answer as one: is registry.url right?")
    return number
