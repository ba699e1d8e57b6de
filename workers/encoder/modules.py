"""The JSON that each module of a model folder carries: pooling, and the layers of the head.

Comes in: a module's folder. Goes out: frozen descriptions, or a refusal in one sentence. Never here: torch, or weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from workers.errors import EnvironmentFault

# In the order in which several modes of the older boolean keys are concatenated.
_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_POOLING_NAMES = {"embedding_dimension", "word_embedding_dimension", "pooling_mode", "include_prompt"}
# Classes of torch.nn without weights that work on each number alone, with their own defaults.
_ACTIVATIONS = {
    "Identity",
    "Tanh",
    "ReLU",
    "GELU",
    "SiLU",
    "Sigmoid",
    "ELU",
    "LeakyReLU",
    "Mish",
    "Softplus",
    "Softsign",
}
_DENSE_KEYS = {"in_features", "out_features", "bias", "activation_function"}
_DENSE_NAMES = {"module_input_name", "module_output_name"}


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """A linear layer of the head with its ``activation``, the name of a torch.nn class; weights are in ``folder``."""

    folder: Path
    in_features: int
    out_features: int
    bias: bool
    activation: str
    residual: bool = False


@dataclass(frozen=True, slots=True)
class NormLayer:
    """A LayerNorm of the head over ``dimension`` features; weights are in ``folder``."""

    folder: Path
    dimension: int


@dataclass(frozen=True, slots=True)
class UnitLayer:
    """A Normalize that other layers follow: each vector is divided by its length."""


type_layer = DenseLayer | NormLayer | UnitLayer


def read_json(path: Path) -> Any:
    """The file's JSON, or EnvironmentFault."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EnvironmentFault(f"{path} is missing: the folder is not a complete model") from None
    except (OSError, ValueError, RecursionError) as error:
        raise EnvironmentFault(f"{path} cannot be read as JSON ({type(error).__name__})") from None


def read_optional(path: Path) -> dict[str, Any]:
    """The file's JSON object, or an empty one where there is no file."""
    return read_object(path) if path.is_file() else {}


def read_object(path: Path) -> dict[str, Any]:
    """The file's JSON object, or EnvironmentFault."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise EnvironmentFault(f"{path} is not a JSON object")
    return value


def positive(values: Mapping[str, Any], key: str, path: Path) -> int:
    """``values[key]`` as a whole number from 1, or EnvironmentFault naming ``path``."""
    value = values.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise EnvironmentFault(f"{path}: {key} should be a positive number")
    return value


def require_weights(folder: Path) -> None:
    """Raise EnvironmentFault unless the folder has its weights as safetensors, all shards of them."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return
    if index.is_file():
        placed = read_object(index).get("weight_map")
        if not isinstance(placed, dict) or not all(isinstance(shard, str) for shard in placed.values()):
            raise EnvironmentFault(f"{index}: weight_map should name a file for each weight")
        shards = sorted(set(placed.values()))
        if any(PurePosixPath(shard).name != shard or "\\" in shard for shard in shards):
            raise EnvironmentFault(f"{index}: a shard's path leads out of the model folder")
        if missing := [shard for shard in shards if not os.path.isfile(folder / shard)]:
            raise EnvironmentFault(f"{folder} lacks {missing[0]}, which its index names")
        return
    if list(folder.glob("*.bin")) or list(folder.glob("*.pt")):
        raise EnvironmentFault(f"{folder} has pickled weights only, which can run code; convert them to safetensors")
    raise EnvironmentFault(f"{folder} has no model.safetensors")


def read_pooling(folder: Path, hidden: int) -> tuple[tuple[str, ...], bool]:
    """The pooling modes in order, and whether the prompt's tokens count."""
    path = folder / "config.json"
    config = read_object(path)
    if unknown := sorted(set(config) - _POOLING_NAMES - set(_POOLING_KEYS)):
        raise EnvironmentFault(f"{path}: {unknown[0]} is not supported")
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _POOLING_KEYS.items() if config.get(key)] or ["mean"]
    modes = tuple(modes) if isinstance(modes, list) else (modes,)
    known = set(_POOLING_KEYS.values())
    if not modes or not all(isinstance(mode, str) and mode in known for mode in modes):
        raise EnvironmentFault(f"{path}: pooling {', '.join(map(str, modes))} is not one of {', '.join(sorted(known))}")
    if config.get("embedding_dimension", config.get("word_embedding_dimension", hidden)) != hidden:
        raise EnvironmentFault(f"{path}: its dimension is not the transformer's hidden size {hidden}")
    return modes, bool(config.get("include_prompt", True))


def read_head(modules: Sequence[tuple[str, Path]], width: int) -> tuple[tuple[type_layer, ...], bool, int]:
    """The layers after pooling, whether Normalize ends them, and the width that leaves.

    A Normalize at the end is not among the layers: whoever cuts the vector has to normalise after that anyway.
    """
    layers: list[type_layer] = []
    for kind, folder in modules:
        match kind:
            case "Normalize":
                _require_sentence(folder / "config.json", read_optional(folder / "config.json"))
                layers.append(UnitLayer())
            case "Dropout":
                pass  # does nothing at inference
            case "LayerNorm":
                norm = NormLayer(folder, positive(read_object(folder / "config.json"), "dimension", folder))
                width = _joined(norm, width, norm.dimension, norm.dimension)
                layers.append(norm)
            case "Dense":
                dense = _dense(folder)
                width = _joined(dense, width, dense.in_features, dense.out_features)
                layers.append(dense)
            case _:
                raise EnvironmentFault(f"{folder}: a {kind} after the Pooling is not supported")
    normalize = bool(layers) and isinstance(layers[-1], UnitLayer)
    while layers and isinstance(layers[-1], UnitLayer):
        layers.pop()
    return tuple(layers), normalize, width


def _require_sentence(path: Path, config: Mapping[str, Any]) -> None:
    if any(config.get(name) not in (None, "sentence_embedding") for name in _DENSE_NAMES):
        raise EnvironmentFault(f"{path}: only a layer from sentence_embedding to sentence_embedding is supported")


def _joined(layer: DenseLayer | NormLayer, width: int, wants: int, gives: int) -> int:
    """The width after a layer that gets ``width``."""
    if wants != width:
        raise EnvironmentFault(f"{layer.folder}: it takes {wants} features, but gets {width}")
    require_weights(layer.folder)
    return gives


def _dense(folder: Path) -> DenseLayer:
    path = folder / "config.json"
    config = read_object(path)
    if unknown := sorted(set(config) - _DENSE_KEYS - _DENSE_NAMES - {"use_residual"}):
        raise EnvironmentFault(f"{path}: {unknown[0]} is not supported")
    _require_sentence(path, config)
    name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))  # the format's own default
    activation = name.rpartition(".")[2]
    if not name.startswith("torch.nn.") or activation not in _ACTIVATIONS:
        raise EnvironmentFault(f"{path}: activation {name!r} is not one of {', '.join(sorted(_ACTIVATIONS))}")
    return DenseLayer(
        folder,
        positive(config, "in_features", path),
        positive(config, "out_features", path),
        bool(config.get("bias", True)),
        activation,
        bool(config.get("use_residual", False)),
    )
