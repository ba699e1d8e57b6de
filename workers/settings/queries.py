"""Whether the encoders answer queries over HTTP, where, and for whom.

The key is hidden wherever settings are shown, as those of :mod:`workers.settings.kafka` are.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SecretStr, field_validator

from workers.settings.base import Section, type_seconds


class QueriesSettings(Section):
    """An endpoint as OpenAI's for embeddings, answered by the stream's own encoders."""

    enabled: bool = Field(
        False, description="Answer `POST /v1/embeddings` as OpenAI's API does, with the encoders of the stream."
    )
    host: str = Field(
        "127.0.0.1",
        description="Address on which `run` listens; `0.0.0.0` for all. Where Serve runs already it has its own, as has `port`.",
    )
    port: Annotated[int, Field(ge=1, le=65535)] = Field(8000, description="Port on which `run` listens.")
    api_key: SecretStr | None = Field(
        None,
        description="What a caller has to send as `Authorization: Bearer …`. Default: whoever reaches the port may ask. Prefer the "
        "environment variable.",
    )
    timeout_s: type_seconds = Field(
        30.0, description="Seconds that a query has, the start of a first encoder included; then the answer is 503."
    )

    @field_validator("api_key")
    @classmethod
    def _fits_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        """Out of a secret's file a key comes with its line's end; else it is what a header can carry."""
        if value is None:
            return None
        key = value.get_secret_value().strip()
        if not key or not all("!" <= character <= "~" for character in key):
            raise ValueError("the key is empty, or holds what no header can carry")
        return SecretStr(key)
