"""The commands ``offsets show`` and ``offsets reset``: how far a pipeline's group is, and putting it elsewhere.

Comes in: settings, which partitions, where to. Goes out: a table or JSON, or commits under the group that nobody is in. Never
here: a running pipeline's offsets, which are its own.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.dead_letters import parse_since
from pipelines.table import plain
from workers import kafka_client, kafka_groups, kafka_topics
from workers.errors import EnvironmentFault, SettingsError
from workers.kafka_topics import Topic
from workers.records import TopicPartition
from workers.settings import ParquetOutput, Settings


def run_show(settings: Settings, places: Sequence[str], *, as_json: bool) -> int:
    """Print each partition's committed offset, the log's end and the lag, and outputs that are elsewhere.

    Raises:
        SettingsError: a place is none.
        EnvironmentFault: a topic or partition is not there, or no broker answers.
        RetryableError: the broker does not answer now.
    """
    with kafka_client.admin(settings.kafka) as client:
        topics, wanted = _wanted(client, settings, places)
        committed = kafka_topics.committed_positions(client, settings.source.group)
        begins, ends = kafka_topics.begin_offsets(client, topics), kafka_topics.end_offsets(client, topics)
        members = kafka_groups.members(client, settings.source.group)
    rows, lines, total = [], [], 0
    for tp in wanted:
        at = committed.get(tp)
        lag = max(0, ends[tp] - max(begins[tp], begins[tp] if at is None else at.offset))
        total += lag
        apart = {} if at is None else {name: own for name, own in at.outputs.items() if own != at.offset}
        lines.append(
            {
                "topic": tp.topic,
                "partition": tp.partition,
                "committed": None if at is None else at.offset,
                "begin": begins[tp],
                "end": ends[tp],
                "lag": lag,
                "outputs": {} if at is None else dict(at.outputs),
            }
        )
        elsewhere = ", ".join(f"{name} at {own:,}" for name, own in sorted(apart.items()))
        rows.append((str(tp), "none" if at is None else f"{at.offset:,}", f"{ends[tp]:,}", f"{lag:,}", elsewhere))
    if as_json:
        for line in lines:
            print(json.dumps(line))
        return 0
    print(plain(("partition", "committed", "end", "lag", "outputs elsewhere"), rows))
    print(f"\ngroup {settings.source.group}: {members} members, lag {total:,}")
    return 0


def run_reset(settings: Settings, places: Sequence[str], *, to: str, dry_run: bool) -> int:
    """Commit other offsets for a group that is empty: earliest, latest, an offset, or the first record since a moment.

    Outputs that are topics go on from there, so records that are read again are embedded again. Outputs that are files go by
    their own chains, whatever is committed.

    Raises:
        SettingsError: a place or ``to`` is none.
        EnvironmentFault: the group has members, a partition is not there, or an offset is outside its log.
        RetryableError: the broker does not answer, or refuses.
    """
    group = settings.source.group
    with kafka_client.admin(settings.kafka) as client:
        topics, wanted = _wanted(client, settings, places)
        if (members := kafka_groups.members(client, group)) and not dry_run:
            raise EnvironmentFault(
                f"group {group} has {members} members, which would go on from where they are: stop the pipeline first"
            )
        targets = _targets(client, topics, wanted, to)
        committed = kafka_topics.committed_positions(client, group)
        if not dry_run:
            kafka_groups.commit_for(client, group, targets)
    rows = []
    for tp in wanted:
        before = committed.get(tp)
        rows.append((str(tp), "none" if before is None else f"{before.offset:,}", f"{targets[tp]:,}"))
    print(plain(("partition", "from", "to"), rows))
    print(f"\ngroup {group}: {'nothing was changed' if dry_run else f'{len(rows)} partitions reset'}")
    if any(isinstance(output, ParquetOutput) for output in settings.outputs):
        print(
            "Outputs that are files go by their own chains: what they hold is not written again, and what they lack is read "
            "whatever is committed; to embed all of it again, choose another uri."
        )
    return 0


def _wanted(client: Any, settings: Settings, places: Sequence[str]) -> tuple[dict[str, Topic], list[TopicPartition]]:
    """The source's topics, and those of their partitions that are meant."""
    topics = kafka_topics.describe_topics(client, kafka_topics.source_topics(client, settings.source))
    if missing := [name for name in settings.source.topics if name not in topics]:
        raise EnvironmentFault(f"topic {', '.join(missing)} does not exist, or this user may not see it")
    if not topics:
        raise EnvironmentFault(f"source.pattern {settings.source.pattern} matches no topic that this user may see")
    every = [TopicPartition(name, n) for name in sorted(topics) for n in range(topics[name].partitions)]
    if not places:
        return topics, every
    meant: list[TopicPartition] = []
    for place in places:
        found = [tp for tp in every if place in (tp.topic, str(tp))]
        if not found:
            raise SettingsError(
                f"{place!r} is no topic of the source and no partition of one: write TOPIC or TOPIC/PARTITION, such as "
                f"{every[0]}"
            )
        meant += found
    return topics, sorted(set(meant))


def _targets(
    client: Any, topics: Mapping[str, Topic], wanted: Sequence[TopicPartition], to: str
) -> dict[TopicPartition, int]:
    begins, ends = kafka_topics.begin_offsets(client, topics), kafka_topics.end_offsets(client, topics)
    if to == "earliest":
        return {tp: begins[tp] for tp in wanted}
    if to == "latest":
        return {tp: ends[tp] for tp in wanted}
    if re.fullmatch(r"\d{1,18}", to):
        outside = [tp for tp in wanted if not begins[tp] <= int(to) <= ends[tp]]
        if outside:
            tp = outside[0]
            raise EnvironmentFault(
                f"{tp} has the offsets {begins[tp]:,} to {ends[tp]:,}, and {int(to):,} is none of them; name the partition that "
                "you mean"
            )
        return {tp: int(to) for tp in wanted}
    try:
        since_ms = parse_since(to, datetime.datetime.now(datetime.UTC))
    except SettingsError:
        raise SettingsError(
            f"--to {to}: write earliest, latest, an offset, a timestamp such as 2026-05-01T00:00:00Z, or how long ago: 90m, "
            "2h, 7d"
        ) from None
    found = kafka_groups.offsets_since(client, wanted, since_ms)
    # No record since then: what comes next is the first one.
    return {tp: found.get(tp, ends[tp]) for tp in wanted}
