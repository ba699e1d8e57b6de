"""The stub encoder: vectors that follow from the text alone."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.stub import vectors_of
from workers.records import Batch


@pytest.mark.parametrize("dim", [4, 16, 64, 256, 1024])
def test_its_vectors_are_unit_and_exact_in_half_precision(dim: int) -> None:
    vectors = vectors_of(Batch.of([np.arange(n + 1, dtype=np.int32) for n in range(50)]), dim)
    assert vectors.shape == (50, dim) and vectors.dtype == np.float32
    assert np.array_equal(vectors.astype(np.float16).astype(np.float32), vectors)
    assert np.array_equal(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), vectors)


def test_a_text_has_one_vector_in_whichever_batch_and_no_other_text_has_it() -> None:
    texts = [np.random.default_rng(n).integers(0, 1000, n % 40 + 4).astype(np.int32) for n in range(500)]
    together = vectors_of(Batch.of(texts), 64)
    alone = np.concatenate([vectors_of(Batch.of([text]), 64) for text in texts])
    assert np.array_equal(together, alone)
    assert len(np.unique(together, axis=0)) == len({text.tobytes() for text in texts}) == 500


def test_no_text_has_no_vector() -> None:
    assert vectors_of(Batch.of([]), 64).shape == (0, 64)
