"""Truncate, renormalise, cast: in that order, and nothing silent."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from workers.encoder.quantize import project

vectors_ = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.just(12)),
    elements=st.floats(-4, 4, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3),
).filter(lambda array: bool((array[:, 0] != 0).all()))


def unit(count: int, dim: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@given(vectors_, st.integers(1, 12))
def test_unit_length_and_the_same_direction(vectors, dim):
    result = project(vectors, dim, "float32")
    assert result.dtype == np.float32 and result.shape == (len(vectors), dim) and result.flags.c_contiguous
    assert np.abs(np.linalg.norm(result.astype(np.float64), axis=1) - 1).max() < 1e-6
    cut = vectors[:, :dim].astype(np.float64)
    cosine = (result * cut).sum(axis=1) / np.linalg.norm(cut, axis=1)
    assert np.abs(cosine - 1).max() < 1e-6


def test_unit_vectors_stay_as_they_are():
    vectors = unit(50, 384)
    assert np.abs(project(vectors, 384, "float32") - vectors).max() <= 2e-8


def test_a_slice_alone_would_not_be_a_unit_vector():
    vectors = unit(50, 64)
    assert (np.linalg.norm(vectors[:, :16], axis=1) < 0.9).all()
    assert np.allclose(np.linalg.norm(project(vectors, 16, "float32"), axis=1), 1, atol=1e-6)


@given(st.integers(1, 32), st.integers(1, 32))
def test_cutting_twice_is_cutting_once(first, second):
    vectors = unit(4, 32, seed=first)
    wide, narrow = max(first, second), min(first, second)
    twice = project(project(vectors, wide, "float32"), narrow, "float32")
    assert np.abs(twice - project(vectors, narrow, "float32")).max() < 3e-7


def test_float16():
    vectors = unit(20, 128)
    result = project(vectors, 64, "float16")
    assert result.dtype == np.float16
    assert np.abs(result - project(vectors, 64, "float32")).max() < 5e-4


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_refuses_rows_without_a_direction(bad):
    vectors = unit(3, 8)
    vectors[1, 7] = bad
    project(vectors, 7, "float32")
    with pytest.raises(ValueError, match="not finite"):
        project(vectors, 8, "float32")
    with pytest.raises(ValueError, match="zero"):
        project(np.zeros((1, 8), np.float32), 8, "float32")


@pytest.mark.parametrize(("dim", "precision"), [(0, "float32"), (9, "float32"), (-1, "float32"), (8, "int3")])
def test_refuses_dims_and_precisions(dim, precision):
    with pytest.raises(ValueError, match=r"dim|precision"):
        project(unit(1, 8), dim, precision)
    assert project(np.empty((0, 8), np.float32), 4, "float32").shape == (0, 4)
