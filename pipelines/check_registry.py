"""The part of ``check`` that looks at the schema registry.

Comes in: settings and a model. Goes out: findings. Never here: a change in the registry.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pipelines.finding import Finding
from pipelines.model import Model
from workers.codecs import renderer_for, whole_for
from workers.errors import EnvironmentFault, RetryableError
from workers.schema_registry import Forbidden, SchemaRegistry, Unusable
from workers.settings import KafkaOutput, Settings

_KINDS = {"avro": "AVRO", "protobuf": "PROTOBUF", "json_schema": "JSON"}


def examine_registry(settings: Settings, model: Model | None) -> Iterator[Finding]:
    """Whether the registry answers, lets us in, knows our format, and takes the schemas of the outputs."""
    mine = settings.registry
    if mine.url is None:
        return
    registry = SchemaRegistry(mine)
    try:
        kinds = _probe(registry)
        yield Finding(f"schema registry {mine.url}")
        source = settings.source
        numbers = (None, *range(len(source.mappings)))
        registered = [
            one for number in numbers if (one := settings.of(number).source).has_schema and not one.schema_file
        ]
        for format in dict.fromkeys(one.format for one in registered):
            if kinds and _KINDS[format] not in kinds:
                yield Finding(
                    "schema registry",
                    f"the schema registry at {mine.url} has schemas of {', '.join(kinds)}, and source.format is {format}",
                )
        if mine.exposed:
            yield Finding(
                "schema registry",
                f"what opens the schema registry travels unencrypted to {mine.url}: use https",
                may_never_happen=True,
            )
        if registered:
            yield from _sources(registry, settings)
        if model is not None:
            for output in settings.outputs:
                if isinstance(output, KafkaOutput) and output.format == "avro":
                    yield _output(registry, settings, model, output)
    except (EnvironmentFault, RetryableError) as error:
        yield Finding("schema registry", str(error))


def _probe(registry: SchemaRegistry) -> list[str]:
    """The kinds of schemas that the registry takes, none where it keeps that to itself; raises when it does not let us in."""
    kinds: list[str] = []
    with contextlib.suppress(Forbidden):
        kinds = registry.kinds()
    with contextlib.suppress(Forbidden):
        registry.latest("-")  # whether there is one or not: not every registry asks for credentials above
    return kinds


def _sources(registry: SchemaRegistry, settings: Settings) -> Iterator[Finding]:
    """Whether the fields that the settings name are in the latest schemas of the source, where those have their usual names."""
    from workers.codecs.avro import AvroSchema  # noqa: PLC0415 - only who reads them pays for it
    from workers.codecs.named import unnamed  # noqa: PLC0415
    from workers.codecs.protobuf_schema import ProtobufSchema  # noqa: PLC0415

    for topic in settings.source.topics:
        number = settings.source.mapping_of(topic)
        own, where = settings.of(number), "" if number is None else f"source.mappings.{number}: "
        if not own.source.has_schema or own.source.schema_file is not None:
            continue
        subject = f"{topic}-value"
        try:
            schema = registry.latest(subject)
        except Forbidden as error:
            yield Finding(subject, str(error), may_never_happen=True)
            continue
        except Unusable as error:
            yield _not_taken(subject, error)
            continue
        if schema is None or schema.kind != _KINDS[own.source.format]:
            continue
        try:
            if schema.kind == "AVRO":
                missing = list(unnamed(own, AvroSchema(schema).has))
            elif schema.kind == "PROTOBUF":
                missing = list(unnamed(own, ProtobufSchema(schema).any_has))
            else:
                continue
        except ValueError as error:
            missing = []
            yield _not_taken(subject, error)
        for each in missing:
            yield Finding(
                subject,
                f"{where}{each}, which the latest schema of subject {subject} does not have",
                may_never_happen=True,
            )


def _not_taken(subject: str, why: ValueError) -> Finding:
    said = f"the latest schema of subject {subject} is not one that we take: {why}"
    return Finding(subject, said, may_never_happen=True)


def _output(registry: SchemaRegistry, settings: Settings, model: Model, output: KafkaOutput) -> Finding:
    from workers.codecs.avro_record import AvroRenderer  # noqa: PLC0415 - only who writes Avro pays for it
    from workers.codecs.avro_together import AvroTogether  # noqa: PLC0415
    from workers.codecs.schemas import subject_of  # noqa: PLC0415

    projection = model.projection(output)
    fingerprint = model.fingerprint_of(projection)
    renderer = whole_for(output, dim=projection.dim, model=model.name, fingerprint=fingerprint) or renderer_for(
        output, dim=projection.dim, model=model.name, fingerprint=fingerprint, chunked=settings.model.chunked
    )
    assert isinstance(renderer, AvroRenderer | AvroTogether)
    subject = subject_of(output, settings.registry.subject_strategy)
    id = registry.registered(subject, renderer.schema)
    if id is not None:
        return Finding(f"subject {subject} has the schema of {output.name}, with id {id}")
    if not settings.registry.auto_register:
        return Finding(
            subject,
            f"subject {subject} does not have the schema of {output.name}, and registry.auto_register is off: register it, or "
            "turn that on",
        )
    if not registry.compatible(subject, renderer.schema):
        return Finding(
            subject,
            f"subject {subject} would not take the schema of {output.name}: it is not compatible with the one before; change "
            "the subject's compatibility level, or write to another topic",
        )
    return Finding(f"subject {subject} takes the schema of {output.name}")
