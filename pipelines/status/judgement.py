"""Whether a pipeline is well, and what to do where it is not. Pure.

Comes in: what Kafka and Ray were seen to say, and for how long nothing has moved. Goes out: sentences. Never here: a clock, or a
look.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.status.companion import Application
from pipelines.status.kafka_side import Lane, Seen
from workers import metrics

NAMED = 5
ASK_THE_LOG = "the readers' log says what refuses; stream-embedder check says what would"


@dataclass(frozen=True, slots=True)
class Judgement:
    """``wrong``: a sentence for each thing that keeps the pipeline from its work; ``notes``: what else there is to know."""

    wrong: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    reached: bool = True

    @property
    def health(self) -> str:
        """In one word."""
        if not self.reached:
            return "unreachable"
        return "stalled" if self.wrong else "healthy"

    @property
    def exit_code(self) -> int:
        """What the command ends with."""
        return 1 if self.wrong else 0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a lag may stand still, in seconds.

    ``files_s``: how long outputs may commit nothing because all are files; None: there are topics, whose commits always move.
    """

    wait_s: float
    files_s: float | None = None


def judge(seen: Seen, application: Application | None, quiet_s: float, patience: Patience) -> Judgement:
    """Judge a look, after ``quiet_s`` seconds in which nothing has moved (see :func:`moved`).

    ``application``: None where Ray was not asked, did not answer, or runs none.
    """
    group, notes = seen.group, [] if seen.why is None else [seen.why]
    behind = [lane for lane in seen.lanes if lane.behind]
    if not behind:
        if not group.members:
            notes.append(f"nobody is in group {group.name}, and nothing waits to be read")
        return Judgement(notes=tuple(notes))
    if not group.members:
        return Judgement((_deserted(seen, behind, application),), tuple(notes))
    wrong = []
    if unread := _unread(seen, behind):
        wrong.append(
            f"nobody in group {group.name} reads {_named(unread)}: its members read other topics, or have not heard of new "
            "partitions yet; compare source.topics of all who share the group"
        )
    if quiet_s >= patience.wait_s and len(unread) < len(behind):
        why = _why_stalled(seen, application)
        if why is None and patience.files_s is not None and quiet_s < patience.files_s:
            notes.append(
                f"nothing was committed for {quiet_s:.0f} s, which is no fault yet: files are put every "
                f"{patience.files_s:.0f} s or sooner; --wait {patience.files_s:.0f} tells"
            )
        else:
            wrong.append(
                f"of {seen.lag:,} records that wait{_oldest(seen)} none was committed for {quiet_s:.0f} s, though group "
                f"{group.name} has {_members(len(group.members))}: {why or ASK_THE_LOG}"
            )
    return Judgement(tuple(wrong), tuple(notes))


def unreachable(sentence: str) -> Judgement:
    """Kafka could not be looked at."""
    return Judgement((sentence,), reached=False)


def moved(before: Seen, now: Seen) -> bool:
    """Whether the group has committed anything between two looks: an offset, or an output's own position."""
    then = {lane.partition: lane.standing.committed for lane in before.lanes}
    return any(
        lane.partition in then and lane.standing.committed != then[lane.partition]
        for lane in now.lanes
        if lane.standing.committed is not None
    )


def worked(before: Application | None, now: Application | None) -> bool:
    """Whether encoders have answered, or readers committed, between two looks."""
    if before is None or now is None:
        return False
    wanted = (metrics.TOKENS_ENCODED, metrics.COMMITS)
    return now.total(*wanted) > before.total(*wanted)


def _deserted(seen: Seen, behind: Sequence[Lane], application: Application | None) -> str:
    group = seen.group.name
    what = f"nobody is in group {group}, and {seen.lag:,} records wait{_oldest(seen)}"
    if application is not None:
        said = "" if application.said is None else f" ({application.said})"
        return (
            f"{what}; the application on Ray is {application.status} with {application.readers.ready} readers{said}: "
            f"{ASK_THE_LOG}"
        )
    if all(lane.standing.committed is None for lane in seen.lanes):
        return f"{what}, of which none was ever committed: start the pipeline (stream-embedder run), or correct source.group"
    return f"{what}: start the pipeline again (stream-embedder run), or see in its log why its readers do not join"


def _unread(seen: Seen, behind: Sequence[Lane]) -> list[Lane]:
    """Partitions that no member has, in a group that is settled."""
    read = {partition for member in seen.group.members for partition in member.partitions}
    if seen.group.state != "Stable" or not read:
        return []
    return [lane for lane in behind if lane.partition not in read]


def _why_stalled(seen: Seen, application: Application | None) -> str | None:
    """What stands in the way, as far as it can be seen."""
    if seen.group.state not in ("Stable", "Empty"):
        return f"the group is in state {seen.group.state}, so readers come and go; their log says why"
    if application is None:
        return None
    if application.readers.ready == 0:
        return f"no reader runs on Ray ({application.readers.starting} start): {application.said or ASK_THE_LOG}"
    encoders = application.encoders
    if encoders.ready == 0:
        target = "" if application.scaling is None else f"{application.scaling['target']} wanted, "
        said = "" if application.said is None else f"{application.said}; "
        return (
            f"no encoder is ready ({target}{encoders.starting} start): {said}give it the time that a node and the model "
            "take, then see whether Ray has what an encoder asks for (ray status)"
        )
    failed, paused = application.total(metrics.COMMITS_FAILED), application.total(metrics.PARTITIONS_PAUSED)
    if failed:
        return (
            f"{failed:.0f} commits have failed: brokers, rights (stream-embedder check), or a second deployment of the same "
            "name (delivery.cluster); the readers' log says which"
        )
    if paused:
        return (
            "readers hold all that they may and pause partitions, so it is an output or the encoders that take nothing; "
            "their log says which"
        )
    return None


def _oldest(seen: Seen) -> str:
    return "" if seen.age_s is None else f" (the next one for {duration(seen.age_s)})"


def _members(count: int) -> str:
    return "a member" if count == 1 else f"{count} members"


def _named(lanes: Sequence[Lane]) -> str:
    names = [str(lane.partition) for lane in lanes]
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def duration(seconds: float) -> str:
    """Seconds for people: ``0.4 s``, ``12 s``, ``5 min``, ``3 h``, ``2 d``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    for limit, size, unit in ((120, 1, "s"), (7_200, 60, "min"), (172_800, 3_600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"
