"""Which encoder a call goes to: the one with the fewest calls of this process's under way.

Comes in: calls, and what Serve says of its replicas. Goes out: a replica for each call. Never here: a call's arguments.

Serve's own router asks two replicas at random, over the wire, whether they have room, again and again while they have not, and
has each call accepted by its replica before it is answered. Where lines are always full, which is what a backlog means, that is
most of what a call costs, and replicas idle meanwhile. Who sends knows how many calls are out, and where: the next goes to the
shortest of its own lines. Nobody is asked, and nobody refuses, for a replica computes one call at a time whoever sent it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import time
import zlib
from collections.abc import Callable
from typing import Any

from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import RayServeException
from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

from workers.lines import GOLDEN, TAKEN_S, Lines

# While every line is full and nothing ends for so long, one call goes to the shortest all the same: the counts may be wrong.
STUCK_S = 30.0


class _Call:
    """What Serve holds of a call that is out: Ray's result, whose reference is kept until everybody has been told of its end.

    Serve itself lets it go when the caller has the answer. With an answer of over 100 KiB, Ray 2.60 then ends this process, if
    somebody is still to be told.
    """

    def __init__(self, result: Any, failed: Callable[[], None]) -> None:
        """``failed`` is called, on any thread, when the answer is an error: what is sent again goes to somebody else first."""
        self._result = result
        self._failed = failed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._result, name)

    def add_done_callback(self, callback: Callable[[Any], Any]) -> None:
        """Call ``callback`` with the answer, or with its error, on a thread of Ray's."""
        self._result.add_done_callback(functools.partial(_ended, callback, self._failed, self._result))


def _ended(callback: Callable[[Any], Any], failed: Callable[[], None], _kept: Any, answer: Any) -> None:
    if isinstance(answer, BaseException):
        failed()
    callback(answer)


class _Replica(RunningReplica):  # type: ignore[misc]  # Ray is untyped here
    """A replica that is sent a call without being asked to accept it, and counted where it is sent."""

    def __init__(self, replica_info: Any, router: ShortestLine) -> None:
        super().__init__(replica_info)
        self._router = router

    @property
    def is_cross_language(self) -> bool:
        """Ray 2.60 lets all others accept each call first, whatever :attr:`ShortestLine.supports_rejection_protocol` says."""
        return True

    def try_send_request(self, pr: PendingRequest, *, with_rejection: bool) -> Any:
        """Send a call; it counts before it is out, for Serve says of each that is chosen how it ended, also where this fails."""
        self._router.lines.sent(self.replica_id)
        return _Call(
            super().try_send_request(pr, with_rejection=with_rejection),
            functools.partial(self._router.distrust_soon, self.replica_id),
        )


class ShortestLine(FIFOMixin, RequestRouter):  # type: ignore[misc]  # Ray is untyped here
    """Serve's router for encoders; it lives in each process that calls them, on the event loop of Serve's router."""

    def initialize_state(self, *, most: int) -> None:
        """Begin, with no replicas; Serve calls this once. ``most``: calls of this process's that a replica may have."""
        self.lines: Lines[ReplicaID] = Lines(_start())
        self._most = most
        self._listed: list[RunningReplica] | None = None
        self._changed = asyncio.Event()
        self._heard = time.monotonic()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def supports_rejection_protocol(self) -> bool:
        """What a replica has no place for waits there."""
        return False

    def create_replica_wrapper(self, replica_info: Any) -> RunningReplica:
        """What stands for a replica here."""
        return _Replica(replica_info, self)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replica with the shortest line, when one has room."""
        self._loop = asyncio.get_running_loop()
        member = self._shortest(self._most)
        while member is None and self._replicas_list:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TAKEN_S):
                    await self._changed.wait()
            given = pending_request is not None and pending_request.future.done()
            member = self._shortest(None if given or self._stuck() else self._most)
        replica = self._replicas.get(member)
        if replica is None:
            return []  # Serve waits until there are some
        if pending_request is not None and not pending_request.future.done():
            self.lines.take(member)  # for this call, or an older one: Serve gives it to the first that waits
        # Serve asks whom it does not know to have room.
        self.replica_queue_len_cache.update(member, 0)
        return [[replica]]

    def _shortest(self, most: int | None) -> ReplicaID | None:
        if self._replicas_list is not self._listed:  # Serve makes a new list at every change
            self._listed = self._replicas_list
            self.lines.renew(replica.replica_id for replica in self._listed)
        return self.lines.shortest(most)

    def _stuck(self) -> bool:
        now = time.monotonic()
        if now < self._heard + STUCK_S:
            return False
        self._heard = now
        return True

    # ---- what Serve has to say

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """These are there now."""
        super().update_replicas(replicas)
        self._changed.set()

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """An answer has come, or there will be none."""
        super().on_request_completed(replica_id, internal_request_id)
        self.lines.ended(replica_id)
        self._heard = time.monotonic()
        self._changed.set()

    def on_replica_actor_unavailable(self, replica_id: ReplicaID) -> None:
        """A replica cannot be reached now."""
        super().on_replica_actor_unavailable(replica_id)
        self.lines.failed(replica_id)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """A replica is dead, and perhaps its node with all that are on it, of which Serve hears later."""
        gone = self._replicas.get(replica_id)
        super().on_replica_actor_died(replica_id)
        self.lines.failed(replica_id)  # Serve may not have heard of it yet, and list it again
        beside = [replica for replica in self._replicas_list if gone is not None and replica.node_id == gone.node_id]
        if len(beside) < len(self._replicas_list):  # somebody is elsewhere
            for replica in beside:
                self.lines.failed(replica.replica_id)

    def distrust_soon(self, replica_id: ReplicaID) -> None:
        """A call to a replica failed; from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.lines.failed, replica_id)


def _start() -> float:
    """Apart for each of a deployment's replicas, and for replicas of two deployments."""
    try:
        context = serve.get_replica_context()
        rank: int = context.rank.rank
    except (RayServeException, AttributeError):  # a driver, or a Ray that does not number its replicas
        return random.random()  # noqa: S311
    return rank * GOLDEN + zlib.crc32(context.deployment.encode()) / 2**32


def shortest_line(*, most: int, callers: int) -> dict[str, Any]:
    """Options of a deployment to which calls are routed here: ``most`` of each of so many callers may be at a replica.

    All together are never too many for it, so that a replica decides whose call is next.
    """
    return {
        "max_ongoing_requests": most * callers,
        "request_router_config": RequestRouterConfig(
            request_router_class=ShortestLine, request_router_kwargs={"most": most}
        ),
    }
