"""Which ways of computing there are for a model, by its device and its numbers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from workers.encoder import ways as room
from workers.encoder.ways import compiled, fastest, ways
from workers.errors import DeviceLost


def model(kind: str, device: str, dtype: torch.dtype) -> Any:
    return SimpleNamespace(
        device=torch.device(device), dtype=dtype, config=SimpleNamespace(model_type=kind), modules=lambda: []
    )


GRAPHED = ["packed, joined, compiled", "packed, joined", "packed, library"]
PLAIN = ["packed, joined", "packed, library", "padded"]


@pytest.mark.parametrize(
    ("kind", "device", "dtype", "names"),
    [
        ("gemma3_text", "cuda", torch.bfloat16, [*GRAPHED, *PLAIN]),
        ("bert", "cuda", torch.float16, [*GRAPHED[2:], *PLAIN[1:]]),
        ("gemma3_text", "cuda", torch.float32, PLAIN),  # nothing is compiled in vain
        ("gemma3_text", "cpu", torch.bfloat16, PLAIN),
        ("bert", "cpu", torch.float32, PLAIN[1:]),
    ],
)
def test_the_ways(kind, device, dtype, names):
    assert [name for name, _ in ways(model(kind, device, dtype), None)] == names


def test_a_way_that_cannot_be_made_is_passed_over(monkeypatch, caplog):
    """On a GPU with a warning that says why: the next is slower."""

    def broken(name):
        raise ValueError("soft-capped attention\nis not computed here")

    monkeypatch.setattr(room, "ways", lambda *_: iter([("first", broken), ("second", lambda name: name)]))
    monkeypatch.setattr(room, "PaddedForward", lambda *_: "padded")
    monkeypatch.setattr(room, "vectors_of", lambda *_: torch.ones(1, 2).numpy())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    sample = SimpleNamespace(alone=list)
    assert fastest(model("bert", "cuda", torch.bfloat16), None, sample, 2, 1e-9) == "second"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert 'way=first error="ValueError: soft-capped attention is not computed here"' in caplog.text


def test_a_way_that_loses_the_device_is_the_last(monkeypatch):
    def dead(*_):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(room, "ways", lambda *_: iter([("first", dead), ("second", lambda name: name)]))
    monkeypatch.setattr(room, "PaddedForward", lambda *_: "padded")
    monkeypatch.setattr(room, "vectors_of", lambda *_: torch.ones(1, 2).numpy())
    monkeypatch.setattr(torch.cuda, "synchronize", dead)
    with pytest.raises(DeviceLost, match="illegal memory access"):
        fastest(model("bert", "cuda", torch.bfloat16), None, SimpleNamespace(alone=list), 2, 1e-9)


def test_the_compiler_knows_what_it_is_told():
    assert callable(compiled(lambda x: x + 1))  # torch refuses options that it does not have
