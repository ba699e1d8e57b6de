"""How kafka-python is let in: TLS, SASL, tokens, and sentences for what brokers refuse.

Comes in: ``KafkaSettings``. Goes out: keyword arguments for kafka-python's clients. Never here: topics, records, or a secret in
a message.
"""

from __future__ import annotations

from typing import Any

from workers.kafka_security import sasl, tls
from workers.settings import KafkaSettings


def arguments(kafka: KafkaSettings) -> dict[str, Any]:
    """Everything about security that a kafka-python client is told.

    Raises:
        EnvironmentFault: a file, a library, a token or credentials are missing or wrong.
    """
    found: dict[str, Any] = {"security_protocol": kafka.security_protocol}
    if kafka.encrypted:
        found["ssl_context"] = tls.context(kafka)
    if kafka.sasl_mechanism is not None:
        found |= sasl.arguments(kafka)
    return found
