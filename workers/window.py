"""Texts that wait for an encoder, and the calls they are cut into. Pure: the clock is an argument.

Comes in: tokenised texts in any order. Goes out: calls, each of texts of similar length. Never here: threads, or sending.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain

from workers.records import Batch, Document, Origin, Tokens, TopicPartition
from workers.text.batching import plan

# Texts are tokenised so many calls ahead: enough to sort by length, little enough to give up when a drain begins.
CALLS_AHEAD = 4
# A call should carry this much work: the router's own cost is 1-2 % of it, and a fifth of 10 ms.
CALL_SECONDS = 0.1
MOST_BATCHES = 16


@dataclass(frozen=True, slots=True)
class WaitingText:
    """A text on its way to an encoder, with what its outcome will need."""

    origin: Origin
    document: Document
    tokens: Tokens


@dataclass(frozen=True, slots=True)
class Call:
    """One encoder call: its texts in the batch's order."""

    texts: tuple[WaitingText, ...]
    batch: Batch


class Window:
    """What waits, and how large a call should be.

    A call carries ``CALL_SECONDS`` of a replica's work as measured, and no less than one token budget; a call that is not
    full goes out when its oldest text has waited ``linger_s``.
    """

    def __init__(self, max_batch_tokens: int, linger_s: float) -> None:
        """``max_batch_tokens``: the budget of one forward pass."""
        self._budget = max_batch_tokens
        self._linger_s = linger_s
        self._texts: list[WaitingText] = []
        self._calls: deque[tuple[WaitingText, ...]] = deque()
        self._oldest = 0.0
        self._rate = 0.0
        self.tokens = 0

    @property
    def call_tokens(self) -> int:
        """Tokens that a call should carry."""
        return int(min(max(self._budget, CALL_SECONDS * self._rate), MOST_BATCHES * self._budget))

    @property
    def full(self) -> bool:
        """Whether enough is tokenised ahead."""
        return self.tokens >= CALLS_AHEAD * self.call_tokens

    @property
    def empty(self) -> bool:
        """Whether nothing waits."""
        return not self._texts and not self._calls

    def measured(self, tokens: int, seconds: float) -> None:
        """Learn from an answered call. Time in a replica's queue counts, so this errs on the side of smaller calls."""
        rate = tokens / max(seconds, 1e-3)
        self._rate = rate if self._rate == 0.0 else 0.8 * self._rate + 0.2 * rate

    def add(self, texts: Iterable[WaitingText], now: float) -> None:
        """Have texts wait."""
        for text in texts:
            if not self._texts:
                self._oldest = now
            self._texts.append(text)
            self.tokens += len(text.tokens.ids)

    def take(self, now: float) -> Call | None:
        """The next call, or None while it is better to wait for more texts."""
        if not self._calls:
            self._cut(now)
        if not self._calls:
            return None
        texts = self._calls.popleft()
        batch = Batch.of([text.tokens.ids for text in texts])
        self.tokens -= batch.tokens
        return Call(texts, batch)

    def keep(self, epochs: Mapping[TopicPartition, int]) -> None:
        """Give up the texts of assignments that have ended: their outcomes would be dropped."""

        def ours(text: WaitingText) -> bool:
            return epochs.get(text.origin.topic_partition) == text.origin.epoch

        self._texts = [text for text in self._texts if ours(text)]
        kept = (tuple(filter(ours, texts)) for texts in self._calls)
        self._calls = deque(texts for texts in kept if texts)
        self.tokens = sum(len(text.tokens.ids) for text in chain(self._texts, *self._calls))

    def clear(self) -> int:
        """Give up what waits; returns how many texts that were."""
        count = len(self._texts) + sum(len(texts) for texts in self._calls)
        self._texts.clear()
        self._calls.clear()
        self.tokens = 0
        return count

    def _cut(self, now: float) -> None:
        """Sort all that wait by length and cut them into calls; short and long texts share no batch, so little is padded."""
        if not self._texts or (self.tokens < self.call_tokens and now - self._oldest < self._linger_s):
            return
        window, self._texts = self._texts, []
        lengths = [len(text.tokens.ids) for text in window]
        self._calls.extend(tuple(window[row] for row in rows) for rows in plan(lengths, self._budget, self.call_tokens))
