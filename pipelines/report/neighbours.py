"""How much of a text's neighbourhood is left when vectors are cut, quantised, or seen through other dims.

Comes in: vectors of the same texts, in full and otherwise. Goes out: figures. Never here: how vectors became what they are, a
text, or a model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workers.records import type_vectors

K = 10  # of recall
NEAREST = 50  # whose order is compared
CANDIDATES = 40  # that are ordered anew by the full vectors

type_rows = npt.NDArray[np.intp]
type_scores = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Found:
    """What a search finds of what one over the full vectors finds; each a mean over the texts that ask.

    ``recall``: the share of the 10 nearest that are among the 10 that it finds. ``top1``: how often the nearest is the nearest.
    ``rank_correlation``: Spearman's, of its order of the 50 nearest with theirs, ties having their mean rank. ``rescored``: the
    recall when 40 are fetched and ordered anew by the full vectors.
    """

    recall: float
    top1: float
    rank_correlation: float
    rescored: float


class Truth:
    """What a search over the full vectors finds, each text that asks left out of its own answer."""

    def __init__(self, vectors: type_vectors, asking: type_rows) -> None:
        """``vectors``: float32 [n, D], n > 10, compared by cosine; ``asking``: the rows that ask, [q].

        Raises:
            ValueError: there are too few vectors.
        """
        if len(vectors) <= K:
            raise ValueError(f"{K} nearest need more than {K} vectors")
        self._asking = asking
        # As what is held against it: one rounding more, and neighbours as near as the last bit would change places.
        self._scores = scores(_unit(vectors), asking)
        self._nearest = best(self._scores, min(NEAREST, len(vectors) - 1))

    def held_against(self, vectors: type_vectors) -> Found:
        """Compare a search over other vectors of the same texts, float32 [n, d], by cosine, questions being like documents."""
        found = scores(_unit(vectors), self._asking)
        first = best(found, min(CANDIDATES, len(vectors) - 1))
        again = best(np.take_along_axis(self._scores, first, axis=1), K)
        ranks = np.take_along_axis(found, self._nearest, axis=1)
        return Found(
            recall=_shared(self._nearest[:, :K], first[:, :K]),
            top1=float(np.mean(self._nearest[:, 0] == first[:, 0])),
            rank_correlation=spearman(np.take_along_axis(self._scores, self._nearest, axis=1), ranks),
            rescored=_shared(self._nearest[:, :K], np.take_along_axis(first, again, axis=1)),
        )

    def recall(self, vectors: type_vectors) -> float:
        """The recall alone."""
        return _shared(self._nearest[:, :K], best(scores(_unit(vectors), self._asking), K))


def scores(vectors: type_vectors, asking: type_rows) -> type_scores:
    """The dot product of the rows that ask with all rows, float32 [q, n]; with itself: minus infinity."""
    found = np.asarray(vectors[asking] @ vectors.T, np.float32)
    found[np.arange(len(asking)), asking] = -np.inf
    return found


def best(found: type_scores, k: int) -> type_rows:
    """The columns of the ``k`` greatest of each row, greatest first, of equals the first: [q, k]."""
    # A partition alone would draw lots among equals, of which packed bits have many.
    return np.argsort(-found, axis=1, kind="stable")[:, :k]


def spearman(one: type_scores, two: type_scores) -> float:
    """Spearman's rank correlation of each row of [q, k] with its like, as a mean; 0 for a row of equals."""
    first, second = (_centred(_ranks(each)) for each in (one, two))
    length = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float(np.mean((first * second).sum(axis=1) / np.maximum(length, 1e-12)))


def _ranks(found: type_scores) -> npt.NDArray[np.float64]:
    """The rank of each in its row; equals have their mean rank."""
    below = (found[:, :, np.newaxis] > found[:, np.newaxis, :]).sum(axis=2)
    equal = (found[:, :, np.newaxis] == found[:, np.newaxis, :]).sum(axis=2)
    return np.asarray(below + (equal - 1) / 2, np.float64)


def _centred(ranks: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(ranks - ranks.mean(axis=1, keepdims=True), np.float64)


def _unit(vectors: type_vectors) -> type_vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)


def _shared(one: type_rows, two: type_rows) -> float:
    """The mean share of each row's columns that are in the other's row."""
    return float(np.mean((one[:, :, np.newaxis] == two[:, np.newaxis, :]).any(axis=2)))
