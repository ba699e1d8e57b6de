"""How a text, a prompt or an id is made of a document's fields: the two kinds of template, and which one a setting is.

Comes in: the setting. Goes out: a template, compiled. Never here: a record.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from workers.codecs.brace_template import BraceTemplate

# What no plain template has: Jinja's expressions, statements and comments.
_JINJA = ("{{", "{%", "{#")


class Template(Protocol):
    """Makes strings of a record's fields."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the fields that it looks at, in their order, each once."""

    @property
    def needed(self) -> tuple[tuple[str, ...], ...]:
        """The paths of those among them that nothing stands in for, in their order."""

    @property
    def has_defaults(self) -> bool:
        """Whether it makes something of no fields at all."""

    def render(self, values: Mapping[str, object]) -> str:
        """Make a text: strings as they are, numbers and booleans as JSON has them; bytes are no text.

        Raises:
            PoisonError: a field is missing or null and has no default (``missing_field``), is no such value (``wrong_type``), or
                the template fails at it (``template_failed``, ``too_much``).
        """

    def render_id(self, values: Mapping[str, object]) -> str:
        """Make an id, of strings, whole numbers, and what else has one way to be written, as a float has not.

        Raises:
            PoisonError: as :meth:`render`, with ``missing_id``.
        """


def parse_template(source: str) -> Template:
    """Read a field's name (``body``, ``doc.body``), a plain template (``{title}: {body|none}``) or one of Jinja's.

    Raises:
        ValueError: it is none of them, or names no field; the sentence says where it goes wrong.
    """
    if not any(character in source for character in "{}"):
        return BraceTemplate.name(source)
    template = parse_text(source)
    if not template.fields:
        raise ValueError(f"{source!r} names no field, so every document would give the same")
    return template


def parse_text(source: str) -> Template:
    """Read a text in which fields may stand, as in a template; without any it is the same for every document.

    Raises:
        ValueError: as :func:`parse_template`.
    """
    if not any(mark in source for mark in _JINJA):
        return BraceTemplate.parse(source)
    from workers.codecs.jinja_template import JinjaTemplate  # noqa: PLC0415 - only who writes one pays for it

    return JinjaTemplate.parse(source)
