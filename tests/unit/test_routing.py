"""Which replica a call goes to, with what Serve says of them; ``tests/integration/test_routing.py`` has the real Serve."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

# Ray Serve's own, at import
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

MOST = 2


class Stand:
    """A router over replicas that Serve says are there."""

    def __init__(self, names: Iterable[str]) -> None:
        from workers.routing import ShortestLine

        self.router = object.__new__(ShortestLine)
        self.room: dict[str, int] = {}
        self.router._replica_queue_len_cache = SimpleNamespace(update=self.room.__setitem__)
        self.router.initialize_state(most=MOST)
        self.router.lines._start = 0.0
        self.names(names)

    def names(self, names: Iterable[str]) -> None:
        self.router._replicas = {name: SimpleNamespace(replica_id=name, node_id="node") for name in names}
        self.router._replicas_list = list(self.router._replicas.values())

    async def choose(self, pending: Any = None) -> str | None:
        ranks = await self.router.choose_replicas([], pending)
        if not ranks:
            return None
        ((replica,),) = ranks
        assert self.room[replica.replica_id] == 0, "Serve asks whom it does not know to have room"
        return str(replica.replica_id)

    def send(self, *names: str) -> None:
        for name in names:
            self.router.lines.sent(name)


def full(names: str, monkeypatch: pytest.MonkeyPatch) -> Stand:
    """Of whose replicas none has room, and whose router hears of others."""
    from ray.serve.request_router import RequestRouter

    stand = Stand(names)
    stand.send(*names * MOST)
    monkeypatch.setattr(RequestRouter, "update_replicas", lambda router, replicas: stand.names(replicas))
    return stand


def pending(*, done: bool = False) -> Any:
    future = SimpleNamespace(done=lambda: done)
    return SimpleNamespace(future=future)


def chosen(stand: Stand, *calls: Any) -> list[str | None]:
    async def each() -> list[str | None]:
        return [await stand.choose(call) for call in calls or (None,)]

    return asyncio.run(each())


def test_the_shortest_line_is_taken_and_counts_before_it_is_sent():
    stand = Stand("abc")
    stand.send("a")
    assert chosen(stand, *(pending() for _ in range(4))) == ["b", "c", "a", "b"]


def test_a_call_that_was_given_up_meanwhile_does_not_count():
    assert chosen(Stand("ab"), pending(done=True), pending()) == ["a", "a"]


def test_where_there_are_no_replicas_serve_waits():
    assert chosen(Stand("")) == [None]


@pytest.mark.parametrize("event", ["an answer", "a replica"])
def test_while_all_are_full_a_call_waits_for_an_answer_or_a_replica(event: str, monkeypatch: pytest.MonkeyPatch):
    stand = full("ab", monkeypatch)

    async def answered() -> str | None:
        waiting = asyncio.create_task(stand.choose(pending()))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        if event == "an answer":
            stand.router.on_request_completed("b", "request")
        else:
            stand.router.update_replicas(list("abc"))
        return await waiting

    assert asyncio.run(answered()) == ("b" if event == "an answer" else "c")


def test_who_waits_for_room_while_all_replicas_go_waits_with_serve(monkeypatch: pytest.MonkeyPatch):
    stand = full("a", monkeypatch)

    async def gone() -> str | None:
        waiting = asyncio.create_task(stand.choose(pending()))
        await asyncio.sleep(0.01)
        stand.router.update_replicas([])
        return await waiting

    assert asyncio.run(gone()) is None


def test_when_nothing_ends_for_long_a_count_may_be_wrong(monkeypatch: pytest.MonkeyPatch):
    from workers import routing

    monkeypatch.setattr(routing, "TAKEN_S", 0.01)
    monkeypatch.setattr(routing, "STUCK_S", 0.05)
    stand = Stand("abc")
    stand.send(*"aabbbcc")
    assert chosen(stand) == ["a"]


def test_a_call_that_is_given_up_while_it_waits_waits_no_more(monkeypatch: pytest.MonkeyPatch):
    from workers import routing

    monkeypatch.setattr(routing, "TAKEN_S", 0.01)
    stand = Stand("a")
    stand.send(*"aa")
    assert chosen(stand, pending(done=True)) == ["a"], "Serve looks whether it still waits when it has a replica for it"
    assert stand.router.lines.length("a") == 2


def test_room_that_was_promised_to_a_call_that_never_went_is_found(monkeypatch: pytest.MonkeyPatch):
    from workers import lines, routing

    monkeypatch.setattr(routing, "TAKEN_S", 0.01)
    monkeypatch.setattr(lines, "TAKEN_S", 0.01)
    stand = Stand("a")
    assert chosen(stand, *(pending() for _ in range(MOST + 1))) == ["a"] * (MOST + 1)


def test_who_cannot_be_reached_is_the_last_choice(monkeypatch: pytest.MonkeyPatch):
    from ray.serve.request_router import RequestRouter

    monkeypatch.setattr(RequestRouter, "on_replica_actor_unavailable", lambda router, replica_id: None)
    stand = Stand("ab")
    stand.router.on_replica_actor_unavailable("a")
    assert chosen(stand) == ["b"]


def test_replicas_come_and_go():
    stand = Stand("abc")
    stand.send("a")
    stand.names("ac")
    assert chosen(stand) == ["c"]
    stand.names("a")
    assert chosen(stand) == ["a"]


def test_who_failed_is_the_last_choice():
    stand = Stand("ab")
    assert chosen(stand) == ["a"]

    async def failed() -> None:
        await stand.choose()
        stand.router.distrust_soon("a")

    asyncio.run(failed())
    assert chosen(stand) == ["b"]


@pytest.mark.parametrize(("elsewhere", "expected"), [("c", "c"), ("", "b")])
def test_who_shares_a_node_with_the_dead_is_the_last_choice_if_there_is_another(
    elsewhere: str, expected: str, monkeypatch: pytest.MonkeyPatch
):
    from ray.serve.request_router import RequestRouter

    stand = Stand("abc")
    for name in elsewhere:
        stand.router._replicas[name].node_id = "another"
    monkeypatch.setattr(RequestRouter, "on_replica_actor_died", lambda router, replica_id: drop(stand, replica_id))
    stand.router.on_replica_actor_died("a")
    assert chosen(stand) == [expected]


def drop(stand: Stand, name: str) -> None:
    del stand.router._replicas[name]
    stand.router._replicas_list = list(stand.router._replicas.values())


@pytest.mark.parametrize("answer", [1, ValueError("no")])
def test_who_waits_for_the_end_of_a_call_is_told_it_and_errors_are_heard_of(answer: object):
    from workers.routing import _Call

    waiting: list[Any] = []
    failures: list[None] = []
    told: list[object] = []
    call = _Call(SimpleNamespace(add_done_callback=waiting.append, get=lambda: 7), lambda: failures.append(None))
    call.add_done_callback(told.append)
    assert call.get() == 7
    waiting[0](answer)
    assert told == [answer]
    assert len(failures) == isinstance(answer, Exception)


def test_replicas_begin_by_their_rank_and_deployments_apart(monkeypatch: pytest.MonkeyPatch):
    from workers import routing

    assert 0 <= routing._start() < 1, "a driver begins anywhere"

    def start(deployment: str, rank: int) -> float:
        context = SimpleNamespace(rank=SimpleNamespace(rank=rank), deployment=deployment)
        monkeypatch.setattr(routing.serve, "get_replica_context", lambda: context)
        return routing._start()

    assert start("Reader", 3) - start("Reader", 0) == pytest.approx(3 * routing.GOLDEN)
    assert start("Reader", 0) % 1 != pytest.approx(start("Queries", 0) % 1, abs=0.05)
