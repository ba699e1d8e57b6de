"""One replica of a batch job: a model on its device, and threads that read, tokenise and write around it.

Comes in: pieces, one for each thread. Goes out: what became of their rows, once their files are put. Never here: which piece
is next. A Ray actor is made of it where it is used.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from pipelines import on_cpu
from pipelines.batch.embed import PASSES_A_CALL
from pipelines.batch.encoding import LocalEncoder
from pipelines.batch.finished import PieceName, Tally
from pipelines.batch.pace import give_way
from pipelines.batch.pieces import Fields, Piece, Stores, parts_of
from pipelines.batch.rows import Part
from pipelines.batch.topic import TopicPiece, topic_parts
from pipelines.batch.work import Done, Worker
from pipelines.model import Model
from workers import log
from workers.kafka_ranges import RangeReader
from workers.settings import Settings

if TYPE_CHECKING:
    from workers.text.tokenizer import Tokenizer


class Counts(NamedTuple):
    """What a replica has done since it started: input that it ``worked`` through or found done already (``skipped``).

    Both as :attr:`pipelines.batch.pieces.Piece.weight` counts, or :attr:`pipelines.batch.topic.TopicPiece.weight`; ``busy_s``
    seconds of its encoder.
    """

    worked: float = 0.0
    skipped: float = 0.0
    busy_s: float = 0.0

    def __add__(self, other: object) -> Counts:
        assert isinstance(other, Counts)
        return Counts(*(one + two for one, two in zip(self, other, strict=True)))


class Reading(NamedTuple):
    """What a replica says that it has done until then. Of two, the greater one was taken later, whichever comes first."""

    number: int = 0
    counts: Counts = Counts()


class Loaded(NamedTuple):
    """A replica that is ready: the folders that it writes to, whose names say which vectors it makes.

    ``seconds`` is what that took.
    """

    folders: tuple[str, ...]
    seconds: float = 0.0


class Answer(NamedTuple):
    """What became of a piece, what the replica has done until then, and what of that is the piece."""

    done: Done
    reading: Reading
    own: Counts


class Replica:
    """:meth:`load` comes first; then :meth:`work` by a few threads, so that one encodes while others read and write."""

    def __init__(self, settings: Settings, *, cuda: bool) -> None:
        """Nothing is loaded here. ``cuda``: whether the encoder runs on a GPU."""
        self._settings = settings
        self._cuda = cuda
        self._lock = threading.Lock()
        self._counts = Counts()
        self._readings = 0
        self._under_way: dict[int, float] = {}
        self._tokenizers: list[Tokenizer] = []
        self._readers: list[RangeReader] = []

    def load(self) -> Loaded:
        """Load the model, warm it up and test it.

        Raises:
            EnvironmentFault, SettingsError: the model, or an output's ranges, do not work here.
        """
        log.configure()
        began = time.monotonic()
        share = self._settings.batch.share
        if share < 1:
            give_way()  # before the encoder has a thread of its own, and that one the threads of torch
        self._model = Model.open(self._settings)
        threads = max(1, math.ceil(self._settings.pool.cpus_per_replica))
        self._encoder = LocalEncoder(self._model, self._model.widest, cuda=self._cuda, threads=threads, share=share)
        with on_cpu.settled_in(os.environ, cuda=self._cuda):
            self._encoder.load()
        self._columns = Fields(self._settings).names
        self._stores = Stores()
        with self._tokenizer() as tokenizer:
            pool = self._encoder.pool(tokenizer.canary(), _end)
        # One that rests does so after each pass: between two of them others have the device.
        passes = PASSES_A_CALL if share == 1 else 1
        self._worker = Worker(self._model, pool, self._settings.pool.batch_tokens(cuda=self._cuda), passes=passes)
        return Loaded(self._worker.folders, time.monotonic() - began)

    def work(self, piece: Piece | TopicPiece, name: PieceName, there: Sequence[frozenset[int]]) -> Answer:
        """Embed what is missing of a piece, and put it.

        Args:
            piece: what to read.
            name: of the piece, in its files' names.
            there: for each output, the numbers of the parts that it has.

        Raises:
            EnvironmentFault: the piece cannot be read, or its files cannot be put.
            RetryableError: a broker or the schema registry does not answer now.
        """
        if self._settings.batch.share < 1:
            give_way()
        tally, reasons, own = Tally(), dict[str, int](), Counts()
        try:
            with closing(self._parts(piece, there)) as parts:
                for part in parts:
                    weight = part.share * piece.weight
                    has = [part.number in numbers for numbers in there]
                    if all(has):
                        own += self._count(Counts(skipped=weight))
                        continue
                    with self._tokenizer() as tokenizer, self._progress() as key:
                        done = self._worker.do(name, part, has, tokenizer, partial(self._note, key, weight))
                    own += self._count(Counts(worked=weight))
                    tally += done.tally
                    for reason, count in done.reasons.items():
                        reasons[reason] = reasons.get(reason, 0) + count
        except BaseException:
            # Who tries again finds what is finished, and counts it then.
            self._count(Counts(-own.worked, -own.skipped))
            raise
        return Answer(Done(tally, reasons), self.reading(), own)

    def reading(self) -> Reading:
        """What is done so far, that which is under way included."""
        with self._lock:
            self._readings += 1
            worked = self._counts.worked + sum(self._under_way.values())
            return Reading(self._readings, self._counts._replace(worked=worked, busy_s=self._encoder.busy_s))

    def _parts(self, piece: Piece | TopicPiece, there: Sequence[frozenset[int]]) -> Generator[Part, None, None]:
        """The piece's parts; of a topic, those that every output has are passed over without being read."""
        if isinstance(piece, Piece):
            yield from parts_of(piece, self._stores, self._columns, self._settings.batch)
            return
        with self._reader() as reader:
            yield from topic_parts(piece, reader, lambda number: not all(number in numbers for numbers in there))

    @contextmanager
    def _reader(self) -> Iterator[RangeReader]:
        """A reader of topics that no other thread has; one that something happened to is closed."""
        with self._lock:
            reader = self._readers.pop() if self._readers else RangeReader(self._settings.kafka)
        try:
            yield reader
        except BaseException:
            reader.close()
            raise
        with self._lock:
            self._readers.append(reader)

    @contextmanager
    def _tokenizer(self) -> Iterator[Tokenizer]:
        """A tokenizer that no other thread has."""
        with self._lock:
            found = self._tokenizers.pop() if self._tokenizers else None
        tokenizer = found or self._model.tokenizer()
        yield tokenizer
        with self._lock:
            self._tokenizers.append(tokenizer)

    # ---- counting

    @contextmanager
    def _progress(self) -> Iterator[int]:
        """A key for what this thread has under way, which counts until it is done or given up."""
        key = threading.get_ident()
        try:
            yield key
        finally:
            with self._lock:
                self._under_way.pop(key, None)

    def _note(self, key: int, weight: float, share: float) -> None:
        with self._lock:
            self._under_way[key] = weight * share

    def _count(self, counts: Counts) -> Counts:
        with self._lock:
            self._counts += counts
        return counts


def _end(_: Exception) -> None:
    """The process is of no more use; its pieces go to another one."""
    os._exit(1)
