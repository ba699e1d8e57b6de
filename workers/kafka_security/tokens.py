"""Tokens for mechanism OAUTHBEARER: from a token endpoint, kept and renewed in time, or from a file.

Comes in: ``OAuthSettings``. Goes out: what kafka-python asks for a token at every connection and re-authentication. Never
here: a token, a secret or an endpoint's answer in a message, or a request that is not encrypted.

kafka-python asks on its I/O thread, where heartbeats wait. So a token that is due is renewed on a thread of its own and waited
for briefly; as long as the old one is valid, an endpoint that is slow or down delays nothing.
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote_plus, urlencode

from kafka.net.sasl.oauth import AbstractTokenProvider

from workers import log
from workers.errors import EnvironmentFault
from workers.settings import OAuthSettings

LOG = log.get(__name__)

# A broker re-authenticates us after 85 to 95 % of a token's life, and must then be shown a new one.
RENEW_AT = 0.8
REQUEST_S = 8.0
# How long the client's I/O thread waits for a renewal while the old token is still valid.
PATIENCE_S = 2.0
# After a request that failed, the endpoint is left alone for so long.
PAUSE_S = 5.0
# Kept so long when neither the endpoint nor the token itself says how long it lives.
UNKNOWN_LIFE_S = 300.0
MOST_BYTES = 1 << 20


@functools.lru_cache(maxsize=8)
def provider(oauth: OAuthSettings) -> Tokens:
    """This process's source of tokens for these settings: all its clients share one token."""
    return FileTokens(oauth) if oauth.token_file is not None else EndpointTokens(oauth)


class Tokens(AbstractTokenProvider):  # type: ignore[misc]
    """What kafka-python asks."""

    def __init__(self, oauth: OAuthSettings) -> None:
        self._oauth = oauth

    def token(self) -> str:
        """A token that is valid now.

        Raises:
            EnvironmentFault: there is none.
        """
        raise AssertionError("one of the two subclasses is used")

    def extensions(self) -> dict[str, str]:
        """What goes to the broker beside the token."""
        return self._oauth.extension_pairs


class FileTokens(Tokens):
    """A token that somebody else writes into a file and keeps fresh."""

    def token(self) -> str:
        """What is in the file now."""
        path = self._oauth.token_file
        assert path is not None
        try:
            found = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not text"
            raise EnvironmentFault(f"kafka.oauth.token_file {path} cannot be read: {why}") from error
        if not found:
            raise EnvironmentFault(f"kafka.oauth.token_file {path} is empty")
        ends = _expiry(found)
        if ends is not None and ends <= time.time():
            raise EnvironmentFault(
                f"kafka.oauth.token_file {path}: the token expired {time.time() - ends:,.0f} s ago: is what renews it running?"
            )
        return found


class EndpointTokens(Tokens):
    """Tokens by the client credentials flow (RFC 6749, section 4.4)."""

    def __init__(self, oauth: OAuthSettings, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(oauth)
        self._clock = clock
        self._lock = threading.Lock()
        self._token = ""
        self._renew_at = self._ends_at = self._ask_at = 0.0
        self._renewal: threading.Thread | None = None
        self._failure: EnvironmentFault | None = None

    def token(self) -> str:
        """The token at hand; one that is due is renewed first, as long as that takes little or is unavoidable."""
        with self._lock:
            now = self._clock()
            valid = self._token != "" and now < self._ends_at
            if valid and now < max(self._renew_at, self._ask_at):
                return self._token
            if self._failure is not None and now < self._ask_at:
                raise self._failure
            if self._renewal is None:
                self._renewal = threading.Thread(target=self._renew, name="token", daemon=True)
                self._renewal.start()
            renewal = self._renewal
        renewal.join(PATIENCE_S if valid else 2 * REQUEST_S)
        with self._lock:
            if self._token and self._clock() < self._ends_at:
                return self._token
            raise self._failure or EnvironmentFault(
                f"no token from {self._oauth.token_url}: it does not answer in time"
            )

    def _renew(self) -> None:
        asked = self._clock()
        try:
            found, life = _request(self._oauth)
        except EnvironmentFault as error:
            with self._lock:
                self._failure, self._ask_at = error, self._clock() + PAUSE_S
                valid_for = self._ends_at - self._clock() if self._token else 0.0
            if valid_for > 0:
                LOG.warning("token not renewed %s", log.fields(error=error, old_one_ends_in_s=valid_for))
        else:
            with self._lock:
                self._token, self._failure = found, None
                self._renew_at, self._ends_at = asked + RENEW_AT * life, asked + life
        finally:
            with self._lock:
                self._renewal = None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Another address would be sent our secret."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        return None


def _request(oauth: OAuthSettings) -> tuple[str, float]:
    """Ask the endpoint once: a token, and how many seconds it lives."""
    assert oauth.token_url is not None
    assert oauth.client_id is not None
    assert oauth.client_secret is not None
    pair = f"{quote_plus(oauth.client_id)}:{quote_plus(oauth.client_secret.get_secret_value())}"
    form = {"grant_type": "client_credentials"} | ({"scope": oauth.scope} if oauth.scope else {})
    request = urllib.request.Request(  # noqa: S310 - the settings allow https, and http on this machine
        oauth.token_url,
        urlencode(form).encode(),
        {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode(), "Accept": "application/json"},
    )
    handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
    if oauth.token_url.startswith("https:"):
        handlers.append(urllib.request.HTTPSHandler(context=_trust(oauth.cafile)))
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=REQUEST_S) as answer:
            body = answer.read(MOST_BYTES)
    except urllib.error.HTTPError as error:
        with error:
            said = _oauth_error(error.read(MOST_BYTES))
        hint = (
            "check kafka.oauth.client_id, client_secret and scope"
            if error.code in (400, 401, 403)
            else "check token_url"
        )
        raise EnvironmentFault(f"no token from {oauth.token_url}: it answers {error.code}{said}: {hint}") from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            why = f"its certificate is not accepted ({reason.verify_message}): check kafka.oauth.cafile"
        elif isinstance(reason, TimeoutError):
            why = f"it does not answer within {REQUEST_S:.0f} s"
        else:
            why = getattr(reason, "strerror", None) or type(reason).__name__
        raise EnvironmentFault(f"no token from {oauth.token_url}: {why}") from None
    return _read(body, oauth.token_url)


def _read(body: bytes, url: str) -> tuple[str, float]:
    try:
        answer: Any = json.loads(body)
    except ValueError:
        answer = None
    token = answer.get("access_token") if isinstance(answer, dict) else None
    # Kafka's own rule for a bearer token: RFC 6750's letters.
    if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable() or " " in token:
        raise EnvironmentFault(f"no token from {url}: its answer holds no access_token: check kafka.oauth.token_url")
    try:
        life = float(answer.get("expires_in"))
    except (TypeError, ValueError):
        ends = _expiry(token)
        life = UNKNOWN_LIFE_S if ends is None else ends - time.time()
    if not 0 < life < float("inf"):
        raise EnvironmentFault(
            f"no token from {url}: the one it gives has expired already: is this machine's clock right?"
        )
    return token, life


def _oauth_error(body: bytes) -> str:
    """The error's code by RFC 6749, a word such as ``invalid_client``; nothing else of the answer is shown."""
    try:
        code = json.loads(body)["error"]
    except (ValueError, TypeError, KeyError):
        return ""
    return f" {code}" if isinstance(code, str) and code.replace("_", "").isalpha() and len(code) < 40 else ""


def _trust(cafile: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=None if cafile is None else str(cafile))
    except ssl.SSLError as error:
        raise EnvironmentFault(f"kafka.oauth.cafile {cafile} holds no certificate that can be read") from error
    except OSError as error:
        raise EnvironmentFault(f"kafka.oauth.cafile {cafile} cannot be read: {error.strerror}") from error


def _expiry(token: str) -> float | None:
    """Unix seconds at which a JWT says it ends; None for a token of another kind, or one that does not say."""
    parts = token.split(".")
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return float(claims["exp"])
    except (IndexError, ValueError, TypeError, KeyError, binascii.Error):
        return None
