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
from pipelines.positions import source_partitions, standings
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
        found = standings(client, settings, places)
        members = kafka_groups.members(client, settings.source.group)
    if as_json:
        for one in found:
            print(json.dumps(one.as_json()))
        return 0
    rows = []
    for one in found:
        committed = "none" if one.committed is None else f"{one.committed.offset:,}"
        rows.append((str(one.partition), committed, f"{one.end:,}", f"{one.lag:,}", one.elsewhere))
    print(plain(("partition", "committed", "end", "lag", "outputs elsewhere"), rows))
    print(f"\ngroup {settings.source.group}: {members} members, lag {sum(one.lag for one in found):,}")
    return 0


def run_reset(settings: Settings, places: Sequence[str], *, to: str, dry_run: bool) -> int:
    """Commit other offsets for a group that is empty: earliest, latest, an offset, the first record since a moment, or ``batch``.

    ``batch``: where the batch of these settings over the source's topics ends, so that the stream goes on from there.

    Outputs that are topics go on from there, so records that are read again are embedded again. Outputs that are files go by
    their own chains, whatever is committed.

    Raises:
        SettingsError: a place or ``to`` is none.
        EnvironmentFault: the group has members, a partition is not there, or an offset is outside its log.
        RetryableError: the broker does not answer, or refuses.
    """
    group = settings.source.group
    with kafka_client.admin(settings.kafka) as client:
        topics, wanted = source_partitions(client, settings, places)
        if (members := kafka_groups.members(client, group)) and not dry_run:
            raise EnvironmentFault(
                f"group {group} has {members} members, which would go on from where they are: stop the pipeline first"
            )
        targets = _after_batch(settings, wanted) if to == "batch" else _targets(client, topics, wanted, to)
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


def _after_batch(settings: Settings, wanted: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
    from pipelines.batch.topic import batch_ends  # noqa: PLC0415 - brings Parquet along

    ends = batch_ends(settings)
    if absent := [tp for tp in wanted if tp not in ends]:
        raise EnvironmentFault(
            f"the batch did not read {absent[0]}: say where that begins (--to earliest {absent[0]}), and name the others beside "
            "--to batch"
        )
    return {tp: ends[tp] for tp in wanted}


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
            f"--to {to}: write earliest, latest, batch, an offset, a timestamp such as 2026-05-01T00:00:00Z, or how long ago: "
            "90m, 2h, 7d"
        ) from None
    found = kafka_groups.offsets_since(client, wanted, since_ms)
    # No record since then: what comes next is the first one.
    return {tp: found.get(tp, ends[tp]) for tp in wanted}
