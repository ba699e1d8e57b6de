"""What a registry holds.

Comes in: nothing. Goes out: frozen values. Never here: a connection.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from workers.errors import EnvironmentFault

# Confluent's two ways to name a schema: a number of this registry's, or one that is the same in every registry.
type_schema_id = int | uuid.UUID


@dataclass(frozen=True, slots=True)
class Schema:
    """A schema as text. ``kind`` is AVRO, PROTOBUF or JSON.

    ``references``: what it refers to, as (name, text), each name once, and after those that it refers to itself.
    """

    kind: str
    text: str
    references: tuple[tuple[str, str], ...] = ()


class Unusable(ValueError):
    """The registry has the schema, and it is none that can be taken; the sentence says why. Asking again changes nothing soon."""


class Incomplete(Unusable):
    """What the schema refers to is not there any more."""


class Refused(EnvironmentFault):
    """The registry answers, and does not take what it was given; trying again changes nothing by itself."""
