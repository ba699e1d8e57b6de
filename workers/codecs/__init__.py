"""Bytes ↔ meaning: decoders make documents of source records, renderers make output records of embeddings.

Comes in: the settings' choice of format. Goes out: the codec for it. Never here: Kafka, the model, or a retry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from workers.codecs.base import Decoder
from workers.codecs.fingerprint import fingerprint_of
from workers.codecs.renderers import registering, renderer_for, rows_for, whole_for
from workers.codecs.template import Template, parse_template, parse_text
from workers.errors import SettingsError
from workers.settings import ModelSettings, Settings

if TYPE_CHECKING:
    from workers.codecs.fields import Envelope, Values
    from workers.codecs.wire import Registry

__all__ = [
    "decoder_for",
    "envelope_of",
    "fields_decoder",
    "fingerprint_of",
    "id_template",
    "mapped_prompt",
    "prompt_template",
    "registering",
    "renderer_for",
    "rows_for",
    "text_template",
    "whole_for",
]


_NO_PROMPTS: Mapping[str, str] = MappingProxyType({})


def decoder_for(
    settings: Settings, registry: Registry | None = None, prompts: Mapping[str, str] = _NO_PROMPTS
) -> Decoder:
    """The decoder of ``source.format``, or where topics have mappings, of each; documents carry all that outputs include.

    ``registry``: who knows the schemas of values in Confluent's wire format; by default the one that the settings name.
    ``prompts``: the model's own by their names, for settings that choose among them.

    Raises:
        SettingsError: ``source.text``, ``source.id`` or a prompt is not a template, or names no field of a ``schema_file``;
            ``source.message`` is none of its messages; one line each.
        EnvironmentFault: a ``schema_file`` cannot be read, or is no schema.
    """
    source = settings.source
    if not source.mappings:
        return _decoder(settings, prompt_template(settings.model, prompts), registry)
    from workers.codecs.by_topic import TopicDecoder  # noqa: PLC0415 - only what is used
    from workers.schema_registry import SchemaRegistry  # noqa: PLC0415

    known = registry or SchemaRegistry(settings.registry)  # one for all: they may share schemas
    decoders: dict[int | None, Decoder] = {}
    mistakes: list[str] = []
    of_all: tuple[None, ...] = (None,)
    if source.topics and all(source.mapping_of(topic) is not None for topic in source.topics):
        of_all = ()  # nobody is read as the source says, which may then say nothing
    for number in (*of_all, *range(len(source.mappings))):
        own = settings.of(number)
        where = "" if number is None else f"source.mappings.{number}: "
        try:
            decoders[number] = _decoder(own, mapped_prompt(settings, number, prompts), known)
        except SettingsError as error:
            mistakes += [f"{where}{line}" for line in str(error).splitlines()]
    if mistakes:
        raise SettingsError("\n".join(mistakes))
    return TopicDecoder(source.mapping_of, decoders)


def _decoder(settings: Settings, prompt: Template | None, registry: Registry | None) -> Decoder:
    """The one decoder of settings without mappings."""
    source = settings.source
    refuse_empty = source.empty == "reject"
    if source.format == "text":
        from workers.codecs.text import TextDecoder  # noqa: PLC0415 - only what is used

        if prompt is not None and not prompt.has_defaults:
            name, setting = prompt.fields[0], "prompt" if settings.model.prompt_by_record else "prompt_text"
            jinja = "{{" in str(getattr(settings.model, setting))
            default = f"{{{{ {name} | default('none') }}}}" if jinja else f"{{{name}|none}}"
            raise SettingsError(
                f"model.{setting} has the field {name}, and source.format text has no fields: give it a default "
                f"({default}), or read json"
            )
        return TextDecoder(refuse_empty=refuse_empty, prompt=prompt)
    return fields_decoder(settings, _values(settings, registry), prompt)


def fields_decoder(settings: Settings, values: Values, prompt: Template | None) -> Decoder:
    """The decoder of what has fields, however ``values`` reads them; its documents carry every field that an output includes.

    Raises:
        SettingsError: ``source.text`` or ``source.id`` is not a template.
    """
    from workers.codecs.fields import FieldsDecoder  # noqa: PLC0415

    source = settings.source
    return FieldsDecoder(
        values,
        text_template(settings),
        id_template(settings),
        {name: source.include.get(name, name) for output in settings.outputs for name in output.include},
        refuse_empty=source.empty == "reject",
        prompt=prompt,
        envelope=envelope_of(source.envelope),
    )


def _values(settings: Settings, registry: Registry | None) -> Values:
    if not settings.source.has_schema:
        from workers.codecs.json import JsonValues  # noqa: PLC0415

        return JsonValues()
    from workers.codecs.schemas import values_of  # noqa: PLC0415

    return values_of(settings, registry)


def envelope_of(name: str) -> Envelope | None:
    """What takes values out of ``source.envelope``; None: they are in none."""
    if name == "none":
        return None
    from workers.codecs.envelope import ConnectEnvelope, DebeziumEnvelope  # noqa: PLC0415

    return ConnectEnvelope() if name == "connect" else DebeziumEnvelope()


def prompt_template(model: ModelSettings, prompts: Mapping[str, str] = _NO_PROMPTS) -> Template | None:
    """What makes each text's prompt of its record's fields, by ``model.prompt_text`` or ``model.prompt``; None: all have one.

    ``prompts``: those of the model, by their names.

    Raises:
        SettingsError: a brace in it is not closed, not opened, or holds no name.
    """
    if model.prompt is not None and model.prompt_by_record:
        return _named_prompt(model.prompt, prompts, parse_template)
    if model.prompt_text is None:
        return None
    template = _template("model.prompt_text", model.prompt_text, parse_text)
    return template if template.fields else None


def mapped_prompt(settings: Settings, mapping: int | None, prompts: Mapping[str, str]) -> Template | None:
    """What makes the prompts of a mapping's topics, by its number, also one without fields; None: the prompt of all does.

    Arguments and errors as :func:`prompt_template`.
    """
    own = settings.of(mapping).model
    if (template := prompt_template(own, prompts)) is not None or mapping is None:
        return template
    # The tokenizer knows the prompt of the others alone.
    chosen = settings.source.mappings[mapping]
    if chosen.prompt_text is not None:
        return _template("model.prompt_text", chosen.prompt_text, parse_text)
    return None if chosen.prompt is None else _named_prompt(chosen.prompt, prompts, parse_text)


def _named_prompt(name: str, prompts: Mapping[str, str], parse: Callable[[str], Template]) -> Template:
    from workers.codecs.named_prompt import NamedPrompt  # noqa: PLC0415 - only what is used

    return NamedPrompt(_template("model.prompt", name, parse), prompts)


def text_template(settings: Settings) -> Template:
    """What ``source.text`` makes of a record's fields.

    Raises:
        SettingsError: it is not a template.
    """
    return _template("source.text", settings.source.text)


def id_template(settings: Settings) -> Template | None:
    """What ``source.id`` makes of a record's fields; None where it is not set.

    Raises:
        SettingsError: it is not a template.
    """
    return None if settings.source.id is None else _template("source.id", settings.source.id)


def _template(setting: str, source: str, parse: Callable[[str], Template] = parse_template) -> Template:
    try:
        return parse(source)
    except ValueError as error:
        raise SettingsError(f"{setting}: {error}") from None
