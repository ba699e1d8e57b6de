"""The command ``cutover``: says whether new outputs may take an old one's place.

Comes in: the settings that made the new ones, and where the old one lies. Goes out: lines or JSON on standard output, and an
exit code. Never here: a change to anything.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Iterator
from typing import TextIO

from pipelines.arguments import Arguments
from pipelines.cutover.documents import Case, Verdict, compare
from pipelines.cutover.places import held
from pipelines.dead_letters import parse_since
from pipelines.model import Model
from pipelines.search.places import Files, TopicRecords
from workers.errors import SettingsError
from workers.settings import KafkaOutput, Settings

NOT_READY = 1


def from_line(settings: Settings, arguments: Arguments) -> int:
    """Run what a command line asks for; see :func:`run_cutover`."""
    options = arguments.options
    return run_cutover(
        settings,
        old=options.old,
        old_topic=options.old_topic,
        until=options.until,
        keys=options.keys,
        as_json=options.json,
        out=sys.stdout,
    )


def run_cutover(
    settings: Settings,
    *,
    old: str | None,
    old_topic: str | None,
    until: str | None,
    keys: bool,
    as_json: bool,
    out: TextIO,
) -> int:
    """Hold each output of the settings against the old one at ``old``, or the topic ``old_topic``.

    The old one is read first: what comes meanwhile the new one may have, and need not.

    Returns 0 when every document that has a vector in the old output has one in each new one, of these settings and of no older
    record, and the new ones have no others; else 1. Where nothing in the old output is as old as ``until``, or there is nothing at
    all, nothing is known: 1.

    Raises:
        SettingsError: the arguments do not suit each other, or the settings name no output.
        EnvironmentFault: a place cannot be read, or the model is not there.
        RetryableError: the broker or the schema registry does not answer now.
    """
    until_ms = None if until is None else _until(until)
    before = _old(settings, old, old_topic)
    if not settings.outputs:
        raise SettingsError("the settings name no output: -c FILE, the one that made the new vectors")
    model = Model.open(settings)
    ready = True
    standing = held(settings, before)
    for output in settings.outputs:
        place = TopicRecords(settings, output.topic) if isinstance(output, KafkaOutput) else Files(output.uri, "uri")
        if place.name == before.name:
            raise SettingsError(f"{place.name} is the old output and a new one: name the one that was there before")
        fingerprint = model.fingerprint_of(model.projection(output))
        verdict = compare(standing, held(settings, place), fingerprint, until_ms)
        ready = ready and verdict.ready
        if as_json:
            print(json.dumps(_values(verdict, before.name, place.name, fingerprint, keys=keys)), file=out, flush=True)
        else:
            print("\n".join(_lines(verdict, before.name, place.name, fingerprint, keys=keys)), file=out, flush=True)
    return 0 if ready else NOT_READY


def _old(settings: Settings, old: str | None, old_topic: str | None) -> Files | TopicRecords:
    if (old is None) == (old_topic is None):
        raise SettingsError("name the old output: --old FOLDER (or URI), or --old-topic NAME")
    return TopicRecords(settings, str(old_topic)) if old is None else Files(old, "--old")


def _until(text: str) -> int:
    try:
        return parse_since(text, datetime.datetime.now(datetime.UTC))
    except SettingsError:
        raise SettingsError(
            f"--until {text}: write a timestamp such as 2026-05-01T00:00:00Z, or how long ago: 90s, 5m, 2h"
        ) from None


def _lines(verdict: Verdict, old: str, new: str, fingerprint: str, *, keys: bool) -> Iterator[str]:
    yield f"old  {old}: {verdict.old:,} documents"
    yield f"new  {new}: {verdict.new:,} documents, fingerprint {fingerprint}"
    yield ""
    said = {
        "every document is there": (verdict.missing, "missing"),
        "with this fingerprint": (verdict.foreign, "of another"),
        "of no older record": (verdict.stale, "older, in whole or in a chunk, or deleted since"),
        "and no others": (verdict.more, "in the new output alone"),
    }
    width = max(map(len, said))
    fine = "yes" if verdict.judged else "not known"
    for name, (case, wrong) in said.items():
        yield f"{name:<{width}}  " + (fine if not case.count else f"NO: {case.count:,} {wrong}, {_such(case, keys)}")
    yield ""
    if verdict.ahead:
        yield f"{verdict.ahead:,} are further in the new output than in the old one"
    if verdict.recent:
        yield f"{verdict.recent:,} are later than --until, and were left out"
    if verdict.untold:
        yield f"of {verdict.untold:,} nothing says which record they were made of: what is newer may be missing there"
    if verdict.old == 0:
        yield "the old output holds nothing, so nothing is known of the new one"
    elif verdict.judged == 0:
        yield (
            "--until leaves out every document that the old output has, so nothing is known of the new one: name a later time, or "
            "none"
        )
    yield "ready: the new output may take the old one's place" if verdict.ready else "not ready"


def _such(case: Case, keys: bool) -> str:
    return "such as " + ", ".join(document if keys else str(version) for document, version in case.examples)


def _values(verdict: Verdict, old: str, new: str, fingerprint: str, *, keys: bool) -> dict[str, object]:
    return {
        "ready": verdict.ready,
        "old": {"place": old, "documents": verdict.old},
        "new": {"place": new, "documents": verdict.new, "fingerprint": fingerprint},
        **{
            name: {
                "count": case.count,
                "examples": [document if keys else str(version) for document, version in case.examples],
            }
            for name, case in verdict.cases.items()
        },
        "judged": verdict.judged,
        "ahead": verdict.ahead,
        "recent": verdict.recent,
        "untold": verdict.untold,
    }
