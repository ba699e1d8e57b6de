"""Where logs begin and end, as a consumer hears it from their leaders.

Comes in: a consumer, and partitions in its own form. Goes out: an offset for each. Never here: what a group has committed, or what
an admin client is told (``kafka_topics``).

The client asks those partitions alone that have a leader at that moment. Of the others it says nothing, raises KeyError, or, asked
by time, says what means that there is no such record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kafka import errors as kafka_errors


def led(consumer: Any, partitions: Iterable[Any]) -> list[Any]:
    """Those that have a leader, as far as the client knows; it is asked to look again for the others."""
    cluster, wanted = consumer._cluster, list(partitions)

    def leader(tp: Any) -> int | None:
        try:
            found: int | None = cluster.leader_for_partition(tp)
        except KeyError:  # the client looks twice, and its topic went between
            return None
        return found

    found = [tp for tp in wanted if leader(tp) not in (None, -1)]
    if len(found) < len(wanted):
        cluster.request_update()
    return found


def begins(consumer: Any, partitions: Iterable[Any], timeout_ms: int | None = None) -> dict[Any, int]:
    """The first offset of each partition; None: the consumer's own time.

    Raises:
        KafkaError: one has no leader, or does not answer in time.
    """
    return _ask(consumer.beginning_offsets, partitions, timeout_ms)


def ends(consumer: Any, partitions: Iterable[Any], timeout_ms: int | None = None) -> dict[Any, int]:
    """The offset behind the last record of each partition, for a read_committed consumer the last that is decided; as above."""
    return _ask(consumer.end_offsets, partitions, timeout_ms)


def bounds(consumer: Any, partition: Any, timeout_ms: int | None = None) -> tuple[int, int]:
    """The first offset of one partition, and the one behind its last record; as above."""
    return begins(consumer, [partition], timeout_ms)[partition], ends(consumer, [partition], timeout_ms)[partition]


def since(consumer: Any, partitions: Iterable[Any], moment_ms: int, timeout_ms: int | None = None) -> dict[Any, int]:
    """The first offset of each partition whose record is of ``moment_ms`` (Unix time) or later, else its end; as above."""
    # The end first: what is written between the two questions must not be passed over.
    last = ends(consumer, partitions, timeout_ms)
    found = consumer.offsets_for_times(dict.fromkeys(last, moment_ms), timeout_ms) if last else {}
    for tp in [tp for tp in last if found.get(tp) is None]:
        # None, if its leader went away meanwhile; alone, that is an error.
        found |= consumer.offsets_for_times({tp: moment_ms}, timeout_ms)
    return {tp: end if (at := found[tp]) is None else at.offset for tp, end in last.items()}


def _ask(
    method: Callable[[list[Any], int | None], Mapping[Any, int]], partitions: Iterable[Any], timeout_ms: int | None
) -> dict[Any, int]:
    try:
        return dict(method(asked, timeout_ms)) if (asked := list(partitions)) else {}
    except (KeyError, AttributeError) as error:  # AttributeError: a partition of whose offset the broker says nothing
        raise kafka_errors.LeaderNotAvailableError("a partition has no leader at the moment") from error
