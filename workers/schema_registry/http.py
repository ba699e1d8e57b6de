"""Requests to a schema registry: connections that are kept, credentials, TLS, and what an answer means.

Comes in: a method, a path and a body. Goes out: the answer's JSON, or one sentence. Never here: a secret or an answer's text in
a message, but for the registry's own reason why a schema of ours does not suit it.

A registry says what is wrong by a number of its own (``error_code``). An answer without one comes from something in between,
which knows nothing of schemas: that is a fault, and never a record's.
"""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import urllib3
from pydantic import SecretStr

from workers.errors import EnvironmentFault, RetryableError
from workers.schema_registry.schema import Refused
from workers.settings import RegistrySettings

_ACCEPT = "application/vnd.schemaregistry.v1+json, application/json"
MOST_BYTES = 16 << 20
# A gateway that restarts, a connection that was closed, a leader being elected: asked again so soon, in seconds. More patience
# is the caller's.
_AGAIN_AFTER_S = (0.0, 0.1, 0.4)
_ASK_AGAIN = (429, 500, 502, 503, 504)


class NotFound(Exception):
    """The registry knows no such thing; ``code`` is its own number for what is missing."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class TooLarge(RetryableError):
    """The registry answers with more than any schema has."""


class Forbidden(RetryableError):
    """The registry knows us, and does not allow us this."""


class Transport:
    """One registry, at one address or several. Thread-safe."""

    def __init__(self, settings: RegistrySettings) -> None:
        self._settings = settings
        self._urls = list(settings.urls)
        self._lock = threading.Lock()
        self._pool: urllib3.PoolManager | None = None
        self._answered = True

    def ask(
        self, method: str, *path: str, body: object = None, deleted: bool = False, no_such_path: bool = False
    ) -> Any:
        """What the registry answers, from JSON; ``path`` is put together with slashes, its parts quoted.

        ``deleted``: of what a subject has, also what was deleted and is not forgotten. ``no_such_path``: an answer to a path
        that is none (HTTP 400, 404, 422) is no fault, but NotFound with the code 404; whether it comes from a registry is for the
        caller to find out.

        Raises:
            NotFound: the registry says that it has no such thing.
            TooLarge: it says more than :data:`MOST_BYTES`.
            Refused: it does not take ``body``.
            RetryableError: it does not answer, does not let us in, or what answers is no registry.
            EnvironmentFault: a certificate or the token's file cannot be read.
        """
        sentence = "there is no registry.url"
        # While it is down each question waits once, and not three times over: whoever asks has other things to do.
        for pause in _AGAIN_AFTER_S if self._answered else _AGAIN_AFTER_S[:1]:
            time.sleep(pause)
            for url in tuple(self._urls):
                place = "/".join((url, *(quote(part, safe="") for part in path))) + ("?deleted=true" if deleted else "")
                try:
                    status, raw = self._request(method, place, body)
                except urllib3.exceptions.HTTPError as error:
                    sentence = f"the schema registry at {url} does not answer: {_cause(error, self._settings)}"
                else:
                    if status not in _ASK_AGAIN:
                        self._answered = True
                        return self._answer(url, status, raw, method, path, no_such_path=no_such_path)
                    sentence = f"the schema registry at {url} answers HTTP {status}, and not as a registry does"
                with self._lock:  # the others go on with the next one too
                    if self._urls[0] == url:
                        self._urls.append(self._urls.pop(0))
        self._answered = False
        raise RetryableError(sentence)

    def _request(self, method: str, url: str, body: object) -> tuple[int, bytes]:
        response = self._pooled().request(
            method,
            url,
            headers=self._headers(),
            body=None if body is None else json.dumps(body).encode(),
            preload_content=False,
            redirect=False,  # credentials go where the settings say, and nowhere else
        )
        try:
            raw = response.read(MOST_BYTES + 1)
            if len(raw) > MOST_BYTES:
                if response.status == 200:
                    raise TooLarge(f"the schema registry answers with more than {MOST_BYTES:,} bytes")
                raise urllib3.exceptions.HTTPError("too much")
            return response.status, raw
        except BaseException:
            response.close()
            raise
        finally:
            response.release_conn()

    def _answer(
        self, url: str, status: int, raw: bytes, method: str, path: tuple[str, ...], *, no_such_path: bool
    ) -> Any:
        try:
            answer: Any = json.loads(raw)
        except (ValueError, RecursionError):
            answer = None
        if status == 200 and answer is not None:
            return answer
        code = answer.get("error_code") if isinstance(answer, dict) else None
        who = self._settings.who
        if status == 401:
            what = "give registry.username and password, or a token" if not self._credentials() else "check them"
            raise RetryableError(f"the schema registry at {url} does not let {who} in (HTTP 401): {what}")
        if status == 403:
            raise Forbidden(f"the schema registry at {url} does not allow {who} to {_what(method, path)} (HTTP 403)")
        if status == 404 and isinstance(code, int) and 40400 <= code < 40500:
            raise NotFound(code)
        if no_such_path and status in (400, 404, 422):
            raise NotFound(404)
        if status in (409, 422) and isinstance(code, int):
            said = answer.get("message")
            raise Refused(" ".join(str(said).split())[:300])
        raise RetryableError(
            f"the schema registry at {url} answers HTTP {status}, and not as a registry does: is registry.url right?"
        )

    def _credentials(self) -> bool:
        mine = self._settings
        return mine.username is not None or mine.token is not None or mine.token_file is not None

    def _headers(self) -> dict[str, str]:
        mine = self._settings
        headers = {"Accept": _ACCEPT, "Content-Type": "application/vnd.schemaregistry.v1+json"}
        if mine.username is not None:
            pair = f"{mine.username}:{_secret(mine.password)}"
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        elif mine.token is not None:
            headers["Authorization"] = f"Bearer {_secret(mine.token)}"
        elif mine.token_file is not None:
            headers["Authorization"] = f"Bearer {_read_token(mine.token_file)}"
        return headers

    def _pooled(self) -> urllib3.PoolManager:
        with self._lock:
            if self._pool is None:
                encrypted = any(url.startswith("https://") for url in self._urls)
                self._pool = urllib3.PoolManager(
                    num_pools=len(self._urls),
                    maxsize=2,
                    timeout=urllib3.Timeout(self._settings.timeout_s),
                    retries=False,
                    ssl_context=_context(self._settings) if encrypted else None,
                )
            return self._pool


def _what(method: str, path: tuple[str, ...]) -> str:
    """What a request asks for, in a few words."""
    if path[0] == "subjects":
        return f"{'register a schema under' if path[2:] and method == 'POST' else 'read'} subject {path[1]}"
    return f"look into subject {path[2]}" if path[0] == "compatibility" else "read schemas"


def _secret(value: SecretStr | None) -> str:
    return "" if value is None else value.get_secret_value()


def _read_token(path: Path) -> str:
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        token = ""
    if not token or not token.isprintable():
        raise EnvironmentFault(f"registry.token_file {path} holds no token that can be read")
    return token


def _context(settings: RegistrySettings) -> ssl.SSLContext:
    cafile, certfile, keyfile = settings.ssl_cafile, settings.ssl_certfile, settings.ssl_keyfile
    for name, path in (("ssl_cafile", cafile), ("ssl_certfile", certfile), ("ssl_keyfile", keyfile)):
        if path is not None and not path.is_file():
            raise EnvironmentFault(f"registry.{name}: there is no file {path}")
    try:
        made = ssl.create_default_context(cafile=None if cafile is None else str(cafile))
    except (ssl.SSLError, OSError) as error:
        raise EnvironmentFault(f"registry.ssl_cafile {cafile} holds no certificate that can be read") from error
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    if certfile is not None:
        try:
            # Without a password of some kind OpenSSL would ask at the terminal, and wait.
            made.load_cert_chain(str(certfile), None if keyfile is None else str(keyfile), password="")
        except (ssl.SSLError, OSError) as error:
            raise EnvironmentFault(
                f"registry.ssl_certfile {certfile} and ssl_keyfile {keyfile} are not a certificate and its key, in PEM and "
                "without a password"
            ) from error
    return made


def _cause(error: BaseException, settings: RegistrySettings) -> str:
    """Why there is no answer, in a few words."""
    if isinstance(error, urllib3.exceptions.SSLError):
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            trust = (
                "registry.ssl_cafile"
                if settings.ssl_cafile is not None
                else "the system's CAs; set registry.ssl_cafile"
            )
            return f"its certificate is not signed by {trust}, or is another host's"
        return "no TLS connection comes about: is it https that it speaks, and does it ask for our certificate?"
    match error:
        case urllib3.exceptions.NameResolutionError():
            return "there is no such host"
        case urllib3.exceptions.NewConnectionError():
            return "nobody listens there"
        case urllib3.exceptions.TimeoutError():
            return f"nothing within {settings.timeout_s:g} s (registry.timeout_s)"
    return type(error).__name__
