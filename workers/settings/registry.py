"""Where schemas are: a registry that speaks Confluent's protocol, and how to be let in.

Secrets are hidden wherever settings are shown, as those of :mod:`workers.settings.kafka` are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from workers.settings.base import Section, type_seconds


class RegistrySettings(Section):
    """How to reach the schema registry. One block for what is read and what is written."""

    url: str | None = Field(
        None,
        description="The schema registry, as `https://registry:8081`; several, separated by commas, are tried in turn. Apicurio's "
        "is `http://host:8080/apis/ccompat/v7`.",
    )
    username: str | None = Field(None, description="User name, or API key (basic authentication).")
    password: SecretStr | None = Field(
        None, description="Password, or API secret (basic authentication). Prefer the environment variable."
    )
    token: SecretStr | None = Field(
        None, description="Instead of a user: a bearer token. Prefer the environment variable."
    )
    token_file: Path | None = Field(
        None,
        description="Instead of `token`: a file with the token, that somebody else keeps fresh; read again as it changes.",
    )
    ssl_cafile: Path | None = Field(
        None, description="CA certificates (PEM) that sign the registry's certificate. Default: the system's."
    )
    ssl_certfile: Path | None = Field(None, description="This client's certificate (PEM), for mutual TLS.")
    ssl_keyfile: Path | None = Field(None, description="This client's private key (PEM), for mutual TLS.")
    timeout_s: type_seconds = Field(3.0, description="Seconds that the registry has for an answer, a few times over.")
    subject_strategy: Literal["topic_name", "record_name", "topic_record_name"] = Field(
        "topic_name",
        description="Under which subject an output's schema is registered, as Confluent's serialisers do: `<topic>-value`, the "
        "record's full name, or both, `<topic>-<name>`.",
    )
    auto_register: bool = Field(
        True, description="Register the schemas of outputs; otherwise they must be there, and are looked up."
    )

    @field_validator("url")
    @classmethod
    def _addresses(cls, value: str | None) -> str | None:
        if value is None:
            return None
        for address in value.split(","):
            try:
                url = urlsplit(address.strip())
                port_is_right = url.port is None or url.port > 0
            except ValueError:
                port_is_right = False
            if not port_is_right or url.scheme not in ("http", "https") or not url.hostname:
                raise ValueError("write the whole address, such as https://registry:8081")
            if url.username is not None or url.password is not None:
                raise ValueError("write the address without a user; username and password have settings of their own")
            if url.query or url.fragment:
                raise ValueError("write the address without ? and #")
        return value

    @field_validator("token")
    @classmethod
    def _fits_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        """Out of a secret's file a token comes with its line's end; else it is what a header can carry, or nothing is sent."""
        if value is None:
            return None
        token = value.get_secret_value().strip()
        if not token or not all("!" <= character <= "~" for character in token):
            raise ValueError("the token is empty, or holds what no header can carry; write it as it was issued")
        return SecretStr(token)

    @model_validator(mode="after")
    def _one_way_in(self) -> Self:
        if self.url is None:
            connection = ("username", "password", "token", "token_file", "ssl_cafile", "ssl_certfile", "ssl_keyfile")
            if stray := [name for name in connection if getattr(self, name) is not None]:
                raise ValueError(f"{stray[0]} is of no use without url, the registry's address")
        if (self.username is None) != (self.password is None):
            raise ValueError("basic authentication needs both username and password")
        ways = [name for name in ("username", "token", "token_file") if getattr(self, name) is not None]
        if len(ways) > 1:
            raise ValueError(f"give {ways[0]} or {ways[1]}, not both")
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise ValueError("mutual TLS needs both ssl_certfile and ssl_keyfile")
        if any(address.startswith("http://") for address in self.urls):
            named = ("ssl_cafile", "ssl_certfile")
            if stray := [name for name in named if getattr(self, name) is not None]:
                raise ValueError(f"{stray[0]} needs an address that begins with https://")
        return self

    @property
    def urls(self) -> tuple[str, ...]:
        """The addresses, in order, without a slash at their end."""
        return tuple(address.strip().rstrip("/") for address in (self.url or "").split(",") if address.strip())

    @property
    def who(self) -> str:
        """Who we are to the registry, for a sentence."""
        return f"user {self.username}" if self.username else "this client"

    @property
    def exposed(self) -> bool:
        """Whether what opens the registry travels unencrypted, beyond this machine."""
        secret = self.password is not None or self.token is not None or self.token_file is not None
        loopback = ("localhost", "127.0.0.1", "::1")
        urls = [urlsplit(url) for url in self.urls]
        return secret and any(url.scheme == "http" and url.hostname not in loopback for url in urls)
