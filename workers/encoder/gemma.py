"""Gemma 3's encoder, the transformer of EmbeddingGemma, over packed texts.

Comes in: a loaded ``Gemma3TextModel``. Goes out: the same hidden states in fewer steps: one product for queries, keys and
values, one for the two halves of the feed-forward block, one rotary table for each kind of layer. Never here: weights from
files, or an attention mask.

The steps and their order are those of transformers' ``modeling_gemma3.py``, from which the results must not differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workers.encoder.attention import Segments, attend
from workers.encoder.linear import linear


class _Norm(nn.Module):
    """Root mean square norm: ``weight`` float32 [width], to which the file's form adds 1."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = nn.Buffer(1.0 + norm.weight.detach().float())
        self.epsilon: float = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, self.epsilon).to(x.dtype)


class _Layer(nn.Module):
    """One layer, its weights joined, in two parts: what comes before attention, and what comes after."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.kind: str = attention.layer_type
        self.window: int | None = attention.sliding_window
        self.scale: float = attention.scaling
        self.causal: bool = attention.is_causal
        self.width: int = attention.head_dim
        self.heads = (attention.config.num_attention_heads, *(2 * [attention.config.num_key_value_heads]))
        self.before_attention, self.after_attention = (
            _Norm(layer.input_layernorm),
            _Norm(layer.post_attention_layernorm),
        )
        self.before_mlp, self.after_mlp = (
            _Norm(layer.pre_feedforward_layernorm),
            _Norm(layer.post_feedforward_layernorm),
        )
        self.query_norm, self.key_norm = _Norm(attention.q_norm), _Norm(attention.k_norm)
        self.into_attention = _joined(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out_of_attention = _joined(attention.o_proj)
        self.into_mlp = _joined(mlp.gate_proj, mlp.up_proj)
        self.out_of_mlp = _joined(mlp.down_proj)
        self.activation: nn.Module = mlp.act_fn


type_parts = tuple[Tensor, Tensor, Tensor]


def _before(layer: _Layer, x: Tensor, cosines: Tensor, sines: Tensor) -> type_parts:
    """Queries, keys and values [tokens, heads, width] of hidden states [tokens, hidden]."""
    parts = layer.into_attention(layer.before_attention(x)).unflatten(-1, (-1, layer.width))
    query, key, value = parts.split(layer.heads, dim=1)
    return (
        _rotated(layer.query_norm(query), cosines, sines),
        _rotated(layer.key_norm(key), cosines, sines),
        value,
    )


def _after(layer: _Layer, x: Tensor, attended: Tensor) -> Tensor:
    """The layer's hidden states, from what went into it and what attention made of that."""
    x = x + layer.after_attention(layer.out_of_attention(attended.flatten(1)))
    gate, up = layer.into_mlp(layer.before_mlp(x)).chunk(2, dim=-1)
    out: Tensor = x + layer.after_mlp(layer.out_of_mlp(layer.activation(gate) * up))
    return out


class Gemma:
    """The transformer, from ids to hidden states."""

    def __init__(self, model: Any, compiled: Callable[[Any], Any] = lambda function: function) -> None:
        """Take the weights of a ``Gemma3TextModel``, which is not needed afterwards.

        Args:
            model: on its device.
            compiled: makes a faster function of one that computes a part of a layer; each is called for all layers.

        Raises:
            ValueError: it has a part that is not computed here.
        """
        if model.config.attn_logit_softcapping is not None:
            raise ValueError("soft-capped attention is not computed here")
        self._embed = model.embed_tokens
        self._rotary = model.rotary_emb
        self._layers = [_Layer(layer).to(model.device) for layer in model.layers]
        self._norm = _Norm(model.norm).to(model.device)
        self._before, self._after = compiled(_before), compiled(_after)

    def __call__(self, ids: Tensor, positions: Tensor, segments: Segments) -> Tensor:
        """Hidden states [tokens, width] of packed ``ids`` [tokens], each at its place of ``positions`` [tokens]."""
        x: Tensor = self._embed(ids)
        kinds = {layer.kind for layer in self._layers}
        rotary = {kind: self._rotary(x, positions.unsqueeze(0), kind) for kind in kinds}
        tables = {kind: (cosines[0].unsqueeze(1), sines[0].unsqueeze(1)) for kind, (cosines, sines) in rotary.items()}
        for layer in self._layers:
            query, key, value = self._before(layer, x, *tables[layer.kind])
            attended = attend(query, key, value, segments, scale=layer.scale, window=layer.window, causal=layer.causal)
            x = self._after(layer, x, attended)
        hidden: Tensor = self._norm(x)
        return hidden


def _joined(*layers: nn.Linear) -> nn.Module:
    """Linear layers of one input as a single one, their outputs side by side."""
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    weight = torch.cat([layer.weight.detach() for layer in layers])
    return linear(weight, torch.cat(biases) if biases else None)


def _rotated(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary positions: ``x`` [tokens, heads, width], tables [tokens, 1, width]."""
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat((-second, first), dim=-1) * sines
