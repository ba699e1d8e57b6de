"""Where settings come from, which source wins, and what a mistake says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipelines.configure import Configured, keys, load
from pipelines.fit import against_model
from pipelines.settings_text import MARKERS, render, settings_table, write_table
from pipelines.yaml_text import scalar
from workers.errors import SettingsError
from workers.settings import Settings

README = Path(__file__).parents[2] / "README.md"
PASSWORD = "*hun: ter2 #1"


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write ``pipeline.yaml``, load it with flags and an environment."""
    monkeypatch.chdir(tmp_path)

    def configured(
        text: str | bytes, flags: Sequence[tuple[str, str]] = (), environ: Mapping[str, str] | None = None
    ) -> Configured:
        file = Path("pipeline.yaml")
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load(file, flags, environ or {})

    return configured


@pytest.fixture
def refused(pipeline):
    def sentences(*args: object) -> list[str]:
        with pytest.raises(SettingsError) as caught:
            pipeline(*args)
        return str(caught.value).splitlines()

    return sentences


def test_later_sources_win_and_sections_merge(pipeline):
    configured = pipeline(
        "pool: {min: 2, max: 3, in_flight: 5}\n",
        [("pool.max", "9")],
        {"STREAM_EMBEDDER_POOL__MAX": "8", "STREAM_EMBEDDER_POOL__IN_FLIGHT": "6"},
    )
    pool = configured.settings.pool
    assert (pool.min, pool.max, pool.in_flight) == (2, 9, 6)
    assert configured.origin("pool.min") == "pipeline.yaml"
    assert configured.origin("pool.in_flight") == "STREAM_EMBEDDER_POOL__IN_FLIGHT"
    assert configured.origin("pool.max") == "--pool.max"
    assert configured.origin("pool.linger_ms") == "default"


def test_only_the_given_environment_counts(pipeline, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STREAM_EMBEDDER_POOL__MAX", "7")
    assert pipeline("").settings == Settings()


def test_variables_have_any_case_and_others_are_not_ours(pipeline):
    configured = pipeline("", [], {"stream_embedder_Pool__max": "4", "PATH": "/bin", "STREAM_EMBEDDER_DEBUG": "1"})
    assert configured.settings.pool.max == 4


@pytest.mark.parametrize("name", ["PORT", "SERVICE_HOST", "SERVICE_PORT_HTTP", "HEAD_SVC_PORT_6379_TCP_ADDR"])
def test_kubernetes_may_name_a_service_like_us(pipeline, name: str):
    assert pipeline("", [], {f"STREAM_EMBEDDER_{name}": "tcp://10.0.0.1:1"}).origins == {}


def test_lists(pipeline):
    configured = pipeline(
        "outputs: [{topic: a, dim: 64}, {topic: b}]\nsource: {topics: one}\n",
        [("outputs.1.dim", "256"), ("outputs.2.topic", "c")],
    )
    assert [(output.topic, output.dim) for output in configured.settings.outputs] == [
        ("a", 64),
        ("b", 256),
        ("c", None),
    ]
    assert configured.settings.source.topics == ("one",)
    assert configured.origin("outputs.0.dim") == "pipeline.yaml"
    assert configured.origin("outputs.1.dim") == "--outputs.1.dim"
    assert configured.origin("outputs.2.topic") == "--outputs.2.topic"


def test_a_list_as_a_whole_replaces_the_one_before(pipeline):
    environ = {"STREAM_EMBEDDER_OUTPUTS": '[{"topic":"v"}]', "STREAM_EMBEDDER_OUTPUTS__0__DIM": "128"}
    configured = pipeline("outputs: [{topic: a, dim: 64}, {topic: b}]", [], environ)
    assert [(output.topic, output.dim) for output in configured.settings.outputs] == [("v", 128)]
    assert configured.origin("outputs.0.topic") == "STREAM_EMBEDDER_OUTPUTS"
    assert configured.origin("outputs.0.dim") == "STREAM_EMBEDDER_OUTPUTS__0__DIM"
    assert pipeline("", [("source.topics", "[a, b]")]).settings.source.topics == ("a", "b")


def test_words_are_taken_as_they_are(pipeline):
    # A shell has quoted already: what YAML would make of these is not what was meant.
    flags = [("model.prompt_text", "query: "), ("source.group", "on"), ("model.revision", "null")]
    environ = {"STREAM_EMBEDDER_KAFKA__SASL_PASSWORD": "0123 #4"}
    settings = pipeline("model: {revision: abc}", flags, environ).settings
    assert (settings.model.prompt_text, settings.source.group, settings.model.revision) == ("query: ", "on", None)
    assert settings.kafka.sasl_password is not None
    assert settings.kafka.sasl_password.get_secret_value() == "0123 #4"


@pytest.mark.parametrize("text", ["", "---\n", "# nothing\n", "pool:\n  # max: 3\nmodel:\n"])
def test_an_empty_file_or_section_changes_nothing(pipeline, text: str):
    assert pipeline(text).settings == Settings()


@pytest.mark.parametrize(
    ("text", "flags", "environ", "sentence"),
    [
        (
            "pool: {max_batch_token: 3}",
            [],
            {},
            'unknown setting "pool.max_batch_token" in pipeline.yaml: did you mean pool.max_batch_tokens?',
        ),
        ("souce: {}", [], {}, 'unknown setting "souce" in pipeline.yaml: did you mean source?'),
        (
            "outputs: [{topic: v, dims: 2}]",
            [],
            {},
            'unknown setting "outputs.0.dims" in pipeline.yaml: did you mean outputs.0.dim?',
        ),
        ("", [("pools.max", "3")], {}, 'unknown setting "pools.max" in the flags: did you mean pool.max?'),
        ("", [("in_flight", "3")], {}, 'unknown setting "in_flight" in the flags: did you mean pool.in_flight?'),
        ("", [("x.y", "3")], {}, 'unknown setting "x.y" in the flags: stream-embedder config lists them all'),
        (
            "",
            [],
            {"STREAM_EMBEDDER_OUTPUT": "x"},
            'unknown setting "output" in the environment (STREAM_EMBEDDER_OUTPUT): did you mean outputs?',
        ),
        ("pool: {max: many}", [], {}, "pool.max (pipeline.yaml) should be a valid integer, unable to parse string"),
        ("pool: 5", [], {}, "pool (pipeline.yaml) is a section: write its settings below it"),
        ("source: {topics: [no]}", [], {}, "source.topics.0 (pipeline.yaml) should be a valid string, not False"),
        ("outputs: {topic: v}", [], {}, "outputs (pipeline.yaml) should be a list"),
        ("outputs: [{dim: 3}]", [], {}, "outputs.0.topic (pipeline.yaml) is missing"),
        ("", [("outputs.1.topic", "v")], {}, "outputs.1 is set, but outputs.0 is not"),
        ("", [("source.start", "soon")], {}, "source.start (--source.start): write earliest, latest, or a timestamp"),
        (
            "model: {max_tokens: 500}",
            [("pool.max_batch_tokens", "400")],
            {},
            "such a text would fit no batch (--pool.max_batch_tokens, pipeline.yaml)",
        ),
        ("a: [\n", [], {}, "pipeline.yaml line 2, column 1: expected the node content"),
        ("pool:\n  max: 1\n  max: 2\n", [], {}, "pipeline.yaml line 3, column 3: max is given twice"),
        ("source: {start: 2026-13-45}", [], {}, "pipeline.yaml is not valid YAML"),
        (
            "outputs: [{topic: v, precision: int8_ranges}]",
            [],
            {},
            "outputs.0 (pipeline.yaml): precision int8_ranges needs ranges, a file that stream-embedder calibrate writes",
        ),
        (
            "outputs: [{topic: v, precision: binary}]",
            [("outputs.0.dim", "100")],
            {},
            "outputs.0 (--outputs.0.dim, pipeline.yaml): dim (100) is not a multiple of 8",
        ),
        ("outputs: [{topic: v, precision: int4}]", [], {}, "outputs.0.precision (pipeline.yaml) should be 'float32'"),
        ("- a", [], {}, "pipeline.yaml is not a mapping of sections"),
        (b"\xff", [], {}, "pipeline.yaml is not UTF-8 (byte 0)"),
        (b"a: \x07", [], {}, "pipeline.yaml is not valid YAML"),
        ("x: " + "[" * 5000, [], {}, "pipeline.yaml is not valid YAML"),
        ("", [], {"STREAM_EMBEDDER_OUTPUTS": '[{"topic":"v"'}, "STREAM_EMBEDDER_OUTPUTS line 1, column 14: expected"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_place(refused, text: str, flags: list, environ: dict, sentence: str):
    (line,) = refused(text, flags, environ)
    assert sentence in line


def test_a_file_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(SettingsError, match="No such file"):
        load(tmp_path / "absent.yaml", [], {})
    with pytest.raises(SettingsError, match="Is a directory"):
        load(tmp_path, [], {})


def test_all_mistakes_are_told_at_once(refused):
    lines = refused(
        "pool: {max: x, mim: 1}\nreaders: {count: 0}", [("kafka.tls", "1")], {"STREAM_EMBEDDER_LIMITS__BYTES": "3 ells"}
    )
    assert len(lines) == 5
    for name in ("pool.max", "pool.mim", "readers.count", "kafka.tls", "limits.bytes"):
        assert any(name in line for line in lines)


@pytest.mark.parametrize(
    ("text", "environ"),
    [
        ("kafka: {sasl_password: 31415926}", {}),  # a number where a word belongs
        ("kafka: {sasl_password: [31415926]}", {}),
        ("kafka: {security_protocol: SASL_SSL, sasl_password: '31415926'}", {}),
        ("kafka: {sasl_pasword: '31415926'}", {}),
        ("kafka: '31415926'", {}),
        ("kafka: {sasl_password: *31415926}", {}),
        ("kafka: {sasl_password: !31415926 x}", {}),
        ("kafka: {sasl_password: !a!31415926 x}", {}),
        ("kafka: {sasl_password: %31415926}", {}),
        ('kafka: {sasl_password: "31415926', {}),
        ("pool: {max: x}", {"STREAM_EMBEDDER_KAFKA__SASL_PASSWORD": "31415926"}),
        ("", {"STREAM_EMBEDDER_KAFKA": '{"sasl_password": "31415926'}),
        ("", {"STREAM_EMBEDDER_KAFKA__PASSWORD": "31415926"}),
    ],
)
def test_a_mistake_never_tells_a_secret(refused, text: str, environ: dict):
    assert not any("31415926" in line for line in refused(text, [], environ))


YAML = f"""
model: {{prompt_text: "query: "}}
source: {{topics: documents, text: "{{title}}\\n{{body}}", start: 2026-05-01T00:00:00Z}}
outputs:
  - {{topic: vectors, dim: 256, include: [title, "a: b"]}}
  - {{topic: more}}
kafka: {{security_protocol: SASL_SSL, sasl_mechanism: PLAIN, sasl_username: "o'neil #1", sasl_password: "{PASSWORD}"}}
"""


def test_config_prints_every_setting_with_its_origin_on_a_line(pipeline):
    text = render(pipeline(YAML, [("pool.max", "4")]))
    lines = [line for line in text.splitlines() if not line.endswith(":")]
    # The first output has none of the six settings that only files have; the second has ten. No topic has a mapping.
    mappings = [key for key, _ in keys() if key.startswith("source.mappings.0.")]
    assert len(lines) == len(list(keys())) - 6 + 10 - len(mappings) + 1
    assert len({line.rindex("  # ") for line in lines}) == 1
    assert "  max: 4" + " " * 32 + "# --pool.max" in lines
    assert any(line.startswith("    topic: more ") and line.endswith("# pipeline.yaml") for line in lines)


# Each secret, and the settings without which it is refused.
SECRETS = {
    "kafka.sasl_password": "kafka: {security_protocol: SASL_SSL, sasl_mechanism: PLAIN, sasl_username: me}",
    "kafka.oauth.client_secret": "kafka: {security_protocol: SASL_SSL, sasl_mechanism: OAUTHBEARER, "
    "oauth: {token_url: 'https://idp.example', client_id: me}}",
    "kafka.ssl_ca_pem": "kafka: {security_protocol: SSL}",
    "kafka.ssl_cert_pem": "kafka: {security_protocol: SSL, ssl_key_pem: other}",
    "kafka.ssl_key_pem": "kafka: {security_protocol: SSL, ssl_cert_pem: other}",
    "kafka.ssl_password": "kafka: {security_protocol: SSL, ssl_certfile: tls.crt, ssl_keyfile: tls.key}",
    "registry.password": "registry: {url: 'https://registry.example', username: me}",
    "registry.token": "registry: {url: 'https://registry.example'}",
    "queries.api_key": "queries: {enabled: true}",
}


def test_every_secret_is_among_those_that_are_tried():
    assert {key for key, field in keys() if "SecretStr" in str(field.annotation)} == set(SECRETS)


@pytest.mark.parametrize("key", SECRETS)
def test_a_secret_is_in_nothing_that_is_shown(pipeline, refused, key: str):
    """In force, in ``config``, in what a program prints, and beside any mistake."""
    canary = "c4n4ry"
    section, *parts = key.split(".")
    variable = f"STREAM_EMBEDDER_{key.upper().replace('.', '__')}"
    environ = {variable: canary}
    configured = pipeline(SECRETS[key], (), environ)
    settings = configured.settings
    assert attrgetter(key)(settings).get_secret_value() == canary
    shown = render(configured)
    (line,) = (line for line in shown.splitlines() if line.endswith(f"# {variable}"))
    assert line.strip().startswith(f"{parts[-1]}: '**********'")
    misspelt = SECRETS[key].replace(": {", f": {{{parts[-1]}x: {canary}, ", 1)
    mistakes = [
        refused(SECRETS[key] + "\npool: {max: -1}", (), environ),
        refused(SECRETS[key] + "\nsource: {topics: 5}", (), environ),
        refused(SECRETS[key], (), environ | {f"{variable}X": canary}),
        refused(SECRETS[key], [(key, canary)]),
        refused(SECRETS[key], [(section, f"{{{': {'.join(parts)}: {canary}{'}' * len(parts)}")]),
        refused(misspelt, (), environ),
        refused(f"{section}: {canary}"),
        refused(f"{section}: {{{': {'.join(parts)}: [{canary}]{'}' * len(parts)}"),
    ]
    told = (shown, repr(settings), str(settings), settings.model_dump_json(), str(settings.model_dump()), *mistakes)
    assert not [text for text in told if canary in str(text)]


def test_config_hides_secrets_and_reads_back_as_yaml(pipeline, tmp_path: Path):
    configured = pipeline(YAML)
    text = render(configured)
    assert PASSWORD not in text
    assert yaml.safe_load(text)["kafka"]["sasl_password"] == "**********"
    assert pipeline(text.replace("'**********'", json.dumps(PASSWORD))).settings == configured.settings


@given(st.one_of(st.text(), st.lists(st.text()), st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False)))
def test_a_value_takes_one_line_and_reads_back(value: object):
    text = scalar(tuple(value) if isinstance(value, list) else value)
    assert len(text.splitlines()) == 1
    assert yaml.safe_load(f"key: {text}  # origin\n") == {"key": value}


def test_the_table_names_every_setting():
    table = settings_table()
    for key, info in keys("N"):
        assert f"| `{key}` |" in table
        assert info.description, f"{key} has no description"


def test_the_table_in_the_readme_is_up_to_date():
    assert f"{MARKERS[0]}\n{settings_table()}{MARKERS[1]}" in README.read_text(encoding="utf-8"), (
        "run: python -m pipelines.configure README.md"
    )


def test_the_table_is_written_between_the_markers(tmp_path: Path):
    file = tmp_path / "README.md"
    file.write_text(f"before\n{MARKERS[0]}\nold\n{MARKERS[1]}\nafter\n")
    write_table(file)
    assert file.read_text() == f"before\n{MARKERS[0]}\n{settings_table()}{MARKERS[1]}\nafter\n"


@dataclass(frozen=True)
class Model:
    dim: int = 384
    max_tokens: int = 256
    prompts: Mapping[str, str] = field(default_factory=lambda: {"query": "q: "})
    default_prompt: str | None = None
    include_prompt: bool = True


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"outputs": [{"topic": "a"}, {"topic": "b", "dim": 385}]}, "outputs.1.dim (385) is larger than the 384"),
        ({"model": {"max_tokens": 257}}, "model.max_tokens (257) is larger than the 256 tokens"),
        ({"pool": {"max_batch_tokens": 255}}, "pool.max_batch_tokens (255) is smaller than the longest text"),
        ({"model": {"prompt": "qeury"}}, "did you mean 'query'"),
        ({"model": {"prompt_text": "title: {title"}}, "model.prompt_text: "),
    ],
)
def test_what_only_the_model_contradicts(sections: dict, says: str):
    with pytest.raises(SettingsError) as caught:
        against_model(Settings(**sections), Model())
    assert says in str(caught.value)


@pytest.mark.parametrize("precision", ["binary", "ubinary"])
def test_bits_of_a_whole_vector_fill_their_bytes(precision: str):
    settings = Settings(outputs=[{"topic": "a"}, {"topic": "b", "precision": precision}])
    against_model(settings, Model())
    with pytest.raises(SettingsError) as caught:
        against_model(settings, Model(dim=300))
    (line,) = str(caught.value).splitlines()
    assert f"outputs.1.precision {precision} packs 8 dimensions into a byte" in line
    assert line.endswith("has 300: set outputs.1.dim to a multiple of 8")


def test_a_prompt_of_changing_length_cannot_be_left_out_of_the_pooling():
    templated = Settings(model={"prompt_text": "title: {title|none} | "})
    against_model(templated, Model())
    with pytest.raises(
        SettingsError, match=r"model\.prompt_text has fields, and the pooling of \S+ leaves the prompt out"
    ):
        against_model(templated, Model(include_prompt=False))
    against_model(Settings(model={"prompt_text": "query: "}), Model(include_prompt=False))
    of_some = Settings(source={"topics": ["a"], "mappings": [{"topics": ["a"], "prompt_text": "query: "}]})
    against_model(of_some, Model())
    with pytest.raises(SettingsError, match=r"source\.mappings\.0\.prompt_text is another prompt, and the pooling"):
        against_model(of_some, Model(include_prompt=False))


def test_what_the_model_agrees_with():
    model = {"max_tokens": 256, "prompt": "query"}
    against_model(Settings(model=model, outputs=[{"topic": "a", "dim": 384}, {"topic": "b"}]), Model())
    against_model(Settings(model={"max_tokens": 100}, pool={"max_batch_tokens": 100}), Model())


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("{kind: parkett, uri: 's3://b'}", "outputs.0 (pipeline.yaml) has a kind that is not one of kafka, parquet"),
        ("{kind: parquet}", "outputs.0.uri (pipeline.yaml) is missing"),
        (
            "{kind: parquet, uri: 's3://b', topic: x}",
            "outputs.0.topic (pipeline.yaml) is not a setting of this kind of",
        ),
        ("{kind: parquet, uri: lake}", "outputs.0.uri (pipeline.yaml): a URI starts with s3://, gs://, az://"),
        ("{kind: parquet, uri: 's3://key:secret@b'}", "outputs.0.uri (pipeline.yaml): s3://bucket/prefix is all that"),
        (
            "{kind: parquet, uri: 's3://b', include: [offset]}",
            "include names offset, which the output record uses itself",
        ),
        (
            "{kind: parquet, uri: 's3://b', rotate: {rows: 0}}",
            "outputs.0.rotate.rows (pipeline.yaml) should be greater",
        ),
        ("{kind: parquet, uri: 's3://b', rotate: {byte: 5}}", "did you mean outputs.0.rotate.bytes?"),
    ],
)
def test_what_is_wrong_with_an_output_of_files_is_one_sentence(refused, output: str, sentence: str):
    lines = refused(f"outputs: [{output}]")
    assert any(sentence in line for line in lines)
    assert not any("secret" in line for line in lines)


def test_an_output_of_files_has_bytes_with_units_and_a_name(pipeline):
    text = "outputs: [{kind: parquet, uri: 's3://b/p/', rotate: {bytes: 1MiB}}]"
    (output,) = pipeline(text).settings.outputs
    assert (output.name, output.uri, output.rotate.bytes) == ("parquet:s3://b/p", "s3://b/p", 1 << 20)
