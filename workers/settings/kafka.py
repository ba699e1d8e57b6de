"""How to reach the brokers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from workers.settings.base import Section


class KafkaSettings(Section):
    """How to reach the brokers. One connection block for source, outputs and dead letters."""

    bootstrap_servers: str = Field("localhost:9092", min_length=1, description="Brokers, as `host:port,host:port`.")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="Kafka's `security.protocol`."
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(
        None, description="Kafka's `sasl.mechanism`."
    )
    sasl_username: str | None = Field(None, description="SASL user name.")
    sasl_password: SecretStr | None = Field(None, description="SASL password. Prefer the environment variable.")
    ssl_cafile: Path | None = Field(None, description="CA certificates (PEM) that sign the brokers' certificates.")
    ssl_certfile: Path | None = Field(None, description="This client's certificate (PEM), for mutual TLS.")
    ssl_keyfile: Path | None = Field(None, description="This client's private key (PEM), for mutual TLS.")
    ssl_password: SecretStr | None = Field(None, description="Password of `ssl_keyfile`.")

    @model_validator(mode="after")
    def _sasl_is_whole(self) -> Self:
        if self.security_protocol.startswith("SASL"):
            if self.sasl_mechanism is None:
                raise ValueError(f"security_protocol {self.security_protocol} needs sasl_mechanism")
            if self.sasl_username is None or self.sasl_password is None:
                raise ValueError(f"sasl_mechanism {self.sasl_mechanism} needs sasl_username and sasl_password")
        elif self.sasl_mechanism is not None:
            raise ValueError("sasl_mechanism needs security_protocol SASL_SSL or SASL_PLAINTEXT")
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise ValueError("mutual TLS needs both ssl_certfile and ssl_keyfile")
        return self
