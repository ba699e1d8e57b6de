"""Dead letters read back: the record is as it was, receipts say what was sent, and nothing printed steers a terminal."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.dead_letters import Place, Wanted, parse_since, require_topic
from pipelines.dead_letters_text import moment, printable
from workers.codecs.dead_letter import REPLAYED, Refused, parse_dead_letter, render_dead_letter, render_replay
from workers.codecs.receipt import HEADER, SPANS, Receipts, parse_receipt, render_receipts
from workers.errors import EnvironmentFault, SettingsError
from workers.kafka_topics import Topic
from workers.records import DeadLetter, Message, Origin, Record
from workers.settings import KafkaSettings

NOW = datetime.datetime(2026, 5, 2, 12, tzinfo=datetime.UTC)
LETTER = DeadLetter("text", "missing_field", "the field text is missing", attempts=2)
RECORDS = st.builds(
    Record,
    st.builds(Origin, st.just("documents"), st.integers(0, 99), st.integers(0, 2**62), epoch=st.just(0)),
    st.none() | st.binary(max_size=20),
    st.none() | st.binary(max_size=20),
    st.integers(0, 2**45),
    st.lists(
        st.tuples(
            st.sampled_from(["trace", "embedding-error-x", "embedding-error-classes"]) | st.text(max_size=5),
            st.none() | st.binary(max_size=5),
        )
    ).map(tuple),
)


def landed(message: Message, partition: int = 0, offset: int = 0) -> Record:
    """A message as it is read from its topic."""
    origin = Origin(message.topic, partition, offset, 0)
    return Record(origin, message.key, message.value, message.timestamp_ms, message.headers)


def refused(record: Record, letter: DeadLetter = LETTER, offset: int = 0) -> Refused:
    found = parse_dead_letter(landed(render_dead_letter(record, letter, "dead", "ab12"), 1, offset))
    assert found is not None
    return found


# ---- there and back


@given(RECORDS)
def test_a_dead_letter_holds_the_record_as_it_was(record: Record) -> None:
    found = refused(record)
    assert found.record == record
    assert (found.stage, found.reason, found.message, found.attempts, found.fingerprint) == (
        "text",
        "missing_field",
        "the field text is missing",
        2,
        "ab12",
    )
    assert found.place == Origin("dead", 1, 0, 0)


@given(RECORDS)
def test_a_replay_is_the_record_and_a_count(record: Record) -> None:
    once = render_replay(refused(record), "documents", record.origin.partition)
    assert (once.topic, once.partition) == ("documents", record.origin.partition)
    assert (once.key, once.value, once.timestamp_ms) == (record.key, record.value, record.timestamp_ms)
    assert once.headers == (*record.headers, (REPLAYED, b"1"))
    twice = render_replay(refused(landed(once)), "documents", 0)
    assert twice.headers == (*record.headers, (REPLAYED, b"2")), "a record that goes round shows it"


def test_a_record_without_a_time_has_that_of_its_dead_letter() -> None:
    message = render_dead_letter(Record(Origin("documents", 0, 1, 0), None, b"", -1), LETTER, "dead", "")
    read = Record(Origin("dead", 0, 0, 0), message.key, message.value, 1_700_000_000_000, message.headers)
    found = parse_dead_letter(read)
    assert found is not None and found.record.timestamp_ms == 1_700_000_000_000


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (("embedding-error-topic", b"documents"),),
        (("__connect.errors.topic", b"documents"),),
        tuple((f"embedding-error-{name}", None) for name in ("topic", "partition", "offset", "stage", "class")),
        tuple((f"embedding-error-{name}", b"x") for name in ("topic", "partition", "offset", "stage", "class")),
        tuple((f"embedding-error-{name}", b"-1") for name in ("topic", "partition", "offset", "stage", "class")),
    ],
)
def test_what_others_wrote_is_no_dead_letter(headers: tuple[tuple[str, bytes | None], ...]) -> None:
    record = Record(Origin("dead", 0, 0, 0), b"k", b"12", 0, headers)
    assert parse_dead_letter(record) is None
    assert not Receipts().add(record)


@pytest.mark.parametrize("count", [b"", b"x", b"-3", "²".encode(), b"9" * 5_000, None])
def test_a_strange_count_counts_as_none(count: bytes | None) -> None:
    assert refused(Record(Origin("documents", 0, 1, 0), None, b"", 0, ((REPLAYED, count),))).replays == 0


# ---- receipts


@given(st.sets(st.integers(0, 300)), st.randoms(use_true_random=False))
def test_receipts_name_what_was_sent_and_nothing_else(offsets: set[int], rng) -> None:
    receipts, half = Receipts(), {offset for offset in offsets if rng.random() < 0.5}
    for part, sent in ((half, half), (offsets - half, offsets)):
        for message in render_receipts("dead", 3, sorted(part), 0):
            assert message.partition == 3
            assert receipts.add(landed(message, 3, 1_000))
        assert {offset for offset in range(302) if Origin("dead", 3, offset, 0) in receipts} == sent
    assert not any(Origin("dead", 2, offset, 0) in receipts for offset in offsets)


def test_receipts_are_small_and_their_keys_differ() -> None:
    messages = list(render_receipts("dead", 0, range(10**17, 10**17 + 2_000, 2), 0))
    assert len(messages) == -(-1_000 // SPANS)
    assert len({message.key for message in messages}) == len(messages), "compaction keeps each"
    assert max(message.size for message in messages) < 1_536
    (one,) = render_receipts("dead", 0, range(5, 5_000), 0)
    assert one.value == b"5-4999"


def test_a_receipt_that_became_a_dead_letter_is_one() -> None:
    (message,) = render_receipts("dead", 0, [1, 2], 0)
    letter = landed(render_dead_letter(landed(message), LETTER, "dead", ""))
    assert parse_receipt(letter) is None
    assert parse_dead_letter(letter) is not None


@pytest.mark.parametrize("value", [None, b"", b"1-", b"a", b"1  2", b"1-2-3", b"1 2\n", b"9" * 30])
def test_what_is_no_list_of_offsets_is_no_receipt(value: bytes | None) -> None:
    assert parse_receipt(Record(Origin("dead", 0, 9, 0), b"", value, 0, ((HEADER, b"1"),))) is None


# ---- what the user says


@pytest.mark.parametrize(("text", "place"), [("0/12", Place(None, 0, 12)), ("a.b-c_d/3/4", Place("a.b-c_d", 3, 4))])
def test_a_place(text: str, place: Place) -> None:
    assert Place.parse(text) == place
    assert str(place) == text


@pytest.mark.parametrize("text", ["", "1", "a/1", "1/2/3/4", "-1/2", "1/-2", "a b/1/2", "1/2 "])
def test_no_place(text: str) -> None:
    with pytest.raises(SettingsError, match="is no place of a dead letter"):
        Place.parse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90m", "2026-05-02T10:30:00+00:00"),
        ("7d", "2026-04-25T12:00:00+00:00"),
        ("2026-05-01", "2026-05-01T00:00:00+00:00"),
        ("2026-05-01T02:00:00+02:00", "2026-05-01T00:00:00+00:00"),
        ("2026-05-01T00:00:00Z", "2026-05-01T00:00:00+00:00"),
    ],
)
def test_since(text: str, expected: str) -> None:
    assert parse_since(text, NOW) == datetime.datetime.fromisoformat(expected).timestamp() * 1000


def test_wanted() -> None:
    one = refused(Record(Origin("documents", 2, 7, 0), None, b"", 5_000), offset=12)
    for yes in (
        Wanted(),
        Wanted(stages={"text"}),
        Wanted(classes={"missing_field", "empty"}),
        Wanted(topics={"documents"}),
        Wanted(since_ms=5_000),
        Wanted(places=(Place(None, 1, 12),)),
        Wanted(places=(Place(None, 0, 0), Place("documents", 2, 7))),
    ):
        assert yes(one)
    for no in (
        Wanted(stages={"decode"}),
        Wanted(classes={"empty"}),
        Wanted(topics={"others"}),
        Wanted(since_ms=5_001),
        Wanted(places=(Place(None, 2, 7),)),
        Wanted(places=(Place("others", 2, 7), Place("documents", 1, 12))),
        Wanted(stages={"text"}, classes={"empty"}),
    ):
        assert not no(one)


def test_a_right_that_is_missing_is_named() -> None:
    kafka = KafkaSettings()
    topics = {name: Topic(name, 1, operations=frozenset(may)) for name, may in (("a", {"READ"}), ("b", ()))}
    require_topic(kafka, topics, "a", "READ", "read")
    require_topic(kafka, topics, "b", "WRITE", "write to")  # a broker that does not say
    with pytest.raises(EnvironmentFault, match="may not write to topic a: grant Write on it"):
        require_topic(kafka, topics, "a", "WRITE", "write to")
    with pytest.raises(EnvironmentFault, match="topic c does not exist"):
        require_topic(kafka, topics, "c")


# ---- what the user sees


@given(st.binary() | st.text().map(str.encode))
def test_bytes_are_printed_whole_and_steer_nothing(data: bytes) -> None:
    text = printable(data)
    assert text.isprintable() or not text
    assert unescaped(text) == data


def unescaped(text: str) -> bytes:
    """``printable``, undone."""
    found, at = bytearray(), 0
    while at < len(text):
        if text[at] != "\\":
            found += text[at].encode()
            at += 1
        elif text[at + 1] == "x":
            found.append(int(text[at + 2 : at + 4], 16))
            at += 4
        else:
            found += {"n": b"\n", "r": b"\r", "t": b"\t", "\\": b"\\"}[text[at + 1]]
            at += 2
    return bytes(found)


def test_a_moment() -> None:
    assert moment(1_700_000_000_123) == "2023-11-14T22:13:20.123Z"
    assert moment(2**62) == f"{2**62} ms"
