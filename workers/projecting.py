"""The vectors of a prefix as each output writes them: cut, normalised and quantised, all of them together.

Comes in: settled records, outputs. Goes out: vectors and scales by output and record. Never here: how they are written down.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from workers.codecs.base import type_vector
from workers.encoder.quantize import Projection, has_direction
from workers.errors import PoisonError
from workers.offsets import Prefix
from workers.records import embeddings_of

# Of each of a row's embeddings its vector and scale, None where it has none.
type_vectors_of_row = list[tuple[type_vector, np.float32 | None] | None]
# For each output by name, those of each row that has embeddings.
type_projected = dict[str, dict[int, type_vectors_of_row]]


class Projecting(Protocol):
    """An output, as far as its vectors go."""

    @property
    def name(self) -> str:
        """The output's name."""

    @property
    def projection(self) -> Projection:
        """What is made of the vector."""


def project(prefix: Prefix, outlets: Sequence[Projecting]) -> type_projected:
    """What each output writes: all its vectors cut, normalised and quantised together."""
    embeddings = [
        (row, embedding) for row, entry in enumerate(prefix.settled) for embedding in embeddings_of(entry.outcome)
    ]
    if not embeddings:
        return {outlet.name: {} for outlet in outlets}
    full = np.array([embedding.vector for _, embedding in embeddings])
    found: type_projected = {}
    for outlet in outlets:
        # A vector with nothing in its first dimensions is left out; the others go on without it.
        sound = has_direction(full, outlet.projection.dim)
        projected = iter(outlet.projection(full if sound.all() else full[sound]).rows())
        of_rows = found[outlet.name] = {}
        for (row, _), good in zip(embeddings, sound, strict=True):
            of_rows.setdefault(row, []).append(next(projected) if good else None)
    return found


def required(
    projected: tuple[type_vector, np.float32 | None] | None, projection: Projection
) -> tuple[type_vector, np.float32 | None]:
    """A vector and its scale.

    Raises:
        PoisonError: stage ``output``: there is none.
    """
    if projected is None:
        raise PoisonError(
            "output", "no_direction", f"the vector has no length in its first {projection.dim} dimensions"
        )
    return projected
