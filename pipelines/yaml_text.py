"""YAML as settings are written in it.

Comes in: text, or a value. Goes out: values, or text on one line. Never here: a mistake that is passed over (a key given
twice), or an error that quotes the file, where a password may stand.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from pydantic import SecretStr

from workers.errors import SettingsError


class _Loader(yaml.SafeLoader):
    """YAML's safe subset, in which a key may be given once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse(text: str, where: str) -> Any:
    """YAML or JSON to values; a mistake is a sentence with its place that quotes nothing longer than a character."""
    loader = None
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark, problem = error.problem_mark or error.context_mark, error.problem or "not valid"
        if "undefined alias" in problem:
            problem = "a value that begins with * needs quotes"
        elif "tag" in problem:
            problem = "a value that begins with ! needs quotes"
        place = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SettingsError(f"{where}{place}: {problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        # A character that YAML refuses, a date that does not exist, or nesting without end.
        raise SettingsError(f"{where} is not valid YAML") from None
    finally:
        if loader is not None:
            loader.dispose()


def scalar(value: object) -> str:
    """A value on one line of YAML."""
    match value:
        case SecretStr() | Path():
            value = str(value)
        case tuple():
            value = list(value)
    for style in (None, '"'):  # with a line break inside, only this style has one line
        text: str = yaml.safe_dump(
            [value], default_flow_style=True, default_style=style, width=sys.maxsize, allow_unicode=True
        )
        text = text.rstrip("\n")
        if len(text.splitlines()) == 1:
            break
    return text[1:-1]
