"""Where outcomes go: embeddings, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from workers.object_store import Location
from workers.settings.base import Section, parse_bytes, type_count, type_seconds

type_precision = Literal["float32", "float16", "int8", "int8_ranges", "uint8_ranges", "binary", "ubinary"]

# What an output writes of its own beside the included fields.
JSON_FIELDS = frozenset({"id", "embedding", "dim", "precision", "scale", "model", "fingerprint", "tokens", "truncated"})
PARQUET_FIELDS = frozenset(
    {
        *("id", "embedding", "scale", "tokens", "truncated", "deleted", "fingerprint"),
        *("topic", "partition", "offset", "timestamp", "key"),
    }
)
# And what it writes of a chunk, in pipelines that cut texts into those.
CHUNK_JSON_FIELDS = frozenset({"chunk", "chunk_text"})
CHUNK_PARQUET_FIELDS = frozenset({"chunk_index", "chunk_count", "chunk_start", "chunk_end", "chunk_text"})
WHOLE_FIELDS = frozenset({"chunks"})  # where all chunks of a text are in one record or row


def avro_name(field: str) -> str:
    """What an included field is called in Avro, whose names are letters, digits and underscores."""
    name = re.sub(r"[^A-Za-z0-9_]", "_", field)
    return f"_{name}" if name[:1].isdigit() else name


# What a column of Parquet may hold. A list holds any but another list.
SCALAR_TYPES = ("string", "boolean", "int32", "int64", "float32", "float64", "date", "timestamp")
_DECIMAL = re.compile(r"decimal\((\d{1,2}), ?(\d{1,2})\)")
_LIST = re.compile(r"list<(.+)>")


class ColumnType(NamedTuple):
    """A column's declared type; ``digits`` of a decimal are all of them, and those behind the point."""

    name: str
    digits: tuple[int, int] | None = None
    item: ColumnType | None = None

    @classmethod
    def parse(cls, text: str) -> ColumnType:
        """Read ``int64``, ``decimal(12, 2)``, ``list<string>`` and so on.

        Raises:
            ValueError: it is none of them.
        """
        if text in SCALAR_TYPES:
            return cls(text)
        if found := _DECIMAL.fullmatch(text):
            digits = int(found[1]), int(found[2])
            if not digits[1] <= digits[0] <= 38 or digits[0] == 0:
                raise ValueError(f"{text} is no decimal: it has 1 to 38 digits in all, and no more behind the point")
            return cls("decimal", digits)
        if (found := _LIST.fullmatch(text)) and not found[1].startswith("list"):
            return cls("list", item=cls.parse(found[1]))
        raise ValueError(
            f"{text} is no type: there are {', '.join(SCALAR_TYPES)}, decimal(12, 2), and list<…> of these"
        )


class Vectors(Section):
    """What every output says of its vectors."""

    kind: Literal["kafka", "parquet"] = Field(
        "kafka", description="Where the output goes: `kafka`, to a topic; `parquet`, to files."
    )
    dim: type_count | None = Field(
        None, description="Dimensions: the vector is cut to these, then normalised (MRL). Default: the model's own."
    )
    precision: type_precision = Field(
        "float32",
        description="How the vector's components are written. `int8`: with one scale per vector; `int8_ranges`, "
        "`uint8_ranges`: by `ranges`, as sentence-transformers does; `binary`, `ubinary`: a bit each, as it packs them.",
    )
    ranges: Path | None = Field(
        None,
        description="For `int8_ranges` and `uint8_ranges`: the file that `stream-embedder calibrate` writes, or an `.npy` of "
        "shape [2, dim]. Every reader's machine needs it at this path.",
    )
    include: tuple[str, ...] = Field(
        (), description="Source fields to repeat beside the vector (not with Kafka's format: binary)."
    )
    chunk_text: bool = Field(
        False,
        description="With `model.overflow: chunk`: write each chunk's text beside its vector, as `chunk_text` (not with Kafka's "
        "format: binary).",
    )

    chunks: Literal["each", "together"] = Field(
        "each",
        description="With `model.overflow: chunk`: a record or row for each chunk, or all of a document's `together` in one, under "
        "its own key (not with format: qdrant).",
    )

    @property
    def together(self) -> bool:
        """Whether all chunks of a document are in one record."""
        return self.chunks == "together"

    @field_validator("include", mode="before")
    @classmethod
    def _one_field(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _precision_fits(self) -> Self:
        if self.precision in ("int8_ranges", "uint8_ranges"):
            if self.ranges is None:
                raise ValueError(
                    f"precision {self.precision} needs ranges, a file that stream-embedder calibrate writes; "
                    "precision int8 needs none"
                )
        elif self.ranges is not None:
            raise ValueError(
                f"ranges is for precision int8_ranges and uint8_ranges, not {self.precision}; leave it out"
            )
        if self.precision in ("binary", "ubinary") and self.dim is not None and self.dim % 8:
            raise ValueError(
                f"dim ({self.dim}) is not a multiple of 8, and precision {self.precision} packs 8 dimensions into a byte"
            )
        return self

    @property
    def _chunk_fields(self) -> frozenset[str]:
        return WHOLE_FIELDS if self.together else CHUNK_JSON_FIELDS

    def require_free_for_chunks(self) -> None:
        """Refuse included fields that are called as what is written of a chunk.

        Raises:
            ValueError: there is one.
        """
        self._require_free(self._chunk_fields)

    def _require_free(self, reserved: frozenset[str]) -> None:
        """Refuse included fields that the output writes under the same names itself."""
        if taken := reserved.intersection(self.include):
            raise ValueError(f"include names {', '.join(sorted(taken))}, which the output record uses itself")


class KafkaOutput(Vectors):
    """Embeddings as records of a Kafka topic."""

    kind: Literal["kafka"] = Field("kafka", description=Vectors.model_fields["kind"].description)
    topic: str = Field(min_length=1, description="Of `kafka`: the topic that embeddings are written to.")
    format: Literal["json", "binary", "avro", "qdrant"] = Field(
        "json",
        description="`json`: an object with the vector as a list. `binary`: the vector's bytes, the rest in headers. `avro`: as "
        "JSON, in Confluent's wire format; its schema goes into `registry`. `qdrant`: a point, as Qdrant's sink for Kafka "
        "Connect takes it.",
    )
    collection: str | None = Field(None, min_length=1, description="Of `qdrant`: the collection that points belong to.")

    @model_validator(mode="after")
    def _include_fits(self) -> Self:
        self._require_free(JSON_FIELDS)
        if self.include and self.format == "binary":
            raise ValueError("include needs format: json or avro (a binary record has room for the vector alone)")
        if self.chunk_text and self.format == "binary":
            raise ValueError("chunk_text needs format: json or avro (a binary record has room for the vector alone)")
        self._avro_names_fit(JSON_FIELDS)
        if (self.format == "qdrant") != (self.collection is not None):
            raise ValueError("collection and format: qdrant go together: a point says which collection it belongs to")
        if self.format == "qdrant" and self.together:
            raise ValueError(
                "chunks: together makes a record of many vectors, and a point of Qdrant's has one; leave it out"
            )
        if self.format == "qdrant" and self.precision not in ("float32", "float16"):
            raise ValueError(
                f"precision {self.precision} is nothing that Qdrant takes: it quantises by itself, from float32"
            )
        return self

    def require_free_for_chunks(self) -> None:
        """As there."""
        super().require_free_for_chunks()
        self._avro_names_fit(JSON_FIELDS | self._chunk_fields)

    def _avro_names_fit(self, reserved: frozenset[str]) -> None:
        if self.format != "avro":
            return
        names = [avro_name(name) for name in self.include]
        for name, written in zip(self.include, names, strict=True):
            if names.count(written) > 1 or written in reserved:
                raise ValueError(f"include {name} would be called {written} in Avro, and another field is already")

    @property
    def name(self) -> str:
        """What the output is called in positions, metrics and messages."""
        return f"kafka:{self.topic}"


class Rotation(Section):
    """When a file of a partition is full; whatever comes first."""

    bytes: type_count = Field(128 << 20, description="Bytes of its rows in memory (`128MiB`), before compression.")
    rows: type_count = Field(100_000, description="Its rows.")
    seconds: type_seconds = Field(300.0, description="Seconds since its first row: how old a row may get unseen.")

    @field_validator("bytes", mode="before")
    @classmethod
    def _units(cls, value: object) -> object:
        return parse_bytes(value)


class ParquetOutput(Vectors):
    """Embeddings as Parquet files below a URI."""

    kind: Literal["parquet"] = Field("parquet", description=Vectors.model_fields["kind"].description)
    uri: str = Field(
        min_length=1,
        description="Of `parquet`: where the files go: `s3://bucket/prefix`, `gs://…`, `az://…`, `abfss://…`, or a folder as "
        "`file:///folder`.",
    )
    rotate: Rotation = Rotation()
    types: dict[str, str] = Field(
        {},
        description="Of included fields: the types of their columns, `{price: float64}`: `string` (which the others are: what is "
        "none in JSON), `boolean`, `int32`, `int64`, `float32`, `float64`, `date`, `timestamp`, `decimal(12, 2)`, `list<…>` of "
        "these. A value that is not of its type is a dead letter.",
    )
    compression: Literal["zstd", "snappy", "lz4", "none"] = Field(
        "zstd", description="Compression of the files' columns."
    )

    @field_validator("uri")
    @classmethod
    def _a_location(cls, value: str) -> str:
        return str(Location.parse(value))

    @model_validator(mode="after")
    def _include_fits(self) -> Self:
        self._require_free(PARQUET_FIELDS)
        for name, text in self.types.items():
            if name not in self.include:
                raise ValueError(f"types names {name}, which include does not")
            try:
                ColumnType.parse(text)
            except ValueError as error:
                raise ValueError(f"types.{name}: {error}") from None
        return self

    @property
    def _chunk_fields(self) -> frozenset[str]:
        return WHOLE_FIELDS if self.together else CHUNK_PARQUET_FIELDS

    @property
    def columns(self) -> dict[str, ColumnType]:
        """The included fields and the types of their columns."""
        return {name: ColumnType.parse(self.types.get(name, "string")) for name in self.include}

    @property
    def name(self) -> str:
        """What the output is called in positions, metrics and messages."""
        return f"parquet:{self.uri}"


def _kind(given: object) -> str:
    """Which output is meant: the one that says nothing is Kafka's."""
    kind = given.get("kind", "kafka") if isinstance(given, dict) else getattr(given, "kind", "kafka")
    return kind if isinstance(kind, str) else ""


Output = Annotated[
    Annotated[KafkaOutput, Tag("kafka")] | Annotated[ParquetOutput, Tag("parquet")], Discriminator(_kind)
]


class DeadLetterSettings(Section):
    """Where refused records go."""

    topic: str = Field("documents.dead", min_length=1, description="Topic for records that are refused, byte for byte.")
    uri: str | None = Field(
        None,
        description="Of `batch`: where its refused rows go, a prefix as an output's `uri`. Default: the first output's, with "
        "`-dead-letters` at its end.",
    )

    @field_validator("uri")
    @classmethod
    def _a_location(cls, value: str | None) -> str | None:
        return None if value is None else str(Location.parse(value))
