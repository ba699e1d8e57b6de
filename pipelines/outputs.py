"""The outputs that the settings name, made ready for a model.

Comes in: a model with its settings. Goes out: outlets, and the chains of those that are files. Never here: a connection.
"""

from __future__ import annotations

from pipelines.model import Model
from workers import metrics
from workers.codecs import registering, renderer_for, rows_for, whole_for
from workers.kafka_topics import TopicIds
from workers.object_store import Location
from workers.outlets import FileOutlet, Outlet
from workers.settings import KafkaOutput, ParquetOutput
from workers.sinks.chain import Chain
from workers.sinks.files import FileOutput
from workers.trace import UNTRACED, Trace


def topic_outlets(model: Model) -> list[Outlet]:
    """The outputs that are topics.

    Raises:
        EnvironmentFault, SettingsError: see :meth:`pipelines.model.Model.projection`.
    """
    found = []
    for output in model.settings.outputs:
        if isinstance(output, KafkaOutput):
            projection = model.projection(output)
            fingerprint = model.fingerprint_of(projection)
            renderer = renderer_for(
                output,
                dim=projection.dim,
                model=model.name,
                fingerprint=fingerprint,
                chunked=model.settings.model.chunked,
                schema_id=registering(model.settings, output),
            )
            whole = whole_for(
                output,
                dim=projection.dim,
                model=model.name,
                fingerprint=fingerprint,
                schema_id=registering(model.settings, output),
            )
            found.append(Outlet(output.name, output.topic, projection, renderer, whole))
    return found


def file_outlets(model: Model, meter: metrics.Metrics, trace: Trace = UNTRACED) -> list[FileOutlet]:
    """The outputs that are files; errors as above."""
    settings = model.settings
    wanted = [output for output in settings.outputs if isinstance(output, ParquetOutput)]
    found = []
    for output in wanted:
        projection = model.projection(output)
        renderer = rows_for(
            output,
            dim=projection.dim,
            model=model.name,
            fingerprint=model.fingerprint_of(projection),
            chunked=settings.model.chunked,
        )
        # Half of what a reader may hold, for all of them: the other half is for records on their way.
        most = settings.limits.bytes // (2 * len(wanted))
        files = FileOutput(
            output.name,
            position_key(model, output),
            chain(model, output),
            renderer,
            output.rotate,
            most_bytes=most,
            meter=meter,
            trace=trace,
        )
        found.append(FileOutlet(projection, renderer, files, renderer if output.together else None))
    return found


def chain(model: Model, output: ParquetOutput) -> Chain:
    """The chains of an output; errors as above."""
    from workers.codecs.parquet import read_notes  # noqa: PLC0415 - only who writes files pays for pyarrow

    settings = model.settings
    return Chain(
        Location.parse(output.uri),
        read_notes,
        TopicIds(settings.kafka),
        group=settings.source.group,
        fingerprint=model.fingerprint_of(model.projection(output)),
        any_fingerprint=settings.delivery.allow_fingerprint_change,
    )


def position_key(model: Model, output: ParquetOutput) -> str:
    """What an output's positions are committed under: one of another vector space says nothing of this one's chains."""
    return f"{output.name}#{model.fingerprint_of(model.projection(output))}"
