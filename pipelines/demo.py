"""The command ``demo``: the main job on this machine, with real text through a real Kafka, then a search over the vectors.

Comes in: how many texts, and questions. Goes out: steps with their times, and answers. The pipeline itself is the command
``run`` in a process of its own, as anybody would start it. Never here: anything left behind when it ends, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import orjson
import yaml
from pydantic import SecretStr

from pipelines.broker import local_broker
from pipelines.demo_corpus import Doc, documents
from pipelines.model import Model
from workers import kafka_client, kafka_topics
from workers.errors import EnvironmentFault, StreamEmbedderError
from workers.records import Batch, type_vectors
from workers.settings import (
    ENV_PREFIX,
    DeadLetterSettings,
    KafkaOutput,
    KafkaSettings,
    PoolSettings,
    Settings,
    SourceSettings,
)

# Twenty seconds of work for MiniLM on two slow cores; the built-in questions have their answers among them.
DEFAULT_ROWS = 600
PARTITIONS = 2
DEAD_BYTES = 2 << 20  # a dead letter is a document and some headers
STALLED_S = 180.0
STOP_S = 90.0  # Ray's start cannot be interrupted, and takes half a minute on a busy machine
ANSWERS = 3
QUESTIONS = (
    "Which elements of a list occur most often?",
    "run a command in a shell and read its output",
    "write a date and time as text",
)


@dataclass(frozen=True, slots=True)
class Names:
    """The demo's own topics and group, which nobody else has."""

    documents: str
    vectors: str
    dead: str
    group: str

    @classmethod
    def new(cls) -> Names:
        """Names with a random part."""
        stem = f"demo-{uuid.uuid4().hex[:8]}"
        return cls(f"{stem}-documents", f"{stem}-vectors", f"{stem}-dead", stem)

    @property
    def topics(self) -> tuple[str, str, str]:
        """The three topics."""
        return self.documents, self.vectors, self.dead


@dataclass(slots=True)
class Outcomes:
    """What has come out: documents by id, and how often anything came."""

    titles: dict[str, str] = field(default_factory=dict)
    vectors: dict[str, list[float]] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)
    records: int = 0
    tokens: int = 0
    seen: list[tuple[float, int]] = field(default_factory=list)

    def add(self, records: Iterable[Any], dead_topic: str, now: float) -> None:
        """Take in consumer records, read at ``now``."""
        before = self.records
        for record in records:
            self.records += 1
            if record.topic == dead_topic:
                self.dead.add(record.key.decode())
                continue
            value = orjson.loads(record.value)
            self.titles[value["id"]] = value["title"]
            self.vectors[value["id"]] = value["embedding"]
            self.tokens += value["tokens"]
        if self.records > before:
            self.seen.append((now, self.records))

    @property
    def documents(self) -> int:
        """Documents with an outcome."""
        return len(self.vectors) + len(self.dead)

    def rate(self, started: float) -> float:
        """Records/s once it was under way: from the first commit that was seen to the last, or from ``started``."""
        (first, earlier), (last, records) = self.seen[0], self.seen[-1]
        if last - first < 1.0:
            first, earlier = started, 0
        return (records - earlier) / max(last - first, 1e-9)


def run_demo(*, rows: int | None, queries: Sequence[str], bootstrap_servers: str | None, settings: Settings) -> int:
    """Embed ``rows`` documents and answer questions with them.

    Args:
        rows: how many documents; None for a number that takes less than a minute.
        queries: the caller's own questions, asked after the built-in ones.
        bootstrap_servers: a broker to use; None for the one that the settings name, else a local one.
        settings: model, pool and whatever else is not the demo's own to choose.

    Raises:
        StreamEmbedderError: something did not work, in one sentence.
    """
    if bootstrap_servers is None and "bootstrap_servers" in settings.kafka.model_fields_set:
        bootstrap_servers = settings.kafka.bootstrap_servers
    names = Names.new()
    with _terminable(), contextlib.ExitStack() as stack:
        began = time.monotonic()
        _say("1  a Kafka broker", "one that runs already" if bootstrap_servers else "a local one is started")
        kafka = KafkaSettings(bootstrap_servers=stack.enter_context(local_broker(bootstrap_servers)))
        if bootstrap_servers:
            kafka = settings.kafka.model_copy(update={"bootstrap_servers": bootstrap_servers})
            stack.callback(_forget, kafka, names)
        kafka_topics.create_topics(kafka, dict.fromkeys((names.documents, names.vectors), PARTITIONS))
        kafka_topics.create_topics(kafka, {names.dead: PARTITIONS}, **{"max.message.bytes": str(DEAD_BYTES)})
        _done(began, f"{kafka.bootstrap_servers}, with topics {', '.join(names.topics)}")

        began = time.monotonic()
        _say("2  documents", "what Python's standard library says about itself")
        corpus = list(documents(rows or DEFAULT_ROWS))
        _produce(kafka, names.documents, corpus)
        _done(began, f"{len(corpus):,} records in topic {names.documents}")

        began = time.monotonic()
        mine = demo_settings(settings, kafka, names)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stream-embedder-demo-")))
        config = folder / "pipeline.yaml"
        config.write_text(pipeline_yaml(mine), encoding="utf-8")
        _say("3  the pipeline", "stream-embedder run -c pipeline.yaml, which says")
        print(_indented(_shown_yaml(mine)), flush=True)
        asked = [*QUESTIONS, *queries]
        with _pipeline(config) as process, contextlib.closing(_consumer(kafka, names)) as consumer:
            # Beside the pipeline's start, which waits more than it works.
            thread = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="questions"))
            embedded = thread.submit(_embed, settings, asked)
            outcomes = _await_outcomes(process, consumer, names, len(corpus))
            rate = outcomes.rate(began)
            _done(
                began,
                f"{len(outcomes.vectors):,} vectors and {len(outcomes.dead):,} dead letters, {outcomes.tokens:,} tokens; "
                f"{rate:,.0f} records/s once it ran",
            )
            began = time.monotonic()
            _drain(process, mine.delivery.drain_timeout_s + 60)
            _read_rest(consumer, outcomes, names)
        _require_once(outcomes, len(corpus))
        _done(began, "drained on SIGTERM; every document has one outcome, none is missing, none is there twice")

        began = time.monotonic()
        _say("4  a search over the vectors", "cosine, by the same model")
        _answer(outcomes, asked, embedded.result())
        _done(began, 'ask your own: make demo QUERY="…", or stream-embedder demo --query "…"')
    return 0


# ---- settings


def demo_settings(settings: Settings, kafka: KafkaSettings, names: Names) -> Settings:
    """The caller's settings with the demo's own topics, group and broker."""
    return settings.model_copy(
        update={
            "kafka": kafka,
            "source": SourceSettings(topics=(names.documents,), group=names.group, text="{title}: {body}"),
            "outputs": (KafkaOutput(topic=names.vectors, include=("title",)),),
            "dead_letter": DeadLetterSettings(topic=names.dead),
            "pool": _whole_machine(settings),
        }
    )


def _whole_machine(settings: Settings) -> PoolSettings:
    """One replica on all the cores that the reader leaves, unless the caller chose."""
    if settings.pool.model_fields_set:
        return settings.pool
    return settings.pool.model_copy(
        update={"cpus_per_replica": max(1.0, (os.cpu_count() or 1) - settings.readers.cpus)}
    )


def pipeline_yaml(settings: Settings) -> str:
    """The settings as a file for ``run``, secrets included."""
    return yaml.safe_dump(_plain(settings.model_dump(exclude_defaults=True)), allow_unicode=True, sort_keys=False)


def _shown_yaml(settings: Settings) -> str:
    shown = settings.model_dump(exclude_defaults=True, include={"source", "outputs", "dead_letter"})
    return yaml.safe_dump(_plain(shown), allow_unicode=True, sort_keys=False).rstrip()


def _plain(value: Any) -> Any:
    """What YAML can hold."""
    match value:
        case dict():
            return {key: _plain(entry) for key, entry in value.items()}
        case list() | tuple():
            return [_plain(entry) for entry in value]
        case SecretStr():
            return value.get_secret_value()
        case Path():
            return str(value)
        case _:
            return value


# ---- Kafka


def _produce(kafka: KafkaSettings, topic: str, corpus: Iterable[Doc]) -> None:
    producer = kafka_client.bare_producer(kafka, acks="all", linger_ms=20)
    try:
        sent = [
            producer.send(topic, key=doc.id.encode(), value=orjson.dumps({"title": doc.title, "body": doc.body}))
            for doc in corpus
        ]
        producer.flush(timeout=60)
        if not all(future.is_done and future.exception is None for future in sent):
            raise EnvironmentFault(f"the broker at {kafka.bootstrap_servers} did not take all the documents")
    finally:
        producer.close(timeout=5)


def _consumer(kafka: KafkaSettings, names: Names) -> Any:
    """A read_committed reader of what comes out, from the beginning."""
    consumer = kafka_client.bare_consumer(kafka, auto_offset_reset="earliest")
    consumer.subscribe([names.vectors, names.dead])
    return consumer


def _poll(consumer: Any, outcomes: Outcomes, names: Names) -> None:
    polled = [record for records in consumer.poll(500).values() for record in records]
    outcomes.add(polled, names.dead, time.monotonic())


def _await_outcomes(process: subprocess.Popen[bytes], consumer: Any, names: Names, wanted: int) -> Outcomes:
    outcomes = Outcomes()
    progress, known = time.monotonic(), 0
    while outcomes.documents < wanted:
        _poll(consumer, outcomes, names)
        if outcomes.documents > known:
            progress, known = time.monotonic(), outcomes.documents
        if process.poll() is not None:
            raise EnvironmentFault(
                f"the pipeline ended by itself with exit code {process.returncode} after {known:,} of {wanted:,} documents; "
                "what it said stands above"
            )
        if time.monotonic() - progress > STALLED_S:
            raise EnvironmentFault(
                f"nothing new came out of the pipeline for {STALLED_S:.0f} s, after {known:,} of {wanted:,} documents"
            )
    return outcomes


def _read_rest(consumer: Any, outcomes: Outcomes, names: Names) -> None:
    """Read to the topics' ends: what would show a document's second outcome."""
    ends = consumer.end_offsets(consumer.assignment())
    deadline = time.monotonic() + 10
    while any(consumer.position(partition) < end for partition, end in ends.items()) and time.monotonic() < deadline:
        _poll(consumer, outcomes, names)


def _require_once(outcomes: Outcomes, wanted: int) -> None:
    if outcomes.records != wanted or outcomes.documents != wanted:
        raise EnvironmentFault(
            f"{wanted:,} documents went in, and {outcomes.records:,} outcomes of {outcomes.documents:,} documents came out"
        )


def _forget(kafka: KafkaSettings, names: Names) -> None:
    """Take the demo's traces off a broker that stays."""
    with contextlib.suppress(StreamEmbedderError):
        kafka_topics.delete_topics(kafka, names.topics)
    with contextlib.suppress(StreamEmbedderError), kafka_client.admin(kafka) as client:
        client.delete_groups([names.group])


# ---- the pipeline's process


@contextlib.contextmanager
def _pipeline(config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """``stream-embedder run``, which writes to our own standard error; it has ended when the ``with`` has."""
    # The file holds every setting that counts; the environment's would win over it.
    environ = {name: value for name, value in os.environ.items() if not (name.startswith(ENV_PREFIX) and "__" in name)}
    # In a process group of its own: a Ctrl-C is for us, and reaches the pipeline as SIGTERM.
    command = [sys.executable, "-m", "pipelines", "run", "-c", str(config)]
    process = subprocess.Popen(command, env=environ, process_group=0)  # noqa: S603
    try:
        yield process
    finally:
        try:
            if process.poll() is None:
                _say("stopping", "the pipeline drains; a second Ctrl-C kills it")
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_S)
        finally:
            # What is left of the group after a drain is nothing; after a crash, or a second Ctrl-C, it is Ray.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _drain(process: subprocess.Popen[bytes], patience_s: float) -> None:
    process.terminate()
    try:
        code = process.wait(patience_s)
    except subprocess.TimeoutExpired:
        raise EnvironmentFault(f"the pipeline did not drain within {patience_s:.0f} s of SIGTERM") from None
    if code != 0:
        raise EnvironmentFault(f"the pipeline ended with exit code {code} on SIGTERM; what it said stands above")


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into an exception, so that what was started is stopped."""

    def leave(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---- the search


def nearest(vectors: type_vectors, query: type_vectors, k: int) -> list[tuple[int, float]]:
    """The ``k`` rows of ``vectors`` [n, d] with the largest cosine to ``query`` [d], best first, with that cosine."""
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
    scores = (vectors @ query) / np.maximum(lengths, np.finfo(np.float32).tiny)
    return [(int(row), float(scores[row])) for row in np.argsort(-scores, kind="stable")[:k]]


def _answer(outcomes: Outcomes, questions: Sequence[str], queries: type_vectors) -> None:
    ids = list(outcomes.vectors)
    if not ids:
        return
    vectors = np.array([outcomes.vectors[name] for name in ids], np.float32)
    for question, query in zip(questions, queries, strict=True):
        print(f"\n   {question}", flush=True)
        for row, score in nearest(vectors, query, ANSWERS):
            print(f"      {score:.2f}  {outcomes.titles[ids[row]]}", flush=True)
    print()


def _embed(settings: Settings, questions: Sequence[str]) -> type_vectors:
    model = Model.open(settings)
    if "query" in model.layout.prompts:
        asking = settings.model.model_copy(update={"prompt": "query", "prompt_text": None})
        model = Model.open(settings.model_copy(update={"model": asking}))
    tokens = model.tokenizer().encode(list(questions))
    return model.encoder().encode(Batch.of([entry.ids for entry in tokens]))


# ---- what is shown


def _say(title: str, detail: str) -> None:
    print(f"\n{title}: {detail}", flush=True)


def _done(began: float, detail: str) -> None:
    print(f"   {detail} ({time.monotonic() - began:.1f} s)", flush=True)


def _indented(text: str) -> str:
    return "\n".join(f"      {line}" for line in text.splitlines())
