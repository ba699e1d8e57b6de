"""The plain template: a field name, or fields in braces between literal text. Quick, and what most pipelines need.

Comes in: the setting, then mappings. Goes out: strings. Never here: a condition or a loop (:mod:`workers.codecs.jinja_template`),
or anything of the record's in a message.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from workers.codecs.values import id_part, lookup, missing, scalar, string, wrong_type

# What stands for a brace that is meant, in the sentences that need it.
_LITERAL = "a brace that is meant is written {{ '{' }}"


@dataclass(frozen=True, slots=True)
class Field:
    """A place for a field's value: ``name`` as written, its ``path`` into nested objects, what stands in for a missing one."""

    name: str
    path: tuple[str, ...]
    default: str | None = None


@dataclass(frozen=True, slots=True)
class BraceTemplate:
    """``parts``, one after another: literal text, and fields. See :class:`workers.codecs.template.Template`."""

    parts: tuple[str | Field, ...]

    @classmethod
    def name(cls, source: str) -> BraceTemplate:
        """A field's name alone: ``body``, ``doc.body``.

        Raises:
            ValueError: it is none.
        """
        if source != "".join(source.split()):
            raise ValueError(f"{source!r} is not a field name; in a template, fields stand in braces: {{title}}")
        return cls((_field(source, source),))

    @classmethod
    def parse(cls, source: str) -> BraceTemplate:
        """A text in which fields may stand.

        ``{name}`` is a field, ``{a.b}`` a nested one, ``{name|default}`` has a default for a missing or null field.

        Raises:
            ValueError: a brace is not closed, not opened, or holds no name; the sentence says which.
        """
        return cls(tuple(_parts(source)))

    @property
    def fields(self) -> tuple[str, ...]:
        """See :class:`workers.codecs.template.Template`."""
        return tuple(dict.fromkeys(part.name for part in self.parts if isinstance(part, Field)))

    @property
    def needed(self) -> tuple[tuple[str, ...], ...]:
        """See :class:`workers.codecs.template.Template`."""
        return tuple(part.path for part in self.parts if isinstance(part, Field) and part.default is None)

    @property
    def has_defaults(self) -> bool:
        """See :class:`workers.codecs.template.Template`."""
        return not self.needed

    def render(self, values: Mapping[str, object]) -> str:
        """See :class:`workers.codecs.template.Template`. One field alone takes strings only."""
        return self._fill(values, string if len(self.parts) == 1 else scalar, "missing_field")

    def render_id(self, values: Mapping[str, object]) -> str:
        """See :class:`workers.codecs.template.Template`."""
        return self._fill(values, id_part, "missing_id")

    def _fill(self, values: Mapping[str, object], write: Callable[[object], str | None], reason: str) -> str:
        filled = []
        for part in self.parts:
            if isinstance(part, str):
                filled.append(part)
                continue
            value = lookup(values, part.path)
            if value is None:
                if part.default is None:
                    raise missing(f"field {part.name}", reason)
                filled.append(part.default)
                continue
            written = write(value)
            if written is None:
                raise wrong_type(f"field {part.name}", value)
            filled.append(written)
        return "".join(filled)


def _parts(source: str) -> list[str | Field]:
    parts: list[str | Field] = []
    at = 0
    while at < len(source):
        end = source.find("{", at)
        literal = source[at:] if end < 0 else source[at:end]
        if "}" in literal:
            place = at + literal.index("}")
            raise ValueError(f"{source!r} has a closing brace at {place} that nothing opens; {_LITERAL}")
        if literal:
            parts.append(literal)
        if end < 0:
            break
        at, end = end, source.find("}", end)
        inside = source[at + 1 : end]
        if end < 0 or "{" in inside:
            raise ValueError(f"{source!r} has an opening brace at {at} that nothing closes; {_LITERAL}")
        name, bar, default = inside.partition("|")
        parts.append(_field(name.strip(), source, default if bar else None))
        at = end + 1
    return parts


def _field(name: str, source: str, default: str | None = None) -> Field:
    path = tuple(name.split("."))
    if not all(path):
        raise ValueError(f"{source!r} has a field without a name; write one, such as {{title}} or {{author.name}}")
    if name.isdecimal():
        raise ValueError(f"{source!r} counts fields ({name}), which have names here, such as {{title}}")
    return Field(name, path, default)
