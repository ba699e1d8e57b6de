"""An answer that is none: why, in the shape of OpenAI's errors.

Comes in: a status and words of ours. Goes out: a body and headers. Never here: a piece of what was asked.
"""

from __future__ import annotations

import orjson

# What OpenAI calls the kinds of errors, by status; others of 4xx are ``invalid_request_error``.
_TYPES = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}


class Refusal(Exception):
    """A request that gets an error; ``message`` is a sentence for who reads it, ``code`` a word for who programs.

    ``param``: which argument is to blame. ``retry_s``: after how many seconds to ask again. ``allow``: methods that there are.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        retry_s: int | None = None,
        allow: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_s = retry_s
        self.allow = allow

    @property
    def body(self) -> bytes:
        """The error as JSON."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return orjson.dumps({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})

    @property
    def headers(self) -> dict[str, str]:
        """What goes into the answer's head."""
        found = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        if self.retry_s is not None:
            found["Retry-After"] = str(self.retry_s)
        if self.allow is not None:
            found["Allow"] = self.allow
        return found


def full(retry_s: int = 1) -> Refusal:
    """There is no room for more now."""
    return Refusal(429, "too many queries wait already; try again", code="rate_limit_exceeded", retry_s=retry_s)
