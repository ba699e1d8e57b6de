"""TLS settings against real certificates and a real handshake."""

from __future__ import annotations

import datetime
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import DAY, Authority
from workers.errors import EnvironmentFault
from workers.kafka_security import tls
from workers.settings import KafkaSettings

AUTHORITY = Authority()


def settings(**more: Any) -> KafkaSettings:
    return KafkaSettings(security_protocol="SSL", **more)


@contextmanager
def server(folder: Path) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """A TLS server that wants a client certificate: its port, and the certificates it was shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*AUTHORITY.issue("server", "127.0.0.1").write(folder, "server"))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=AUTHORITY.pem)
    shown: list[dict[str, Any]] = []

    def serve() -> None:
        while True:
            try:
                plain, _ = listening.accept()
            except OSError:
                return
            with plain:
                try:
                    with context.wrap_socket(plain, server_side=True) as secured:
                        shown.append(secured.getpeercert() or {})
                        secured.sendall(b"x")
                except OSError:
                    pass

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1], shown
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join(5)


def shake(context: ssl.SSLContext, port: int) -> bytes:
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secured,
    ):
        return secured.recv(1)


@pytest.mark.parametrize("escaped", [False, True])
def test_a_client_certificate_from_text(tmp_path: Path, escaped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written anywhere for it, encrypted keys and variables without line breaks included."""
    mine = AUTHORITY.issue("me", password="word")
    texts = [AUTHORITY.pem, mine.cert, mine.key]
    if escaped:
        texts = [text.replace("\n", "\\n") for text in texts]
    monkeypatch.setattr("tempfile.TemporaryFile", None)
    monkeypatch.chdir(tmp_path)
    ca, cert, key = texts
    with server(tmp_path) as (port, shown):
        before = set(tmp_path.iterdir())
        context = tls.context(settings(ssl_ca_pem=ca, ssl_cert_pem=cert, ssl_key_pem=key, ssl_password="word"))
        assert shake(context, port) == b"x"
        assert set(tmp_path.iterdir()) == before
    assert shown[0]["subject"] == ((("commonName", "me"),),)


def test_without_memory_files_the_text_is_in_a_file_without_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    mine = AUTHORITY.issue("me")
    tls.context(settings(ssl_ca_pem=AUTHORITY.pem, ssl_cert_pem=mine.cert, ssl_key_pem=mine.key))
    assert list(tmp_path.iterdir()) == []


def test_a_certificate_that_is_renewed_on_disk_is_used(tmp_path: Path) -> None:
    cert, key = AUTHORITY.issue("first").write(tmp_path, "me")
    cafile = tmp_path / "ca.pem"
    cafile.write_text(AUTHORITY.pem)
    context = tls.context(settings(ssl_cafile=cafile, ssl_certfile=cert, ssl_keyfile=key))
    with server(tmp_path) as (port, shown):
        shake(context, port)
        cert.write_text("half a certif")
        shake(context, port)  # one that cannot be read leaves the old one
        AUTHORITY.issue("second").write(tmp_path, "me")
        shake(context, port)
    assert [entry["subject"][0][0][1] for entry in shown] == ["first", "first", "second"]


def files(folder: Path, case: str) -> dict[str, Any]:
    """Settings with one thing wrong."""
    good, other = AUTHORITY.issue("me"), AUTHORITY.issue("other")
    cert, key = good.write(folder, "me")
    match case:
        case "no CA":
            (folder / "ca.pem").write_text("nothing")
            return {"ssl_cafile": folder / "ca.pem"}
        case "no CA text":
            return {"ssl_ca_pem": "nothing"}
        case "no file":
            return {"ssl_certfile": cert, "ssl_keyfile": folder / "absent"}
        case "not PEM":
            cert.write_bytes(b"\x30\x82\x00")
            return {"ssl_certfile": cert, "ssl_keyfile": key}
        case "another key":
            key.write_text(other.key)
            return {"ssl_certfile": cert, "ssl_keyfile": key}
        case "no password" | "wrong password":
            cert, key = AUTHORITY.issue("me", password="right").write(folder, "me")
            password = {"ssl_password": "wrong"} if case == "wrong password" else {}
            return {"ssl_certfile": cert, "ssl_keyfile": key, **password}
        case "expired":
            cert, key = AUTHORITY.issue("me", begins=-3 * DAY, ends=-DAY).write(folder, "me")
            return {"ssl_certfile": cert, "ssl_keyfile": key}
        case _:
            early = AUTHORITY.issue("me", begins=DAY, ends=3 * DAY)
            return {"ssl_cert_pem": early.cert, "ssl_key_pem": early.key}


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("no CA", "kafka.ssl_cafile {}/ca.pem holds no certificate"),
        ("no CA text", "kafka.ssl_ca_pem holds no certificate"),
        ("no file", "kafka.ssl_keyfile: there is no file {}/absent"),
        ("not PEM", "hold no certificate and key that can be read: PEM is needed"),
        (
            "another key",
            "kafka.ssl_keyfile {}/me.key is not the key of the certificate in kafka.ssl_certfile {}/me.pem",
        ),
        ("no password", "is encrypted: set kafka.ssl_password"),
        ("wrong password", "kafka.ssl_password does not open kafka.ssl_keyfile"),
        ("expired", "kafka.ssl_certfile {}/me.pem: the certificate expired on 20"),
        ("early", "kafka.ssl_cert_pem: the certificate is valid from 20"),
    ],
)
def test_what_is_wrong_with_certificates_is_a_sentence(tmp_path: Path, case: str, sentence: str) -> None:
    with pytest.raises(EnvironmentFault) as told:
        tls.context(settings(**files(tmp_path, case)))
    assert sentence.replace("{}", str(tmp_path)) in str(told.value)


def test_validity_is_read_from_both_forms_of_time() -> None:
    for ends in (datetime.timedelta(days=10), datetime.timedelta(days=40 * 365)):  # from 2050 on the form is another
        found = tls.validity(AUTHORITY.issue("me", ends=ends).cert)
        assert found is not None
        assert abs(found[1] - datetime.datetime.now(datetime.UTC) - ends) < datetime.timedelta(minutes=1)
    assert tls.validity("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----") is None
    assert tls.validity("nothing") is None


def test_names_are_checked_unless_a_reason_is_given() -> None:
    assert tls.context(settings()).check_hostname
    context = tls.context(settings(ssl_hostname_unchecked_because="a tunnel"))
    assert not context.check_hostname
    assert context.verify_mode == ssl.CERT_REQUIRED
