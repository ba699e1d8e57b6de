"""Truncate, renormalise, quantise: in that order, and nothing silent."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from workers.encoder.quantize import (
    FLOATS,
    PACKED,
    PRECISIONS,
    WITH_RANGES,
    Projection,
    has_direction,
    project,
    quantize,
)
from workers.encoder.ranges import Ranges
from workers.settings import type_precision

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


# ---- fewer bits


def ranges_of(dim: int) -> Ranges:
    return Ranges.of([unit(40, dim, seed=9)])


def projection(dim: int, precision: str) -> Projection:
    return Projection(dim, precision, ranges_of(dim) if precision in WITH_RANGES else None)


def test_the_settings_know_the_same_precisions():
    assert get_args(type_precision) == PRECISIONS


@given(vectors_)
def test_int8_is_off_by_half_a_step_at_most_and_uses_all_of_it(vectors):
    final = project(vectors, 12).astype(np.float64)
    values, scales = Projection(12, "int8")(vectors)
    assert values.dtype == np.int8 and scales.dtype == np.float32
    assert (np.abs(values.astype(int)).max(axis=1) == 127).all()
    steps = scales[:, None].astype(np.float64)
    assert (np.abs(values * steps - final) <= steps * (0.5 + 1e-4)).all()


@given(vectors_)
def test_int8_has_no_side(vectors):
    values, scales = Projection(12, "int8")(vectors)
    mirrored, same = Projection(12, "int8")(-vectors)
    assert np.array_equal(mirrored, -values) and np.array_equal(same, scales)


def test_int8_rounds_to_the_nearest():
    vectors = np.array([[127, 63.4, 63.6, -1.4, -1.6, 0]], np.float32)
    assert quantize(vectors, "int8").values.tolist() == [[127, 63, 64, -1, -2, 0]]


@given(vectors_)
def test_int8_in_ranges_grows_with_the_component_and_comes_back_within_a_step(vectors):
    final = project(vectors, 12)
    ranges = Ranges.of([final])
    step = np.where(ranges.high > ranges.low, (ranges.high - ranges.low) / 255, 1).astype(np.float64)
    codes = Projection(12, "uint8_ranges", ranges)(vectors).values.astype(np.float64)
    assert (np.abs(ranges.low + (codes + 0.5) * step - final) <= step * (0.5 + 1e-3)).all()
    order = np.argsort(final, axis=0, kind="stable")
    assert (np.diff(np.take_along_axis(codes, order, axis=0), axis=0) >= 0).all()
    assert np.array_equal(Projection(12, "int8_ranges", ranges)(vectors).values, codes - 128)


# A component that is lost to the division by the length has no sign.
@given(
    hnp.arrays(np.float32, (3, 32), elements=st.floats(-1, 1, width=32, allow_subnormal=False)),
    st.sampled_from([8, 16, 24]),
)
def test_bits_of_fewer_dimensions_are_the_first_of_all_bits(vectors, dim):
    vectors[:, 0] = 0.5
    for precision in ("binary", "ubinary"):
        whole, cut = projection(32, precision)(vectors).values, projection(dim, precision)(vectors).values
        assert cut.shape == (3, dim // 8)
        assert np.array_equal(cut, whole[:, : dim // 8])
    assert np.array_equal(np.unpackbits(whole, axis=1), vectors > 0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_none_and_one_and_many_are_alike(precision):
    vectors = unit(20, 64)
    many = projection(16, precision)
    values, scales = many(vectors)
    assert values.flags.c_contiguous and len(values) == 20
    assert values.shape[1] == (2 if precision in PACKED else 16)
    assert (scales is not None) is (precision == "int8")
    for row, (one, scale) in enumerate(many(vectors).rows()):
        alone, own = many(vectors[row : row + 1])
        assert np.array_equal(alone[0], one)
        assert scale is None if own is None else scale == own[0]
    nothing = many(np.empty((0, 64), np.float32))
    assert nothing.values.shape == (0, values.shape[1]) and nothing.values.dtype == values.dtype
    assert list(nothing.rows()) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_vector_without_a_direction_is_never_quantised(precision, bad):
    """Every precision would make numbers of it: NaN is no bit, and 0 as an integer."""
    vectors = unit(3, 16)
    vectors[1] = bad
    assert has_direction(vectors, 16).tolist() == [True, False, True]
    with pytest.raises(ValueError, match="not finite, or is zero"):
        projection(16, precision)(vectors)
    if precision not in FLOATS:
        with pytest.raises(ValueError, match="not finite, or is zero"):
            quantize(vectors, precision, ranges_of(16))


@given(hnp.arrays(np.float32, (4, 3), elements=st.floats(width=32)), st.integers(1, 3))
def test_has_direction_is_what_project_takes(vectors, dim):
    sound = has_direction(vectors, dim)
    assert len(project(vectors[sound], dim)) == sound.sum()
    for row in np.flatnonzero(~sound):
        with pytest.raises(ValueError, match="not finite, or is zero"):
            project(vectors[row : row + 1], dim)


@pytest.mark.parametrize(
    ("dim", "precision", "ranges", "says"),
    [
        (16, "int3", None, "not one of"),
        (16, "int8_ranges", None, "ranges are for"),
        (16, "int8", ranges_of(16), "ranges are for"),
        (16, "uint8_ranges", ranges_of(8), "do not fit"),
        (12, "binary", None, "multiple of 8"),
        (12, "ubinary", None, "multiple of 8"),
    ],
)
def test_a_projection_fits_together(dim, precision, ranges, says):
    with pytest.raises(ValueError, match=says):
        Projection(dim, precision, ranges)


def test_quantize_by_itself_is_as_strict():
    with pytest.raises(ValueError, match="needs ranges of 12"):
        quantize(unit(2, 12), "int8_ranges", ranges_of(16))
    with pytest.raises(ValueError, match="needs ranges"):
        quantize(unit(2, 12), "uint8_ranges")
    with pytest.raises(ValueError, match="multiple of 8"):
        quantize(unit(2, 12), "binary")
    with pytest.raises(ValueError, match="does not quantise"):
        quantize(unit(2, 12), "float32")
