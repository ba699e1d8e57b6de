"""Tokens from a real endpoint over TLS, and from files."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import Authority
from tests.token_endpoint import TokenEndpoint, unsigned_token
from workers.errors import EnvironmentFault
from workers.kafka_security import tokens
from workers.kafka_security.tokens import EndpointTokens, FileTokens, provider
from workers.settings import OAuthSettings

SECRET = "canary/pass: word"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def endpoint(tmp_path: Path, authority: Authority) -> Iterator[TokenEndpoint]:
    (tmp_path / "ca.pem").write_text(authority.pem)
    with TokenEndpoint(tmp_path, authority, client="me@example", secret=SECRET) as running:
        yield running


def settings(endpoint: TokenEndpoint, folder: Path, **more: Any) -> OAuthSettings:
    given = {
        "token_url": endpoint.url,
        "client_id": endpoint.client,
        "client_secret": SECRET,
        "cafile": folder / "ca.pem",
    }
    return OAuthSettings(**(given | more))


def test_a_token_is_kept_and_renewed_before_it_ends(endpoint: TokenEndpoint, tmp_path: Path) -> None:
    clock = Clock()
    source = EndpointTokens(
        settings(endpoint, tmp_path, scope="kafka read", extensions="logicalCluster=lkc-1, pool=p"), clock
    )
    first = source.token()
    clock.now += 0.79 * endpoint.life_s
    assert source.token() == first
    assert endpoint.forms == [{"grant_type": "client_credentials", "scope": "kafka read"}]
    clock.now += 0.02 * endpoint.life_s
    assert source.token() != first
    assert len(endpoint.forms) == 2
    assert source.extensions() == {"logicalCluster": "lkc-1", "pool": "p"}


def test_an_endpoint_that_is_down_stops_nothing_while_the_token_lives(
    endpoint: TokenEndpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    source = EndpointTokens(settings(endpoint, tmp_path), clock)
    first = source.token()
    endpoint.status = 503
    clock.now += 0.9 * endpoint.life_s
    monkeypatch.setattr(logging.getLogger("stream_embedder"), "propagate", True)
    with caplog.at_level(logging.WARNING, "stream_embedder"):
        assert source.token() == first
        assert source.token() == first
    assert "token not renewed" in caplog.text
    assert SECRET not in caplog.text
    assert len(endpoint.forms) == 2, "after a failure it is left alone for a while"
    clock.now += tokens.PAUSE_S + 0.2 * endpoint.life_s
    with pytest.raises(EnvironmentFault, match="it answers 503 temporarily_unavailable"):
        source.token()
    with pytest.raises(EnvironmentFault, match="503"):
        source.token()
    assert len(endpoint.forms) == 3
    endpoint.status = 200
    clock.now += tokens.PAUSE_S
    assert source.token() != first


def test_clients_of_one_process_share_a_token(endpoint: TokenEndpoint, tmp_path: Path) -> None:
    oauth = settings(endpoint, tmp_path)
    assert provider(oauth).token() == provider(oauth.model_copy()).token()
    assert len(endpoint.forms) == 1


@pytest.mark.parametrize(
    ("given", "status", "answer", "sentence"),
    [
        (
            {"client_secret": "wrong"},
            200,
            None,
            "it answers 401 invalid_client: check kafka.oauth.client_id, client_secret",
        ),
        ({"cafile": None}, 200, None, "its certificate is not accepted"),
        ({"cafile": Path("/nowhere.pem")}, 200, None, "kafka.oauth.cafile /nowhere.pem cannot be read"),
        ({"token_url": "http://127.0.0.1:1/token"}, 200, None, "Connection refused"),
        ({}, 404, None, "it answers 404 temporarily_unavailable: check token_url"),
        ({}, 302, None, "it answers 302"),
        ({}, 200, {"token": "x"}, "its answer holds no access_token"),
        ({}, 200, {"access_token": "a\x01b", "expires_in": 9}, "its answer holds no access_token"),
        ({}, 200, {"access_token": "abc", "expires_in": 0}, "has expired already"),
    ],
)
def test_no_token_is_a_sentence_without_a_secret(
    endpoint: TokenEndpoint,
    tmp_path: Path,
    given: dict[str, Any],
    status: int,
    answer: dict[str, object] | None,
    sentence: str,
) -> None:
    endpoint.status, endpoint.answer = status, answer
    with pytest.raises(EnvironmentFault) as told:
        EndpointTokens(settings(endpoint, tmp_path, **given)).token()
    assert sentence in str(told.value)
    assert SECRET not in str(told.value)
    assert "is unknown" not in str(told.value)


@pytest.mark.parametrize(
    ("answer", "life"),
    [
        ({"access_token": "opaque"}, tokens.UNKNOWN_LIFE_S),
        ({"access_token": "opaque", "expires_in": "60"}, 60.0),
        ({"access_token": "a JWT"}, 500.0),
    ],
)
def test_how_long_a_token_lives(answer: dict[str, object], life: float) -> None:
    import json

    if answer["access_token"] == "a JWT":
        answer = {"access_token": unsigned_token("me", life)}
    assert tokens._read(json.dumps(answer).encode(), "url")[1] == pytest.approx(life, abs=20)


def test_a_file_is_read_every_time(tmp_path: Path) -> None:
    path = tmp_path / "token"
    source = provider(OAuthSettings(token_file=path))
    assert isinstance(source, FileTokens)
    with pytest.raises(EnvironmentFault, match="cannot be read: No such file"):
        source.token()
    for token in ("one", unsigned_token("me", 60)):
        path.write_text(token + "\n")
        assert source.token() == token
    path.write_text(unsigned_token("me", -60))
    with pytest.raises(EnvironmentFault, match=r"the token expired 6. s ago"):
        source.token()
    path.write_text(" ")
    with pytest.raises(EnvironmentFault, match="is empty"):
        source.token()


def test_nothing_is_waited_for_twice(endpoint: TokenEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that hangs holds up whoever asks for a moment only, as long as the old token is valid."""
    clock = Clock()
    source = EndpointTokens(settings(endpoint, tmp_path), clock)
    first = source.token()
    monkeypatch.setattr(tokens, "PATIENCE_S", 0.05)
    answers = threading.Event()
    monkeypatch.setattr(tokens, "_request", lambda oauth: ("new", 60.0) if answers.wait(30) else None)
    clock.now += 0.9 * endpoint.life_s
    assert source.token() == first
    assert source.token() == first
    answers.set()
    deadline = time.monotonic() + 30
    while source.token() != "new":
        assert time.monotonic() < deadline, "its answer is not taken"
