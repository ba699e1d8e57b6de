"""Numbers in seven bits a byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.codecs.varint import varint, zigzag


def written(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


@given(st.integers(0, 2**64 - 1), st.binary(max_size=3), st.binary(max_size=3))
def test_a_number_and_where_it_ends(number: int, before: bytes, after: bytes) -> None:
    body = before + written(number) + after
    assert varint(body, len(before)) == (number, len(body) - len(after))
    sign = number // 2 if number % 2 == 0 else -(number + 1) // 2
    assert zigzag(body, len(before)) == (sign, len(body) - len(after))


@pytest.mark.parametrize(("body", "error"), [(b"", IndexError), (b"\x80" * 9, IndexError), (b"\x80" * 11, ValueError)])
def test_a_number_without_an_end(body: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        varint(body, 0)
