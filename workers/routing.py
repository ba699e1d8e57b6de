"""Which encoder a call goes to: the one with the fewest calls of this process's under way.

Comes in: calls, and what Serve says of its replicas. Goes out: a replica for each call. Never here: a call's arguments.

Serve's own router asks two replicas at random, over the wire, whether they have room, again and again while they have not, and
has each call accepted by its replica before it is answered. Where lines are always full, which is what a backlog means, that is
most of what a call costs, and replicas idle meanwhile. Who sends knows how many calls are out, and where: the next goes to the
shortest of its own lines, nobody is asked, and nobody refuses, for a replica computes one call at a time whoever sent it.
"""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import RayServeException
from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

from workers.lines import GOLDEN, Lines

# While every line is full: after so long without an answer, Serve asks the replicas themselves.
FULL_S = 0.1
# Replicas that have not been heard of for long are asked how they are: so many at once, and each so often at most.
ASK_AT_ONCE, ASK_S = 4, 1.0


class _Call:
    """What Serve holds of a call that is out: its ``result``, but that whoever waits for its end keeps the reference to it.

    Serve does not, where a replica does not accept calls first. Ray 2.60 ends the process when an answer of over 100 KiB comes
    for somebody who waits, and whoever asked for the answer has it already and has let it go.
    """

    def __init__(self, result: Any) -> None:
        self._result = result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._result, name)

    def add_done_callback(self, callback: Callable[[Any], Any]) -> None:
        """Call ``callback`` with the answer, or with its error, on a thread of Ray's."""
        self._result.add_done_callback(functools.partial(_call_back, callback, self._result))


def _call_back(callback: Callable[[Any], Any], _kept: Any, answer: Any) -> None:
    callback(answer)


class _Replica(RunningReplica):  # type: ignore[misc]  # Ray is untyped here
    """A replica that is sent a call without being asked to accept it, and counted where it is sent."""

    def __init__(self, replica_info: Any, lines: Lines[ReplicaID]) -> None:
        super().__init__(replica_info)
        self._lines = lines

    @property
    def is_cross_language(self) -> bool:
        """Ray 2.60 has all but those accept each call, whatever :attr:`ShortestLine.supports_rejection_protocol` says."""
        return True

    def try_send_request(self, pr: PendingRequest, *, with_rejection: bool) -> Any:
        """Send a call; it counts before it is out, for Serve says of each that is chosen how it ended, also where this fails."""
        self._lines.sent(id(pr), self.replica_id)
        return _Call(super().try_send_request(pr, with_rejection=with_rejection))


class ShortestLine(FIFOMixin, RequestRouter):  # type: ignore[misc]  # Ray is untyped here
    """Serve's router for encoders; it lives in each process that calls them, on the event loop of Serve's router."""

    def initialize_state(self, **_: Any) -> None:
        """Begin, with no replicas; Serve calls this once."""
        self._lines: Lines[ReplicaID] = Lines(_start())
        self._known: Sequence[RunningReplica] = ()
        self._by_id: dict[ReplicaID, RunningReplica] = {}
        self._asked: dict[ReplicaID, float] = {}
        self._freed = asyncio.Event()

    @property
    def supports_rejection_protocol(self) -> bool:
        """Calls that a replica has no place for wait there."""
        return False

    def create_replica_wrapper(self, replica_info: Any) -> RunningReplica:
        """What stands for a replica here."""
        return _Replica(replica_info, self._lines)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replica with the shortest line; when all are full, whoever is to be asked for room, after a wait for an answer."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # there are no nearer replicas to try first
            self._lines.give_back(id(pending_request))
        self._renew(candidate_replicas)
        if next(self._lines.by_length(self._most()), None) is None:
            self._freed.clear()
            try:
                await asyncio.wait_for(self._freed.wait(), FULL_S)
            except TimeoutError:
                # A count may be wrong: Serve asks two replicas, and sends nothing where there is no room.
                return [random.sample(self._known, min(2, len(self._known)))]
            self._renew(self._replicas_list)
        return self._choose(pending_request)

    def _choose(self, pending_request: PendingRequest | None) -> list[list[RunningReplica]]:
        silent: list[RunningReplica] = []
        full: list[RunningReplica] = []
        for member in self._lines.by_length(self._most()):
            replica = self._by_id[member]
            length = self.replica_queue_len_cache.get(member)
            if length is None:
                silent.append(replica)
            elif length >= replica.max_ongoing_requests:
                full.append(replica)  # of others' calls, when it was asked
            else:
                if pending_request is not None:
                    self._lines.take(id(pending_request), member)
                # Serve takes the one that is known, and asks the others in passing.
                return [[replica, *self._due(silent)]]
        if silent:
            self._due(silent)
            return [silent[:ASK_AT_ONCE]]
        return [full[:ASK_AT_ONCE]]

    def _due(self, silent: list[RunningReplica]) -> list[RunningReplica]:
        now = time.monotonic()
        due = [replica for replica in silent if self._asked.get(replica.replica_id, 0.0) < now - ASK_S][:ASK_AT_ONCE]
        self._asked |= {replica.replica_id: now for replica in due}
        return due

    def _renew(self, replicas: Sequence[RunningReplica]) -> None:
        if replicas is not self._known:  # Serve makes a new list of them at every change
            self._known = replicas
            self._by_id = {replica.replica_id: replica for replica in replicas}
            self._asked = {member: since for member, since in self._asked.items() if member in self._by_id}
            self._lines.renew(self._by_id)

    def _most(self) -> int:
        return max((replica.max_ongoing_requests for replica in self._known[:1]), default=0)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Serve has an answer, or knows that there will be none."""
        super().on_request_completed(replica_id, internal_request_id)
        self._lines.ended(replica_id)
        self._freed.set()


def _start() -> float:
    try:
        rank: int = serve.get_replica_context().rank.rank
    except (RayServeException, AttributeError):  # a driver, or a Ray that does not number its replicas
        return random.random()  # noqa: S311
    return rank * GOLDEN


def shortest_line() -> RequestRouterConfig:
    """What a deployment is given so that calls to it are routed here."""
    # Whoever finds no room has waited already.
    return RequestRouterConfig(
        request_router_class=ShortestLine, initial_backoff_s=0.01, backoff_multiplier=1, max_backoff_s=0.01
    )
