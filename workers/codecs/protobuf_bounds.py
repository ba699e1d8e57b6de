"""Bytes that would hurt a Protobuf parser, found before it parses them.

Comes in: a message's descriptor and bytes. Goes out: nothing, or a refusal. Never here: values, or a judgement of bytes that are
wrong: the parser has that.

An empty message takes two bytes on the wire and, parsed, room for all of its fields: a megabyte of them takes as many gigabytes
as the message has hundreds of fields. Nesting is the parser's own limit, a hundred levels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from workers.codecs.varint import varint
from workers.errors import PoisonError

# Too short to hurt, and so not looked at: nearly all records.
SHORT = 32 << 10
# Fields, set or not, of all messages together; each takes about 16 bytes.
MOST_SLOTS = 5_000_000


def check(descriptor: Any, body: bytes) -> None:
    """Refuse bytes whose messages would take too much room.

    Raises:
        PoisonError: they would.
    """
    if len(body) <= SHORT:
        return
    slots = 0
    inner = _Inner()
    stack = [(descriptor, 0, len(body))]
    while stack:
        for found, at, end in _messages(inner, body, *stack.pop()):
            slots += 1 + len(found.fields)
            if slots > MOST_SLOTS:
                message = f"the value's messages have more than {MOST_SLOTS:,} fields"
                raise PoisonError("decode", "too_many_items", message)
            if at < end:
                stack.append((found, at, end))


def _messages(inner: _Inner, body: bytes, message: Any, at: int, end: int) -> Iterator[tuple[Any, int, int]]:
    """The messages in a message, from where to where they are still to be walked through.

    Where bytes are wrong it ends, as the parser will; what was before them the parser has made room for by then.
    """
    # Groups have no length, and end where a tag says so: what is in them comes along here.
    around: list[Any] = []
    try:
        while at < end:
            tag, at = varint(body, at)
            match tag & 7:
                case 0:
                    _, at = varint(body, at)
                case 1:
                    at += 8
                case 2:
                    size, at = varint(body, at)
                    if (found := inner.of(message, tag >> 3)) is not None:
                        yield found, at, min(at + size, end)
                    at += size
                case 3:
                    around.append(message)
                    message = inner.of(message, tag >> 3)
                    if message is not None:
                        yield message, at, at
                case 4:
                    message = around.pop()
                case 5:
                    at += 4
    except (IndexError, ValueError):
        return


class _Inner:
    """The messages that are fields of messages, extensions that their files know of included."""

    def __init__(self) -> None:
        self._known: dict[str, dict[int, Any]] = {}

    def of(self, message: Any, number: int) -> Any:
        """A field's message; None: it has none, or the message is itself one that nobody knows."""
        if message is None:
            return None
        found = self._known.get(message.full_name)
        if found is None:
            fields = list(message.fields)
            if message.is_extendable:
                fields += message.file.pool.FindAllExtensions(message)
            found = {field.number: field.message_type for field in fields if field.message_type is not None}
            self._known[message.full_name] = found
        return found.get(number)
