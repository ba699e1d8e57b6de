"""The registry client against a real registry: what it reads and writes, what it keeps, and what it says of what goes wrong."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.schema_registry import Gateway, RegistryServer, basic
from workers.codecs.wire import RegisteredSchemas
from workers.errors import EnvironmentFault, PoisonError, RetryableError
from workers.records import Origin, Record
from workers.schema_registry import Forbidden, Refused, Schema, SchemaRegistry
from workers.settings import RegistrySettings

NOWHERE = "http://127.0.0.1:1"


def avro(*fields: str, kind: str = "string") -> str:
    names = [{"name": name, "type": kind} for name in fields]
    return json.dumps({"type": "record", "name": "Row", "fields": names}, separators=(",", ":"))


@pytest.fixture
def gateway(registry: RegistryServer) -> Iterator[Gateway]:
    with Gateway(registry) as started:
        yield started


def client(url: str, **settings: object) -> SchemaRegistry:
    return SchemaRegistry(RegistrySettings(url=url, timeout_s=20, **settings))


def test_a_schema_is_read_by_its_id_and_kept(
    registry: RegistryServer, gateway: Gateway, unique_name: Callable[[], str]
):
    id = registry.register(f"{unique_name()}-value", avro("text"))
    mine = client(gateway.url)
    assert mine.schema(id) == mine.schema(id) == Schema("AVRO", avro("text"))
    assert gateway.paths == [f"/schemas/ids/{id}"]


def test_what_a_schema_refers_to_comes_with_it(registry: RegistryServer, unique_name: Callable[[], str]):
    one, two = unique_name(), unique_name()
    texts = {
        "a.proto": 'syntax = "proto3"; package x; message A { string t = 1; }',
        "b.proto": 'syntax = "proto3"; package x; import "a.proto"; message B { A a = 1; }',
        "c.proto": 'syntax = "proto3"; package x; import "b.proto"; import "a.proto"; message C { B b = 1; A a = 2; }',
    }
    refers = {"name": "a.proto", "subject": one, "version": 1}, {"name": "b.proto", "subject": two, "version": 1}
    registry.register(one, texts["a.proto"], "PROTOBUF")
    registry.register(two, texts["b.proto"], "PROTOBUF", refers[:1])
    id = registry.register(unique_name(), texts["c.proto"], "PROTOBUF", refers[::-1])
    found = client(registry.url).schema(id)
    assert found == Schema("PROTOBUF", texts["c.proto"], (("a.proto", texts["a.proto"]), ("b.proto", texts["b.proto"])))


def test_a_guid_is_asked_for_as_published(registry: RegistryServer, gateway: Gateway, unique_name: Callable[[], str]):
    guid = uuid.uuid4()
    gateway.guids[str(guid)] = registry.register(unique_name(), avro("g"))
    mine = client(gateway.url)
    assert mine.schema(guid) == Schema("AVRO", avro("g"))
    assert gateway.paths == [f"/schemas/guids/{guid}"]
    assert mine.schema(uuid.uuid4()) is None


@pytest.mark.parametrize(
    "no_path",
    [(404, b'{"error_code": 404, "message": "HTTP 404 Not Found"}'), (422, b'{"error_code": 422}'), (400, b"")],
    ids=["404", "422", "400"],
)
def test_a_path_that_older_registries_do_not_have_is_no_schema_and_no_wrong_address(
    gateway: Gateway, no_path: tuple[int, bytes]
):
    """Of GUIDs they know nothing, and a number beyond Java's int is no id to them, but a path."""
    guid, number = uuid.uuid4(), (1 << 32) - 1
    gateway.said = {f"/schemas/guids/{guid}": no_path, f"/schemas/ids/{number}": no_path, "/schemas/ids/1": no_path}
    mine = client(gateway.url)
    assert mine.schema(guid) is None and mine.schema(number) is None
    with pytest.raises((RetryableError, Refused)):
        mine.schema(1)


def test_what_the_registry_here_makes_of_such_paths(registry: RegistryServer):
    guid, number = uuid.uuid4(), (1 << 32) - 1
    real = client(registry.url)
    assert real.schema(guid) is None and real.schema(number) is None
    for id in (guid, number):
        with pytest.raises(RetryableError, match=r"is registry\.url right"):
            client(f"{registry.url}/nowhere").schema(id)


def test_what_a_schema_refers_to_may_be_deleted_since(
    registry: RegistryServer, gateway: Gateway, unique_name: Callable[[], str]
):
    """As is published: without being asked for it, what was deleted and not forgotten is not told of."""
    subject = unique_name()
    inner = avro("inner")
    registry.register(subject, inner)
    place = f"/subjects/{subject}/versions/1"
    gone = 404, b'{"error_code": 40406, "message": "Version was soft deleted"}'
    gateway.said = {place: gone, "/schemas/ids/7": (200, json.dumps(referring(subject, 1)).encode())}
    assert client(gateway.url).schema(7) == Schema("AVRO", avro("outer"), (("name0", inner),))
    assert gateway.paths[1:] == [f"{place}?deleted=true"]


def referring(subject: str, count: int) -> dict[str, object]:
    names = [{"name": f"name{number}", "subject": subject, "version": 1} for number in range(count)]
    return {"schema": avro("outer"), "references": names}


@pytest.mark.parametrize("what", ["gone", "many", "large", "large inside"])
def test_a_schema_that_cannot_be_taken_is_its_records_fault(
    registry: RegistryServer,
    gateway: Gateway,
    unique_name: Callable[[], str],
    what: str,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("workers.schema_registry.client.MOST_REFERENCES", 20)
    subject = unique_name()
    registry.register(subject, avro("inner"))
    large = 200, b'{"schema": "' + b"x" * (16 << 20) + b'"}'
    answer, says = {
        "gone": ((200, json.dumps(referring(unique_name(), 1)).encode()), "does not have any more (404"),
        "many": ((200, json.dumps(referring(subject, 21)).encode()), "more than 20 others"),
        "large": (large, "more than 16,777,216 bytes"),
        "large inside": ((200, json.dumps(referring(subject, 1)).encode()), "more than 16,777,216 bytes"),
    }[what]
    gateway.said = {"/schemas/ids/7": answer}
    if what == "large inside":
        gateway.said[f"/subjects/{subject}/versions/1?deleted=true"] = large
    now = [0.0]
    mine = SchemaRegistry(RegistrySettings(url=gateway.url, timeout_s=20), clock=lambda: now[0])
    schemas = RegisteredSchemas(mine, "AVRO", lambda schema: schema)
    record = Record(Origin("documents", 0, 0, 0), b"k", b"\0\0\0\0\7", 0)
    for _ in range(3):
        with pytest.raises(PoisonError, match=re.escape(says)) as caught:
            schemas.of(record)
        assert caught.value.reason == ("unknown_schema" if what == "gone" else "bad_schema")
        assert "schema with id 7" in caught.value.message
    assert gateway.paths.count("/schemas/ids/7") == 1
    now[0] = 31.0
    gateway.said = {"/schemas/ids/7": (200, json.dumps({"schema": avro("mended")}).encode())}
    assert schemas.of(record)[0] == Schema("AVRO", avro("mended"))


def test_that_an_id_is_unknown_is_kept_for_a_while(gateway: Gateway):
    now = [0.0]
    mine = SchemaRegistry(RegistrySettings(url=gateway.url, timeout_s=20), clock=lambda: now[0])
    for _ in range(3):
        assert mine.schema(999_999) is None
    assert len(gateway.paths) == 2, "asked again once: not every server of a registry may know of it yet"
    assert mine.schema(999_998) is None
    assert len(gateway.paths) == 3, "and not for each of many"
    now[0] = 31.0
    assert mine.schema(999_999) is None
    assert len(gateway.paths) == 5


def test_a_server_that_has_not_heard_of_a_schema_is_given_time(
    registry: RegistryServer, unique_name: Callable[[], str], monkeypatch: pytest.MonkeyPatch
):
    id = registry.register(unique_name(), avro("late"))
    mine = client(registry.url)
    asked: list[object] = []
    real = SchemaRegistry._ask

    def late(self: SchemaRegistry, wanted: int) -> Schema | None:
        asked.append(wanted)
        return None if len(asked) == 1 else real(self, wanted)

    monkeypatch.setattr(SchemaRegistry, "_ask", late)
    assert mine.schema(id) == Schema("AVRO", avro("late"))


def test_a_schema_of_ours_is_registered_once(registry: RegistryServer, unique_name: Callable[[], str]):
    subject, mine = unique_name(), client(registry.url)
    schema = Schema("AVRO", avro("mine"))
    assert mine.registered(subject, schema) is None
    id = mine.register(subject, schema)
    assert mine.register(subject, schema) == mine.registered(subject, schema) == id
    assert mine.schema(id) == schema
    assert client(registry.url, auto_register=False).register(subject, schema) == id


def test_a_schema_that_does_not_suit_is_refused(registry: RegistryServer, unique_name: Callable[[], str]):
    subject, mine = unique_name(), client(registry.url)
    old, new = Schema("AVRO", avro("t")), Schema("AVRO", avro("t", kind="int"))
    assert mine.compatible(subject, new), "the first"
    mine.register(subject, old)
    registry.compatibility(subject, "BACKWARD")
    assert mine.compatible(subject, old)
    assert not mine.compatible(subject, new)
    with pytest.raises(Refused, match="STRING"):
        mine.register(subject, new)
    with pytest.raises(Refused, match=f"auto_register is off: register it under subject {subject}"):
        client(registry.url, auto_register=False).register(subject, new)


def test_credentials_open_it(gateway: Gateway, tmp_path: Path):
    file = tmp_path / "token"
    file.write_text("fresh\n")
    for wanted, given in (
        (basic("ann", "s3cret-ä"), {"username": "ann", "password": "s3cret-ä"}),
        ("Bearer abc.def", {"token": "abc.def"}),
        ("Bearer fresh", {"token_file": file}),
    ):
        gateway.authorization = wanted
        assert "AVRO" in client(gateway.url, **given).kinds()
    gateway.authorization = "Bearer newer"
    mine = client(gateway.url, token_file=file)
    with pytest.raises(RetryableError, match=r"does not let this client in \(HTTP 401\): check them"):
        mine.kinds()
    file.write_text("newer")
    assert mine.kinds(), "read again"
    with pytest.raises(RetryableError, match=r"does not let user ann in"):
        client(gateway.url, username="ann", password="wr0ng").kinds()
    gateway.allowed = False
    for ask, what in (
        (lambda: mine.schema(1), "read schemas"),
        (lambda: mine.latest("s"), "read subject s"),
        (lambda: mine.registered("s", Schema("AVRO", avro("x"))), "read subject s"),
        (lambda: mine.register("s", Schema("AVRO", avro("x"))), "register a schema under subject s"),
        (lambda: mine.compatible("s", Schema("AVRO", avro("x"))), "look into subject s"),
    ):
        with pytest.raises(Forbidden, match=rf"does not allow this client to {what} \(HTTP 403\)"):
            ask()
    gateway.allowed = True
    with pytest.raises(RetryableError, match=r"give registry.username and password, or a token"):
        client(gateway.url).kinds()
    file.unlink()
    with pytest.raises(EnvironmentFault, match=r"token_file .* holds no token"):
        mine.kinds()


def test_certificates_are_checked(registry: RegistryServer, tmp_path: Path):
    authority, other = Authority(), Authority("another")
    (tmp_path / "ca.pem").write_text(authority.pem)
    (tmp_path / "other.pem").write_text(other.pem)
    (tmp_path / "none.pem").write_text("none")
    with Gateway(registry, authority.issue("localhost", "localhost").write(tmp_path, "server")) as gateway:
        assert client(gateway.url, ssl_cafile=tmp_path / "ca.pem").kinds()
        with pytest.raises(RetryableError, match=r"not signed by registry.ssl_cafile"):
            client(gateway.url, ssl_cafile=tmp_path / "other.pem").kinds()
        with pytest.raises(RetryableError, match=r"set registry.ssl_cafile"):
            client(gateway.url).kinds()
        with pytest.raises(RetryableError, match="another host's"):
            client(gateway.url.replace("localhost", "127.0.0.1"), ssl_cafile=tmp_path / "ca.pem").kinds()
        with pytest.raises(EnvironmentFault, match="holds no certificate"):
            client(gateway.url, ssl_cafile=tmp_path / "none.pem").kinds()
        with pytest.raises(EnvironmentFault, match="there is no file"):
            client(gateway.url, ssl_cafile=tmp_path / "nowhere.pem").kinds()
        with pytest.raises(RetryableError, match="does not answer"):
            client(gateway.url.replace("https", "http")).kinds()


@pytest.mark.parametrize("status", [404, 500, 502, 503, 429, 302, 200])
def test_what_is_no_registrys_answer_is_a_fault_and_not_a_missing_schema(gateway: Gateway, status: int):
    mine = client(gateway.url)
    gateway.fail = status
    with pytest.raises(RetryableError, match=f"answers HTTP {status}, and not as a registry does") as caught:
        mine.schema(1)
    assert "order" not in str(caught.value)
    gateway.fail = None
    mine.schema(1)


def test_a_registry_that_is_down_is_asked_once_at_a_time(gateway: Gateway):
    mine = client(gateway.url)
    gateway.fail = 503
    counts = []
    for _ in range(3):
        with pytest.raises(RetryableError):
            mine.schema(1)
        counts.append(len(gateway.paths))
    assert counts == [3, 4, 5]
    gateway.fail = None
    assert mine.kinds()


def test_another_address_is_tried_and_kept(gateway: Gateway):
    mine = client(f"{NOWHERE}, {gateway.url}/")
    assert mine.kinds() and mine.kinds()
    with pytest.raises(RetryableError, match=r"127\.0\.0\.1:1 does not answer: nobody listens there"):
        client(NOWHERE).schema(1)
    with pytest.raises(RetryableError, match="there is no such host"):
        client("http://no-such-host.invalid").schema(1)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"url": "registry:8081"}, "write the whole address"),
        ({"url": "http://a,ftp://b"}, "write the whole address"),
        ({"url": "http://a:b"}, "write the whole address"),
        ({"url": "http://u:p@a"}, "without a user"),
        ({"url": "http://a?b"}, "without"),
        ({"username": "u", "password": "p"}, "is of no use without url"),
        ({"url": "http://a", "username": "u"}, "needs both"),
        ({"url": "http://a", "token": "t", "username": "u", "password": "p"}, "not both"),
        ({"url": "https://a", "ssl_certfile": "c"}, "needs both ssl_certfile and ssl_keyfile"),
        ({"url": "http://a", "ssl_cafile": "c"}, "begins with https"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, str], complaint: str):
    with pytest.raises(ValueError, match=complaint):
        RegistrySettings(**settings)


def test_secrets_on_an_open_line_are_noticed():
    assert RegistrySettings(url="http://far:1", token="t").exposed
    assert not RegistrySettings(url="https://far:1", token="t").exposed
    assert not RegistrySettings(url="http://localhost:1", token="t").exposed
    assert not RegistrySettings(url="http://far:1").exposed
