"""Records as bytes: what the client's own builder writes, to the byte."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from kafka.partitioner.default import murmur2 as clients_murmur2
from kafka.record import MemoryRecords, MemoryRecordsBuilder

from workers.records import Message
from workers.sinks.kafka_append import _append
from workers.sinks.kafka_record import murmur2, record_bytes, varint

ROOM = 4_096
bodies = st.none() | st.binary(max_size=300) | st.binary(min_size=5_000, max_size=5_000)
headers = st.lists(st.tuples(st.text(max_size=12), st.none() | st.binary(max_size=200)), max_size=12).map(tuple)
messages = st.builds(
    Message,
    topic=st.just("out"),
    key=st.none() | st.binary(max_size=70),
    value=bodies,
    headers=headers,
    timestamp_ms=st.integers(0, 2**42),
)


@given(st.lists(messages, min_size=1, max_size=30))
def test_a_batch_is_the_clients_to_the_byte(several: list[Message]):
    """In the same order, up to the same place, and with the same header."""
    ours, theirs = (MemoryRecordsBuilder(2, 0, ROOM) for _ in range(2))
    for message in several:
        size = _append(ours, message, message.timestamp_ms)
        named = [(name, value or b"") for name, value in message.headers]  # the client cannot write null
        written = theirs.append(message.timestamp_ms, message.key, message.value, named)
        assert size == (None if written is None else written.size)
        if size is None:
            break
    assert ours.next_offset() == theirs.next_offset() and ours.size_in_bytes() == theirs.size_in_bytes()
    ours.close()
    theirs.close()
    assert bytes(ours.buffer()) == bytes(theirs.buffer())


def test_a_record_without_a_time_is_of_now():
    builder = MemoryRecordsBuilder(2, 0, ROOM)
    _append(builder, Message("out", b"k", b"v", (), -1), None)
    builder.close()
    (record,) = MemoryRecords(builder.buffer()).next_batch()
    assert record.timestamp > 1_700_000_000_000


@given(st.integers(-(2**63), 2**63 - 1))
def test_numbers_are_read_back(number: int):
    from workers.codecs.varint import zigzag

    written = varint(number)
    assert zigzag(written, 0) == (number, len(written)) and len(written) <= 10


def test_names_beyond_those_that_are_kept():
    for n in range(3_000):
        named = record_bytes(0, 0, None, None, ((f"h{n}", b"x"),))
        assert f"h{n}".encode() in named


@given(st.binary(max_size=70))
def test_a_key_goes_where_the_client_would_put_it(key: bytes):
    assert murmur2(key) == clients_murmur2(key)


def test_a_key_goes_where_the_java_client_would_put_it():
    """Values that Kafka's own tests hold its function to (UtilsTest.testMurmur2), as unsigned numbers."""
    known = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536, b"abc": 479470107}
    assert {key: murmur2(key) for key in known} == {key: value & 0xFFFFFFFF for key, value in known.items()}
