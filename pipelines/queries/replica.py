"""The Serve deployment that answers queries: the front and the desk, over the handle of the encoders.

Comes in: HTTP requests, from Serve's proxy. Goes out: responses; figures for the scaling policy. Never here: the loop of a reader.
"""

from __future__ import annotations

import asyncio
import functools
import time

from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response

from pipelines.census import of_serve
from pipelines.cluster import gpus_per_replica
from pipelines.exporter import RayExporter
from pipelines.model import Model
from pipelines.patience import has_run, patiently
from pipelines.queries.desk import Desk
from pipelines.queries.front import Front
from pipelines.queries.offer import Offer
from workers import log, metrics
from workers.periodic import every
from workers.pool import serve_pool
from workers.records import Batch
from workers.settings import Settings

LOG = log.get(__name__)

# Calls for queries at a replica: one that is computed, one that comes next, beside the readers'.
CALLS_PER_REPLICA = 2
# Serve is asked how many encoders run: so often, and so often while a query waits for the first.
CENSUS_S, STARVED_S = 5.0, 1.0


class Queries:
    """One replica, which is the application's ingress."""

    def __init__(self, settings: Settings, app: str, encoders: DeploymentHandle, readers: DeploymentHandle) -> None:
        """Load the tokenizer. ``readers`` are not asked: an application is what hangs on its ingress."""
        log.configure()
        self._app = app
        self._meter = metrics.Metrics(RayExporter())
        pool, queries = settings.pool, settings.queries
        self._to_zero = pool.min == 0
        # Where replicas come and go, they are there when they have been counted.
        self._encoders = 0 if pool.min != pool.max else pool.min
        self._counted_at: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        model = patiently(lambda: Model.open(settings), "queries", self._meter, functools.partial(has_run, app))
        tokenizer = model.tokenizer()
        offer = Offer.of(model)
        self._pool = serve_pool(
            encoders.query.remote,
            dim=offer.dim,
            canary=Batch.of([tokenizer.canary()]),
            capacity=lambda: CALLS_PER_REPLICA * self._encoders,
            timeout_s=min(pool.call_timeout_s, queries.timeout_s),
            meter=self._meter,
        )
        budget = pool.batch_tokens(cuda=gpus_per_replica(settings) > 0)
        self._desk = Desk(self._pool, dim=offer.dim, budget=budget, meter=self._meter)
        key = queries.api_key
        self._front = Front(
            offer,
            tokenizer,
            self._desk,
            self._meter,
            api_key=None if key is None else key.get_secret_value(),
            timeout_s=queries.timeout_s,
            ready=self._ready,
        )
        self._asking = every(STARVED_S, self._census, "census")
        LOG.info("queries ready %s", log.fields(model=offer.model, dim=offer.dim))

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        self._loop = asyncio.get_running_loop()
        return await self._front(request)

    def _ready(self) -> bool:
        return self._to_zero or (self._counted_at is not None and self._encoders > 0)

    def _census(self) -> None:
        """Count the encoders now and then, on a thread of its own, and have sent what has waited for them."""
        now = time.monotonic()
        known = self._counted_at is not None and (self._encoders > 0 or self._to_zero)
        if known and not self._desk.starved and now - (self._counted_at or 0.0) < CENSUS_S:
            return
        try:
            self._encoders = of_serve(self._app).encoders
        except Exception as error:  # noqa: BLE001 - the controller may be dead or starting: the last count holds
            LOG.debug("census failed %s", log.fields(error=type(error).__name__))
            return
        self._counted_at = now
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._desk.send)

    # ---- what the driver and the scaling policy call

    def stats(self) -> dict[str, float]:
        """The metrics of this replica."""
        return self._meter.snapshot()

    async def drain(self, timeout_s: float) -> bool:
        """Take no more, and answer what is here: whether that fitted the time."""
        return await self._front.drain(timeout_s)
