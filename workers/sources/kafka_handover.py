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
from workers.errors import EnvironmentFault, RetryableError
from workers.records import TopicPartition
from workers.settings import KafkaSettings

LOG = log.get(__name__)

# A second round that is under way takes a second or two; after each that was asked for in vain, twice as long.
LOOK_S = 5.0
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
        pause, rounds = LOOK_S, 0
        while not self._ended.wait(pause):
            try:
                left = self._left()
            except (RetryableError, EnvironmentFault) as error:
                LOG.debug("group not seen %s", log.fields(group=self._group, error=error))
                continue
            if left is None:
                continue
            if not left:
                return
            partitions = ",".join(map(str, sorted(left)))
            if rounds == MOST_ROUNDS:
                LOG.warning("partitions without an owner %s", log.fields(group=self._group, partitions=partitions))
                return
            LOG.info(
                "partitions without an owner: joining anew %s", log.fields(group=self._group, partitions=partitions)
            )
            rounds, pause = rounds + 1, 2 * pause
            self._due.set()

    def _left(self) -> set[TopicPartition] | None:
        """Partitions without an owner; None while nobody can say."""
        with kafka_client.admin(self._kafka) as client:
            group = kafka_groups.describe(client, self._group)
        wanted = self._wanted()
        if group.state != "Stable" or not wanted:
            return None
        return wanted - {partition for member in group.members for partition in member.partitions}
