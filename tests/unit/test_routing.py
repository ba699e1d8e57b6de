"""Which replica a call is sent to."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Serve's, at import


def chosen(under_way: dict[str, int | None]) -> list[list[str]]:
    from pipelines.routing import LeastBusyRouter

    router: Any = SimpleNamespace(replica_queue_len_cache=under_way)
    replicas: Any = [SimpleNamespace(replica_id=name) for name in under_way]
    ranks = asyncio.run(LeastBusyRouter.choose_replicas(router, replicas))
    return [[replica.replica_id for replica in rank] for rank in ranks]


def test_the_least_busy_is_first_and_one_that_hangs_is_passed_over():
    assert chosen({"a": 2, "b": 1, "c": 3, "d": 4}) == [["b"], ["a"], ["c"]]
    assert chosen({"a": 1, "b": None}) == [["b"], ["a"]], "nothing is known of one that is new"
    assert chosen({}) == []


def test_of_equals_each_has_its_turn():
    """Readers that begin at the same one would leave others idle."""
    assert {chosen({"a": 1, "b": 1})[0][0] for _ in range(64)} == {"a", "b"}


@pytest.mark.parametrize(("taken", "router", "most"), [(True, "TakenRouter", 4), (False, "LeastBusyRouter", 2)])
def test_a_replica_is_asked_first_where_callers_may_meet_at_it(taken: bool, router: str, most: int):
    from pipelines.routing import least_busy

    options = least_busy(2, taken=taken)
    assert options["max_ongoing_requests"] == most
    assert options["request_router_config"].request_router_class == f"pipelines.routing.{router}"


def test_what_serve_asks_of_a_replica_stands_where_it_stood():
    """Serve sends without waiting for a word by this property alone; a release that moves it must not go by unseen."""
    import inspect

    from ray.serve._private.request_router.replica_wrapper import RunningReplica
    from ray.serve._private.router import AsyncioRouter

    assert "not replica.is_cross_language" in inspect.getsource(AsyncioRouter._route_and_send_request_once)
    assert "self._replica_info.is_cross_language" in inspect.getsource(RunningReplica.try_send_request)
