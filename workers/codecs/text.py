"""Values that are the text itself.

Comes in: a record whose value is UTF-8. Goes out: its document, without fields. Never here: a guess at another encoding.
"""

from __future__ import annotations

from workers.codecs.base import id_of, refuse_blank, utf8_value
from workers.codecs.template import Template
from workers.records import Document, Record


class TextDecoder:
    """Takes the whole value as the text, and the key as the id."""

    def __init__(self, *, refuse_empty: bool, prompt: Template | None = None) -> None:
        """``prompt``: what goes before each text; there are no fields, so its defaults stand in for them."""
        self._refuse_empty = refuse_empty
        self._prompt = prompt

    def decode(self, record: Record) -> Document:
        """See :class:`workers.codecs.base.Decoder`."""
        text = utf8_value(record)
        if self._refuse_empty:
            refuse_blank(text)
        return Document(id_of(record), text, prompt=None if self._prompt is None else self._prompt.render({}))
