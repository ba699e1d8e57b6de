"""The command ``demo``: the main job on this machine, with real text through a real Kafka, then a search over the vectors.

Comes in: how many texts, and questions. Goes out: steps with their times, and answers. The pipeline itself is the command
``run`` in a process of its own, as anybody would start it. Never here: anything left behind when it ends, however it ends.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipelines.broker import local_broker
from pipelines.demo_corpus import documents
from pipelines.demo_outcomes import await_outcomes, forget, outcome_reader, produce, read_rest, require_once
from pipelines.demo_process import drain, running_pipeline
from pipelines.demo_search import answer
from pipelines.demo_settings import Names, demo_settings, pipeline_yaml, shown_yaml
from pipelines.search.questions import embed_questions
from pipelines.terminable import terminable
from workers import kafka_topics
from workers.settings import KafkaSettings, Settings

# Twenty seconds of work for MiniLM on two slow cores; the built-in questions have their answers among them.
DEFAULT_ROWS = 600
PARTITIONS = 2
DEAD_BYTES = 2 << 20  # a dead letter is a document and some headers
QUESTIONS = (
    "Which elements of a list occur most often?",
    "run a command in a shell and read its output",
    "write a date and time as text",
)


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
    with terminable(), contextlib.ExitStack() as stack:
        began = time.monotonic()
        _say("1  a Kafka broker", "one that runs already" if bootstrap_servers else "a local one is started")
        kafka = KafkaSettings(bootstrap_servers=stack.enter_context(local_broker(bootstrap_servers)))
        if bootstrap_servers:
            kafka = settings.kafka.model_copy(update={"bootstrap_servers": bootstrap_servers})
            stack.callback(forget, kafka, names)
        kafka_topics.create_topics(kafka, dict.fromkeys((names.documents, names.vectors), PARTITIONS))
        kafka_topics.create_topics(kafka, {names.dead: PARTITIONS}, **{"max.message.bytes": str(DEAD_BYTES)})
        _done(began, f"{kafka.bootstrap_servers}, with topics {', '.join(names.topics)}")

        began = time.monotonic()
        _say("2  documents", "what Python's standard library says about itself")
        corpus = list(documents(rows or DEFAULT_ROWS))
        produce(kafka, names.documents, corpus)
        _done(began, f"{len(corpus):,} records in topic {names.documents}")

        began = time.monotonic()
        mine = demo_settings(settings, kafka, names)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stream-embedder-demo-")))
        config = folder / "pipeline.yaml"
        config.write_text(pipeline_yaml(mine), encoding="utf-8")
        _say("3  the pipeline", "stream-embedder run -c pipeline.yaml, which says")
        print(_indented(shown_yaml(mine)), flush=True)
        asked = [*QUESTIONS, *queries]
        with running_pipeline(config) as process, contextlib.closing(outcome_reader(kafka, names)) as consumer:
            # Beside the pipeline's start, which waits more than it works.
            thread = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="questions"))
            embedded = thread.submit(embed_questions, settings, asked)
            outcomes = await_outcomes(process, consumer, names, len(corpus))
            rate = outcomes.rate(began)
            _done(
                began,
                f"{len(outcomes.vectors):,} vectors and {len(outcomes.dead):,} dead letters, {outcomes.tokens:,} tokens; "
                f"{rate:,.0f} records/s once it ran",
            )
            began = time.monotonic()
            drain(process, mine.delivery.drain_timeout_s + 60)
            read_rest(consumer, outcomes, names)
        require_once(outcomes, len(corpus))
        _done(began, "drained on SIGTERM; every document has one outcome, none is missing, none is there twice")

        began = time.monotonic()
        _say("4  a search over the vectors", "cosine, by the same model")
        answer(outcomes, asked, embedded.result())
        _done(began, 'ask your own: make demo QUERY="…", or stream-embedder demo --query "…"')
    return 0


def _say(title: str, detail: str) -> None:
    print(f"\n{title}: {detail}", flush=True)


def _done(began: float, detail: str) -> None:
    print(f"   {detail} ({time.monotonic() - began:.1f} s)", flush=True)


def _indented(text: str) -> str:
    return "\n".join(f"      {line}" for line in text.splitlines())
