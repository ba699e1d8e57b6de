"""What a run's logs say of processes that broke: every traceback, every error of ours, every crash of Ray's own.

Comes in: a pipeline's log, and the folders of its Ray's sessions. Goes out: crashes, the readers there were, and what Ray
killed for want of memory. Never here: whether somebody did that to them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.lab.documents import without_text

TRACEBACK = "Traceback (most recent call last)"
_BROKEN = re.compile(
    re.escape(TRACEBACK)
    + r"|\b(?:ERROR|CRITICAL) stream_embedder\.|Fatal Python error|\*\*\* SIG(?!TERM|INT)\w+ received|Check failed:"
    r"|panicked at |was never retrieved|Segmentation fault|terminate called|^Exception ignored in"
)
_ELSEWHERE = re.compile(r"^(?:\x1b\[\d+m)?ray::\S+\(\)")
# What Ray's driver repeats of another process's log, which lies in the session.
_REPEATED = re.compile(r"^(?:\x1b\[\d+m)?\((?:[^)]* )?(?:pid=\d+|raylet|autoscaler|gcs_server)\b[^)]*\)")
_CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
_FRAME = re.compile(r'^\s+(?:\|\s+)?File "(?P<file>[^"]+)", line (?P<line>\d+)')
_AT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")
_PID = re.compile(r"[-_](\d+)\.(?:err|out|log)$")
_NAMED = re.compile(r"\bpid[:=] ?(\d+)")
# Words of Ray's node process.
_STARTED = re.compile(r"Started worker process with pid (\d+) worker_id=(\w+)")
_ENDED = re.compile(r"Disconnecting worker, .*worker_id=(\w+)")
_DRIVER_GONE = "Disconnecting driver"
_FOR_MEMORY = re.compile(r"(?:Selected to kill: .*?\bpid=|killing idle worker with PID )(\d+)")
_UNFINISHED = "was found alive but never finished its initial setup"
_BY_CONTROLLER = "killed by `ray.kill`"
_AT_ONCE_S = 5.0
_ABOUT = 14  # lines that follow an exception, and are its message's
_LONGEST = 300


@dataclass(frozen=True, slots=True)
class Crash:
    """A place in a log. ``at``: seconds since the epoch, None if nothing near it says when; ``text``: all of it, unsafe."""

    file: str
    line: int
    pid: int | None
    at: float | None
    text: str

    @property
    def said(self) -> str:
        """The exception and its message, or the line itself: the last that is not of a stack."""
        lines = self.text.splitlines()
        if TRACEBACK not in self.text:
            return lines[-1].strip()
        return next((line.strip() for line in reversed(lines) if re.match(r"[\w.]+(?::|$)", line)), lines[-1].strip())

    @property
    def named(self) -> set[int]:
        """Process ids that are spoken of."""
        return {int(pid) for pid in _NAMED.findall(self.text)}

    @property
    def pids(self) -> set[int]:
        """Those, and whose log it is."""
        return self.named | ({self.pid} if self.pid is not None else set())

    @property
    def shown(self) -> str:
        """For a report: where, in which function's file, and what; no piece of a record's text."""
        frames = [match for match in map(_FRAME.match, self.text.splitlines()) if match]
        own = [frame for frame in frames if "site-packages" not in frame["file"]] or frames
        where = f" at {'/'.join(Path(own[-1]['file']).parts[-2:])}:{own[-1]['line']}" if own else ""
        file = re.sub(r"-[0-9a-f]{20,}", "", self.file)
        return f"{file}:{self.line}{where}: {without_text(self.said)[:_LONGEST]}"


def crashes(file: Path, name: str, end: int | None = None, *, driver: bool = False) -> list[Crash]:
    """Crashes in a file, of whose bytes those up to ``end`` count; ``name`` is what the file is called in them."""
    with file.open("rb") as opened:
        lines = opened.read(-1 if end is None else end).decode(errors="replace").splitlines()
    if driver:
        lines = ["" if _REPEATED.match(line) else line for line in lines]
    found = []
    of_file = _PID.search(file.name)
    pid = int(of_file[1]) if of_file else None
    number, at = 0, None
    while number < len(lines):
        line = lines[number]
        at = _time(line) or at
        if not _BROKEN.search(line):
            number += 1
            continue
        first, number = number, _end_of(lines, number)
        # The line before a traceback is what was being said.
        head = first - 1 if TRACEBACK in line and first and _AT.search(lines[first - 1]) else first
        found.append(Crash(name, first + 1, pid, at, "\n".join(lines[head:number])))
    return found


def _end_of(lines: list[str], start: int) -> int:
    """After the last line of what begins at ``start``: exceptions of one chain are one crash."""
    if not _begins(lines[start]):
        following = start + 1
        return _end_of(lines, following) if following < len(lines) and TRACEBACK in lines[following] else following
    number = start + 1
    while number < len(lines) and (lines[number][:1] in (" ", "") and lines[number].strip()):
        number += 1
    number += 1  # the exception
    message = number
    while number < len(lines) and number - message < _ABOUT and not _AT.search(lines[number]):
        if any(lines[number].startswith(words) for words in _CHAINED):
            following = next((n for n in range(number, min(number + 3, len(lines))) if _begins(lines[n])), None)
            return number + 1 if following is None else _end_of(lines, following)
        if TRACEBACK in lines[number]:
            # Of an exception whose message is a traceback, as Serve makes it; else it is another's.
            return number if lines[number].startswith(TRACEBACK) else _end_of(lines, number)
        number += 1
    return min(number, len(lines))


def _begins(line: str) -> bool:
    """Whether a stack stands below it: Ray writes the place of one that came from another process in its own words."""
    return TRACEBACK in line or bool(_ELSEWHERE.search(line))


def _time(line: str) -> float | None:
    match = _AT.search(line[:60])
    return None if match is None else time.mktime(time.strptime(match[0], "%Y-%m-%d %H:%M:%S"))


class Session:
    """One start of Ray: its logs, up to where the lab ended it."""

    def __init__(self, folder: Path, ends: Mapping[Path, int]) -> None:
        """``folder``: of the session; ``ends``: bytes of files that were written before the lab ended their processes."""
        self.folder = folder
        self._ends = ends

    def crashes(self) -> list[Crash]:
        """All of them, those of one process once where several of its files have them."""
        found: dict[tuple[int | None, str], Crash] = {}
        for file in sorted((self.folder / "logs").rglob("*")):
            if file.suffix in (".log", ".err", ".out") and file.is_file():
                for crash in crashes(file, str(file.relative_to(self.folder / "logs")), self._ends.get(file)):
                    found.setdefault((crash.pid, crash.text), crash)
        return list(found.values())

    def actors(self, title: str) -> set[int]:
        """Process ids of all that ever were a ``title``, such as a reader."""
        found = set()
        for file in (self.folder / "logs").glob("worker-*.out"):
            if f":actor_name:{title}" in file.read_text(errors="replace"):
                found |= {int(match[1]) for match in [_PID.search(file.name)] if match}
        return found

    def ended(self) -> set[int]:
        """Process ids of workers that ended while their driver was there."""
        started: dict[str, int] = {}
        found = set()
        for line in self._raylet():
            if match := _STARTED.search(line):
                started[match[2]] = int(match[1])
            elif _DRIVER_GONE in line:
                break  # its workers end with it
            elif (match := _ENDED.search(line)) and match[1] in started:
                found.add(started[match[1]])
        return found

    def unfinished(self) -> set[int]:
        """Process ids of actors that a new controller ended, since its predecessor had not finished with them."""
        times = [
            at
            for file in self.folder.glob("logs/serve/controller_*.log")
            for line in file.read_text(errors="replace").splitlines()
            if _UNFINISHED in line and (at := _time(line)) is not None
        ]
        found = set()
        for file in self.folder.glob("logs/python-core-worker-*.log") if times else ():
            ends = [_time(line) for line in file.read_text(errors="replace").splitlines() if _BY_CONTROLLER in line]
            if any(0 <= end - at <= _AT_ONCE_S for end in ends if end is not None for at in times):
                found |= {int(match[1]) for match in [_PID.search(file.name)] if match}
        return found

    def short_of_memory(self) -> set[int]:
        """Process ids of the workers that Ray killed for want of memory."""
        return {int(pid) for line in self._raylet() for pid in _FOR_MEMORY.findall(line)}

    def _raylet(self) -> list[str]:
        file = self.folder / "logs" / "raylet.out"
        if not file.exists():
            return []
        with file.open("rb") as opened:
            return opened.read(self._ends.get(file, -1)).decode(errors="replace").splitlines()
