"""Whether a static member's predecessor has finished handing over what it gave up; if not, the group settles anew.

Comes in: a group whose member under our name has just been replaced by us. Goes out: that a rejoin is due. Never here: the
rejoin itself (``kafka_member``).

A cooperative rebalance has two rounds, and the second, in which partitions that were given up get their new owners, is asked
for by whoever gave them up. Where that process dies in between, a successor under the same ``group.instance.id`` gets its place
without a rebalance (KIP-345), nobody asks for the second round, and the partitions stay without an owner.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from workers import kafka_client, kafka_groups, log
from workers.records import TopicPartition
from workers.settings import KafkaSettings

LOG = log.get(__name__)

# Partitions that have no owner twice in a row, so far apart, will not get one by themselves: a second round takes seconds.
LOOK_S, MOST_LOOK_S = 4.0, 60.0
# More of them would disturb a group that something else keeps from being whole.
MOST_ROUNDS = 5


class Handover:
    """Looks at the group from outside, on a thread of its own, until all partitions have been seen to have an owner."""

    def __init__(self, kafka: KafkaSettings, group: str, wanted: Callable[[], set[TopicPartition]]) -> None:
        """``wanted``: the partitions that the group is to read, as far as they are known."""
        self._kafka = kafka
        self._group = group
        self._wanted = wanted
        self._due = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"handover {group}", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()

    def take(self) -> bool:
        """Whether a rejoin is due; it is due once."""
        if not self._due.is_set():
            return False
        self._due.clear()
        return True

    def _run(self) -> None:
        pause, rounds, before = LOOK_S, 0, None
        while not self._ended.wait(pause):
            left = self._left()
            if left is None:
                # What cannot be seen is looked for ever more rarely.
                pause, before = min(1.5 * pause, MOST_LOOK_S), None
                continue
            if not left:
                return
            told = log.fields(group=self._group, partitions=",".join(map(str, sorted(left))))
            if left != before:
                pause, before = LOOK_S, left
            elif rounds == MOST_ROUNDS:
                LOG.warning("partitions without an owner %s", told)
                return
            else:
                LOG.info("partitions without an owner: joining anew %s", told)
                rounds, before = rounds + 1, None
                pause = min(2**rounds * LOOK_S, MOST_LOOK_S)
                self._due.set()

    def _left(self) -> set[TopicPartition] | None:
        """Partitions without an owner; None while nobody can say."""
        try:
            with kafka_client.admin(self._kafka) as client:
                group = kafka_groups.describe(client, self._group)
        except Exception as error:  # noqa: BLE001 - brokers that are away, or a foreign member's words: we look again
            LOG.debug("group not seen %s", log.fields(group=self._group, error=type(error).__name__))
            return None
        wanted = self._wanted()
        if group.state != "Stable" or not wanted:
            return None
        return wanted - {partition for member in group.members for partition in member.partitions}
