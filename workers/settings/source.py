"""What is read, and which part of a record is the text."""

from __future__ import annotations

import datetime
import re
from typing import Literal

from pydantic import Field, field_validator

from workers.settings.base import Section


class SourceSettings(Section):
    """What is read from Kafka, and which part of a record is the text."""

    topics: tuple[str, ...] = Field((), description="Topics to read. Either this or `pattern`.")
    pattern: str | None = Field(None, description="A regular expression over topic names, instead of `topics`.")
    group: str = Field("stream-embedder", min_length=1, description="Kafka consumer group.")
    start: str = Field(
        "earliest",
        description="Where a partition without a committed offset starts: `earliest`, `latest`, or an ISO 8601 timestamp. "
        "After `latest`, partitions that are added later are read whole.",
    )
    format: Literal["json", "text"] = Field(
        "json", description="`json`: the value is a JSON object. `text`: the value is the text, in UTF-8."
    )
    text: str = Field(
        "{text}",
        description="What to embed: a field name, or a template over fields such as `{title}\\n{body}`; `{a.b}` reads a "
        "nested field, `{title|none}` has a default.",
    )
    id: str | None = Field(
        None,
        description="The document's id, a field name or template. Default: the record's key, else its offset's name.",
    )
    empty: Literal["reject", "embed"] = Field(
        "reject", description="A text with nothing but white space is a dead letter (`reject`) or embedded as it is."
    )
    static_membership: bool = Field(
        False,
        description="Join the group with a fixed `group.instance.id` per reader, so that a quick restart moves no partition.",
    )

    @field_validator("topics", mode="before")
    @classmethod
    def _one_topic(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from error
        return value

    @field_validator("start", mode="before")
    @classmethod
    def _start(cls, value: object) -> object:
        # YAML reads an unquoted timestamp as a datetime.
        return value.isoformat() if isinstance(value, datetime.date) else value

    @field_validator("start")
    @classmethod
    def _start_is_known(cls, value: str) -> str:
        if value not in ("earliest", "latest"):
            try:
                datetime.datetime.fromisoformat(value)
            except ValueError as error:
                raise ValueError("write earliest, latest, or a timestamp such as 2026-05-01T00:00:00Z") from error
        return value

    @property
    def start_timestamp_ms(self) -> int | None:
        """``start`` as Unix milliseconds (UTC when it names no zone), None for earliest and latest."""
        if self.start in ("earliest", "latest"):
            return None
        moment = datetime.datetime.fromisoformat(self.start)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.UTC)
        return int(moment.timestamp() * 1000)
