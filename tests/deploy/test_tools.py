"""The image, the compose file and the alerts, as the tools that know them see them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.deploy import tools
from tests.deploy.values_schema import CHART

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
