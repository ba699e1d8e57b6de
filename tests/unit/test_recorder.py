"""The recorder's dealings with CUDA, on a stand-in for it that keeps book. What CUDA makes of them, tests marked gpu show."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from workers.encoder.recorder import Recorder


class Stream:
    """A stream that may be waited for."""

    def wait_stream(self, other: Stream) -> None:
        assert other is not self


class Graph:
    """A graph that may be replayed."""

    def replay(self) -> None: ...


class Cuda:
    """The parts of torch.cuda that the recorder uses."""

    Stream, CUDAGraph = Stream, Graph

    def __init__(self) -> None:
        self.current = self.default = Stream()
        self.devices: list[str] = []
        self.taped: list[tuple[Stream, object]] = []
        self.synchronized = 0
        self.fails = False

    @contextlib.contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        self.devices.append(str(device))
        yield

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    @contextlib.contextmanager
    def graph(self, graph: Graph, pool: object, stream: Stream) -> Iterator[None]:
        self.current = stream
        yield
        if self.fails:
            raise torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture")
        self.taped.append((stream, pool))
        self.current = self.default

    def graph_pool_handle(self) -> object:
        return object()

    def current_stream(self) -> Stream:
        return self.current

    def set_stream(self, stream: Stream) -> None:
        self.current = stream

    def synchronize(self, device: torch.device) -> None:
        self.synchronized += 1


@pytest.fixture
def cuda(monkeypatch) -> Cuda:
    found = Cuda()
    for name in dir(found):
        if not name.startswith("_") and hasattr(torch.cuda, name):
            monkeypatch.setattr(torch.cuda, name, getattr(found, name))
    return found


def test_all_recordings_of_an_owner_share_its_stream_and_its_memory(cuda):
    where: list[Any] = []

    def compute() -> Tensor:
        where.append(cuda.current)
        return torch.zeros(len(where))

    recorder, other = Recorder(torch.device("cuda:1")), Recorder(torch.device("cuda:1"))
    replay, written = recorder.record(compute)
    assert len(written) == 3 and isinstance(replay.__self__, Graph), "twice to prepare, then what is recorded"
    recorder.record(compute)
    other.record(compute)
    (stream, memory), again, others = cuda.taped
    assert again == (stream, memory) and others[0] is not stream and others[1] is not memory
    assert where == [*6 * [stream], *3 * [others[0]]] and set(cuda.devices) == {"cuda:1"}
    assert cuda.current is cuda.default and cuda.synchronized == 0
    recorder.forget()
    assert cuda.synchronized == 1
    recorder.record(compute)
    assert cuda.taped[-1][0] is stream and cuda.taped[-1][1] is not memory


def test_a_recording_that_cannot_end_leaves_the_stream_as_it_was(cuda):
    cuda.fails = True
    with pytest.raises(torch.AcceleratorError):
        Recorder(torch.device("cuda")).record(lambda: torch.zeros(1))
    assert cuda.current is cuda.default
