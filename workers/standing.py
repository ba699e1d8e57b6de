"""What stands under a record's key in the outputs, and what an outcome makes of it.

Comes in: outcomes, the state's entries. Goes out: whether anything changes, which keys go, what is remembered. Never here: a
message or a row, or where the state is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from workers.records import Outcome, Record, Settled, Tombstone, Unchanged, chunk_key, embeddings_of
from workers.state import Entry, View

# Keys of outputs in which each chunk has one, and under True of those that have all of a record's under its own.
type_gone = Mapping[bool, Sequence[bytes]]
_NOTHING: type_gone = {False: (), True: ()}


def if_it_changes(entry: Settled, view: View, before: Entry | None) -> Settled:
    """The record as it was settled, or unchanged: its key stands as it would be written, by the records before it."""
    embeddings = embeddings_of(entry.outcome)
    if embeddings and view.same(embeddings[0].document, before):
        return Settled(entry.record, Unchanged(sum(each.tokens for each in embeddings)))
    return entry


def gone_keys(record: Record, outcome: Outcome, before: Entry | None) -> type_gone:
    """The keys of output records that the outcome takes away, by what stands ``before``: None: that is not known, or nothing.

    Where a record's chunks share its key, an update takes the place of whatever stood.
    """
    embeddings = embeddings_of(outcome)
    if record.key is None or (before is None and embeddings):
        return _NOTHING
    standing = [] if before is None else _keys(record.key, before.chunks)
    if not embeddings:
        return {False: standing or [record.key], True: [record.key]}
    written = set(_keys(record.key, 0 if embeddings[0].chunk is None else len(embeddings)))
    return {False: [key for key in standing if key not in written], True: []}


def remember(view: View, record: Record, outcome: Outcome, *, deletes: bool) -> None:
    """Note what the record leaves under its key; ``deletes``: it was refused, and takes what was there."""
    embeddings = embeddings_of(outcome)
    if embeddings and (digest := embeddings[0].document.digest) is not None:
        chunks = 0 if embeddings[0].chunk is None else len(embeddings)
        view.leaves(record, Entry(digest, sum(each.tokens for each in embeddings), chunks))
    elif deletes or isinstance(outcome, Tombstone):
        view.leaves(record, None)


def _keys(key: bytes, chunks: int) -> list[bytes]:
    """Under which keys a record's vectors are: its own, or those of so many chunks."""
    return [chunk_key(key, index) for index in range(chunks)] if chunks else [key]
