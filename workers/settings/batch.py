"""What a batch job reads, and in what portions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from workers.settings.base import Section, as_text, parse_bytes, type_count, unix_ms

_OFFSET = re.compile(r"([A-Za-z0-9._-]{1,249}/\d{1,9})=(\d{1,18})")

# A moment (Unix, ms), or offsets by partition, ``topic/number``.
type_bound = int | Mapping[str, int]


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
    start: str = Field(
        "earliest",
        description="Without `inputs`, `batch` reads the topics of `source`: from `earliest`, from the first record since a "
        "timestamp (ISO 8601), or from offsets, `documents/0=100 documents/1=250`; then those partitions alone.",
    )
    end: str = Field(
        "latest",
        description="And up to: `latest`, what is committed when the job starts for the first time; the first record since a "
        "timestamp; or offsets, as above. The record there is not read.",
    )
    rows: type_count = Field(
        20_000,
        description="Rows of a file that is written, of a topic its offsets; what a crash costs is the files that were under way.",
    )
    bytes: type_count = Field(
        64 << 20, description="Bytes of its rows as they were read (`64MiB`); whatever comes first."
    )

    share: Annotated[float, Field(ge=0.01, le=1)] = Field(
        1.0,
        description="Share of the time in which a replica's encoder computes. Below 1 it rests after each forward pass, and "
        "all that the replica does gives way to whatever else wants its cores: for a job beside live traffic.",
    )

    price_per_hour: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None,
        description="What a replica costs in an hour, in any currency: the summary then says what the job has cost, "
        "and `plan` what it would.",
    )

    @field_validator("inputs", mode="before")
    @classmethod
    def _one_input(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("start", "end", mode="before")
    @classmethod
    def _moment(cls, value: object) -> object:
        return as_text(value)

    @field_validator("start")
    @classmethod
    def _start_is_known(cls, value: str) -> str:
        _bound(value, "earliest")
        return value

    @field_validator("end")
    @classmethod
    def _end_is_known(cls, value: str) -> str:
        _bound(value, "latest")
        return value

    @model_validator(mode="after")
    def _bounds_agree(self) -> Self:
        first, last = self.first, self.last
        if isinstance(first, Mapping) and isinstance(last, Mapping):
            if alone := sorted(first.keys() ^ last.keys()):
                raise ValueError(f"start and end name offsets, and only one of them names {alone[0]}: name it in both")
            if wrong := next((name for name in first if first[name] > last[name]), None):
                raise ValueError(f"start ({wrong}={first[wrong]}) lies after end ({wrong}={last[wrong]})")
        if isinstance(first, int) and isinstance(last, int) and first > last:
            raise ValueError("start is later than end")
        return self

    @property
    def first(self) -> type_bound | None:
        """``start``; None: from the first record that is there."""
        return _bound(self.start, "earliest")

    @property
    def last(self) -> type_bound | None:
        """``end``; None: up to what is committed."""
        return _bound(self.end, "latest")

    @field_validator("bytes", mode="before")
    @classmethod
    def _units(cls, value: object) -> object:
        return parse_bytes(value)


def _bound(text: str, word: str) -> type_bound | None:
    if text == word:
        return None
    found = [_OFFSET.fullmatch(part) for part in text.split()]
    if found and all(found):
        named = {each[1]: int(each[2]) for each in found if each is not None}
        if len(named) == len(found):
            return named
        raise ValueError("names a partition twice")
    try:
        return unix_ms(text)
    except ValueError:
        raise ValueError(
            f"write {word}, a timestamp such as 2026-05-01T00:00:00Z, or offsets such as documents/0=100 documents/1=250"
        ) from None
