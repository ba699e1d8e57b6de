"""Linear layers in the form that a CPU computes fastest: weights reordered once, GELU in the same pass.

Comes in: a loaded model. Goes out: the same model, its linear layers replaced. Never here: a change of what they compute,
beyond the last bit. It uses what torch's own compiler uses on CPUs, oneDNN; where that is missing, nothing is replaced.

OneDNN compiles its kernels for each number of rows anew, which took 5 to 14 % of the time where passes were of many sizes (one
core of a Xeon with AMX, bfloat16, MiniLM); so ``forward`` fills passes up to numbers of rows that repeat.

Measured on one Zen 4 core, 384 × 1536: float32 106 GFLOP/s instead of 90, bfloat16 212 instead of 192.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workers import log

_logger = log.get(__name__)

# How far a result may be from the plain layer's, relative to the largest: rounding, in another order.
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}

# Up to 4,096 rows that makes 192 numbers; a pass of 2,000 rows and more has 0.5 % more of them on average. What is compiled is
# kept for 1,024 operations (ONEDNN_PRIMITIVE_CACHE_CAPACITY), of which a transformer has three or four for each number. Each
# doubling of the budget adds 64 numbers; most passes are nearly full, which few of the numbers are.
_STEPS = 64
_LEAST_STEP = 16


def repeating(rows: int) -> int:
    """So many rows, or the few more that make a number which other passes have too: at most 1/64 more, or 15."""
    step = max(_LEAST_STEP, (1 << (rows - 1).bit_length()) // 2 // _STEPS)
    return -(-rows // step) * step


class ReorderedLinear(nn.Module):
    """A linear layer without gradients whose weight is kept as oneDNN wants it."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> None:
        """Reorder ``weight`` [out, in]; ``gelu``: the exact GELU follows."""
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        self.bias = None if bias is None else bias.detach()
        self.after = ("gelu", "none") if gelu else ("none", "")

    def forward(self, x: Tensor) -> Tensor:
        """[…, in] → […, out]."""
        after, algorithm = self.after
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, after, [], algorithm)
        return out


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    """A layer for ``weight`` [out, in]: reordered where this torch can, else as it is."""
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        plain.bias = nn.Parameter(bias, requires_grad=False)
    return ReorderedLinear(weight, bias) if can_reorder(plain) else plain


def reorder(model: nn.Module) -> int:
    """Replace the model's linear layers, if this torch can; returns how many."""
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear]
    if not layers or not can_reorder(layers[0]):
        return 0
    _replace(model)
    return len(layers)


def can_reorder(layer: nn.Linear) -> bool:
    """Whether a layer may be replaced by a ReorderedLinear here; it is tried, and has to compute the same."""
    if layer.weight.dtype not in _TOLERANCE or layer.weight.device.type != "cpu":
        return False
    tolerance = _TOLERANCE[layer.weight.dtype]
    try:
        with torch.inference_mode():
            x = torch.linspace(-1, 1, 3 * layer.in_features, dtype=layer.weight.dtype).view(3, -1)
            plain = layer(x).float()
            for gelu in (False, True):
                expected = F.gelu(plain) if gelu else plain
                found = ReorderedLinear(layer.weight, layer.bias, gelu=gelu)(x).float()
                if not torch.allclose(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max())):
                    raise RuntimeError("another result")
    except (RuntimeError, AttributeError) as error:
        _logger.info("linear layers stay as they are %s", log.fields(why=type(error).__name__))
        return False
    return True


def _replace(module: nn.Module) -> None:
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, ReorderedLinear(child.weight, child.bias))
        elif (dense := _dense_then_gelu(child)) is not None:
            child.dense = ReorderedLinear(dense.weight, dense.bias, gelu=True)
            child.intermediate_act_fn = nn.Identity()
        else:
            _replace(child)


def _dense_then_gelu(module: nn.Module) -> nn.Linear | None:
    """The layer of a module that is this and an exact GELU, as the models of BERT's family write it; else None."""
    parts = dict(module.named_children())
    after = parts.get("intermediate_act_fn")
    exact = type(after).__name__ == "GELUActivation" or (isinstance(after, nn.GELU) and after.approximate == "none")
    dense = parts.get("dense")
    return dense if exact and list(parts) == ["dense", "intermediate_act_fn"] and type(dense) is nn.Linear else None
