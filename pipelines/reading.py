"""How a command makes texts of JSON lines: as the stream makes them of the values of one of its topics.

Comes in: settings, the model's prompts, and which topic lines are of. Goes out: a decoder for each line. Never here: Kafka; a line
is a topic's value in JSON, whatever format the topic has it in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import NamedTuple

from pipelines.of_topic import UNSAID, OfTopic
from workers.codecs import envelope_of, mapped_prompt, text_template
from workers.codecs.base import Decoder
from workers.codecs.brace_template import BraceTemplate
from workers.codecs.fields import Envelope, FieldsDecoder
from workers.codecs.json import JsonValues
from workers.codecs.template import Template, parse_template
from workers.codecs.text import TextDecoder
from workers.codecs.values import lookup
from workers.errors import PoisonError, SettingsError
from workers.records import Record
from workers.settings import Settings

_ANY = parse_template("{id|none}.")  # a text that every line has


class _Way(NamedTuple):
    """How the values of some topics are read."""

    text: Template
    prompt: Template | None
    envelope: Envelope | None
    refuse_empty: bool


class Reading:
    """Gives the decoder of each line, and of words."""

    def __init__(self, settings: Settings, prompts: Mapping[str, str], of: OfTopic = UNSAID) -> None:
        """``prompts``: the model's own, by their names.

        Raises:
            SettingsError: ``of`` names a topic that is not read, or says it twice; a template is none.
        """
        if of.topic is not None and of.field is not None:
            raise SettingsError(
                "--topic says which topic all lines are of, and --topic-field that each says so: give one"
            )
        self._settings = settings
        self._prompts = prompts
        self._of = of
        self._field = None if of.field is None else tuple(of.field.split("."))
        self._values = JsonValues()
        self._way = cache(self._made)  # of this object, and gone with it
        if of.topic is not None and not self._is_read(of.topic):
            raise SettingsError(
                f"--topic {of.topic} is none that the source reads: see source.topics and source.pattern"
            )
        self._fixed = None if of.topic is None else settings.source.mapping_of(of.topic)
        for number in self._numbers():
            self._way(number)

    def require_topic(self) -> None:
        """See that lines, which may come, can be read.

        Raises:
            SettingsError: every topic has a mapping of its own, and nothing says which one lines are of.
        """
        source = self._settings.source
        mapped = bool(source.topics) and all(source.mapping_of(topic) is not None for topic in source.topics)
        if mapped and self._of == UNSAID:
            raise SettingsError(
                "every topic of the source has a mapping of its own: say which one's values the lines are, --topic TOPIC, or "
                "--topic-field FIELD where each line names its own"
            )

    @property
    def fields(self) -> frozenset[str]:
        """The top-level names of what lines are looked at for."""
        templates = [each for way in map(self._way, self._numbers()) for each in (way.text, way.prompt)]
        names = {name.split(".")[0] for each in templates if each is not None for name in each.fields}
        return frozenset(names if self._field is None else {*names, self._field[0]})

    @property
    def text_fields(self) -> tuple[str, ...]:
        """The fields that ``source.text`` names, in their order."""
        return tuple(dict.fromkeys(name for number in self._numbers() for name in self._way(number).text.fields))

    def of_words(self) -> Decoder:
        """What reads a word: it is the text, and has no fields."""
        way = self._way(self._fixed)
        return TextDecoder(refuse_empty=way.refuse_empty, prompt=way.prompt)

    def of_line(self, line: Record, number: int) -> Decoder:
        """What reads a line; its id is the line's own, else its ``number``.

        Raises:
            PoisonError: the line is not JSON, or names no topic that is read.
        """
        way = self._way(self._fixed if self._field is None else self._named(line, self._field))
        return FieldsDecoder(
            self._values,
            way.text,
            parse_template(f"{{id|{number}}}"),
            {},
            refuse_empty=way.refuse_empty,
            prompt=way.prompt,
            envelope=way.envelope,
        )

    def of_id(self, number: int) -> Decoder:
        """What reads the id alone of a line that is refused otherwise."""
        way = self._way(next(self._numbers()))
        name = parse_template(f"{{id|{number}}}")
        return FieldsDecoder(self._values, _ANY, name, {}, refuse_empty=False, envelope=way.envelope)

    def _numbers(self) -> Iterator[int | None]:
        """The mappings that lines may have."""
        if self._field is None:
            yield self._fixed
            return
        source = self._settings.source
        if not source.topics or any(source.mapping_of(topic) is None for topic in source.topics):
            yield None
        yield from range(len(source.mappings))

    def _made(self, number: int | None) -> _Way:
        own = self._settings.of(number)
        envelope = envelope_of(own.source.envelope)
        prompt = mapped_prompt(self._settings, number, self._prompts)
        if prompt is not None and own.source.format == "text" and prompt.has_defaults:
            prompt = BraceTemplate((prompt.render({}),))  # values of such a topic have no fields
        return _Way(
            text_template(own),
            prompt,
            None if envelope is None else _Perhaps(envelope),
            own.source.empty == "reject",
        )

    def _is_read(self, topic: str) -> bool:
        source = self._settings.source
        return source.reads(topic) or not (source.topics or source.pattern)

    def _named(self, line: Record, field: tuple[str, ...]) -> int | None:
        values = self._values.read(line)
        topic = lookup(values, field) if isinstance(values, Mapping) else None
        if not isinstance(topic, str):
            raise PoisonError("text", "missing_field", f"field {'.'.join(field)}, which names the topic, is no text")
        if not self._is_read(topic):
            raise PoisonError(
                "text", "unknown_topic", f"field {'.'.join(field)} names a topic that the source does not read"
            )
        return self._settings.source.mapping_of(topic)


class _Perhaps:
    """Opens an envelope where there is one: of a row that somebody wrote down, there is none."""

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope

    def open(self, value: object) -> object:
        """See :class:`workers.codecs.fields.Envelope`."""
        try:
            return self._envelope.open(value)
        except PoisonError as error:
            if error.reason != "not_an_envelope":
                raise
            return value
