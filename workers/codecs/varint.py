"""Numbers in as many bytes as they need, seven bits each, as Protobuf, Avro and Confluent's wire format write them.

Comes in: bytes and a place. Goes out: a number and the place after it. Never here: what the number counts.
"""

from __future__ import annotations

_MOST_BITS = 70


def varint(source: bytes, at: int) -> tuple[int, int]:
    """A number from 0 up.

    Raises:
        IndexError: the bytes end within it.
        ValueError: it has more than ten bytes.
    """
    number = 0
    for shift in range(0, _MOST_BITS, 7):
        byte = source[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise ValueError("a number of more than ten bytes")


def zigzag(source: bytes, at: int) -> tuple[int, int]:
    """A number of either sign: 0, -1, 1, -2, … are written as 0, 1, 2, 3, …; raises as :func:`varint` does."""
    number, at = varint(source, at)
    return (number >> 1) ^ -(number & 1), at
