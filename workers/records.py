"""The values that flow: Record → Document → Tokens → Batch → Embedding, and the outcome that each record ends in.

Comes in: nothing. Goes out: values that every room may read and none may change. Never here: I/O, text processing, or tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar, dataclass_transform

import numpy as np
import numpy.typing as npt

type_ids = npt.NDArray[np.int32]
type_vectors = npt.NDArray[np.float32]
T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def frozen(of: type[T]) -> type[T]:
    """A frozen dataclass of which there is one for every record: frozen for the type checker alone.

    One that is frozen at run time takes four times as long to make, and a record's way has eight of them.
    """
    return dataclass(slots=True, unsafe_hash=True)(of)


class TopicPartition(NamedTuple):
    """One partition of one topic; the key of everything that is kept per partition."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}"


@frozen
class Origin:
    """Where a record came from.

    ``epoch`` numbers the assignments of the partition to this process: an outcome that carries an older epoch belongs to
    an ownership that has ended, and is dropped.
    """

    topic: str
    partition: int
    offset: int
    epoch: int

    @property
    def topic_partition(self) -> TopicPartition:
        """The partition, without the offset."""
        return TopicPartition(self.topic, self.partition)

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


type_headers = tuple[tuple[str, bytes | None], ...]


@frozen
class Record:
    """A source record as it was read, byte for byte. ``timestamp_ms`` is Unix time in milliseconds, -1 when unknown."""

    origin: Origin
    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    headers: type_headers = ()

    @property
    def size(self) -> int:
        """Bytes of key, value and headers: what the record costs in memory and on the wire, without overhead."""
        total = len(self.key or b"") + len(self.value or b"")
        for name, value in self.headers:
            total += len(name) + len(value or b"")
        return total


@frozen
class Document:
    """What a codec understood: an id, the text to embed (without prompt), and the fields that outputs include.

    ``prompt``: what goes before this text; None: what goes before every text. ``digest``: of all that decides what is written
    of it, where the pipeline keeps a state.
    """

    id: str
    text: str
    fields: Mapping[str, object] = field(default_factory=dict)
    prompt: str | None = None
    digest: bytes | None = None


@frozen
class Tokens:
    """One text as the model reads it: int32 ``ids`` of shape [n] with prompt and special tokens.

    ``total`` counts the tokens before truncation, so ``truncated`` is ``total > len(ids)``.
    """

    ids: type_ids
    total: int

    @property
    def truncated(self) -> bool:
        """Whether the text was cut to the model's limit."""
        return self.total > len(self.ids)


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts for one encoder call, as plain arrays: the only thing that crosses to an encoder replica.

    ``ids``: int32 [sum(lengths)], the texts' token ids one after another; ``lengths``: int32 [n]. ``trace``: the call's place in a
    trace, as W3C's ``traceparent`` says it; None: it is in none.
    """

    ids: type_ids
    lengths: type_ids
    trace: str | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """Real tokens in the batch, without padding."""
        return len(self.ids)

    @classmethod
    def of(cls, texts: Sequence[type_ids]) -> Batch:
        """Join token arrays into one batch, in their order."""
        lengths = np.fromiter((len(ids) for ids in texts), dtype=np.int32, count=len(texts))
        ids = np.concatenate(texts).astype(np.int32, copy=False) if texts else np.empty(0, np.int32)
        return cls(ids, lengths)

    def slice(self, start: int, stop: int) -> Batch:
        """The texts ``start`` to ``stop`` (exclusive) as a batch of their own; arrays are views."""
        ends = np.concatenate(([0], np.cumsum(self.lengths)))
        return Batch(self.ids[ends[start] : ends[stop]], self.lengths[start:stop], self.trace)


class Computed(NamedTuple):
    """What an encoder makes of a batch: float32 ``vectors`` [n, dim], in so many ``seconds``, without the wait for its turn."""

    vectors: type_vectors
    seconds: float


@dataclass(frozen=True, slots=True)
class Chunk:
    """One of the ``count`` parts that a text was cut into, the first with ``index`` 0.

    Its span in the document's text, in characters (code points), ``end`` exclusive.
    """

    index: int
    count: int
    start: int
    end: int


def chunk_key(key: bytes, index: int) -> bytes:
    """The key of a document's chunk: the document's own, and the chunk's number."""
    return key + b"#%d" % index


@frozen
class Embedding:
    """A record's outcome: its document and float32 ``vector`` [dim], finite and of unit length.

    ``chunk``: which part of the document's text it is of; None: of all of it.
    """

    document: Document
    vector: type_vectors
    tokens: int
    truncated: bool
    chunk: Chunk | None = None

    @property
    def id(self) -> str:
        """The document's id, of a chunk with its number."""
        return self.document.id if self.chunk is None else f"{self.document.id}#{self.chunk.index}"

    @property
    def text(self) -> str:
        """What was embedded, without the prompt."""
        return self.document.text if self.chunk is None else self.document.text[self.chunk.start : self.chunk.end]

    def key(self, record: Record) -> bytes | None:
        """What it is known by in outputs: the record's key, of a chunk with its number, of a record without one its id.

        Raises:
            UnicodeEncodeError: the id holds half of a surrogate pair.
        """
        if self.chunk is None:
            return record.key
        return chunk_key(self.document.id.encode() if record.key is None else record.key, self.chunk.index)


@dataclass(frozen=True, slots=True)
class Chunked:
    """A record's outcome: its document in chunks, all of them, each at its index."""

    parts: tuple[Embedding, ...]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record's outcome: refused.

    ``stage`` is one of decode, text, tokenize, encode, output; ``reason`` a word from a bounded set (it labels metrics);
    ``message`` a sentence of ours that never quotes the record.
    """

    stage: str
    reason: str
    message: str
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A record's outcome: a delete, passed through with its key."""


@dataclass(frozen=True, slots=True)
class Unchanged:
    """A record's outcome: its key's vector is right as it stands, and nothing is written. ``tokens``: what that saved."""

    tokens: int


Outcome = Embedding | Chunked | DeadLetter | Tombstone | Unchanged


def embeddings_of(outcome: Outcome) -> tuple[Embedding, ...]:
    """What has a vector in an outcome: the chunks of one in chunks."""
    if isinstance(outcome, Chunked):
        return outcome.parts
    return (outcome,) if isinstance(outcome, Embedding) else ()


@frozen
class Settled:
    """A record with its outcome, ready to leave."""

    record: Record
    outcome: Outcome


@frozen
class Message:
    """A record to produce. ``partition`` None: chosen by the key. A null ``value`` is a tombstone."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: type_headers
    timestamp_ms: int
    partition: int | None = None

    @property
    def size(self) -> int:
        """Upper bound of the bytes that the record takes in a batch of its own (record overhead included)."""
        total = 128 + len(self.key or b"") + len(self.value or b"") + 10 * len(self.headers)
        for name, value in self.headers:
            total += len(name) if name.isascii() else len(name.encode())
            if value:
                total += len(value)
        return total


# What begins so in a position's outputs is none: it says since which offset the state has been kept.
STATE_MARK = "state:"


@dataclass(frozen=True, slots=True)
class Position:
    """How far a partition is done: the ``offset`` to read next, and each output's own next offset by output name.

    ``topic_id``: Kafka's own, in hex, of the topic whose offsets these are: one that is made anew under its name has another.
    Empty: not known.
    """

    offset: int
    outputs: Mapping[str, int] = field(default_factory=dict)
    topic_id: str = ""

    def of(self, topic_id: str) -> bool:
        """Whether these may be offsets of the topic with this id."""
        return not self.topic_id or not topic_id or self.topic_id == topic_id

    @property
    def own(self) -> dict[str, int]:
        """The outputs alone."""
        return {name: at for name, at in self.outputs.items() if not name.startswith(STATE_MARK)}
