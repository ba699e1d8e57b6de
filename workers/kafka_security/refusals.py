"""What a connection that failed means, as one sentence: what is wrong, with which broker, and which setting mends it.

Comes in: the settings, the error, and how far the connection had come. Goes out: a ``Refusal``. Pure: it connects to nothing.
"""

from __future__ import annotations

import enum
import re
import ssl
from dataclasses import dataclass

from kafka import errors as kafka_errors

from workers.errors import StreamEmbedderError
from workers.settings import KafkaSettings


class Stage(enum.Enum):
    """How far a connection had come."""

    REACHING = enum.auto()  # neither TCP nor TLS is there
    GREETING = enum.auto()  # connected, and nothing said by the broker yet
    AUTHENTICATING = enum.auto()  # the broker has said what it speaks; SASL is next
    TALKING = enum.auto()  # connected, and let in


# A broker that starts or stops may drop a connection or two; one that drops so many in a row means it.
_OFTEN = 4


@dataclass(frozen=True, slots=True)
class Refusal:
    """A sentence, and after how many in a row trying again is pointless: 1 at once, None never."""

    sentence: str
    final_after: int | None = 1


# OpenSSL's numbers for what it finds wrong with a certificate.
_EXPIRED, _NOT_YET = 10, 9
_UNKNOWN_AUTHORITY = (7, 18, 19, 20, 21)  # 7: signed by one of the same name
_OTHER_NAME = (62, 64)


def refusal(kafka: KafkaSettings, server: str, stage: Stage, error: BaseException) -> Refusal:
    """The meaning of an error of kafka-python's, or of what lies below it."""
    if isinstance(error, StreamEmbedderError):  # of our own token provider
        return Refusal(str(error))
    below = _ssl_error(error)
    if isinstance(below, ssl.SSLCertVerificationError):
        return Refusal(_certificate(kafka, server, below))
    if below is not None:
        return _tls(kafka, server, below)
    if isinstance(error, kafka_errors.SaslAuthenticationFailedError):
        return Refusal(_authentication(kafka, server, _words(error)))
    if isinstance(error, kafka_errors.UnsupportedSaslMechanismError):
        enabled = _words(error).partition("Enabled mechanisms: ")[2].strip("[]").replace("'", "")
        offers = f" (it offers {enabled})" if enabled else ""
        return Refusal(f"Kafka at {server} does not offer kafka.sasl_mechanism {kafka.sasl_mechanism}{offers}")
    if isinstance(error, kafka_errors.IllegalSaslStateError) and stage is Stage.AUTHENTICATING:
        without = "SSL" if kafka.encrypted else "PLAINTEXT"
        return Refusal(f"Kafka at {server} asks for no SASL there: set kafka.security_protocol: {without}")
    if stage is Stage.AUTHENTICATING and not isinstance(error, kafka_errors.KafkaError):
        # The mechanism itself failed on our side: Kerberos without a ticket, SCRAM with a server that is not the one.
        said = f"{type(error).__name__}: {_words(error)}"
        if kafka.sasl_mechanism == "GSSAPI":
            said += "; is there a ticket (klist, KRB5_CLIENT_KTNAME), and is kafka.kerberos_service the brokers'?"
        return Refusal(f"authentication at Kafka {server} by {kafka.sasl_mechanism} fails: {said}")
    return _silence(kafka, server, stage, error)


def _ssl_error(error: BaseException) -> ssl.SSLError | None:
    """The TLS error that an error is, was caused by, or carries."""
    carried = [part for part in error.args if isinstance(part, BaseException)]
    for candidate in (error, error.__cause__, error.__context__, *carried):
        if isinstance(candidate, ssl.SSLError):
            return candidate
    return None


def _certificate(kafka: KafkaSettings, server: str, error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code == _EXPIRED:
        return f"the certificate of Kafka at {server} has expired: renew it on the broker"
    if error.verify_code == _NOT_YET:
        return f"the certificate of Kafka at {server} is not valid yet: is this machine's clock right?"
    if error.verify_code in _UNKNOWN_AUTHORITY:
        if kafka.ssl_cafile is None and kafka.ssl_ca_pem is None:
            whose, mend = "that this system does not know", "set kafka.ssl_cafile to that CA's certificate"
        else:
            name = "ssl_ca_pem" if kafka.ssl_cafile is None else "ssl_cafile"
            whose, mend = f"that is not in kafka.{name}", "add that CA's certificate"
        return f"the certificate of Kafka at {server} is signed by a CA {whose}: {mend}"
    if error.verify_code in _OTHER_NAME:
        host = server.rpartition(":")[0]
        return (
            f"the certificate of Kafka at {server} is not for the name {host}: write a name that is in it in "
            "kafka.bootstrap_servers and the brokers' advertised.listeners, or have it issued for this one"
        )
    return f"the certificate of Kafka at {server} is not accepted: {error.verify_message}"


def _tls(kafka: KafkaSettings, server: str, error: ssl.SSLError) -> Refusal:
    reason = error.reason or ""
    if "ALERT" in reason:
        ours = kafka.ssl_certfile is not None or kafka.ssl_cert_pem is not None
        said = reason.partition("ALERT_")[2].lower().replace("_", " ")
        if "PROTOCOL_VERSION" in reason:
            return Refusal(f"Kafka at {server} speaks no TLS 1.2 or newer")
        if not ours:
            return Refusal(_wants_certificate(server))
        return Refusal(
            f"Kafka at {server} does not accept this client's certificate ({said}): does the CA that signed it stand in the "
            "broker's truststore, and is it valid and not revoked?"
        )
    if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE") or isinstance(error, ssl.SSLEOFError):
        return _no_tls(kafka, server)
    return Refusal(f"no TLS connection to Kafka at {server} ({reason or _words(error)})", _OFTEN)


def _wants_certificate(server: str) -> str:
    return (
        f"Kafka at {server} wants this client's certificate: set kafka.ssl_certfile and kafka.ssl_keyfile, or "
        "kafka.ssl_cert_pem and kafka.ssl_key_pem"
    )


def _authentication(kafka: KafkaSettings, server: str, said: str) -> str:
    match kafka.sasl_mechanism:
        case "OAUTHBEARER":
            mend = "is the token meant for this cluster (kafka.oauth), and do the broker's issuer and audience fit it?"
        case "AWS_MSK_IAM":
            mend = "may these AWS credentials kafka-cluster:Connect, in this region?"
        case "GSSAPI":
            mend = "check the ticket (klist), kafka.kerberos_service and kafka.kerberos_host"
        case _:
            mend = "check kafka.sasl_username and kafka.sasl_password"
    what = said.partition(": ")[2] or said
    return f"Kafka at {server} refuses the authentication of {kafka.who} by {kafka.sasl_mechanism} ({what}): {mend}"


def _no_tls(kafka: KafkaSettings, server: str) -> Refusal:
    plain = "SASL_PLAINTEXT" if kafka.security_protocol.startswith("SASL") else "PLAINTEXT"
    return Refusal(
        f"Kafka at {server} speaks no TLS there: kafka.security_protocol is {kafka.security_protocol}, and the listener's may "
        f"be {plain}",
        _OFTEN,
    )


def _silence(kafka: KafkaSettings, server: str, stage: Stage, error: BaseException) -> Refusal:
    """A connection that was not made, or that was closed without a word."""
    if stage is Stage.REACHING and isinstance(error.__cause__, ConnectionError):
        return _no_tls(kafka, server)  # TCP was there, and TLS ended it
    gibberish = isinstance(error, kafka_errors.KafkaProtocolError)
    if gibberish or "disconnected" in str(error) or any(isinstance(part, ConnectionError) for part in error.args):
        if stage is Stage.GREETING and kafka.encrypted:
            return Refusal(
                f"Kafka at {server} closes the connection as soon as TLS is set up. {_wants_certificate(server)}",
                _OFTEN,
            )
        if stage is Stage.GREETING:
            return Refusal(
                f"Kafka at {server} does not answer in the clear: its listener may speak TLS, and kafka.security_protocol is "
                f"{kafka.security_protocol}",
                1 if gibberish else _OFTEN,
            )
        if stage is Stage.AUTHENTICATING:
            return Refusal(_authentication(kafka, server, "it closes the connection"), _OFTEN)
        if stage is Stage.TALKING and kafka.sasl_mechanism is None:
            return Refusal(
                f"Kafka at {server} closes the connection after the greeting: its listener may want SASL, and "
                f"kafka.security_protocol is {kafka.security_protocol}",
                _OFTEN,
            )
    hint = "is one running there, and is kafka.bootstrap_servers right?"
    return Refusal(f"no Kafka broker answers at {server} ({_words(error)}): {hint}", None)


def _words(error: BaseException) -> str:
    """The first line of what an error says, without the client's own names around it."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    if "ECONNREFUSED" in text:
        return "connection refused"
    if "DNS" in text:
        return "its name is not known"
    return re.sub(r"^(\[Error \d+\] |\w+Error: )+", "", text)[:200]
