"""Schemas, from a registry that speaks Confluent's protocol: Confluent's own, Karapace, Apicurio, Redpanda.

Comes in: an id from a record, or a schema of ours. Goes out: the schema with what it refers to, or its id. Never here: what a
schema means, or a record.
"""

from __future__ import annotations

from workers.schema_registry.client import SchemaRegistry
from workers.schema_registry.http import Forbidden
from workers.schema_registry.schema import Incomplete, Refused, Schema, Unusable, type_schema_id

__all__ = ["Forbidden", "Incomplete", "Refused", "Schema", "SchemaRegistry", "Unusable", "type_schema_id"]
