"""Records that came in a compressed batch, and whose dead letters fit into their topic in no other way."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import pytest

from tests.conftest import RunningBroker
from tests.integration.pipeline import reading
from workers import kafka_client, metrics
from workers.codecs.dead_letter import parse_dead_letter, render_dead_letter
from workers.records import DeadLetter, Message, Origin, Record
from workers.sinks.kafka import TransactionalSink

# Twice what a topic takes by default, and a few kilobytes once it is compressed.
TEXT = b'{"text": ' + b"the same words again, " * 100_000
REFUSED = DeadLetter("decode", "invalid_json", "the value is not JSON")


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_what_the_source_took_compressed_the_dead_letter_topic_takes_too(
    broker: RunningBroker, make_topic: Callable[..., str], unique_name: Callable[[], str], compression: str
) -> None:
    source, dead, slot = make_topic(), make_topic(), unique_name()
    producer = kafka_client.bare_producer(broker.settings, compression_type=compression, max_request_size=8 << 20)
    producer.send(source, key=b"k", value=TEXT, headers=[("trace", b"t")], timestamp_ms=1_700_000_000_000).get(30)
    producer.close()
    with reading(broker.settings, source) as sent:
        while not sent.poll():
            pass
    raw = sent.records[0]
    record = Record(Origin(source, 0, raw.offset, 1), raw.key, raw.value, raw.timestamp, tuple(raw.headers))
    message = render_dead_letter(record, REFUSED, dead, "0" * 16)
    small = Message(dead, b"s", b"small", (), 1_700_000_000_000)
    sink = TransactionalSink(broker.settings, [dead], metrics.Metrics(), transactional_id=lambda: slot)
    try:
        sink.open()
        assert sink.refuses(message) == "too_large"
        assert sink.takes_compressed(message)
        for messages in ([small], [small, message, small], [small]):
            sink.publish(messages)
    finally:
        sink.abandon()
    with reading(broker.settings, dead) as out:
        while out.poll() < 5:
            pass
    assert [entry.value for entry in out.records] == [b"small", b"small", TEXT, b"small", b"small"]
    back = parse_dead_letter(
        Record(Origin(dead, 0, 2, 1), raw.key, out.records[2].value, raw.timestamp, tuple(out.records[2].headers))
    )
    assert back is not None
    assert (back.record.key, back.record.value, back.record.headers) == (b"k", TEXT, (("trace", b"t"),))


def test_what_does_not_fit_compressed_either_is_not_sent(
    broker: RunningBroker, make_topic: Callable[..., str], unique_name: Callable[[], str]
) -> None:
    """Sent all the same it would take the transaction with it, again and again."""
    plain, wide, recoded = make_topic(), make_topic(max_message_bytes=4 << 20), make_topic(compression_type="gzip")
    slot = unique_name()
    sink = TransactionalSink(broker.settings, [plain, wide, recoded], metrics.Metrics(), transactional_id=lambda: slot)
    noise = json.dumps(os.urandom(1 << 20).hex()).encode()
    try:
        sink.open()
        assert not sink.takes_compressed(Message(plain, b"k", noise, (), 0))
        assert sink.refuses(Message(wide, b"k", noise, (), 0)) is None
        assert not sink.takes_compressed(Message(recoded, b"k", TEXT, (), 0)), "the broker packs it anew, as it likes"
    finally:
        sink.abandon()
