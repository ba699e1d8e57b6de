"""One record of Kafka's message format 2, as bytes, and the hash of a key that chooses its partition.

Comes in: a key, a value, headers. Goes out: what stands in a batch. Never here: a batch's header, or its checksum.

The client writes a record a byte at a time; most of what an output's records say of themselves is the same in all of them, so
it is kept written. The format is https://kafka.apache.org/documentation/#record: numbers are zigzag varints of Protobuf.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct

from workers.records import type_headers

_MULTIPLIER = 0x5BD1E995
_WORD = 0xFFFFFFFF
_WORDS = Struct("<I")
_NULL = b"\x01"  # the length -1
_ATTRIBUTES = b"\x00"


def record_bytes(
    offset_delta: int, timestamp_delta_ms: int, key: bytes | None, value: bytes | None, headers: type_headers
) -> bytes:
    """A record with its length in front; deltas are to the first record of its batch. A null header value is written empty."""
    parts = [_ATTRIBUTES, varint(timestamp_delta_ms), varint(offset_delta)]
    for piece in (key, value):
        if piece is None:
            parts.append(_NULL)
        else:
            parts += (varint(len(piece)), piece)
    parts.append(varint(len(headers)))
    for name, content in headers:
        written = _kept_name(name) if len(name) <= _LONGEST_KEPT else _name(name)
        parts += (written, varint(len(content)), content) if content else (written, b"\x00")
    body = b"".join(parts)
    return varint(len(body)) + body


def murmur2(key: bytes) -> int:
    """The 32-bit MurmurHash2 of a key, by which Kafka's own clients choose a partition (after its sign is taken off).

    The client's takes a byte at a time; this one takes four. The function is Austin Appleby's
    (https://github.com/aappleby/smhasher), its seed that of Kafka's Java client.
    """
    found = 0x9747B28C ^ len(key)
    whole = len(key) & ~3
    for (four,) in _WORDS.iter_unpack(key[:whole]):
        mixed = four * _MULTIPLIER & _WORD
        found = (found * _MULTIPLIER & _WORD) ^ ((mixed ^ mixed >> 24) * _MULTIPLIER & _WORD)
    if whole < len(key):
        found = (found ^ int.from_bytes(key[whole:], "little")) * _MULTIPLIER & _WORD
    found = (found ^ found >> 13) * _MULTIPLIER & _WORD
    return found ^ found >> 15


def varint(number: int) -> bytes:
    """A signed number of up to 64 bits as a zigzag varint: seven bits a byte, the lowest first, the sign in the lowest bit."""
    return _SMALL[number] if 0 <= number < len(_SMALL) else _varint(number)


def _varint(number: int) -> bytes:
    rest = (number << 1) ^ (number >> 63)
    found = bytearray()
    while rest > 0x7F:
        found.append(0x80 | rest & 0x7F)
        rest >>= 7
    found.append(rest)
    return bytes(found)


_SMALL = [_varint(number) for number in range(4096)]


def _name(name: str) -> bytes:
    """A header's name with its length."""
    raw = name.encode()
    return varint(len(raw)) + raw


# There are few names, unless the records of a source all bring their own.
_LONGEST_KEPT = 64
_kept_name = lru_cache(maxsize=1024)(_name)
