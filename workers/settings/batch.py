"""What a batch job reads, and in what portions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from workers.settings.base import Section, parse_bytes, type_count


class BatchSettings(Section):
    """The input of the command ``batch``, which ends when all of it is embedded."""

    inputs: tuple[str, ...] = Field(
        (),
        description="Of `batch`: the files to embed: a file, a folder with all that lies under it, or a pattern with `*` and "
        "`**`; on this machine, or as `s3://bucket/docs/**/*.parquet`, `gs://`, `az://`, `abfss://`, `file:///`.",
    )
    format: Literal["auto", "parquet", "jsonl", "csv", "text"] = Field(
        "auto",
        description="What the files are. `auto`: as they are called (`.parquet`; `.jsonl`, `.ndjson`; `.csv`, `.tsv`; `.txt`, "
        "`.text`; all but Parquet also with `.gz`). `csv` has a header line; a line of `text` is a text, its field `text`.",
    )
    rows: type_count = Field(
        20_000, description="Rows of a file that is written; what a crash costs is the files that were under way."
    )
    bytes: type_count = Field(
        64 << 20, description="Bytes of its rows as they were read (`64MiB`); whatever comes first."
    )

    @field_validator("inputs", mode="before")
    @classmethod
    def _one_input(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("bytes", mode="before")
    @classmethod
    def _units(cls, value: object) -> object:
        return parse_bytes(value)
