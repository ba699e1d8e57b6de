"""Ranges of a vector's dimensions, by which int8_ranges and uint8_ranges quantise: taken from a sample, kept in a file.

Comes in: unit vectors of a sample, or a file. Goes out: ``Ranges``, or a file. Never here: the batch at hand as its own
sample, which would give every batch a scale of its own; or a model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from workers.errors import EnvironmentFault, SettingsError
from workers.records import type_vectors

type_range = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Ranges:
    """The least and the greatest value of each dimension in a sample.

    ``low``, ``high``: float32 [dim], finite, low ≤ high. ``space``: the fingerprint of the float32 vectors that they were
    taken from, with the ``model``'s name and the number of ``texts``; None, "" and 0 for a plain array.
    """

    low: type_range
    high: type_range
    space: str | None = None
    model: str = ""
    texts: int = 0

    def __post_init__(self) -> None:
        """Refuse what is not a range, by a ValueError."""
        if self.low.ndim != 1 or self.low.shape != self.high.shape or not self.low.size:
            raise ValueError("ranges are an array of shape [2, dim]: the least and the greatest values")
        with np.errstate(over="ignore", invalid="ignore"):
            extent = self.high - self.low
        if not np.isfinite(extent).all():
            raise ValueError("a range is not finite")
        if (extent < 0).any():
            raise ValueError("a dimension's least value, in the first row, is above its greatest")

    @property
    def dim(self) -> int:
        """Dimensions."""
        return len(self.low)

    @property
    def digest(self) -> str:
        """SHA-256 over the numbers, whatever the file around them."""
        return hashlib.sha256(np.stack((self.low, self.high)).astype("<f4").tobytes()).hexdigest()

    @classmethod
    def of(cls, samples: Iterable[type_vectors]) -> Ranges:
        """Ranges of float32 vectors [n, dim] that come in parts.

        Raises:
            ValueError: there are none, or one is not finite.
        """
        low = high = None
        for part in samples:
            if not len(part):
                continue
            least, most = part.min(axis=0), part.max(axis=0)
            low = least if low is None else np.minimum(low, least)
            high = most if high is None else np.maximum(high, most)
        if low is None or high is None:
            raise ValueError("ranges need a sample, and there is none")
        return cls(low, high)

    @classmethod
    def read(cls, path: Path) -> Ranges:
        """Read what :meth:`write` wrote, or a plain ``.npy`` of shape [2, dim] as sentence-transformers' users keep it.

        Raises:
            EnvironmentFault: there is no such file, or it holds something else.
        """
        mend = "make one with stream-embedder calibrate, or give an .npy of shape [2, dim]"
        try:
            with path.open("rb") as file:
                parts = _load(file)
        except OSError as error:
            raise EnvironmentFault(f"ranges file {path} cannot be read: {error.strerror or error}") from None
        except Exception:  # noqa: BLE001 - numpy and zipfile raise all sorts of errors on a broken file
            raise EnvironmentFault(f"ranges file {path} is no .npz with ranges, and no .npy: {mend}") from None
        try:
            low, high = _halves(np.asarray(parts["ranges"]))
            if "fingerprint" not in parts:
                return cls(low, high)
            fingerprint, model, texts = (np.asarray(parts[name]).item() for name in ("fingerprint", "model", "texts"))
            return cls(low, high, str(fingerprint) or None, str(model), int(texts))
        except KeyError as error:
            raise EnvironmentFault(f"ranges file {path} has no array {error}: {mend}") from None
        except ValueError as error:
            raise EnvironmentFault(f"ranges file {path} cannot be used: {error}; {mend}") from None

    def write(self, file: BinaryIO) -> None:
        """Write an ``.npz``: ``ranges`` float32 [2, dim], ``fingerprint``, ``model``, ``texts``."""
        about = {"fingerprint": self.space or "", "model": self.model, "texts": self.texts}
        arrays: dict[str, Any] = {name: np.array(value) for name, value in about.items()}
        np.savez(file, ranges=np.stack((self.low, self.high)), **arrays)

    def require(self, path: Path, *, dim: int, space: str, model: str) -> None:
        """Check that these are ranges of an output's vectors: of ``dim``, and of the ``space`` that a file tells of.

        Raises:
            SettingsError: they are another's.
        """
        if self.dim != dim:
            raise SettingsError(
                f"ranges file {path} has {self.dim} dimensions, and the output has {dim}: make one with stream-embedder "
                f"calibrate --dim {dim}"
            )
        if self.space is not None and self.space != space:
            raise SettingsError(
                f"ranges file {path} belongs to other vectors (model {self.model}, fingerprint {self.space}) than these "
                f"settings make (model {model}, fingerprint {space}): model, prompt, source.text, max_tokens and overflow "
                "must be those that it was made with; make one with stream-embedder calibrate"
            )


def _load(file: BinaryIO) -> Mapping[str, npt.NDArray[Any]]:
    loaded = np.load(file, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return {"ranges": loaded}
    with loaded:
        return dict(loaded)


def _halves(array: npt.NDArray[Any]) -> tuple[type_range, type_range]:
    if array.dtype.kind not in "fiu" or array.ndim != 2 or array.shape[0] != 2:
        raise ValueError(f"the array has shape {list(array.shape)} and type {array.dtype}, ranges are numbers [2, dim]")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused for that
        low, high = array.astype(np.float32)
    return low, high
