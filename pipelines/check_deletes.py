"""The part of ``check`` that looks at whether a deletion finds what it deletes.

Comes in: settings. Goes out: findings. Never here: a connection.

A record that deletes has a key and no value, so it is its key that leads to what goes. In topics that is what vectors stand under,
in files the column ``key``. An id that is made of the value's fields stands in the column ``id`` of its row, and in that of no
deletion's.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.finding import Finding
from workers.settings import ParquetOutput, Settings


def examine_deletes(settings: Settings) -> Iterator[Finding]:
    """Whether files have ids that the rows of deletions do not have."""
    named = next(_ids(settings), None)
    if named is None:
        return
    for number, output in enumerate(settings.outputs):
        if isinstance(output, ParquetOutput):
            yield Finding(
                output.uri,
                f"{named} takes ids from the value, which a record that deletes does not have: below {output.uri} "
                f"(outputs.{number}) the row of a deletion has the key as its id, so match deletions by the column key, or "
                f"leave {named} out",
                may_never_happen=True,
            )


def _ids(settings: Settings) -> Iterator[str]:
    """The settings by which records of some topic get ids from their values."""
    source = settings.source
    all_mapped = bool(source.topics) and all(source.mapping_of(topic) is not None for topic in source.topics)
    for number in (*(() if all_mapped else (None,)), *range(len(source.mappings))):
        own = settings.of(number).source
        if own.id is not None and own.format != "text":
            yield (
                "source.id" if number is None or source.mappings[number].id is None else f"source.mappings.{number}.id"
            )
