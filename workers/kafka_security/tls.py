"""TLS: one context per client, from files or from text, with a sentence for whatever is wrong with them.

Comes in: ``KafkaSettings``. Goes out: an ``ssl.SSLContext``. Never here: a connection, or a key on a disk.

Python loads a certificate chain from files only. Text is therefore given to it in a file that lives in memory and has no name
(``memfd``); where the system has none, in one without a name, which nobody else can open.

Certificates are replaced while we run: a file that changed is read again before the next connection.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from workers import log
from workers.errors import EnvironmentFault
from workers.settings import KafkaSettings

LOG = log.get(__name__)

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
# Two times in a row, of either ASN.1 type: a certificate's validity. Nothing that comes before it can look like that.
_TIME = rb"(?:\x17\x0d(\d{12})Z|\x18\x0f(\d{14})Z)"
_VALIDITY = re.compile(rb"\x30[\x1e\x20\x22]" + _TIME + _TIME)
_KEYSTORE = "PEM is needed; keytool and openssl pkcs12 make it of a keystore"


class Context(ssl.SSLContext):
    """A client's context that reads its files again when they have changed."""

    kafka: KafkaSettings
    seen: tuple[object, ...]

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        """As its parent's, with the certificates that are in the files now; bad ones leave those from before in place."""
        now = _state(self.kafka)
        if now != self.seen:
            try:
                _load(self, self.kafka)
                self.seen = now
                LOG.info("certificates read again")
            except EnvironmentFault as error:
                LOG.warning("certificates changed, and are not used %s", log.fields(error=error))
        return super().wrap_socket(*args, **kwargs)


def context(kafka: KafkaSettings) -> Context:
    """A context that trusts the given CAs, else the system's, checks names, and shows our certificate if there is one.

    Raises:
        EnvironmentFault: a file is missing or not PEM, a key does not fit, a password is missing or wrong, or our
            certificate is not valid now.
    """
    made = Context(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.check_hostname = kafka.ssl_hostname_unchecked_because is None
    made.kafka, made.seen = kafka, _state(kafka)
    _load(made, kafka)
    return made


def client_certificate_ends(kafka: KafkaSettings) -> datetime.datetime | None:
    """When this client's certificate stops being valid; None without one, or where its dates cannot be read."""
    name, pem = _own_certificate(kafka)
    found = validity(pem) if name else None
    return found[1] if found else None


def validity(pem: str) -> tuple[datetime.datetime, datetime.datetime] | None:
    """The first and the last moment of the first certificate in a PEM text; None when there is none."""
    block = _CERTIFICATE.search(pem)
    if block is None:
        return None
    try:
        times = _VALIDITY.search(ssl.PEM_cert_to_DER_cert(block[0]))
    except ValueError:  # not base64
        return None
    if times is None:
        return None
    return _moment(times[1], times[2]), _moment(times[3], times[4])


def _moment(short: bytes | None, long: bytes | None) -> datetime.datetime:
    if long is not None:
        text = long.decode()
    else:
        assert short is not None
        text = short.decode()
        text = ("19" if int(text[:2]) >= 50 else "20") + text  # RFC 5280
    return datetime.datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=datetime.UTC)


def _load(into: ssl.SSLContext, kafka: KafkaSettings) -> None:
    _load_authorities(into, kafka)
    name, pem = _own_certificate(kafka)
    if not name:
        return
    found = validity(pem)
    if found is not None:
        now = datetime.datetime.now(datetime.UTC)
        if now > found[1]:
            raise EnvironmentFault(f"{name}: the certificate expired on {found[1]:%Y-%m-%d %H:%M} UTC: renew it")
        if now < found[0]:
            raise EnvironmentFault(
                f"{name}: the certificate is valid from {found[0]:%Y-%m-%d %H:%M} UTC on: is this machine's clock right?"
            )
    _load_chain(into, kafka, name)


def _load_authorities(into: ssl.SSLContext, kafka: KafkaSettings) -> None:
    try:
        if kafka.ssl_ca_pem is not None:
            into.load_verify_locations(cadata=_text(kafka.ssl_ca_pem))
        elif kafka.ssl_cafile is not None:
            _require_file("ssl_cafile", kafka.ssl_cafile)
            into.load_verify_locations(cafile=str(kafka.ssl_cafile))
        else:
            into.load_default_certs()
    except (ssl.SSLError, ValueError) as error:
        name = "kafka.ssl_ca_pem" if kafka.ssl_ca_pem is not None else f"kafka.ssl_cafile {kafka.ssl_cafile}"
        raise EnvironmentFault(f"{name} holds no certificate that can be read: {_KEYSTORE}") from error


def _load_chain(into: ssl.SSLContext, kafka: KafkaSettings, name: str) -> None:
    inline = kafka.ssl_cert_pem is not None
    key = "kafka.ssl_key_pem" if inline else f"kafka.ssl_keyfile {kafka.ssl_keyfile}"
    asked = False

    def password() -> str:
        # Without this OpenSSL would ask at the terminal, and wait.
        nonlocal asked
        asked = True
        return kafka.ssl_password.get_secret_value() if kafka.ssl_password is not None else ""

    try:
        if kafka.ssl_cert_pem is not None and kafka.ssl_key_pem is not None:
            with _nameless(_text(kafka.ssl_cert_pem) + "\n" + _text(kafka.ssl_key_pem)) as path:
                into.load_cert_chain(path, password=password)
        else:
            assert kafka.ssl_certfile is not None
            assert kafka.ssl_keyfile is not None
            _require_file("ssl_keyfile", kafka.ssl_keyfile)
            into.load_cert_chain(str(kafka.ssl_certfile), str(kafka.ssl_keyfile), password=password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise EnvironmentFault(f"{key} is not the key of the certificate in {name}") from error
        if asked and kafka.ssl_password is None:
            raise EnvironmentFault(f"{key} is encrypted: set kafka.ssl_password") from error
        if asked:
            raise EnvironmentFault(f"kafka.ssl_password does not open {key}") from error
        raise EnvironmentFault(f"{name} and {key} hold no certificate and key that can be read: {_KEYSTORE}") from error


def _own_certificate(kafka: KafkaSettings) -> tuple[str, str]:
    """What our certificate is called in a sentence, and its text; two empty texts when there is none."""
    if kafka.ssl_cert_pem is not None:
        return "kafka.ssl_cert_pem", _text(kafka.ssl_cert_pem)
    if kafka.ssl_certfile is None:
        return "", ""
    _require_file("ssl_certfile", kafka.ssl_certfile)
    return f"kafka.ssl_certfile {kafka.ssl_certfile}", kafka.ssl_certfile.read_text(encoding="utf-8", errors="replace")


def _require_file(setting: str, path: Path) -> None:
    if not path.is_file():
        raise EnvironmentFault(f"kafka.{setting}: there is no file {path}")
    if not os.access(path, os.R_OK):
        raise EnvironmentFault(f"kafka.{setting}: this user may not read {path}")


def _text(pem: SecretStr) -> str:
    """The text of a PEM setting; where a variable cannot hold line breaks, a backslash and an n stand for them."""
    text = pem.get_secret_value()
    return text if "\n" in text.strip() else text.replace("\\n", "\n")


@contextlib.contextmanager
def _nameless(text: str) -> Iterator[str]:
    """A path that this process alone can open, for as long as the ``with``."""
    with contextlib.ExitStack() as opened:
        if hasattr(os, "memfd_create"):
            file = opened.enter_context(os.fdopen(os.memfd_create("pem"), "w+b"))
        else:
            file = opened.enter_context(tempfile.TemporaryFile())
        file.write(text.encode())
        file.flush()
        file.seek(0)
        yield f"/dev/fd/{file.fileno()}"


def _state(kafka: KafkaSettings) -> tuple[object, ...]:
    """What changes when one of the files does."""
    found: list[object] = []
    for path in (kafka.ssl_cafile, kafka.ssl_certfile, kafka.ssl_keyfile):
        if path is not None:
            try:
                entry = path.stat()
            except OSError:
                found.append(None)
            else:
                found.append((entry.st_mtime_ns, entry.st_size, entry.st_ino))
    return tuple(found)
