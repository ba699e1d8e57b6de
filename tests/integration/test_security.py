"""The ways into a broker, and what is said at each door that stays shut. One real broker with all of them."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from pipelines.cli import main
from tests.certificates import DAY, Authority
from tests.secure_broker import APP, ODD_NAME, REAUTH_MS, TOKEN_LIFE_S, SecureBroker
from tests.tiny_model import make_tiny_bert
from tests.token_endpoint import TokenEndpoint, unsigned_token
from workers import kafka_client, kafka_topics
from workers.errors import EnvironmentFault
from workers.kafka_security.tokens import RENEW_AT
from workers.settings import KafkaSettings

PASSWORD = "STREAM_EMBEDDER_KAFKA__SASL_PASSWORD"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bert(tmp_path_factory.mktemp("model"))


def described(kafka: dict[str, Any]) -> int:
    with kafka_client.admin(KafkaSettings(**kafka)) as client:
        return len(kafka_topics.describe_topics(client, ["in", "out"]))


# ---- who is let in


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_password_opens(secured: SecureBroker, mechanism: str) -> None:
    assert described(secured.sasl(mechanism, sasl_password=secured.password)) == 2


def test_a_name_with_letters_that_scram_escapes(secured: SecureBroker) -> None:
    assert described(secured.sasl(sasl_username=ODD_NAME, sasl_password=secured.password)) == 0  # in, with no rights


def test_a_certificate_opens_from_files_and_from_text(secured: SecureBroker, tmp_path: Path) -> None:
    cert, key = secured.client.write(tmp_path, "me")
    assert described(secured.tls(ssl_certfile=cert, ssl_keyfile=key)) == 2
    text = {"ssl_cafile": None, "ssl_ca_pem": secured.authority.pem}
    assert described(secured.tls(ssl_cert_pem=secured.client.cert, ssl_key_pem=secured.client.key, **text)) == 2


def test_a_name_that_is_not_checked_for_a_reason(secured: SecureBroker) -> None:
    assert described(secured.tls("ELSEWHERE", ssl_hostname_unchecked_because="a test")) == 2


def test_a_token_from_a_file_opens(secured: SecureBroker, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(unsigned_token(APP, 60))
    assert described(secured.sasl("OAUTHBEARER", oauth={"token_file": path})) == 2


def test_tokens_and_sessions_are_renewed_under_load(secured: SecureBroker, tmp_path: Path) -> None:
    """The broker ends a session with its token, or after a few seconds: a connection goes on through several of each."""
    logger = logging.getLogger("kafka.net.connection")
    renewed = 0

    class Count(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            nonlocal renewed
            said = record.getMessage()
            renewed += "Authenticated via" in said and "(connected)" in said  # a new connection is "(initializing)"

    counting = Count(logging.INFO)
    logger.addHandler(counting)
    with TokenEndpoint(tmp_path, secured.authority, client=APP, secret="canary", life_s=TOKEN_LIFE_S) as endpoint:
        oauth = {"token_url": endpoint.url, "client_id": APP, "client_secret": "canary", "cafile": secured.cafile}
        kafka = KafkaSettings(**secured.sasl("OAUTHBEARER", oauth=oauth))
        began = time.monotonic()
        producer = kafka_client.bare_producer(kafka)
        try:
            sent = []
            while renewed < 3 or len(endpoint.forms) < 2:
                assert time.monotonic() - began < 60, f"{renewed} sessions renewed, {len(endpoint.forms)} tokens"
                sent.append(producer.send("in", value=b"x"))
                time.sleep(0.01)
            producer.flush(timeout=30)
            assert [future.exception for future in sent if not future.succeeded()] == []
        finally:
            producer.close(timeout=2)
            logger.removeHandler(counting)
        most = 1 + (time.monotonic() - began) / (RENEW_AT * TOKEN_LIFE_S)
        assert len(endpoint.forms) <= most, "a token is kept for as long as it is good"
    with kafka_client.admin(secured.plain) as client:
        topics = kafka_topics.describe_topics(client, ["in"])
        assert sum(kafka_topics.end_offsets(client, topics).values()) == len(sent)


# ---- what is said to the others


def pipeline(kafka: dict[str, Any], model: Path, folder: Path) -> Path:
    """A settings file whose only fault is in its connection."""
    settings = {
        "model": {"name": str(model)},
        "source": {"topics": ["in"], "group": "g"},
        "outputs": [{"topic": "out"}],
        "dead_letter": {"topic": "dead"},
        "delivery": {"cluster": "c"},
        "pool": {"gpus_per_replica": 0},
        "kafka": {name: str(value) for name, value in kafka.items() if value is not None},
    }
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


type_fault = Callable[[SecureBroker, Path], dict[str, Any]]


def stranger(secured: SecureBroker, folder: Path) -> dict[str, Any]:
    cert, key = Authority().issue(APP).write(folder, "stranger")
    return secured.tls(ssl_certfile=cert, ssl_keyfile=key)


def expired(secured: SecureBroker, folder: Path) -> dict[str, Any]:
    cert, key = secured.authority.issue(APP, begins=-3 * DAY, ends=-DAY).write(folder, "expired")
    return secured.tls(ssl_certfile=cert, ssl_keyfile=key)


def other_ca(secured: SecureBroker, folder: Path) -> dict[str, Any]:
    path = folder / "other.pem"
    path.write_text(Authority("another").pem)
    return secured.sasl(ssl_cafile=path)


FAULTS: dict[str, tuple[type_fault, str]] = {
    "wrong password": (
        lambda secured, _: secured.sasl(),
        "refuses the authentication of user app by SCRAM-SHA-512 .*: check kafka.sasl_username and kafka.sasl_password",
    ),
    "wrong password, PLAIN": (lambda secured, _: secured.sasl("PLAIN"), r"by PLAIN \(Invalid username or password\)"),
    "unknown user": (lambda secured, _: secured.sasl(sasl_username="nobody"), "authentication of user nobody"),
    "expired certificate": (lambda secured, _: secured.tls("EXPIRED"), "has expired: renew it on the broker"),
    "unknown CA": (other_ca, "signed by a CA that is not in kafka.ssl_cafile"),
    "CA of the same name": (
        lambda secured, _: secured.tls("TLS", ssl_cafile=None, ssl_ca_pem=Authority().pem),
        "signed by a CA that is not in kafka.ssl_ca_pem",
    ),
    "no CA": (
        lambda secured, _: secured.sasl(ssl_cafile=None),
        "a CA that this system does not know: set kafka.ssl_cafile",
    ),
    "wrong host name": (
        lambda secured, _: secured.tls("ELSEWHERE"),
        "is not for the name 127.0.0.1: write a name that is in it in kafka.bootstrap_servers",
    ),
    "plaintext to a TLS port": (
        lambda secured, _: {"bootstrap_servers": secured.broker.address("SASL")},
        "its listener may speak TLS, and kafka.security_protocol is PLAINTEXT",
    ),
    "TLS to a plaintext port": (
        lambda secured, _: secured.tls("PLAINTEXT"),
        "speaks no TLS there: kafka.security_protocol is SSL, and the listener's may be PLAINTEXT",
    ),
    "no SASL to a SASL port": (lambda secured, _: secured.tls("SASL"), "its listener may want SASL"),
    "SASL to a port without": (
        lambda secured, _: secured.sasl(bootstrap_servers=secured.broker.address("TLS")),
        "asks for no SASL there: set kafka.security_protocol: SSL",
    ),
    "no client certificate": (
        lambda secured, _: secured.tls(),
        "wants this client's certificate: set kafka.ssl_certfile and kafka.ssl_keyfile",
    ),
    "client certificate of a stranger": (stranger, "does not accept this client's certificate"),
    "expired client certificate": (expired, "the certificate expired on 20.*: renew it"),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_check_says_what_is_wrong(
    secured: SecureBroker,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: str,
) -> None:
    kafka, sentence = FAULTS[fault][0](secured, tmp_path), FAULTS[fault][1]
    if "sasl_mechanism" in kafka:
        monkeypatch.setenv(PASSWORD, "canary-but-wrong")
    began, threads = time.monotonic(), threading.active_count()
    assert main(["check", "-c", str(pipeline(kafka, model, tmp_path))]) == 1
    said = capsys.readouterr().err
    assert re.search(sentence, said), said
    assert len(said.splitlines()) == 1, said
    assert "canary" not in said
    assert threading.active_count() <= threads, "a client that cannot start leaves nothing behind"
    assert time.monotonic() - began < 8, "who is refused for good does not wait"


def test_run_says_it_too(secured: SecureBroker, model: Path, tmp_path: Path) -> None:
    """Each fault as a process of its own: one sentence, exit 1, before Ray is started."""
    faults = [
        "wrong password",
        "expired certificate",
        "unknown CA",
        "wrong host name",
        "plaintext to a TLS port",
        "no client certificate",
    ]
    started = []
    for number, fault in enumerate(faults):
        folder = tmp_path / str(number)
        folder.mkdir()
        kafka = FAULTS[fault][0](secured, folder)
        environment = os.environ | ({PASSWORD: "canary-but-wrong"} if "sasl_mechanism" in kafka else {})
        command = [sys.executable, "-m", "pipelines", "run", "-c", str(pipeline(kafka, model, folder))]
        started.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    said_by = [process.communicate(timeout=120)[0] for process in started]
    for fault, process, said in zip(faults, started, said_by, strict=True):
        assert process.returncode == 1, said
        assert re.search(FAULTS[fault][1], said), said
        assert sum(line.startswith("stream-embedder:") for line in said.splitlines()) == 1, said
        assert "Traceback" not in said
        assert "canary" not in said


# ---- rights


def test_rights_that_are_missing(
    secured: SecureBroker,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A user who is granted one right after the other, as ``check`` asks for them."""
    secured.add_user("newcomer")
    monkeypatch.setenv(PASSWORD, secured.password)
    config = str(pipeline(secured.sasl(sasl_username="newcomer"), model, tmp_path))

    def check(*flags: str) -> list[str]:
        code = main(["check", "-c", config, *flags])
        said = capsys.readouterr()
        assert secured.password not in said.err + said.out
        assert code == (1 if said.err else 0)
        return said.err.splitlines()

    def says(*sentences: str) -> bool:
        said = check()
        assert len(said) == len(sentences), said
        return all(sentence in line for sentence, line in zip(sentences, said, strict=True))

    group = "user newcomer may not read as group g: grant Read on it (kafka-acls.sh --add --operation Read --group g)"
    assert says(
        group,
        "user newcomer may not see topic in, if there is one: grant Read on it (kafka-acls.sh --add --operation Read --topic in)",
        "user newcomer may not see topic out, if there is one: grant Write on it",
        "user newcomer may not see topic dead, if there is one: grant Write on it",
    )
    for topic in ("in", "out", "dead"):
        secured.allow("newcomer", "TOPIC", topic, "DESCRIBE", "DESCRIBE_CONFIGS")
    transactions = (
        "user newcomer may not use transactional id c.g.0: grant Write on those that begin with c.g. (kafka-acls.sh --add "
        "--operation Write --transactional-id c.g. --resource-pattern-type prefixed)"
    )
    topics = [
        "may not read topic in: grant Read on it",
        "may not write to topic out: grant Write on it",
        "may not write to topic dead: grant Write on it",
        "may not read topic out, whose latest vectors say which model made them: grant Read",
    ]
    assert says(group, *topics, transactions)
    secured.allow("newcomer", "GROUP", "g", "DESCRIBE")
    assert says(group, *topics, transactions)  # to look is not to read
    secured.allow("newcomer", "GROUP", "g", "READ")
    secured.allow("newcomer", "TOPIC", "in", "READ")
    secured.allow("newcomer", "TOPIC", "out", "WRITE")
    secured.allow("newcomer", "TOPIC", "dead", "WRITE")
    secured.allow("newcomer", "TRANSACTIONAL_ID", "c.g.check", "WRITE", "DESCRIBE")
    assert says(topics[3], transactions)  # a right on another id is none
    assert check("--delivery.allow_fingerprint_change", "true", "--delivery.guarantee", "at_least_once") == []
    secured.allow("newcomer", "TOPIC", "out", "READ")
    secured.allow("newcomer", "TRANSACTIONAL_ID", "c.g.0", "WRITE")
    assert check() == []
    (second,) = check("--readers.count", "2")
    assert "may not use transactional id c.g.1" in second
    ran = subprocess.run(
        [sys.executable, "-m", "pipelines", "run", "-c", config, "--readers.count", "2"],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ran.returncode, ran.stderr.count("may not use transactional id c.g.1")) == (1, 1), ran.stderr


def test_what_check_asks_changes_nothing(secured: SecureBroker) -> None:
    """No group, no transactional id: the questions are about nobody."""
    from workers import kafka_rights

    kafka = KafkaSettings(**secured.sasl(sasl_password=secured.password))
    kafka_rights.require_group(kafka, "nobody-s")
    kafka_rights.require_transactions(kafka, ["nobody.s.0"])
    with kafka_client.admin(secured.plain) as client:
        assert "nobody-s" not in {group["group_id"] for group in client.list_groups()}
        assert "nobody.s.0" not in str(client.list_transactions())


# ---- while it runs


def test_a_password_that_no_longer_opens_is_in_the_log(
    secured: SecureBroker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that was let in, and at its next authentication is not."""
    secured.add_user("leaver")
    kafka = KafkaSettings(**secured.sasl(sasl_username="leaver", sasl_password=secured.password))
    with kafka_client.admin(kafka) as client, caplog.at_level(logging.WARNING):
        monkeypatch.setattr(logging.getLogger("stream_embedder"), "propagate", True)
        secured.remove_user("leaver")
        end = time.monotonic() + 4 * REAUTH_MS / 1000
        while time.monotonic() < end and "connection refused" not in caplog.text:
            with contextlib.suppress(KafkaError):
                client.describe_cluster()
            time.sleep(0.2)
    assert "refuses the authentication of user leaver" in caplog.text
    assert secured.password not in caplog.text


def test_a_broker_that_is_frozen_in_the_handshake_is_not_waited_for(secured: SecureBroker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        kafka = KafkaSettings(**secured.tls(bootstrap_servers=f"127.0.0.1:{silent.getsockname()[1]}"))
        began = time.monotonic()
        with pytest.raises(EnvironmentFault):
            kafka_client.connect(KafkaAdminClient, kafka, bootstrap_timeout_ms=1_000)
        assert time.monotonic() - began < 8
