"""The chart's objects, created on a real API server; and the pods that KubeRay makes of them, in a namespace that enforces
the profile ``restricted``. Go takes minutes to build the server: make test-deploy API_SERVER=1."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.deploy import render as chart
from tests.deploy import tools
from tests.deploy.api_server import ApiServer, NotTaken
from tests.deploy.render import EXAMPLES, Rendered

pytestmark = [pytest.mark.deploy, pytest.mark.usefixtures("helm", "schemas")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    tools.required(tools.api_server)
    tools.required(tools.etcd)
    with ApiServer(tmp_path_factory.mktemp("api")) as running:
        yield running


@pytest.fixture
def namespace(server: ApiServer) -> str:
    name = f"embedding-{uuid.uuid4().hex[:8]}"
    server.add_namespace(name)
    return name


def pods(rendered: Rendered) -> Iterator[dict[str, Any]]:
    """As KubeRay makes them: the autoscaler beside the head, and a container that waits for it before a worker."""
    for name, template in copy.deepcopy(rendered.pods).items():
        spec = template["spec"]
        spec["restartPolicy"] = "Never"
        own = spec["containers"][0]
        if name == "head":
            options = rendered.cluster["autoscalerOptions"]
            beside = {key: options[key] for key in ("securityContext", "resources", "env", "volumeMounts")}
            spec["containers"].append({"name": "autoscaler", "image": own["image"], **beside})
        else:
            waiting = {key: own[key] for key in ("image", "env", "volumeMounts", "securityContext")}
            spec.setdefault("initContainers", []).append({"name": "wait-gcs-ready", **waiting})
        metadata = {**template["metadata"], "name": f"{chart.RELEASE}-{name}"}
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_the_server_takes_every_object_and_the_pods_that_come_of_it(
    name: str, server: ApiServer, namespace: str
) -> None:
    rendered = chart.render(EXAMPLES[name])
    first = rendered.of("ServiceAccount")  # a pod's has to be there
    for made in [*first, *(made for made in rendered.objects if made not in first), *pods(rendered)]:
        made["metadata"].pop("namespace", None)
        server.create(made, namespace)


def test_the_server_refuses_what_does_not_fit(server: ApiServer, namespace: str) -> None:
    rendered = chart.render(EXAMPLES["small"])
    for account in rendered.of("ServiceAccount"):
        server.create(account, namespace)
    service = rendered.of("RayService")[0]
    service["spec"]["rayClusterConfig"]["enableInTreeAutoscalling"] = True
    with pytest.raises(NotTaken, match="unknown field"):
        server.create(service, namespace)
    head = next(pods(rendered))
    head["spec"]["containers"][1]["securityContext"] = {}
    with pytest.raises(NotTaken, match="violates PodSecurity"):
        server.create(head, namespace)
