"""One way to reach Kafka: connection settings, and clients that say why they cannot connect.

Comes in: ``KafkaSettings``. Goes out: kafka-python clients. Never here: topics and their facts (``kafka_topics``), the
consumer loop (``sources``), or transactions (``sinks``).

kafka-python reports a wrong password, certificate or host only as a timeout; the cause stands in its log. So every
connection here listens to that log, and raises what it says.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka import errors as kafka_errors
from kafka.serializer import Serializer

from workers.errors import EnvironmentFault, RetryableError
from workers.settings import KafkaSettings

type_client = TypeVar("type_client")


class _Null:
    """The type of :data:`NULL`."""


NULL = _Null()
"""A null value to send: kafka-python refuses a null key with a null value before it serialises, though Kafka allows it."""


class NullableSerializer(Serializer):  # type: ignore[misc]
    """Sends bytes as they are, and :data:`NULL` as null."""

    def serialize(self, topic: str, headers: object, data: object) -> object:
        """The bytes of a value, or None."""
        return None if data is NULL else data


def client_settings(kafka: KafkaSettings) -> dict[str, Any]:
    """The settings as kafka-python's keyword arguments, common to all its clients."""
    found: dict[str, Any] = {
        "bootstrap_servers": [server.strip() for server in kafka.bootstrap_servers.split(",")],
        "security_protocol": kafka.security_protocol,
        "reconnect_backoff_max_ms": 1000,
    }
    if kafka.sasl_mechanism is not None:
        assert kafka.sasl_password is not None
        found["sasl_mechanism"] = kafka.sasl_mechanism
        found["sasl_plain_username"] = kafka.sasl_username
        found["sasl_plain_password"] = kafka.sasl_password.get_secret_value()
    for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
        path = getattr(kafka, name)
        if path is not None:
            if not path.is_file():
                raise EnvironmentFault(f"kafka.{name}: there is no file {path}")
            found[name] = str(path)
    if kafka.ssl_password is not None:
        found["ssl_password"] = kafka.ssl_password.get_secret_value()
    return found


class _Causes(logging.Handler):
    """Collects what kafka-python's network layer logs while a client connects."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def cause(self) -> str:
        """The most telling line, without the client's prefix; empty when there is none."""
        for wanted in ("uthentication", "SSL", "certificate", "mechanism", "DNS", "refused", "failed"):
            for line in reversed(self.lines):
                if wanted in line:
                    return re.sub(r"<[^>]*>|\[[^\]]*\]:?", "", line).strip(" :")[:200]
        return ""


@contextlib.contextmanager
def _listening() -> Iterator[_Causes]:
    causes = _Causes()
    logger = logging.getLogger("kafka.net")
    level, propagate = logger.level, logger.propagate
    logger.addHandler(causes)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield causes
    finally:
        logger.removeHandler(causes)
        logger.setLevel(level)
        logger.propagate = propagate


def connect(client: Callable[..., type_client], kafka: KafkaSettings, **more: Any) -> type_client:
    """Make a kafka-python client.

    Raises:
        EnvironmentFault: no broker answers in ten seconds, or it refuses us; the sentence has the cause.
    """
    arguments = client_settings(kafka) | {"bootstrap_timeout_ms": 10_000} | more
    with _listening() as causes:
        try:
            return client(**arguments)
        except (kafka_errors.KafkaError, OSError, ValueError, RuntimeError, AssertionError) as error:
            raise EnvironmentFault(_unreachable(kafka, causes.cause() or sentence(error))) from error


def _unreachable(kafka: KafkaSettings, cause: str) -> str:
    if "SSL" in cause or "certificate" in cause:
        hint = "check kafka.security_protocol and kafka.ssl_cafile"
    elif kafka.sasl_mechanism is not None:
        # A refused password often shows as a closed connection only: the broker closes before its answer is read.
        hint = "check kafka.sasl_mechanism, sasl_username and sasl_password, and that a broker runs there"
    else:
        hint = "is one running there, and are kafka.bootstrap_servers and kafka.security_protocol right?"
    return f"no Kafka broker answers at {kafka.bootstrap_servers} ({cause}): {hint}"


def sentence(error: BaseException) -> str:
    """The first line of what a Kafka error says, short enough for a sentence."""
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


@contextlib.contextmanager
def admin(kafka: KafkaSettings) -> Iterator[KafkaAdminClient]:
    """An admin client that is closed afterwards; its Kafka errors become ours.

    Raises:
        EnvironmentFault: no connection, or a right is missing.
        RetryableError: anything that may pass.
    """
    client = connect(KafkaAdminClient, kafka, request_timeout_ms=10_000)
    try:
        yield client
    except kafka_errors.AuthorizationError as error:
        raise EnvironmentFault(f"Kafka at {kafka.bootstrap_servers} does not allow it: {sentence(error)}") from error
    except kafka_errors.KafkaError as error:
        raise RetryableError(f"Kafka at {kafka.bootstrap_servers}: {sentence(error)}") from error
    finally:
        client.close()


def bare_consumer(kafka: KafkaSettings, **more: Any) -> KafkaConsumer:
    """A consumer outside any group, read committed: to look at a topic. The caller closes it."""
    arguments = {"group_id": None, "isolation_level": "read_committed", "enable_auto_commit": False} | more
    return connect(KafkaConsumer, kafka, **arguments)


def bare_producer(kafka: KafkaSettings, **more: Any) -> KafkaProducer:
    """An idempotent producer without transactions. The caller closes it."""
    return connect(KafkaProducer, kafka, **({"value_serializer": NullableSerializer()} | more))


def probe_transactions(kafka: KafkaSettings, transactional_id: str) -> None:
    """Start and close a transactional producer, to see whether we may.

    Raises:
        EnvironmentFault: the right to use transactions is missing, or no broker coordinates them.
    """
    producer = bare_producer(kafka, transactional_id=transactional_id, max_block_ms=15_000)
    try:
        producer.init_transactions()
    except kafka_errors.KafkaError as error:
        raise EnvironmentFault(
            f"no transaction can be started as {transactional_id} ({type(error).__name__}): grant Write on transactional ids "
            "that begin with the cluster's name, or choose delivery.guarantee: at_least_once"
        ) from error
    finally:
        with contextlib.suppress(kafka_errors.KafkaError):
            producer.close(timeout=2)
