"""A decoder for each topic, where topics have mappings of their own.

Comes in: a record. Goes out: what its topic's decoder makes of it. Never here: a format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from workers.codecs.base import Decoder
from workers.records import Document, Record, Tombstone


class TopicDecoder:
    """Asks the decoder of a record's topic."""

    def __init__(self, mapping_of: Callable[[str], int | None], decoders: Mapping[int | None, Decoder]) -> None:
        """``mapping_of``: which of ``decoders`` a topic has."""
        self._mapping_of = mapping_of
        self._decoders = decoders
        self._by_topic: dict[str, Decoder] = {}

    def decode(self, record: Record) -> Document | Tombstone:
        """See :class:`workers.codecs.base.Decoder`."""
        topic = record.origin.topic
        decoder = self._by_topic.get(topic)
        if decoder is None:  # with a pattern, topics come as they are made
            decoder = self._by_topic[topic] = self._decoders[self._mapping_of(topic)]
        return decoder.decode(record)
