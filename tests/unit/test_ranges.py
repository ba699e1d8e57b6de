"""Ranges of a sample: what they hold, what a file of them says, and which files are refused."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from workers.encoder.ranges import Ranges
from workers.errors import EnvironmentFault, SettingsError

SAMPLE = np.array([[0.1, -0.2, 0.3], [0.2, -0.4, 0.3]], np.float32)
OWN = {"dim": 3, "space": "ab12", "model": "m"}


def written(ranges: Ranges) -> bytes:
    file = io.BytesIO()
    ranges.write(file)
    return file.getvalue()


def saved(array: object) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(array))
    return file.getvalue()


def zipped(**arrays: object) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def own() -> Ranges:
    return replace(Ranges.of([SAMPLE]), space="ab12", model="m", texts=2)


@given(st.lists(hnp.arrays(np.float32, st.tuples(st.integers(0, 4), st.just(5)), elements=st.floats(-1, 1, width=32))))
def test_ranges_of_parts_are_those_of_the_whole(parts):
    whole = np.concatenate([*parts, np.empty((0, 5), np.float32)])
    if not len(whole):
        with pytest.raises(ValueError, match="there is none"):
            Ranges.of(parts)
        return
    found = Ranges.of(parts)
    assert np.array_equal(found.low, whole.min(axis=0)) and np.array_equal(found.high, whole.max(axis=0))
    assert found.dim == 5 and found.space is None


def test_a_sample_that_is_not_finite_gives_no_ranges():
    with pytest.raises(ValueError, match="not finite"):
        Ranges.of([np.array([[0.1, np.nan]], np.float32)])


def test_what_is_written_is_read_again(tmp_path: Path):
    path = tmp_path / "any name"
    path.write_bytes(written(own()))
    found = Ranges.read(path)
    assert np.array_equal(found.low, [np.float32(0.1), np.float32(-0.4), np.float32(0.3)])
    assert np.array_equal(found.high, [np.float32(0.2), np.float32(-0.2), np.float32(0.3)])
    assert (found.low.dtype, found.space, found.model, found.texts) == (np.float32, "ab12", "m", 2)
    assert np.load(path)["ranges"].shape == (2, 3)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", "int8"])
def test_a_plain_array_is_taken_as_sentence_transformers_would(tmp_path: Path, dtype: str):
    array = np.array([[-1, 0], [1, 0]], dtype)
    for content in (saved(array), zipped(ranges=array)):
        (tmp_path / "ranges.npy").write_bytes(content)
        found = Ranges.read(tmp_path / "ranges.npy")
        assert (found.low.dtype, found.dim, found.space) == (np.float32, 2, None)
        assert (found.low.tolist(), found.high.tolist()) == ([-1, 0], [1, 0])


def test_the_digest_is_of_the_numbers_alone(tmp_path: Path):
    (tmp_path / "plain.npy").write_bytes(saved(np.stack((own().low, own().high))))
    assert Ranges.read(tmp_path / "plain.npy").digest == own().digest
    assert Ranges(own().low, own().high + np.float32(1e-3)).digest != own().digest
    assert Ranges(own().low - np.float32(1e-3), own().high).digest != own().digest


NO_FILE = "is no .npz with ranges, and no .npy"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", NO_FILE),
        (b"low,high\n-1,1\n", NO_FILE),
        (b"PK\x03\x04 cut short", NO_FILE),
        (saved(np.array([{}, {}], object)), NO_FILE),
        (zipped(bounds=np.zeros((2, 3))), "has no array 'ranges'"),
        (zipped(ranges=np.zeros((2, 3)), fingerprint="ab"), "has no array 'model'"),
        (saved(np.zeros((3, 2))), "the array has shape [3, 2]"),
        (saved(np.zeros(4)), "the array has shape [4]"),
        (saved(np.zeros((2, 0))), "shape [2, dim]"),
        (saved(np.array([["a"], ["b"]])), "type <U1"),
        (saved([[0.0, np.nan], [1.0, 1.0]]), "not finite"),
        (saved([[0.0], [1e300]]), "not finite"),
        (saved(np.array([[-3e38], [3e38]], np.float32)), "not finite"),
        (saved([[1.0, 1.0], [0.0, 1.0]]), "above its greatest"),
    ],
)
def test_another_file_is_refused_in_a_sentence(tmp_path: Path, content: bytes, says: str):
    path = tmp_path / "ranges.npz"
    path.write_bytes(content)
    with pytest.raises(EnvironmentFault) as caught:
        Ranges.read(path)
    told = str(caught.value)
    assert says in told and str(path) in told and "calibrate" in told
    assert "\n" not in told


def test_a_file_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(EnvironmentFault, match="cannot be read: No such file"):
        Ranges.read(tmp_path / "absent.npz")
    with pytest.raises(EnvironmentFault, match="cannot be read: Is a directory"):
        Ranges.read(tmp_path)


@settings(deadline=None)  # it writes files
@given(st.sampled_from([written(own()), saved(np.stack((own().low, own().high)))]), st.data())
def test_a_broken_file_is_refused_or_read(tmp_path_factory, content: bytes, data: st.DataObject):
    broken = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "broken.npz"
    path.write_bytes(broken[: data.draw(st.integers(0, len(broken)))])
    with contextlib.suppress(EnvironmentFault):
        Ranges.read(path)


def test_ranges_of_other_vectors_are_refused(tmp_path: Path):
    path = tmp_path / "ranges.npz"
    own().require(path, **OWN)
    with pytest.raises(SettingsError, match=r"has 3 dimensions, and the output has 256: .* --dim 256"):
        own().require(path, **OWN | {"dim": 256})
    with pytest.raises(
        SettingsError, match=r"belongs to other vectors \(model m, fingerprint ab12\) .*fingerprint cd34"
    ):
        own().require(path, **OWN | {"space": "cd34"})


def test_a_plain_array_cannot_tell_whose_it_is(tmp_path: Path):
    plain = Ranges.of([SAMPLE])
    plain.require(tmp_path, **OWN | {"space": "any"})
    with pytest.raises(SettingsError, match="has 3 dimensions"):
        plain.require(tmp_path, **OWN | {"dim": 4})
