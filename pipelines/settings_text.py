"""The settings as text: the YAML of ``stream-embedder config``, and the table of the README.

Comes in: ``Configured``, or nothing. Goes out: text. Never here: a secret's value.
"""

from __future__ import annotations

import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr

from pipelines.configure import Configured, keys
from pipelines.yaml_text import scalar
from workers.errors import SettingsError

MARKERS = ("<!-- settings -->", "<!-- /settings -->")


def render(configured: Configured) -> str:
    """The settings as YAML, each with its origin behind it; secrets are hidden."""
    lines: list[tuple[str, str]] = []

    def walk(section: BaseModel, indent: str, first: str, above: str) -> None:
        for name in type(section).model_fields:
            value, key = getattr(section, name), f"{above}{name}"
            if isinstance(value, BaseModel):
                lines.append((f"{indent}{name}:", ""))
                walk(value, f"{indent}  ", f"{indent}  ", f"{key}.")
            elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
                lines.append((f"{indent}{name}:", ""))
                for number, item in enumerate(value):
                    walk(item, f"{indent}    ", f"{indent}  - ", f"{key}.{number}.")
            else:
                lines.append((f"{first}{name}: {scalar(value)}", configured.origin(key)))
            first = indent

    walk(configured.settings, "", "", "")
    width = min(48, max(len(text) for text, _ in lines))
    return "".join(f"{text:<{width}}  # {origin}\n" if origin else f"{text}\n" for text, origin in lines)


def settings_table() -> str:
    """Every setting as a row of a Markdown table."""
    rows = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for key, field in keys("N"):
        default = "required" if field.is_required() else f"`{_plain(field.default)}`"
        cells = (f"`{key}`", _type_name(field.annotation), default, field.description or "")
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else scalar(value)


def _type_name(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(part) for part in parts if part is not type(None))
    if origin is Annotated:
        return _type_name(parts[0])
    if origin is dict:
        return "mapping of text"
    if origin is tuple:
        return f"list of {_type_name(parts[0])}"
    return {
        str: "text",
        int: "whole number",
        float: "number",
        bool: "`true`, `false`",
        SecretStr: "secret",
        Path: "file",
    }[annotation]


def write_table(file: Path) -> None:
    """Put the table between the file's markers."""
    before, _, rest = file.read_text(encoding="utf-8").partition(MARKERS[0])
    _, closed, after = rest.partition(MARKERS[1])
    if not closed:
        raise SettingsError(f"{file} has no {MARKERS[0]} … {MARKERS[1]}")
    file.write_text(f"{before}{MARKERS[0]}\n{settings_table()}{MARKERS[1]}{after}", encoding="utf-8")
