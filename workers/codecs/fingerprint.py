"""Which vector space an output record belongs to.

Comes in: a record of an output topic, of either format, or anything else. Goes out: its fingerprint, or None. Never here:
an error, for whoever asks looks at records that others may have written.
"""

from __future__ import annotations

import json

from workers.codecs.binary import FINGERPRINT_HEADER
from workers.records import type_headers


def fingerprint_of(value: bytes | None, headers: type_headers) -> str | None:
    """The fingerprint on an output record.

    A JSON value speaks first: its record keeps the source's headers, which may tell of another pipeline's vectors.
    """
    if value is None:
        return None
    if value.startswith(b"{"):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            found = None
        if (
            isinstance(found, dict)
            and ("embedding" in found or "chunks" in found)
            and isinstance(found.get("fingerprint"), str)
        ):
            return str(found["fingerprint"])
    for name, content in reversed(headers):
        if name == FINGERPRINT_HEADER and content:
            return content.decode("utf-8", "replace")
    return None
