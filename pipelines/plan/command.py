"""The command ``plan``: what a run or a batch would be, said before anything starts.

Comes in: settings. Goes out: a table, or JSON, on standard output. Never here: Ray, a group, a topic or a file that is written.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TextIO

from pipelines.arguments import Arguments
from pipelines.batch.inputs import find
from pipelines.batch.outlets import dead_letter_location
from pipelines.batch.pieces import plan as cut
from pipelines.model import Model
from pipelines.plan import words
from pipelines.plan.blocks import Sampled
from pipelines.plan.figures import Source, figures
from pipelines.plan.files import sample_files
from pipelines.plan.outcomes import profile
from pipelines.plan.rate import known_rate, measure
from pipelines.plan.topics import sample_topics
from pipelines.topic_ranges import Ranges, batch_ranges, waiting_ranges, whole_ranges
from workers import kafka_client, kafka_topics
from workers.errors import SettingsError
from workers.kafka_topics import Topic
from workers.object_store import Location
from workers.records import Message
from workers.settings import ParquetOutput, Settings

DEFAULT_RECORDS = 2_000
MEASURE_S = 5.0


@dataclass(frozen=True, slots=True)
class _Looked:
    """An input, looked at: what it is, a sample of it, and whether any of it waits. ``file_bytes``: of files, all of them."""

    sources: Sequence[Source]
    sampled: Sequence[Sampled]
    broken: Sequence[str] = ()
    waiting: bool = True
    file_bytes: int | None = None
    refuses: Callable[[Message], str | None] = lambda _: None


def job_of(settings: Settings, named: str | None) -> str:
    """Which command is planned: the one that is named, or that the settings are for."""
    if named is not None:
        return named
    return "batch" if settings.batch.inputs else "run"


def run_plan(settings: Settings, arguments: Arguments, out: TextIO) -> int:
    """Sample the input of the settings' job, and say what it would be.

    Raises:
        SettingsError: the settings do not say what to read and write, or do not suit the model.
        EnvironmentFault: the model, the input or the broker is not there.
        RetryableError: the broker, or the schema registry, does not answer now.
    """
    options = arguments.options
    if options.measure and options.tokens_per_s is not None:
        raise SettingsError("--measure and --tokens-per-s name two rates: leave one out")
    job = job_of(settings, options.job)
    wanted = options.records or DEFAULT_RECORDS
    model = Model.open(settings)
    of_files = job == "batch" and not settings.batch_reads_topics
    looked = _files(settings, wanted) if of_files else _topics(settings, wanted, job)
    found = profile(looked.sampled, model, of_files=of_files, refuses=looked.refuses)
    rate = known_rate(settings, options.tokens_per_s)
    if options.measure:
        rate = measure(model, found.texts, MEASURE_S)
    if rate is None and options.price_per_hour is not None:
        raise SettingsError("--price-per-hour needs a rate: --tokens-per-s N, or --measure")
    made = figures(
        settings,
        job=job,
        model=model.name,
        sources=looked.sources,
        broken=looked.broken,
        waiting=looked.waiting,
        sampled=looked.sampled,
        found=found,
        rate=rate,
        price=options.price_per_hour or settings.batch.price_per_hour,
        file_bytes=looked.file_bytes,
    )
    out.write(json.dumps(words.values(made), ensure_ascii=False) if options.json else words.text(made))
    out.write("\n")
    return 0


def _files(settings: Settings, wanted: int) -> _Looked:
    written = [Location.parse(each.uri) for each in settings.outputs if isinstance(each, ParquetOutput)]
    files = find(settings.batch.inputs, settings.batch.format, [*written, dead_letter_location(settings)])
    planned = cut(files, settings)
    formats = Counter((file.format, file.packed) for file in files)
    sizes = Counter[tuple[str, bool]]()
    for file in files:
        sizes[file.format, file.packed] += file.stored.size
    sources = [
        Source(f"{name}{', packed' if packed else ''}", count, sizes[name, packed], "bytes")
        for (name, packed), count in formats.most_common()
    ]
    return _Looked(
        sources, sample_files(planned.pieces, settings, wanted), planned.broken, file_bytes=sum(sizes.values())
    )


def _topics(settings: Settings, wanted: int, job: str) -> _Looked:
    ranges = batch_ranges(settings) if job == "batch" else waiting_ranges(settings)
    waiting = ranges.offsets > 0 or job == "batch"
    sources = _by_topic(ranges)
    if not waiting:
        ranges = whole_ranges(settings)  # what comes next will be like what came before
    sampled = sample_topics(ranges.partitions, settings.kafka, wanted)
    refuses = _refusal(settings) if job == "run" else lambda _: None
    return _Looked(sources, [sampled], waiting=waiting, refuses=refuses)


def _by_topic(ranges: Ranges) -> list[Source]:
    offsets, partitions = Counter[str](), Counter[str]()
    for each in ranges.partitions:
        offsets[each.partition.topic] += each.offsets
        partitions[each.partition.topic] += 1
    return [
        Source(name, partitions[name], offsets[name], "offsets", topic.compacted)
        for name, topic in ranges.topics.items()
        if name in partitions
    ]


def _refusal(settings: Settings) -> Callable[[Message], str | None]:
    """What the outputs' topics would not take; one that is not there yet is taken to be as Kafka's defaults are."""
    with kafka_client.admin(settings.kafka) as client:
        there = kafka_topics.describe_topics(client, settings.output_topics)
    topics = {name: there.get(name, Topic(name, 1)) for name in settings.output_topics}
    return lambda message: topics[message.topic].refuses(message)
