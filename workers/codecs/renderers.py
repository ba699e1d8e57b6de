"""What writes an output's records or rows, as the settings choose it.

Comes in: an output, and what stands on every record. Goes out: its renderer. Never here: a format.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from workers.codecs.base import Renderer, WholeRenderer
from workers.settings import KafkaOutput, ParquetOutput, Settings

if TYPE_CHECKING:
    from workers.codecs.parquet import ParquetRenderer
    from workers.schema_registry import Schema


def renderer_for(
    output: KafkaOutput,
    *,
    dim: int,
    model: str,
    fingerprint: str,
    chunked: bool = False,
    schema_id: Callable[[Schema], int] = lambda _: 0,
) -> Renderer:
    """The renderer of an output's ``format``; ``dim``, ``model`` and ``fingerprint`` are written on every record.

    ``chunked``: whether the embeddings are of chunks.

    ``schema_id`` as in :class:`workers.codecs.avro_record.AvroRenderer`; without it records are good for their size alone.
    """
    match output.format:
        case "json":
            from workers.codecs.json import JsonRenderer  # noqa: PLC0415

            return JsonRenderer(
                output.topic, dim, output.precision, model, fingerprint, output.include, output.chunk_text
            )
        case "binary":
            from workers.codecs.binary import BinaryRenderer  # noqa: PLC0415

            return BinaryRenderer(output.topic, dim, output.precision, model, fingerprint)
        case "qdrant":
            from workers.codecs.qdrant import QdrantRenderer  # noqa: PLC0415

            assert output.collection is not None  # the settings have seen to that
            return QdrantRenderer(
                output.topic,
                output.collection,
                dim,
                output.precision,
                model,
                fingerprint,
                output.include,
                output.chunk_text,
            )
        case "avro":
            from workers.codecs.avro_record import AvroRenderer  # noqa: PLC0415

            return AvroRenderer(
                output.topic,
                dim,
                output.precision,
                model,
                fingerprint,
                output.include,
                schema_id,
                chunked,
                output.chunk_text,
            )


def whole_for(
    output: KafkaOutput,
    *,
    dim: int,
    model: str,
    fingerprint: str,
    schema_id: Callable[[Schema], int] = lambda _: 0,
) -> WholeRenderer | None:
    """What writes all chunks of a record as one; None: the output has a record for each. Arguments as above."""
    if not output.together:
        return None
    match output.format:
        case "json":
            from workers.codecs.together import JsonTogether  # noqa: PLC0415

            return JsonTogether(
                output.topic, dim, output.precision, model, fingerprint, output.include, output.chunk_text
            )
        case "binary":
            from workers.codecs.binary import BinaryRenderer  # noqa: PLC0415
            from workers.codecs.together import BinaryTogether  # noqa: PLC0415

            return BinaryTogether(BinaryRenderer(output.topic, dim, output.precision, model, fingerprint))
        case "avro":
            from workers.codecs.avro_record import AvroRenderer  # noqa: PLC0415
            from workers.codecs.avro_together import AvroTogether  # noqa: PLC0415

            one = AvroRenderer(
                *(output.topic, dim, output.precision, model, fingerprint, output.include),
                schema_id,
                chunked=True,
                chunk_text=output.chunk_text,
            )
            return AvroTogether(one)
        case "qdrant":
            raise AssertionError("the settings have seen to that")


def registering(settings: Settings, output: KafkaOutput) -> Callable[[Schema], int]:
    """What registers an output's schema when the first record needs its id, and remembers the id."""
    from workers.codecs.schemas import Registration  # noqa: PLC0415
    from workers.schema_registry import SchemaRegistry  # noqa: PLC0415

    return Registration(SchemaRegistry(settings.registry), output, settings.registry.subject_strategy)


def rows_for(
    output: ParquetOutput, *, dim: int, model: str, fingerprint: str, chunked: bool = False
) -> ParquetRenderer:
    """What writes an output's rows and files; ``dim``, ``model``, ``fingerprint`` and ``chunked`` as above."""
    from workers.codecs.parquet import ParquetRenderer  # noqa: PLC0415 - only who writes files pays for pyarrow

    return ParquetRenderer(
        dim,
        output.precision,
        model,
        fingerprint,
        output.columns,
        output.compression,
        chunked,
        output.chunk_text,
        output.together,
    )
