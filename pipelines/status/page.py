"""How a pipeline is, as a table, as one line, as JSON.

Comes in: what was seen, and the judgement. Goes out: text. Never here: a terminal.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.assemble import CLIENT
from pipelines.status.companion import Application
from pipelines.status.fingerprints import Fingerprint
from pipelines.status.judgement import Judgement, duration
from pipelines.status.kafka_side import Lane, Seen
from pipelines.table import plain
from workers import log, metrics
from workers.kafka_groups import Member

WIDTH = 120


@dataclass(frozen=True, slots=True)
class View:
    """All there is to show at ``now`` (Unix time). ``without_ray``: why there are no figures of replicas.

    ``rate``: records/s that were committed since the look before; None: there was none. ``fixed``: how many encoders there
    should be where nothing scales them, ``members`` how many readers. ``fingerprints`` None: not looked at, or not yet.
    """

    now: float
    seen: Seen | None
    judgement: Judgement
    application: Application | None = None
    without_ray: str | None = None
    rate: float | None = None
    fixed: int | None = None
    members: int | None = None
    fingerprints: Sequence[Fingerprint] | None = None
    without_fingerprints: str | None = None

    @property
    def wanted(self) -> int | None:
        """Encoders that there should be; None: nobody says."""
        if self.application is not None and self.application.scaling is not None:
            return int(self.application.scaling["target"])
        return self.fixed if self.application is not None else None

    @property
    def notes(self) -> list[str]:
        """What is no fault, and good to know."""
        found = list(self.judgement.notes)
        found += [note for note in (self.without_ray, self.without_fingerprints) if note is not None]
        for one in self.fingerprints or ():
            if one.differs:
                found.append(
                    f"{one.output} holds vectors with fingerprint {', '.join(one.latest)}, and these settings make {one.ours}: "
                    "they do not compare, and a pipeline with these settings refuses to start there, unless "
                    "delivery.allow_fingerprint_change is set"
                )
        return found

    def commit_age(self, lane: Lane) -> float | None:
        """Seconds since the last commit of the reader that has the partition; None: not known."""
        if self.application is None or (member := self.member(lane)) is None:
            return None
        times = [report.last_commit for report in self.application.reports if report.client == member.client]
        return max((self.age(at) for at in times if at is not None), default=None)

    def member(self, lane: Lane) -> Member | None:
        """Who reads a partition."""
        members = () if self.seen is None else self.seen.group.members
        return next((member for member in members if lane.partition in member.partitions), None)

    def age(self, at: float) -> float:
        """Seconds since a moment of Unix time."""
        return max(0.0, self.now - at)


# ---- for people


def lines(view: View, most: int | None = None) -> list[str]:
    """The whole page; of more partitions than ``most``, those that are furthest behind."""
    found = [view.judgement.health]
    for sentence in (*view.judgement.wrong, *(f"note: {note}" for note in view.notes)):
        found += textwrap.wrap(sentence, WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    if view.seen is not None:
        found += ["", *_head(view, view.seen), "", *_partitions(view, view.seen, most)]
        if view.seen.group.members:
            found += ["", *_members(view, view.seen.group.members)]
    if view.fingerprints:
        rows = [(one.output, one.ours or "?", ", ".join(one.latest) or "none") for one in view.fingerprints]
        found += ["", *plain(("output", "fingerprint of these settings", "of its latest records"), rows).splitlines()]
        found += [f"{one.output}: {one.why}" for one in view.fingerprints if one.why is not None]
    return found


def _head(view: View, seen: Seen) -> list[str]:
    group, count = seen.group, len(seen.group.members)
    age = "" if not seen.age_s else f", the oldest for {duration(seen.age_s)}"
    rate = "" if view.rate is None else f"; {view.rate:,.0f} records/s committed"
    found = [f"group {group.name}: {group.state}, {_count(count, 'member')}; {seen.lag:,} records wait{age}{rate}"]
    if (application := view.application) is not None:
        encoders, readers = application.encoders, application.readers
        wanted = "" if view.wanted is None else f" of {view.wanted} wanted"
        members = "" if view.members is None else f" of {view.members} wanted"
        starting = f", {encoders.starting} starting" if encoders.starting else ""
        why = "" if (scaling := application.scaling) is None else _why(view, scaling)
        commit = "none yet" if application.last_commit is None else f"{duration(view.age(application.last_commit))} ago"
        found.append(
            f"application {application.status}: {_count(readers.ready, 'reader')} ready{members}; "
            f"{_count(encoders.ready, 'encoder')} ready{wanted}{starting}{why}; last commit {commit}"
        )
        if application.said is not None:
            found.append(f"Ray Serve says: {application.said}")
    return found


def _why(view: View, scaling: Any) -> str:
    return f" ({scaling['reason']}, since {duration(view.age(scaling['since']))})"


def _count(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _partitions(view: View, seen: Seen, most: int | None) -> list[str]:
    shown = list(seen.lanes)
    if most is not None and len(shown) > most:
        shown = sorted(shown, key=lambda lane: -lane.standing.lag)[:most]
    rows = []
    for lane in shown:
        standing, commit, member = lane.standing, view.commit_age(lane), view.member(lane)
        rows.append(
            (
                str(lane.partition),
                "none" if standing.committed is None else f"{standing.committed.offset:,}",
                f"{standing.end:,}",
                f"{standing.lag if lane.behind else 0:,}",
                "" if not lane.behind or lane.age_s is None else duration(lane.age_s),
                "" if commit is None else f"{duration(commit)} ago",
                "nobody" if member is None else _name(member),
                standing.elsewhere,
            )
        )
    titles = ("partition", "committed", "end", "lag", "waits for", "last commit", "reader", "outputs elsewhere")
    keep = [n for n in range(len(titles)) if n not in (4, 5, 7) or any(row[n] for row in rows)]
    found = plain([titles[n] for n in keep], [[row[n] for n in keep] for row in rows]).splitlines()
    if len(shown) < len(seen.lanes):
        found.append(f"and {len(seen.lanes) - len(shown)} partitions that are no further behind")
    return found


def _members(view: View, members: Sequence[Member]) -> list[str]:
    reports = {} if view.application is None else {report.client: report for report in view.application.reports}
    rows = []
    for member in members:
        report = reports.get(member.client)
        rows.append(
            (
                _name(member),
                member.host,
                f"{len(member.partitions)}",
                "" if report is None else f"{report.total(metrics.IN_FLIGHT_RECORDS):,.0f}",
                "" if report is None else f"{report.total(metrics.RECORDS_COMMITTED):,.0f}",
                "" if report is None else f"{report.total(metrics.DEAD_LETTERS):,.0f}",
            )
        )
    titles = ("member", "host", "partitions", "in flight", "committed", "dead letters")
    shown = len(titles) if reports else 3
    return plain(titles[:shown], [row[:shown] for row in rows]).splitlines()


def _name(member: Member) -> str:
    return member.client.removeprefix(f"{CLIENT}-")


# ---- one line


def line(view: View) -> str:
    """``healthy group=… lag=… …``, and what is wrong."""
    known: dict[str, object] = {}
    if (seen := view.seen) is not None:
        known |= {
            "group": seen.group.name,
            "state": seen.group.state,
            "members": len(seen.group.members),
            "lag": seen.lag,
        }
        known |= {"lag_s": "unknown" if seen.age_s is None else f"{seen.age_s:.1f}"}
        if view.rate is not None:
            known["records_per_s"] = f"{view.rate:.1f}"
    if (application := view.application) is not None:
        wanted = "unknown" if view.wanted is None else view.wanted
        known |= {"readers": application.readers.ready, "encoders": f"{application.encoders.ready}/{wanted}"}
        if application.scaling is not None:
            known["reason"] = application.scaling["reason"]
        if application.last_commit is not None:
            known["last_commit_s"] = f"{view.age(application.last_commit):.1f}"
    if view.judgement.wrong:
        known["wrong"] = " | ".join(view.judgement.wrong)
    return f"{view.judgement.health} {log.fields(**known)}".rstrip()


# ---- for programs


def as_json(view: View) -> dict[str, Any]:
    """The page as an object; what is not known is null."""
    seen, application = view.seen, view.application
    return {
        "at": view.now,
        "health": view.judgement.health,
        "wrong": list(view.judgement.wrong),
        "notes": view.notes,
        "group": None if seen is None else _group(seen),
        "lag": None if seen is None else seen.lag,
        "lag_seconds": None if seen is None else seen.age_s,
        "records_per_second": view.rate,
        "last_commit_age_seconds": _last_commit(view),
        "partitions": None if seen is None else [_partition(view, lane) for lane in seen.lanes],
        "replicas": None if application is None else _replicas(view, application),
        "fingerprints": None if view.fingerprints is None else [_fingerprint(one) for one in view.fingerprints],
    }


def _group(seen: Seen) -> dict[str, Any]:
    members = [
        {
            "client": member.client,
            "host": member.host,
            "partitions": [str(partition) for partition in member.partitions],
        }
        for member in seen.group.members
    ]
    return {"name": seen.group.name, "state": seen.group.state, "members": members}


def _partition(view: View, lane: Lane) -> dict[str, Any]:
    member = view.member(lane)
    return lane.standing.as_json() | {
        "lag": lane.standing.lag if lane.behind else 0,
        "lag_seconds": lane.age_s if lane.behind else 0.0,
        "member": None if member is None else member.client,
        "last_commit_age_seconds": view.commit_age(lane),
    }


def _replicas(view: View, application: Application) -> dict[str, Any]:
    encoders, scaling = application.encoders, application.scaling
    return {
        "application": application.status,
        "said": application.said,
        "readers": {
            "wanted": view.members,
            "ready": application.readers.ready,
            "starting": application.readers.starting,
        },
        "encoders": {"wanted": view.wanted, "ready": encoders.ready, "starting": encoders.starting},
        "scaling": None
        if scaling is None
        else {
            "reason": scaling["reason"],
            "target": scaling["target"],
            "need": scaling["need"],
            "for_seconds": view.age(scaling["since"]),
        },
    }


def _fingerprint(one: Fingerprint) -> dict[str, Any]:
    return {"output": one.output, "settings": one.ours, "latest": list(one.latest), "why": one.why}


def _last_commit(view: View) -> float | None:
    if view.application is None or view.application.last_commit is None:
        return None
    return view.age(view.application.last_commit)
