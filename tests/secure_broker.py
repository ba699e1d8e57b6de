"""A real broker with every way in: SASL over TLS, TLS with client certificates, and listeners whose certificates are bad."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ResourcePattern,
    ResourceType,
    ScramMechanism,
    UserScramCredentialDeletion,
    UserScramCredentialUpsertion,
)

from pipelines.broker import Broker
from tests.certificates import DAY, Authority, Certificate
from tests.integration.pipeline import wait_until
from workers import kafka_client
from workers.settings import KafkaSettings

APP = "app"
# RFC 5802 escapes two letters in a user's name.
ODD_NAME = "a,b=c"
# A client authenticates again after 85 to 95 % of its session: what is left is the pause that a busy machine may make.
REAUTH_MS = 10_000
# Of an access token: some sessions end before it does, some with it.
TOKEN_LIFE_S = REAUTH_MS / 1000 * 4 / 3
MECHANISMS = (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512)
_LOGIN = "org.apache.kafka.common.security"


@dataclass(frozen=True, slots=True)
class SecureBroker:
    """A running broker, and what opens it."""

    broker: Broker
    folder: Path
    authority: Authority
    cafile: Path
    client: Certificate
    password: str

    @property
    def plain(self) -> KafkaSettings:
        """The way in that asks nothing, for what a test sets up and looks at."""
        return self.broker.settings

    def sasl(self, mechanism: str = "SCRAM-SHA-512", **more: Any) -> dict[str, Any]:
        """Settings for the SASL_SSL listener, without the password."""
        return {
            "bootstrap_servers": self.broker.address("SASL"),
            "security_protocol": "SASL_SSL",
            "ssl_cafile": str(self.cafile),
            "sasl_mechanism": mechanism,
            **({} if mechanism == "OAUTHBEARER" else {"sasl_username": APP}),
            **more,
        }

    def tls(self, listener: str = "MTLS", **more: Any) -> dict[str, Any]:
        """Settings for one of the listeners without SASL."""
        return {
            "bootstrap_servers": self.broker.address(listener),
            "security_protocol": "SSL",
            "ssl_cafile": str(self.cafile),
            **more,
        }

    def allow(self, user: str, kind: str, name: str, *operations: str) -> None:
        """Grant rights on a resource, by Kafka's names."""
        pattern = ResourcePattern(ResourceType[kind], name)
        with kafka_client.admin(self.plain) as client:
            client.create_acls(
                [
                    ACL(f"User:{user}", "*", ACLOperation[operation], ACLPermissionType.ALLOW, pattern)
                    for operation in operations
                ]
            )
            granted = ACLFilter(f"User:{user}", "*", ACLOperation.ANY, ACLPermissionType.ALLOW, pattern)
            wait_until(  # the controller answers, and the broker hears of it a moment later
                lambda: set(operations) <= {acl.operation.name for acl in client.describe_acls(granted)[0]},
                10,
                lambda: f"{operations} on {kind} {name}",
            )

    def add_user(self, user: str) -> None:
        """Let a user in by SCRAM, with the broker's one password."""
        with kafka_client.admin(self.plain) as client:
            for mechanism in MECHANISMS:  # one per request is what Kafka takes
                failed = client.alter_user_scram_credentials(
                    [UserScramCredentialUpsertion(user, mechanism, self.password)]
                )
                assert not any(failed.values()), failed

            def known() -> bool:
                found = client.describe_user_scram_credentials([user])[user]["credential_infos"]
                return {each["mechanism"] for each in found} == set(MECHANISMS)

            wait_until(known, 10, lambda: f"user {user}")

    def remove_user(self, user: str) -> None:
        """Let a user in no more, once its sessions end."""
        with kafka_client.admin(self.plain) as client:
            for mechanism in MECHANISMS:
                client.alter_user_scram_credentials([UserScramCredentialDeletion(user, mechanism)])


@contextlib.contextmanager
def secure_broker(folder: Path) -> Iterator[SecureBroker]:
    """Start one. User ``app`` may read and write everything, whichever way it comes in."""
    authority, password = Authority(), f"canary-{secrets.token_hex(12)}"
    good = authority.issue("broker", "127.0.0.1", "localhost")
    cafile = folder / "ca.pem"
    cafile.write_text(authority.pem)
    stores = {
        "sasl": good,
        "mtls": good,
        "tls": good,
        "expired": authority.issue("broker", "127.0.0.1", begins=-3 * DAY, ends=-DAY),
        "elsewhere": authority.issue("broker", "kafka.elsewhere.example"),
    }
    extra = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "listener.name.sasl.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
        "listener.name.sasl.connections.max.reauth.ms": str(REAUTH_MS),
        "listener.name.sasl.plain.sasl.jaas.config": f'{_LOGIN}.plain.PlainLoginModule required user_{APP}="{password}";',
        "listener.name.sasl.scram-sha-256.sasl.jaas.config": f"{_LOGIN}.scram.ScramLoginModule required;",
        "listener.name.sasl.scram-sha-512.sasl.jaas.config": f"{_LOGIN}.scram.ScramLoginModule required;",
        "listener.name.sasl.oauthbearer.sasl.jaas.config": f"{_LOGIN}.oauthbearer.OAuthBearerLoginModule required "
        'unsecuredLoginStringClaim_sub="broker";',
        "listener.name.mtls.ssl.client.auth": "required",
        "listener.name.mtls.ssl.truststore.type": "PEM",
        "listener.name.mtls.ssl.truststore.location": str(cafile),
        "listener.name.mtls.ssl.principal.mapping.rules": "RULE:^CN=([a-z]+)$/$1/,DEFAULT",
    }
    for name, certificate in stores.items():
        extra[f"listener.name.{name}.ssl.keystore.type"] = "PEM"
        extra[f"listener.name.{name}.ssl.keystore.location"] = str(
            certificate.write_keystore(folder / f"{name}.keystore")
        )
    listeners = {"SASL": "SASL_SSL", "MTLS": "SSL", "TLS": "SSL", "EXPIRED": "SSL", "ELSEWHERE": "SSL"}
    with Broker(folder / "broker", extra=extra, listeners=listeners) as broker:
        made = SecureBroker(broker, folder, authority, cafile, authority.issue(APP), password)
        made.add_user(APP)
        made.add_user(ODD_NAME)
        made.allow(APP, "TOPIC", "*", "READ", "WRITE", "DESCRIBE_CONFIGS")
        made.allow(APP, "GROUP", "*", "READ")
        made.allow(APP, "TRANSACTIONAL_ID", "*", "WRITE")
        yield made
