"""Outlets: what each output makes of an outcome, and whether it can take it.

Comes in: settled records. Goes out: messages for topics, rows for files, and the outcomes as they turn out: what one output
cannot take is a dead letter for all. Never here: a broker, a store, or the ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from workers.codecs.base import Renderer, RowRenderer, WholeRenderer, WholeRowRenderer
from workers.codecs.dead_letter import render_dead_letter
from workers.codecs.tombstone import render_tombstone
from workers.encoder.quantize import Projection
from workers.errors import PoisonError, RetryableError
from workers.offsets import Prefix
from workers.projecting import project, required, type_projected, type_vectors_of_row
from workers.records import (
    Chunked,
    DeadLetter,
    Embedding,
    Message,
    Outcome,
    Record,
    Settled,
    Tombstone,
    Unchanged,
    embeddings_of,
)
from workers.sinks.files import FileOutput
from workers.standing import gone_keys, if_it_changes, remember, type_gone
from workers.state import Change, Entry, Known

T = TypeVar("T")
# Outcomes that are written as they are.
_GOOD = (Embedding, Chunked, Tombstone)

# Refused for what did not travel because it did not change: the vector that is there was made of it, and lacks at most what
# other fields of the text have become.
OLDER_STAYS = ("unavailable_value",)

# Refused for what does not lie in the record alone: read again, it may end in another way than the first time.
CIRCUMSTANTIAL = frozenset({"encoder_died", "encoder_timeout", "encoder_raised", "unknown_schema"})


class RowOutlet(Protocol):
    """One output of rows: what is made of the vector, and how it is written down."""

    @property
    def name(self) -> str:
        """The output's name."""

    @property
    def projection(self) -> Projection:
        """What is made of the vector."""

    @property
    def renderer(self) -> RowRenderer:
        """How it is written down."""

    @property
    def whole(self) -> WholeRowRenderer | None:
        """What writes all chunks of a record as one row; None: each of them is a row."""


@dataclass(frozen=True, slots=True)
class FileOutlet:
    """One output of files: what is made of the vector, how it is written down, and who gathers the rows."""

    projection: Projection
    renderer: RowRenderer
    output: FileOutput
    whole: WholeRowRenderer | None = None

    @property
    def name(self) -> str:
        """The output's name."""
        return self.output.name


@dataclass(frozen=True, slots=True)
class Outlet:
    """One output to a topic: what is made of the vector, and how the result is written down.

    ``whole``: writes all chunks of a record as one; None: each of them is a record.
    """

    name: str
    topic: str
    projection: Projection
    renderer: Renderer
    whole: WholeRenderer | None = None


@dataclass(frozen=True, slots=True)
class DeadLetterOutlet:
    """Where refused records go; ``tombstone``: their older vectors are deleted from the outputs."""

    topic: str
    fingerprint: str
    tombstone: bool

    @property
    def name(self) -> str:
        """What it is called in positions."""
        return f"kafka:{self.topic}"


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prefix with its last outcomes, the rows of each output of files, with the source's offsets, and changes of the state."""

    prefix: Prefix
    rows: tuple[list[tuple[int, object]], ...]
    changes: Sequence[Change] = ()

    def below(self, offset: int) -> list[list[object]]:
        """The rows of each output whose source offsets are below ``offset``."""
        return [[row for at, row in rows if at < offset] for rows in self.rows]


class Outlets:
    """All outputs of a pipeline, and its dead letters."""

    def __init__(
        self,
        topics: Sequence[Outlet],
        files: Sequence[RowOutlet],
        dead_letters: DeadLetterOutlet,
        refuses: Callable[[Message], str | None],
        takes_compressed: Callable[[Message], bool] = lambda _: False,
        known: Known | None = None,
    ) -> None:
        """``refuses``, ``takes_compressed``: what topics take, as :class:`workers.sinks.base.Sink` says; ``known``: the state."""
        self._topics = topics
        self._files = files
        self._dead_letters = dead_letters
        self._refuses = refuses
        self._takes_compressed = takes_compressed
        self._known = known

    def render(self, prefixes: Sequence[Prefix]) -> tuple[list[Rendered], list[Message]]:
        """What is written of prefixes: rows by prefix, and the messages of all.

        Raises:
            RetryableError: a dead letter does not fit into its topic.
        """
        messages: list[Message] = []
        rendered: list[Rendered] = []
        for prefix in prefixes:
            vectors = project(prefix, (*self._topics, *self._files))
            settled: list[Settled] = []
            rows: tuple[list[tuple[int, object]], ...] = tuple([] for _ in self._files)
            view = None if self._known is None else self._known.view(prefix.topic_partition, prefix.epoch)
            for number, given in enumerate(prefix.settled):
                before = None if view is None else view.before(given.record)
                entry = given if view is None else if_it_changes(given, view, before)
                outcome, out, made = self._render_one(entry, number, vectors, prefix, before)
                if view is not None:
                    refused = isinstance(outcome, DeadLetter) and self._deletes_older(entry.record, outcome.reason)
                    remember(view, entry.record, outcome, deletes=refused)
                messages += [_placed(message, entry.record) for message in out]
                for column, of_record in zip(rows, made, strict=False):
                    column += [(entry.record.origin.offset, row) for row in of_record]
                settled.append(entry if outcome is entry.outcome else Settled(entry.record, outcome))
            changes = () if view is None else view.changes
            rendered.append(Rendered(replace(prefix, settled=tuple(settled)), rows, changes))
        return rendered, messages

    def new_of(self, already: Mapping[str, int], settled: Sequence[Settled]) -> list[Settled]:
        """Those that no earlier commit held; the others were read again for an output of files alone.

        The dead-letter topic's position in ``already`` moves with every commit, whatever other outputs there are.
        """
        done = already.get(self._dead_letters.name, 0)
        return [entry for entry in settled if entry.record.origin.offset >= done or _circumstantial(entry.outcome)]

    def _render_one(
        self, entry: Settled, number: int, vectors: type_projected, prefix: Prefix, before: Entry | None
    ) -> tuple[Outcome, list[Message], list[list[object]]]:
        """The outcome as it turns out, the messages of the topics, and the rows of each output of files, or none for all.

        ``before``: what stands under the record's key, where that is known.
        """
        record = entry.record
        outcome = entry.outcome
        offset = record.origin.offset
        if isinstance(outcome, Unchanged):
            return outcome, [], []
        if isinstance(outcome, _GOOD):
            try:
                # Outputs that have it already are asked too: what one of them refused then is refused again, for all.
                gone = gone_keys(record, outcome, before)
                every = [
                    self._messages(outlet, entry, vectors[outlet.name].get(number), gone) for outlet in self._topics
                ]
                rows = [self._rows(outlet, entry, vectors[outlet.name].get(number), gone) for outlet in self._files]
                return outcome, [one for of_topic in self._wanted(every, offset, prefix) for one in of_topic], rows
            except PoisonError as error:
                outcome = DeadLetter(error.stage, error.reason, error.message)
        out = []
        # Read again for files alone, it may have been embedded the first time, and would now be missing there without a word.
        if offset >= prefix.already.get(self._dead_letters.name, 0) or _circumstantial(outcome):
            dead = render_dead_letter(record, outcome, self._dead_letters.topic, self._dead_letters.fingerprint)
            if (reason := self._refuses(dead)) is not None and not (
                reason == "too_large" and self._takes_compressed(dead)
            ):
                mend = "raise its max.message.bytes" if reason == "too_large" else "set its cleanup.policy to delete"
                raise RetryableError(
                    f"the dead letter of {record.origin} does not fit into topic {dead.topic} ({reason}, {dead.size} bytes): "
                    f"{mend}; until then this reader commits nothing"
                )
            out.append(dead)
        if self._deletes_older(record, outcome.reason):
            gone = gone_keys(record, outcome, before)
            for outlet in self._wanted(self._topics, offset, prefix):
                out += self._deletes(record, outlet, gone)
            return outcome, out, [_deletions(record, outlet, gone) for outlet in self._files]
        return outcome, out, []

    def _deletes_older(self, record: Record, reason: str) -> bool:
        """Whether what stands under a refused record's key goes."""
        return self._dead_letters.tombstone and record.key is not None and reason not in OLDER_STAYS

    def _wanted(self, of_topics: Sequence[T], offset: int, prefix: Prefix) -> list[T]:
        """What belongs to the topics, one each, without those that have this offset from an earlier run."""
        already = prefix.already
        return [
            one
            for outlet, one in zip(self._topics, of_topics, strict=True)
            if not already or offset >= already.get(outlet.name, 0)
        ]

    def _deletes(self, record: Record, outlet: Outlet, gone: type_gone) -> list[Message]:
        """Tombstones for keys, without the record's headers where they do not fit.

        An output that does not take a key alone has never had a vector under it. Chunks are where their record's partition is.
        """
        if not (keys := gone[outlet.whole is not None]):
            return []
        whole = [
            replace(
                render_tombstone(replace(record, key=key), outlet.topic),
                partition=None if key == record.key else record.origin.partition,
            )
            for key in keys
        ]
        fitting = [one if self._refuses(one) is None else replace(one, headers=()) for one in whole]
        return [one for one in fitting if self._refuses(one) is None]

    def _rows(
        self, outlet: RowOutlet, entry: Settled, projected: type_vectors_of_row | None, gone: type_gone
    ) -> list[object]:
        record = entry.record
        vectors = [required(vector, outlet.projection) for vector in projected or ()]
        if isinstance(entry.outcome, Chunked) and outlet.whole is not None:
            return [outlet.whole.whole_row(record, entry.outcome.parts, vectors)]
        embeddings = zip(embeddings_of(entry.outcome), vectors, strict=True)
        rows = [outlet.renderer.row(record, embedding, *vector) for embedding, vector in embeddings]
        return rows + _deletions(record, outlet, gone)

    def _messages(
        self, outlet: Outlet, entry: Settled, projected: type_vectors_of_row | None, gone: type_gone
    ) -> list[Message]:
        record = entry.record
        if isinstance(entry.outcome, Tombstone) and gone[outlet.whole is not None] == [record.key]:
            deletion = render_tombstone(record, outlet.topic)
            # A delete goes through without its headers where they do not fit.
            return [deletion if self._refuses(deletion) is None else self._checked(replace(deletion, headers=()))]
        vectors = [required(vector, outlet.projection) for vector in projected or ()]
        if isinstance(entry.outcome, Chunked) and outlet.whole is not None:
            return [self._checked(outlet.whole.render_whole(record, entry.outcome.parts, vectors))]
        messages = []
        for embedding, vector in zip(embeddings_of(entry.outcome), vectors, strict=True):
            message = outlet.renderer.render(record, embedding, *vector)
            messages.append(self._checked(message if embedding.chunk is None else _together(message, record)))
        return messages + self._deletes(record, outlet, gone)

    def _checked(self, message: Message) -> Message:
        reason = self._refuses(message)
        if reason == "too_large":
            raise PoisonError(
                "output", reason, f"the output record has {message.size} bytes, more than topic {message.topic} takes"
            )
        if reason is not None:
            raise PoisonError(
                "output", reason, f"topic {message.topic} is compacted, and takes no record without a key"
            )
        return message


def _circumstantial(outcome: Outcome) -> bool:
    return isinstance(outcome, DeadLetter) and outcome.reason in CIRCUMSTANTIAL


def _deletions(record: Record, outlet: RowOutlet, gone: type_gone) -> list[object]:
    """Rows that say of keys that they are gone."""
    return [outlet.renderer.deletion(replace(record, key=key)) for key in gone[outlet.whole is not None]]


def _placed(message: Message, record: Record) -> Message:
    """A record without a key stays with its source partition's number, so that its order is kept."""
    return message if message.key is not None else _together(message, record)


def _together(message: Message, record: Record) -> Message:
    """In the partition that has the source partition's number."""
    return replace(message, partition=record.origin.partition)
