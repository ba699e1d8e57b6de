"""Texts that wait for an encoder, and the calls they are cut into. Pure: the clock is an argument.

Comes in: tokenised texts in any order. Goes out: calls, each of texts of similar length, none of them twice. Never here:
threads, or sending.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from workers.records import Batch, Chunk, Document, Origin, Tokens, TopicPartition, frozen
from workers.text.batching import plan

# Texts are tokenised so many calls ahead: enough to sort by length, little enough to give up when a drain begins.
CALLS_AHEAD = 4
# A call should carry this much work, beside which the 2 to 7 ms that it costs its reader are little.
CALL_SECONDS = 0.1
MOST_BATCHES = 16
# A last call with less than this share of what a full one has is left for later if the others are all full then: its fixed costs
# are those of a full one. A larger share would leave over more, which waits once more, for less.
FULL = 0.75


@frozen
class WaitingText:
    """A text on its way to an encoder, with what its outcome will need; ``chunk``: which part of its document's text it is."""

    origin: Origin
    document: Document
    tokens: Tokens
    chunk: Chunk | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One encoder call: for each of the batch's texts those that wait for its vector, one or more."""

    rows: tuple[Sequence[WaitingText], ...]
    batch: Batch

    @property
    def shared_tokens(self) -> int:
        """Tokens that are not in the batch because an equal text is."""
        return sum(len(row[0].tokens.ids) * (len(row) - 1) for row in self.rows if len(row) > 1)


class Window:
    """What waits, and how large a call should be.

    A call carries ``CALL_SECONDS`` of a replica's work as measured, and no less than one token budget; a call that is not
    full goes out when its oldest text has waited ``linger_s`` since it came, or since full ones left it over. Texts with equal
    tokens, prompt included, are one row of one call: what they cost is counted once.
    """

    def __init__(self, max_batch_tokens: int, linger_s: float) -> None:
        """``max_batch_tokens``: the budget of one forward pass."""
        self._budget = max_batch_tokens
        self._linger_s = linger_s
        # By the bytes of their ids, for as long as others may join them.
        self._rows: dict[bytes, list[WaitingText]] = {}
        self._uncut: list[list[WaitingText]] = []
        self._calls: deque[tuple[list[WaitingText], ...]] = deque()
        self._oldest = 0.0
        self._rate = 0.0
        self._count = 0
        self.tokens = 0

    @property
    def call_tokens(self) -> int:
        """Tokens that a call should carry."""
        return int(min(max(self._budget, CALL_SECONDS * self._rate), MOST_BATCHES * self._budget))

    @property
    def full(self) -> bool:
        """Whether enough is tokenised ahead; a text that costs no tokens, because it is there already, counts as one."""
        return max(self.tokens, self._count) >= CALLS_AHEAD * self.call_tokens

    @property
    def empty(self) -> bool:
        """Whether nothing waits."""
        return not self._uncut and not self._calls

    def measured(self, tokens: int, seconds: float) -> None:
        """Learn from a call of which a replica has computed so many tokens, in so many seconds; a refused one shows nothing."""
        if tokens == 0:
            return
        rate = tokens / max(seconds, 1e-3)
        self._rate = rate if self._rate == 0.0 else 0.8 * self._rate + 0.2 * rate

    def add(self, texts: Iterable[WaitingText], now: float) -> int:
        """Have texts wait; returns the tokens that they bring to be encoded."""
        before = self.tokens
        for text in texts:
            self._count += 1
            ids = text.tokens.ids
            key = ids.tobytes()
            if (row := self._rows.get(key)) is not None:
                # One array for all of them; a text that was cut may have lost more than another that reads the same.
                tokens = Tokens(row[0].tokens.ids, text.tokens.total)
                row.append(WaitingText(text.origin, text.document, tokens, text.chunk))
                continue
            if not self._uncut:
                self._oldest = now
            self._rows[key] = row = [text]
            self._uncut.append(row)
            self.tokens += len(ids)
        return self.tokens - before

    def take(self, now: float) -> Call | None:
        """The next call, or None while it is better to wait for more texts."""
        if not self._calls:
            self._cut(now)
        if not self._calls:
            return None
        rows = self._calls.popleft()
        for row in rows:
            del self._rows[_key(row)]
            self._count -= len(row)
        batch = Batch.of([row[0].tokens.ids for row in rows])
        self.tokens -= batch.tokens
        return Call(rows, batch)

    def keep(self, epochs: Mapping[TopicPartition, int]) -> None:
        """Give up the texts of assignments that have ended: their outcomes would be dropped."""
        for row in self._rows.values():
            row[:] = [text for text in row if epochs.get(text.origin.topic_partition) == text.origin.epoch]
        self._uncut = [row for row in self._uncut if row]
        kept = (tuple(row for row in rows if row) for rows in self._calls)
        self._calls = deque(rows for rows in kept if rows)
        self._rows = {key: row for key, row in self._rows.items() if row}
        self._count = sum(map(len, self._rows.values()))
        self.tokens = sum(len(row[0].tokens.ids) for row in self._rows.values())

    def clear(self) -> list[WaitingText]:
        """Give up what waits; returns it."""
        given_up = [text for row in self._rows.values() for text in row]
        self._count = 0
        self._rows.clear()
        self._uncut.clear()
        self._calls.clear()
        self.tokens = 0
        return given_up

    def _cut(self, now: float) -> None:
        """Sort what waits by length and cut it into calls; short and long texts share no batch, so little is padded.

        The youngest stay where the calls of the others are all full: more texts join them, until they have lingered too.
        """
        if not self._uncut or (self.tokens < self.call_tokens and now - self._oldest < self._linger_s):
            return
        calls = self._planned([len(row[0].tokens.ids) for row in self._uncut])
        count = sum(map(len, calls))
        window, self._uncut = self._uncut[:count], self._uncut[count:]
        self._oldest = now
        self._calls.extend(tuple(window[row] for row in rows) for rows in calls)

    def _planned(self, lengths: Sequence[int]) -> list[list[int]]:
        """Calls of all texts, or of the oldest alone if the last call is full only so."""
        calls = plan(lengths, self._budget, self.call_tokens)
        enough = FULL * (self.call_tokens // self._budget) * self._budget
        left = sum(lengths[row] for row in calls[-1])
        if left >= enough or len(calls) == 1 or self.tokens < self.call_tokens:
            return calls
        # The longest text is not in the last call, and alone makes up for it: some texts remain.
        stop = len(lengths)
        while left > 0:
            stop -= 1
            left -= lengths[stop]
            if lengths[stop] > self._budget:
                return calls  # it is a call of its own, as full as that gets
        fewer = plan(lengths[:stop], self._budget, self.call_tokens)
        return fewer if sum(lengths[row] for row in fewer[-1]) >= enough else calls


def _key(row: Sequence[WaitingText]) -> bytes:
    return row[0].tokens.ids.tobytes()
