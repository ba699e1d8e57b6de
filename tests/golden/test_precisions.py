"""Quantised vectors are sentence-transformers' own, bit for bit; and a search over them finds what one over float32 finds."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipelines.demo_corpus import documents
from pipelines.model import Model
from workers.encoder.quantize import PRECISIONS, WITH_RANGES, Projection, project, quantize
from workers.encoder.ranges import Ranges
from workers.records import Batch
from workers.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore")  # an import of sentence-transformers warns; none of it is ours

THEIRS = {"int8_ranges": "int8", "uint8_ranges": "uint8", "binary": "binary", "ubinary": "ubinary"}
README = Path(__file__).parents[2] / "README.md"
DOCUMENTS, QUERIES = 1_000, 200


@pytest.fixture(scope="module")
def theirs() -> Callable[..., np.ndarray]:
    from sentence_transformers.util.quantization import quantize_embeddings

    return quantize_embeddings


# ---- the same as sentence-transformers

FLOATS = st.floats(-4, 4, width=32)
EDGES = st.sampled_from([-2, -1, -0.9961, -0.001, -0.0, 0.0, 0.001, 0.5, 0.9961, 1, 2, 1e-45, 3e38, -3e38])
VECTORS = hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.just(16)), elements=EDGES | FLOATS).filter(
    lambda vectors: bool(vectors.any(axis=1).all())
)
SAMPLES = hnp.arrays(np.float32, (2, 16), elements=st.floats(-2, 2, width=32))


@pytest.mark.parametrize("precision", list(THEIRS))
@settings(deadline=None)
@given(vectors=VECTORS, sample=SAMPLES)
def test_equal_to_sentence_transformers(theirs, precision: str, vectors: np.ndarray, sample: np.ndarray):
    ranges = Ranges.of([sample]) if precision in WITH_RANGES else None
    ours = quantize(vectors, precision, ranges).values
    with np.errstate(over="ignore"):
        expected = theirs(vectors, THEIRS[precision], ranges=np.stack((sample.min(axis=0), sample.max(axis=0))))
    assert ours.dtype == expected.dtype
    assert np.array_equal(ours, expected)


@pytest.mark.parametrize("precision", list(THEIRS))
def test_equal_on_vectors_of_a_model(theirs, vectors: np.ndarray, precision: str):
    unit = project(vectors, 256)
    sample = unit[:100]  # so that others lie outside its ranges
    projection = Projection(256, precision, Ranges.of([sample]) if precision in WITH_RANGES else None)
    expected = theirs(unit, THEIRS[precision], calibration_embeddings=sample)
    assert np.array_equal(projection(vectors).values, expected)


def test_the_edges_are_rounded_down_not_to_the_nearest():
    """At ranges of ±1: what sentence-transformers gives, by hand."""
    values = [-2, -1, -0.9961, -0.001, -0.0, 0.0, 0.001, 0.0079, 0.99, 1, 2, np.float32(3e38)]
    codes = [-128, -128, -128, -1, -1, -1, -1, 0, 125, 126, 127, 127]
    vectors = np.array([values], np.float32)
    one = np.ones(len(values), np.float32)
    assert quantize(vectors, "int8_ranges", Ranges(-one, one)).values[0].tolist() == codes
    assert quantize(vectors, "uint8_ranges", Ranges(-one, one)).values[0].tolist() == [code + 128 for code in codes]


def test_bits_stand_for_what_is_above_zero_the_first_one_highest():
    vectors = np.array([[-0.0, 0.0, 1, -1, 1e-45, -1e-45, -2, 2]], np.float32)
    assert quantize(vectors, "ubinary").values.tolist() == [[0b00101001]]
    assert quantize(vectors, "binary").values.tolist() == [[0b00101001 - 128]]


# ---- what a search over them finds


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """Of the demo's documents and, after them, of others that ask: MiniLM, float32, each cut to 64 tokens for speed."""
    texts = [f"{document.title}\n{document.body}" for document in documents(DOCUMENTS + QUERIES)]
    model = Model.open(Settings(model={"max_tokens": 64, "dtype": "float32"}))
    tokens = model.tokenizer().encode(texts)
    return model.encoder(cuda=False).encode(Batch.of([found.ids for found in tokens]))


def decoders() -> dict[str, str]:
    """The README's way back from bytes, by precision: the code in the last column of its table."""
    rows = re.findall(r"^\| `(\w+)` \|.*\| `([^`]+)` \|$", README.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: code for name, code in rows if name in PRECISIONS}


def read_back(projection: Projection, vectors: np.ndarray) -> np.ndarray:
    """What a consumer makes of the values of binary records, as the README tells it to."""
    known = {"np": np}
    if projection.ranges is not None:
        known |= {"low": projection.ranges.low, "high": projection.ranges.high}
    code = decoders()[projection.precision]
    return np.array(
        [
            eval(code, {**known, "value": values.tobytes(), "scale": None if scale is None else str(scale)})
            for values, scale in projection(vectors).rows()
        ]
    ).astype(np.float64)


def nearest(queries: np.ndarray, found: np.ndarray) -> np.ndarray:
    found = found / np.linalg.norm(found, axis=1, keepdims=True)
    return np.argsort(-(queries @ found.T), axis=1, kind="stable")[:, :10]


def recall(truth: np.ndarray, other: np.ndarray) -> float:
    return float(np.mean([len(set(one) & set(two)) / 10 for one, two in zip(truth, other, strict=True)]))


@pytest.mark.parametrize("dim", [384, 256])
def test_recall(vectors: np.ndarray, dim: int, record_property):
    """recall@10 against a search over float32 of the same dim; queries are quantised too. The README quotes it."""
    unit = project(vectors, dim).astype(np.float64)
    assert np.abs(np.linalg.norm(unit, axis=1) - 1).max() < 1e-5
    ranges = Ranges.of([project(vectors[:DOCUMENTS], dim)])
    truth = nearest(unit[DOCUMENTS:], unit[:DOCUMENTS])
    found = {}
    for precision in PRECISIONS:
        back = read_back(Projection(dim, precision, ranges if precision in WITH_RANGES else None), vectors)
        if precision in ("binary", "ubinary"):
            back = 2 * back - 1  # the dot product of signs orders as the Hamming distance does
        found[precision] = recall(truth, nearest(back[DOCUMENTS:], back[:DOCUMENTS]))
        if precision == "ubinary":
            first = np.argsort(-(back[DOCUMENTS:] @ back[:DOCUMENTS].T), axis=1, kind="stable")[:, :40]
            again = [
                rows[nearest(query[None], unit[rows])[0]] for query, rows in zip(unit[DOCUMENTS:], first, strict=True)
            ]
            found["ubinary, 40 rescored"] = recall(truth, np.array(again))
    codes = Projection(dim, "int8_ranges", ranges)(vectors).values.astype(np.float64)
    found["int8_ranges, not decoded"] = recall(truth, nearest(codes[DOCUMENTS:], codes[:DOCUMENTS]))
    record_property(f"recall at {dim}", str(found))
    print(dim, {name: round(value, 3) for name, value in found.items()})
    assert found["float32"] == 1
    assert found["float16"] >= 0.999
    assert found["int8"] >= 0.99
    assert found["int8_ranges"] == found["uint8_ranges"] >= 0.985
    assert found["binary"] == found["ubinary"] >= 0.6
    assert found["ubinary, 40 rescored"] >= 0.9
    assert found["int8_ranges, not decoded"] < 0.95
