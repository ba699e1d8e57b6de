"""W3C's ``traceparent``: where in a trace something was done, as a header says it.

Comes in: a header's bytes, a span. Goes out: the span that a header names, a header that names a span. Never here: ``tracestate``,
which is a vendor's own, and no part of a link.
"""

from __future__ import annotations

import re

from opentelemetry.trace import SpanContext, TraceFlags

HEADER = "traceparent"
# https://www.w3.org/TR/trace-context/: a later version may have more behind what this one has.
_FORM = re.compile(
    rb"(?!ff)(?:00(?=.{53}\Z)|(?!00)[0-9a-f]{2}(?=.{53}(?:-|\Z)))-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2}).*",
    re.DOTALL,
)


def read(value: bytes) -> SpanContext | None:
    """The span that a header names; None: the header is none, or nobody keeps that span."""
    match = _FORM.fullmatch(value)
    if match is None:
        return None
    flags = TraceFlags(int(match[3], 16))
    found = SpanContext(int(match[1], 16), int(match[2], 16), is_remote=True, trace_flags=flags)
    return found if found.is_valid and flags.sampled else None


def write(context: SpanContext) -> str:
    """The header that names a span."""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 1:02x}"
