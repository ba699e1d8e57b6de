"""Where outcomes go: embeddings, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from workers.settings.base import Section, type_count

type_precision = Literal["float32", "float16", "int8", "int8_ranges", "uint8_ranges", "binary", "ubinary"]


class KafkaOutput(Section):
    """Embeddings as records of a Kafka topic."""

    kind: Literal["kafka"] = Field("kafka", description="Where the output goes.")
    topic: str = Field(min_length=1, description="The topic that embeddings are written to.")
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
    format: Literal["json", "binary"] = Field(
        "json",
        description="`json`: an object with the vector as a list. `binary`: the vector's bytes, the rest in headers.",
    )
    include: tuple[str, ...] = Field((), description="Source fields to repeat beside the vector (json only).")

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

    @model_validator(mode="after")
    def _include_fits(self) -> Self:
        reserved = {"id", "embedding", "dim", "precision", "scale", "model", "fingerprint", "tokens", "truncated"}
        if taken := reserved.intersection(self.include):
            raise ValueError(f"include names {', '.join(sorted(taken))}, which the output record uses itself")
        if self.include and self.format == "binary":
            raise ValueError("include needs format: json (a binary record has room for the vector alone)")
        return self

    @property
    def name(self) -> str:
        """What the output is called in positions, metrics and messages."""
        return f"kafka:{self.topic}"


class DeadLetterSettings(Section):
    """Where refused records go."""

    topic: str = Field("documents.dead", min_length=1, description="Topic for records that are refused, byte for byte.")
