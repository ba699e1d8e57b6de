"""Kubernetes objects held against the schemas of what takes them: the API server's, KubeRay's, the Prometheus operator's.

Comes in: an object. Goes out: what is wrong with it. Stricter than a server in one thing: no field that the schema does not
know, which a server would drop or warn of.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tests.deploy import tools

_ANY_INT_OR_STRING = {"type": ["integer", "string"]}
_QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"


def _closed(schema: Any) -> Any:
    """A schema as JSON Schema has it, and closed: no property that is not listed."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string") or schema.get("format") == "int-or-string":
        return _ANY_INT_OR_STRING
    closed = {}
    for key, value in schema.items():
        if key in ("properties", "definitions"):
            closed[key] = {name: _closed(part) for name, part in value.items()}
        elif not key.startswith("x-") and key not in ("nullable", "default", "description", "example"):
            closed[key] = _closed(value)
    open_ = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if "properties" in schema and not open_:
        closed["additionalProperties"] = False
    return closed


@cache
def _builtin() -> dict[tuple[str, str], dict[str, Any]]:
    """By apiVersion and kind: the definitions of the API server's own OpenAPI."""
    folder = tools.module(*tools.KUBERNETES)
    definitions = json.loads((folder / "api" / "openapi-spec" / "swagger.json").read_text())["definitions"]
    closed = {name: _closed(part) for name, part in definitions.items()}
    closed[_QUANTITY] = {"type": ["string", "number"]}
    found = {}
    for name, part in definitions.items():
        for kind in part.get("x-kubernetes-group-version-kind", ()):
            version = f"{kind['group']}/{kind['version']}".lstrip("/")
            found[version, kind["kind"]] = {"$ref": f"#/definitions/{name}", "definitions": closed}
    return found


@cache
def custom_definitions() -> tuple[dict[str, Any], ...]:
    """The CustomResourceDefinitions of what the chart makes."""
    folders = (
        tools.module(*tools.KUBERAY) / "config" / "crd" / "bases",
        tools.module(*tools.PROMETHEUS_OPERATOR) / "example" / "prometheus-operator-crd",
    )
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found = (file for folder in folders for file in sorted(folder.glob("*.yaml")) if _wanted(file))
    return tuple(yaml.load(file.read_text(), Loader=loader) for file in found)


@cache
def _custom() -> dict[tuple[str, str], dict[str, Any]]:
    """By apiVersion and kind: the custom resources' schemas."""
    found = {}
    for spec in (definition["spec"] for definition in custom_definitions()):
        for version in spec["versions"]:
            schema = _closed(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}  # the server's own business
            found[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = schema
    return found


def _wanted(file: Path) -> bool:
    return file.stem.rpartition("_")[2] in ("rayservices", "rayjobs", "rayclusters", "podmonitors", "prometheusrules")


def mistakes(made: dict[str, Any]) -> list[str]:
    """What is wrong with an object, by where it stands; empty where nothing is."""
    key = made["apiVersion"], made["kind"]
    schema = _builtin().get(key) or _custom().get(key)
    if schema is None:
        return [f"nobody knows a {key[1]} of {key[0]}"]
    errors = jsonschema.Draft4Validator(schema).iter_errors(made)
    return [f"{made['kind']} {'.'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in errors]
