"""From pooled vectors to the model's vectors: the model's layers, then truncate, then L2, all in float32.

Truncation comes before normalisation, because a slice of a unit vector is not one. Always normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from workers.encoder.modules import DenseLayer, NormLayer, UnitLayer, type_layer
from workers.errors import EnvironmentFault


class Head:
    """The layers after pooling, loaded once."""

    def __init__(self, layers: Sequence[type_layer], device: str | torch.device = "cpu") -> None:
        """Load the weights, as float32.

        Raises:
            EnvironmentFault: a weight is missing, left over, or of another shape than the layer's config says.
        """
        self._layers = [_loaded(layer).to(device=device, dtype=torch.float32) for layer in layers]

    def __call__(self, pooled: Tensor, dim: int) -> Tensor:
        """Project, truncate to ``dim``, and normalise.

        Args:
            pooled: float [texts, width].
            dim: width of the result, at most the last layer's.

        Returns:
            float32 [texts, dim], rows of unit length. A row without a direction (zero or not finite) is NaN throughout.
        """
        return cut(self.project(pooled), dim)

    def project(self, pooled: Tensor) -> Tensor:
        """The layers alone: float [texts, width] → float32 [texts, the last layer's width], of any length."""
        vectors = pooled.to(torch.float32)
        for layer in self._layers:
            vectors = layer(vectors)
        return vectors


def cut(vectors: Tensor, dim: int) -> Tensor:
    """Truncate rows to ``dim``, then normalise: [n, width] → float32 [n, dim], a tensor of its own."""
    return normalise(vectors[:, :dim])


def normalise(vectors: Tensor) -> Tensor:
    """Rows divided by their length; a row whose length is zero or not finite becomes NaN, all of it.

    Args:
        vectors: float32 [n, dim].
    """
    length = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    sound = torch.isfinite(length) & (length > 0)
    return torch.where(sound, vectors / length, float("nan"))


def _loaded(layer: type_layer) -> nn.Module:
    match layer:
        case DenseLayer(folder=folder):
            module: nn.Module = _Dense(layer)
            module.load_state_dict(_weights(folder, module))
        case NormLayer(folder=folder):
            module = _Norm(layer)
            module.load_state_dict(_weights(folder, module))
        case UnitLayer():
            module = _Unit()
    return module.eval().requires_grad_(False)


class _Unit(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=-1)


class _Dense(nn.Module):
    def __init__(self, layer: DenseLayer) -> None:
        super().__init__()
        self.linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias)
        self.activation = getattr(nn, layer.activation)()
        self.adds_input = layer.residual
        self.residual: nn.Module | None = None
        if layer.residual and layer.in_features != layer.out_features:
            self.residual = nn.Linear(layer.in_features, layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.linear(x))
        if self.adds_input:
            out = out + (x if self.residual is None else self.residual(x))
        return out


class _Norm(nn.Module):
    def __init__(self, layer: NormLayer) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(layer.dimension)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x)
        return out


def _weights(folder: Path, module: nn.Module) -> dict[str, Tensor]:
    path = folder / "model.safetensors"
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise EnvironmentFault(f"{path} cannot be read ({type(error).__name__})") from None
    wanted = module.state_dict()
    if set(found) != set(wanted):
        differ = sorted(set(found) ^ set(wanted))
        raise EnvironmentFault(f"{path}: {differ[0]} is missing or left over")
    for name, weight in wanted.items():
        if found[name].shape != weight.shape:
            raise EnvironmentFault(f"{path}: {name} is {list(found[name].shape)}, not {list(weight.shape)}")
    return found
