"""What a failed connection means. The doors of a real broker are in ``tests/integration/test_security.py``; here is the rest."""

from __future__ import annotations

import ssl

import pytest
from kafka import errors as kafka_errors

from workers.errors import EnvironmentFault
from workers.kafka_security.refusals import Stage, refusal
from workers.settings import KafkaSettings

SERVER = "kafka.example:9093"
PLAIN = KafkaSettings()
TLS = KafkaSettings(security_protocol="SSL")
MUTUAL = KafkaSettings(security_protocol="SSL", ssl_cert_pem="-", ssl_key_pem="-")


def sasl(mechanism: str) -> KafkaSettings:
    more = {"sasl_username": "me", "sasl_password": "canary"} if mechanism == "PLAIN" else {}
    if mechanism == "OAUTHBEARER":
        more = {"oauth": {"token_file": "/token"}}
    return KafkaSettings(security_protocol="SASL_SSL", sasl_mechanism=mechanism, **more)


def carried(error: BaseException) -> kafka_errors.KafkaConnectionError:
    return kafka_errors.KafkaConnectionError(error)


def caused(error: BaseException) -> BaseException:
    try:
        raise kafka_errors.KafkaConnectionError("TLS handshake failed") from error
    except kafka_errors.KafkaConnectionError as made:
        return made


def tls_error(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, reason)
    error.reason = reason
    return error


GONE = kafka_errors.KafkaConnectionError("socket disconnected")


@pytest.mark.parametrize(
    ("kafka", "stage", "error", "says", "final_after"),
    [
        (
            PLAIN,
            Stage.REACHING,
            kafka_errors.KafkaConnectionError("111 ECONNREFUSED"),
            "no Kafka broker answers at kafka.example:9093 (connection refused)",
            None,
        ),
        (
            PLAIN,
            Stage.REACHING,
            kafka_errors.KafkaConnectionError("DNS Resolution failure"),
            "its name is not known",
            None,
        ),
        (PLAIN, Stage.TALKING, GONE, "its listener may want SASL", 4),
        (PLAIN, Stage.GREETING, GONE, "may speak TLS", 4),
        (PLAIN, Stage.GREETING, kafka_errors.KafkaProtocolError("size"), "may speak TLS", 1),
        (PLAIN, Stage.GREETING, carried(ConnectionResetError()), "may speak TLS", 4),
        (TLS, Stage.REACHING, caused(ConnectionResetError()), "speaks no TLS there", 4),
        (TLS, Stage.REACHING, caused(tls_error("WRONG_VERSION_NUMBER")), "speaks no TLS there", 4),
        (TLS, Stage.REACHING, caused(tls_error("TLSV1_ALERT_PROTOCOL_VERSION")), "speaks no TLS 1.2 or newer", 1),
        (TLS, Stage.GREETING, carried(tls_error("TLSV13_ALERT_CERTIFICATE_REQUIRED")), "wants this client", 1),
        (TLS, Stage.GREETING, GONE, "wants this client", 4),
        (MUTUAL, Stage.GREETING, carried(tls_error("TLSV1_ALERT_UNKNOWN_CA")), "certificate (unknown ca)", 1),
        (
            sasl("PLAIN"),
            Stage.AUTHENTICATING,
            GONE,
            "of user me by PLAIN (it closes the connection): check kafka.sasl_u",
            4,
        ),
        (
            sasl("AWS_MSK_IAM"),
            Stage.AUTHENTICATING,
            kafka_errors.SaslAuthenticationFailedError("SaslAuthenticationFailedError: Access denied"),
            "by AWS_MSK_IAM (Access denied): may these AWS credentials kafka-cluster:Connect",
            1,
        ),
        (
            sasl("GSSAPI"),
            Stage.AUTHENTICATING,
            ValueError("No credentials"),
            "ValueError: No credentials; is there a tick",
            1,
        ),
        (
            sasl("OAUTHBEARER"),
            Stage.AUTHENTICATING,
            kafka_errors.UnsupportedSaslMechanismError("no OAUTHBEARER. Enabled mechanisms: ['PLAIN']"),
            "does not offer kafka.sasl_mechanism OAUTHBEARER (it offers PLAIN)",
            1,
        ),
        (sasl("OAUTHBEARER"), Stage.AUTHENTICATING, EnvironmentFault("no token from x"), "no token from x", 1),
        (TLS, Stage.TALKING, kafka_errors.RequestTimedOutError("late"), "no Kafka broker answers at kafka.exam", None),
    ],
)
def test_a_failure_is_a_sentence(
    kafka: KafkaSettings, stage: Stage, error: BaseException, says: str, final_after: int | None
) -> None:
    found = refusal(kafka, SERVER, stage, error)
    assert says in found.sentence
    assert found.final_after == final_after
    assert "Error:" not in found.sentence.replace("ValueError:", "")
    assert "canary" not in found.sentence
