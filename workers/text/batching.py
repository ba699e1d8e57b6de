"""Which texts go to the encoder together.

Comes in: token counts of a window of texts. Goes out: calls, as lists of indices. Never here: the texts, or the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence


def plan(lengths: Sequence[int], max_batch_tokens: int, call_tokens: int) -> list[list[int]]:
    """Sort a window of texts by length, longest first, and cut it into calls of whole forward passes.

    An encoder that packs its texts cuts a call into the same passes again, for they follow from the lengths and the budget
    alone; one that pads them, or has run out of memory, makes smaller ones. A pass costs its tokens; a text above the budget
    is a pass and a call of its own.

    Args:
        lengths: tokens per text, each at least 1.
        max_batch_tokens: budget of one forward pass.
        call_tokens: budget of one call; a call holds at least one pass, whatever it costs.

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
        stop, cost = start + 1, lengths[order[start]]
        while stop < len(order) and cost + lengths[order[stop]] <= max_batch_tokens:
            cost += lengths[order[stop]]
            stop += 1
        if cost <= room:
            calls[-1].extend(order[start:stop])
            room -= cost
        else:
            calls.append(order[start:stop])
            room = 0 if cost > max_batch_tokens else call_tokens - cost
        start = stop
    return calls
