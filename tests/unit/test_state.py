"""The state of keys: what is unchanged, what stands under a key, and when a change is told to the topic."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import TOPIC, record
from workers.errors import EnvironmentFault, PoisonError
from workers.records import Document, Message, Position, Record, Tombstone, TopicPartition, Unchanged
from workers.state import Change, Digests, Entry, Known
from workers.state.entry import NOTHING, check_record, read_entry, state_key, topic_prefix, write_entry
from workers.state.store import Store

P0 = TopicPartition(TOPIC, 0)
STATE = "documents.state"
DIGESTS = Digests(["f1", "f2"])


def entry_of(held: Record, document: Document, tokens: int = 7) -> Entry:
    return Entry(DIGESTS.of(held, document), tokens)


def known(told: Sequence[tuple[bytes, bytes | None]] = (), *, skip: bool = True) -> Known:
    """The state of one partition that has begun, as the topic tells it."""

    def log(partition: TopicPartition) -> Iterator[Sequence[tuple[bytes, bytes | None]]]:
        assert partition == P0
        yield from ([one] for one in told)

    found = Known(STATE, log, DIGESTS, skip=skip)
    assert found.load(P0, 1, lambda: True) is not None
    found.assign(P0, 1, 0)
    return found


def told_of(held: Record, document: Document) -> tuple[bytes, bytes]:
    assert held.key is not None
    return state_key(TOPIC, held.key), write_entry(entry_of(held, document))


# ---- entries and digests


@given(st.binary(min_size=16, max_size=16), *[st.integers(0, 2**32 - 1)] * 2, st.integers(0, 2**63))
def test_an_entry_is_read_as_it_was_written(digest: bytes, tokens: int, chunks: int, offset: int):
    value = write_entry(Entry(digest, tokens, chunks, offset))
    check_record(b"k" * 20, value)
    assert read_entry(value) == Entry(digest, tokens, chunks, offset)


@pytest.mark.parametrize("value", [b"", b"\2" + b"x" * 32, b"\1" + b"x" * 31, b"{}"])
def test_what_is_no_entry_is_not_taken_for_one(value: bytes):
    with pytest.raises(ValueError, match="a value of"):
        check_record(b"k" * 20, value)
    with pytest.raises(ValueError, match="a key of 3 bytes"):
        check_record(b"key", None)


def test_keys_are_of_one_size_and_of_their_topic():
    assert len(state_key("a", b"")) == len(state_key("a" * 249, b"k" * 100_000)) == 20
    assert len({state_key("a", b"b"), state_key("a", b""), state_key("ab", b""), state_key("b", b"b")}) == 4
    assert state_key("docs", b"k").startswith(topic_prefix("docs"))


def test_a_digest_covers_all_that_is_written_and_nothing_else():
    held, document = record(0), Document("1", "text", {"a": 1, "b": [1.5, None]}, "a prompt")
    base = DIGESTS.of(held, document)
    assert DIGESTS.of(replace(held, timestamp_ms=1, value=b"other"), document) == base
    assert DIGESTS.of(held, replace(document, fields={"b": [1.5, None], "a": 1}, digest=b"x")) == base
    others = [
        DIGESTS.of(held, replace(document, id="2")),
        DIGESTS.of(held, replace(document, text="texts")),
        DIGESTS.of(held, replace(document, prompt="a prompt ")),
        DIGESTS.of(held, replace(document, prompt=None)),
        DIGESTS.of(held, replace(document, prompt="")),
        DIGESTS.of(held, replace(document, fields={"a": 1})),
        DIGESTS.of(held, replace(document, id="1text", text="")),
        DIGESTS.of(replace(held, headers=(("h", b""),)), document),
        DIGESTS.of(replace(held, headers=(("h", None),)), document),
        Digests(["f1"]).of(held, document),
        Digests(["f1f2"]).of(held, document),
    ]
    assert len({base, *others}) == len(others) + 1


def test_a_digest_does_not_cover_a_record_s_trace():
    """A producer that is traced says something else with each record."""
    document = Document("id", "text")
    headers = (("tenant", b"a"), ("traceparent", b"00-1"), ("tracestate", b"v=1"))
    traced = replace(record(0), headers=headers)
    assert DIGESTS.of(traced, document) == DIGESTS.of(replace(record(0), headers=headers[:1]), document)
    assert DIGESTS.of(traced, document) != DIGESTS.of(replace(record(0), headers=headers[1:]), document)


def test_a_digest_covers_the_headers_that_outputs_keep_and_is_otherwise_what_it_was():
    """A new version of a schema changes no text, and a record that was sent again is the one that it was."""
    document = Document("id", "text")
    plain = replace(record(0), headers=(("tenant", b"a"),))
    for name in ("__value_schema_id", "embedding-replayed"):
        for value in (b"1", b"2", None):
            assert DIGESTS.of(replace(plain, headers=((name, value), *plain.headers)), document) == DIGESTS.of(
                plain, document
            )
    # What stands in state topics is believed by it.
    assert Digests(["f"]).of(plain, document).hex() == "448859675994d7612399fb46771338b8"
    assert Digests(["f"]).of(replace(plain, headers=()), document).hex() == "503db8366ad85775506d677923373314"


def test_a_digest_takes_whatever_a_record_may_hold():
    odd = Document("\ud800", "\udfff", {"when": object, "nan": float("nan"), "raw": b"\0"}, "\ud800")
    assert len(DIGESTS.of(replace(record(0), headers=(("\ud800", b"v"),)), odd)) == 16


# ---- the copy on disk


def test_a_store_is_a_map_on_a_file_without_a_name(tmp_path: Path):
    store = Store(tmp_path)
    assert list(tmp_path.iterdir()) == [] and store.bytes > 0
    store.put([(b"a", b"1"), (b"b", b"2"), (b"c", None)])
    store.put([(b"a", b"3"), (b"b", None)])
    assert store.get([b"a", b"b", b"c"]) == [b"3", None, None] and len(store) == 1
    store.close()


def test_a_store_without_a_place_says_so(tmp_path: Path):
    with pytest.raises(EnvironmentFault, match=r"no file for the state in .*TMPDIR"):
        Store(tmp_path / "gone")


def test_stores_are_closed_when_their_partitions_go():
    def files() -> int:
        links = (
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.lexists(f"/proc/self/fd/{fd}")
        )
        return sum("stream-embedder-state-" in link for link in links)

    before = files()
    state = known()
    state.load(P0, 2, lambda: True)
    state.load(P0, 3, lambda: True)
    assert files() > before
    state.assign(P0, 3, 0)
    state.revoke([P0])
    state.load(P0, 4, lambda: True)
    state.close()
    assert files() == before


# ---- what is unchanged


def test_what_the_topic_told_is_recognised():
    held, document = record(5), Document("1", "text")
    state = known([told_of(held, document), told_of(record(6, key=b"other"), document)])
    assert state.recognise([(held, document)]) == [(held, Unchanged(7))]
    ((_, changed),) = state.recognise([(record(7), Document("1", "text!"))])
    assert isinstance(changed, Document) and changed.digest is not None
    ((_, again),) = state.recognise([(record(8), document)])
    assert isinstance(again, Document), "what is on its way may change the key"
    ((_, other),) = state.recognise([(record(9, key=b"other"), document)])
    assert isinstance(other, Unchanged)


def test_with_embed_nothing_is_skipped():
    held, document = record(5), Document("1", "text")
    ((_, found),) = known([told_of(held, document)], skip=False).recognise([(held, document)])
    assert isinstance(found, Document)


@pytest.mark.parametrize("before", [Tombstone(), PoisonError("decode", "invalid", "no")], ids=["deleted", "refused"])
def test_whatever_comes_between_is_waited_for(before: Tombstone | PoisonError):
    held, document = record(5), Document("1", "text")
    state = known([told_of(held, document)])
    found = state.recognise([(record(6), before), (record(7), document)])
    assert isinstance(found[1][1], Document)
    # Once it is committed, and has changed nothing, the entry stands.
    state.released(P0, 1, [], 7)
    assert isinstance(state.recognise([(record(8), document)])[0][1], Document), "the seventh is on its way still"
    state.released(P0, 1, [], 9)
    assert isinstance(state.recognise([(record(9), document)])[0][1], Unchanged)


def test_records_without_a_key_and_of_past_assignments_have_no_state():
    document = Document("1", "text")
    state = known([told_of(record(5), document)])
    keyless, stale = record(6, key=None), record(7, epoch=0)
    found = state.recognise([(keyless, document), (stale, document)])
    assert [isinstance(meaning, Document) for _, meaning in found] == [True, True]
    assert isinstance(state.recognise([(record(8), document)])[0][1], Unchanged)
    state.skip(P0, 9)
    assert isinstance(state.recognise([(record(9), document)])[0][1], Document), "what was read before a skip"


# ---- what is told


def change(offset: int, key: bytes, tokens: int | None) -> Change:
    return Change(offset, key, None if tokens is None else Entry(b"d" * 16, tokens))


DOUBT = -1


def values(messages: Sequence[Message]) -> dict[bytes, int | None]:
    """The tokens of each key's entry; None where it goes, :data:`DOUBT` where nobody knows."""
    assert all(message.topic == STATE and message.partition == 0 for message in messages)
    found = {message.key or b"": message.value and read_entry(message.value) for message in messages}
    return {key: entry and (DOUBT if entry.digest == NOTHING else entry.tokens) for key, entry in found.items()}


def test_a_change_is_told_with_the_offset_that_reaches_beyond_it_and_once():
    state = known()
    first = [change(0, b"a", 1), change(1, b"b", 2), change(2, b"a", 3)]
    behind = {P0: Position(1)}
    assert values(state.due(behind, {P0: first})) == {b"a": DOUBT, b"b": DOUBT}, "others come after, or it is not due"
    state.released(P0, 1, first, 3)
    state.told(behind, {P0: 1})
    assert state.entry(P0, 1, b"a") == Entry(b"d" * 16, 3), "the copy is what the topics have"
    second = [change(3, b"b", None)]
    assert values(state.due({P0: Position(3)}, {P0: second})) == {b"a": 3, b"b": DOUBT}
    assert values(state.due({P0: Position(4)}, {P0: second})) == {b"b": None, b"a": 3}
    state.released(P0, 1, second, 4)
    state.told({P0: Position(3)}, {P0: 1})
    assert values(state.due({P0: Position(4)}, {})) == {b"b": None}
    state.told({P0: Position(4)}, {P0: 1})
    assert state.due({P0: Position(9)}, {}) == []
    assert state.entry(P0, 1, b"b") is None


def test_what_may_stand_under_more_chunks_is_in_doubt_as_so_many():
    state, behind = known(), {P0: Position(0)}
    grown = [Change(0, b"a", Entry(b"d" * 16, 1, 3), 5)]
    (message,) = state.due(behind, {P0: grown})
    assert read_entry(message.value or b"") == Entry(NOTHING, 0, 5, 0)
    state.released(P0, 1, grown, 1)
    (message,) = state.due(behind, {P0: [Change(1, b"a", None, 3)]})
    assert read_entry(message.value or b"") == Entry(NOTHING, 0, 5, 1), "and up to which record"
    (message,) = state.due(behind, {P0: [Change(1, b"a", Entry(b"e" * 16, 1, 9), 3)]})
    assert read_entry(message.value or b"").chunks == 9


def test_of_a_commit_in_doubt_that_part_counts_which_happened():
    state = known()
    state.released(P0, 1, [change(0, b"a", 1), change(5, b"b", 2)], 3)
    assert state.entry(P0, 1, b"a") is not None and state.entry(P0, 1, b"b") is None
    state.released(P0, 0, [change(6, b"c", 1)], 9)
    assert state.entry(P0, 1, b"c") is None, "an assignment that has ended changes nothing"


def test_a_view_sees_its_own_records():
    state = known([told_of(record(5), Document("1", "text"))])
    view = state.view(P0, 1)
    assert view.before(record(6)) == entry_of(record(5), Document("1", "text"))
    view.leaves(record(6), None)
    assert view.before(record(7)) is None
    view.leaves(record(7), None)
    view.leaves(record(8, key=None), Entry(b"d" * 16, 1))
    assert [each.offset for each in view.changes] == [6], "what leaves nothing where nothing was is no change"
    assert state.view(P0, 1).before(record(9)) is not None, "nothing is known of it before it is committed"


def test_a_reading_that_is_not_wanted_any_more_ends():
    state = Known(STATE, lambda _: iter([[(b"a", b"b")]] * 3), DIGESTS, skip=True)
    assert state.load(P0, 1, lambda: False) is None


def test_what_an_older_reading_brings_last_does_not_count():
    """An assignment's reading hangs at somebody's transaction, and ends when the next assignment has its own."""
    state = known()
    assert state.load(P0, 3, lambda: True) is not None
    assert state.load(P0, 2, lambda: True) is None
    state.assign(P0, 3, 0)


def test_what_is_not_believed_is_written_again_and_deletes_as_many_chunks_as_there_may_be():
    held, document = record(5), Document("1", "text")
    state = known()
    state.load(P0, 2, lambda: True)
    state.assign(P0, 2, 7)
    state.released(P0, 2, [Change(5, state_key(TOPIC, b"key"), Entry(DIGESTS.of(held, document), 7, 4, 5))], 6)
    ((_, found),) = state.recognise([(record(6, epoch=2), document)])
    assert isinstance(found, Document), "it is from before the state was kept"
    view = state.view(P0, 2)
    view.leaves(record(6, epoch=2), Entry(b"d" * 16, 1, 2))
    assert view.changes[-1].entry == Entry(b"d" * 16, 1, 4, 6), "topics may have none of this record"
    view.leaves(record(7, epoch=2), Entry(b"d" * 16, 1, 2))
    assert view.changes[-1].entry == Entry(b"d" * 16, 1, 2, 7)


def test_after_the_end_nothing_begins():
    state = known()
    state.load(P0, 2, lambda: True)
    state.close()
    state.assign(P0, 2, 0)
    assert state.load(P0, 3, lambda: True) is None
