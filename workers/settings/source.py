"""What is read, and which part of a record is the text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from workers.settings.base import Section, as_text, unix_ms

type_format = Literal["json", "text", "avro", "protobuf", "json_schema"]
type_envelope = Literal["none", "connect", "debezium"]


def _compiled(value: str | None) -> str | None:
    if value is not None:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
    return value


class TopicMapping(Section):
    """What some topics have of their own; what it leaves out is as ``source`` and ``model`` say."""

    topics: tuple[str, ...] = Field((), description="The topics that this is for. Either this or `pattern`.")
    pattern: str | None = Field(None, description="A regular expression over topic names, instead of `topics`.")
    format: type_format | None = Field(
        None,
        description="Their `source.format`. One that is another's brings its own `schema_file`, `message` and `envelope`, and "
        "`text` no `text` and `id` either.",
    )
    schema_file: Path | None = Field(None, description="Their `source.schema_file`.")
    message: str | None = Field(None, description="Their `source.message`.")
    envelope: type_envelope | None = Field(None, description="Their `source.envelope`.")
    text: str | None = Field(None, description="Their `source.text`.")
    id: str | None = Field(None, description="Their `source.id`.")
    prompt: str | None = Field(None, description="Their prompt by its name, as `model.prompt`.")
    prompt_text: str | None = Field(None, description="Their prompt, as `model.prompt_text`.")
    include: dict[str, str | None] = Field({}, description="Their `source.include`, name by name.")
    empty: Literal["reject", "embed"] | None = Field(None, description="Their `source.empty`.")

    @field_validator("topics", mode="before")
    @classmethod
    def _one_topic(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        return _compiled(value)

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if self.prompt is not None and self.prompt_text is not None:
            raise ValueError("give prompt (a name from the model's table) or prompt_text (the text itself), not both")
        return self

    @property
    def own_prompt(self) -> bool:
        """Whether they have another prompt than the other topics."""
        return self.prompt is not None or self.prompt_text is not None

    def fits(self, topic: str) -> bool:
        """Whether a topic is one of these."""
        return topic in self.topics or (self.pattern is not None and re.fullmatch(self.pattern, topic) is not None)


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
    format: type_format = Field(
        "json",
        description="`json`: the value is a JSON object. `text`: the value is the text, in UTF-8. `avro`, `protobuf`, "
        "`json_schema`: in Confluent's wire format, by the schemas of `registry`; or plain, by `schema_file`.",
    )
    schema_file: Path | None = Field(
        None,
        description="Instead of a registry: the schema of every value (`.avsc`, `.proto` or a descriptor set, JSON Schema). "
        "Every reader's machine needs it at this path.",
    )
    message: str | None = Field(
        None, description="With a `schema_file` of Protobuf that has several messages: the full name of the values'."
    )
    envelope: type_envelope = Field(
        "none",
        description="What a value is wrapped in. `connect`: the JSON of Kafka Connect, `{schema, payload}`. `debezium`: change "
        "events, whole (`op`, `after`) or flattened (`__deleted`), in `{schema, payload}` or not; a deleted row is a tombstone.",
    )
    text: str = Field(
        "{text}",
        description="What to embed: a field name, or a template over fields such as `{title}\\n{body}`; `{a.b}` reads a "
        "nested field, `{title|none}` has a default. With `{{ … }}` and `{% … %}` it is Jinja's.",
    )
    id: str | None = Field(
        None,
        description="The document's id, a field name or template. Default: the record's key, else its offset's name.",
    )
    include: dict[str, str | None] = Field(
        {},
        description="Where a field that outputs include comes from, if not from one of its name: `{title: doc.headline}`; `null`: "
        "from nowhere, it is null.",
    )
    empty: Literal["reject", "embed"] = Field(
        "reject", description="A text with nothing but white space is a dead letter (`reject`) or embedded as it is."
    )
    static_membership: bool = Field(
        False,
        description="Join the group with a fixed `group.instance.id` per reader, so that a quick restart moves no partition.",
    )
    mappings: tuple[TopicMapping, ...] = ()

    @field_validator("topics", mode="before")
    @classmethod
    def _one_topic(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        return _compiled(value)

    @field_validator("start", mode="before")
    @classmethod
    def _start(cls, value: object) -> object:
        return as_text(value)

    @field_validator("start")
    @classmethod
    def _start_is_known(cls, value: str) -> str:
        if value not in ("earliest", "latest"):
            try:
                unix_ms(value)
            except ValueError as error:
                raise ValueError("write earliest, latest, or a timestamp such as 2026-05-01T00:00:00Z") from error
        return value

    @model_validator(mode="after")
    def _format_is_whole(self) -> Self:
        if self.schema_file is not None and not self.has_schema:
            raise ValueError(
                f"schema_file is for format avro, protobuf and json_schema, not {self.format}; leave it out"
            )
        if self.message is not None and (self.format != "protobuf" or self.schema_file is None):
            raise ValueError(
                "message needs format: protobuf and schema_file; with a registry each record names its own"
            )
        if self.envelope != "none" and self.format == "text":
            raise ValueError(f"envelope {self.envelope} needs fields, which format: text does not have")
        return self

    @model_validator(mode="after")
    def _mappings_fit(self) -> Self:
        named: set[str] = set()
        for number, mapping in enumerate(self.mappings):
            where = f"mappings.{number}"
            if bool(mapping.topics) == bool(mapping.pattern):
                raise ValueError(f"{where} is for no topics: it needs topics or pattern, and one of them only")
            for topic in mapping.topics:
                if topic in named:
                    raise ValueError(f"{where} is for topic {topic}, which another mapping is for already")
                if (self.topics or self.pattern) and not self.reads(topic):
                    what = f"topics do not name {topic}" if self.topics else f"pattern does not match {topic}"
                    raise ValueError(f"{where} is for topic {topic}, which is not read: the source's {what}")
                named.add(topic)
            if self.topics and not any(map(mapping.fits, self.topics)):
                raise ValueError(
                    f"{where} is for topics like {mapping.pattern}, and none of those that are read is one"
                )
            try:
                self.mapped(mapping)
            except ValidationError as error:
                found = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
                raise ValueError(f"{where}: {found}") from None
        return self

    def reads(self, topic: str) -> bool:
        """Whether a topic is one of the source's."""
        return topic in self.topics or (self.pattern is not None and re.fullmatch(self.pattern, topic) is not None)

    def mapping_of(self, topic: str) -> int | None:
        """Which mapping a topic has: the first that fits, by its number; None: none, it is read as the source says."""
        return next((number for number, mapping in enumerate(self.mappings) if mapping.fits(topic)), None)

    def mapped(self, mapping: TopicMapping) -> SourceSettings:
        """The source as a mapping has it, for those topics alone.

        Raises:
            ValidationError: what it says contradicts itself.
        """
        # Validated anew, and for that as it was written: what is not set is not taken for a choice.
        own = {name: getattr(mapping, name) for name in mapping.model_fields_set}
        given = {name: getattr(self, name) for name in self.model_fields_set - {"mappings"}}
        if own.get("format", self.format) != self.format:
            dropped = ("schema_file", "message", "envelope", *(("text", "id") if own["format"] == "text" else ()))
            given = {name: value for name, value in given.items() if name not in dropped}
        for name in ("format", "schema_file", "message", "envelope", "text", "id", "empty"):
            if own.get(name) is not None:
                given[name] = own[name]
        return SourceSettings(**{**given, "include": {**self.include, **mapping.include}})

    @property
    def has_schema(self) -> bool:
        """Whether values are in a format that needs a schema."""
        return self.format in ("avro", "protobuf", "json_schema")

    @property
    def start_timestamp_ms(self) -> int | None:
        """``start`` as Unix milliseconds (UTC when it names no zone), None for earliest and latest."""
        return None if self.start in ("earliest", "latest") else unix_ms(self.start)
