"""Bytes that would hurt a Protobuf parser, found before it parses them.

Comes in: a message's descriptor and bytes. Goes out: nothing, or a refusal. Never here: values, or a judgement of bytes that are
wrong: the parser has that.

An empty message takes two bytes on the wire and, parsed, room for all of its fields: a megabyte of them takes as many gigabytes
as the message has hundreds of fields. Nesting is the parser's own limit, a hundred levels.
"""

from __future__ import annotations

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
    try:
        while stack:
            message, at, end = stack.pop()
            # Groups have no length, and end where a tag says so: their messages are walked through here.
            around: list[Any] = []
            while at < end:
                tag, at = varint(body, at)
                found = None
                match tag & 7:
                    case 0:
                        _, at = varint(body, at)
                    case 1:
                        at += 8
                    case 2:
                        size, at = varint(body, at)
                        if (found := inner.of(message, tag >> 3)) is not None:
                            stack.append((found, at, min(at + size, end)))
                        at += size
                    case 3:
                        found = inner.of(message, tag >> 3)
                        around.append(message)
                        message = found
                    case 4:
                        message = around.pop()
                    case 5:
                        at += 4
                if found is not None:
                    slots += 1 + len(found.fields)
                    if slots > MOST_SLOTS:
                        says = f"the value's messages have more than {MOST_SLOTS:,} fields"
                        raise PoisonError("decode", "too_many_items", says)
    except (IndexError, ValueError):
        return  # it ends too soon, or a group that never began does, as the parser will say


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
