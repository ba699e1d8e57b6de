"""Pooling and head against sentence-transformers' own modules, and what NaN may not do."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from workers.encoder.head import Head, normalise
from workers.encoder.modules import DenseLayer, NormLayer
from workers.encoder.pooling import pool, pool_packed
from workers.errors import EnvironmentFault

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def padded(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    hidden = torch.randn(4, 9, 8, generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(9) < torch.tensor([9, 4, 6, 5])[:, None]
    return hidden, mask


@pytest.mark.parametrize("prompt_tokens", [0, 3])
@pytest.mark.parametrize("modes", [*((mode,) for mode in MODES), MODES, ("lasttoken", "cls")])
@pytest.mark.filterwarnings("ignore")  # what importing sentence-transformers may say is not ours
def test_pooling_is_that_of_sentence_transformers(modes, prompt_tokens):
    from sentence_transformers.sentence_transformer.modules import Pooling

    hidden, mask = padded()
    theirs = Pooling(8, modes, include_prompt=False)
    features = {"token_embeddings": hidden, "attention_mask": mask.long(), "prompt_length": prompt_tokens}
    expected = theirs(features)["sentence_embedding"]
    ours = pool(hidden, mask, modes, prompt_tokens)
    assert ours.shape == (4, 8 * len(modes))
    assert (ours - expected).abs().max() <= 2e-7
    other = pool(hidden, mask, modes, 2 - prompt_tokens // 2)
    if modes != ("lasttoken",):
        assert (ours - other).abs().max() > 1e-3  # the prompt's length matters here


@pytest.mark.parametrize("mode", MODES)
def test_nan_in_padding_and_neighbours_stays_there(mode):
    hidden, mask = padded()
    expected = pool(hidden, mask, (mode,))
    spoiled = hidden.masked_fill(~mask.unsqueeze(-1), float("nan"))
    assert torch.equal(pool(spoiled, mask, (mode,)), expected)
    spoiled[2] = float("nan")
    result = pool(spoiled, mask, (mode,))
    assert result[2].isnan().all()
    assert torch.equal(result[[0, 1, 3]], expected[[0, 1, 3]])


def packed(hidden: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The real tokens of padded hidden states, one text after another: what ``pool_packed`` takes."""
    texts, positions = mask.nonzero().unbind(1)
    return hidden[mask], texts, positions, mask.sum(1)


@pytest.mark.parametrize("prompt_tokens", [0, 3, 5])
@pytest.mark.parametrize("modes", [*((mode,) for mode in MODES), MODES])
def test_packed_pooling_is_padded_pooling(modes, prompt_tokens):
    hidden, mask = padded()
    expected = pool(hidden, mask, modes, prompt_tokens)
    found = pool_packed(*packed(hidden, mask), modes, prompt_tokens)
    # Of a text that is all prompt neither says anything; max makes -inf of it, and the vector is refused.
    assert torch.allclose(found, expected, atol=2e-7)


@pytest.mark.parametrize("mode", MODES)
def test_nan_in_a_packed_neighbour_stays_there(mode):
    hidden, mask = padded()
    expected = pool(hidden, mask, (mode,), 2)
    hidden[1, :4] = float("nan")
    hidden[0, 0] = float("inf")  # of the prompt
    found = pool_packed(*packed(hidden, mask), (mode,), 2)
    assert torch.allclose(found[[0, 2, 3]], expected[[0, 2, 3]], atol=2e-7)
    assert found[1].isnan().any()


def test_pooling_refuses_unknown_modes():
    with pytest.raises(ValueError, match="unknown pooling mode"):
        pool(*padded(), ("sum",))
    with pytest.raises(ValueError, match="unknown pooling mode"):
        pool_packed(*packed(*padded()), ("sum",))


@given(st.integers(1, 16), st.integers(0, 9))
def test_truncate_then_normalise(dim, seed):
    pooled = torch.randn(5, 16, generator=torch.Generator().manual_seed(seed))
    result = Head(())(pooled, dim)
    assert result.shape == (5, dim) and result.dtype == torch.float32
    assert (result.double().norm(dim=1) - 1).abs().max() < 1e-6
    # A slice of the full unit vector has the same direction, and another length.
    slice_ = Head(())(pooled, 16)[:, :dim]
    assert (normalise(slice_) - result).abs().max() < 1e-6
    if dim < 8:
        assert (slice_.norm(dim=1) < 0.999).any()


def test_rows_without_a_direction_are_nan_throughout():
    pooled = torch.ones(4, 3)
    pooled[1] = 0
    pooled[2, 0] = float("inf")
    pooled[3, 1] = float("nan")
    result = Head(())(pooled, 3)
    assert result[0].isfinite().all()
    assert result[1:].isnan().all()


def test_bfloat16_goes_in_float32_comes_out():
    pooled = torch.randn(3, 8).to(torch.bfloat16)
    assert torch.equal(Head(())(pooled, 8), Head(())(pooled.float(), 8))


def layer(folder: Path, activation: str = "Identity", residual: bool = False, bias: bool = True, gives: int = 6):
    weights = {"linear.weight": torch.randn(gives, 8)}
    if bias:
        weights["linear.bias"] = torch.randn(gives)
    if residual and gives != 8:
        weights["residual.weight"] = torch.randn(gives, 8)
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    config = {"in_features": 8, "out_features": gives, "bias": bias, "use_residual": residual}
    names = {"Identity": "linear.Identity", "Tanh": "activation.Tanh", "GELU": "activation.GELU"}
    config["activation_function"] = f"torch.nn.modules.{names[activation]}"
    (folder / "config.json").write_text(json.dumps(config))
    return DenseLayer(folder, 8, gives, bias, activation, residual)


@pytest.mark.parametrize("activation", ["Identity", "Tanh", "GELU"])
@pytest.mark.parametrize(("residual", "bias", "gives"), [(False, True, 6), (True, False, 8), (True, True, 6)])
@pytest.mark.filterwarnings("ignore")
def test_dense_is_that_of_sentence_transformers(tmp_path, activation, residual, bias, gives):
    from sentence_transformers.base.modules import Dense

    ours = Head([layer(tmp_path, activation, residual, bias, gives)])
    pooled = torch.randn(5, 8)
    with torch.inference_mode():
        expected = Dense.load(str(tmp_path))({"sentence_embedding": pooled})["sentence_embedding"]
    assert (ours(pooled, gives) - normalise(expected)).abs().max() <= 2e-7


def test_layer_norm_and_order(tmp_path):
    norm, dense = tmp_path / "norm", layer(tmp_path / "dense", "Tanh")
    norm.mkdir()
    save_file({"norm.weight": torch.rand(8), "norm.bias": torch.randn(8)}, norm / "model.safetensors")
    pooled = torch.randn(5, 8)
    result = Head([NormLayer(norm, 8), dense])(pooled, 6)
    assert (result - Head([dense])(pooled, 6)).abs().max() > 1e-2


def test_refuses_weights_that_do_not_fit(tmp_path):
    whole = layer(tmp_path)
    Head([whole])
    with pytest.raises(EnvironmentFault, match=r"linear.bias is missing or left over"):
        Head([DenseLayer(tmp_path, 8, 6, False, "Identity")])
    with pytest.raises(EnvironmentFault, match=r"linear.weight is \[6, 8\], not \[5, 8\]"):
        Head([DenseLayer(tmp_path, 8, 5, True, "Identity")])
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs")
    with pytest.raises(EnvironmentFault, match="cannot be read"):
        Head([whole])
