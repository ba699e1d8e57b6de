"""Every setting: its name, type, default, meaning, and what contradicts what.

Comes in: values already merged from YAML, environment and flags (``pipelines.configure`` does that). Goes out: one frozen
``Settings``. Never here: reading the environment by a section (only the root does), or looking at the model or the broker.
"""

from __future__ import annotations

import re
from typing import Self

from pydantic import model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from workers.errors import SettingsError
from workers.settings.base import Section, parse_bytes
from workers.settings.batch import BatchSettings
from workers.settings.kafka import KafkaSettings, OAuthSettings
from workers.settings.model import DEFAULT_MODEL, ChunkSettings, ModelSettings
from workers.settings.outputs import (
    DeadLetterSettings,
    KafkaOutput,
    Output,
    ParquetOutput,
    Rotation,
    Vectors,
    type_precision,
)
from workers.settings.queries import QueriesSettings
from workers.settings.registry import RegistrySettings
from workers.settings.running import (
    DeliverySettings,
    LimitSettings,
    PoolSettings,
    RaySettings,
    ReaderSettings,
    ScalingSettings,
    StateSettings,
    TelemetrySettings,
)
from workers.settings.source import SourceSettings, TopicMapping

__all__ = [
    "DEFAULT_MODEL",
    "ENV_PREFIX",
    "BatchSettings",
    "ChunkSettings",
    "DeadLetterSettings",
    "DeliverySettings",
    "KafkaOutput",
    "KafkaSettings",
    "LimitSettings",
    "ModelSettings",
    "OAuthSettings",
    "ParquetOutput",
    "PoolSettings",
    "QueriesSettings",
    "RaySettings",
    "ReaderSettings",
    "RegistrySettings",
    "Rotation",
    "ScalingSettings",
    "Section",
    "Settings",
    "SourceSettings",
    "StateSettings",
    "TelemetrySettings",
    "TopicMapping",
    "Vectors",
    "parse_bytes",
    "type_precision",
]

ENV_PREFIX = "STREAM_EMBEDDER_"


class Settings(BaseSettings):
    """All settings of a pipeline. Sources, later ones win: YAML file, environment, flags."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        validate_default=True,
        hide_input_in_errors=True,
    )

    model: ModelSettings = ModelSettings()
    source: SourceSettings = SourceSettings()
    batch: BatchSettings = BatchSettings()
    outputs: tuple[Output, ...] = ()
    dead_letter: DeadLetterSettings = DeadLetterSettings()
    delivery: DeliverySettings = DeliverySettings()
    state: StateSettings = StateSettings()
    limits: LimitSettings = LimitSettings()
    kafka: KafkaSettings = KafkaSettings()
    registry: RegistrySettings = RegistrySettings()
    readers: ReaderSettings = ReaderSettings()
    pool: PoolSettings = PoolSettings()
    scaling: ScalingSettings = ScalingSettings()
    queries: QueriesSettings = QueriesSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    ray: RaySettings = RaySettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take what is given and nothing else: this process's environment is read by ``pipelines.cli`` alone."""
        return (init_settings,)

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        budget = self.pool.max_batch_tokens
        name, longest = "model.max_tokens", self.model.max_tokens
        if self.model.chunk.tokens is not None:
            name, longest = "model.chunk.tokens", self.model.chunk.tokens
        if longest and budget != "auto" and longest > budget:
            raise ValueError(
                f"{name} ({longest}) is larger than pool.max_batch_tokens ({budget}): such a text would fit no batch"
            )
        self._chunks_agree()
        included = {name for output in self.outputs for name in output.include}
        sources = [("source", self.source)]
        sources += [(f"source.mappings.{n}", self.source.mapped(each)) for n, each in enumerate(self.source.mappings)]
        for where, source in sources:
            self._source_agrees(where, source)
            if self.outputs and (unknown := sorted(source.include.keys() - included)):
                raise ValueError(f"{where}.include says where {unknown[0]} comes from, which no output includes")
        if included and all(source.format == "text" for _, source in sources):
            raise ValueError("outputs.include names fields, which source.format: text does not have; leave it out")
        writes_avro = any(isinstance(output, KafkaOutput) and output.format == "avro" for output in self.outputs)
        if self.registry.url is None and writes_avro:
            raise ValueError("outputs.format avro needs registry.url, where its schema goes")
        names = [output.name for output in self.outputs]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two outputs write to {', '.join(sorted(twice))}; give each a place of its own")
        # Kafka keeps 4,096 bytes beside a group's offset: each output's name, an offset, and for files a fingerprint.
        noted = [*names, f"kafka:{self.dead_letter.topic}", *(["state"] if self.state.topic else [])]
        if sum(len(name.encode()) + 44 for name in noted) > 4_000:
            raise ValueError(
                "outputs have more and longer names than fit beside the group's offsets (about 4,000 characters in all): "
                "use fewer, or shorter topics and uris"
            )
        if self.state.topic is not None:
            if self.state.topic in (*self.output_topics, self.dead_letter.topic):
                raise ValueError(
                    f"state.topic {self.state.topic} is also written to as something else; give it one of its own"
                )
            if self.delivery.guarantee != "exactly_once":
                raise ValueError(
                    "state.topic needs delivery.guarantee exactly_once: without transactions the state would say of records that "
                    "they are written which are not"
                )
        written = set(self.written_topics)
        if loop := written.intersection(self.source.topics):
            raise ValueError(f"{', '.join(sorted(loop))} is both read and written: the pipeline would feed itself")
        if self.source.pattern is not None:
            for topic in sorted(written):
                if re.fullmatch(self.source.pattern, topic):
                    raise ValueError(f"source.pattern matches {topic}, which the pipeline writes: it would feed itself")
        if self.dead_letter.topic in self.output_topics:
            raise ValueError(f"dead_letter.topic {self.dead_letter.topic} is also an output")
        return self

    def _chunks_agree(self) -> None:
        for number, output in enumerate(self.outputs):
            if self.model.chunked:
                output.require_free_for_chunks()
            elif output.together:
                raise ValueError(
                    f"outputs.{number}.chunks says how chunks are written, and model.overflow is {self.model.overflow}: set that "
                    "to chunk, or leave chunks out"
                )
            elif output.chunk_text:
                raise ValueError(
                    f"outputs.{number}.chunk_text writes a chunk's text, and model.overflow is {self.model.overflow}: set that "
                    "to chunk, or leave chunk_text out"
                )

    def _source_agrees(self, where: str, source: SourceSettings) -> None:
        if source.format == "text":
            if source.text != SourceSettings.model_fields["text"].default:
                raise ValueError(f"{where}.text names fields, which source.format: text does not have; leave it out")
            if source.id is not None:
                raise ValueError(f"{where}.id names fields, which source.format: text does not have; leave it out")
        if self.registry.url is None and source.has_schema and source.schema_file is None:
            raise ValueError(
                f"{where}.format {source.format} needs registry.url, where its schemas are, or {where}.schema_file"
            )

    def of(self, mapping: int | None) -> Settings:
        """The settings as topics of a mapping have them, by its number; None: as the others do."""
        if mapping is None:
            return self.model_copy(update={"source": self.source.model_copy(update={"mappings": ()})})
        chosen = self.source.mappings[mapping]
        update: dict[str, Section] = {"source": self.source.mapped(chosen)}
        if chosen.own_prompt:
            prompts = {"prompt": chosen.prompt, "prompt_text": chosen.prompt_text}
            update["model"] = self.model.model_copy(update=prompts)
        return self.model_copy(update=update)

    @property
    def output_topics(self) -> list[str]:
        """The topics that embeddings are written to."""
        return [output.topic for output in self.outputs if isinstance(output, KafkaOutput)]

    @property
    def written_topics(self) -> list[str]:
        """All topics that the pipeline writes to: outputs, dead letters, and the state."""
        return [*self.output_topics, self.dead_letter.topic, *([] if self.state.topic is None else [self.state.topic])]

    @property
    def has_chunk_keys(self) -> bool:
        """Whether an output has a key for each chunk of a document, which may go while the document stays."""
        return self.model.chunked and not all(output.together for output in self.outputs)

    @property
    def batch_reads_topics(self) -> bool:
        """Whether ``batch`` reads what the source names, and no files."""
        return not self.batch.inputs

    def require_stream(self) -> None:
        """Check that the settings say what to read and where to write, which ``run`` and ``check`` need.

        Raises:
            SettingsError: they do not.
        """
        if bool(self.source.topics) == bool(self.source.pattern):
            raise SettingsError("source.topics or source.pattern is needed, and one of them only")
        if not self.outputs:
            raise SettingsError(
                "outputs is empty: say where the embeddings go, such as outputs: [{kind: kafka, topic: vectors}]"
            )
        if self.has_chunk_keys and self.state.topic is None:
            raise SettingsError(
                "model.overflow chunk needs state.topic, such as documents.state: only who knows how many chunks a document had "
                "can delete those that are gone; or chunks: together in each output, where a document's are one record"
            )

    def require_batch(self) -> None:
        """Check that the settings say what to read and where to write, which ``batch`` needs.

        Raises:
            SettingsError: they do not.
        """
        if self.batch_reads_topics and not (self.source.topics or self.source.pattern):
            raise SettingsError(
                "batch.inputs is empty: say what to embed, such as --batch.inputs 'documents/*.parquet', or name topics in "
                "source.topics"
            )
        if self.batch_reads_topics and self.source.topics and self.source.pattern:
            raise SettingsError("source.topics or source.pattern is needed, and one of them only")
        if not self.outputs:
            raise SettingsError(
                "outputs is empty: say where the embeddings go, such as outputs: [{kind: parquet, uri: file:///vectors}]"
            )
        for number, output in enumerate(self.outputs):
            if isinstance(output, KafkaOutput):
                raise SettingsError(
                    f"outputs.{number} is a topic, and batch writes files alone: kind: parquet, and uri"
                )
        if self.batch_reads_topics:
            if self.has_chunk_keys:
                raise SettingsError(
                    "batch over topics writes every version of a document, and cannot say which chunks of an older one are gone: "
                    "set chunks: together in each output, leave model.overflow chunk out, or use run with a state.topic"
                )
            return
        if self.source.has_schema or self.source.envelope != "none" or self.source.mappings:
            raise SettingsError(
                "source.format, source.envelope and source.mappings say what Kafka's values are; leave them out, batch.format says "
                "what files are"
            )
        if self.batch.first is not None or self.batch.last is not None:
            raise SettingsError(
                "batch.start and batch.end are for topics, and batch.inputs names files: leave them out"
            )
