"""URIs, and what the sentences say: with the real client, against a folder and a server that answers from a script."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import obstore
import pytest

from workers import object_store
from workers.errors import EnvironmentFault
from workers.object_faults import why
from workers.object_store import Location, ObjectStore, is_uri

SECRET = "SENTINEL"
LISTED = """<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><Name>bucket</Name><IsTruncated>false</IsTruncated>
<KeyCount>1</KeyCount><Contents><Key>{key}</Key><LastModified>2026-01-02T03:04:05.678Z</LastModified>
<ETag>{tag}</ETag><Size>{size}</Size></Contents></ListBucketResult>"""


# ------------------------------------------------------------------ URIs


@pytest.mark.parametrize(
    ("uri", "expected", "name", "text"),
    [
        ("s3://bucket/a/model", ("s3", "bucket", "a/model"), "model", "s3://bucket/a/model"),
        ("S3://bucket/a/model/", ("s3", "bucket", "a/model"), "model", "s3://bucket/a/model"),
        ("s3://bucket", ("s3", "bucket", ""), "bucket", "s3://bucket"),
        ("s3://my.bucket-1/ä b%20c", ("s3", "my.bucket-1", "ä b%20c"), "ä b%20c", "s3://my.bucket-1/ä b%20c"),
        ("gs://bucket/m", ("gs", "bucket", "m"), "m", "gs://bucket/m"),
        ("az://container/m", ("az", "container", "m"), "m", "az://container/m"),
        ("abfss://box/m", ("abfss", "box", "m"), "m", "abfss://box/m"),
        (
            "abfss://box@acc.dfs.core.windows.net/a/m",
            ("abfss", "box@acc.dfs.core.windows.net", "a/m"),
            "m",
            "abfss://box@acc.dfs.core.windows.net/a/m",
        ),
        ("abfss://box@acc.dfs.core.windows.net", ("abfss", "box@acc.dfs.core.windows.net", ""), "box", None),
        ("file:///models/my%20model/", ("file", "", "/models/my model"), "my model", "file:///models/my model"),
        ("file://localhost/models/m", ("file", "", "/models/m"), "m", "file:///models/m"),
    ],
)
def test_a_uri_is_a_location(uri: str, expected: tuple[str, str, str], name: str, text: str | None):
    location = Location.parse(uri)
    assert (location.scheme, location.bucket, location.prefix) == expected
    assert (location.name, str(location)) == (name, text or uri)
    assert Location.parse(uri.rstrip("/")) == location


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("ftp://bucket/m", "starts with s3://"),
        ("https://bucket.s3.amazonaws.com/m", "starts with s3://"),
        ("s3://", "starts with a bucket"),
        ("s3:///m", "starts with a bucket"),
        ("s3://../m", "starts with a bucket"),
        (f"s3://key:{SECRET}@bucket/m", "variables of the environment"),
        (f"s3://{SECRET}@bucket/m", "variables of the environment"),
        (f"az://container/m?sig={SECRET}", "variables of the environment"),
        (f"gs://bucket/m#{SECRET}", "variables of the environment"),
        ("s3://localhost:9000/m", "variables of the environment"),
        ("abfss://box@evil.example.com/m", "abfss://container@account.dfs.core.windows.net"),
        ("file://server/m", "three slashes"),
        ("file:///", "three slashes"),
        ("s3://bucket/a/../m", "no . or .."),
        ("s3://bucket/a//m", "no empty parts"),
        ("s3://bucket/a/./m", "no . or .."),
        ("s3://bucket/a\\m", "no backslash"),
        ("s3://bucket/a\nm", "no control characters"),
        ("file:///a/%2e%2e/m", "no . or .."),
        ("file:///a/%00m", "no control characters"),
    ],
)
def test_what_is_no_uri_is_a_sentence_without_secrets(uri: str, says: str):
    assert is_uri(uri)
    with pytest.raises(ValueError, match=r"URI") as caught:
        Location.parse(uri)
    assert says in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["all-MiniLM-L6-v2", "google/embeddinggemma-300m", "./s3:/x", "/s3://x", "C:/models", ""]
)
def test_other_names_are_no_uris(name: str):
    assert not is_uri(name)


# ------------------------------------------------------------------ a folder


def test_a_folder_is_listed_and_read(tmp_path: Path):
    (tmp_path / "b #1").mkdir()
    (tmp_path / "b #1" / "ä%20~.json").write_bytes(b"0123456789")
    (tmp_path / "a.txt").write_bytes(b"")
    store = ObjectStore(Location.parse(f"file://{tmp_path}"))
    empty, inner = store.listing(2)
    assert [(each.path, each.size) for each in (empty, inner)] == [("a.txt", 0), ("b #1/ä%20~.json", 10)]
    assert bytes(store.read(inner, 2, 5)) == b"234"
    with pytest.raises(EnvironmentFault, match="more than 1 objects lie under it"):
        store.listing(1)


@pytest.mark.parametrize("change", ["longer", "other", "gone"])
def test_an_object_that_changed_since_it_was_listed_is_not_read(tmp_path: Path, change: str):
    path = tmp_path / "a.txt"
    path.write_bytes(b"0123")
    store = ObjectStore(Location.parse(f"file://{tmp_path}"))
    (listed,) = store.listing(1)
    path.unlink()
    if change != "gone":
        path.write_bytes({"longer": b"01234", "other": b"4567"}[change])
        os.utime(path, ns=(0, 10**18))
    with pytest.raises(EnvironmentFault, match=r"(changed|disappeared) while it was read; try again when it is whole"):
        store.read(listed, 0, 4)


def test_an_answer_with_too_few_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.txt").write_bytes(b"0123")
    store = ObjectStore(Location.parse(f"file://{tmp_path}"))
    (listed,) = store.listing(1)
    real = obstore.get
    monkeypatch.setattr(obstore, "get", lambda store, path, options: real(store, path, options={"range": (0, 3)}))
    with pytest.raises(EnvironmentFault, match=r"a\.txt was cut short on its way; try again"):
        store.read(listed, 0, 4)


def test_a_folder_that_is_not_there(tmp_path: Path):
    with pytest.raises(EnvironmentFault, match=r"file:///.*absent: there is no such folder"):
        ObjectStore(Location.parse(f"file://{tmp_path}/absent"))


# ------------------------------------------------------------------ a server that answers from a script


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, str], None]]:
    """``scripted(status, body)``: what an S3 server on loopback, which the environment names, answers from now on."""
    answer: list[tuple[int, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answer[-1]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    client_of(monkeypatch, server.server_address[1])
    yield lambda status, body: answer.append((status, body.encode()))
    server.shutdown()
    server.server_close()
    thread.join()


def client_of(monkeypatch: pytest.MonkeyPatch, port: int, *, patience_s: float = 0.5) -> None:
    """Make S3 clients talk to a port of loopback, with credentials, and give up soon."""
    for name in os.environ:
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": SECRET,
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(object_store._RETRY, "retry_timeout", timedelta(seconds=patience_s))
    monkeypatch.setitem(object_store._CLIENT, "read_timeout", timedelta(seconds=patience_s))


def fault(uri: str = "s3://bucket/model") -> str:
    """The sentence that listing a place ends with."""
    with pytest.raises(EnvironmentFault) as caught:
        ObjectStore(Location.parse(uri)).listing(10)
    said = str(caught.value)
    assert said.startswith(f"{uri}: ") and "\n" not in said and SECRET not in said
    error = caught.value
    assert error.__cause__ is None and error.__suppress_context__, "no traceback shows the client's own text"
    return said


def refusal(code: str, more: str = "") -> str:
    return f"<Error><Code>{code}</Code><Message>{SECRET}</Message>{more}</Error>"


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (404, refusal("NoSuchBucket"), "there is no such bucket at http://127.0.0.1:"),
        (404, "", "has no such bucket, or is not the store's endpoint (404)"),
        (403, refusal("AccessDenied"), "these credentials may not list or read it (AccessDenied): grant both"),
        (403, refusal("InvalidAccessKeyId"), "the store refuses the credentials (InvalidAccessKeyId): set AWS_ACCESS"),
        (403, refusal("SignatureDoesNotMatch"), "the store refuses the credentials (SignatureDoesNotMatch): set AWS"),
        (400, refusal("ExpiredToken"), "the store refuses the credentials (ExpiredToken): set AWS_ACCESS_KEY_ID"),
        (401, "", "the store refuses the credentials (401): set AWS_ACCESS_KEY_ID"),
        (403, refusal("RequestTimeTooSkewed"), "the store refuses this machine's clock"),
        (400, refusal("AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>"), "set AWS_REGION to eu-west-1"),
        (301, refusal("PermanentRedirect"), "the bucket is in another region: set AWS_REGION to"),
        (503, refusal("SlowDown"), "the store did not answer as expected (SlowDown); try again"),
        (418, SECRET, "the store did not answer as expected (418); try again"),
        (200, SECRET, "the store did not answer as expected (GenericError); try again"),
        (200, LISTED.format(key="model/../../evil.json", tag="a", size=1), "an object there has no plain path"),
        (200, LISTED.format(key="model//evil.json", tag="a", size=1), "an object there has no plain path"),
    ],
)
def test_what_a_store_refuses_is_a_sentence(scripted: Callable[[int, str], None], status: int, body: str, says: str):
    scripted(status, body)
    assert says in fault()


def test_a_listing_without_etags_has_times_for_versions(scripted: Callable[[int, str], None]):
    scripted(200, LISTED.format(key="model/a b.json", tag="", size=7))
    (found,) = ObjectStore(Location.parse("s3://bucket/model")).listing(10)
    assert (found.path, found.size, found.tag, found.version) == ("a b.json", 7, "", "2026-01-02T03:04:05+00:00")


def test_an_answer_of_other_bytes_than_were_listed_is_refused(scripted: Callable[[int, str], None]):
    scripted(200, LISTED.format(key="model/a.json", tag="&quot;x&quot;", size=4))
    store = ObjectStore(Location.parse("s3://bucket/model"))
    (found,) = store.listing(10)
    assert found.version == "x"
    scripted(200, "12")
    with pytest.raises(EnvironmentFault, match=r"s3://bucket/model: "):
        store.read(found, 0, 4)


def test_without_credentials_it_says_where_they_are_looked_for(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        client_of(monkeypatch, port)
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://127.0.0.1:{port}")  # where a machine's role is asked for
        said = fault()
    assert "there are no usable credentials: set AWS_ACCESS_KEY_ID" in said and "~/.aws" in said


def test_azure_without_an_account(monkeypatch: pytest.MonkeyPatch):
    for name in os.environ:
        if name.startswith("AZURE_"):
            monkeypatch.delenv(name)
    said = fault("az://container/model")
    assert "no usable credentials: set AZURE_STORAGE_ACCOUNT_NAME" in said


def test_a_store_that_is_out_of_reach_is_given_up(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        client_of(monkeypatch, port)
        assert fault().endswith(f"http://127.0.0.1:{port} is out of reach: nothing listens there")


@pytest.mark.parametrize(
    ("inner", "says"),
    [
        ('ConnectError( "dns error", Custom {', "no such host is known"),
        ("InvalidCertificate( UnknownIssuer )", "its TLS certificate is not trusted"),
        ("InvalidMessage( InvalidContentType )", "it does not speak TLS"),
        ("IncompleteMessage", "the connection breaks"),
    ],
)
def test_why_a_store_is_out_of_reach(inner: str, says: str):
    """What the client says where no test can make it say so on every machine."""
    said = f"Generic S3 error: Error performing GET https://u:{SECRET}@store/b?x={SECRET} in 1s - HTTP error: e {inner}"
    assert why(RuntimeError(said), "s3").startswith("the store is out of reach: " + says)
    said = said.replace(f"u:{SECRET}@", "")
    assert why(RuntimeError(said), "s3").startswith("https://store is out of reach: " + says)


def test_a_store_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        client_of(monkeypatch, silent.getsockname()[1], patience_s=0.3)
        started = time.monotonic()
        assert "is out of reach: it does not answer in time" in fault()
        assert time.monotonic() - started < 20, "the limits that were set are those in force"


@pytest.mark.parametrize("value", ["localhost:9000", "", "s3.example.com"])
def test_an_endpoint_without_a_scheme_is_a_sentence(monkeypatch: pytest.MonkeyPatch, value: str):
    monkeypatch.setenv("AWS_ENDPOINT_URL", value)
    with pytest.raises(EnvironmentFault, match="AWS_ENDPOINT_URL is set, and does not start with https://"):
        ObjectStore(Location.parse("s3://bucket/model"))
    ObjectStore(Location.parse("gs://bucket/model"))  # which does not read it


def test_a_variable_with_a_wrong_value_is_a_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", SECRET)
    with pytest.raises(EnvironmentFault, match="has a value that it cannot have") as caught:
        ObjectStore(Location.parse("s3://bucket/model"))
    assert SECRET not in str(caught.value)
