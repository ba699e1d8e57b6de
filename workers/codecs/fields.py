"""A document, of a record's fields: what all formats with fields do alike.

Comes in: a record. Goes out: its document, or that it deletes one. Never here: bytes, or what a format calls its types.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from workers.codecs.base import id_of, refuse_blank, refuse_surrogates
from workers.codecs.plain import plain
from workers.codecs.template import Template
from workers.codecs.values import lookup
from workers.errors import PoisonError
from workers.records import Document, Record, Tombstone


class Values(Protocol):
    """Reads a record's value: strings, numbers, lists, mappings by name, and what else :mod:`workers.codecs.plain` names."""

    def read(self, record: Record) -> object:
        """The value.

        Raises:
            PoisonError: stage ``decode``.
            RetryableError: its schema cannot be had now.
        """


class Envelope(Protocol):
    """Takes a value out of what it is wrapped in."""

    def open(self, value: object) -> object:
        """What is in it; None: the record deletes.

        Raises:
            PoisonError: stage ``decode``: it is no such envelope, or one that holds no row.
        """


class FieldsDecoder:
    """Reads values that have fields."""

    def __init__(
        self,
        values: Values,
        text: Template,
        id_template: Template | None,
        include: Mapping[str, str | None],
        *,
        refuse_empty: bool,
        prompt: Template | None = None,
        envelope: Envelope | None = None,
    ) -> None:
        """``include``: fields that documents carry along, and where each comes from; a dotted name leads into nested objects.

        ``prompt``: what goes before each text, made of the record's fields; None: documents have no prompt of their own.
        """
        self._values = values
        self._text = text
        self._id = id_template
        self._include = {name: () if path is None else tuple(path.split(".")) for name, path in include.items()}
        self._refuse_empty = refuse_empty
        self._prompt = prompt
        self._envelope = envelope

    def decode(self, record: Record) -> Document | Tombstone:
        """See :class:`workers.codecs.base.Decoder`. An included field that is missing is null."""
        values = self._values.read(record)
        if self._envelope is not None:
            values = self._envelope.open(values)
            if values is None:
                if record.key is None:
                    raise PoisonError("decode", "tombstone_without_key", "a deletion without a key deletes nothing")
                return Tombstone()
        if not isinstance(values, Mapping):
            raise PoisonError("decode", "not_an_object", "the value can be read, and is not an object with fields")
        text = self._text.render(values)
        refuse_surrogates(text, "the text")
        if self._refuse_empty:
            refuse_blank(text)
        if self._id is None:
            name = id_of(record)
        else:
            name = self._id.render_id(values)
            refuse_surrogates(name, "the id")
        prompt = None if self._prompt is None else self._prompt.render(values)
        refuse_surrogates(prompt or "", "the prompt")
        fields = {name: plain(lookup(values, path)) if path else None for name, path in self._include.items()}
        return Document(name, text, fields, prompt)
