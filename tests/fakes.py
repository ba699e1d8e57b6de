"""Doubles for the seams: a source, a sink, a tokenizer and an encoder that do what a test has scripted.

A source's script is a list of records and of moments: ``Rebalance`` takes partitions away (and may give them back),
``Crash`` raises in the poll thread, ``Pause`` waits for the test. Never here: Kafka, Ray, or a model.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from workers.codecs.base import Decoder
from workers.errors import CommitError, RetryableError
from workers.records import Batch, Document, Message, Origin, Position, Record, Tokens, TopicPartition, type_vectors
from workers.sources.base import SourceListener

TOPIC = "documents"
DIM = 8


def record(
    offset: int,
    value: bytes | None = b"text",
    *,
    partition: int = 0,
    key: bytes | None = b"key",
    epoch: int = 1,
    topic: str = TOPIC,
) -> Record:
    """A source record; the fakes set its epoch themselves."""
    return Record(Origin(topic, partition, offset, epoch), key, value, 1_700_000_000_000 + offset)


# ---- the source


@dataclass(frozen=True, slots=True)
class Rebalance:
    """Take ``partitions`` away; those in ``back`` return at once, under a new epoch, at what is committed."""

    partitions: Sequence[TopicPartition]
    back: bool = False
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Crash:
    """Raise ``error`` in the poll thread."""

    error: BaseException


@dataclass(slots=True)
class Pause:
    """Wait until the test sets ``go``; ``reached`` tells it that everything before was handed over."""

    reached: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)


type_step = Record | Rebalance | Crash | Pause


class Group:
    """What the broker knows of a consumer group: the committed positions, shared by a source and a sink."""

    def __init__(self) -> None:
        self.positions: dict[TopicPartition, Position] = {}


class FakeSource:
    """Plays a script of ``steps``, then idles. Records of a partition that is not assigned are assigned first.

    A partition that is taken away and comes ``back`` is read again from what is committed, as Kafka would.
    """

    def __init__(self, group: Group, steps: Iterable[type_step] = (), poll_s: float = 0.002) -> None:
        self._group = group
        self._steps = list(steps)
        self._poll_s = poll_s
        self._quiet = threading.Event()
        self._stop = threading.Event()
        self._epoch = 0
        self._logs: dict[TopicPartition, list[Record]] = {}
        self.epochs: dict[TopicPartition, int] = {}
        self.stable = True
        self.left = False
        self.full_polls = 0
        self.handed_over = threading.Event()
        self.silent_coordinator = 0
        self.begun_anew: list[TopicPartition] = []
        self.last_poll = time.monotonic()

    def run(self, listener: SourceListener) -> None:
        try:
            for step in self._steps:
                while self._quiet.is_set() or not listener.room():
                    self.full_polls += 1
                    if self._stop.wait(self._poll_s):
                        return
                if self._stop.is_set():
                    return
                self.last_poll = time.monotonic()
                self._play(step, listener)
            self.handed_over.set()
            while not self._stop.wait(self._poll_s):
                self.last_poll = time.monotonic()
        finally:
            self.left = True

    def _play(self, step: type_step, listener: SourceListener) -> None:
        match step:
            case Record():
                partition = step.origin.topic_partition
                if partition not in self.epochs:
                    self._assign(partition, listener)
                self._logs.setdefault(partition, []).append(step)
                self._hand_over(step, listener)
            case Rebalance(partitions=partitions, back=back, lost=lost):
                for partition in partitions:
                    self.epochs.pop(partition, None)
                if not lost:
                    listener.parting(partitions)
                listener.revoked(partitions, lost=lost)
                for partition in partitions if back else ():
                    start = self._assign(partition, listener)
                    for again in self._logs.get(partition, []):
                        if again.origin.offset >= start:
                            self._hand_over(again, listener)
            case Crash(error=error):
                raise error
            case Pause(reached=reached, go=go):
                reached.set()
                while not go.wait(self._poll_s) and not self._stop.is_set():
                    self.last_poll = time.monotonic()

    def _assign(self, partition: TopicPartition, listener: SourceListener) -> int:
        self._epoch += 1
        self.epochs[partition] = self._epoch
        committed = self._group.positions.get(partition, Position(0))
        while (position := listener.place(partition, self._epoch, committed)) is None and not self._stop.is_set():
            time.sleep(self._poll_s)
        if position is not None:
            listener.assigned(partition, self._epoch, position)
        return (position or committed).offset

    def _hand_over(self, step: Record, listener: SourceListener) -> None:
        epoch = self.epochs[step.origin.topic_partition]
        listener.received([replace(step, origin=replace(step.origin, epoch=epoch))])

    def quiesce(self) -> None:
        self._quiet.set()

    def stop(self) -> None:
        self._stop.set()

    def membership(self, timeout_s: float) -> object:
        if not self.stable:
            raise CommitError("not a stable member")
        return "generation"

    def committed(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, Position]:
        if self.silent_coordinator > 0:
            self.silent_coordinator -= 1
            raise RetryableError("the coordinator does not answer")
        return {p: self._group.positions[p] for p in partitions if p in self._group.positions}

    def begin_anew(self, partitions: Iterable[TopicPartition]) -> None:
        self.begun_anew += partitions

    def commit(self, positions: Mapping[TopicPartition, Position]) -> None:
        self._group.positions.update(positions)


# ---- the sink


class FakeSink:
    """Holds what is committed, and fails as scripted: one word per call of ``open``, ``write`` or ``commit``.

    ``writes``: ``ok`` or ``fail``. ``commits``: ``ok``, ``fail`` (it did not happen), ``happened`` (it did, and nobody heard).
    ``opens``: ``ok`` or ``fail``. When a script has run out, its last word holds. The protocol is checked: after an
    exception comes ``abandon``, and nothing else.
    """

    def __init__(
        self,
        group: Group,
        *,
        opens: Sequence[str] = ("ok",),
        writes: Sequence[str] = ("ok",),
        commits: Sequence[str] = ("ok",),
        max_bytes: Mapping[str, int] | None = None,
        keyed: Iterable[str] = (),
        squeezing: Iterable[str] = (),
    ) -> None:
        self._group = group
        self._scripts = {"open": list(opens), "write": list(writes), "commit": list(commits)}
        self._max_bytes = dict(max_bytes or {})
        self._keyed = set(keyed)
        self._squeezing = set(squeezing)
        self._pending: list[Message] = []
        self._broken = False
        self._opened = False
        self.calls: list[str] = []
        self.transactions: list[tuple[list[Message], dict[TopicPartition, Position]]] = []
        self.memberships: list[object] = []
        self.on_commit: Callable[[], None] = lambda: None

    @property
    def committed(self) -> list[Message]:
        """What a read_committed reader sees, in order."""
        return [message for messages, _ in self.transactions for message in messages]

    def _next(self, call: str) -> str:
        assert not self._broken, f"{call} after an exception; abandon() must come first"
        self.calls.append(call)
        script = self._scripts[call]
        word = script.pop(0) if len(script) > 1 else script[0]
        self._broken = word != "ok"
        return word

    def script(self, call: str, *words: str) -> None:
        """Replace what is left of a script."""
        self._scripts[call] = list(words)

    def open(self) -> None:
        assert not self._opened, "opened twice: the first producer would live on"
        if self._next("open") == "fail":
            raise RetryableError("no producer now")
        self._opened = True
        self._pending.clear()

    def refuses(self, message: Message) -> str | None:
        if message.size > self._max_bytes.get(message.topic, 1 << 30):
            return "too_large"
        if message.topic in self._keyed and message.key is None:
            return "no_key"
        return None

    def takes_compressed(self, message: Message) -> bool:
        return message.topic in self._squeezing

    def write(self, messages: Sequence[Message]) -> None:
        assert self._opened, "write before open"
        if self._next("write") == "fail":
            raise RetryableError("a record was not acknowledged")
        self._pending = list(messages)

    def commit(self, positions: Mapping[TopicPartition, Position], membership: object) -> None:
        word = self._next("commit")
        if word != "fail":
            self.transactions.append((self._pending, dict(positions)))
            self._group.positions.update(positions)
            self.memberships.append(membership)
        self._pending = []
        self.on_commit()
        if word != "ok":
            raise CommitError(f"the commit is in doubt ({word})")

    def abandon(self) -> None:
        self.calls.append("abandon")
        self._broken = self._opened = False
        self._pending = []

    def close(self) -> None:
        self.calls.append("close")
        self._opened = False


# ---- text and model


class FakeDecoder(Decoder):
    """The value is the text; ``decode!…`` is refused, ``titled:…`` has a prompt of its own."""

    def decode(self, record: Record) -> Document:
        from workers.errors import PoisonError

        text = (record.value or b"").decode()
        if record.value is None or text.startswith("decode!"):
            raise PoisonError("decode", "invalid", "the value is not what it should be")
        if text.startswith("titled:"):
            return Document(text, text.removeprefix("titled:"), prompt="a title, ")
        return Document(text, text)


class FakeTokenizer:
    """One token per character, the prompt's first, cut at ``most``."""

    def __init__(self, most: int = 64) -> None:
        self._most = most

    def encode(self, texts: Sequence[str], prompts: Sequence[str | None]) -> list[Tokens]:
        whole = [(prompt or "") + text for prompt, text in zip(prompts, texts, strict=True)]
        return [Tokens(np.fromiter(map(ord, text[: self._most]), np.int32), len(text)) for text in whole]


class FakeChunker(FakeTokenizer):
    """Cuts at every ``most`` characters; a text of ``many!`` makes too many chunks."""

    def chunks(self, texts: Sequence[str], prompts: Sequence[str | None]) -> list[Any]:
        from workers.errors import PoisonError
        from workers.text.chunks import Piece

        found: list[Any] = []
        for text in texts:
            if text.startswith("many!"):
                found.append(PoisonError("tokenize", "too_many_chunks", "too many"))
                continue
            starts = range(0, max(1, len(text)), self._most)
            parts = [text[start : start + self._most] for start in starts]
            tokens = self.encode(parts, [None] * len(parts))
            found.append(
                [Piece(at, at + len(part), each) for at, part, each in zip(starts, parts, tokens, strict=True)]
            )
        return found


CANARY = Batch.of([np.array([ord("c")], np.int32)])


def texts_of(batch: Batch) -> list[str]:
    """The texts that FakeTokenizer made a batch of."""
    ends = np.cumsum(batch.lengths)
    return ["".join(map(chr, ids)) for ids in np.split(batch.ids, ends[:-1])]


def fake_vector(text: str, dim: int = DIM) -> type_vectors:
    """What the fake encoder makes of a text: a unit vector that no other text has."""
    seed = int.from_bytes(text.encode(), "little") % (1 << 32)
    vector = np.random.default_rng(seed).normal(size=dim)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def fake_encode(batch: Batch) -> type_vectors:
    """An encoder: NaN for a text that begins with ``nan!``; an exception when a text begins with ``raise!``."""
    texts = texts_of(batch)
    if any(text.startswith("raise!") for text in texts):
        raise RuntimeError("a kernel failed")
    rows = [np.full(DIM, np.nan, np.float32) if text.startswith("nan!") else fake_vector(text) for text in texts]
    return np.stack(rows)


class FakeRenderer:
    """The document's id is the value; ``render!…`` is refused. ``rendered`` holds each vector and scale."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self.rendered: list[tuple[np.ndarray, np.float32 | None]] = []

    def render(self, record: Record, embedding: object, vector: np.ndarray, scale: np.float32 | None = None) -> Message:
        from workers.errors import PoisonError
        from workers.records import Embedding

        assert isinstance(embedding, Embedding)
        if embedding.document.id.startswith("render!"):
            raise PoisonError("output", "unrenderable", "the format has no way to write this")
        self.rendered.append((vector, scale))
        return Message(self._topic, embedding.key(record), embedding.id.encode(), (), record.timestamp_ms)
