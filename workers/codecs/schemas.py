"""Where the schemas of a source come from, and those of an output go: a file, or the registry.

Comes in: settings. Goes out: what reads a record's value; the id of an output's schema. Never here: a format's own rules.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

from workers.codecs.fields import Values
from workers.codecs.named import type_has, unnamed
from workers.codecs.wire import OneSchema, RegisteredSchemas, Registry
from workers.errors import EnvironmentFault, RetryableError, SettingsError
from workers.schema_registry import Refused, Schema, SchemaRegistry
from workers.settings import KafkaOutput, Settings, SourceSettings

T = TypeVar("T")

# The full name of the Avro record that an embedding is.
RECORD_NAME = "stream_embedder.Embedding"
# And of the one that has all chunks of a text.
WHOLE_NAME = "stream_embedder.ChunkedEmbedding"


def values_of(settings: Settings, registry: Registry | None = None) -> Values:
    """What reads the values of ``source.format``, of those that need a schema.

    Arguments and errors as :func:`workers.codecs.decoder_for`.
    """
    source = settings.source
    known = registry or SchemaRegistry(settings.registry)
    match source.format:
        case "avro":
            from workers.codecs.avro import AvroSchema, AvroValues  # noqa: PLC0415 - only what is used

            if source.schema_file is None:
                return AvroValues(RegisteredSchemas(known, "AVRO", AvroSchema))
            one = _read_file(source.schema_file, lambda raw: AvroSchema(Schema("AVRO", raw.decode())))
            _require_fields(settings, one.has)
            return AvroValues(OneSchema(one))
        case "json_schema":
            from workers.codecs.json_schema import JsonSchema, JsonSchemaValues  # noqa: PLC0415

            if source.schema_file is None:
                return JsonSchemaValues(RegisteredSchemas(known, "JSON", JsonSchema))
            return JsonSchemaValues(
                OneSchema(_read_file(source.schema_file, lambda raw: JsonSchema(Schema("JSON", raw.decode()))))
            )
    return _protobuf(settings, known)


def values_of_outputs(settings: Settings, registry: Registry | None = None) -> Values:
    """What reads the values of outputs in Avro; arguments as :func:`workers.codecs.decoder_for`."""
    from workers.codecs.avro import AvroSchema, AvroValues  # noqa: PLC0415 - only what is used

    return AvroValues(RegisteredSchemas(registry or SchemaRegistry(settings.registry), "AVRO", AvroSchema))


def _protobuf(settings: Settings, registry: Registry) -> Values:
    from google.protobuf.descriptor_pb2 import FileDescriptorSet  # noqa: PLC0415
    from google.protobuf.message import DecodeError  # noqa: PLC0415

    from workers.codecs.protobuf import ProtobufValues  # noqa: PLC0415
    from workers.codecs.protobuf_schema import ProtobufSchema  # noqa: PLC0415

    path = settings.source.schema_file
    if path is None:
        return ProtobufValues(RegisteredSchemas(registry, "PROTOBUF", ProtobufSchema))

    def read(raw: bytes) -> ProtobufSchema:
        if path.suffix == ".proto":
            return ProtobufSchema(Schema("PROTOBUF", raw.decode()), _home(path).parent)
        try:
            return ProtobufSchema(FileDescriptorSet.FromString(raw))
        except DecodeError:
            raise ValueError("it is neither .proto nor a descriptor set") from None

    schema = _read_file(path, read)
    name = _message(settings.source, schema.names, schema.outer_names)
    _require_fields(settings, lambda path: schema.has(name, path))
    return ProtobufValues(OneSchema(schema), name)


def _require_fields(settings: Settings, has: type_has) -> None:
    if missing := list(unnamed(settings, has)):
        raise SettingsError("\n".join(f"{each}, which {settings.source.schema_file} does not have" for each in missing))


def _message(source: SourceSettings, names: list[str], outer: list[str]) -> str:
    if source.message is None and len(outer) == 1:
        return outer[0]
    if source.message in names:
        return str(source.message)
    known = ", ".join(names[:10]) + ("" if len(names) <= 10 else ", …")
    what = "is needed" if source.message is None else f"{source.message} is not there"
    raise SettingsError(f"source.message {what}: {source.schema_file} has {known or 'no messages'}")


def _read_file(path: Path, read: Callable[[bytes], T]) -> T:
    try:
        return read(_home(path).read_bytes())
    except OSError as error:
        raise EnvironmentFault(f"source.schema_file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise EnvironmentFault(f"source.schema_file {path} is not UTF-8") from None
    except ValueError as error:
        raise EnvironmentFault(f"source.schema_file {path} is not a schema that we take: {error}") from None


def _home(path: Path) -> Path:
    """The path with the home folder for its tilde."""
    return Path(os.path.expanduser(path))  # pathlib's raises where there is no such user


def subject_of(output: KafkaOutput, strategy: Literal["topic_name", "record_name", "topic_record_name"]) -> str:
    """The subject that an output's schema is registered under."""
    name = WHOLE_NAME if output.together else RECORD_NAME
    match strategy:
        case "topic_name":
            return f"{output.topic}-value"
        case "record_name":
            return name
        case "topic_record_name":
            return f"{output.topic}-{name}"


class Registration:
    """Registers an output's schema when its id is first asked for. Thread-safe."""

    def __init__(
        self,
        registry: SchemaRegistry,
        output: KafkaOutput,
        strategy: Literal["topic_name", "record_name", "topic_record_name"],
    ) -> None:
        self._registry = registry
        self._subject = subject_of(output, strategy)
        self._lock = threading.Lock()
        self._ids: dict[Schema, int] = {}

    def __call__(self, schema: Schema) -> int:
        """The schema's id.

        Raises:
            RetryableError: the registry does not answer, or does not take the schema; nothing is written until it does.
        """
        with self._lock:
            if (found := self._ids.get(schema)) is None:
                try:
                    found = self._registry.register(self._subject, schema)
                except Refused as error:
                    raise RetryableError(
                        f"{refusal(self._subject, error)}; until then this reader commits nothing"
                    ) from None
                except EnvironmentFault as error:
                    raise RetryableError(str(error)) from None
                self._ids[schema] = found
            return found


def refusal(subject: str, error: Refused) -> str:
    """The sentence for a schema of ours that the registry does not take."""
    return f"the schema registry does not take the output's schema under subject {subject}: {error}"
