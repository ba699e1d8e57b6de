"""Why what ended, ended: exits of drivers, crashes in logs and lost readers, each by what the lab did, or by nothing it did.

Comes in: a seed's pipelines and the chronicle of what was done to them. Goes out: findings, of what nobody did. Never here:
an excuse by habit: whatever is excused is named, with a word why.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.lab.checker import Findings
from tests.lab.chronicle import Chronicle
from tests.lab.documents import without_text
from tests.lab.logs import Crash
from tests.lab.supervised import ENCODER, SENTENCE, Exit, Supervised

DIED, LOST, CRASHED = KINDS = ("died", "reader replaced", "crash logged")
# What is said of what is missing, each as long as the lab has it fail.
_UNREACHABLE = {
    "broker": re.compile(
        r"no Kafka broker answers at |Kafka at \S+ closes the connection|Kafka at \S+: |its broker does not answer"
        r"|cannot be (?:read|looked at now): \w*(?:Timeout|Connection|NotAvailable|NotLeader|Coordinator|disconnected)"
    ),
    "store": re.compile(r"\bs3://\S+: "),
    "memory": re.compile(r"the application did not start"),  # Ray kills its replicas faster than they come
}
# So long after it was asked for the last time may a sentence come.
LATE_S = 30.0
# Exceptions whose message is a sentence of ours.
_OURS = re.compile(r"(?:EnvironmentFault|RetryableError|CommitError): ")
_DEAD = re.compile(r"(?:ActorDiedError|ActorUnavailableError|OutOfMemoryError)\b")


@dataclass(frozen=True, slots=True)
class Noise:
    """What Ray logs while nothing of ours is wrong."""

    file: str
    text: str
    why: str


NOISE = (
    Noise("monitor.log", r"starting the metrics server", "a port that is one for all Rays of a machine"),
    Noise("dashboard.log", r"starting the metrics server", "a port that is one for all Rays of a machine"),
    Noise("dashboard_agent.log", r"attempting to bind on address", "a port that is one for all Rays of a machine"),
    Noise(
        "dashboard_agent.log",
        r"Failed to get \w+ pids from raylet(?s:.*)Deadline Exceeded",
        "figures for metrics that a busy machine gives late",
    ),
    Noise("dashboard_agent.log", r"Report event failed", "the dashboard, which run does not start"),
    Noise(
        "dashboard.log",
        r"Failed to check gcs aliveness",
        "a Ray that ends asks for itself once more; a dead one fails its run",
    ),
    Noise(
        "raylet.err",
        r"node_manager\.cc:\d+: .*Check failed: status\w*\.has_value\(\)",
        "a node whose agent comes too late on a busy machine: run says that Ray did not start, and starts another",
    ),
)


def examine(pipelines: Sequence[Supervised], chronicle: Chronicle, *, poison: bool, findings: Findings) -> None:
    """Add what nobody did. ``poison``: one text ends the process of each encoder that takes it."""
    inquest = Inquest(chronicle, set().union(*(pipeline.short_of_memory() for pipeline in pipelines)), poison)
    findings.add(DIED, "run", [_told(end) for pipeline in pipelines for end in pipeline.exits if not inquest.exit(end)])
    crashed = [crash for pipeline in pipelines for crash in pipeline.crashes()]
    gone = {pid for crash in crashed if inquest.gave_up(crash) for pid in crash.pids}
    # Serve ends what a controller that died had not finished with.
    gone |= {
        pid
        for pipeline in pipelines
        for controller, pids in pipeline.unfinished_readers().items()
        if inquest.dead(controller)
        for pid in pids
    }
    left = [crash for crash in crashed if not inquest.crash(crash)]
    lost = [
        pid for pipeline in pipelines for pid in pipeline.lost_readers() if not inquest.dead(pid) and pid not in gone
    ]
    findings.add(LOST, "readers", [_last_crash(pid, left) for pid in lost])
    findings.add(CRASHED, "logs", [crash.shown for crash in left])


@dataclass(frozen=True, slots=True)
class Inquest:
    """Each question: whether the lab did it. ``short``: processes that Ray killed for want of memory."""

    chronicle: Chronicle
    short: set[int]
    poison: bool

    def exit(self, end: Exit) -> bool:
        """A driver gives up by its own sentences on what the lab has fail while it starts."""
        if end.code != 1 or not end.words.startswith(SENTENCE):
            return False
        return all(
            self._unreachable(sentence, end.began, end.ended)
            for sentence in end.words.removeprefix(SENTENCE).splitlines()
        )

    def dead(self, pid: int) -> bool:
        """A process that was killed, by the lab or by what it made of the machine."""
        return pid in self.chronicle.killed or pid in self.short

    def crash(self, crash: Crash) -> bool:
        """Ray's noise; words about a process that was killed; our sentence on what the lab has fail."""
        if any(fnmatch.fnmatch(crash.file, noise.file) and re.search(noise.text, crash.text) for noise in NOISE):
            return True
        if _DEAD.search(crash.said) and crash.named:
            return any(map(self.dead, crash.named)) or (self.poison and ENCODER in crash.text)
        return self.gave_up(crash)

    def gave_up(self, crash: Crash) -> bool:
        """An exception of ours, on what the lab has fail: a replica that starts then is replaced."""
        return (
            crash.at is not None
            and bool(_OURS.search(crash.said))
            and self._unreachable(crash.said, crash.at - LATE_S, crash.at)
        )

    def _unreachable(self, sentence: str, since: float, until: float) -> bool:
        return any(
            words.search(sentence) and self.chronicle.failed(what, since, until) for what, words in _UNREACHABLE.items()
        )


def _told(end: Exit) -> str:
    return f"exit {end.code}: {without_text(end.words)[:300]}"


def _last_crash(pid: int, crashed: Iterable[Crash]) -> str:
    """What the lost process logged last of what broke."""
    said = [crash.shown for crash in crashed if crash.pid == pid]
    return f"pid {pid}, {said[-1] if said else 'which logged nothing of it'}"
