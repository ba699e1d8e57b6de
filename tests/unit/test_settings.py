"""What contradicts what: the checks between settings, and what run and check need besides."""

import pytest
from pydantic import ValidationError

from workers.errors import SettingsError
from workers.settings import Settings, parse_bytes


def refused(**sections: object) -> str:
    with pytest.raises(ValidationError) as caught:
        Settings(**sections)
    return str(caught.value)


def test_the_defaults_agree_with_each_other_but_do_not_say_what_to_run():
    with pytest.raises(SettingsError, match=r"source\.topics or source\.pattern is needed"):
        Settings().require_stream()


def test_require_stream_wants_one_source_and_an_output():
    source, outputs = {"topics": ["documents"]}, [{"topic": "vectors"}]
    Settings(source=source, outputs=outputs).require_stream()
    Settings(source={"pattern": "docs-.*"}, outputs=outputs).require_stream()
    with pytest.raises(SettingsError, match="one of them only"):
        Settings(source={"topics": ["a"], "pattern": "b"}, outputs=outputs).require_stream()
    with pytest.raises(SettingsError, match="outputs is empty"):
        Settings(source=source).require_stream()


def test_the_environment_of_the_process_is_not_a_source(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STREAM_EMBEDDER_POOL__MAX", "7")
    assert Settings().pool.max == 1


def test_a_prompt_has_one_origin():
    assert "not both" in refused(model={"prompt": "query", "prompt_text": "query: "})


def test_a_text_of_the_longest_length_must_fit_a_batch():
    assert "would fit no batch" in refused(model={"max_tokens": 512}, pool={"max_batch_tokens": 511})
    assert Settings(model={"max_tokens": 512}, pool={"max_batch_tokens": 512}).pool.batch_tokens(cuda=True) == 512


def test_the_token_budget_depends_on_the_device_only_when_it_is_auto():
    assert Settings().pool.batch_tokens(cuda=False) == 4096
    assert Settings().pool.batch_tokens(cuda=True) == 16384


@pytest.mark.parametrize(
    ("source", "outputs", "names"),
    [
        ({"text": "{title}"}, [], "source.text"),
        ({"id": "{id}"}, [], "source.id"),
        ({}, [{"topic": "v", "include": ["title"]}], "outputs.include"),
    ],
)
def test_the_text_format_has_no_fields(source: dict, outputs: list, names: str):
    assert names in refused(source={"format": "text", **source}, outputs=outputs)


def test_the_text_format_may_repeat_the_default_template():
    # So that what `config` prints can be used again.
    assert Settings(source={"format": "text", "text": "{text}"}).source.format == "text"


@pytest.mark.parametrize(
    "sections",
    [
        {"source": {"topics": "a"}, "outputs": [{"topic": "a"}]},
        {"source": {"topics": "a"}, "dead_letter": {"topic": "a"}},
        {"source": {"pattern": "doc.*"}, "outputs": [{"topic": "docs-vectors"}]},
        {"source": {"pattern": "documents[.].*"}},
    ],
)
def test_a_pipeline_does_not_feed_itself(sections: dict):
    assert "feed itself" in refused(**sections)


def test_every_topic_that_is_written_has_one_purpose():
    assert "two outputs write to kafka:v" in refused(outputs=[{"topic": "v"}, {"topic": "v", "dim": 128}])
    assert "also an output" in refused(outputs=[{"topic": "v"}], dead_letter={"topic": "v"})


def test_included_fields_have_room_and_names_of_their_own():
    assert "uses itself" in refused(outputs=[{"topic": "v", "include": ["title", "tokens"]}])
    assert "needs format: json" in refused(outputs=[{"topic": "v", "include": ["title"], "format": "binary"}])


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ({"precision": "int8_ranges"}, "precision int8_ranges needs ranges"),
        ({"precision": "uint8_ranges"}, "precision int8 needs none"),
        ({"ranges": "r.npz"}, "not float32; leave it out"),
        ({"precision": "int8", "ranges": "r.npz"}, "ranges is for precision int8_ranges and uint8_ranges, not int8"),
        ({"precision": "binary", "dim": 100}, "dim (100) is not a multiple of 8, and precision binary packs"),
        ({"precision": "ubinary", "dim": 4}, "dim (4) is not a multiple of 8"),
        ({"precision": "int8", "include": ["scale"]}, "uses itself"),
    ],
)
def test_a_precision_has_what_it_needs(output: dict, says: str):
    assert says in refused(outputs=[{"topic": "v", **output}])


@pytest.mark.parametrize(
    "output",
    [
        {"precision": "int8", "dim": 100},
        {"precision": "int8_ranges", "dim": 100, "ranges": "r.npz"},
        {"precision": "uint8_ranges", "ranges": "r.npy"},
        {"precision": "binary", "dim": 256},
        {"precision": "ubinary"},
    ],
)
def test_a_precision_needs_no_more_than_that(output: dict):
    (found,) = Settings(outputs=[{"topic": "v", **output}]).outputs
    assert found.precision == output["precision"]


@pytest.mark.parametrize(
    ("kafka", "says"),
    [
        ({"security_protocol": "SASL_SSL"}, "needs sasl_mechanism"),
        ({"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN", "sasl_username": "a"}, "sasl_password"),
        ({"sasl_mechanism": "PLAIN"}, "needs security_protocol"),
        ({"security_protocol": "SSL", "ssl_certfile": "a.pem"}, "needs both"),
        ({"security_protocol": "SSL", "ssl_cert_pem": "-"}, "needs both"),
        ({"security_protocol": "SSL", "ssl_cafile": "a.pem", "ssl_ca_pem": "-"}, "not both"),
        ({"ssl_cafile": "a.pem"}, "ssl_cafile needs security_protocol SSL or SASL_SSL, not PLAINTEXT"),
        ({"ssl_hostname_unchecked_because": "so"}, "needs security_protocol"),
        ({"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "AWS_MSK_IAM"}, "needs security_protocol SASL_SSL"),
        ({"security_protocol": "SASL_SSL", "sasl_mechanism": "GSSAPI", "sasl_username": "a"}, "takes no sasl_username"),
        ({"security_protocol": "SASL_SSL", "sasl_mechanism": "OAUTHBEARER"}, "needs oauth.token_url"),
        ({"oauth": {"token_file": "t"}}, "needs sasl_mechanism OAUTHBEARER"),
        ({"oauth": {"token_url": "http://idp.example/t"}}, "would travel unencrypted"),
        ({"oauth": {"token_url": "idp.example"}}, "write the whole address"),
        ({"oauth": {"token_url": "https://a:b@idp.example"}}, "without a user"),
        ({"oauth": {"token_url": "https://idp.example"}}, "needs client_id and client_secret"),
        ({"oauth": {"client_id": "a"}}, "a token needs token_url"),
        ({"oauth": {"token_file": "t", "scope": "a"}}, "token_file needs no scope"),
        ({"oauth": {"token_file": "t", "extensions": "auth=x"}}, "auth is taken"),
    ],
)
def test_a_connection_is_whole(kafka: dict, says: str):
    assert says in refused(kafka=kafka)


def test_a_registrys_token_fits_a_header_or_is_refused_without_being_quoted():
    kept = Settings(registry={"url": "http://localhost:1", "token": " c4n4ry\n"}).registry.token
    assert kept is not None and kept.get_secret_value() == "c4n4ry"
    for token in ("c4n 4ry", "c4n\n4ry", "c4n4ry€", " "):
        said = refused(registry={"url": "http://localhost:1", "token": token})
        assert "no header can carry" in said


def test_a_secret_is_in_nothing_that_is_shown():
    canary = "c4n4ry"
    kafka = {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "OAUTHBEARER",
        "oauth": {"token_url": "https://idp.example", "client_id": "me", "client_secret": canary},
        **dict.fromkeys(("ssl_ca_pem", "ssl_cert_pem", "ssl_key_pem", "ssl_password"), canary),
    }
    settings = Settings(kafka=kafka)
    assert settings.kafka.oauth.client_secret.get_secret_value() == canary
    shown = (repr(settings), str(settings), settings.model_dump_json(), str(settings.model_dump()))
    assert not any(canary in text for text in shown)
    with pytest.raises(ValidationError) as told:
        Settings(kafka=kafka | {"sasl_password": canary})
    assert canary not in str(told.value)
    assert canary not in repr(told.value)


def test_replicas():
    assert "min (3) is larger than max (2)" in refused(pool={"min": 3, "max": 2})
    assert "a fraction up to 1, or a whole number" in refused(pool={"gpus_per_replica": 1.5})
    assert Settings(pool={"gpus_per_replica": 2}).pool.gpus_per_replica == 2
    assert Settings(pool={"gpus_per_replica": 0.25}).pool.gpus_per_replica == 0.25


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0, -1])
def test_a_wait_is_finite_and_longer_than_nothing(value: float):
    assert "commit_interval_s" in refused(delivery={"commit_interval_s": value})


def test_start_is_a_word_or_a_moment():
    assert Settings().source.start_timestamp_ms is None
    assert Settings(source={"start": "1970-01-01T00:00:01Z"}).source.start_timestamp_ms == 1000
    assert Settings(source={"start": "1970-01-01T00:00:01"}).source.start_timestamp_ms == 1000
    assert Settings(source={"start": "1970-01-01T01:00:01+01:00"}).source.start_timestamp_ms == 1000
    assert "earliest, latest, or a timestamp" in refused(source={"start": "yesterday"})


def test_a_pattern_is_a_regular_expression():
    assert "not a regular expression" in refused(source={"pattern": "docs-("})


@pytest.mark.parametrize(
    ("text", "number"),
    [("256MiB", 256 << 20), ("64 kB", 64_000), ("1.5gib", 3 << 29), ("12", 12), (7, 7)],
)
def test_bytes_have_units(text: object, number: int):
    assert parse_bytes(text) == number


def test_bytes_of_an_unknown_unit():
    assert "such as 256MiB" in refused(limits={"bytes": "3 parsecs"})


def test_outputs_whose_names_do_not_fit_beside_an_offset_are_refused():
    many = [{"kind": "parquet", "uri": f"s3://bucket/{'x' * 300}/{n}"} for n in range(12)]
    assert len(Settings(outputs=many[:10]).outputs) == 10
    with pytest.raises(ValueError, match="use fewer, or shorter topics and uris"):
        Settings(outputs=many)
