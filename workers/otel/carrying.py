"""Output records that say in which trace they were made, where their source records said nothing.

Comes in: a renderer. Goes out: its messages, with a header more. Never here: a header that is changed, what the source says stays;
or a message that is refused for its trace.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from workers.codecs.base import Renderer, type_vector
from workers.otel.parent import HEADER
from workers.records import Embedding, Message, Record
from workers.trace import Trace


class Carrying:
    """A renderer around another one."""

    def __init__(self, renderer: Renderer, trace: Trace, refuses: Callable[[Message], str | None]) -> None:
        """``trace``: knows what records are part of; ``refuses``: what topics take, as :class:`workers.sinks.base.Sink` says."""
        self._renderer = renderer
        self._trace = trace
        self._refuses = refuses

    def render(
        self, record: Record, embedding: Embedding, vector: type_vector, scale: np.float32 | None = None
    ) -> Message:
        """See :class:`workers.codecs.base.Renderer`."""
        message = self._renderer.render(record, embedding, vector, scale)
        parent = self._trace.parent(record.origin)
        if parent is None or any(name == HEADER for name, _ in message.headers):
            return message
        headers = (*message.headers, (HEADER, parent))
        carrying = Message(message.topic, message.key, message.value, headers, message.timestamp_ms, message.partition)
        return message if self._refuses(carrying) is not None else carrying
