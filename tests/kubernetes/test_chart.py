"""The Kubernetes chart: what it renders is valid, asks for little, and speaks our settings."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import kubernetes_validate
import pytest

from control_plane.settings import Settings
from tests.api.world import EdgeWorld, scenario
from tests.images.test_dockerfiles import dockerfile
from tests.support.helm import CHART, helm, refused, rendered
from worker.settings import NodeSettings

MINIMAL, COMPLETE = "examples/minimal.yaml", "examples/complete.yaml"
EACH = pytest.mark.parametrize("values", [MINIMAL, COMPLETE])
VERSIONS = ("1.30", "1.37")  # the oldest that helm would still be asked for, and the newest known
SECRETS = {"api-key": "k" * 32, "node-token": "t" * 32, "redis-url": "rediss://cache:6380/0"}
FIELDS = {"spec.nodeName": "machine-1", "status.podIP": "10.0.0.7"}

Object = Mapping[str, Any]


def of_kind(objects: Sequence[Object], kind: str) -> list[Object]:
    return [it for it in objects if it["kind"] == kind]


def pods(objects: Sequence[Object]) -> Iterator[tuple[str, Object]]:
    """Every pod's spec, by the name of what makes it."""
    for it in objects:
        if it["kind"] in ("Deployment", "DaemonSet"):
            yield it["metadata"]["name"], it["spec"]["template"]["spec"]


def environment(container: Object) -> dict[str, str]:
    """What the container's program would find, with secrets of tests."""
    found = {}
    for variable in container["env"]:
        source = variable.get("valueFrom", {})
        if "secretKeyRef" in source:
            found[variable["name"]] = SECRETS[source["secretKeyRef"]["key"]]
        elif "fieldRef" in source:
            found[variable["name"]] = FIELDS[source["fieldRef"]["fieldPath"]]
        else:
            found[variable["name"]] = variable["value"]
    return found


def known(settings: type[Settings] | type[NodeSettings]) -> set[str]:
    prefix = settings.model_config["env_prefix"]
    return {f"{prefix}{name.upper()}" for name in settings.model_fields}


@EACH
def test_helm_finds_nothing_wrong(values: str) -> None:
    done = helm("lint", ".", "--strict", "--values", values)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("version", VERSIONS)
@EACH
def test_every_object_is_what_kubernetes_knows(values: str, version: str) -> None:
    for it in rendered(values):
        kubernetes_validate.validate(dict(it), version, strict=True)


def test_the_small_set_is_one_control_plane_with_its_redis_on_a_volume_and_a_pool() -> None:
    objects = rendered(MINIMAL)

    assert sorted((it["kind"], it["metadata"]["name"]) for it in objects) == [
        ("DaemonSet", "firstlight-node-l4"),
        ("Deployment", "firstlight-control-plane"),
        ("NetworkPolicy", "firstlight-control-plane"),
        ("NetworkPolicy", "firstlight-node"),
        ("PersistentVolumeClaim", "firstlight-state"),
        ("PodDisruptionBudget", "firstlight-control-plane"),
        ("Service", "firstlight"),
        ("ServiceAccount", "firstlight-control-plane"),
        ("ServiceAccount", "firstlight-node"),
    ]
    [deployment] = of_kind(objects, "Deployment")
    assert deployment["spec"]["replicas"] == 1
    volumes = {it["name"]: it for it in deployment["spec"]["template"]["spec"]["volumes"]}
    assert volumes["state"]["persistentVolumeClaim"] == {"claimName": "firstlight-state"}
    [claim] = of_kind(objects, "PersistentVolumeClaim")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


@EACH
def test_programs_find_settings_that_they_know_and_that_are_valid(
    values: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, pod in pods(rendered(values)):
        [container] = pod["containers"]
        found = environment(container)
        for variable, value in found.items():
            monkeypatch.setenv(variable, value)
        if name.endswith("control-plane"):
            assert found.keys() <= known(Settings)
            settings = Settings()
            assert settings.capacity == "none"
            assert container["ports"] == [{"name": "http", "containerPort": settings.port}]
            assert (settings.redis_url is None) == (values == MINIMAL)
        else:
            assert found.keys() <= known(NodeSettings)
            node = NodeSettings()
            assert (node.id, node.host) == ("machine-1", "10.0.0.7")
            assert node.control_plane_url == "http://firstlight:8470"
        for variable in found:
            monkeypatch.delenv(variable)


def test_images_are_run_as_their_dockerfiles_mean_it() -> None:
    for name, pod in pods(rendered(MINIMAL)):
        is_control_plane = name.endswith("control-plane")
        [entry] = dockerfile("control-plane" if is_control_plane else "worker").said("ENTRYPOINT")
        [container] = pod["containers"]
        assert "command" not in container, "the entrypoint stays"
        assert entry.words()[-1] == f"{'control_plane' if is_control_plane else 'worker'}.main"
        assert container["args"] == ["up" if is_control_plane else "node"]
        assert pod["securityContext"]["runAsUser"] == 65532


@scenario
async def test_probes_ask_what_the_api_answers(edge: EdgeWorld) -> None:
    [deployment] = of_kind(rendered(MINIMAL), "Deployment")
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    paths = {
        name: container[f"{name}Probe"]["httpGet"]["path"]
        for name in ("startup", "liveness", "readiness")
    }
    assert {name: (await edge.call("GET", path)).status for name, path in paths.items()} == {
        "startup": 200,
        "liveness": 200,
        "readiness": 200,
    }

    edge.store_is_up = False

    assert (await edge.call("GET", paths["liveness"])).status == 200
    assert (await edge.call("GET", paths["readiness"])).status == 503


# -- rights ----------------------------------------------------------------------------------------


@EACH
def test_nobody_gets_a_right_or_a_token_of_the_cluster(values: str) -> None:
    objects = rendered(values)

    assert not {it["kind"] for it in objects if "Role" in it["kind"] or it["kind"] == "Secret"}
    for account in of_kind(objects, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False
    for _, pod in pods(objects):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & pod.keys()
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            written = {
                it["mountPath"] for it in container["volumeMounts"] if not it.get("readOnly")
            }
            assert written <= {"/state", "/tmp", "/dev/shm"}
            assert "memory" in container["resources"]["limits"]


def test_only_the_chunk_store_makes_an_agent_root_and_shows_it_the_machine() -> None:
    for values, is_root in ((MINIMAL, False), (COMPLETE, True)):
        for name, pod in pods(rendered(values)):
            on_machine = [it["hostPath"]["path"] for it in pod["volumes"] if "hostPath" in it]
            if is_root and "-node-" in name:
                assert on_machine == ["/var/lib/firstlight/snapshotter"]
                assert pod["securityContext"]["runAsUser"] == 0
            else:
                assert on_machine == []
                assert pod["securityContext"]["runAsNonRoot"] is True


def test_an_agent_has_all_gpus_of_its_machine_and_a_pool_without_asks_for_none() -> None:
    limits = {
        name: pod["containers"][0]["resources"]["limits"] for name, pod in pods(rendered(COMPLETE))
    }

    assert limits["firstlight-node-h100"]["nvidia.com/gpu"] == 8
    assert "nvidia.com/gpu" not in limits["firstlight-node-cpu"]
    [tolerations] = [
        pod["tolerations"] for name, pod in pods(rendered(COMPLETE)) if name.endswith("node-cpu")
    ]
    assert [it["key"] for it in tolerations] == ["firstlight"]


@EACH
def test_only_the_control_plane_reaches_agents_and_only_clients_that_were_named_reach_it(
    values: str,
) -> None:
    policies = {
        it["metadata"]["name"]: it["spec"] for it in of_kind(rendered(values), "NetworkPolicy")
    }
    agents, ours = policies["firstlight-node"], policies["firstlight-control-plane"]

    def component(peer: Object) -> str | None:
        labels = peer.get("podSelector", {}).get("matchLabels", {})
        found: str | None = labels.get("app.kubernetes.io/component")
        return found

    [into_agents] = agents["ingress"]
    assert [component(it) for it in into_agents["from"]] == ["control-plane"]
    [into_ours] = ours["ingress"]
    assert component(into_ours["from"][0]) == "node"
    assert into_ours["from"][1:] == (
        [{"podSelector": {}}]
        if values == MINIMAL
        else [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "web"}}}]
    )
    for policy in policies.values():
        assert sorted(policy["policyTypes"]) == ["Egress", "Ingress"]
        for way in policy["egress"]:
            assert way.get("ports") or component(way["to"][0]) == "node", "not everywhere"
    ports = {port["port"] for way in ours["egress"] for port in way.get("ports", ())}
    assert ports == ({53, 443} if values == MINIMAL else {53, 443, 6380})


@EACH
def test_selectors_find_their_own_pods_and_no_others(values: str) -> None:
    objects = rendered(values)
    labels = {
        it["metadata"]["name"]: it["spec"]["template"]["metadata"]["labels"]
        for it in objects
        if it["kind"] in ("Deployment", "DaemonSet")
    }

    def chosen(selector: Mapping[str, str]) -> list[str]:
        return [name for name, own in labels.items() if selector.items() <= own.items()]

    for it in objects:
        if it["kind"] in ("Deployment", "DaemonSet"):
            selector = it["spec"]["selector"]["matchLabels"]
            assert chosen(selector) == [it["metadata"]["name"]]
    [service] = of_kind(objects, "Service")
    [budget] = of_kind(objects, "PodDisruptionBudget")
    assert chosen(service["spec"]["selector"]) == ["firstlight-control-plane"]
    assert chosen(budget["spec"]["selector"]["matchLabels"]) == ["firstlight-control-plane"]


# -- two control planes ----------------------------------------------------------------------------


def test_two_control_planes_are_on_two_machines_and_an_update_does_not_wait_for_both() -> None:
    [deployment] = of_kind(rendered(COMPLETE), "Deployment")
    spec = deployment["spec"]

    assert spec["replicas"] == 2
    assert spec["strategy"] == {"type": "Recreate"}
    affinity = spec["template"]["spec"]["affinity"]["podAntiAffinity"]
    [rule] = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
    assert rule["topologyKey"] == "kubernetes.io/hostname"
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] == 60 + 20


@pytest.mark.parametrize(
    ("sets", "named"),
    [
        (["controlPlane.replicas=2"], "replicas"),
        (["controlPlane.replicas=3"], "replicas"),
        (['redis.mode="external"'], "resultsUrl"),
        (['controlPlane.image=""'], "image"),
        (['nodes.pools=[{"name":"x","gpus":1}]'], "nodeSelector"),
        (['secrte="x"'], "secrte"),
        (['redis.storage="much"'], "storage"),
    ],
)
def test_values_that_cannot_be_right_are_refused_by_name(sets: list[str], named: str) -> None:
    assert named in refused(MINIMAL, *sets)


def test_every_value_is_known_to_the_schema_and_has_a_line_in_the_readme() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    readme = (CHART / "README.md").read_text()

    def names(part: Object, prefix: str = "") -> Iterator[str]:
        for name, inner in part.get("properties", {}).items():
            if name == "global":
                continue
            if "properties" in inner:
                yield from names(inner, f"{prefix}{name}.")
            elif "properties" in inner.get("items", {}) and name == "pools":
                yield from names(inner["items"], f"{prefix}{name}[].")
            else:
                yield f"{prefix}{name}"

    for name in names(schema):
        assert f"| `{name}` |" in readme
