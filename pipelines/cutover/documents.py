"""What two outputs hold of the same documents, held side by side. Pure.

Comes in: what each output says of its vectors, but for the vectors. Goes out: which documents the newer output lacks, has of
another model, or has in an older version. Never here: where outputs lie.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from workers.errors import EnvironmentFault

# Each costs about 550 bytes in each of the two outputs.
MOST = 5_000_000
_EXAMPLES = 5


class Version(NamedTuple):
    """Which record of the source a vector was made of: where that lay (``offset`` -1: not known), and when it was (ms; -1: not).

    ``appended``: the time is the vector's own, when the broker appended it, and says nothing of the record but that it is older.
    """

    topic: str = ""
    partition: int = 0
    offset: int = -1
    timestamp_ms: int = -1
    appended: bool = False

    def __str__(self) -> str:
        if self.offset >= 0:
            return f"{self.topic}/{self.partition}/{self.offset}"
        return "a record that nothing says more of" if self.timestamp_ms < 0 else f"a record of {self.timestamp_ms} ms"


class Mark(NamedTuple):
    """A vector without its numbers; ``fingerprint`` None: the deletion of what had its ``key``.

    ``document``: its id, of a chunk without the number. ``vectors``: how many its document has. ``chunk``: its number among them,
    which its key ends with; None: it is of a whole document.
    """

    key: bytes | str
    document: str
    fingerprint: str | None
    version: Version
    vectors: int = 1
    chunk: int | None = None

    @property
    def siblings(self) -> bytes | str:
        """What the keys of all of its document's chunks begin with."""
        end = "" if self.chunk is None else f"#{self.chunk}"
        return self.key.removesuffix(end) if isinstance(self.key, str) else self.key.removesuffix(end.encode())


def later(one: Version, other: Version) -> int | None:
    """Above 0 where ``one`` was written after ``other``, 0 where they are the same; None where nothing says it.

    Offsets of one partition say it, else timestamps do, as far as they go.
    """
    if min(one.offset, other.offset) >= 0 and one[:2] == other[:2]:
        return one.offset - other.offset
    if min(one.timestamp_ms, other.timestamp_ms) >= 0 and not (one.appended or other.appended):
        return one.timestamp_ms - other.timestamp_ms
    return None


@dataclass(slots=True)
class Document:
    """What an output holds of a document: ``vectors`` that stand, of ``count``; none: it was deleted.

    ``older``: chunks of an older record, which stand beside them and are not counted.
    """

    version: Version
    fingerprints: frozenset[str] = frozenset()
    vectors: int = 0
    count: int = 0
    older: int = 0

    @property
    def live(self) -> bool:
        """Whether it has a vector."""
        return self.vectors > 0


class Held:
    """What an output holds; of a key the latest mark counts."""

    def __init__(self, *, by_offset: bool) -> None:
        """``by_offset``: of two from one partition the later is the one of the greater offset; else the one that is added later."""
        self._by_offset = by_offset
        self._latest: dict[bytes | str, Mark] = {}

    def add(self, marks: Iterable[Mark]) -> None:
        """Take some more.

        Raises:
            EnvironmentFault: there are too many to be held.
        """
        for mark in marks:
            before = self._latest.get(mark.key)
            if before is not None and self._by_offset and _behind(mark.version, before.version):
                continue
            if before is not None and mark.fingerprint is None:
                # A deletion knows the key alone; whose it was, who came before it has said.
                self._latest[mark.key] = mark._replace(document=before.document)
            else:
                self._latest[mark.key] = mark
        if len(self._latest) > MOST:
            raise EnvironmentFault(
                f"more than {MOST:,} keys lie there, which is more than are held against each other here"
            )

    def documents(self) -> dict[str, Document]:
        """By their ids."""
        latest = self._latest_of_siblings()
        found: dict[str, Document] = {}
        same: dict[frozenset[str], frozenset[str]] = {}  # nearly all documents have one and the same
        for mark in self._latest.values():
            one = found.setdefault(mark.document, Document(mark.version))
            if mark.fingerprint is None:
                if not one.live and (later(mark.version, one.version) or 0) > 0:
                    one.version = mark.version
                continue
            joined = one.fingerprints | {mark.fingerprint}
            one.fingerprints = same.setdefault(joined, joined)
            if mark.chunk is not None and _apart(mark, latest[mark.siblings]):
                one.older += 1
                continue
            if not one.live or (later(mark.version, one.version) or 0) > 0:
                one.version, one.count = mark.version, mark.vectors
            one.vectors += 1
        return found

    def _latest_of_siblings(self) -> dict[bytes | str, Mark]:
        """Of those chunks that stand under one key but for their numbers, one of the latest record."""
        found: dict[bytes | str, Mark] = {}
        for mark in self._latest.values():
            if mark.fingerprint is not None and mark.chunk is not None:
                before = found.setdefault(mark.siblings, mark)
                if (later(mark.version, before.version) or 0) > 0:
                    found[mark.siblings] = mark
        return found


def _apart(one: Mark, other: Mark) -> bool:
    """Whether two chunks under one key are of two records, as far as anything says it."""
    if one.vectors != other.vectors:
        return True
    if min(one.version.offset, other.version.offset) >= 0:
        return one.version[:3] != other.version[:3]
    return later(one.version, other.version) not in (None, 0)


def _behind(one: Version, other: Version) -> bool:
    return min(one.offset, other.offset) >= 0 and one[:2] == other[:2] and one.offset < other.offset


@dataclass
class Case:
    """One way to fail: how many documents do, and the first few, by id with the version that the old output has (or the new)."""

    count: int = 0
    examples: list[tuple[str, Version]] = field(default_factory=list)

    def note(self, document: str, version: Version) -> None:
        """One more."""
        self.count += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append((document, version))


@dataclass
class Verdict:
    """What holds of a new output beside the old one.

    ``old``, ``new``: documents that have vectors there. ``missing``: they have none in the new output, or too few of a text in
    chunks. ``foreign``: vectors of another fingerprint. ``stale``: made of an older record, be it a chunk beside newer ones, or
    deleted in the old one since. ``more``: in the new one alone. Not held against it: ``ahead``, what the new output knows
    already, and ``recent``, what is younger than was asked for. ``judged``: those of ``old`` that are not. ``untold``: nothing says
    which version one of the two has.
    """

    old: int = 0
    new: int = 0
    judged: int = 0
    missing: Case = field(default_factory=Case)
    foreign: Case = field(default_factory=Case)
    stale: Case = field(default_factory=Case)
    more: Case = field(default_factory=Case)
    ahead: int = 0
    recent: int = 0
    untold: int = 0

    @property
    def cases(self) -> dict[str, Case]:
        """What must not be, by name."""
        return {"missing": self.missing, "foreign": self.foreign, "stale": self.stale, "more": self.more}

    @property
    def ready(self) -> bool:
        """Whether the new output may take the old one's place. Where nothing of the old one was judged, nothing is known."""
        return self.judged > 0 and not any(case.count for case in self.cases.values())


def compare(old: Held, new: Held, fingerprint: str, until_ms: int | None = None) -> Verdict:
    """Hold the new output against the old one.

    Args:
        old: whose documents are the truth.
        new: what should have all of them.
        fingerprint: of each vector in the new one.
        until_ms: documents whose latest record is later (Unix, ms) are left out; None: all count.
    """
    verdict = Verdict()
    before, now = old.documents(), new.documents()
    verdict.old, verdict.new = (sum(one.live for one in found.values()) for found in (before, now))
    for name, one, other in _pairs(before, now):
        latest = max(each.version.timestamp_ms for each in (one, other) if each is not None)
        if until_ms is not None and latest > until_ms:
            verdict.recent += 1
            continue
        verdict.judged += one is not None and one.live
        _judge(verdict, name, one, other)
        if other is not None and other.live and other.fingerprints != {fingerprint}:
            verdict.foreign.note(name, other.version)
    return verdict


def _pairs(
    before: dict[str, Document], now: dict[str, Document]
) -> Iterator[tuple[str, Document | None, Document | None]]:
    for name, one in before.items():
        yield name, one, now.get(name)
    for name, other in now.items():
        if name not in before:
            yield name, None, other


def _judge(verdict: Verdict, name: str, old: Document | None, new: Document | None) -> None:
    """Which of the two has what the other lacks."""
    if old is None:
        if new is not None and new.live:
            verdict.more.note(name, new.version)
        return
    if new is None:
        if old.live:
            verdict.missing.note(name, old.version)
        return
    order = later(new.version, old.version)
    verdict.untold += order is None
    ahead = order is not None and order > 0
    verdict.ahead += ahead
    stale = (order is not None and order < 0) or (new.live and not old.live and not ahead)
    if stale or new.older:
        verdict.stale.note(name, old.version)
    if not stale and (new.vectors < new.count or (old.live and not new.live and not ahead)):
        verdict.missing.note(name, old.version)
