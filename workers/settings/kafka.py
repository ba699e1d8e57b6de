"""How to reach the brokers, and how to be let in.

Every value that opens something is a secret: it is hidden wherever settings are shown, and is taken from the environment or
the file, never from the command line.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from workers.settings.base import Section

_PASSWORD_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
# RFC 7628: a key is letters, a value is printable; `auth` is the token's own.
_EXTENSION = re.compile(r"(?!auth=)[A-Za-z]+=[\x20-\x7e]+")


class OAuthSettings(Section):
    """Where the token of mechanism OAUTHBEARER comes from: an endpoint, or a file that somebody else keeps fresh."""

    token_url: str | None = Field(
        None, description="Token endpoint of the identity provider (client credentials flow); https."
    )
    client_id: str | None = Field(None, description="Client id at the token endpoint.")
    client_secret: SecretStr | None = Field(
        None, description="Client secret at the token endpoint. Prefer the environment variable."
    )
    scope: str | None = Field(None, description="Scopes to ask for, separated by spaces.")
    extensions: str | None = Field(
        None, description="SASL extensions for the broker, as `logicalCluster=lkc-1,identityPoolId=pool-1`."
    )
    cafile: Path | None = Field(
        None, description="CA certificates (PEM) that sign the token endpoint's. Default: the system's."
    )
    token_file: Path | None = Field(
        None,
        description="Instead of an endpoint: a file with the token, such as a service account token that Kubernetes projects; "
        "read again for every connection.",
    )

    @field_validator("token_url")
    @classmethod
    def _encrypted(cls, value: str | None) -> str | None:
        if value is not None:
            url = urlsplit(value)
            loopback = url.hostname in ("localhost", "127.0.0.1", "::1")
            if not url.hostname or url.scheme not in ("https", "http"):
                raise ValueError("write the whole address, such as https://login.example.com/oauth2/token")
            if url.scheme == "http" and not loopback:
                raise ValueError("the client secret would travel unencrypted: write https")
            if url.username is not None or url.password is not None:
                raise ValueError(
                    "write the address without a user; client_id and client_secret have settings of their own"
                )
        return value

    @field_validator("extensions")
    @classmethod
    def _pairs(cls, value: str | None) -> str | None:
        if value is not None and not all(_EXTENSION.fullmatch(pair.strip()) for pair in value.split(",")):
            raise ValueError("write key=value,key=value; keys are letters, and auth is taken")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.token_file is not None:
            endpoint = ("token_url", "client_id", "client_secret", "scope", "cafile")
            if stray := [name for name in endpoint if getattr(self, name) is not None]:
                raise ValueError(f"token_file needs no {stray[0]}: a token comes from a file or from an endpoint")
        elif self.token_url is not None and (self.client_id is None or self.client_secret is None):
            raise ValueError("token_url needs client_id and client_secret")
        elif self.token_url is None and any(getattr(self, name) is not None for name in type(self).model_fields):
            raise ValueError("a token needs token_url, client_id and client_secret, or token_file")
        return self

    @property
    def extension_pairs(self) -> dict[str, str]:
        """``extensions`` by key."""
        pairs = (pair.strip().partition("=") for pair in (self.extensions or "").split(",") if pair)
        return {key: value for key, _, value in pairs}


class KafkaSettings(Section):
    """How to reach the brokers. One connection block for source, outputs and dead letters."""

    bootstrap_servers: str = Field("localhost:9092", min_length=1, description="Brokers, as `host:port,host:port`.")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="Kafka's `security.protocol`."
    )
    sasl_mechanism: (
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "AWS_MSK_IAM", "GSSAPI"] | None
    ) = Field(
        None,
        description="Kafka's `sasl.mechanism`. `AWS_MSK_IAM` needs `stream-embedder[msk]`, `GSSAPI` "
        "`stream-embedder[kerberos]`.",
    )
    sasl_username: str | None = Field(None, description="SASL user name (PLAIN, SCRAM).")
    sasl_password: SecretStr | None = Field(
        None, description="SASL password (PLAIN, SCRAM). Prefer the environment variable."
    )
    oauth: OAuthSettings = OAuthSettings()
    kerberos_service: str = Field("kafka", min_length=1, description="Kafka's `sasl.kerberos.service.name` (GSSAPI).")
    kerberos_host: str | None = Field(
        None, description="Host in the brokers' Kerberos principal (GSSAPI). Default: each broker's own."
    )
    ssl_cafile: Path | None = Field(
        None, description="CA certificates (PEM) that sign the brokers' certificates. Default: the system's."
    )
    ssl_certfile: Path | None = Field(None, description="This client's certificate (PEM), for mutual TLS.")
    ssl_keyfile: Path | None = Field(None, description="This client's private key (PEM), for mutual TLS.")
    ssl_ca_pem: SecretStr | None = Field(None, description="Instead of `ssl_cafile`: the PEM text itself.")
    ssl_cert_pem: SecretStr | None = Field(None, description="Instead of `ssl_certfile`: the PEM text itself.")
    ssl_key_pem: SecretStr | None = Field(None, description="Instead of `ssl_keyfile`: the PEM text itself.")
    ssl_password: SecretStr | None = Field(None, description="Password of `ssl_keyfile` or `ssl_key_pem`.")
    ssl_hostname_unchecked_because: str | None = Field(
        None,
        min_length=1,
        description="Why a broker's certificate need not carry the name that we connect to, such as `tunnel to staging`. "
        "Default: it must.",
    )

    @model_validator(mode="after")
    def _sasl_is_whole(self) -> Self:
        mechanism = self.sasl_mechanism
        if self.security_protocol.startswith("SASL"):
            if mechanism is None:
                raise ValueError(f"security_protocol {self.security_protocol} needs sasl_mechanism")
        elif mechanism is not None:
            raise ValueError("sasl_mechanism needs security_protocol SASL_SSL or SASL_PLAINTEXT")
        if mechanism in _PASSWORD_MECHANISMS:
            if self.sasl_username is None or self.sasl_password is None:
                raise ValueError(f"sasl_mechanism {mechanism} needs sasl_username and sasl_password")
        elif mechanism is not None and (self.sasl_username is not None or self.sasl_password is not None):
            raise ValueError(f"sasl_mechanism {mechanism} takes no sasl_username and sasl_password; leave them out")
        if mechanism == "AWS_MSK_IAM" and self.security_protocol != "SASL_SSL":
            raise ValueError("sasl_mechanism AWS_MSK_IAM needs security_protocol SASL_SSL")
        if mechanism == "OAUTHBEARER" and self.oauth == OAuthSettings():
            raise ValueError(
                "sasl_mechanism OAUTHBEARER needs oauth.token_url, client_id and client_secret, or oauth.token_file"
            )
        if mechanism != "OAUTHBEARER" and self.oauth != OAuthSettings():
            raise ValueError("oauth needs sasl_mechanism OAUTHBEARER")
        return self

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        for file, text in (
            ("ssl_cafile", "ssl_ca_pem"),
            ("ssl_certfile", "ssl_cert_pem"),
            ("ssl_keyfile", "ssl_key_pem"),
        ):
            if getattr(self, file) is not None and getattr(self, text) is not None:
                raise ValueError(f"give {file} (a path) or {text} (the text itself), not both")
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise ValueError("mutual TLS needs both ssl_certfile and ssl_keyfile")
        if (self.ssl_cert_pem is None) != (self.ssl_key_pem is None):
            raise ValueError("mutual TLS needs both ssl_cert_pem and ssl_key_pem")
        if not self.encrypted:
            # Whoever names a CA means to be on TLS: to connect without would be silent, and wrong.
            names = [name for name in type(self).model_fields if name.startswith("ssl_")]
            if stray := [name for name in names if getattr(self, name) is not None]:
                raise ValueError(f"{stray[0]} needs security_protocol SSL or SASL_SSL, not {self.security_protocol}")
        return self

    @property
    def encrypted(self) -> bool:
        """Whether connections use TLS."""
        return self.security_protocol in ("SSL", "SASL_SSL")

    @property
    def who(self) -> str:
        """Who we are to the brokers, for a sentence."""
        name = self.sasl_username or self.oauth.client_id
        return f"user {name}" if name else "this client"
