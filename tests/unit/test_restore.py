"""The way back from what outputs carry: near the vectors that went in, and with the order that a search has."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.encoder.quantize import FLOATS, PRECISIONS, WITH_RANGES, Projection, Quantized, project
from workers.encoder.ranges import Ranges
from workers.encoder.restore import restore

ONE = np.ones(8, np.float32)


def unit(seed: int, rows: int = 4, dim: int = 16) -> np.ndarray:
    return project(np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32), dim)


def test_by_hand():
    values = np.array([[-127, 64, 0, 127]], np.int8)
    assert restore(Quantized(values, np.array([0.5], np.float32)), "int8").tolist() == [[-63.5, 32, 0, 63.5]]
    assert restore(Quantized(values), "int8").tolist() == values.tolist(), "a direction needs no scale"
    ranges = Ranges(-ONE[:4], ONE[:4])
    middle = restore(Quantized(np.array([[-128, -1, 0, 127]], np.int8)), "int8_ranges", ranges)
    assert middle[0] * 255 == pytest.approx([-254, 0, 2, 256], abs=1e-4)
    assert restore(Quantized(np.array([[0b10100000]], np.uint8)), "ubinary").tolist() == [
        [1, -1, 1, -1, -1, -1, -1, -1]
    ]
    assert restore(Quantized(np.array([[0b10100000 - 128]], np.int8)), "binary").tolist() == [
        [1, -1, 1, -1, -1, -1, -1, -1]
    ]


@pytest.mark.parametrize("precision", PRECISIONS)
@given(st.integers(0, 2**32 - 1))
def test_what_comes_back_is_near_what_went_in(precision: str, seed: int):
    vectors = unit(seed)
    ranges = Ranges.of([vectors]) if precision in WITH_RANGES else None
    back = restore(Projection(16, precision, ranges)(vectors), precision, ranges)
    assert (back.dtype, back.shape) == (np.float32, vectors.shape)
    if precision in ("binary", "ubinary"):
        assert np.array_equal(back > 0, vectors > 0)
        assert set(np.abs(back).ravel()) == {1.0}
        return
    step = 0.5 / 127 if precision not in FLOATS else 5e-4 if precision == "float16" else 0
    reach = np.abs(vectors).max() if ranges is None else (ranges.high - ranges.low).max()
    assert np.abs(back - vectors).max() <= step * reach + 1e-6


def test_bits_order_by_cosine_as_by_hamming_distance():
    packed = Projection(16, "ubinary")(unit(3, rows=30)).values
    hamming = np.unpackbits(packed[0] ^ packed[1:], axis=1).sum(axis=1, dtype=int)
    back = restore(Quantized(packed), "ubinary")
    assert back[1:] @ back[0] == pytest.approx(16 - 2 * hamming)


@pytest.mark.parametrize(
    ("precision", "ranges", "says"),
    [
        ("int3", None, "unknown"),
        ("int8_ranges", None, "needs ranges"),
        ("uint8_ranges", Ranges(-ONE, ONE), "needs ranges"),
    ],
)
def test_what_cannot_be_read_is_said(precision: str, ranges: Ranges | None, says: str):
    with pytest.raises(ValueError, match=says):
        restore(Quantized(np.zeros((1, 4), np.int8)), precision, ranges)
