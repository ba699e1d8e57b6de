"""What a process is told before an encoder is loaded in it that computes on a CPU, and who tells it."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines import on_cpu
from pipelines.batch import replica
from workers.settings import Settings

# Ray Serve's, at the import of pipelines.stream.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_a_process_is_set_up_before_loading_and_gives_back_what_that_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[Any] = []
    monkeypatch.setattr(on_cpu.sys, "setswitchinterval", steps.append)
    monkeypatch.setattr(on_cpu.heap, "keep_large", steps.append)
    monkeypatch.setattr(on_cpu.heap, "give_back", lambda: steps.append("given back"))
    with on_cpu.settled_in({"A": "1"}, cuda=False):
        steps.append("loaded")
    assert steps == [on_cpu.SWITCH_S, {"A": "1"}, "loaded", "given back"]
    with on_cpu.settled_in({"A": "1"}, cuda=True):
        steps.append("on a GPU")
    assert steps[4:] == ["on a GPU"]


class SettledIn(Exception):
    """It was, at this point."""


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A model that nothing is known of, in both rooms."""

    def settled_in(_: object, *, cuda: bool) -> nullcontext[None]:
        if not cuda:
            raise SettledIn
        return nullcontext()

    from pipelines import stream

    made = SimpleNamespace(widest=384, encoder=lambda **_: pytest.fail("loaded before"))
    monkeypatch.setattr(on_cpu, "settled_in", settled_in)
    for room in (stream, replica):
        monkeypatch.setattr(room.Model, "open", lambda _: made)
    return made


def test_a_streams_replica_settles_in_before_it_loads(model: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines import stream

    monkeypatch.setattr(stream, "gpus_per_replica", lambda _: 0.0)
    with pytest.raises(SettledIn):
        stream.Encoder._load(Settings())


def test_one_on_a_gpu_does_not(model: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines import stream

    monkeypatch.setattr(stream, "gpus_per_replica", lambda _: 1.0)
    model.encoder = lambda **_: SimpleNamespace(warm_up=lambda: None, self_test=lambda: None)
    assert stream.Encoder._load(Settings())[0] is model


def test_a_batch_jobs_replica_settles_in_before_it_loads(model: SimpleNamespace) -> None:
    with pytest.raises(SettledIn):
        replica.Replica(Settings(), cuda=False).load()
