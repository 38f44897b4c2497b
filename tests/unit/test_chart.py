"""The chart, as helm renders it: rights that the operator's code needs and no others, values, pods, environment."""

import json
import re
import subprocess
from collections import defaultdict
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from rm_api import kinds, names
from rm_api.kinds.model_deployment import ENGINE_VARIABLE
from rm_local_cluster import existing
from rm_operator.app import REFLECTED
from rm_operator.config import Config
from rm_operator.kube.resources import ALL, CUSTOM, EVENTS, LEASES, NODES, resource_of

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts/rm-abstract"
PLAN = ROOT / "operator/rm_operator/plan"
Object = dict[str, Any]
Rights = dict[tuple[str, str], set[str]]
Render = Callable[..., list[Object]]


class Refused(Exception):
    """helm did not take the values; the message is what it said."""


@pytest.fixture(scope="session")
def render() -> Render:
    """The chart's objects for values as a dictionary."""
    _, helm = existing.tools(print)

    def run(**values: Any) -> list[Object]:
        command = [str(helm), "template", "rma", str(CHART), "--namespace=system", "--values=-"]
        done = subprocess.run(command, input=json.dumps(values), capture_output=True, text=True, check=False)
        if done.returncode:
            raise Refused(done.stderr)
        return [obj for obj in yaml.safe_load_all(done.stdout) if obj]

    return run


@pytest.fixture(scope="session")
def rendered(render: Render) -> list[Object]:
    """The chart with its own values."""
    return render()


def _one(objects: list[Object], kind: str, name: str) -> Object:
    return next(obj for obj in objects if obj["kind"] == kind and obj["metadata"]["name"] == name)


def _granted(role: Object) -> Rights:
    found: Rights = defaultdict(set)
    for rule in role["rules"]:
        assert set(rule) == {"apiGroups", "resources", "verbs"}
        for group, resource in product(rule["apiGroups"], rule["resources"]):
            found[group, resource] |= set(rule["verbs"])
    return dict(found)


# What planners make and what they delete, by kind. Their sources name every kind that they make.
APPLIED = {
    "BuildArtifact", "Deployment", "ControllerRevision", "HorizontalPodAutoscaler", "Job", "Service", "ConfigMap",
    "Pod", "DeviceClass",
}  # fmt: skip
# Services go with their owners.
DELETED = APPLIED - {"Service"}
ROLLED_OUT = {"DaemonSet"}
KEPT_WHILE_IN_USE = (kinds.ACCELERATOR_RESOURCE, kinds.BUILD_PROFILE)
OWNERS = (kinds.ACCELERATOR_RESOURCE, kinds.MODEL_DEPLOYMENT, kinds.BUILD_ARTIFACT)


def test_the_kinds_that_planners_make_are_those_listed_here() -> None:
    known = {resource.kind for resource in ALL}
    sources = "".join(path.read_text() for path in PLAN.rglob("*.py"))
    made = {kind for kind in known if f'"kind": "{kind}"' in sources}
    assert made == APPLIED | ROLLED_OUT


def test_the_cluster_role_is_what_the_code_needs(rendered: list[Object]) -> None:
    needed: Rights = defaultdict(set)
    # kopf and the reflectors list and watch.
    for resource in [*CUSTOM, *(kept.resource for kept in REFLECTED)]:
        needed[resource.group, resource.plural] |= {"list", "watch"}
    for resource in ALL:
        key = resource.group, resource.plural
        if resource.kind in APPLIED:
            # Server-side apply is a patch, and a create where there is nothing; a live object is looked at before.
            needed[key] |= {"get", "patch"}
        if resource.kind in APPLIED - {"Pod"}:
            needed[key] |= {"create"}
        if resource.kind in DELETED:
            needed[key] |= {"delete"}
    for resource in CUSTOM:
        needed[resource.group, f"{resource.plural}/status"] |= {"patch"}
    for info in KEPT_WHILE_IN_USE:
        # Their finalizer.
        needed[names.GROUP, info.plural] |= {"get", "patch"}
    for info in OWNERS:
        # blockOwnerDeletion asks for the right to change the owner's finalizers.
        needed[names.GROUP, f"{info.plural}/finalizers"] |= {"update"}
    # Labels and a condition of nodes.
    needed[NODES.group, NODES.plural] |= {"patch"}
    needed[NODES.group, f"{NODES.plural}/status"] |= {"patch"}
    needed[EVENTS.group, EVENTS.plural] |= {"create"}
    assert _granted(_one(rendered, "ClusterRole", "rma-operator")) == needed


def test_the_role_in_its_own_namespace_is_what_the_code_needs(rendered: list[Object]) -> None:
    daemonsets = resource_of({"apiVersion": "apps/v1", "kind": "DaemonSet"})
    assert _granted(_one(rendered, "Role", "rma-operator")) == {
        (LEASES.group, LEASES.plural): {"get", "create", "patch"},
        (daemonsets.group, daemonsets.plural): {"get", "create", "patch", "delete"},
        # Of the proxy before an endpoint, where the kind is another one now.
        ("", "services"): {"delete"},
    }


def test_no_right_is_a_wildcard_and_no_secret_is_read(rendered: list[Object]) -> None:
    # What renews certificates has Secrets by their names, which is told where it is tested.
    others = [obj for obj in rendered if not obj["metadata"]["name"].endswith("-certificates")]
    for role in (obj for obj in others if obj["kind"] in ("Role", "ClusterRole")):
        for (group, resource), verbs in _granted(role).items():
            assert "*" not in {group, resource, *verbs}
            assert resource not in ("secrets", "pods/exec", "serviceaccounts/token", "nodes/proxy")


def test_device_drivers_have_an_account_that_writes_slices_and_nothing_else(rendered: list[Object]) -> None:
    role = _one(rendered, "ClusterRole", "rma-device-driver")
    assert {what: verbs for what, verbs in _granted(role).items() if verbs - {"get", "list", "watch"}} == {
        ("resource.k8s.io", "resourceslices"): {"list", "watch", "create", "update", "delete"}
    }
    binding = _one(rendered, "ClusterRoleBinding", "rma-device-driver")
    (account,) = binding["subjects"]
    assert account == {"kind": "ServiceAccount", "name": "rma-device-driver", "namespace": "system"}
    assert _environment(rendered)["RMA_DRIVER_SERVICE_ACCOUNT"] == account["name"]
    (condition,) = _policies(rendered)["rma-device-driver"]["matchConditions"]
    assert "system:serviceaccount:system:rma-device-driver" in condition["expression"]


@pytest.mark.parametrize("kind", ["ClusterRoleBinding", "RoleBinding"])
def test_the_roles_are_bound_to_the_operators_account(rendered: list[Object], kind: str) -> None:
    binding = _one(rendered, kind, "rma-operator")
    assert binding["roleRef"]["name"] == "rma-operator"
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "rma-operator", "namespace": "system"}]
    account = _one(rendered, "ServiceAccount", "rma-operator")["metadata"]["name"]
    assert _one(rendered, "Deployment", "rma-operator")["spec"]["template"]["spec"]["serviceAccountName"] == account


def test_tenants_deploy_models_and_see_the_rest(rendered: list[Object]) -> None:
    edit = _granted(_one(rendered, "ClusterRole", "rma-edit"))
    assert {resource for _, resource in edit} == {"modeldeployments", "modeldeployments/scale"}
    view = _granted(_one(rendered, "ClusterRole", "rma-view"))
    assert {resource for _, resource in view} == {info.plural for info in kinds.KINDS}
    assert set().union(*view.values()) == {"get", "list", "watch"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"nonsense": 1}, "nonsense"),
        ({"operator": {"replica": 2}}, "replica"),
        ({"operator": {"replicas": 0}}, "replicas"),
        ({"operator": {"workers": "many"}}, "workers"),
        ({"operator": {"logLevel": "LOUD"}}, "logLevel"),
        ({"builds": {"perNamespace": 0}}, "perNamespace"),
        ({"operator": {"tracing": {"endpoint": "collector:4317"}}}, "endpoint"),
        ({"images": {"operator": ""}}, "operator"),
        ({"images": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"images": {"sidecar": "x"}}, "sidecar"),
        ({"crds": {"install": "yes"}}, "install"),
        ({"store": {"host": "https://registry/"}}, "host"),
        ({"store": {"plainHttp": True}}, "plainHttp"),
        ({"store": {"registry": {"persistence": {"sise": "1Gi"}}}}, "sise"),
        ({"policies": {"webhook": True}}, "webhook"),
        ({"policies": {"artifacts": {"enabled": "yes"}}}, "enabled"),
        ({"policies": {"artifacts": {"deleters": {"group": []}}}}, "group"),
        ({"policies": {"runtime": {"allowedEnv": "TZ"}}}, "allowedEnv"),
        *(
            ({"policies": {"runtime": {"allowedEnv": [name]}}}, "allowedEnv")
            for name in ("LD_PRELOAD", "PATH", "log_level", "XLOG_LEVEL", "LOG_LEVEL'", "TZ\n")
        ),
        *(
            ({"policies": {"images": {"allowedPrefixes": [prefix]}}}, "allowedPrefixes")
            # Without the slash others that begin the same would do; without a registry it is that of the runtime.
            for prefix in ("ghcr.io", "ghcr.io/rm-abstract", "acme/", "", "/", "https://ghcr.io/", 'a.b/"]/')
        ),
        ({"store": {"registry": {"enabled": False}}}, "store.host is needed where store.registry.enabled is false"),
    ],
)
def test_wrong_values_are_refused_by_name(render: Render, values: Object, said: str) -> None:
    with pytest.raises(Refused, match=said):
        render(**values)


def test_an_external_store_leaves_the_registry_out(render: Render, rendered: list[Object]) -> None:
    assert {obj["kind"] for obj in rendered if obj["metadata"]["name"] == "rma-registry"} == {
        "PersistentVolumeClaim", "ConfigMap", "Service", "Deployment",
    }  # fmt: skip
    for values in (
        {"host": "registry.example:5000", "plainHTTP": False},
        {"host": "r", "registry": {"enabled": False}},
    ):
        objects = render(store=values)
        assert [obj for obj in objects if obj["metadata"]["name"] == "rma-registry"] == []
        assert _environment(objects)["RMA_STORE"] == values["host"]


def _environment(objects: list[Object]) -> dict[str, str]:
    container = _one(objects, "Deployment", "rma-operator")["spec"]["template"]["spec"]["containers"][0]
    return {entry["name"]: str(entry.get("value", "from-a-field")) for entry in container["env"]}


class _Recorder(dict[str, str]):
    """An environment that remembers what it was asked for."""

    def __init__(self, values: dict[str, str]) -> None:
        super().__init__(values)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)


def test_the_operator_is_configured_by_variables_that_it_reads(render: Render) -> None:
    images = {"operator": "o:1", "runtime": "r:1", "launcher": "l:1", "registry": "x:1", "pullPolicy": "Never"}
    values = {"workers": 3, "tracing": {"endpoint": "http://collector:4318"}}
    environ = _Recorder(
        _environment(
            render(
                images=images,
                operator=values,
                builds={"perNamespace": 7},
                cache={"enabled": True},
                models={"hfEndpoint": "http://hub.example:8080/hf/"},
                serving={"logFormat": "Logfmt"},
                remote={"caConfigMapName": "authorities", "tls": {"enabled": False}},
                store={
                    "host": "s:1",
                    "plainHTTP": False,
                    "imageVolumes": {"mode": "Auto", "host": "n:1", "pullSecretName": "login"},
                },
            )
        )
    )
    config = Config.from_environment(environ)
    assert set(environ) - environ.asked == {"HOME"}
    # The rest is for a registry of the chart's own under TLS, for tests and for people who run it by hand.
    further = {name for name in environ.asked - set(environ) if not name.startswith("OTEL_")}
    store = {"RMA_STORE_CA_FILE", "RMA_STORE_TOKEN_AUDIENCE", "RMA_STORE_TOKEN_FILE"}
    remote = {"RMA_REMOTE_TLS_SECRET", "RMA_REMOTE_CA_FILE"}
    assert further == {"RMA_METRICS_PORT", "RMA_LEADER_ELECT", "RMA_IMAGE_PULL_SECRETS"} | store | remote
    assert (config.operator_image, config.remote_ca_config_map) == ("o:1", "authorities")
    assert config.remote_service_account == "rma-remote-proxy"
    assert (config.system_namespace, config.store, config.store_plain_http) == ("system", "s:1", False)
    assert (config.runtime_image, config.launcher_image, config.image_pull_policy) == ("r:1", "l:1", "Never")
    assert (config.workers, config.tracing, config.builds_per_namespace) == (3, True, 7)
    mounted = (config.image_volumes, config.image_volumes_host, config.image_volumes_pull_secret)
    assert mounted == ("Auto", "n:1", "login")
    assert config.node_cache == "rma-weights-cache.system.svc:9011"
    assert (config.hf_endpoint, config.serving_log_format) == ("http://hub.example:8080/hf", "Logfmt")
    default = Config.from_environment(_environment(render(store={"host": "s:1"}, remote={"tls": {"enabled": False}})))
    assert (default.tracing, default.image_volumes, default.image_volumes_host) == (False, "Never", "")


def test_orphans_go_from_the_charts_own_registry_only(render: Render) -> None:
    def days(**values: Any) -> int:
        return int(_environment(render(**values))["RMA_ARTIFACT_ORPHAN_DAYS"])

    assert days() == 30
    assert days(artifacts={"orphanDays": 0}) == 0
    assert days(artifacts={"orphanDays": 7}) == 7
    # Another one may have artifacts of other clusters, of which nobody here knows who needs them.
    assert days(store={"host": "registry.example:5000"}) == 0


def test_the_operators_ports_and_probes_are_those_that_it_serves(rendered: list[Object]) -> None:
    container = _one(rendered, "Deployment", "rma-operator")["spec"]["template"]["spec"]["containers"][0]
    default = Config(system_namespace="s", store="s", runtime_image="r", launcher_image="l")
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {"metrics": default.metrics_port}
    paths = {name: container[name]["httpGet"]["path"] for name in container if name.endswith("Probe")}
    assert paths == {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}


def test_pods_are_restricted(rendered: list[Object]) -> None:
    pods = {obj["metadata"]["name"]: obj["spec"]["template"]["spec"] for obj in rendered if obj["kind"] == "Deployment"}
    assert pods.keys() == {"rma-operator", "rma-registry", "rma-registry-auth"}
    for name, pod in pods.items():
        outer = pod["securityContext"]
        assert outer["runAsNonRoot"] is True
        assert outer["runAsUser"] > 0
        assert outer["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert not [volume for volume in pod["volumes"] if "hostPath" in volume]
        assert pod.get("automountServiceAccountToken", True) is (name != "rma-registry"), "it has no business there"
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
            }  # fmt: skip
            assert container["resources"]["limits"]["memory"]


def test_selectors_find_the_pods_and_services_their_ports(rendered: list[Object]) -> None:
    for name in ("rma-operator", "rma-registry", "rma-registry-auth"):
        deployment, service = _one(rendered, "Deployment", name)["spec"], _one(rendered, "Service", name)["spec"]
        labels = deployment["template"]["metadata"]["labels"]
        assert deployment["selector"]["matchLabels"].items() <= labels.items()
        assert service["selector"].items() <= labels.items()
        ports = {port["name"] for port in deployment["template"]["spec"]["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["ports"]} <= ports


def test_crds_are_templates_that_stay(render: Render, rendered: list[Object]) -> None:
    crds = [obj for obj in rendered if obj["kind"] == "CustomResourceDefinition"]
    assert {crd["metadata"]["name"] for crd in crds} == {info.crd_name for info in kinds.KINDS}
    for crd in crds:
        written = yaml.safe_load((ROOT / "crds" / f"{crd['metadata']['name']}.yaml").read_text())
        assert crd["spec"] == written["spec"]
        assert crd["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    without = render(crds={"install": False})
    assert not [obj for obj in without if obj["kind"] == "CustomResourceDefinition"]
    claim = _one(rendered, "PersistentVolumeClaim", "rma-registry")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}, "artifacts outlive the release"


def _policies(objects: list[Object]) -> dict[str, Object]:
    """Policies by name; each has a binding that denies, and no binding is without one."""
    found = {obj["metadata"]["name"]: obj["spec"] for obj in objects if obj["kind"] == "ValidatingAdmissionPolicy"}
    bound = {
        obj["metadata"]["name"]: obj["spec"] for obj in objects if obj["kind"] == "ValidatingAdmissionPolicyBinding"
    }
    assert bound == {name: {"policyName": name, "validationActions": ["Deny"]} for name in found}
    assert all(policy["failurePolicy"] == "Fail" for policy in found.values())
    return found


@pytest.mark.parametrize(
    ("earlier", "missing"),
    [
        ({"policies": None}, "policies.artifacts"),
        ({"policies": {"runtime": None}}, "policies.runtime"),
        ({"operator": {"tracing": None}}, "operator.tracing"),
        ({"remote": None}, "remote.tls"),
    ],
    ids=["no-policies", "no-runtime-policy", "no-tracing", "no-remote"],
)
def test_values_of_an_earlier_chart_are_refused_with_what_helps(
    render: Render, earlier: dict[str, Any], missing: str
) -> None:
    # None takes a default away, as --reuse-values does with those that are newer than the values.
    with pytest.raises(Refused, match=rf"{missing} is missing.*--reset-then-reuse-values"):
        render(**earlier)


def test_policies_are_there_unless_they_are_switched_off(render: Render, rendered: list[Object]) -> None:
    drivers = {"rma-device-driver", "rma-nodes", "rma-builds"}
    assert _policies(rendered).keys() == drivers | {"rma-artifacts", "rma-runtime"}, "images may come from anywhere"
    off = {"artifacts": {"enabled": False}, "runtime": {"enabled": False}}
    assert _policies(render(policies=off)).keys() == drivers, "no account of ours may lie about other nodes"
    images = {"images": {"allowedPrefixes": ["registry.example:5000/", "localhost/", "ghcr.io/a/b/"]}}
    assert _policies(render(policies={**off, **images})).keys() == drivers | {
        "rma-images-acceleratorresources", "rma-images-buildprofiles",
    }  # fmt: skip


def test_the_writer_of_artifacts_is_the_operators_account(rendered: list[Object]) -> None:
    (condition,) = _policies(rendered)["rma-artifacts"]["matchConditions"]
    account = _one(rendered, "Deployment", "rma-operator")["spec"]["template"]["spec"]["serviceAccountName"]
    assert condition["expression"] == f'!(request.userInfo.username in ["system:serviceaccount:system:{account}"])'


def test_no_list_of_variables_goes_beyond_what_the_schema_admits() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())["policies"]["runtime"]["allowedEnv"]
    assert all(re.fullmatch(ENGINE_VARIABLE, name) for name in values)
    policies = json.loads((CHART / "values.schema.json").read_text())["properties"]["policies"]["properties"]
    assert policies["runtime"]["properties"]["allowedEnv"]["items"]["pattern"] == ENGINE_VARIABLE


def test_without_persistence_there_is_no_claim(render: Render) -> None:
    objects = render(store={"registry": {"persistence": {"enabled": False}}})
    assert not [obj for obj in objects if obj["kind"] == "PersistentVolumeClaim"]
    volumes = _one(objects, "Deployment", "rma-registry")["spec"]["template"]["spec"]["volumes"]
    assert {"name": "data", "emptyDir": {}} in volumes


def test_shared_builds_have_a_namespace_that_operator_and_token_service_know(
    render: Render, rendered: list[Object]
) -> None:
    def told(objects: list[Object]) -> tuple[list[str], str, set[str]]:
        namespaces = [obj["metadata"]["name"] for obj in objects if obj["kind"] == "Namespace"]
        operator = _one(objects, "Deployment", "rma-operator")["spec"]["template"]["spec"]["containers"][0]
        environment = {each["name"]: each.get("value", "") for each in operator["env"]}
        tokens = [
            obj for obj in objects if obj["metadata"]["name"] == "rma-registry-auth" and obj["kind"] == "Deployment"
        ]
        command = tokens[0]["spec"]["template"]["spec"]["containers"][0]["command"] if tokens else []
        shared = {each for each in command if each.startswith("--shared=artifacts/")}
        return namespaces, environment["RMA_BUILDS_NAMESPACE"], shared

    store = {"registry": {"tls": {"enabled": True}, "auth": {"enabled": True}}}
    name = names.BUILDS_NAMESPACE
    assert told(rendered) == told(render(store=store)) == ([name], name, {f"--shared=artifacts/{name}/"})
    everybody = {"registry": {"auth": {"enabled": False}}}
    assert told(render(store=everybody)) == ([name], name, set())
    theirs = {"shared": {"namespace": "theirs", "create": False}}
    assert told(render(store=store, builds=theirs)) == ([], "theirs", {"--shared=artifacts/theirs/"})
    off = render(store=store, builds={"shared": {"enabled": False}})
    assert told(off) == ([], "", set())
    assert "rma-builds" not in _policies(off)
    with pytest.raises(Refused, match="must not be the release's own namespace"):
        render(builds={"shared": {"namespace": "system"}})
