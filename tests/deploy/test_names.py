"""What deploy/ names exists: metrics, settings, variables, values, versions. Without any program but openssl."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipelines import configure
from pipelines.configure import keys as settings_keys
from tests.deploy.render import EXAMPLES
from tests.deploy.values_schema import CHART, FILE, secrets, text
from workers import metrics
from workers.settings import ENV_PREFIX, Settings

ROOT = CHART.parents[2]
DEPLOY = ROOT / "deploy"
ALERTS = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
DASHBOARD = json.loads((CHART / "files" / "dashboard.json").read_text())
README = (DEPLOY / "README.md").read_text()

METRICS = {found.name: found for found in vars(metrics).values() if isinstance(found, metrics.Metric)}
# What Prometheus and the PodMonitor add to every series.
SCRAPED = {"namespace", "pipeline", "pod", "le"}


def expressions() -> Iterator[str]:
    for group in ALERTS["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))


def series(expression: str) -> Iterator[tuple[str, metrics.Metric | None]]:
    """The series of ours that an expression names, and the metric that makes them."""
    for name in re.findall(rf"\bray_{metrics.PREFIX}(\w+)", expression):
        metric = METRICS.get(name)
        stem = re.sub("_(bucket|sum|count)$", "", name)
        if metric is None and stem != name and stem in METRICS and METRICS[stem].kind == "histogram":
            metric = METRICS[stem]
        elif metric is not None and metric.kind == "histogram":
            metric = None  # of a histogram Prometheus has no series under its own name
        yield name, metric


# ---- metrics


def test_every_metric_in_the_alerts_and_the_dashboard_exists_with_its_labels() -> None:
    found = 0
    for expression in expressions():
        allowed = set(SCRAPED)
        for name, metric in series(expression):
            assert metric is not None, f"{name} in {expression}"
            allowed.update(metric.labels)
            found += 1
        for grouped in re.findall(r"by \(([^)]*)\)", expression):
            assert {label.strip() for label in grouped.split(",")} <= allowed, expression
    assert found > 60


def test_rates_are_of_counters_and_levels_of_gauges() -> None:
    for expression in expressions():
        for name, metric in series(expression):
            rated = re.search(rf"(rate|increase)\(ray_{metrics.PREFIX}{name}\{{", expression)
            assert metric is not None
            if metric.kind == "gauge":
                assert not rated, expression
            elif name.endswith(("_bucket", "_sum", "_count")):
                assert rated, expression


def test_rays_own_metrics_on_the_dashboard_exist() -> None:
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent / "dashboard" / "modules" / "reporter" / "reporter_agent.py"
    declared = set(re.findall(r'^    "(node_\w+)": Gauge\(', source.read_text(), re.MULTILINE))
    named = {name for text in expressions() for name in re.findall(r"\bray_(node_\w+)", text)}
    assert named
    assert named <= declared


def test_every_alert_is_seen_to_fire_and_is_in_the_readme() -> None:
    tests = yaml.safe_load((Path(__file__).with_name("alerts_test.yaml")).read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    names = {rule["alert"] for group in ALERTS["groups"] for rule in group["rules"]}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == names
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} <= names
    assert set(re.findall(r"`(StreamEmbedder\w+)`", README)) == names


def test_the_dashboards_panels_have_a_place_and_a_description_each() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"] and panel["targets"], panel["title"]
            assert all('namespace="$namespace",pipeline="$pipeline"' in one["expr"] for one in panel["targets"])


# ---- settings


def test_the_values_schema_is_the_one_of_the_settings() -> None:
    assert FILE.read_text() == text(), "run: python -m tests.deploy.values_schema"


def merged(base: Any, over: Any) -> Any:
    """Values as Helm merges them."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return base | {key: merged(base.get(key), value) for key, value in over.items()}


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_the_examples_fit_the_schema_and_are_pipelines(name: str, tmp_path: Path) -> None:
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    values = yaml.safe_load(EXAMPLES[name].read_text())
    jsonschema.validate(merged(defaults, values), json.loads(FILE.read_text()))
    file = tmp_path / "pipeline.yaml"
    file.write_text(yaml.safe_dump(values["pipeline"]))
    given = {item["name"]: "a secret" for item in values.get("secretEnv", ()) if item["name"] in secrets()}
    loaded = configure.load(file, [], given).settings
    loaded.require_batch() if values.get("kind") == "batch" else loaded.require_stream()


def test_the_schema_takes_what_the_settings_take(tmp_path: Path) -> None:
    written = """
    source: {topics: documents, text: body}
    outputs: [{topic: vectors, include: title}]
    limits: {bytes: 64 MiB}
    kafka: {bootstrap_servers: "a:1"}
    """
    file = tmp_path / "pipeline.yaml"
    file.write_text(written)
    configure.load(file, [], {}).settings.require_stream()
    jsonschema.validate({"pipeline": yaml.safe_load(written)}, json.loads(FILE.read_text()))


def test_the_pipelines_beside_the_chart_are_pipelines() -> None:
    compose = DEPLOY / "compose" / "pipeline.yaml"
    for file in [compose, *sorted((DEPLOY / "examples").glob("*.yaml"))]:
        configure.load(file, [], {}).settings.require_stream()
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    configure.load(compose, [], services["worker"]["environment"])


def files() -> Iterator[Path]:
    for path in sorted(DEPLOY.rglob("*")):
        if path.is_file() and path.name not in ("values.schema.json", "dashboard.json"):
            yield path


def test_every_variable_of_ours_is_a_settings() -> None:
    known = {ENV_PREFIX + key.replace(".", "__").upper() for key, _ in settings_keys()} | configure.OTHER_VARIABLES
    for path in files():
        named = set(re.findall(rf"\b{ENV_PREFIX}[A-Z0-9_]+\b", path.read_text()))
        assert named <= known, path


def test_every_setting_that_is_named_exists() -> None:
    known = {key for key, _ in settings_keys("N")}
    known |= {key.rsplit(".", parts)[0] for key in known for parts in range(1, key.count(".") + 1)}
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    sections = "|".join(Settings.model_fields)
    found = 0
    for path in (path for path in files() if path.suffix in (".md", ".yaml", ".tpl", ".txt")):
        named = re.findall(rf"(?<![\w./{{$-])\$?(pipeline\.)?((?:{sections})(?:\.[a-zA-Z_]+)+)", path.read_text())
        for where, key in named:
            is_value = not where and _exists(values, key.split("."))  # readers is a section of both
            is_setting = re.sub(r"^outputs\.(?!N)", "outputs.N.", key) in known
            assert is_value or is_setting or key in ("ray.io", "registry.example", "batch.yaml"), (
                f"{key} in {path.name}"
            )
            found += is_setting
    assert found > 20


# ---- values


def _exists(values: Any, parts: list[str]) -> bool:
    for part in parts:
        if values in ({}, []):
            return True  # the user's
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


def test_the_templates_use_values_that_there_are_and_all_of_them() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    templates = "".join(path.read_text() for path in (CHART / "templates").rglob("*") if path.is_file())
    used = re.findall(r"(?:\$?\.|\$root\.|\$)[Vv]alues\.([A-Za-z.]+)", templates)
    assert used
    for key in used:
        assert _exists(values, key.rstrip(".").split(".")), key
    assert set(values) == {key.split(".")[0] for key in used}


def test_values_in_the_readme_exist() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    sections = "|".join(key for key in values if key not in ("pipeline", "readers"))
    found = re.findall(rf"`((?:{sections})(?:\.[A-Za-z]+)+)", README)
    assert found
    for key in found:
        assert _exists(values, key.split(".")), key


# ---- versions


def test_versions_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert chart["version"] == chart["appVersion"] == project["version"]
    assert f"ARG VERSION={project['version']}\n" in dockerfile
    assert f"\nray=={chart['annotations']['stream-embedder/ray']}\n" in (ROOT / "requirements.lock").read_text()
    (uv,) = re.findall(r"^UV_VERSION := (\S+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert f"ARG UV_VERSION={uv}\n" in dockerfile
    (kafka,) = re.findall(r"<version>(4\.\S+)</version>", (ROOT / "pipelines" / "broker-pom.xml").read_text())
    assert f"image: apache/kafka:{kafka}\n" in (DEPLOY / "compose.yaml").read_text()


def test_the_image_is_built_of_what_is_there_and_of_nothing_else() -> None:
    listed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert all((ROOT / name).exists() for name in listed)
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert {name for line in copied for name in line.split()} == set(listed)
    targets = set(re.findall(r"^FROM \S+ AS (\w+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE))
    assert {"cpu", "cuda"} <= targets
    assert yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["worker"]["build"]["target"] in targets


# ---- the certificate of a pod


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates, and is not on the PATH")
@pytest.mark.parametrize(
    ("part", "names"), [("head", ["localhost", "books-head-svc.books"]), ("readers", ["localhost"])]
)
def test_a_pods_certificate_is_the_cas_for_its_own_addresses(part: str, names: list[str], tmp_path: Path) -> None:
    ca, out = tmp_path / "ca", tmp_path / "out"
    ca.mkdir()
    out.mkdir()
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"]
    subprocess.run([*made, "-keyout", ca / "ca.key", "-out", ca / "ca.crt"], check=True, capture_output=True)
    given = {"PATH": os.environ["PATH"], "POD_IP": "10.1.2.3", "FQ_RAY_IP": "books-head-svc.books"}
    script = CHART / "files" / "certificate.sh"
    subprocess.run(["bash", script, ca, out, "7", part], env=given, check=True, capture_output=True)
    assert {path.name for path in out.iterdir()} == {"tls.crt", "tls.key", "ca.crt"}
    assert (out / "tls.key").stat().st_mode & 0o077 == 0
    for purpose in ("sslserver", "sslclient"):
        verify = ["openssl", "verify", "-purpose", purpose, "-CAfile", out / "ca.crt", out / "tls.crt"]
        subprocess.run(verify, check=True, capture_output=True)
    shown = subprocess.run(
        ["openssl", "x509", "-in", out / "tls.crt", "-noout", "-ext", "subjectAltName"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert re.findall(r"DNS:([\w.-]+)", shown) == names
    assert re.findall(r"IP Address:([\d.]+)", shown) == ["127.0.0.1", "10.1.2.3"]
