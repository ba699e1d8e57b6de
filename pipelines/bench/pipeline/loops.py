"""``python -m pipelines.bench.pipeline.loops``: one measured loop in a process of its own, which nothing else shares.

Comes in: a job as JSON on stdin. Goes out: its figures as JSON on stdout. Never here: what they mean, or another loop beside.

``ours`` is the reader that runs in production, around an encoder that answers at once with vectors made beforehand and a
tokenizer that has done its work already. ``bare`` is the shortest loop over kafka-python that moves as many bytes exactly once:
poll, produce, send the offsets, commit. ``encoder`` is the encoder without any of it.
"""

from __future__ import annotations

import base64
import itertools
import json
import logging
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from kafka import KafkaConsumer, OffsetAndMetadata
from kafka import TopicPartition as KafkaTopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

from pipelines import on_cpu
from pipelines.assemble import stream_reader
from pipelines.bench.pipeline import pinning
from pipelines.model import Model
from pipelines.outputs import topic_outlets
from workers import kafka_client, metrics
from workers.checkpoint import MOST_RECORDS
from workers.deadline import Deadline
from workers.otel import reader_trace
from workers.pool import Answer
from workers.records import Batch, Tokens, type_vectors
from workers.settings import KafkaSettings, Settings
from workers.text.batching import plan

PATIENCE_S = 600.0
# Texts that differ: more than wait for calls at any time.
READY = 16_384
# Forward passes that a reader puts into one call to a GPU, about: a tenth of a second's work.
CUDA_PASSES = 8


class Ready:
    """A tokenizer that has tokenised already: every text has as many ids, and others than the one before."""

    def __init__(self, ids: int) -> None:
        every = np.arange(1000, 1000 + ids + READY, dtype=np.int32)
        self._made = [Tokens(every[first : first + ids], ids) for first in range(READY)]
        self._next = 0

    def encode(self, texts: Sequence[str], prompts: Sequence[str | None]) -> Sequence[Tokens]:
        """Tokens made beforehand, by turns: those of texts that wait side by side differ, or they would be encoded once."""
        first = self._next
        self._next = (first + len(texts)) % len(self._made)
        return [self._made[(first + number) % len(self._made)] for number in range(len(texts))]


class Instant:
    """An encoder that answers at once: float32 [n, dim] of unit length, made beforehand."""

    def __init__(self, dim: int, most: int = 65_536) -> None:
        made = np.random.default_rng(0).standard_normal((4_096, dim)).astype(np.float32)
        made /= np.linalg.norm(made, axis=1, keepdims=True)
        self._vectors: type_vectors = np.resize(made, (most, dim))

    def submit(self, batch: Batch, deadline: Deadline | None = None) -> Future[Answer]:
        """Answered when it returns."""
        answer: Future[Answer] = Future()
        answer.set_result(Answer(self._vectors[: len(batch)]))
        return answer

    def capacity(self) -> int:
        """As many calls as two replicas take."""
        return 4

    def close(self) -> None:
        """Nothing is under way."""


class Clock:
    """Wall and CPU time of this process, from when the first record is there until all are out."""

    def __init__(self) -> None:
        self._began = (time.perf_counter(), time.process_time(), thread_seconds())

    def figures(self, records: int) -> dict[str, Any]:
        """What so many records have taken."""
        wall, cpu, threads = self._began
        return {
            "records": records,
            "wall_s": time.perf_counter() - wall,
            "cpu_s": time.process_time() - cpu,
            "threads": {name: seconds - threads.get(name, 0.0) for name, seconds in thread_seconds().items()},
            "peak_mib": peak_mib(),
        }


def peak_mib() -> float:
    """The most memory that this process has held; getrusage would count what its parent held before."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)  # macOS, in bytes
    (line,) = (line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def thread_seconds() -> dict[str, float]:
    """CPU seconds of each of this process's threads so far, by name; empty where the system does not say."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return {}
    found: dict[str, float] = {}
    for thread in threading.enumerate():
        if thread.ident is not None:
            seconds = time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
            found[thread.name] = found.get(thread.name, 0.0) + seconds
    return found


def ours(job: Mapping[str, Any]) -> dict[str, Any]:
    """Our reader, until every record has a committed outcome."""
    settings = Settings.model_validate(job["settings"])
    model = Model.open(settings)
    meter = metrics.Metrics()
    reader = stream_reader(
        settings,
        model,
        topic_outlets(model),
        Ready(job["tokens"]),
        Instant(model.widest),
        slot=lambda: f"{settings.source.group}.0",
        cuda=True,
        meter=meter,
        trace=reader_trace(settings, settings.source.group, meter),
    )
    logging.getLogger("stream_embedder").setLevel(logging.ERROR)
    threading.Thread(target=reader.run, name="commit", daemon=True).start()
    deadline = time.monotonic() + PATIENCE_S

    def reach(metric: metrics.Metric, count: int, **labels: str) -> None:
        while meter.value(metric, **labels) < count:
            reader.check()
            assert time.monotonic() < deadline, "the records do not come out"
            time.sleep(0.02)

    reach(metrics.RECORDS_READ, 1)
    clock = Clock()
    reach(metrics.RECORDS_COMMITTED, job["records"], outcome="embedding")
    found = clock.figures(job["records"])
    reader.drain(10)
    return found


def bare(job: Mapping[str, Any]) -> dict[str, Any]:
    """The shortest loop, with the client settings of ours."""
    kafka = KafkaSettings.model_validate(job["settings"]["kafka"])
    group, out = job["settings"]["source"]["group"], job["settings"]["outputs"][0]["topic"]
    value, headers = base64.b64decode(job["value"]), [(name, text.encode()) for name, text in job["headers"]]
    consumer: Any = kafka_client.connect(
        KafkaConsumer,
        kafka,
        group_id=group,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        partition_assignment_strategy=[CooperativeStickyAssignor],
        max_poll_records=MOST_RECORDS,
        fetch_max_bytes=16 << 20,
        max_partition_fetch_bytes=4 << 20,
    )
    consumer.subscribe(list(job["settings"]["source"]["topics"]))
    producer = kafka_client.bare_producer(
        kafka, acks="all", linger_ms=5, batch_size=256 << 10, retry_backoff_ms=20, transactional_id=f"{group}.0"
    )
    producer.init_transactions()
    clock: Clock | None = None
    count = 0
    while count < job["records"]:
        # As our commits do: a transaction is as full as may be.
        polled, taken = [], 0
        while taken < min(MOST_RECORDS, job["records"] - count):
            start = clock or Clock()
            kafka_client.finish_join(consumer)
            more = consumer.poll(250, max_records=MOST_RECORDS - taken)
            polled.append(more)
            taken += sum(map(len, more.values()))
            clock = clock or (start if taken else None)
        producer.begin_transaction()
        offsets = {}
        for tp, records in itertools.chain.from_iterable(more.items() for more in polled):
            for record in records:
                producer.send(out, value=value, key=record.key, headers=headers, timestamp_ms=record.timestamp)
            offsets[KafkaTopicPartition(*tp)] = OffsetAndMetadata(records[-1].offset + 1, "", -1)
        producer.send_offsets_to_transaction(offsets, consumer.group_metadata())
        producer.commit_transaction()
        count += taken
    assert clock is not None
    found = clock.figures(count)
    producer.close(timeout=5)
    consumer.close(autocommit=False)
    return found


def encoder(job: Mapping[str, Any]) -> dict[str, Any]:
    """The encoder alone, on texts tokenised beforehand, in calls as large as a reader's; it goes on until it is killed.

    How many it has embedded stands in the file ``counter``, in 8 bytes from the lowest; a line says that it begins.
    """
    pinning.pin(job["core"], [os.getpid()])
    settings = Settings.model_validate(job["settings"])
    model = Model.open(settings)
    tokenizer = model.tokenizer()
    tokens = [
        found.ids for found in tokenizer.encode(job["texts"], [None] * len(job["texts"])) if isinstance(found, Tokens)
    ]
    budget = settings.pool.batch_tokens(cuda=job["cuda"])
    call = CUDA_PASSES * budget if job["cuda"] else budget
    tokens *= -(-call // sum(map(len, tokens)))
    batches = [Batch.of([tokens[row] for row in rows]) for rows in plan([len(ids) for ids in tokens], budget, call)]
    with on_cpu.settled_in(os.environ, cuda=job["cuda"]):  # as a replica's process
        machine = model.encoder(cuda=job["cuda"], threads=job["threads"])
        machine.warm_up()
    machine.encode(batches[0], model.widest)  # a GPU records the shapes that it meets
    print("ready", flush=True)
    with Path(job["counter"]).open("r+b", buffering=0) as counter:
        count = 0
        for batch in itertools.cycle(batches):
            machine.encode(batch, model.widest)
            count += len(batch)
            os.pwrite(counter.fileno(), count.to_bytes(8, "little"), 0)
    raise AssertionError("there is always another batch")


LOOPS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {"ours": ours, "bare": bare, "encoder": encoder}


def main() -> int:
    """Run the loop that the job on stdin names."""
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    job = json.load(sys.stdin)
    print(json.dumps(LOOPS[job["loop"]](job)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
