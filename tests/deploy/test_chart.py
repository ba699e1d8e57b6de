"""The chart, rendered for every example and held against what takes it. Needs helm, and for the schemas Go."""

from __future__ import annotations

import os
import re
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import configure
from tests.deploy import render as chart
from tests.deploy import schemas as held
from tests.deploy.render import EXAMPLES, STREAMS, Refused, Rendered, env, seconds
from tests.deploy.values_schema import secrets
from workers import metrics
from workers.settings import Settings

pytestmark = [pytest.mark.deploy, pytest.mark.usefixtures("helm")]

SMALL, GPU, SECURED, BATCH = (EXAMPLES[name] for name in ("small", "gpu-from-zero", "secured", "batch"))


@pytest.fixture(scope="module", params=sorted(EXAMPLES))
def example(request: pytest.FixtureRequest) -> Rendered:
    return chart.render(EXAMPLES[request.param])


@pytest.fixture(scope="module", params=STREAMS)
def streaming(request: pytest.FixtureRequest) -> Rendered:
    return chart.render(EXAMPLES[request.param])


def settings(rendered: Rendered, tmp_path: Path) -> Settings:
    """What Serve's build of the application loads on the head."""
    file = tmp_path / "pipeline.yaml"
    file.write_text(rendered.pipeline)
    given = {name: "a secret" for name in env(rendered.pods["head"]["spec"]["containers"][0]) if name in secrets()}
    loaded = configure.load(file, [], given).settings
    loaded.require_batch() if rendered.of("RayJob") else loaded.require_stream()
    return loaded


# ---- what Kubernetes and KubeRay take


def test_helm_lints_each_example() -> None:
    for file in EXAMPLES.values():
        chart.lint(file)


@pytest.mark.usefixtures("schemas")
def test_every_object_fits_its_schema(example: Rendered) -> None:
    assert [mistake for made in example.objects for mistake in held.mistakes(made)] == []


@pytest.mark.usefixtures("schemas")
def test_the_schemas_find_what_does_not_fit() -> None:
    made = chart.render(SMALL)
    container = made.pods["head"]["spec"]["containers"][0]
    container["livenesProbe"] = container.pop("livenessProbe")
    made.cluster["autoscalerOptions"]["version"] = "v3"
    (network,) = made.of("NetworkPolicy")
    network["spec"]["policyType"] = network["spec"].pop("policyTypes")
    found = " ".join(mistake for one in made.objects for mistake in held.mistakes(one))
    assert all(word in found for word in ("livenesProbe", "'v3' is not one of", "policyType"))


def test_every_object_is_named_and_labelled_by_the_release(example: Rendered) -> None:
    names = [(made["kind"], made["metadata"]["name"]) for made in example.objects]
    assert len(names) == len(set(names))
    for made in example.objects:
        assert made["metadata"]["name"].startswith(chart.RELEASE), made["kind"]
        if made["kind"] != "PodDisruptionBudget":  # an object of the user's
            assert made["metadata"]["labels"]["app.kubernetes.io/instance"] == chart.RELEASE


def test_a_batch_is_a_job_that_is_tried_again_and_another_one_for_other_settings() -> None:
    (job,) = chart.render(BATCH).of("RayJob")
    spec = job["spec"]
    assert spec["entrypoint"] == "stream-embedder batch -c /etc/stream-embedder/pipeline.yaml --ray.address auto"
    assert (spec["backoffLimit"], spec["shutdownAfterJobFinishes"]) == (3, True)
    assert [group["groupName"] for group in spec["rayClusterSpec"]["workerGroupSpecs"]] == ["gpu"]
    assert "activeDeadlineSeconds" not in spec
    (other,) = chart.render(BATCH, pipeline__pool={"max": 9}, job__activeDeadlineSeconds=86400).of("RayJob")
    assert other["metadata"]["name"] != job["metadata"]["name"]
    assert other["spec"]["activeDeadlineSeconds"] == 86400
    for pod in chart.render(BATCH).pods.values():  # the job is submitted once the pods are ready
        assert "httpGet" in pod["spec"]["containers"][0]["readinessProbe"]
    assert all(
        "AWS_SECRET_ACCESS_KEY" in env(pod["spec"]["containers"][0]) for pod in chart.render(BATCH).pods.values()
    )
    assert chart.render(BATCH).of("RayService") == chart.render(BATCH).of("Pod") == []


def test_queries_have_a_route_and_a_pod_where_they_are_asked_for() -> None:
    def made(**queries: Any) -> tuple[str, dict[str, Any]]:
        rendered = chart.render(GPU, **queries)
        (application,) = yaml.safe_load(rendered.service["serveConfigV2"])["applications"]
        (group,) = [one for one in rendered.cluster["workerGroupSpecs"] if one["groupName"] == "readers"]
        return application["route_prefix"], group

    route, group = made()
    assert (route, group["replicas"], group["minReplicas"], group["maxReplicas"]) == ("/stream-embedder", 2, 2, 2)
    route, group = made(pipeline__queries={"enabled": True})
    assert (route, group["replicas"], group["minReplicas"], group["maxReplicas"]) == ("/", 3, 3, 3)
    assert group["template"]["metadata"]["annotations"]["stream-embedder/bounds"] == "3"
    with pytest.raises(Refused, match="api_key"):
        made(pipeline__queries={"enabled": True, "api_key": "in a ConfigMap"})


def test_a_name_that_kuberay_would_refuse_is_refused_at_once() -> None:
    with pytest.raises(Refused, match="set fullnameOverride"):
        chart.render(SMALL, release="7-books")
    assert chart.render(SMALL, release="7-books", fullnameOverride="books").of("RayService")


def test_a_long_name_leaves_room_for_kuberay() -> None:
    (service,) = chart.render(SMALL, nameOverride="x" * 60).of("RayService")
    assert len(service["metadata"]["name"]) <= 41
    (job,) = chart.render(BATCH, nameOverride="x" * 60).of("RayJob")
    assert len(job["metadata"]["name"]) <= 47
    assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", service["metadata"]["name"])


# ---- values


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"reader": {}}, "reader"),
        ({"pipeline__readers": {"cuont": 2}}, "cuont"),
        ({"pipeline__outputs": [{"topic": "vectors", "dimension": 256}]}, "dimension"),
        ({"pipeline__readers": {"cpus": 0.5}}, "cpus"),
        ({"pipeline__pool": {"gpus_per_replica": 1}}, "gpus_per_replica"),
        ({"pipeline__delivery": {"cluster": "one"}}, "cluster"),
        ({"pipeline__kafka": {"bootstrap_servers": "a:1", "sasl_password": "open"}}, "sasl_password"),
        ({"secretEnv": [{"name": "STREAM_EMBEDDER_KAFKA__PASSWORD", "secret": "a", "key": "b"}]}, "secretEnv"),
        ({"extraEnv": [{"name": "STREAM_EMBEDDER_POOL__MAX", "value": "3"}]}, "extraEnv"),
        ({"files": [{"path": "/etc/a", "secret": "a", "configMap": "b"}]}, "files"),
        ({"gpu": {"enabled": True, "perReplica": 1.5}}, "perReplica"),
        ({"image__digest": "latest"}, "digest"),
        ({"modelCache__kind": "hostPath"}, "kind"),
        ({"kind": "batch"}, "batch"),
    ],
)
def test_the_schema_refuses(values: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused) as caught:
        chart.render(SMALL, **values)
    assert said in str(caught.value)
    assert "schema" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"pipeline__pool": {"max": 5}}, "take 6 CPUs, and workers.maxPods pods have 2"),
        (
            {"pipeline__queries": {"enabled": True}, "workers__resources": {"requests": {"cpu": "2"}}},
            "readers, queries and pipeline.pool.max encoders take 3 CPUs, and workers.maxPods pods have 2",
        ),
        ({"pipeline__pool": {"min": 3, "max": 2}}, "pipeline.pool.min (3) is larger than pipeline.pool.max (2)"),
        ({"workers__resources": {"requests": {"cpu": "1500m"}}}, "whole CPUs"),
        ({"gpu": {"enabled": True, "perReplica": 2}}, "gpu.perReplica (2) is more than a pod has"),
        ({"gpu": {"enabled": True, "minPods": 2}}, "gpu.minPods is larger than gpu.maxPods"),
        ({"gcsFaultTolerance__enabled": True}, "gcsFaultTolerance.redisAddress is missing"),
        ({"tls__enabled": True}, "tls.caSecret is missing"),
    ],
)
def test_the_chart_says_what_cannot_work(values: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused) as caught:
        chart.render(SMALL, **values)
    assert said in str(caught.value)


def test_without_a_pipeline_nothing_is_made() -> None:
    for kind, missing in (("stream", "source"), ("batch", "batch")):
        with pytest.raises(Refused, match=missing):
            chart.render(kind=kind)
    with pytest.raises(Refused, match="a batch has none"):
        chart.render(BATCH, monitoring__rules__enabled=True)


# ---- the pipeline


def test_the_settings_of_every_pod_are_those_that_the_values_say(example: Rendered, tmp_path: Path) -> None:
    loaded = settings(example, tmp_path)
    gpu = "gpu" in example.pods
    assert (loaded.pool.gpus_per_replica, loaded.pool.cpus_per_replica) == ((1, 0) if gpu else (0, 1))
    if example.of("RayService"):
        assert loaded.kafka.bootstrap_servers.startswith("kafka-kafka-bootstrap.kafka:")
    for name, pod in example.pods.items():
        (mounted,) = (
            mount
            for mount in pod["spec"]["containers"][0]["volumeMounts"]
            if mount["mountPath"] == "/etc/stream-embedder"
        )
        (volume,) = (one for one in pod["spec"]["volumes"] if one["name"] == mounted["name"])
        (item,) = volume["projected"]["sources"][0]["downwardAPI"]["items"]
        assert item["path"] == "pipeline.yaml", name
        assert item["fieldRef"]["fieldPath"] == "metadata.annotations['stream-embedder/pipeline.yaml']"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Serve's, at import
def test_serve_builds_the_application_of_each_example(streaming: Rendered, tmp_path: Path) -> None:
    text = streaming.service["serveConfigV2"]
    assert "import_path: pipelines.stream:app" in text
    assert "route_prefix: /stream-embedder" in text  # without one the head's proxy never gets ready
    assert "args: { config: /etc/stream-embedder/pipeline.yaml }" in text
    from pipelines import stream

    stream.build(settings(streaming, tmp_path))  # no cluster is asked: gpus_per_replica is given


def test_whatever_changes_is_another_cluster() -> None:
    def hashed(rendered: Rendered) -> Any:
        """What KubeRay 1.6 compares: all but the groups' bounds and tolerations, whose change alone it would pass over."""
        cluster = rendered.cluster
        for group in cluster["workerGroupSpecs"]:
            for name in ("replicas", "minReplicas", "maxReplicas"):
                group.pop(name)
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            group["template"]["spec"].pop("tolerations", None)
        return cluster

    before = chart.render(GPU)
    assert before.service["upgradeStrategy"] == {"type": "NewCluster"}
    changes: list[dict[str, Any]] = [
        {"gpu__maxPods": 3},
        {"gpu__minPods": 1},
        {"gpu__tolerations": []},
        {"head__tolerations": [{"key": "system", "operator": "Exists"}]},
        {"pipeline__pool": {"min": 0, "max": 17}},
        {"image__tag": "0.1.1-cuda"},
    ]
    for change in changes:
        assert hashed(chart.render(GPU, **change)) != hashed(chart.render(GPU)), change
    assert hashed(chart.render(GPU)) == hashed(before)


# ---- where actors go, and how nodes come and go


def test_readers_have_their_pods_and_encoders_theirs(tmp_path: Path) -> None:
    rendered = chart.render(GPU)
    loaded = settings(rendered, tmp_path)
    groups = {group["groupName"]: group for group in rendered.cluster["workerGroupSpecs"]}
    readers, gpu = groups["readers"], groups["gpu"]
    assert readers["minReplicas"] == readers["maxReplicas"] == loaded.readers.count == 2
    assert float(readers["rayStartParams"]["num-cpus"]) == loaded.readers.cpus
    # A reader needs a CPU, which GPU nodes have not; an encoder needs a GPU and no CPU.
    assert gpu["rayStartParams"]["num-cpus"] == "0"
    assert gpu["rayStartParams"]["num-gpus"] == "1"
    assert loaded.pool.cpus_per_replica == 0
    assert (gpu["minReplicas"], gpu["maxReplicas"]) == (0, loaded.pool.max)
    assert gpu["idleTimeoutSeconds"] == 120
    container = gpu["template"]["spec"]["containers"][0]
    assert (
        container["resources"]["limits"]["nvidia.com/gpu"] == container["resources"]["requests"]["nvidia.com/gpu"] == 1
    )
    assert gpu["template"]["spec"]["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert rendered.cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize(("per_pod", "per_replica", "most", "pods"), [(1, 0.5, 16, 8), (4, 1, 10, 3), (8, 2, 9, 3)])
def test_there_are_gpu_pods_for_all_replicas(per_pod: int, per_replica: float, most: int, pods: int) -> None:
    rendered = chart.render(GPU, gpu__perPod=per_pod, gpu__perReplica=per_replica, pipeline__pool={"max": most})
    assert rendered.cluster["workerGroupSpecs"][1]["maxReplicas"] == pods


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_drains_and_graces_add_up(streaming: Rendered, tmp_path: Path) -> None:
    from pipelines import stream

    loaded = settings(streaming, tmp_path)
    ingress = stream.build(loaded)._bound_deployment
    serve_waits = ingress._deployment_config.graceful_shutdown_timeout_s
    assert serve_waits > loaded.delivery.drain_timeout_s
    longest = 0
    for name, pod in streaming.pods.items():
        drain, grace = seconds(pod)
        assert grace >= drain + 30, name  # Ray ends its processes
        if name in ("readers", "workers"):
            assert drain >= serve_waits + 5, name  # the controller looks, and says so
        if name == "gpu":
            assert grace <= 120  # the notice of most spot nodes
            # Where all pods go at once, encoders work until the readers have drained.
            readers_end = seconds(streaming.pods["readers"])[0] - serve_waits + loaded.delivery.drain_timeout_s
            assert drain - loaded.pool.call_timeout_s >= readers_end
        if name != "head":
            longest = max(longest, drain)
    # Its controller is who tells the readers to drain.
    assert seconds(streaming.pods["head"])[0] >= longest + 5


def test_a_longer_drain_lengthens_all_that_waits_for_it() -> None:
    longer = chart.render(GPU, pipeline__delivery={"drain_timeout_s": 90})
    assert seconds(longer.pods["readers"]) == (115, 145)
    assert seconds(longer.pods["head"]) == (120, 150)
    assert seconds(longer.pods["gpu"]) == (60, 90)


# ---- who may what


def containers(rendered: Rendered) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    pods = [*rendered.pods.items(), *(("check", pod) for pod in rendered.of("Pod"))]
    pods += [("submitter", job["spec"]["submitterPodTemplate"]) for job in rendered.of("RayJob")]
    for name, pod in pods:
        spec = pod["spec"]
        for container in [*spec.get("initContainers", ()), *spec["containers"]]:
            yield f"{name}/{container['name']}", spec, container
    yield "autoscaler", rendered.pods["head"]["spec"], rendered.cluster["autoscalerOptions"]


def test_every_container_passes_the_profile_restricted(example: Rendered) -> None:
    for name, spec, container in containers(example):
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False, name
        assert own["capabilities"] == {"drop": ["ALL"]}, name
        assert own["readOnlyRootFilesystem"] is True, name
        pod = spec["securityContext"]
        assert pod["runAsNonRoot"] is True
        assert pod["runAsUser"] == 10001
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"}.intersection(spec)
        kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
        allowed = {"configMap", "emptyDir", "projected", "secret", "persistentVolumeClaim", "downwardAPI"}
        assert kinds <= allowed, name


def test_nobody_writes_but_where_there_is_a_volume(example: Rendered) -> None:
    for name, _, container in containers(example):
        mounts = {mount["mountPath"] for mount in container.get("volumeMounts", ())}
        if name.endswith("certificate"):
            continue
        assert "/tmp" in mounts, name
        if name.endswith(("/ray-head", "/ray-worker")):
            assert {"/cache", "/dev/shm"} <= mounts


def test_the_token_of_kubernetes_is_for_the_autoscaler_alone(example: Rendered) -> None:
    for name, pod in example.pods.items():
        assert pod["spec"]["automountServiceAccountToken"] is (name == "head")
    accounts = {found["metadata"]["name"] for found in example.of("ServiceAccount")}
    assert {pod["spec"]["serviceAccountName"] for pod in example.pods.values()} == accounts


def test_what_opens_kafka_does_not_go_where_encoders_run() -> None:
    rendered = chart.render(SECURED)
    for name in ("head", "readers"):
        container = rendered.pods[name]["spec"]["containers"][0]
        assert env(container)["STREAM_EMBEDDER_REGISTRY__PASSWORD"] == {
            "secretKeyRef": {"name": "schema-registry", "key": "password"}
        }
        assert {"/etc/kafka", "/var/run/secrets/kafka"} <= {mount["mountPath"] for mount in container["volumeMounts"]}
    encoder = rendered.pods["gpu"]["spec"]
    assert "schema-registry" not in str(encoder)
    assert "kafka" not in str({key: encoder[key] for key in ("containers", "volumes")}).replace("stream-embedder", "")
    hub = chart.render(GPU).pods
    assert all("HF_TOKEN" in env(pod["spec"]["containers"][0]) for pod in hub.values())


def test_ray_asks_for_a_token_unless_told_otherwise(example: Rendered) -> None:
    assert example.cluster["authOptions"]["mode"] == "token"
    assert "authOptions" not in chart.render(SMALL, auth__token__enabled=False).cluster
    assert chart.render(SECURED).cluster["authOptions"]["secretName"] == "ray-token"


def test_with_tls_every_ray_process_speaks_it_and_none_sees_the_cas_key() -> None:
    rendered = chart.render(SECURED)
    for name, spec, container in containers(rendered):
        if name.startswith("check") or name.endswith("certificate"):
            continue
        assert env(container)["RAY_USE_TLS"] == "1", name
        mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
        assert "ca" not in mounts, name
        assert mounts["tls"]["readOnly"] is True
        (made,) = spec["initContainers"]
        assert made["command"][-1] == ("head" if spec is rendered.pods["head"]["spec"] else made["command"][-1])
    parts = [pod["spec"]["initContainers"][0]["command"][-1] for pod in rendered.pods.values()]
    assert parts == ["head", "readers", "encoders"]


def test_redis_has_its_password_by_a_secret() -> None:
    options = chart.render(SECURED).cluster["gcsFaultToleranceOptions"]
    assert options["redisAddress"] == "rediss://redis.redis:6379"
    assert options["redisPassword"] == {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}}
    assert "gcsFaultToleranceOptions" not in chart.render(SMALL).cluster


def test_the_network_policy_covers_every_pod_and_closes_the_way_out_where_rules_are_given(example: Rendered) -> None:
    (policy,) = example.of("NetworkPolicy")
    selected = policy["spec"]["podSelector"]["matchLabels"]
    for pod in [*example.pods.values(), *example.of("Pod")]:
        assert selected.items() <= pod["metadata"]["labels"].items()
    assert policy["spec"]["ingress"][0] == {"from": [{"podSelector": {"matchLabels": selected}}]}
    assert ("Egress" in policy["spec"]["policyTypes"]) is ("egress" in policy["spec"])
    if "egress" in policy["spec"]:
        assert policy["spec"]["egress"][0] == {"to": [{"podSelector": {"matchLabels": selected}}]}
    assert chart.render(SMALL, networkPolicy__enabled=False).of("NetworkPolicy") == []


# ---- what is seen


def test_the_pods_are_scraped_by_what_the_chart_labels_them_with() -> None:
    rendered = chart.render(GPU)
    (monitor,) = rendered.of("PodMonitor")
    for pod in rendered.pods.values():
        assert monitor["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        assert {"name": "metrics", "containerPort": 8080} in pod["spec"]["containers"][0]["ports"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == "metrics"
    assert endpoint["relabelings"][0] == {"action": "replace", "targetLabel": "pipeline", "replacement": chart.RELEASE}
    keep = re.compile(endpoint["metricRelabelings"][0]["regex"])
    assert keep.fullmatch(f"ray_{metrics.PREFIX}{metrics.COMMITS.name}")
    assert not keep.fullmatch("ray_grpc_server_req_new_total")


def test_the_alerts_are_of_this_release_alone() -> None:
    (rules,) = chart.render(GPU).of("PrometheusRule")
    expressions = [rule["expr"] for group in rules["spec"]["groups"] for rule in group["rules"]]
    assert expressions
    wanted = f'{{namespace="{chart.NAMESPACE}",pipeline="{chart.RELEASE}"}}'
    for expression in expressions:
        assert expression.count("ray_") == expression.count(wanted), expression


class Node(socketserver.BaseRequestHandler):
    """A Ray node's metrics, as far as a probe asks."""

    def handle(self) -> None:
        self.request.recv(1000)
        body = self.server.body  # type: ignore[attr-defined]
        self.request.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n" + body.encode())


@pytest.fixture
def node() -> Iterator[socketserver.TCPServer]:
    with socketserver.TCPServer(("127.0.0.1", 0), Node) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


def test_a_pod_is_ready_when_its_part_of_the_pipeline_lives(node: socketserver.TCPServer) -> None:
    gauges = {
        "readers": [metrics.ENCODERS_RUNNING, metrics.QUERIES_WAITING],
        "gpu": [metrics.MODEL_LOAD_SECONDS],
        "workers": [metrics.ENCODERS_RUNNING, metrics.MODEL_LOAD_SECONDS, metrics.QUERIES_WAITING],
    }
    pods = chart.render(GPU).pods | chart.render(SMALL).pods
    port = node.server_address[1]
    for name, alive in gauges.items():
        command = pods[name]["spec"]["containers"][0]["readinessProbe"]["exec"]["command"]
        command = [word.replace("127.0.0.1/8080", f"127.0.0.1/{port}") for word in command]

        def ready(body: str, command: list[str] = command) -> bool:
            node.body = body  # type: ignore[attr-defined]
            done = subprocess.run(
                command, capture_output=True, timeout=10, check=False, env={"PATH": os.environ["PATH"]}
            )
            return done.returncode == 0

        assert not ready("# HELP ray_stream_embedder_encoders_running Encoder replicas\nray_node_mem_used 1.0\n")
        for gauge in alive:
            shown = f"ray_{metrics.PREFIX}{gauge.name}"
            assert ready(f'# TYPE {shown} gauge\n{shown}{{WorkerId="a"}} 2.0\n'), (name, gauge.name)
            assert not ready(f'{shown}_else{{WorkerId="a"}} 2.0\n')
    assert "httpGet" in pods["head"]["spec"]["containers"][0]["readinessProbe"]  # KubeRay deploys once it is ready


def test_no_container_of_the_head_has_a_startup_probe(example: Rendered) -> None:
    # KubeRay's job that cleans Redis up runs the head's container without Ray, and takes only the other two probes away.
    assert all("startupProbe" not in container for container in example.pods["head"]["spec"]["containers"])


# ---- the rest


def test_the_model_cache_is_a_claim_that_all_but_the_head_share() -> None:
    rendered = chart.render(GPU)
    (claim,) = rendered.of("PersistentVolumeClaim")
    for name, pod in rendered.pods.items():
        (cache,) = (volume for volume in pod["spec"]["volumes"] if volume["name"] == "cache")
        if name != "head":
            assert cache["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"]}
    existing = chart.render(GPU, modelCache={"kind": "pvc", "pvc": {"existingClaim": "models"}})
    assert existing.of("PersistentVolumeClaim") == []
    assert "'claimName': 'models'" in str(existing.pods["gpu"])


def test_a_digest_pins_the_image() -> None:
    image = chart.render(SECURED).pods["head"]["spec"]["containers"][0]["image"]
    assert image == f"registry.example/stream-embedder:0.1.0-cuda@sha256:{'0' * 64}"


def test_readers_are_spread_over_zones_by_their_own_labels() -> None:
    (spread,) = chart.render(GPU).pods["readers"]["spec"]["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"]["app.kubernetes.io/component"] == "readers"
    own = {"matchLabels": {"mine": "yes"}}
    given = {"maxSkew": 1, "topologyKey": "host", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": own}
    (kept,) = chart.render(GPU, readers__topologySpreadConstraints=[given]).pods["readers"]["spec"][
        "topologySpreadConstraints"
    ]
    assert kept == given


def test_volumes_and_annotations_of_ones_own_reach_the_pods() -> None:
    rendered = chart.render(
        GPU,
        gpu__extraVolumes=[{"name": "scratch", "emptyDir": {}}],
        gpu__extraVolumeMounts=[{"name": "scratch", "mountPath": "/scratch"}],
        gpu__podAnnotations={"rotated": "2026-05-01"},
        gpu__podLabels={"team": "search"},
        gpu__runtimeClassName="nvidia",
    )
    pod = rendered.pods["gpu"]
    assert {"name": "scratch", "emptyDir": {}} in pod["spec"]["volumes"]
    assert {"name": "scratch", "mountPath": "/scratch"} in pod["spec"]["containers"][0]["volumeMounts"]
    assert pod["metadata"]["annotations"]["rotated"] == "2026-05-01"
    assert pod["metadata"]["labels"]["team"] == "search"
    assert pod["spec"]["runtimeClassName"] == "nvidia"
    assert "scratch" not in str(rendered.pods["readers"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_serve_takes_what_kuberay_hands_it(streaming: Rendered) -> None:
    from ray.serve.schema import ServeDeploySchema

    deployed = ServeDeploySchema.model_validate(yaml.safe_load(streaming.service["serveConfigV2"]))
    (application,) = deployed.applications
    assert application.args == {"config": "/etc/stream-embedder/pipeline.yaml"}
    assert application.logging_config is not None
    assert application.logging_config.enable_access_log is False
    assert deployed.proxy_location == "HeadOnly"
