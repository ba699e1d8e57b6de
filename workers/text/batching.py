"""Which texts go to the encoder together.

Comes in: token counts of a window of texts. Goes out: calls, as lists of indices. Never here: the texts, or the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence


def plan(lengths: Sequence[int], max_batch_tokens: int, call_tokens: int) -> list[list[int]]:
    """Sort a window of texts by length, longest first, and cut it into calls of whole token-budget batches.

    The encoder cuts a call into the same batches again, for they follow from the lengths and the budget alone. A batch
    costs its longest length times its count; a text above the budget is a batch and a call of its own.

    Args:
        lengths: tokens per text, each at least 1.
        max_batch_tokens: budget of one forward pass, padding included.
        call_tokens: budget of one call, padding included; a call holds at least one batch, whatever it costs.

    Returns:
        Calls, each a list of indices into ``lengths`` in the order of falling length; every index is in exactly one.

    Raises:
        ValueError: a length or budget below 1.
    """
    if max_batch_tokens < 1 or call_tokens < 1 or (len(lengths) > 0 and min(lengths) < 1):
        raise ValueError("lengths and budgets are at least 1")
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    calls: list[list[int]] = []
    room = 0
    start = 0
    while start < len(order):
        longest = lengths[order[start]]
        batch = order[start : start + max(1, max_batch_tokens // longest)]
        cost = longest * len(batch)
        if cost <= room:
            calls[-1].extend(batch)
            room -= cost
        else:
            calls.append(batch)
            room = 0 if longest > max_batch_tokens else call_tokens - cost
        start += len(batch)
    return calls
