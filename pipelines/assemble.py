"""A reader put together: source, decoder, outputs and checkpoint as the settings say, around a tokenizer and a pool.

Comes in: settings, a model, who tokenises and who encodes. Goes out: a :class:`StreamReader` that has not started. Never
here: Ray, which is why the benchmarks measure the same reader that runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from pipelines.model import Model
from pipelines.outputs import file_outlets
from workers import metrics
from workers.checkpoint import Checkpoint
from workers.codecs import decoder_for
from workers.outcomes import TextTokenizer
from workers.outlets import DeadLetterOutlet, Outlet
from workers.pool import EncoderPool
from workers.reader import ReaderOptions, StreamReader
from workers.settings import Settings
from workers.settings.outputs import Output
from workers.sinks.base import Sink
from workers.sinks.kafka import IdempotentSink, TransactionalSink
from workers.sources.kafka import KafkaSource
from workers.state import Digests, Known
from workers.state.kafka_log import state_log
from workers.trace import UNTRACED, Trace

CLIENT = "stream-embedder"


def _unwritten(output: Output) -> set[str]:
    """Settings of an output that change nothing of what is written there."""
    return {"rotate", "compression", *(() if output.together else ("chunks",))}


def stream_reader(
    settings: Settings,
    model: Model,
    outlets: Sequence[Outlet],
    tokenizer: TextTokenizer,
    pool: EncoderPool,
    *,
    slot: Callable[[], str],
    cuda: bool,
    meter: metrics.Metrics,
    trace: Trace = UNTRACED,
) -> StreamReader:
    """The loop of one member of the pipeline's group.

    Args:
        settings: the pipeline's.
        model: what the outputs' projections and fingerprints come from.
        outlets: the outputs that are topics.
        tokenizer: turns texts into arrays.
        pool: takes the arrays.
        slot: this reader's own name in the group, and its successor's after it; it may change while the reader lives.
        cuda: whether encoders run on GPUs, for the default of a batch's tokens.
        meter: counts.
        trace: is told of batches; the reader closes it at its end.

    Raises:
        EnvironmentFault, SettingsError: as :func:`pipelines.outputs.file_outlets`.
    """
    source = KafkaSource(
        settings.source,
        settings.kafka,
        settings.limits,
        client_id=f"{CLIENT}-{slot()}",
        group_instance_id=slot() if settings.source.static_membership else None,
        meter=meter,
    )
    topics = [outlet.topic for outlet in outlets] + [settings.dead_letter.topic]
    files = file_outlets(model, meter, trace)
    known = None
    if settings.state.topic is not None:
        topics.append(settings.state.topic)
        digests = Digests(
            f"{model.fingerprint_of(model.projection(output))} {output.model_dump_json(exclude=_unwritten(output))}"
            for output in settings.outputs
        )
        known = Known(
            settings.state.topic,
            state_log(settings.kafka, settings.state.topic),
            digests,
            skip=settings.state.unchanged == "skip",
        )
    sink: Sink
    if settings.delivery.guarantee == "exactly_once":
        sink = TransactionalSink(settings.kafka, topics, meter, transactional_id=slot)
    else:
        sink = IdempotentSink(settings.kafka, topics, meter, commit=source.commit)
    if trace is not UNTRACED:
        from workers.otel.carrying import Carrying  # noqa: PLC0415 - only who traces has its libraries

        outlets = [replace(outlet, renderer=Carrying(outlet.renderer, trace, sink.refuses)) for outlet in outlets]
    dead = DeadLetterOutlet(
        settings.dead_letter.topic,
        model.fingerprint_of(model.projection(settings.outputs[0])),
        settings.delivery.on_dead_letter == "tombstone",
    )
    return StreamReader(
        source,
        decoder_for(settings, prompts=model.layout.prompts),
        tokenizer,
        pool,
        ReaderOptions(
            limits=settings.limits,
            max_batch_tokens=settings.pool.batch_tokens(cuda=cuda),
            reject_overflow=settings.model.overflow == "reject",
            commit_interval_s=settings.delivery.commit_interval_s,
            linger_s=settings.pool.linger_ms / 1000,
        ),
        meter,
        lambda ledger, lock: Checkpoint(
            ledger, lock, source, sink, outlets, dead, meter, files=files, known=known, trace=trace
        ),
        topics=[*(outlet.name for outlet in outlets), dead.name],
        files=[outlet.output for outlet in files],
        known=known,
        trace=trace,
    )
