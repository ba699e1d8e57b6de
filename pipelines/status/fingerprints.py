"""Whose vectors the outputs hold, beside those that the settings make.

Comes in: settings. Goes out: fingerprints, or why there are none. Never here: a download, or a refusal (``guard``).
"""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.guard import latest_fingerprints
from pipelines.model import Model
from pipelines.positions import Standing, standings
from workers import kafka_client, kafka_topics
from workers.errors import StreamEmbedderError
from workers.kafka_topics import TopicIds
from workers.object_store import Location
from workers.settings import KafkaOutput, ParquetOutput, Settings
from workers.sinks.chain import Chain


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Of an output: ``ours``, of what the settings make; the ``latest`` that it holds, each once; ``why`` one is not known."""

    output: str
    ours: str | None
    latest: tuple[str, ...] = ()
    why: str | None = None

    @property
    def differs(self) -> bool:
        """Whether it holds vectors that do not compare with ours."""
        return self.ours is not None and any(found != self.ours for found in self.latest)


def look(settings: Settings) -> list[Fingerprint]:
    """Read the latest record, or file, of each output's partitions, and the model's files where they are on this machine."""
    model, absent = None, None
    try:
        model = Model.open(settings, download=False)
    except StreamEmbedderError as error:
        absent = str(error)
    return [_of(settings, output, model, absent) for output in settings.outputs]


def _of(
    settings: Settings, output: KafkaOutput | ParquetOutput, model: Model | None, absent: str | None
) -> Fingerprint:
    ours, latest, why = None, set[str](), absent
    try:
        if model is not None:
            ours = model.fingerprint_of(model.projection(output))
    except StreamEmbedderError as error:
        why = str(error)
    try:
        latest = _in_topic(settings, output) if isinstance(output, KafkaOutput) else _in_files(settings, output)
    except StreamEmbedderError as error:
        why = str(error)
    return Fingerprint(output.name, ours, tuple(sorted(latest)), why)


def _in_topic(settings: Settings, output: KafkaOutput) -> set[str]:
    with kafka_client.admin(settings.kafka) as client:
        topics = kafka_topics.describe_topics(client, [output.topic])
    return {found for topic in topics.values() for found in latest_fingerprints(settings, topic).values()}


def _in_files(settings: Settings, output: ParquetOutput) -> set[str]:
    from workers.codecs.parquet import read_notes  # noqa: PLC0415 - only who has files pays for pyarrow

    with kafka_client.admin(settings.kafka) as client:
        partitions = standings(client, settings)
    chain = Chain(
        Location.parse(output.uri),
        read_notes,
        TopicIds(settings.kafka),
        group=settings.source.group,
        fingerprint="",
        writing=False,
    )
    found = (_of_chain(chain, one, output) for one in partitions)
    return {fingerprint for fingerprint in found if fingerprint is not None}


def _of_chain(chain: Chain, one: Standing, output: ParquetOutput) -> str | None:
    """Of a chain's last file, which is likely to begin not long before where the chain is known to have ended."""
    outputs = {} if one.committed is None else one.committed.outputs
    # What an output of files is called there has the fingerprint after it.
    known = max((at for name, at in outputs.items() if name.rpartition("#")[0] == output.name), default=0)
    near = known - 2 * output.rotate.rows
    found = chain.latest_fingerprint(one.partition, near) if near > 0 else None
    return found or chain.latest_fingerprint(one.partition)
