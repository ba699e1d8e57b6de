"""Which replica a call goes to, with what Serve knows of them; ``tests/integration/test_routing.py`` has the real Serve."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from workers.routing import ShortestLine

# Ray Serve's own, at import
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

MOST = 2


class Stand:
    """A router over replicas ``a``, ``b``, …, of which Serve knows so many calls, or nothing."""

    def __init__(self, **known: int | None) -> None:
        from workers.routing import ShortestLine

        self.router: ShortestLine = object.__new__(ShortestLine)
        self.router._replica_queue_len_cache = SimpleNamespace(get=known.get)
        self.router.initialize_state()
        self.router._lines._start = 0.0
        self.names(known)

    def names(self, names: Iterable[str]) -> None:
        self.replicas = [SimpleNamespace(replica_id=name, max_ongoing_requests=MOST) for name in names]
        self.router._replicas_list = self.replicas

    async def choose(self, pending: Any = None) -> list[str]:
        (rank,) = await self.router.choose_replicas(self.replicas, pending)
        return [replica.replica_id for replica in rank]

    def send(self, *names: str) -> None:
        self.router._renew(self.replicas)
        for name in names:
            self.router._lines.sent(object(), name)


def pending() -> Any:
    return SimpleNamespace(routing_context=SimpleNamespace(should_backoff=False))


def chosen(stand: Stand) -> list[str]:
    return asyncio.run(stand.choose())


def test_the_shortest_line_is_taken_and_counts_before_it_is_sent():
    stand = Stand(a=0, b=0, c=0)
    stand.send("a")

    async def three() -> list[list[str]]:
        return [await stand.choose(call) for call in calls]

    calls = [pending() for _ in range(4)]
    assert asyncio.run(three()) == [["b"], ["c"], ["a"], ["b"]]
    assert all(call.routing_context.should_backoff for call in calls), "Serve asks again without a pause otherwise"


def test_a_call_that_was_refused_a_replica_is_not_counted_there():
    stand = Stand(a=0, b=0)
    call = pending()

    async def twice() -> list[list[str]]:
        return [await stand.choose(call), await stand.choose(call), await stand.choose(pending())]

    assert asyncio.run(twice()) == [["a"], ["a"], ["b"]]


def test_a_replica_that_others_fill_is_passed_over():
    assert chosen(Stand(a=2, b=1)) == ["b"]


def test_a_silent_replica_is_asked_in_passing_and_not_each_time():
    stand = Stand(a=None, b=0, c=None)
    stand.send("b")
    assert [chosen(stand), chosen(stand)] == [["b", "a", "c"], ["b"]]


def test_where_all_are_silent_the_shortest_are_asked():
    stand = Stand(a=None, b=None)
    stand.send("a")
    assert chosen(stand) == ["b", "a"]
    assert chosen(stand) == ["b", "a"], "nobody else can be sent anything"


def test_where_others_fill_all_the_shortest_are_asked():
    stand = Stand(a=2, b=2)
    stand.send("a")
    assert chosen(stand) == ["b", "a"]


def test_while_all_are_full_a_call_waits_for_an_answer():
    stand = Stand(a=0, b=0)
    stand.send("a", "a", "b", "b")

    async def answered() -> list[str]:
        waiting = asyncio.create_task(stand.choose(pending()))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        stand.router.on_request_completed("b", "request")
        return await waiting

    assert asyncio.run(answered()) == ["b"]


def test_when_no_answer_comes_two_are_asked(monkeypatch: pytest.MonkeyPatch):
    from workers import routing

    monkeypatch.setattr(routing, "FULL_S", 0.02)
    stand = Stand(a=0, b=0, c=0)
    stand.send(*"aabbcc")
    began = time.monotonic()
    found = chosen(stand)
    assert time.monotonic() - began >= 0.02
    assert len(set(found)) == 2


def test_replicas_come_and_go():
    stand = Stand(a=0, b=0, c=0)
    stand.send("a")
    stand.names("ac")
    assert chosen(stand) == ["c"]
    stand.names("a")
    assert chosen(stand) == ["a"]


def test_who_is_no_replica_begins_anywhere_and_replicas_by_their_rank(monkeypatch: pytest.MonkeyPatch):
    from workers import routing

    assert 0 <= routing._start() < 1
    context = SimpleNamespace(rank=SimpleNamespace(rank=3))
    monkeypatch.setattr(routing.serve, "get_replica_context", lambda: context)
    assert routing._start() == 3 * routing.GOLDEN
