"""A batch job in this process: the real model's names and tokens of letters, and an encoder that needs no weights."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.batch.finished import PieceName, Tally
from pipelines.batch.inputs import find
from pipelines.batch.outlets import batch_outlets, dead_letter_location
from pipelines.batch.pieces import Fields, Piece, Stores, parts_of, plan
from pipelines.batch.replica import Answer, Loaded, Replica
from pipelines.batch.there import There
from pipelines.batch.work import Done, Worker
from pipelines.model import Model
from tests.fakes import CANARY, FakeTokenizer, texts_of
from workers import metrics
from workers.errors import EnvironmentFault
from workers.pool import EncoderPool, local_pool
from workers.records import Batch
from workers.settings import Settings

DIM = 384


def vector_of(text: str) -> np.ndarray:
    seed = int.from_bytes(text.encode(), "little") % (1 << 32)
    vector = np.random.default_rng(seed).normal(size=DIM)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def encode(batch: Batch) -> np.ndarray:
    """Unit vectors; NaN for ``nan!…``, an exception for ``raise!…``, zeros at the front for ``flat!…``."""
    found = np.stack([vector_of(text) for text in texts_of(batch)])
    for row, text in enumerate(texts_of(batch)):
        if text.startswith("raise!"):
            raise RuntimeError("a kernel failed")
        if text.startswith("nan!"):
            found[row] = np.nan
        if text.startswith("flat!"):
            found[row, :8] = 0
            found[row] /= np.linalg.norm(found[row])
    return found


def pool_of(call: Any = encode, dim: int = DIM) -> EncoderPool:
    return local_pool(call, dim=dim, canary=CANARY, meter=metrics.Metrics())


class Job:
    """A job in this process, with the real model's names and a fake encoder."""

    def __init__(
        self, folder: Path, *, call: Any = encode, dim: int = DIM, tokenizer: Any = None, **sections: Any
    ) -> None:
        self.folder = folder
        self.call, self.dim = call, dim
        self.sections = {
            "source": {"text": "text", "id": "id"},
            "outputs": [{"kind": "parquet", "uri": f"file://{folder}/vectors", "include": ["title"]}],
            "batch": {"inputs": [str(folder / "in")], "rows": 4},
            **sections,
        }
        self.settings = Settings(**self.sections)
        self.model = Model.open(self.settings)
        self.embedded: Counter[str] = Counter()
        self.tokenizer = tokenizer or FakeTokenizer()

    def texts(self, name: str, rows: list[object]) -> None:
        path = self.folder / "in" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(self, parts: int = 1_000_000) -> tuple[Tally, Tally, Counter[str]]:
        """One run, which ends after so many parts; what was found, what was made, and why rows were refused."""

        def counted(batch: Batch) -> np.ndarray:
            found: np.ndarray = self.call(batch)
            self.embedded.update(texts_of(batch))
            return found

        pool = pool_of(counted, self.dim)
        worker = Worker(self.model, pool, 4096)
        files = find(self.settings.batch.inputs, "auto", [])
        there = There(batch_outlets(self.model), files, self.settings)
        there.look()
        pieces = plan(files, self.settings).pieces
        found = there.count(map(there.name, pieces))
        made, reasons = Tally(), Counter[str]()
        for _, done in zip(range(parts), self.do(there, pieces, worker), strict=False):
            made += done.tally
            reasons.update(done.reasons)
        pool.close()
        return found, made, reasons

    def do(self, there: There, pieces: Any, worker: Worker) -> Iterator[Done]:
        for task in there.tasks(pieces):
            for part in parts_of(task.piece, Stores(), Fields(self.settings).names, self.settings.batch):
                has = [part.number in numbers for numbers in task.there]
                if not all(has):
                    yield worker.do(task.name, part, has, self.tokenizer, lambda _: None)

    def rows(self, output: int = 0) -> list[dict[str, Any]]:
        uri = self.settings.outputs[output].uri.removeprefix("file://")
        return pl.read_parquet(f"{uri}/**/*.parquet").to_dicts()

    def dead(self) -> list[dict[str, Any]]:
        folder = Path(str(dead_letter_location(self.settings)).removeprefix("file://"))
        return [row for path in sorted(folder.rglob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def texts(count: int, prefix: str = "n") -> list[object]:
    return [{"id": f"{prefix}{n}", "text": f"{prefix} text {n}", "title": f"t{n}"} for n in range(count)]


def write_groups(path: Path, sizes: Sequence[int]) -> None:
    """A Parquet file with row groups of so many rows, empty ones too."""
    table = pa.Table.from_pylist([{"id": f"n{n}", "text": f"text {n}", "title": "t"} for n in range(sum(sizes) + 1)])
    path.parent.mkdir(exist_ok=True)
    with pq.ParquetWriter(path, table.schema) as writer:
        for number, size in enumerate(sizes):
            writer.write_table(table.slice(sum(sizes[:number]), size))
    found = pq.read_metadata(path)
    assert [found.row_group(number).num_rows for number in range(found.num_row_groups)] == list(sizes)


class FakeReplica(Replica):
    """A replica without weights.

    What its texts say happens: ``die!`` ends the process once, ``late!`` does so after a while, ``always!`` each time.
    """

    def load(self) -> Loaded:
        self._model = Model.open(self._settings)
        self._columns = Fields(self._settings).names
        self._stores = Stores()
        self._tokenizers = [FakeTokenizer(256) for _ in range(8)]
        self._encoder = _Idle()
        self._worker = Worker(self._model, pool_of(self._call), 4096)
        return Loaded(self._worker.folders)

    def _call(self, batch: Batch) -> np.ndarray:
        for text in texts_of(batch):
            if text.startswith(("die!", "late!")):
                marker = Path(text.partition("!")[2])
                if not marker.exists():
                    marker.touch()
                    time.sleep(1.5 if text.startswith("late!") else 0)
                    os._exit(1)
            if text.startswith("always!"):
                os._exit(1)
        return encode(batch)


class _Idle:
    busy_s = 0.0


class NoReplica(FakeReplica):
    """One that cannot be loaded."""

    def load(self) -> Loaded:
        raise EnvironmentFault("the model has no weights")


class OtherReplica(FakeReplica):
    """One with another model."""

    def load(self) -> Loaded:
        super().load()
        return Loaded(("batch-0123456789abcdef",))


class FaultyReplica(FakeReplica):
    """One that cannot read the files whose names begin with ``bad``."""

    def work(self, piece: Piece, name: PieceName, there: Sequence[frozenset[int]]) -> Answer:
        if piece.file.stored.path.startswith("bad"):
            raise EnvironmentFault(f"{piece.uri}: its disk is broken")
        return super().work(piece, name, there)


class TardyReplica(FakeReplica):
    """One whose answer for the file ``late…`` is made before it works at the other, and comes after that one's."""

    def load(self) -> Loaded:
        self._made, self._answered = threading.Event(), threading.Event()
        return super().load()

    def work(self, piece: Piece, name: PieceName, there: Sequence[frozenset[int]]) -> Answer:
        late = piece.file.stored.path.startswith("late")
        assert late or self._made.wait(30)
        answer = super().work(piece, name, there)
        (self._made if late else self._answered).set()
        if late:
            assert self._answered.wait(30)
            time.sleep(1)
        return answer


class LastReplica(FaultyReplica):
    """One that ends at the file ``end…`` once, after its answers for the others, while nobody listens.

    In the job's folder, ``busy`` says that it has begun, and ``died`` that it has ended; it waits for ``deaf``.
    """

    def load(self) -> Loaded:
        self._folder = Path(self._settings.batch.inputs[0]).parent
        self._answered = threading.Semaphore(0)
        return super().load()

    def work(self, piece: Piece, name: PieceName, there: Sequence[frozenset[int]]) -> Answer:
        if (self._folder / "died").exists():
            return super().work(piece, name, there)
        ends = piece.file.stored.path.startswith("end")
        if ends:
            (self._folder / "busy").touch()
        while not (self._folder / "deaf").exists():
            time.sleep(0.05)
        if ends:
            assert all(self._answered.acquire(timeout=30) for _ in range(2))
            time.sleep(1)
            (self._folder / "died").touch()
            os._exit(1)
        try:
            return super().work(piece, name, there)
        finally:
            self._answered.release()


class MortalReplica(FakeReplica):
    """One that ends with whatever it is given."""

    def work(self, piece: Piece, name: PieceName, there: Sequence[frozenset[int]]) -> Answer:
        os._exit(1)


class LonelyReplica(FaultyReplica):
    """One that no other can be loaded after; it ends at the files whose names begin with ``end``."""

    def load(self) -> Loaded:
        marker = Path(self._settings.batch.inputs[0]).parent / "loaded"
        if marker.exists():
            raise EnvironmentFault("the device is taken")
        marker.touch()
        return super().load()

    def work(self, piece: Piece, name: PieceName, there: Sequence[frozenset[int]]) -> Answer:
        if piece.file.stored.path.startswith("end"):
            os._exit(1)
        return super().work(piece, name, there)
