"""Reordered linear layers compute what the plain ones do, and only where they can."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from workers.encoder import linear as room
from workers.encoder.linear import ReorderedLinear, can_reorder, linear, reorder, repeating

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


class Block(nn.Module):
    """As BERT's family writes it."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.dense = nn.Linear(24, 40)
        self.intermediate_act_fn = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.intermediate_act_fn(self.dense(x))


class Model(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.first = Block(activation)
        self.rest = nn.ModuleList([nn.Linear(40, 24, bias=False), nn.LayerNorm(24)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for layer in self.rest:
            x = layer(x)
        return x


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    limit = CLOSE[found.dtype]
    return torch.allclose(found.float(), expected.float(), rtol=limit, atol=limit * float(expected.abs().max()))


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize(
    ("activation", "joined"),
    [(nn.GELU(), True), (nn.GELU(approximate="tanh"), False), (nn.ReLU(), False), (nn.Tanh(), False)],
)
def test_a_model_computes_the_same(activation, joined, dtype):
    # oneDNN takes bfloat16 where the processor has AVX-512; elsewhere such a model stays as it is.
    taken = dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    model = Model(activation).eval().requires_grad_(False).to(dtype)
    x = torch.randn(1, 7, 24, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.inference_mode():
        expected = model(x)
        assert reorder(model) == (2 if taken else 0)
        assert close(model(x), expected)
        for rows in (1, 33, 300):
            more = torch.randn(rows, 24, dtype=dtype)
            assert model(more).shape == (rows, 24)
    assert {isinstance(layer, ReorderedLinear) for layer in (model.first.dense, model.rest[0])} == {taken}
    assert isinstance(model.first.intermediate_act_fn, nn.Identity) == (joined and taken)


def test_layers_are_joined_by_their_weights():
    weight, bias, x = torch.randn(5, 8), torch.randn(5), torch.randn(3, 8)
    with torch.inference_mode():
        assert close(linear(weight, bias)(x), x @ weight.T + bias)
        assert close(linear(weight)(x), x @ weight.T)


def test_other_numbers_stay_as_they_are():
    model = Model(nn.GELU()).to(torch.float64)
    assert not can_reorder(model.rest[0])
    assert reorder(model) == 0
    assert isinstance(model.rest[0], nn.Linear)


def test_a_layer_that_would_compute_something_else_is_not_used(monkeypatch):
    monkeypatch.setattr(room.ReorderedLinear, "forward", lambda self, x: torch.zeros(*x.shape[:-1], 24))
    model = Model(nn.GELU())
    assert reorder(model) == 0
    weight = torch.randn(24, 8)
    assert type(linear(weight)) is nn.Linear


def test_without_onednn_nothing_is_replaced(monkeypatch):
    def missing(*_, **__):
        raise AttributeError("no such operator")

    monkeypatch.setattr(room, "ReorderedLinear", missing)
    assert reorder(Model(nn.GELU())) == 0


def test_numbers_of_rows_repeat_and_are_little_more():
    made = [(rows, repeating(rows)) for rows in range(1, 16_385)]
    assert all(rows <= more <= rows + max(15, rows // 64) for rows, more in made)
    assert len({more for rows, more in made if rows <= 4096}) == 192
    assert all(repeating(more) == more for _, more in made)
    assert [repeating(1 << power) for power in range(4, 15)] == [1 << power for power in range(4, 15)]
