"""The model's encoder in this process, behind the seam that finds out which text it fails at.

Comes in: a model. Goes out: an encoder pool. Never here: Ray, or what happens to a process that is of no more use.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from pipelines.batch.pace import Pace
from pipelines.model import Model
from workers import log, metrics
from workers.errors import DeviceLost
from workers.pool import EncoderPool, local_pool
from workers.records import Batch, type_ids, type_vectors

if TYPE_CHECKING:
    from workers.encoder.encoder import Encoder

LOG = log.get(__name__)

# Calls that fail in a row, which the pool would try again for ever: then no text is to blame.
MOST_FAILURES = 20


class LocalEncoder:
    """An encoder, loaded once, and the one thread that works it: what torch is told counts for the thread that tells it."""

    def __init__(self, model: Model, dim: int, *, cuda: bool | None, threads: int | None, share: float = 1.0) -> None:
        """Nothing is loaded here.

        Args:
            model: whose encoder it is.
            dim: of the vectors.
            cuda: as :meth:`pipelines.model.Model.encoder`.
            threads: likewise.
            share: of the time, in which it computes at most.
        """
        self._model = model
        self._dim = dim
        self._cuda = cuda
        self._cpus = threads
        self._pace = Pace(share)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="forward")
        self._lock = threading.Lock()
        self._busy_s = 0.0
        self._failures = 0

    @property
    def busy_s(self) -> float:
        """Seconds of encoding."""
        with self._lock:
            return self._busy_s

    def load(self) -> bool:
        """Load, warm up and test it; whether it runs on a GPU.

        Raises:
            EnvironmentFault, SettingsError: it does not work here.
        """
        started = time.monotonic()
        self._encoder = self._thread.submit(self._load).result()
        LOG.info(
            "encoder ready %s",
            log.fields(
                model=self._model.name,
                device=self._encoder.device,
                dtype=self._encoder.dtype,
                way=self._encoder.way,
                seconds=time.monotonic() - started,
            ),
        )
        return self._encoder.device.startswith("cuda")

    def pool(self, canary: type_ids, lost: Callable[[Exception], None]) -> EncoderPool:
        """The encoder as a pool; ``lost`` hears that it fails at everything: then nothing more comes of this process."""

        def call(batch: Batch) -> type_vectors:
            try:
                vectors: type_vectors = self._thread.submit(self._encode, batch).result()
            except Exception as error:
                self._failures += 1
                if isinstance(error, DeviceLost) or self._failures >= MOST_FAILURES:
                    LOG.error("encoder lost %s", log.fields(error=_said(error)))
                    lost(error)
                raise
            self._failures = 0
            return vectors

        return local_pool(call, dim=self._dim, canary=Batch.of([canary]), meter=metrics.Metrics())

    def _encode(self, batch: Batch) -> type_vectors:
        with self._pace.working():
            started = time.monotonic()
            vectors = self._encoder.encode(batch, self._dim)
            with self._lock:
                self._busy_s += time.monotonic() - started
        return vectors

    def _load(self) -> Encoder:
        encoder = self._model.encoder(cuda=self._cuda, threads=self._cpus)
        encoder.warm_up()
        encoder.self_test()
        return encoder


def _said(error: Exception) -> str:
    """An error of torch's may quote what it was given."""
    return str(error) if isinstance(error, DeviceLost) else type(error).__name__
