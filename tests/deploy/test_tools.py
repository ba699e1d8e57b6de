"""The image, the compose file and the alerts, as the tools that know them see them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.deploy import tools
from tests.deploy.prometheus import DASHBOARD, Prometheus, expressions
from tests.deploy.values_schema import CHART
from workers import metrics

pytestmark = pytest.mark.deploy

DEPLOY = CHART.parents[1]


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    hadolint = tools.required(tools.hadolint)
    done = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_compose_file_fits_its_specification() -> None:
    schema = json.loads((tools.required(tools.module, *tools.COMPOSE) / "schema" / "compose-spec.json").read_text())
    made = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(made)] == []
    made["services"]["worker"]["comand"] = made["services"]["worker"].pop("command")
    assert list(jsonschema.Draft7Validator(schema).iter_errors(made))


def test_prometheus_takes_the_alerts_and_they_fire_when_they_should(tmp_path: Path) -> None:
    promtool = tools.required(tools.promtool)
    shutil.copy(CHART / "files" / "alerts.yaml", tmp_path)
    shutil.copy(Path(__file__).with_name("alerts_test.yaml"), tmp_path)
    for command in (["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"]):
        done = subprocess.run(
            [promtool, *command], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_configuration_of_the_compose_file() -> None:
    promtool = tools.required(tools.promtool)
    file = DEPLOY / "compose" / "prometheus.yaml"
    done = subprocess.run([promtool, "check", "config", file], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def exposition(start: int, minutes: int) -> str:
    """Every metric of ours, and Ray's that the dashboard shows, as a scrape each minute would have found them."""
    lines = []
    found = [metric for metric in vars(metrics).values() if isinstance(metric, metrics.Metric)]
    for metric in found:
        name = f"ray_{metrics.PREFIX}{metric.name}"
        labels = ",".join(['namespace="here",pipeline="books",pod="a"', *(f'{label}="x"' for label in metric.labels)])
        lines.append(f"# TYPE {name.removesuffix('_total')} {metric.kind}")
        for minute in range(minutes):
            at = start + 60 * minute
            if metric.kind == "histogram":
                lines += [f'{name}_bucket{{{labels},le="{le}"}} {minute * 5} {at}' for le in metric.buckets]
                lines.append(f'{name}_bucket{{{labels},le="+Inf"}} {minute * 5} {at}')
                lines += [f"{name}_sum{{{labels}}} {minute} {at}", f"{name}_count{{{labels}}} {minute * 5} {at}"]
            else:
                lines.append(f"{name}{{{labels}}} {minute + 1} {at}")
    for name in ("node_gpus_utilization", "node_gram_used", "node_mem_used", "node_cpu_utilization"):
        lines.append(f"# TYPE ray_{name} gauge")
        lines += [f'ray_{name}{{namespace="here",pipeline="books",pod="a"}} 5 {start + 60 * n}' for n in range(minutes)]
    return "\n".join([*lines, "# EOF", ""])


def test_every_panel_of_the_dashboard_gets_an_answer_from_a_real_prometheus(tmp_path: Path) -> None:
    promtool = tools.required(tools.promtool)
    tools.required(tools.prometheus)
    minutes = 30
    start = int(time.time()) // 60 * 60 - 60 * minutes
    (tmp_path / "data.om").write_text(exposition(start, minutes))
    command = [promtool, "tsdb", "create-blocks-from", "openmetrics", "data.om", "data"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    at = start + 60 * (minutes - 1)
    with Prometheus(tmp_path) as running:
        for expression in (expression for found in expressions("here", "books").values() for expression in found):
            values = [float(found["value"][1]) for found in running.ask(expression, at)]
            assert values, expression
            assert all(value == value for value in values), f"{expression} is not a number"  # noqa: PLR0124
        for variable in json.loads(DASHBOARD.read_text())["templating"]["list"][1:]:
            (series, label) = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"]).groups()
            asked = running.ask(series.replace("$namespace", "here"), at)
            assert {found["metric"][label] for found in asked} <= {"here", "books"}
