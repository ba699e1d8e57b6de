"""The chart's values.schema.json, made of the settings: ``python -m tests.deploy.values_schema`` writes it.

Comes in: the settings' own JSON schema. Goes out: the schema that Helm holds the values against. Never here: a default, which
values.yaml has.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from pipelines.configure import keys
from workers.settings import ENV_PREFIX, Settings

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "stream-embedder"
FILE = CHART / "values.schema.json"

# Settings that the chart decides, or that belong to a run outside of it.
DECIDED = {"pool.gpus_per_replica", "pool.cpus_per_replica", "delivery.cluster", "queries.host", "queries.port"}
DECIDED_SECTIONS = {"ray"}

type_schema = dict[str, Any]


def secrets() -> list[str]:
    """The environment variables of the settings that are secret."""
    found = []
    for key, field in keys():
        if SecretStr in (field.annotation, *getattr(field.annotation, "__args__", ())):
            found.append(ENV_PREFIX + key.replace(".", "__").upper())
    return found


# ------------------------------------------------------------------ the settings


def _settings() -> tuple[type_schema, type_schema]:
    """The schema of ``pipeline``, and its definitions."""
    schema = Settings.model_json_schema(ref_template="#/definitions/{model}")
    definitions = {name: _section(name, part) for name, part in schema.pop("$defs").items()}
    sections = {name: part for name, part in schema["properties"].items() if name not in DECIDED_SECTIONS}
    for part in sections.values():
        part.pop("default", None)
        part.pop("title", None)
    definitions["Settings"] = {
        "type": "object",
        "additionalProperties": False,
        "required": ["outputs"],
        "properties": sections,
    }
    for name in DECIDED_SECTIONS:
        definitions.pop(f"{name.capitalize()}Settings")
    return {"$ref": "#/definitions/Settings"}, definitions


def _section(name: str, part: type_schema) -> type_schema:
    section = name.removesuffix("Settings").lower()
    properties = {}
    for key, field in part["properties"].items():
        secret = any(kind.get("format") == "password" for kind in (field, *field.get("anyOf", ())))
        if secret or f"{section}.{key}" in DECIDED:
            continue
        field.pop("title", None)
        field.pop("default", None)
        if key in ("topics", "include", "inputs") and field.get("type") == "array":
            field = field | {"type": ["array", "string"]}  # noqa: PLW2901 - one may stand without a list
        properties[key] = _any_bytes(field) if key == "bytes" else field
    if name == "ReaderSettings":
        properties["cpus"] = {"type": "integer", "minimum": 1, "description": "CPUs of a reader, whole in this chart."}
    return {key: value for key, value in part.items() if key != "title"} | {"properties": properties}


def _any_bytes(field: type_schema) -> type_schema:
    """A number of bytes may have a unit."""
    words = {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*([kKmMgG][iI]?)?[bB]?\s*$"}
    return {"anyOf": [{"type": "integer", "minimum": 1}, words], "description": field["description"]}


# ------------------------------------------------------------------ the chart


def _object(required: tuple[str, ...] = (), **properties: Any) -> type_schema:
    schema: type_schema = {"type": "object", "additionalProperties": False, "properties": properties}
    return schema | ({"required": list(required)} if required else {})


def _list(items: type_schema) -> type_schema:
    return {"type": "array", "items": items}


TEXT: type_schema = {"type": "string"}
NAME: type_schema = {"type": "string", "minLength": 1}
FLAG: type_schema = {"type": "boolean"}
COUNT: type_schema = {"type": "integer", "minimum": 0}
SECONDS: type_schema = {"type": "integer", "minimum": 1}
QUANTITY: type_schema = {"type": "string", "pattern": "^[0-9]+(Ki|Mi|Gi)$"}
STORAGE: type_schema = {"type": "string", "pattern": "^[0-9]+(Ki|Mi|Gi|Ti)$"}
# Kubernetes' own, which it checks itself.
FREE: type_schema = {"type": "object"}
FREE_LIST: type_schema = _list(FREE)
TEXTS: type_schema = {"type": "object", "additionalProperties": TEXT}
RESOURCES = _object(requests=FREE, limits=FREE)


def _group(**more: type_schema) -> type_schema:
    """A section of a kind of pods."""
    own = dict(
        resources=RESOURCES,
        objectStoreMemory=QUANTITY,
        nodeSelector=TEXTS,
        tolerations=FREE_LIST,
        affinity=FREE,
        topologySpreadConstraints=FREE_LIST,
        priorityClassName=TEXT,
        podAnnotations=TEXTS,
        podLabels=TEXTS,
        extraVolumes=FREE_LIST,
        extraVolumeMounts=FREE_LIST,
    )
    return _object(**own, **more)


def _secret_env() -> type_schema:
    """A variable of ours has to be a secret that there is; any other is somebody else's."""
    ours = {"enum": secrets()}
    other = {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$", "not": {"pattern": f"^{ENV_PREFIX}"}}
    item = _object(("name", "secret", "key"), secret=NAME, key=NAME, encoders=FLAG, name={"anyOf": [ours, other]})
    return _list(item)


def _files() -> type_schema:
    token = _object(("audience",), audience=NAME, expirationSeconds={"type": "integer", "minimum": 600})
    path = {"type": "string", "pattern": "^/."}
    kinds = [{"required": ["secret"]}, {"required": ["configMap"]}, {"required": ["token"]}]
    return _list(
        _object(("path",), path=path, secret=NAME, configMap=NAME, token=token, encoders=FLAG) | {"oneOf": kinds}
    )


def _kinds() -> type_schema:
    """What a stream needs of its pipeline, and what a batch does."""
    inputs = {"properties": {"batch": {"required": ["inputs"]}}, "required": ["batch"]}
    topics = {"properties": {"source": {"anyOf": [{"required": ["topics"]}, {"required": ["pattern"]}]}}}
    return {
        "if": {"properties": {"kind": {"const": "batch"}}, "required": ["kind"]},
        "then": {"properties": {"pipeline": inputs}},
        "else": {"properties": {"pipeline": topics | {"required": ["source", "kafka"]}}},
    }


def values_schema() -> type_schema:
    """The whole of it."""
    pipeline, definitions = _settings()
    selectors = _object(namespaceSelector=FREE, podSelector=FREE)
    secret = _object(name=TEXT, key=NAME)
    above_zero = {"type": "number", "exclusiveMinimum": 0}
    extra_env = FREE | {
        "required": ["name"],
        "properties": {"name": {"type": "string", "not": {"pattern": f"^({ENV_PREFIX}|RAY_GRACEFUL_)"}}},
    }
    properties = dict(
        kind={"enum": ["stream", "batch"]},
        job=_object(
            backoffLimit=COUNT,
            ttlSecondsAfterFinished=COUNT,
            activeDeadlineSeconds={"type": ["integer", "null"], "minimum": 1},
        ),
        nameOverride=TEXT,
        fullnameOverride=TEXT | {"maxLength": 41, "pattern": "^([a-z][a-z0-9-]*)?$"},
        image=_object(
            ("repository",),
            repository=NAME,
            tag=TEXT,
            digest={"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
            pullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
            pullSecrets=_list(NAME),
        ),
        pipeline=pipeline,
        secretEnv=_secret_env(),
        extraEnv=_list(extra_env),
        files=_files(),
        logToStderr=FLAG,
        modelCache=_object(
            kind={"enum": ["emptyDir", "pvc"]},
            sizeLimit=STORAGE,
            pvc=_object(existingClaim=TEXT, size=STORAGE, storageClassName=TEXT, accessModes=_list(NAME)),
        ),
        head=_group(),
        autoscaler=_object(resources=RESOURCES),
        readers=_group(),
        gpu=_group(
            enabled=FLAG,
            resource=NAME,
            perPod={"type": "integer", "minimum": 1},
            perReplica={"anyOf": [{"type": "integer", "minimum": 1}, above_zero | {"maximum": 1}]},
            minPods=COUNT,
            maxPods={"type": ["integer", "null"], "minimum": 1},
            idleTimeoutSeconds=SECONDS,
            drainSeconds=SECONDS,
            runtimeClassName=TEXT,
        ),
        workers=_group(
            minPods=COUNT,
            maxPods={"type": "integer", "minimum": 1},
            cpusPerReplica=above_zero,
            idleTimeoutSeconds=SECONDS,
        ),
        rayClusterDeletionDelaySeconds=COUNT,
        gcsFaultTolerance=_object(
            enabled=FLAG,
            redisAddress={"type": "string", "pattern": "^(rediss?://.+:[0-9]+)?$"},
            usernameSecret=secret,
            passwordSecret=secret,
        ),
        auth=_object(token=_object(enabled=FLAG, existingSecret=TEXT)),
        tls=_object(enabled=FLAG, caSecret=TEXT, days={"type": "integer", "minimum": 1}),
        serviceAccount=_object(annotations=TEXTS),
        podSecurityContext=FREE,
        securityContext=FREE,
        networkPolicy=_object(
            enabled=FLAG, operator=selectors, prometheus=selectors, ingress=FREE_LIST, egress=FREE_LIST
        ),
        monitoring=_object(
            podMonitor=_object(enabled=FLAG, interval=NAME, labels=TEXTS, keep=NAME),
            rules=_object(enabled=FLAG, labels=TEXTS),
            dashboard=_object(enabled=FLAG, labels=TEXTS, annotations=TEXTS),
        ),
        extraObjects=FREE_LIST,
        **{"global": FREE},
    )
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Values of the chart stream-embedder"}
    return head | _object(("pipeline",), **properties) | _kinds() | {"definitions": definitions}


def text() -> str:
    """The file."""
    return json.dumps(values_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
