"""Bytes ↔ meaning: decoders make documents of source records, renderers make output records of embeddings.

Comes in: the settings' choice of format. Goes out: the codec for it. Never here: Kafka, the model, or a retry.
"""

from __future__ import annotations

from workers.codecs.base import Decoder, Renderer
from workers.codecs.fingerprint import fingerprint_of
from workers.codecs.template import Template
from workers.errors import SettingsError
from workers.settings import KafkaOutput, Settings

__all__ = ["decoder_for", "fingerprint_of", "renderer_for", "text_template"]


def decoder_for(settings: Settings) -> Decoder:
    """The decoder of ``source.format``; its documents carry every field that an output includes.

    Raises:
        SettingsError: ``source.text`` or ``source.id`` is not a template.
    """
    source = settings.source
    refuse_empty = source.empty == "reject"
    match source.format:
        case "json":
            from workers.codecs.json import JsonDecoder  # noqa: PLC0415 - only what is used

            text = text_template(settings)
            id_template = None if source.id is None else _template("source.id", source.id)
            include = tuple(dict.fromkeys(name for output in settings.outputs for name in output.include))
            return JsonDecoder(text, id_template, include, refuse_empty=refuse_empty)
        case "text":
            from workers.codecs.text import TextDecoder  # noqa: PLC0415

            return TextDecoder(refuse_empty=refuse_empty)


def renderer_for(output: KafkaOutput, *, dim: int, model: str, fingerprint: str) -> Renderer:
    """The renderer of an output's ``format``; ``dim``, ``model`` and ``fingerprint`` are written on every record."""
    match output.format:
        case "json":
            from workers.codecs.json import JsonRenderer  # noqa: PLC0415

            return JsonRenderer(output.topic, dim, output.precision, model, fingerprint, output.include)
        case "binary":
            from workers.codecs.binary import BinaryRenderer  # noqa: PLC0415

            return BinaryRenderer(output.topic, dim, output.precision, model, fingerprint)


def text_template(settings: Settings) -> Template:
    """What ``source.text`` makes of a record's fields.

    Raises:
        SettingsError: it is not a template.
    """
    return _template("source.text", settings.source.text)


def _template(setting: str, source: str) -> Template:
    try:
        return Template.parse(source)
    except ValueError as error:
        raise SettingsError(f"{setting}: {error}") from None
