"""The filters and tests of templates. Each says what it is about to cost, and refuses a value that it has no text or list of.

Comes in: a context that counts, values. Goes out: values. Never here: a filter that calls one by its name, reads a pattern, or
makes much of little.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Undefined, pass_context
from jinja2.filters import do_sort, do_truncate, do_unique

from workers.codecs.json import as_json
from workers.codecs.plain import plain
from workers.codecs.values import kind_of, scalar
from workers.errors import PoisonError

__all__ = ["FILTERS", "TESTS", "pass_context"]


def _is_missing(value: object) -> bool:
    return value is None or isinstance(value, Undefined)


def _refused(value: object, wanted: str) -> PoisonError:
    what = "missing or null" if _is_missing(value) else kind_of(value)
    return PoisonError("text", "wrong_type", f"a filter of the template takes {wanted}, and the value is {what}")


def _text(context: Any, value: object) -> str:
    text = None if _is_missing(value) else scalar(value)
    if text is None:
        raise _refused(value, "texts and numbers")
    context.spend(characters=len(text))
    return text


def _items(context: Any, value: object) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise _refused(value, "lists")
    context.spend(items=len(value))
    return list(value)


def _of_text(function: Callable[..., str]) -> Callable[..., str]:
    """A filter that takes a text."""

    @functools.wraps(function)
    def filtered(context: Any, value: object, *args: Any, **kwargs: Any) -> str:
        return function(context, _text(context, value), *args, **kwargs)

    return pass_context(filtered)


def _of_list(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that takes a list."""

    @functools.wraps(function)
    def filtered(context: Any, value: object, *args: Any, **kwargs: Any) -> Any:
        return function(context, _items(context, value), *args, **kwargs)

    return pass_context(filtered)


def _weigh(context: Any, value: list[Any], attribute: str | None) -> None:
    """Count what it costs to compare the items of a list, by an attribute whose path is looked up in each."""
    context.weigh(value)
    context.spend(characters=len(value) * len(attribute or ""))


# ---- of texts


@_of_text
def _lower(context: Any, value: str) -> str:
    return value.lower()


@_of_text
def _upper(context: Any, value: str) -> str:
    return value.upper()


@_of_text
def _capitalize(context: Any, value: str) -> str:
    return value.capitalize()


@_of_text
def _title(context: Any, value: str) -> str:
    return value.title()


@_of_text
def _trim(context: Any, value: str) -> str:
    return value.strip()


@_of_text
def _truncate(context: Any, value: str, length: int = 255, killwords: bool = False, end: str = "...") -> str:
    return do_truncate(context.environment, value, length, killwords, end, 0)


@_of_text
def _replace(context: Any, value: str, old: str, new: str) -> str:
    context.spend(characters=value.count(old) * len(new))
    return value.replace(old, new)


# ---- of lists


@_of_list
def _join(context: Any, value: list[Any], d: str = "", attribute: str | None = None) -> str:
    if attribute is not None:
        value = [context.environment.getitem(each, attribute) for each in value]
    context.spend(characters=len(value) * len(d))
    return d.join([_text(context, each) for each in value])


@_of_list
def _first(context: Any, value: list[Any]) -> Any:
    return value[0] if value else None


@_of_list
def _last(context: Any, value: list[Any]) -> Any:
    return value[-1] if value else None


@_of_list
def _reverse(context: Any, value: list[Any]) -> list[Any]:
    return value[::-1]


@_of_list
def _sort(
    context: Any, value: list[Any], reverse: bool = False, case_sensitive: bool = False, attribute: str | None = None
) -> list[Any]:
    _weigh(context, value, attribute)
    return do_sort(context.environment, value, reverse, case_sensitive, attribute)


@_of_list
def _unique(context: Any, value: list[Any], case_sensitive: bool = False, attribute: str | None = None) -> list[Any]:
    _weigh(context, value, attribute)
    return list(do_unique(context.environment, value, case_sensitive, attribute))


@_of_list
def _map(context: Any, value: list[Any], *, attribute: str) -> list[Any]:
    return [context.environment.getitem(each, attribute) for each in value]


@_of_list
def _select(context: Any, value: list[Any]) -> list[Any]:
    return [each for each in value if each]


# ---- of anything


@pass_context
def _length(context: Any, value: object) -> int:
    if not isinstance(value, str | list | tuple | Mapping):
        raise _refused(value, "texts, lists and objects")
    return len(value)


@pass_context
def _entries(context: Any, value: object) -> list[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        raise _refused(value, "objects")
    context.spend(items=len(value))
    return list(value.items())


@pass_context
def _tojson(context: Any, value: object) -> str:
    try:
        text = as_json(plain(value))
    except PoisonError as error:
        raise PoisonError("text", "wrong_type", error.message) from None
    context.spend(characters=len(text))
    return text


@pass_context
def _default(context: Any, value: object, default_value: object = "", boolean: bool = False) -> object:
    return default_value if _is_missing(value) or (boolean and not value) else value


FILTERS: dict[str, Callable[..., Any]] = {
    **{
        "capitalize": _capitalize,
        "count": _length,
        "d": _default,
        "default": _default,
        "first": _first,
        "items": _entries,
    },
    **{"join": _join, "last": _last, "length": _length, "lower": _lower, "map": _map, "replace": _replace},
    **{"reverse": _reverse, "select": _select, "sort": _sort, "title": _title, "tojson": _tojson, "trim": _trim},
    **{"truncate": _truncate, "unique": _unique, "upper": _upper},
}

TESTS: dict[str, Callable[[Any], bool]] = {
    "boolean": lambda value: isinstance(value, bool),
    "defined": lambda value: not _is_missing(value),
    "mapping": lambda value: isinstance(value, Mapping),
    "none": _is_missing,
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "undefined": _is_missing,
}
