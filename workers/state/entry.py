"""One key's entry, and how it is written down in the state topic.

Comes in: documents, keys. Goes out: digests, bytes of fixed sizes. Never here: a piece of a key or of a text, so that the topic
holds nothing of a user's.

A record of the topic: key, 20 bytes (4 of BLAKE2b of the source topic's name, 16 of name and key); value, 33 bytes: a version,
how many chunks are there under the key, tokens, the source's offset, and 16 bytes of BLAKE2b of all that decides what is written.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from workers.codecs.base import kept_headers
from workers.codecs.dead_letter import REPLAYED
from workers.records import Document, Record

VERSION = 1
_VALUE = struct.Struct(">BIIQ16s")
# The digest of what is in doubt: no document has it.
NOTHING = bytes(16)
PREFIX_BYTES = 4
KEY_BYTES = 20


class Entry(NamedTuple):
    """What the outputs hold under a key.

    ``digest``: of what it was made of; ``tokens``: what that took; ``chunks``: under how many chunks' keys it stands, 0: under
    the key itself; ``offset``: of the source record that left it.

    With the digest :data:`NOTHING` the entry is in doubt: something else may stand there, under no more chunks than that.
    """

    digest: bytes
    tokens: int
    chunks: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """What the source record at ``offset`` leaves under a state ``key``; None: nothing. ``before``: how many chunks were there."""

    offset: int
    key: bytes
    entry: Entry | None
    before: int = 0

    @property
    def most(self) -> int:
        """Under how many chunks something may stand while it is not sure whether the record was written."""
        return max(self.before, 0 if self.entry is None else self.entry.chunks)


def topic_prefix(topic: str) -> bytes:
    """What the state keys of one source topic begin with."""
    return _of_topic(topic)[0]


def state_key(topic: str, key: bytes) -> bytes:
    """The state topic's key for a source record's key. Topic names have no zero byte, so no two pairs are one."""
    prefix, begun = _of_topic(topic)
    whole = begun.copy()
    whole.update(key)
    return prefix + whole.digest()


@lru_cache
def _of_topic(topic: str) -> tuple[bytes, hashlib.blake2b]:
    name = topic.encode()
    begun = hashlib.blake2b(name + b"\0", digest_size=KEY_BYTES - PREFIX_BYTES)
    return hashlib.blake2b(name, digest_size=PREFIX_BYTES).digest(), begun


def write_entry(entry: Entry) -> bytes:
    """The value of the state topic's record."""
    return _VALUE.pack(VERSION, entry.chunks, entry.tokens, entry.offset, entry.digest)


def check_record(key: bytes, value: bytes | None) -> None:
    """Look at a record of the state topic.

    Raises:
        ValueError: it is none of ours, or of a later version.
    """
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key of {len(key)} bytes")
    if value is not None and len(value) != _VALUE.size:
        raise ValueError(f"a value of {len(value)} bytes")
    if value is not None and value[0] != VERSION:
        raise ValueError(f"a value of version {value[0]}")


def read_entry(value: bytes) -> Entry:
    """The entry of a value that :func:`check_record` has passed."""
    _, chunks, tokens, offset, digest = _VALUE.unpack(value)
    return Entry(digest, tokens, chunks, offset)


# Where in a trace a record was produced, as W3C has it: another one each time, whatever else stays as it is.
TRACE_HEADERS = ("traceparent", "tracestate")
# And how often it was sent again.
_NOT_SAID = frozenset({*TRACE_HEADERS, REPLAYED})


class Digests:
    """Says what an output record is made of, in 16 bytes: all that would make it another one."""

    def __init__(self, outputs: Iterable[str]) -> None:
        """``outputs``: what each makes of a document, fingerprint included: with another model, dim or output all is new."""
        self._base = hashlib.blake2b(digest_size=16)
        _add(self._base, *(each.encode() for each in outputs))

    @property
    def base(self) -> str:
        """What all digests of these outputs have in common, in 8 hex digits."""
        return self._base.hexdigest()[:8]

    def of(self, record: Record, document: Document) -> bytes:
        """The digest of id, text, prompt, included fields and the headers that outputs keep; not of timestamp or way here."""
        found = self._base.copy()
        prompt = b"" if document.prompt is None else b"p" + document.prompt.encode(errors="surrogatepass")
        fields = json.dumps(document.fields, sort_keys=True, default=repr) if document.fields else ""
        _add(
            found,
            document.id.encode(errors="surrogatepass"),
            document.text.encode(errors="surrogatepass"),
            prompt,
            fields.encode(),
        )
        for name, value in kept_headers(record):
            if name in _NOT_SAID:
                continue
            _add(found, name.encode(errors="surrogatepass"), b"" if value is None else b"v" + value)
        return found.digest()


def _add(digest: hashlib.blake2b, *parts: bytes) -> None:
    """Lengths go before the parts, so that none can pass for a piece of its neighbour."""
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
