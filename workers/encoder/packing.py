"""Which texts share a forward pass.

Comes in: token counts. Goes out: index arrays, each a padded batch within the token budget. Never here: torch, or ids.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from workers.records import type_ids


def split(lengths: type_ids, max_batch_tokens: int) -> list[npt.NDArray[np.intp]]:
    """Cut texts into batches of like length, longest first.

    A batch costs its longest length times its count, which is at most ``max_batch_tokens``; a longer text goes alone.

    Args:
        lengths: int [n], tokens per text, each at least 1.
        max_batch_tokens: the budget of one forward pass, padding included.

    Returns:
        int arrays that together hold each index from 0 to n - 1 once.
    """
    order = np.argsort(-lengths, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        fits = max(1, max_batch_tokens // int(lengths[order[start]]))
        batches.append(order[start : start + fits])
        start += fits
    return batches
