"""Settings from a YAML file, the environment and flags, with the origin of each.

Comes in: a file, an environment and flags, all as arguments. Goes out: ``Configured`` (the settings and where each came
from), the text of ``config``, the table of the README, or one ``SettingsError`` with a line per mistake. Never here:
reading ``os.environ``, or printing a value that may be a secret.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from pipelines.yaml_text import parse
from workers.errors import SettingsError
from workers.settings import ENV_PREFIX, Settings

DEFAULT = "default"
OTHER_VARIABLES = frozenset({f"{ENV_PREFIX}DEBUG"})

# Kubernetes gives every pod variables of this form for each Service, and one may well be called stream-embedder.
_SERVICE_LINK = re.compile(
    r"([A-Z0-9_]*_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)

type_path = tuple[str | int, ...]


class _Given(NamedTuple):
    """One assignment: ``origin`` is the file, the variable or the flag that made it."""

    path: type_path
    value: object
    origin: str


@dataclass(frozen=True, slots=True)
class Configured:
    """The settings in force, and by dotted key where each one that is not a default came from."""

    settings: Settings
    origins: Mapping[str, str]

    def origin(self, key: str) -> str:
        """``default``, the YAML file, the variable's name or the flag."""
        return self.origins.get(key, DEFAULT)


def load(file: Path | None, flags: Sequence[tuple[str, str]], environ: Mapping[str, str]) -> Configured:
    """Merge, later ones winning: the defaults, the YAML file, the environment, the flags.

    Raises:
        SettingsError: everything that is wrong, one line each, with where it came from.
    """
    mistakes: list[str] = []
    merged: dict[type_path, _Given] = {}
    for given in (*_from_yaml(file), *_from_environ(environ, mistakes), *_from_flags(flags, mistakes)):
        for leaf in _leaves(given, mistakes):
            if leaf.origin.startswith("--") and _is_secret(_find(leaf.path)):
                # Whoever may list processes reads their arguments.
                variable = ENV_PREFIX + "__".join(map(str, leaf.path)).upper()
                mistakes.append(
                    f"{_dotted(leaf.path)} is a secret, and not for the command line: put it into {variable}"
                )
                continue
            # What is given for a whole section or list replaces its parts, and a part takes the place of the whole.
            merged = {path: other for path, other in merged.items() if not _related(path, leaf.path)}
            merged[leaf.path] = leaf
    nested = _nest(merged, mistakes)
    try:
        settings = Settings(**nested)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            # A section that lost a misspelt key may contradict itself for that reason alone.
            if not (mistakes and detail["type"] == "value_error" and len(detail["loc"]) < 2):
                mistakes.append(_sentence(detail, merged))
        raise SettingsError("\n".join(mistakes)) from None
    if mistakes:
        raise SettingsError("\n".join(mistakes))
    return Configured(settings, {_dotted(path): given.origin for path, given in merged.items()})


# ------------------------------------------------------------------ what may be set


def _models(annotation: Any) -> tuple[type[BaseModel], ...]:
    """The sections that an annotation allows, through unions, lists and metadata."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (annotation,)
    return tuple(model for part in get_args(annotation) for model in _models(part))


def _is_list(annotation: Any) -> bool:
    return get_origin(annotation) is tuple


def _is_map(annotation: Any) -> bool:
    return get_origin(annotation) is dict


def _find(path: Sequence[str | int]) -> Any:
    """The type of the setting, section or list that a path names; None when there is no such thing."""
    annotation: Any = Settings
    for part in path:
        models = _models(annotation)
        if _is_list(annotation) and models:
            annotation = get_args(annotation)[0] if isinstance(part, int) else None
        else:
            annotation = next(
                (model.model_fields[part].annotation for model in models if part in model.model_fields), None
            )
        if annotation is None:
            return None
    return annotation


def keys(number: str = "0") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting by dotted key, in order; ``number`` stands for an item's place in a list of sections."""

    def walk(models: tuple[type[BaseModel], ...], above: str) -> Iterator[tuple[str, FieldInfo]]:
        fields: dict[str, FieldInfo] = {}
        for model in models:  # kinds of one thing share fields
            fields |= {name: _either(fields.get(name, field), field) for name, field in model.model_fields.items()}
        for name, field in fields.items():
            if inner := _models(field.annotation):
                yield from walk(inner, f"{above}{name}.{number}." if _is_list(field.annotation) else f"{above}{name}.")
            else:
                yield f"{above}{name}", field

    return walk((Settings,), "")


def _either(one: FieldInfo, other: FieldInfo) -> FieldInfo:
    """The setting that two kinds share: of choices it takes those of both."""
    choices = [get_args(each.annotation) for each in (one, other) if get_origin(each.annotation) is Literal]
    if len(choices) < 2:
        return one
    both = copy(one)
    every = tuple(dict.fromkeys(chain(*choices)))
    both.annotation = Literal[every]  # type: ignore[assignment]
    return both


def unknown(key: str, where: str) -> str:
    """The sentence for a setting that does not exist: it names the nearest one that does."""
    number = next((part for part in key.split(".") if part.isdecimal()), "0")
    names = [name for name, _ in keys(number)]
    names += sorted({name.split(".")[0] for name in names} - set(names))
    # By the whole key first; failing that, by its last word alone: the section may be what is wrong.
    near = difflib.get_close_matches(key.lower(), names, n=1, cutoff=0.75)
    near = near or [name for name in names if name.split(".")[-1] == key.lower().split(".")[-1]]
    near = near or difflib.get_close_matches(key.lower(), names, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else "stream-embedder config lists them all"
    return f'unknown setting "{key}" in {where}: {hint}'


# ------------------------------------------------------------------ sources


def _from_yaml(file: Path | None) -> list[_Given]:
    if file is None:
        return []
    try:
        content = parse(file.read_text(encoding="utf-8"), str(file))
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file} is not UTF-8 (byte {error.start})") from None
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}") from None
    if not isinstance(content, dict | None):
        raise SettingsError(f"{file} is not a mapping of sections, such as model: and source:")
    return [_Given((str(key),), value, str(file)) for key, value in (content or {}).items()]


def _from_environ(environ: Mapping[str, str], mistakes: list[str]) -> Iterator[_Given]:
    """``STREAM_EMBEDDER_SECTION__FIELD``, in any case; a whole section or list as JSON comes before its parts."""
    names = (name for name in environ if name.upper().startswith(ENV_PREFIX) and name.upper() not in OTHER_VARIABLES)
    for name in sorted(names, key=lambda name: (name.count("__"), name)):
        rest = name[len(ENV_PREFIX) :]
        key = rest.lower().replace("__", ".")
        if "__" not in rest and _find([key]) is None and _SERVICE_LINK.fullmatch(rest):
            continue
        yield from _decoded(key, environ[name], name, mistakes)


def _from_flags(flags: Sequence[tuple[str, str]], mistakes: list[str]) -> Iterator[_Given]:
    for key, raw in flags:
        yield from _decoded(key, raw, f"--{key}", mistakes)


def _decoded(key: str, raw: str, origin: str, mistakes: list[str]) -> Iterator[_Given]:
    """Words stay words, for pydantic to read; lists and sections are YAML, which JSON is a part of."""
    path = tuple(int(part) if part.isdecimal() else part for part in key.split("."))
    annotation = _find(path)
    value: object = raw
    if annotation is None:
        mistakes.append(unknown(key, "the flags" if origin.startswith("--") else f"the environment ({origin})"))
        return
    written = raw.lstrip()[:1]
    if _models(annotation) or (_is_list(annotation) and written == "[") or (_is_map(annotation) and written == "{"):
        try:
            value = parse(raw, origin)
        except SettingsError as error:
            mistakes.append(str(error))
            return
    elif raw == "null" and type(None) in get_args(annotation):
        value = None
    yield _Given(path, value, origin)


# ------------------------------------------------------------------ merging


def _leaves(given: _Given, mistakes: list[str]) -> Iterator[_Given]:
    """Take sections and lists of sections apart, so that each setting is given by itself."""
    path, value, origin = given
    annotation = _find(path)
    if annotation is None:
        mistakes.append(unknown(_dotted(path), origin))
    elif not _models(annotation):
        yield given
    elif _is_list(annotation) and isinstance(value, list):
        yield _Given(path, [], origin)
        for number, item in enumerate(value):
            yield from _leaves(_Given((*path, number), item or {}, origin), mistakes)
    elif not _is_list(annotation) and isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(_Given((*path, str(key)), inner, origin), mistakes)
    elif value is not None:  # None: a section whose lines are all commented out
        yield given


def _nest(settings: Mapping[type_path, _Given], mistakes: list[str]) -> dict[str, Any]:
    """Put the leaves together again, for pydantic."""
    merged: dict[Any, Any] = {}
    for path, given in settings.items():
        place = merged
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = given.value

    def lists(branch: Any, name: str) -> Any:
        if not isinstance(branch, dict):
            return branch
        branch = {key: lists(value, f"{name}.{key}" if name else str(key)) for key, value in branch.items()}
        numbers = sorted(key for key in branch if isinstance(key, int))
        if not numbers:
            return branch
        if numbers != list(range(len(numbers))):
            gap = next(number for number in range(len(numbers)) if number not in branch)
            mistakes.append(f"{name}.{numbers[-1]} is set, but {name}.{gap} is not")
        return [branch[number] for number in numbers]

    nested: dict[str, Any] = lists(merged, "")
    return nested


# ------------------------------------------------------------------ sentences

_PHRASES = {
    "missing": "is missing",
    "tuple_type": "should be a list",
    "dict_type": "should be a mapping, such as {title: headline}",
    "extra_forbidden": "is not a setting of this kind of output",
    "union_tag_invalid": "has a kind that is not one of kafka, parquet",
    "model_type": "is a section: write its settings below it, or as section.setting",
    "model_attributes_type": "is a section: write its settings below it, or as section.setting",
}


def _sentence(detail: ErrorDetails, settings: Mapping[type_path, _Given]) -> str:
    """One mistake that pydantic found, in our words, with the origins of what it is about."""
    path, message, value = detail["loc"], detail["msg"], detail["input"]
    if path[:1] == ("outputs",):  # pydantic puts the kind of output behind its number
        path = path[:2] + path[3:]
    about = path[:-1] if detail["type"] == "missing" else path
    named = {about} if about else {tuple(key.split(".")) for key, _ in keys() if key in message}
    origins = sorted({given.origin for own, given in settings.items() if any(_related(own, key) for key in named)})
    where = f" ({', '.join(origins)})" if origins else ""
    if detail["type"] == "value_error":
        message = message.removeprefix("Value error, ")
        return f"{_dotted(path)}{where}: {message}" if path else f"{message}{where}"
    phrase = _PHRASES.get(detail["type"], message.replace("Input should", "should", 1))
    shown = isinstance(value, str | int | float) and not _models(_find(path)) and not _is_secret(_find(path))
    return f"{_dotted(path)}{where} {phrase}" + (f", not {value!r}" if shown else "")


def _related(one: type_path, other: type_path) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def _is_secret(annotation: Any) -> bool:
    return annotation is SecretStr or any(_is_secret(part) for part in get_args(annotation))


def _dotted(path: Sequence[str | int]) -> str:
    return ".".join(map(str, path))


if __name__ == "__main__":
    from pipelines.settings_text import write_table

    write_table(Path(sys.argv[1]))
