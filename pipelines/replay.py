"""The command ``dead-letters replay``: dead letters go back to where they came from, each once.

Comes in: settings, and which dead letters are wanted. Goes out: their records, byte for byte, in the source topics, and
receipts in the dead-letter topic. Never here: an offset of a consumer group, or a record in a message.

What makes it once, whatever dies and however often it is run:

1. Start the transactional producer. Its id is the topic's alone, so this aborts, or lets finish, what an earlier replay left
   open, and fences one that still runs: from here on nobody else's replay of this topic can commit.
2. Read all receipts, up to where the partitions end after step 1.
3. Read the dead letters up to the same ends. Leave out what is not wanted, what has a receipt, and what does not fit.
4. Send the others in transactions, each with the receipts of what it sends.
5. If one fails, or its outcome is unknown, stop: the next run begins at step 1, and finds its receipt or does not.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from pipelines.dead_letters import DeadLetterTopic, Wanted, require_topic
from pipelines.dead_letters_text import moment, safe
from workers import kafka_client, kafka_topics
from workers.codecs.dead_letter import Refused, render_replay
from workers.codecs.receipt import Receipts, render_receipts
from workers.errors import EnvironmentFault, RetryableError, SettingsError
from workers.kafka_topics import Topic
from workers.metrics import Metrics
from workers.records import Message, TopicPartition
from workers.settings import Settings
from workers.sinks.kafka import TransactionalSink

# A transaction is to be flushed well within the sink's ten seconds, also by a slow broker.
LETTERS = 500
BYTES = 4 << 20
NAMED = 20  # of the dead letters that do not fit, so many are named


@dataclass(slots=True)
class _Tally:
    """What became of the dead letters that are wanted."""

    sent: Counter[str] = field(default_factory=Counter)
    misfits: int = 0
    already: int = 0
    foreign: Counter[str] = field(default_factory=Counter)
    old: Counter[str] = field(default_factory=Counter)
    keyed: bool = False

    @property
    def count(self) -> int:
        """How many were sent."""
        return self.sent.total()


def run_replay(settings: Settings, wanted: Wanted, *, to: str | None, limit: int | None, dry_run: bool) -> int:
    """Send the wanted dead letters that were not sent yet, ``limit`` of them at most, to their source topics or to ``to``.

    Returns 1 when some do not fit their topic, which are named and stay, else 0.

    Raises:
        EnvironmentFault: a topic or a right is missing, or a transaction failed.
        RetryableError: the broker does not answer.
        SettingsError: nothing says where to send them, or it is where they must not go.
    """
    _require_target(settings, to)
    dead = DeadLetterTopic.find(settings)
    targets = _targets(settings, dead.topic, to)
    tally = _Tally()
    if dry_run:
        for refused, message in islice(_ready(dead, None, wanted, targets, to, tally), limit):
            _count(tally, refused, message, targets)
    else:
        _send(settings, dead, targets, wanted, to, limit, tally)
    return _report(dead, tally, dry_run=dry_run)


def _require_target(settings: Settings, to: str | None) -> None:
    if to is None and not settings.source.topics and settings.source.pattern is None:
        raise SettingsError(
            "replay needs source.topics or source.pattern, to which dead letters go back, or --to TOPIC"
        )
    if to == settings.dead_letter.topic:
        raise SettingsError(f"--to {to} is dead_letter.topic itself")
    if to is not None and to in {getattr(output, "topic", None) for output in settings.outputs}:
        raise SettingsError(f"--to {to} is an output: texts do not belong among vectors")


def _targets(settings: Settings, dead: Topic, to: str | None) -> dict[str, Topic]:
    """The topics that may be written to."""
    with kafka_client.admin(settings.kafka) as client:
        names = [to] if to is not None else kafka_topics.source_topics(client, settings.source)
        topics = kafka_topics.describe_topics(client, names)
    if not names:
        raise EnvironmentFault(f"source.pattern {settings.source.pattern} matches no topic that this user may see")
    for name in names:
        require_topic(settings.kafka, topics, name, "WRITE", "write to")
    require_topic(settings.kafka, {dead.name: dead}, dead.name, "WRITE", "write to")
    return topics


def _send(
    settings: Settings,
    dead: DeadLetterTopic,
    targets: Mapping[str, Topic],
    wanted: Wanted,
    to: str | None,
    limit: int | None,
    tally: _Tally,
) -> None:
    transactional_id = f"{dead.topic.name}.replay"
    sink = TransactionalSink(
        settings.kafka, [dead.topic.name, *targets], Metrics(), transactional_id=lambda: transactional_id
    )
    try:
        # Step 1.
        try:
            sink.open()
        except EnvironmentFault as error:
            raise EnvironmentFault(
                f"{error}; replay writes to topics {dead.topic.name} and {', '.join(targets)} as transactional id "
                f"{transactional_id}: grant Write on each"
            ) from error
        # Steps 2 and 3.
        letters = islice(_ready(dead, dead.ends(), wanted, targets, to, tally), limit)
        for batch in _batches(letters):
            try:
                # Step 4.
                sink.publish([*(message for _, message in batch), *_receipts(dead.topic, batch)])
            except RetryableError as error:
                # Step 5.
                raise EnvironmentFault(
                    f"replay stopped after {tally.count:,} dead letters: {error}; run it again: it goes on from there, and "
                    f"sends none twice (if another replay of {dead.topic.name} has begun meanwhile, that one goes on)"
                ) from error
            for refused, message in batch:
                _count(tally, refused, message, targets)
    except BaseException:
        sink.abandon()
        raise
    sink.close()


def _ready(
    dead: DeadLetterTopic,
    ends: Mapping[TopicPartition, int] | None,
    wanted: Wanted,
    targets: Mapping[str, Topic],
    to: str | None,
    tally: _Tally,
) -> Iterator[tuple[Refused, Message]]:
    """The dead letters to send, each as the message that it becomes; what became of the others is in ``tally``."""
    receipts: Receipts = dead.receipts(ends)
    for refused in dead.letters(ends):
        if not wanted(refused):
            continue
        origin = refused.record.origin
        if refused.place in receipts:
            tally.already += 1
        elif to is None and origin.topic not in targets:
            tally.foreign[origin.topic] += 1
        else:
            # To their own topic's own partition, which the producer chose in its own way; elsewhere by the key.
            topic = targets[to or origin.topic]
            message = render_replay(refused, topic.name, None if to else origin.partition)
            misfit = _misfit(message, topic, int(time.time() * 1000))
            if misfit is None:
                yield refused, message
                continue
            tally.misfits += 1
            if tally.misfits <= NAMED:
                place = f"{refused.place.partition}/{refused.place.offset}"
                print(f"left  {place} from {safe(str(origin))}: {misfit}", file=sys.stderr, flush=True)


def _misfit(message: Message, topic: Topic, now_ms: int) -> str | None:
    """Why the topic would refuse the message, and with it the whole transaction; None: it would not."""
    if message.partition is not None and message.partition >= topic.partitions:
        return f"topic {topic.name} has no partition {message.partition} any more (--to {topic.name} sends it where its key goes)"
    if message.size > topic.max_message_bytes:
        return (
            f"it takes up to {message.size:,} bytes, and topic {topic.name} takes {topic.max_message_bytes:,} "
            "(max.message.bytes)"
        )
    if topic.compacted and message.key is None:
        return f"it has no key, and topic {topic.name} is compacted"
    age_ms = now_ms - message.timestamp_ms
    if topic.log_append_time or message.timestamp_ms < 0:
        return None
    if age_ms > topic.timestamp_before_max_ms or -age_ms > topic.timestamp_after_max_ms - 1_000:
        which = "before" if age_ms > 0 else "after"
        return f"its time is {moment(message.timestamp_ms)}, which topic {topic.name} refuses (message.timestamp.{which}.max.ms)"
    return None


def _batches(letters: Iterator[tuple[Refused, Message]]) -> Iterator[list[tuple[Refused, Message]]]:
    batch: list[tuple[Refused, Message]] = []
    size = 0
    for refused, message in letters:
        if batch and (len(batch) >= LETTERS or size + message.size > BYTES):
            yield batch
            batch, size = [], 0
        batch.append((refused, message))
        size += message.size
    if batch:
        yield batch


def _receipts(topic: Topic, batch: Sequence[tuple[Refused, Message]]) -> Iterator[Message]:
    offsets: dict[int, list[int]] = {}
    for refused, _ in batch:
        offsets.setdefault(refused.place.partition, []).append(refused.place.offset)
    for partition, sent in offsets.items():
        yield from render_receipts(topic.name, partition, sent, int(time.time() * 1000))


def _count(tally: _Tally, refused: Refused, message: Message, targets: Mapping[str, Topic]) -> None:
    topic = targets[message.topic]
    tally.sent[topic.name] += 1
    tally.keyed |= message.key is not None
    if 0 <= topic.retention_ms < time.time() * 1000 - message.timestamp_ms and not topic.log_append_time:
        tally.old[topic.name] += 1


def _report(dead: DeadLetterTopic, tally: _Tally, *, dry_run: bool) -> int:
    did = "would replay" if dry_run else "replayed"
    where = ", ".join(f"{count:,} to {name}" for name, count in sorted(tally.sent.items()))
    already = f"; {tally.already:,} had been replayed before" if tally.already else ""
    print(f"{did} {tally.count:,} dead letters of {dead.topic.name}{f' ({where})' if where else ''}{already}")
    for name, count in sorted(tally.foreign.items()):
        print(f"left  {count:,} of topic {safe(name)}, which this pipeline does not read: --to says where to send them")
    for name, count in sorted(tally.old.items()):
        print(
            f"note  {count:,} are older than topic {name} keeps records (retention.ms): Kafka may delete them soon; have the "
            "pipeline running"
        )
    if tally.keyed:
        print(
            "note  a replayed record comes after the newer records of its key: where its key was written since, the older "
            "text's vector is now the latest"
        )
    if tally.misfits:
        more = f" (the first {NAMED} are named)" if tally.misfits > NAMED else ""
        print(f"left  {tally.misfits:,} that do not fit their topic{more}: mend it, or use --to", file=sys.stderr)
        return 1
    return 0
