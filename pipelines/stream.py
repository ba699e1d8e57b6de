"""The Serve application: a Reader, an Encoder and perhaps a Queries deployment. Every replica is a Ray actor.

Comes in: settings. Goes out: an application for ``stream-embedder run``, for ``serve run pipelines.stream:app
config=pipeline.yaml``, and for a RayService. Never here: the loop itself (``workers.reader``), or signals (``pipelines.run``).
"""

from __future__ import annotations

import asyncio
import functools
import math
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from pipelines import configure, guard, heap, identity, on_cpu
from pipelines.assemble import CLIENT, stream_reader
from pipelines.census import Census, of_serve
from pipelines.cluster import gpus_per_replica
from pipelines.exporter import RayExporter
from pipelines.model import Model
from pipelines.outputs import topic_outlets
from pipelines.patience import has_run, patiently
from pipelines.queries.replica import CALLS_PER_REPLICA, Queries
from pipelines.scaler import scaled
from workers import log, metrics
from workers.backlog import Backlog
from workers.errors import DeviceLost, StreamEmbedderError
from workers.otel import reader_trace, replica_trace
from workers.outlets import Outlet
from workers.pool import serve_pool, timed
from workers.reader import StreamReader
from workers.records import Batch, Computed, type_vectors
from workers.routing import shortest_line
from workers.settings import KafkaSettings, QueriesSettings, RegistrySettings, Settings
from workers.turns import Turns

if TYPE_CHECKING:
    from workers.encoder.encoder import Encoder as ModelEncoder

APP = "stream-embedder"
LOG = log.get(__name__)
# Serve looks after a dead or stalled replica this often; its default of 10 s leaves a partition unread for longer.
HEALTH_PERIOD_S = 2.0
MOST_QUERIES = 10_000
QUERY_CPUS = 0.5


class Encoder:
    """One replica: one model, pinned to its device. Its only job is arrays in, arrays out."""

    def __init__(self, settings: Settings) -> None:
        """Load, warm up and test the model; Serve routes nothing here before that is done."""
        log.configure()
        started = time.monotonic()
        self._meter = metrics.Metrics(RayExporter())
        self._trace = replica_trace(settings, self._meter)
        model, self._encoder = patiently(
            lambda: self._load(settings), "encoder", self._meter, functools.partial(has_run, APP)
        )
        self._dim = model.widest
        # One thread: the device does one batch at a time, and the event loop stays free for health checks.
        self._turns = Turns()
        self._meter.set(metrics.MODEL_LOAD_SECONDS, time.monotonic() - started)
        LOG.info(
            "encoder ready %s",
            log.fields(
                model=model.name,
                device=self._encoder.device,
                dtype=self._encoder.dtype,
                way=self._encoder.way,
                seconds=time.monotonic() - started,
            ),
        )

    @staticmethod
    def _load(settings: Settings) -> tuple[Model, ModelEncoder]:
        cuda = gpus_per_replica(settings) > 0
        with on_cpu.settled_in(os.environ, cuda=cuda):
            model = Model.open(settings)
            encoder = model.encoder(cuda=cuda, threads=max(1, math.ceil(settings.pool.cpus_per_replica)))
            encoder.warm_up()
            encoder.self_test()
        return model, encoder

    async def encode(self, batch: Batch) -> Computed:
        """Vectors of a batch: float32 [n, widest output's dim], unit length; and the seconds that it took."""
        work = self._trace.timed(batch, lambda: timed(self._forward, batch))
        return await asyncio.wrap_future(self._turns.submit(work, query=False))

    async def query(self, batch: Batch) -> Computed:
        """The same of all of the model's dims, for somebody who waits: before others' turn."""
        whole = functools.partial(self._forward, whole=True)
        return await asyncio.wrap_future(self._turns.submit(lambda: timed(whole, batch), query=True))

    def _forward(self, batch: Batch, *, whole: bool = False) -> type_vectors:
        before = self._encoder.stats
        try:
            return self._encoder.encode(batch, None if whole else self._dim)
        except DeviceLost as lost:
            # An answer would count against the batch's texts, and Serve would keep the replica, which fails faster than
            # others work. At its death the batch goes to another replica, and Serve starts a new one.
            LOG.error("replica ends %s", log.fields(error=lost))
            os._exit(1)
        finally:
            after = self._encoder.stats
            self._meter.add(metrics.ENCODER_TOKENS, after.tokens - before.tokens)
            self._meter.add(metrics.ENCODER_PADDING, after.padding - before.padding)
            self._meter.add(metrics.ENCODER_HALVED, after.halved - before.halved)

    def __del__(self) -> None:
        """Serve's way to say that the replica goes."""
        if hasattr(self, "_trace"):
            self._trace.close()


class Reader:
    """One replica: one member of the consumer group, its loop in threads of its own."""

    def __init__(self, settings: Settings, encoders: DeploymentHandle) -> None:
        """Build the loop and start it."""
        log.configure()
        heap.keep_small(os.environ)
        self._settings = settings
        self._encoders = encoders
        self._meter = metrics.Metrics(RayExporter())
        self._census = Census(settings, self._meter, functools.partial(of_serve, APP))
        model = patiently(lambda: Model.open(settings), "reader", self._meter, functools.partial(has_run, APP))
        outlets = topic_outlets(model)
        wanted = {outlet.topic: model.fingerprint_of(outlet.projection) for outlet in outlets}
        guard.refuse_other_fingerprints(settings, wanted)
        self._client = f"{CLIENT}-{self._slot()}"
        self._scaling: Mapping[str, Any] | None = None
        self._reader = self._build(model, outlets)
        self._loop = threading.Thread(target=self._run, name="reader", daemon=True)
        self._ended = threading.Event()
        self._backlog = Backlog(settings.kafka, self._reader.progress, self._meter)
        threading.Thread(target=self._backlog.run, args=(self._ended,), name="backlog", daemon=True).start()
        self._census.start()
        self._loop.start()

    def _build(self, model: Model, outlets: list[Outlet]) -> StreamReader:
        settings = self._settings
        tokenizer = model.tokenizer()
        trace = reader_trace(settings, self._client, self._meter)
        pool = serve_pool(
            self._encoders.encode.remote,
            dim=model.widest,
            canary=Batch.of([tokenizer.canary()]),
            capacity=self._census.capacity,
            timeout_s=settings.pool.call_timeout_s,
            meter=self._meter,
            trace=trace,
            heard=self._census.heard,
        )
        cuda = gpus_per_replica(settings) > 0
        return stream_reader(
            settings, model, outlets, tokenizer, pool, slot=self._slot, cuda=cuda, meter=self._meter, trace=trace
        )

    def _slot(self) -> str:
        """What is this reader's own in the group, and its successor's after it: Serve numbers its replicas."""
        return identity.slot(self._settings, serve.get_replica_context().rank.rank)

    def _run(self) -> None:
        try:
            self._reader.run()
        except StreamEmbedderError:
            pass  # logged there, and raised by check_health
        finally:
            self._census.stop()
            self._ended.set()

    # ---- what Serve and the driver call

    def check_health(self) -> None:
        """Raise when the loop is of no more use; Serve then replaces the replica."""
        self._reader.check()

    def stats(self, scaling: Mapping[str, Any] | None = None) -> dict[str, float]:
        """The metrics of this reader, and how old its ``backlog_records`` is: infinite before it is known.

        ``scaling``: what the policy decided last, which asks here; it is kept for who wants to know.
        """
        self._scaling = scaling or self._scaling
        return self._meter.snapshot() | {"backlog_age_seconds": self._backlog.age_s}

    def report(self) -> dict[str, Any]:
        """For ``status``: what this reader is called in its group, its metrics, and the last decision of scaling."""
        return {"client": self._client, "stats": self._meter.snapshot(), "scaling": self._scaling}

    async def drain(self) -> tuple[bool, int]:
        """Finish what is in flight, commit, leave the group: whether that fitted the time, and how many records are left."""
        timeout = self._settings.delivery.drain_timeout_s
        ended = await asyncio.get_running_loop().run_in_executor(None, self._reader.drain, timeout)
        return ended, self._reader.left

    async def __del__(self) -> None:
        """Serve's way to say that the replica goes: scale-down, update, deletion."""
        if hasattr(self, "_reader"):
            await self.drain()


def build(settings: Settings, encoder_class: type = Encoder) -> serve.Application:
    """The application; needs a running Ray, which is asked for its GPUs. ``encoder_class`` may stand in for :class:`Encoder`."""
    pool = settings.pool
    gpus = gpus_per_replica(settings)
    settings = settings.model_copy(update={"pool": pool.model_copy(update={"gpus_per_replica": gpus})})
    size: dict[str, Any] = {"num_replicas": pool.min}
    if pool.min != pool.max:
        size = {"autoscaling_config": scaled(settings, APP)}
    most = max(pool.in_flight, CALLS_PER_REPLICA) if settings.queries.enabled else pool.in_flight
    encoder = serve.deployment(encoder_class).options(
        name="Encoder",
        **size,
        **shortest_line(most=most, callers=settings.readers.count + settings.queries.enabled),
        ray_actor_options={"num_cpus": pool.cpus_per_replica, "num_gpus": gpus},
        health_check_period_s=HEALTH_PERIOD_S,
        graceful_shutdown_timeout_s=pool.call_timeout_s,
    )
    reader = serve.deployment(Reader).options(
        num_replicas=settings.readers.count,
        ray_actor_options={"num_cpus": settings.readers.cpus},
        health_check_period_s=HEALTH_PERIOD_S,
        graceful_shutdown_timeout_s=settings.delivery.drain_timeout_s + 15,
    )
    # Each part gets what it needs of what opens something: encoders speak to neither Kafka nor a registry, nor to a caller.
    unasked = settings.model_copy(update={"queries": QueriesSettings()})
    closed = unasked.model_copy(update={"kafka": KafkaSettings(), "registry": RegistrySettings()})
    encoders = encoder.bind(closed)
    readers = reader.bind(unasked, encoders)
    if not settings.queries.enabled:
        return readers
    queries = serve.deployment(Queries).options(
        num_replicas=1,
        # It refuses what it has no room for, in the words of its callers.
        max_ongoing_requests=MOST_QUERIES,
        ray_actor_options={"num_cpus": QUERY_CPUS},
        health_check_period_s=HEALTH_PERIOD_S,
        graceful_shutdown_timeout_s=min(settings.queries.timeout_s, 20.0),
    )
    asked = closed.model_copy(update={"queries": settings.queries})
    return queries.bind(asked, APP, encoders, readers)


def app(args: dict[str, str]) -> serve.Application:
    """The application from a settings file, for ``serve run`` and RayService: ``args`` holds ``config``, a path."""
    configured = configure.load(Path(args["config"]), [], os.environ)
    configured.settings.require_stream()
    return build(configured.settings)
