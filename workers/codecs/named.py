"""Whether the fields that settings name are in a schema: a misspelt one is found at the start, and not in the dead letters.

Comes in: settings, and what knows a schema. Goes out: sentences. Never here: a record, or a schema's own rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from workers.codecs.template import Template, parse_template, parse_text
from workers.settings import Settings

type_has = Callable[[tuple[str, ...]], bool]


def unnamed(settings: Settings, has: type_has) -> Iterator[str]:
    """A phrase for each field that has no default and is not there, such as ``source.text names titel``.

    ``has`` says whether a path leads to something in the schema. Rows of change events are looked for where they are in them.
    """
    source = settings.source
    if source.envelope == "connect":
        return
    above: tuple[str, ...] = ()
    if source.envelope == "debezium" and has(("op",)):
        above = ("after",)
    for setting, text in (("source.text", source.text), ("source.id", source.id)):
        if text is not None:
            yield from _missing(setting, parse_template(text), above, has)
    if settings.model.prompt_text is not None:
        yield from _missing("model.prompt_text", parse_text(settings.model.prompt_text), above, has)
    if settings.model.prompt is not None and settings.model.prompt_by_record:
        yield from _missing("model.prompt", parse_template(settings.model.prompt), above, has)
    for number, output in enumerate(settings.outputs):
        for name in output.include:
            path = source.include.get(name, name)
            if path is not None and not has((*above, *path.split("."))):
                yield (
                    f"outputs.{number}.include names {name}" if path == name else f"source.include.{name} names {path}"
                )


def _missing(setting: str, template: Template, above: tuple[str, ...], has: type_has) -> Iterator[str]:
    for path in template.needed:
        if not has((*above, *path)):
            yield f"{setting} names {'.'.join(path)}"
