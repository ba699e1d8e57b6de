"""Which encoder gets a call: the one with the fewest calls under way.

Comes in: the replicas that Serve has, and how many calls of ours each has under way. Goes out: an order to try them in. Never
here: sending, retrying, or how many replicas there should be.

Serve's own router draws two at random, and waits for a replica's word that it takes a call. A reader keeps each encoder supplied
with ``pool.in_flight`` calls and no more, so two at random are often full both while another is idle. And the word is of use
only where readers may meet at a replica: where each of them has a call for every replica, and spreads its calls evenly, none
gets more than it is meant to have. Without either a call costs its reader half the CPU (``stream-embedder bench pipeline --parts
replicas``).

The interface is Serve's for routers of one's own (``ray.serve.request_router``).
"""

from __future__ import annotations

import random
from typing import Any

from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica

# One that does not say how much it has, because it has died or hangs, is passed over for the next.
TRIED = 3
# Counts are a moment old: so many calls more than are meant for a replica find it not full.
SLACK = 2


class TakingReplica(RunningReplica):  # type: ignore[misc]
    """A replica that refuses no call."""

    @property
    def is_cross_language(self) -> bool:
        """What Serve's router asks before it waits for a replica's word that it takes a call; its sending asks elsewhere."""
        return True


class LeastBusyRouter(FIFOMixin, RequestRouter):  # type: ignore[misc]
    """Of equally busy replicas any is first: readers hear of each other's calls when a replica answers."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Replicas to try, one after the other."""
        known = self.replica_queue_len_cache.get
        ranked = sorted(candidate_replicas, key=lambda replica: (known(replica.replica_id) or 0, random.random()))  # noqa: S311
        return [[replica] for replica in ranked[:TRIED]]


class TakenRouter(LeastBusyRouter):
    """The same, for callers who need no word that a call was taken."""

    def create_replica_wrapper(self, replica_info: Any) -> RunningReplica:
        """What Serve knows of a replica, as one that calls can be sent to."""
        return TakingReplica(replica_info)


def least_busy(calls: int, *, taken: bool) -> dict[str, Any]:
    """The options of a deployment whose replicas are meant to have so many calls under way each.

    ``taken``: every caller has as many calls as there are replicas, or more.
    """
    router = TakenRouter if taken else LeastBusyRouter
    config = RequestRouterConfig(request_router_class=f"{__name__}.{router.__name__}")
    return {"max_ongoing_requests": calls + (SLACK if taken else 0), "request_router_config": config}
