"""One seed: feed a pipeline, strike as planned, let it finish, and compare.

Comes in: a plan, a stage, a number of records. Goes out: a result. Never here: more than one pipeline's life.
"""

from __future__ import annotations

import json
import random
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from kafka import TopicPartition as KafkaTopicPartition

from tests.integration.pipeline import wait_until
from tests.lab import checker, inquest
from tests.lab.chronicle import Chronicle
from tests.lab.documents import Document, documents
from tests.lab.faults import STRIKE, Scene
from tests.lab.memory import Limit
from tests.lab.plan import Plan
from tests.lab.stage import MAX_TOKENS, WIDTH, Stage
from tests.lab.supervised import Supervised
from workers import kafka_client, kafka_topics
from workers.errors import StreamEmbedderError
from workers.settings import KafkaSettings

PATIENCE_S = 300.0


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a seed.

    ``restarts``: how often the pipeline gave up by itself and was started again; ``notes``: what came of faults that look for
    their moment; ``trouble``: why it did not come to its end, with the log's, and then nothing was compared.
    """

    plan: Plan
    records: int
    seconds: float
    restarts: int
    findings: checker.Findings = field(default_factory=checker.Findings)
    trouble: str = ""
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    @property
    def sound(self) -> bool:
        return not self.findings and not self.trouble

    def as_json(self) -> str:
        """One line, which :meth:`of_json` reads."""
        found = {"counts": self.findings.counts, "examples": self.findings.examples}
        found |= {"trouble": self.trouble, "notes": self.notes}
        about = {"seed": self.plan.seed, "sinks": self.plan.sinks, "records": self.records, "seconds": self.seconds}
        return json.dumps({**about, "restarts": self.restarts, **found})

    @classmethod
    def of_json(cls, line: str) -> Result:
        """The result of an earlier run, its plan drawn anew."""
        found = json.loads(line)
        findings = checker.Findings(Counter(found["counts"]), found["examples"])
        plan = Plan.of(found["seed"], found["sinks"])
        more = (findings, found["trouble"], tuple(found.get("notes", ())))
        return cls(plan, found["records"], found["seconds"], found["restarts"], *more)


def trial(plan: Plan, stage: Stage, count: int) -> Result:
    """Run a seed. What it leaves is removed if all is well, else kept in the result's folder."""
    folder = stage.folder / f"seed-{plan.seed}-{time.monotonic_ns()}"
    folder.mkdir()
    began = time.monotonic()
    findings, trouble = checker.Findings(), ""
    sound = False
    running = _Trial(plan, stage, folder, count)
    pipelines, chronicle = running.scene.pipelines, running.scene.chronicle
    try:
        try:
            running.run(findings)
        except Exception:
            trouble = traceback.format_exc()
        inquest.examine(pipelines, chronicle, poison="poison text" in plan.conditions, findings=findings)
        restarts = sum(len(pipeline.exits) for pipeline in pipelines)
        about = (restarts, findings, trouble, tuple(chronicle.notes), folder)
        result = Result(plan, count, time.monotonic() - began, *about)
        sound = result.sound
    finally:
        for pipeline in pipelines:
            pipeline.drop_logs(None if sound else folder / "ray")
    if sound:
        shutil.rmtree(folder, ignore_errors=True)
    return result


class _Trial:
    def __init__(self, plan: Plan, stage: Stage, folder: Path, count: int) -> None:
        self._plan, self._stage, self._folder = plan, stage, folder
        self._kafka: KafkaSettings = stage.broker.settings
        stem = f"seed-{plan.seed}-{time.monotonic_ns()}"
        self._names = {name: f"{stem}-{name}" for name in ("in", "out", "dead")}
        self._group = stem
        self._documents: Sequence[Document] = list(
            documents(
                count,
                plan.seed,
                poison="poison text" in plan.conditions,
                long="tight limits" in plan.conditions,
            )
        )
        self._sent = 0
        settings = self._made_settings(stem)
        chronicle = Chronicle()
        # The machine's memory is one for all lanes.
        limit = Limit(stage.folder.parent) if "memory runs short" in plan.faults else None
        module = "pipelines.stand_in tests.lab.encoder:MortalEncoder"
        self.pipeline = Supervised(folder, settings, module, chronicle, limit)
        self.scene = Scene(
            stage, [self.pipeline], chronicle, settings, folder, random.Random(plan.seed), self._feed_some
        )

    def _made_settings(self, stem: str) -> dict[str, Any]:
        plan = self._plan
        outputs: list[dict[str, Any]] = []
        if "topic" in plan.sinks:
            outputs.append({"kind": "kafka", "topic": self._names["out"], **plan.topic})
        self._bucket = ""
        if "files" in plan.sinks:
            self._bucket = self._stage.s3.add_bucket(stem)
            outputs.append({"kind": "parquet", "uri": f"s3://{self._bucket}/vectors", **plan.files})
        return {
            "model": {"name": str(self._stage.model)},
            "source": {
                "topics": [self._names["in"]],
                "group": self._group,
                "text": "text",
                "id": "id",
                "static_membership": "static members" in plan.conditions,
            },
            "outputs": outputs,
            "dead_letter": {"topic": self._names["dead"]},
            "kafka": {"bootstrap_servers": self._kafka.bootstrap_servers},
            "readers": {"count": plan.readers, "cpus": 0.25},
            "pool": {"min": 2, "max": 2, "cpus_per_replica": 0.25, "call_timeout_s": 10},
            "limits": {"records": 500, "bytes": 300_000} if "tight limits" in plan.conditions else {"records": 3_000},
            "delivery": {"commit_interval_s": 0.3, "cluster": "first"},
        }

    def run(self, findings: checker.Findings) -> None:
        plan = self._plan
        partitions = {"in": plan.partitions, "out": plan.partitions, "dead": 2}
        for name, count in partitions.items():
            # A dead letter is its record and some headers more.
            kafka_topics.create_topics(
                self._kafka, {self._names[name]: count}, **{"max.message.bytes": "1200000"} if name == "dead" else {}
            )
        chunks = len(plan.steps) + 1
        with self.pipeline:
            for number, step in enumerate(plan.steps):
                self._produce(len(self._documents) * (number + 1) // chunks)
                self._flows_on(-1 if number == 0 else self._committed())
                time.sleep(step.after)
                with ThreadPoolExecutor(len(step.faults)) as together:
                    for struck in [together.submit(STRIKE[fault], self.scene) for fault in step.faults]:
                        struck.result()
            self._produce(len(self._documents))
            self._flows_on(self._sent - 1)
            code = self.pipeline.terminate()
            assert code == 0, f"the drain ended with exit code {code}\n{self.pipeline.tail()}"
        self._compare(findings)

    # ---- in

    def _produce(self, until: int) -> None:
        producer = kafka_client.bare_producer(self._kafka, linger_ms=20, batch_size=200_000)
        try:
            futures = [
                producer.send(
                    self._names["in"],
                    key=document.key,
                    value=kafka_client.NULL if document.value is None else document.value,
                    headers=document.headers,
                )
                for document in self._documents[self._sent : until]
            ]
            producer.flush(60)
            for future in futures:
                future.get(10)
        finally:
            producer.close(timeout=5)
        self._sent = until

    def _feed_some(self) -> None:
        """Half of what the next step would have fed."""
        self._produce(min(self._sent + len(self._documents) // (2 * len(self._plan.steps) + 2), len(self._documents)))

    def _committed(self) -> int:
        try:
            with kafka_client.admin(self._kafka) as client:
                return sum(kafka_topics.committed_offsets(client, self._group).values())
        except StreamEmbedderError:
            return -1

    def _flows_on(self, at: int) -> None:
        """Wait until the group has committed more than ``at`` records, or all there are."""
        goal = min(at + 1, self._sent)
        wait_until(
            lambda: self._committed() >= goal,
            PATIENCE_S,
            lambda: f"commits stand at {self._committed()}, not at {goal} of {self._sent}\n{self.pipeline.tail(200)}",
        )

    # ---- out

    def _compare(self, findings: checker.Findings) -> None:
        plan = self._plan
        sent = checker.source(self._read("in"), self._documents, findings)
        oracle = checker.Oracle(self._stage.model, MAX_TOKENS)
        if "topic" in plan.sinks:
            vectors = checker.Vectors(sent, oracle, WIDTH, plan.topic["dim"])
            checker.check_topic(sent, self._read("out"), plan.topic["format"], vectors, findings)
        if "files" in plan.sinks:
            vectors = checker.Vectors(sent, oracle, WIDTH, plan.files["dim"])
            checker.check_files(sent, self._glob(), vectors, findings)
        checker.check_dead_letters(sent, self._read("dead"), findings)

    def _read(self, name: str) -> list[Any]:
        """A topic as a read_committed reader sees it, partition by partition."""
        consumer = kafka_client.bare_consumer(self._kafka, auto_offset_reset="earliest", fetch_max_bytes=16 << 20)
        try:
            topic, found = self._names[name], []
            for number in sorted(consumer.partitions_for_topic(topic)):
                partition = KafkaTopicPartition(topic, number)
                consumer.assign([partition])
                consumer.seek_to_beginning(partition)
                end = consumer.end_offsets([partition])[partition]
                deadline = time.monotonic() + PATIENCE_S
                while consumer.position(partition) < end:
                    found += consumer.poll(500, max_records=5_000).get(partition, [])
                    assert time.monotonic() < deadline, f"{topic}/{number} cannot be read to its end"
            return found
        finally:
            consumer.close()

    def _glob(self) -> Any:
        """What a plain glob over the bucket sees; the server keeps its buckets as folders."""
        files = sorted((self._stage.s3.data / self._bucket).rglob("*.parquet"))
        return pa.concat_tables([pq.ParquetFile(file).read() for file in files])
