"""SASL: what each mechanism needs, looked for before kafka-python does, which would say nothing.

Comes in: ``KafkaSettings``. Goes out: keyword arguments. Never here: the exchange itself, which is kafka-python's.
"""

from __future__ import annotations

import importlib
from typing import Any

from workers.errors import EnvironmentFault
from workers.kafka_security.tokens import provider
from workers.settings import KafkaSettings


def arguments(kafka: KafkaSettings) -> dict[str, Any]:
    """The mechanism and its credentials.

    Raises:
        EnvironmentFault: a library, a token or credentials are missing.
    """
    found: dict[str, Any] = {"sasl_mechanism": kafka.sasl_mechanism}
    match kafka.sasl_mechanism:
        case "PLAIN" | "SCRAM-SHA-256" | "SCRAM-SHA-512":
            assert kafka.sasl_username is not None
            assert kafka.sasl_password is not None
            name = kafka.sasl_username
            if kafka.sasl_mechanism != "PLAIN":
                # RFC 5802 has these two escaped, and kafka-python sends the name as it is given.
                name = name.replace("=", "=3D").replace(",", "=2C")
            found |= {
                "sasl_plain_username": name,
                "sasl_plain_password": kafka.sasl_password.get_secret_value(),
            }
        case "OAUTHBEARER":
            tokens = provider(kafka.oauth)
            tokens.token()  # what is wrong with it is said here, and not on the client's I/O thread
            found["sasl_oauth_token_provider"] = tokens
        case "AWS_MSK_IAM":
            _find_aws_credentials()
        case "GSSAPI":
            _import("gssapi", "GSSAPI", "kerberos")
            found["sasl_kerberos_service_name"] = kafka.kerberos_service
            if kafka.kerberos_host is not None:
                found["sasl_kerberos_domain_name"] = kafka.kerberos_host
    return found


def _find_aws_credentials() -> None:
    """See that botocore finds a region and credentials: kafka-python asks it again for every connection."""
    session = _import("botocore.session", "AWS_MSK_IAM", "msk").Session()
    botocore_errors = importlib.import_module("botocore.exceptions")
    try:
        region, credentials = session.get_config_variable("region"), session.get_credentials()
        if credentials is not None:
            credentials.get_frozen_credentials()
    except botocore_errors.BotoCoreError as error:
        raise EnvironmentFault(f"kafka.sasl_mechanism AWS_MSK_IAM: AWS gives no credentials: {error}") from error
    if region is None:
        raise EnvironmentFault("kafka.sasl_mechanism AWS_MSK_IAM finds no AWS region: set AWS_DEFAULT_REGION")
    if credentials is None:
        raise EnvironmentFault(
            "kafka.sasl_mechanism AWS_MSK_IAM finds no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "give the machine or the pod a role"
        )


def _import(module: str, mechanism: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: gssapi without the system's Kerberos library
        library = module.partition(".")[0]
        why = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be loaded ({error})"
        raise EnvironmentFault(
            f"kafka.sasl_mechanism {mechanism} needs {library}, which {why}: pip install 'stream-embedder[{extra}]'"
        ) from error
