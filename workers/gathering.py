"""The chunks of a record, gathered until all have come: then the record has an outcome.

Comes in: which records wait for how many chunks, and outcomes of texts, in any order. Goes out: outcomes of records. Never here:
threads, or records of assignments that have ended, once somebody has said so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from workers.records import Chunked, DeadLetter, Embedding, Origin, Outcome, TopicPartition
from workers.window import WaitingText


class _Parts:
    """What has come of one record."""

    __slots__ = ("embeddings", "refused", "waits_for")

    def __init__(self, count: int) -> None:
        self.embeddings: dict[int, Embedding] = {}
        self.waits_for = count
        self.refused = False

    def whole(self) -> Chunked:
        return Chunked(tuple(self.embeddings[index] for index in range(len(self.embeddings))))


class Gathering:
    """Belongs to one thread."""

    def __init__(self) -> None:
        self._records: dict[Origin, _Parts] = {}

    def __len__(self) -> int:
        """Records that are not whole yet."""
        return len(self._records)

    def expect(self, texts: Iterable[WaitingText]) -> None:
        """Wait for the chunks among these texts, of each record all of them."""
        for text in texts:
            if text.chunk is not None and text.chunk.index == 0:
                self._records[text.origin] = _Parts(text.chunk.count)

    def whole(self, answered: Iterable[tuple[WaitingText, Outcome]]) -> list[tuple[Origin, Outcome]]:
        """The records that have an outcome now, by those of texts; a text that is no chunk is its record.

        The first chunk that is refused refuses its record, with the number of the chunk in the message. Chunks that nobody
        waits for are dropped.
        """
        settled: list[tuple[Origin, Outcome]] = []
        for text, outcome in answered:
            chunk, origin = text.chunk, text.origin
            if chunk is None:
                settled.append((origin, outcome))
                continue
            parts = self._records.get(origin)
            if parts is None:
                continue
            parts.waits_for -= 1
            if isinstance(outcome, Embedding) and not parts.refused:
                # A copy: of the call's other vectors, which it would keep in memory, most are written sooner.
                parts.embeddings[chunk.index] = replace(outcome, vector=outcome.vector.copy())
            elif isinstance(outcome, DeadLetter) and not parts.refused:
                parts.refused = True
                parts.embeddings.clear()
                said = f"chunk {chunk.index + 1} of {chunk.count}: {outcome.message}"
                settled.append((origin, replace(outcome, message=said)))
            if parts.waits_for == 0:
                del self._records[origin]
                if not parts.refused:
                    settled.append((origin, parts.whole()))
        return settled

    def keep(self, epochs: Mapping[TopicPartition, int]) -> None:
        """Give up the records of assignments that have ended: their outcomes would be dropped."""
        gone = [origin for origin in self._records if epochs.get(origin.topic_partition) != origin.epoch]
        for origin in gone:
            del self._records[origin]

    def give_up(self, texts: Iterable[WaitingText]) -> None:
        """These will have no outcome, so their records have none."""
        for text in texts:
            self._records.pop(text.origin, None)
