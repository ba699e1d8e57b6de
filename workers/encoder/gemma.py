"""Gemma 3's encoder, the transformer of EmbeddingGemma, over packed texts.

Comes in: a loaded ``Gemma3TextModel``. Goes out: the same hidden states in fewer steps: one product for queries, keys and
values, one for the two halves of the feed-forward block, one rotary table for each kind of layer. Never here: weights from
files, or an attention mask.

The steps and their order are those of transformers' ``modeling_gemma3.py``, from which the results must not differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workers.encoder.attention import Segments, attend
from workers.encoder.linear import linear


@dataclass(frozen=True, slots=True)
class _Norm:
    """Root mean square norm: ``weight`` float32 [width], to which the file's form adds 1."""

    weight: Tensor
    epsilon: float

    @classmethod
    def of(cls, norm: Any) -> _Norm:
        return cls(1.0 + norm.weight.detach().float(), norm.eps)

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, self.epsilon).to(x.dtype)


class _Layer:
    """One layer, its weights joined."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.kind: str = attention.layer_type
        self._width = attention.head_dim
        self._heads = attention.config.num_attention_heads
        self._groups = attention.config.num_key_value_heads
        self._scale: float = attention.scaling
        self._window: int | None = attention.sliding_window
        self._causal: bool = attention.is_causal
        self._before_attention = _Norm.of(layer.input_layernorm)
        self._after_attention = _Norm.of(layer.post_attention_layernorm)
        self._before_mlp = _Norm.of(layer.pre_feedforward_layernorm)
        self._after_mlp = _Norm.of(layer.post_feedforward_layernorm)
        self._query_norm, self._key_norm = _Norm.of(attention.q_norm), _Norm.of(attention.k_norm)
        self._into_attention = _joined(attention.q_proj, attention.k_proj, attention.v_proj)
        self._out_of_attention = _joined(attention.o_proj)
        self._into_mlp = _joined(mlp.gate_proj, mlp.up_proj)
        self._out_of_mlp = _joined(mlp.down_proj)
        self._activation = mlp.act_fn

    def __call__(self, x: Tensor, rotary: tuple[Tensor, Tensor], segments: Segments) -> Tensor:
        parts = self._into_attention(self._before_attention(x)).unflatten(-1, (-1, self._width))
        query, key, value = parts.split((self._heads, self._groups, self._groups), dim=1)
        attended = attend(
            _rotated(self._query_norm(query), *rotary),
            _rotated(self._key_norm(key), *rotary),
            value,
            segments,
            scale=self._scale,
            window=self._window,
            causal=self._causal,
        )
        x = x + self._after_attention(self._out_of_attention(attended.flatten(1)))
        gate, up = self._into_mlp(self._before_mlp(x)).chunk(2, dim=-1)
        return x + self._after_mlp(self._out_of_mlp(self._activation(gate) * up))


class Gemma:
    """The transformer, from ids to hidden states."""

    def __init__(self, model: Any) -> None:
        """Take the weights of a ``Gemma3TextModel``, which is not needed afterwards.

        Raises:
            ValueError: it has a part that is not computed here.
        """
        if model.config.attn_logit_softcapping is not None:
            raise ValueError("soft-capped attention is not computed here")
        self._embed = model.embed_tokens
        self._rotary = model.rotary_emb
        self._layers = [_Layer(layer) for layer in model.layers]
        self._norm = _Norm.of(model.norm)

    def __call__(self, ids: Tensor, positions: Tensor, segments: Segments) -> Tensor:
        """Hidden states [tokens, width] of packed ``ids`` [tokens], each at its place of ``positions`` [tokens]."""
        x: Tensor = self._embed(ids)
        kinds = {layer.kind for layer in self._layers}
        rotary = {kind: self._rotary(x, positions.unsqueeze(0), kind) for kind in kinds}
        tables = {kind: (cosines[0].unsqueeze(1), sines[0].unsqueeze(1)) for kind, (cosines, sines) in rotary.items()}
        for layer in self._layers:
            x = layer(x, tables[layer.kind], segments)
        return self._norm(x)


def _joined(*layers: nn.Linear) -> nn.Module:
    """Linear layers of one input as a single one, their outputs side by side."""
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    weight = torch.cat([layer.weight.detach() for layer in layers])
    return linear(weight, torch.cat(biases) if biases else None)


def _rotated(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary positions: ``x`` [tokens, heads, width], tables [tokens, 1, width]."""
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat((-second, first), dim=-1) * sines
