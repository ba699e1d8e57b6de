"""Every setting: its name, type, default, meaning, and what contradicts what.

Comes in: values already merged from YAML, environment and flags (``pipelines.configure`` does that). Goes out: one frozen
``Settings``. Never here: reading the environment by a section (only the root does), or looking at the model or the broker.
"""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from workers.errors import SettingsError

ENV_PREFIX = "STREAM_EMBEDDER_"
DEFAULT_MODEL = "all-MiniLM-L6-v2"

type_count = Annotated[int, Field(ge=1)]
type_seconds = Annotated[float, Field(gt=0)]
type_precision = Literal["float32", "float16", "int8", "int8_ranges", "uint8_ranges", "binary", "ubinary"]

_UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def parse_bytes(value: object) -> object:
    """Turn ``256MiB``, ``64 kB`` or a plain number into bytes; anything else goes to pydantic as it is.

    Raises:
        ValueError: a number with a unit that is not b, kB, MB, GB, KiB, MiB or GiB.
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError("write a number of bytes, or one with a unit such as 256MiB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


class Section(BaseModel):
    """A part of the settings: immutable, and strict about names."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class ModelSettings(Section):
    """Which model, and how a text becomes its tokens."""

    name: str = Field(
        DEFAULT_MODEL,
        description="A local folder in sentence-transformers' layout, a hub id such as `google/embeddinggemma-300m`, "
        "a prefix in an object store (`s3://bucket/model`, `gs://`, `az://`, `abfss://`, `file:///`), or the packaged "
        "`all-MiniLM-L6-v2`.",
    )
    revision: str | None = Field(None, description="The hub revision. Pin it in production.")
    prompt: str | None = Field(None, description="A name from the model's own prompt table, such as `document`.")
    prompt_text: str | None = Field(
        None,
        description="A prompt of your own, put before every text, instead of `prompt`. Fields of the record may stand in it: "
        "`title: {title|none} | text: `; a brace that is meant is doubled.",
    )
    max_tokens: type_count | None = Field(
        None, description="Longest text in tokens, special tokens included. Default: the model's own limit."
    )
    overflow: Literal["truncate", "reject"] = Field(
        "truncate", description="A longer text is cut, counted and flagged (`truncate`) or a dead letter (`reject`)."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Numbers of the forward pass. `auto`: bfloat16 where the GPU or CPU multiplies it and the vectors keep a "
        "cosine of 0.999 to float32's, else float32. float16 is refused for Gemma, whose activations overflow it.",
    )

    task: str | None = Field(
        None,
        description="Which route of a model with several (a Router): `query`, `document`. Default: `document`, else the "
        "model's own.",
    )
    sliding_window: Annotated[int, Field(ge=2, multiple_of=2)] | None = Field(
        None, description="Instead of the number in the model's file, for a copy that an older transformers halved."
    )

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if self.prompt is not None and self.prompt_text is not None:
            raise ValueError("give prompt (a name from the model's table) or prompt_text (the text itself), not both")
        return self


class SourceSettings(Section):
    """What is read from Kafka, and which part of a record is the text."""

    topics: tuple[str, ...] = Field((), description="Topics to read. Either this or `pattern`.")
    pattern: str | None = Field(None, description="A regular expression over topic names, instead of `topics`.")
    group: str = Field("stream-embedder", min_length=1, description="Kafka consumer group.")
    start: str = Field(
        "earliest",
        description="Where a partition without a committed offset starts: `earliest`, `latest`, or an ISO 8601 timestamp.",
    )
    format: Literal["json", "text"] = Field(
        "json", description="`json`: the value is a JSON object. `text`: the value is the text, in UTF-8."
    )
    text: str = Field(
        "{text}",
        description="What to embed: a field name, or a template over fields such as `{title}\\n{body}`; `{a.b}` reads a "
        "nested field, `{title|none}` has a default.",
    )
    id: str | None = Field(
        None,
        description="The document's id, a field name or template. Default: the record's key, else its offset's name.",
    )
    empty: Literal["reject", "embed"] = Field(
        "reject", description="A text with nothing but white space is a dead letter (`reject`) or embedded as it is."
    )
    static_membership: bool = Field(
        False,
        description="Join the group with a fixed `group.instance.id` per reader, so that a quick restart moves no partition.",
    )

    @field_validator("topics", mode="before")
    @classmethod
    def _one_topic(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from error
        return value

    @field_validator("start", mode="before")
    @classmethod
    def _start(cls, value: object) -> object:
        # YAML reads an unquoted timestamp as a datetime.
        return value.isoformat() if isinstance(value, datetime.date) else value

    @field_validator("start")
    @classmethod
    def _start_is_known(cls, value: str) -> str:
        if value not in ("earliest", "latest"):
            try:
                datetime.datetime.fromisoformat(value)
            except ValueError as error:
                raise ValueError("write earliest, latest, or a timestamp such as 2026-05-01T00:00:00Z") from error
        return value

    @property
    def start_timestamp_ms(self) -> int | None:
        """``start`` as Unix milliseconds (UTC when it names no zone), None for earliest and latest."""
        if self.start in ("earliest", "latest"):
            return None
        moment = datetime.datetime.fromisoformat(self.start)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.UTC)
        return int(moment.timestamp() * 1000)


class KafkaOutput(Section):
    """Embeddings as records of a Kafka topic."""

    kind: Literal["kafka"] = Field("kafka", description="Where the output goes.")
    topic: str = Field(min_length=1, description="The topic that embeddings are written to.")
    dim: type_count | None = Field(
        None, description="Dimensions: the vector is cut to these, then normalised (MRL). Default: the model's own."
    )
    precision: type_precision = Field(
        "float32",
        description="How the vector's components are written. `int8`: with one scale per vector; `int8_ranges`, "
        "`uint8_ranges`: by `ranges`, as sentence-transformers does; `binary`, `ubinary`: a bit each, as it packs them.",
    )
    ranges: Path | None = Field(
        None,
        description="For `int8_ranges` and `uint8_ranges`: the file that `stream-embedder calibrate` writes, or an `.npy` of "
        "shape [2, dim]. Every reader's machine needs it at this path.",
    )
    format: Literal["json", "binary"] = Field(
        "json",
        description="`json`: an object with the vector as a list. `binary`: the vector's bytes, the rest in headers.",
    )
    include: tuple[str, ...] = Field((), description="Source fields to repeat beside the vector (json only).")

    @field_validator("include", mode="before")
    @classmethod
    def _one_field(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _precision_fits(self) -> Self:
        if self.precision in ("int8_ranges", "uint8_ranges"):
            if self.ranges is None:
                raise ValueError(
                    f"precision {self.precision} needs ranges, a file that stream-embedder calibrate writes; "
                    "precision int8 needs none"
                )
        elif self.ranges is not None:
            raise ValueError(
                f"ranges is for precision int8_ranges and uint8_ranges, not {self.precision}; leave it out"
            )
        if self.precision in ("binary", "ubinary") and self.dim is not None and self.dim % 8:
            raise ValueError(
                f"dim ({self.dim}) is not a multiple of 8, and precision {self.precision} packs 8 dimensions into a byte"
            )
        return self

    @model_validator(mode="after")
    def _include_fits(self) -> Self:
        reserved = {"id", "embedding", "dim", "precision", "scale", "model", "fingerprint", "tokens", "truncated"}
        if taken := reserved.intersection(self.include):
            raise ValueError(f"include names {', '.join(sorted(taken))}, which the output record uses itself")
        if self.include and self.format == "binary":
            raise ValueError("include needs format: json (a binary record has room for the vector alone)")
        return self

    @property
    def name(self) -> str:
        """What the output is called in positions, metrics and messages."""
        return f"kafka:{self.topic}"


class DeadLetterSettings(Section):
    """Where refused records go."""

    topic: str = Field("documents.dead", min_length=1, description="Topic for records that are refused, byte for byte.")


class DeliverySettings(Section):
    """The promise, and what it takes to keep it."""

    guarantee: Literal["exactly_once", "at_least_once"] = Field(
        "exactly_once",
        description="`exactly_once`: outputs, dead letters and offsets in one Kafka transaction. `at_least_once`: no "
        "transactions, records may repeat after a crash.",
    )
    commit_interval_s: type_seconds = Field(
        1.0, description="Seconds between commits while there is something to commit."
    )
    on_dead_letter: Literal["keep", "tombstone"] = Field(
        "keep",
        description="What happens to the older vector of a refused record's key: it stays, or a tombstone deletes it.",
    )
    allow_fingerprint_change: bool = Field(
        False, description="Write to an output whose latest records came from another model, prompt, dim or precision."
    )
    drain_timeout_s: type_seconds = Field(
        6.0, description="On SIGTERM: seconds to finish what is in flight; the rest is left for the next start."
    )
    cluster: str | None = Field(
        None,
        description="Name of this deployment in `transactional.id`; two that share a group need two names. Default: "
        "`RAY_CLUSTER_NAME`, else the host name.",
    )


class LimitSettings(Section):
    """The ceiling of what one reader holds in memory."""

    records: type_count = Field(50_000, description="Records in flight per reader; then its partitions pause.")
    bytes: type_count = Field(
        256 << 20, description="Bytes of records in flight per reader (`256MiB`); then they pause."
    )

    @field_validator("bytes", mode="before")
    @classmethod
    def _units(cls, value: object) -> object:
        return parse_bytes(value)


class KafkaSettings(Section):
    """How to reach the brokers. One connection block for source, outputs and dead letters."""

    bootstrap_servers: str = Field("localhost:9092", min_length=1, description="Brokers, as `host:port,host:port`.")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="Kafka's `security.protocol`."
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(
        None, description="Kafka's `sasl.mechanism`."
    )
    sasl_username: str | None = Field(None, description="SASL user name.")
    sasl_password: SecretStr | None = Field(None, description="SASL password. Prefer the environment variable.")
    ssl_cafile: Path | None = Field(None, description="CA certificates (PEM) that sign the brokers' certificates.")
    ssl_certfile: Path | None = Field(None, description="This client's certificate (PEM), for mutual TLS.")
    ssl_keyfile: Path | None = Field(None, description="This client's private key (PEM), for mutual TLS.")
    ssl_password: SecretStr | None = Field(None, description="Password of `ssl_keyfile`.")

    @model_validator(mode="after")
    def _sasl_is_whole(self) -> Self:
        if self.security_protocol.startswith("SASL"):
            if self.sasl_mechanism is None:
                raise ValueError(f"security_protocol {self.security_protocol} needs sasl_mechanism")
            if self.sasl_username is None or self.sasl_password is None:
                raise ValueError(f"sasl_mechanism {self.sasl_mechanism} needs sasl_username and sasl_password")
        elif self.sasl_mechanism is not None:
            raise ValueError("sasl_mechanism needs security_protocol SASL_SSL or SASL_PLAINTEXT")
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise ValueError("mutual TLS needs both ssl_certfile and ssl_keyfile")
        return self


class ReaderSettings(Section):
    """The members of the consumer group: CPU actors that read, tokenise, and write the results."""

    count: type_count = Field(1, description="Readers. More than the source has partitions are idle.")
    cpus: Annotated[float, Field(ge=0)] = Field(0.5, description="CPUs that Ray reserves for a reader.")


class PoolSettings(Section):
    """The encoder replicas."""

    min: Annotated[int, Field(ge=0)] = Field(1, description="Fewest encoder replicas.")
    max: type_count = Field(1, description="Most encoder replicas; between `min` and this, waiting calls decide.")
    gpus_per_replica: Annotated[float, Field(ge=0)] | None = Field(
        None, description="GPUs per replica, fractions allowed. Default: 1 where the cluster has GPUs, else 0."
    )
    cpus_per_replica: Annotated[float, Field(ge=0)] = Field(1.0, description="CPUs that Ray reserves per replica.")
    max_batch_tokens: type_count | Literal["auto"] = Field(
        "auto", description="Token budget of one forward pass. `auto`: 2048 on CPU, 16384 on CUDA."
    )
    in_flight: type_count = Field(2, description="Calls under way per replica: one runs while the next waits.")
    linger_ms: Annotated[float, Field(ge=0)] = Field(
        10.0, description="Milliseconds that a call which is not full waits for more texts."
    )
    call_timeout_s: type_seconds = Field(
        120.0, description="A call without an answer for so long goes to another replica."
    )

    @model_validator(mode="after")
    def _min_max(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is larger than max ({self.max})")
        if self.gpus_per_replica is not None and self.gpus_per_replica > 1 and self.gpus_per_replica % 1:
            raise ValueError(f"gpus_per_replica is a fraction up to 1, or a whole number, not {self.gpus_per_replica}")
        return self

    def batch_tokens(self, *, cuda: bool) -> int:
        """``max_batch_tokens`` with ``auto`` resolved for the device."""
        if self.max_batch_tokens == "auto":
            return 16_384 if cuda else 2_048
        return self.max_batch_tokens


class RaySettings(Section):
    """Which Ray cluster ``run`` uses."""

    address: str | None = Field(
        None,
        description="A running cluster, `auto` or `host:6379`. Default: Ray is started on this machine.",
    )


class Settings(BaseSettings):
    """All settings of a pipeline. Sources, later ones win: YAML file, environment, flags."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=ENV_PREFIX, env_nested_delimiter="__", validate_default=True
    )

    model: ModelSettings = ModelSettings()
    source: SourceSettings = SourceSettings()
    outputs: tuple[KafkaOutput, ...] = ()
    dead_letter: DeadLetterSettings = DeadLetterSettings()
    delivery: DeliverySettings = DeliverySettings()
    limits: LimitSettings = LimitSettings()
    kafka: KafkaSettings = KafkaSettings()
    readers: ReaderSettings = ReaderSettings()
    pool: PoolSettings = PoolSettings()
    ray: RaySettings = RaySettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take what is given and nothing else: this process's environment is read by ``pipelines.cli`` alone."""
        return (init_settings,)

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        budget = self.pool.max_batch_tokens
        if self.model.max_tokens and budget != "auto" and self.model.max_tokens > budget:
            raise ValueError(
                f"model.max_tokens ({self.model.max_tokens}) is larger than pool.max_batch_tokens ({budget}): "
                "such a text would fit no batch"
            )
        if self.source.format == "text":
            if self.source.text != SourceSettings.model_fields["text"].default:
                raise ValueError("source.text names fields, which source.format: text does not have; leave it out")
            if self.source.id is not None:
                raise ValueError("source.id names fields, which source.format: text does not have; leave it out")
            if any(output.include for output in self.outputs):
                raise ValueError("outputs.include names fields, which source.format: text does not have; leave it out")
        names = [output.name for output in self.outputs]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two outputs write to {', '.join(sorted(twice))}; give each its own topic")
        written = {output.topic for output in self.outputs} | {self.dead_letter.topic}
        if loop := written.intersection(self.source.topics):
            raise ValueError(f"{', '.join(sorted(loop))} is both read and written: the pipeline would feed itself")
        if self.source.pattern is not None:
            for topic in sorted(written):
                if re.fullmatch(self.source.pattern, topic):
                    raise ValueError(f"source.pattern matches {topic}, which the pipeline writes: it would feed itself")
        if self.dead_letter.topic in {output.topic for output in self.outputs}:
            raise ValueError(f"dead_letter.topic {self.dead_letter.topic} is also an output")
        return self

    def require_stream(self) -> None:
        """Check that the settings say what to read and where to write, which ``run`` and ``check`` need.

        Raises:
            SettingsError: they do not.
        """
        if bool(self.source.topics) == bool(self.source.pattern):
            raise SettingsError("source.topics or source.pattern is needed, and one of them only")
        if not self.outputs:
            raise SettingsError(
                "outputs is empty: say where the embeddings go, such as outputs: [{kind: kafka, topic: vectors}]"
            )
