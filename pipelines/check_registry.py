"""The part of ``check`` that looks at the schema registry.

Comes in: settings and a model. Goes out: findings. Never here: a change in the registry.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.finding import Finding
from pipelines.model import Model
from workers.codecs import renderer_for
from workers.errors import EnvironmentFault, RetryableError
from workers.schema_registry import SchemaRegistry
from workers.settings import KafkaOutput, Settings

_KINDS = {"avro": "AVRO", "protobuf": "PROTOBUF", "json_schema": "JSON"}


def examine_registry(settings: Settings, model: Model | None) -> Iterator[Finding]:
    """Whether the registry answers, lets us in, knows our format, and takes the schemas of the outputs."""
    mine = settings.registry
    if mine.url is None:
        return
    registry = SchemaRegistry(mine)
    try:
        kinds = registry.kinds()
        registry.schema(1)  # whether there is one or not: who may not read schemas is told so here
        yield Finding(f"schema registry {mine.url}")
        source = settings.source
        wanted = _KINDS.get(source.format)
        if wanted is not None and source.schema_file is None and wanted not in kinds:
            yield Finding(
                "schema registry",
                f"the schema registry at {mine.url} has schemas of {', '.join(kinds)}, and source.format is {source.format}",
            )
        if mine.exposed:
            yield Finding(
                "schema registry",
                f"what opens the schema registry travels unencrypted to {mine.url}: use https",
                may_never_happen=True,
            )
        if model is not None:
            for output in settings.outputs:
                if isinstance(output, KafkaOutput) and output.format == "avro":
                    yield _output(registry, settings, model, output)
    except (EnvironmentFault, RetryableError) as error:
        yield Finding("schema registry", str(error))


def _output(registry: SchemaRegistry, settings: Settings, model: Model, output: KafkaOutput) -> Finding:
    from workers.codecs.avro_record import AvroRenderer  # noqa: PLC0415 - only who writes Avro pays for it
    from workers.codecs.schemas import subject_of  # noqa: PLC0415

    projection = model.projection(output)
    fingerprint = model.fingerprint_of(projection)
    renderer = renderer_for(output, dim=projection.dim, model=model.name, fingerprint=fingerprint)
    assert isinstance(renderer, AvroRenderer)
    subject = subject_of(output.topic, settings.registry.subject_strategy)
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
