"""The chart's objects on a real API server, and the pods that come of them, in a namespace that enforces ``restricted``.

Go takes minutes to build the server, once: make test-deploy API_SERVER=1.
"""

from __future__ import annotations

import copy
import os
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from tests.deploy import render as chart
from tests.deploy import tools
from tests.deploy.api_server import ApiServer, NotTaken
from tests.deploy.render import EXAMPLES, Rendered
from tests.deploy.values_schema import CHART

pytestmark = [pytest.mark.deploy, pytest.mark.usefixtures("helm", "schemas")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    if not os.environ.get("API_SERVER"):
        pytest.skip("an API server takes Go some minutes to build, once: make test-deploy API_SERVER=1")
    tools.required(tools.etcd)
    tools.required(tools.api_server)
    with ApiServer(tmp_path_factory.mktemp("api")) as running:
        yield running


@pytest.fixture
def namespace(server: ApiServer) -> str:
    name = f"embedding-{uuid.uuid4().hex[:8]}"
    server.add_namespace(name)
    return name


def pods(rendered: Rendered) -> dict[str, dict[str, Any]]:
    """As KubeRay makes them: an autoscaler beside the head, before a worker a container that waits for it, a job's submitter."""
    found = {}
    for name, template in copy.deepcopy(rendered.pods).items():
        spec = template["spec"]
        own = spec["containers"][0]
        if name == "head":
            options = rendered.cluster["autoscalerOptions"]
            beside = {key: options[key] for key in ("securityContext", "resources", "env", "volumeMounts")}
            spec["containers"].append({"name": "autoscaler", "image": own["image"], **beside})
        else:
            waiting = {key: own[key] for key in ("image", "env", "volumeMounts", "securityContext")}
            spec.setdefault("initContainers", []).append({"name": "wait-gcs-ready", **waiting})
        found[name] = pod(name, template)
    for job in rendered.of("RayJob"):
        found["submitter"] = pod("submitter", copy.deepcopy(job["spec"]["submitterPodTemplate"]))
    return found


def pod(name: str, template: dict[str, Any]) -> dict[str, Any]:
    metadata = {**template["metadata"], "name": f"{chart.RELEASE}-{name}"}
    spec = {**template["spec"], "restartPolicy": "Never"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_the_server_takes_every_object_of_an_example_and_restricted_the_pods_that_come_of_it(
    name: str, server: ApiServer, namespace: str
) -> None:
    rendered = chart.render(EXAMPLES[name])
    for made in rendered.of("ServiceAccount"):
        server.create(made, namespace)
    accounts = rendered.of("ServiceAccount")
    for made in (made for made in rendered.objects if made not in accounts):
        server.create(made, namespace, dry_run=True)
    templates = pods(rendered)
    assert ("submitter" in templates) == bool(rendered.of("RayJob")) and len(templates) > 1
    for made in templates.values():
        server.create(made, namespace, dry_run=True)
    assert server.all("v1", "Pod", namespace) == [], "a dry run makes nothing"


def test_helm_installs_upgrades_rolls_back_and_uninstalls(server: ApiServer, namespace: str) -> None:
    """Beyond a dry run: what is stored, and what of it an upgrade changes."""
    chosen = ["books", str(CHART), "-f", str(EXAMPLES["gpu-from-zero"])]

    def helm(*words: str) -> str:
        return chart.helm(*words, "--namespace", namespace, "--kubeconfig", str(server.kubeconfig()))

    def limits() -> tuple[int, str]:
        (service,) = server.all("ray.io/v1", "RayService", namespace)
        (group,) = [one for one in service["spec"]["rayClusterConfig"]["workerGroupSpecs"] if one["groupName"] == "gpu"]
        text = group["template"]["metadata"]["annotations"]["stream-embedder/pipeline.yaml"]
        return group["maxReplicas"], yaml.safe_load(text)["pool"]["max"]

    assert "STATUS: deployed" in helm("install", *chosen)
    assert limits() == (16, 16)
    helm("upgrade", *chosen, "--set", "pipeline.pool.max=5")
    assert limits() == (5, 5)
    helm("rollback", "books", "1")
    assert limits() == (16, 16)
    kinds = (("networking.k8s.io/v1", "NetworkPolicy"), ("monitoring.coreos.com/v1", "PodMonitor"))
    assert [len(server.all(*kind, namespace)) for kind in kinds] == [1, 1]
    assert server.all("v1", "Pod", namespace) == [], "the pod of helm test is made when it is asked for"
    helm("uninstall", "books")
    assert [server.all(*kind, namespace) for kind in (("ray.io/v1", "RayService"), *kinds)] == [[], [], []]
    # KubeRay's job that takes the cluster's keys out of Redis comes now, and is the head's pod with another command.
    head = pods(chart.render(EXAMPLES["gpu-from-zero"]))["head"]
    server.create(head, namespace, dry_run=True)


def misspelt(rendered: Rendered, change: Callable[[dict[str, Any]], None], kind: str) -> dict[str, Any]:
    made = copy.deepcopy(rendered.of(kind)[0] if kind != "Pod" else pods(rendered)["head"])
    change(made)
    return made


def _autoscaling(made: dict[str, Any]) -> None:
    cluster = made["spec"]["rayClusterConfig"]
    cluster["enableInTreeAutoscalling"] = cluster.pop("enableInTreeAutoscaling")


def _version(made: dict[str, Any]) -> None:
    made["spec"]["rayClusterConfig"]["autoscalerOptions"]["version"] = "v3"


def _probe(made: dict[str, Any]) -> None:
    container = made["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    container["livenesProbe"] = container.pop("livenessProbe")


def _policy(made: dict[str, Any]) -> None:
    made["spec"]["policyType"] = made["spec"].pop("policyTypes")


def _endpoints(made: dict[str, Any]) -> None:
    made["spec"]["podMetricsEndpoint"] = made["spec"].pop("podMetricsEndpoints")


def _rules(made: dict[str, Any]) -> None:
    made["spec"]["groups"][0]["rules"][0]["exprs"] = "1"


def _ports(made: dict[str, Any]) -> None:
    made["spec"]["containers"][0]["ports"][0]["containerPort"] = 80800


def _autoscaler(made: dict[str, Any]) -> None:
    del made["spec"]["containers"][1]["securityContext"]


def _root(made: dict[str, Any]) -> None:
    made["spec"]["securityContext"]["runAsNonRoot"] = False


def _volume(made: dict[str, Any]) -> None:
    made["spec"]["volumes"].append({"name": "host", "hostPath": {"path": "/"}})


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("RayService", _autoscaling, "unknown field .*enableInTreeAutoscalling"),
        ("RayService", _version, "Unsupported value: .v3."),
        ("RayService", _probe, "unknown field .*livenesProbe"),
        ("NetworkPolicy", _policy, "unknown field .*policyType"),
        ("PodMonitor", _endpoints, "unknown field .*podMetricsEndpoint"),
        ("PrometheusRule", _rules, "unknown field .*exprs"),
        ("Pod", _ports, "must be between 1 and 65535"),
        ("Pod", _autoscaler, "violates PodSecurity .restricted:latest.*autoscaler"),
        ("Pod", _root, "violates PodSecurity .restricted:latest.*runAsNonRoot"),
        ("Pod", _volume, "violates PodSecurity .restricted:latest.*hostPath"),
    ],
)
def test_the_server_refuses_what_does_not_fit(
    kind: str, change: Callable[[dict[str, Any]], None], said: str, server: ApiServer, namespace: str
) -> None:
    rendered = chart.render(EXAMPLES["gpu-from-zero"])
    for account in rendered.of("ServiceAccount"):
        server.create(account, namespace)
    server.create(misspelt(rendered, lambda _: None, kind), namespace, dry_run=True)
    with pytest.raises(NotTaken, match=said):
        server.create(misspelt(rendered, change, kind), namespace, dry_run=True)
