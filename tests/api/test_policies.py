"""The chart's admission policies on a real API server: who writes artifacts, which variables and images are taken."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from custom_objects import SMALLEST, STEP, Object, changed, custom_object
from real_api import START_SECONDS, ApiServer
from rm_api import names
from rm_local_cluster import existing
from rm_operator.plan.key import artifact_name

CHART = Path(__file__).parents[2] / "charts/rm-abstract"
LEFT_OUT = {"Deployment", "Service", "ConfigMap", "PersistentVolumeClaim"}
M, A, P, B = "ModelDeployment", "AcceleratorResource", "BuildProfile", "BuildArtifact"
PREFIXES = ["ghcr.io/rm-abstract/", "registry.example:5000/"]
TRUSTED = "ghcr.io/rm-abstract/serve:1"

# Users with their groups; the API server adds those of a service account.
User = tuple[str, ...]
OPERATOR = ("system:serviceaccount:system:rma-operator",)
BACKUP = ("system:serviceaccount:backup:backup",)
ADMIN = ("somebody", "system:masters")
# Whoever has all rights in all namespaces and is no cluster administrator by name.
TENANT = ("tenant", "everything")
GARBAGE_COLLECTOR = ("system:serviceaccount:kube-system:generic-garbage-collector",)
NAMESPACE_CONTROLLER = ("system:serviceaccount:kube-system:namespace-controller",)


@dataclass
class Cluster:
    """An API server with the chart on it, but for what would need a kubelet."""

    kubeconfig: Path

    def __post_init__(self) -> None:
        self._kubectl, self._helm = map(str, existing.tools(print))

    def kubectl(self, *arguments: str, by: User = (), stdin: Any = None) -> str:
        """stdout; what kubectl said as a Refused where it failed."""
        impersonated = [f"--as={name}" for name in by[:1]] + [f"--as-group={group}" for group in by[1:]]
        done = subprocess.run(
            [self._kubectl, f"--kubeconfig={self.kubeconfig}", *impersonated, *arguments],
            input=None if stdin is None else json.dumps(stdin),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise Refused(done.stderr)
        return done.stdout

    def install(self, **values: Any) -> None:
        """The chart's objects for values of its policies."""
        rendered = subprocess.run(
            [self._helm, "template", "rma", str(CHART), "--namespace=system", "--values=-"],
            input=json.dumps({"policies": values}), capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        objects = [obj for obj in yaml.safe_load_all(rendered) if obj and obj["kind"] not in LEFT_OUT]
        self.kubectl("apply", "--server-side", "--namespace=system", "-f", "-",
                     stdin={"apiVersion": "v1", "kind": "List", "items": objects})  # fmt: skip

    def apply(self, obj: Object, *, by: User = (), subresource: str | None = None) -> Object:
        """Server-side apply; the object as it is then."""
        further = [f"--subresource={subresource}"] if subresource else []
        applied = ["apply", "--server-side", "--force-conflicts", "--field-manager=tests", "-o", "json", "-f", "-"]
        done: Object = json.loads(self.kubectl(*applied, *further, by=by, stdin=obj))
        return done

    def until(self, condition: Callable[[], Any], what: str, seconds: float = START_SECONDS) -> None:
        """Return once ``condition`` is neither refused nor false."""
        deadline, said = time.monotonic() + seconds, "false"
        while time.monotonic() < deadline:
            try:
                if condition():
                    return
            except Refused as refused:
                said = str(refused)
            time.sleep(0.1)
        raise AssertionError(f"not within {seconds:.0f} s: {what}; it was {said}")

    def until_refused(self, obj: Object, said: str, *, by: User = TENANT) -> None:
        """Return once the API server refuses ``obj`` with these words: it takes up policies a moment after they are."""

        def refused() -> bool:
            try:
                self.kubectl("create", "--dry-run=server", "-f", "-", by=by, stdin=obj)
            except Refused as refusal:
                return said in str(refusal)
            return False

        self.until(refused, f"{obj['kind']} is refused with {said!r}")


class Refused(Exception):
    """The API server did not take it; the message is what kubectl said."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Of these tests alone: the policies would bind the others, who write artifacts as whoever they are."""
    server = ApiServer(tmp_path_factory.mktemp("policies"))
    try:
        server.start()
        cluster = Cluster(server.kubeconfig(tmp_path_factory.mktemp("policies-admin") / "kubeconfig"))
        cluster.until(lambda: cluster.kubectl("get", "namespace", "default"), "the API server serves")
        cluster.kubectl("create", "namespace", "system")
        cluster.kubectl("create", "clusterrolebinding", "everything", "--clusterrole=cluster-admin",
                        "--group=everything", f"--user={BACKUP[0]}")  # fmt: skip
        cluster.install(artifacts={"writers": [*BACKUP]}, images={"allowedPrefixes": PREFIXES})
        for kind, obj in REFUSED_AT_FIRST.items():
            cluster.until_refused(obj, "ValidatingAdmissionPolicy", by=TENANT)
            assert kind == obj["kind"]
        yield cluster
    finally:
        server.stop()


def test_of_a_node_the_operator_changes_what_is_its_own(cluster: Cluster) -> None:
    name = "worker"
    theirs = {"type": "Ready", "status": "True", "reason": "r", "message": "m"}
    labels = {"theirs": "1", "driver.rm-abstract.io/old": "1"}
    bare = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
    cluster.kubectl("create", "-f", "-", stdin={**bare, "metadata": {"name": name, "labels": labels}})
    status = {"conditions": [theirs], "capacity": {"acme.com/npu": "4"}, "allocatable": {"acme.com/npu": "4"}}
    patch = ["patch", "node", name, "--type=merge", "-o", "json"]
    cluster.kubectl(*patch, "--subresource=status", "-p", json.dumps({"status": status}))

    def change(body: Object, subresource: str | None = None) -> Object:
        metadata = {"name": name, **body.get("metadata", {})}
        return cluster.apply({**bare, **body, "metadata": metadata}, by=OPERATOR, subresource=subresource)

    # Refusals are by the policy, which is taken up a moment after it was made: the role allows all of it.
    def refused(body: Object, subresource: str | None = None) -> bool:
        try:
            change(body, subresource)
        except Refused as refusal:
            return "the operator changes nothing of a node but" in str(refusal)
        return False

    cluster.until(lambda: refused({"metadata": {"annotations": {"a": "b"}}}), "the policy is in force")
    for body, subresource in (
        ({"metadata": {"labels": {"theirs": "2"}}}, None),
        ({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}}, None),
        ({"spec": {"unschedulable": True}}, None),
        ({"spec": {"taints": [{"key": "k", "effect": "NoExecute"}]}}, None),
        ({"metadata": {"finalizers": ["a.b/c"]}}, None),
        ({"metadata": {"labels": {"theirs": "2"}}}, "status"),
        ({"status": {"capacity": {"acme.com/npu": "9"}}}, "status"),
        ({"status": {"conditions": [{**theirs, "status": "False"}]}}, "status"),
    ):
        assert refused(body, subresource), body
    ours = {"driver.rm-abstract.io/npus": "1.2", "driver.rm-abstract.io/old": "2"}
    assert change({"metadata": {"labels": ours}})["metadata"]["labels"] == {"theirs": "1", **ours}
    assert change({})["metadata"]["labels"] == {"theirs": "1"}
    condition = {**theirs, "type": "rm-abstract.io/AcceleratorUnhealthy"}
    live = change({"status": {"conditions": [condition]}}, "status")
    assert [each["type"] for each in live["status"]["conditions"]] == ["Ready", condition["type"]]


_keys = iter(range(1, 10**6))


def _artifact(**changes: Any) -> Object:
    return custom_object(B, changed(B, key=f"{next(_keys):064x}"[::-1], **changes), "default")


def _model(name: str | None = None, **changes: Any) -> Object:
    return custom_object(M, changed(M, **changes), "default", name)


def _engine(*names: str) -> list[Object]:
    return [{"name": name, "value": "1"} for name in names]


REFUSED_AT_FIRST = {
    A: custom_object(A, SMALLEST[A], "default"),
    P: custom_object(P, SMALLEST[P], "default"),
    B: _artifact(),
    M: _model(runtime__env=_engine("RBLN_LOG_LEVEL")),
}

STATUS: Object = {"attempts": 1, "location": "store/a@sha256:0"}
WRITES: dict[str, Callable[[Cluster, Object, User], Any]] = {
    "create": lambda cluster, obj, by: cluster.kubectl("create", "-f", "-", by=by, stdin=_artifact()),
    "label": lambda cluster, obj, by: cluster.kubectl("label", *_named(obj), "a=b", by=by),
    "finalizer": lambda cluster, obj, by: cluster.kubectl(*_patch(obj), '{"metadata":{"finalizers":["a.b/c"]}}', by=by),
    "status": lambda cluster, obj, by: cluster.apply({**_bare(obj), "status": STATUS}, by=by, subresource="status"),
    "delete": lambda cluster, obj, by: cluster.kubectl("delete", *_named(obj), "--wait=false", by=by),
}  # fmt: skip


def _named(obj: Object) -> tuple[str, str, str]:
    return "bart", obj["metadata"]["name"], "--namespace=default"


def _patch(obj: Object) -> tuple[str, ...]:
    return ("patch", *_named(obj), "--type=merge", "--patch")


def _bare(obj: Object) -> Object:
    metadata = {"name": obj["metadata"]["name"], "namespace": "default"}
    return {"apiVersion": obj["apiVersion"], "kind": obj["kind"], "metadata": metadata}


BY_OPERATOR_ONLY = "BuildArtifacts are written by the operator only; write a ModelDeployment"
LATER = "an artifact is deleted by the operator once nothing uses it; to have one built again sooner, ask whoever runs"


@pytest.mark.parametrize("user", [OPERATOR, BACKUP])
def test_the_operator_and_who_is_named_write_artifacts(cluster: Cluster, user: User) -> None:
    # With the rights that the chart gives the operator.
    obj = cluster.apply(_artifact(), by=user)
    WRITES["status"](cluster, obj, user)
    cluster.kubectl(*_patch(obj), '{"metadata":{"finalizers":["a.b/c"]}}', by=user)
    cluster.kubectl(*_patch(obj), '{"metadata":{"finalizers":null}}', by=user)
    WRITES["delete"](cluster, obj, user)
    with pytest.raises(Refused, match="NotFound"):
        cluster.kubectl("get", *_named(obj))


@pytest.mark.parametrize(
    ("user", "write", "said"),
    [
        *((TENANT, write, BY_OPERATOR_ONLY) for write in ("create", "label", "finalizer", "status")),
        (TENANT, "delete", LATER),
        *((ADMIN, write, BY_OPERATOR_ONLY) for write in ("create", "label", "finalizer", "status")),
        *((GARBAGE_COLLECTOR, write, BY_OPERATOR_ONLY) for write in ("label", "finalizer", "status")),
    ],
)
def test_nobody_else_does(cluster: Cluster, user: User, write: str, said: str) -> None:
    obj = cluster.apply(_artifact(), by=OPERATOR)
    with pytest.raises(Refused, match=said):
        WRITES[write](cluster, obj, user)
    after = json.loads(cluster.kubectl("get", *_named(obj), "-o", "json"))
    assert after["metadata"]["resourceVersion"] == obj["metadata"]["resourceVersion"]


@pytest.mark.parametrize("user", [ADMIN, NAMESPACE_CONTROLLER, GARBAGE_COLLECTOR])
def test_kubernetes_and_who_runs_the_cluster_take_artifacts_away(cluster: Cluster, user: User) -> None:
    obj = cluster.apply(_artifact(), by=OPERATOR)
    # What waits for its deletion may lose what it waits for; nothing else of it may change.
    cluster.kubectl(*_patch(obj), '{"metadata":{"finalizers":["a.b/c"]}}', by=OPERATOR)
    WRITES["delete"](cluster, obj, user)
    if user != NAMESPACE_CONTROLLER:  # It has no right to change anything.
        with pytest.raises(Refused, match=BY_OPERATOR_ONLY):
            WRITES["status"](cluster, obj, user)
        cluster.kubectl(*_patch(obj), '{"metadata":{"finalizers":null}}', by=user)
        with pytest.raises(Refused, match="NotFound"):
            cluster.kubectl("get", *_named(obj))


def test_all_artifacts_of_a_namespace_go_with_it(cluster: Cluster) -> None:
    cluster.kubectl("create", "namespace", "leaving")
    obj = _artifact()
    obj["metadata"]["namespace"] = "leaving"
    cluster.apply(obj, by=OPERATOR)
    path = "/apis/rm-abstract.io/v1alpha1/namespaces/leaving/buildartifacts"
    with pytest.raises(Refused, match="an artifact is deleted by the operator"):
        cluster.kubectl("delete", "bart", "--all", "--namespace=leaving", by=TENANT)
    cluster.kubectl("delete", "--raw", path, by=NAMESPACE_CONTROLLER)
    assert json.loads(cluster.kubectl("get", "--raw", path))["items"] == []


ENV = "spec.runtime.env: deployments may not set "


@pytest.mark.parametrize(
    "env", [[], _engine("LOG_LEVEL", "TZ", "OMP_NUM_THREADS", "VLLM_LOGGING_LEVEL", "OPENVINO_LOG_LEVEL")]
)
def test_variables_of_the_list_are_taken(cluster: Cluster, env: list[Object]) -> None:
    cluster.apply(_model(runtime__env=env), by=TENANT)


@pytest.mark.parametrize("user", [TENANT, ADMIN])
def test_other_variables_are_not_whoever_sets_them(cluster: Cluster, user: User) -> None:
    with pytest.raises(Refused, match=f"{ENV}RBLN_LOG_LEVEL, MKL_NUM_THREADS in this cluster; allowed: LOG_LEVEL, TZ"):
        cluster.apply(_model(runtime__env=_engine("TZ", "RBLN_LOG_LEVEL", "MKL_NUM_THREADS")), by=user)


def _image(kind: str, **changes: Any) -> Object:
    trusted = {"runtime__image": TRUSTED} if kind == A else {"steps": [{**STEP, "image": TRUSTED}]}
    return custom_object(kind, changed(kind, **{**trusted, **changes}), "default")


@pytest.mark.parametrize(
    "obj",
    [
        _image(A),
        _image(A, devicePlugin={"image": "registry.example:5000/a/b@sha256:0"}),
        _image(P),
        _image(P, probe={"image": "registry.example:5000/check", "command": ["check"]}),
    ],
    ids=lambda obj: obj["kind"],
)
def test_images_of_trusted_registries_are_taken(cluster: Cluster, obj: Object) -> None:
    cluster.apply(obj, by=ADMIN)


@pytest.mark.parametrize(
    ("obj", "images"),
    [
        (_image(A, runtime__image="acme/serve:1"), "acme/serve:1"),
        (_image(A, devicePlugin={"image": "docker.io/acme/plugin:1"}), "docker.io/acme/plugin:1"),
        (_image(A, runtime__image="a/b", devicePlugin={"image": "c/d"}), "a/b, c/d"),
        (_image(A, runtime__image="ghcr.io/rm-abstract-evil/serve:1"), "ghcr.io/rm-abstract-evil/serve:1"),
        (_image(A, runtime__image="ghcr.io/rm-abstract"), "ghcr.io/rm-abstract"),
        (_image(A, runtime__image=f"evil.io/{TRUSTED}"), f"evil.io/{TRUSTED}"),
        (_image(A, runtime__image="registry.example/serve:1"), "registry.example/serve:1"),
        (_image(P, steps=[{**STEP, "image": TRUSTED}, {**STEP, "name": "b", "image": "acme/cc:2"}]), "acme/cc:2"),
        (_image(P, probe={"image": "acme/check:1", "command": ["check"]}), "acme/check:1"),
    ],
    ids=lambda value: value if isinstance(value, str) else value["kind"],
)
def test_images_of_other_registries_are_not(cluster: Cluster, obj: Object, images: str) -> None:
    said = f"no image allowed in this cluster: {images}; write images with their registry, beginning with one of "
    with pytest.raises(Refused) as refusal:
        cluster.apply(obj, by=ADMIN)
    assert said + "ghcr.io/rm-abstract/, registry.example:5000/ (policies.images.allowedPrefixes" in str(refusal.value)


def test_what_was_there_before_a_list_was_changed_goes_on(cluster: Cluster) -> None:
    """Replicas, other fields and finalizers of it still change; what is refused is new trouble."""
    name, kept = "kept", ["TZ"]
    model, accelerator, profile = _model(name, runtime__env=_engine("TZ")), _image(A), _image(P)
    for obj in (model, accelerator, profile):
        cluster.apply(obj, by=ADMIN)
    wide = {"artifacts": {"writers": [*BACKUP]}, "images": {"allowedPrefixes": PREFIXES}}
    cluster.install(**{**wide, "runtime": {"allowedEnv": ["LOG_LEVEL"]}, "images": {"allowedPrefixes": ["other.io/"]}})
    try:
        cluster.until_refused(_model(runtime__env=_engine(*kept)), f"{ENV}TZ in this cluster; allowed: LOG_LEVEL (")
        for kind in (A, P):
            cluster.until_refused(_image(kind), f"no image allowed in this cluster: {TRUSTED}", by=ADMIN)
        cluster.apply(_model(name, runtime__env=_engine("LOG_LEVEL", "TZ"), suspend=True), by=ADMIN)
        cluster.kubectl("scale", f"mdep/{name}", "--namespace=default", "--replicas=3", by=TENANT)
        with pytest.raises(Refused, match=f"{ENV}OMP_NUM_THREADS in"):
            cluster.apply(_model(name, runtime__env=_engine("TZ", "OMP_NUM_THREADS")), by=ADMIN)
        for obj in (accelerator, profile):
            patch = json.dumps({"metadata": {"finalizers": ["rm-abstract.io/in-use"]}})
            resource = ("patch", obj["kind"].lower(), obj["metadata"]["name"], "--type=merge", "--patch")
            cluster.kubectl(*resource, patch, by=OPERATOR)
            cluster.kubectl(*resource, '{"metadata":{"finalizers":null},"spec":{"priority":3}}', by=ADMIN)
        devices = {**accelerator, "spec": {**accelerator["spec"], "devicePlugin": {"image": "ghcr.io/rm-abstract/p"}}}
        with pytest.raises(Refused, match=r"no image allowed in this cluster: ghcr\.io/rm-abstract/p;"):
            cluster.apply(devices, by=ADMIN)
    finally:
        cluster.install(**wide)
        for obj in (REFUSED_AT_FIRST[A], REFUSED_AT_FIRST[P]):
            cluster.until_refused(obj, "beginning with one of ghcr.io/rm-abstract/", by=ADMIN)
        cluster.until_refused(REFUSED_AT_FIRST[M], "allowed: LOG_LEVEL, TZ")


BUILDS = names.BUILDS_NAMESPACE
TEAM = ("somebody-of-the-team",)


def _plain(kind: str, namespace: str) -> Object:
    """Something that a build is made of, or that says what a model is."""
    metadata = {"name": f"x-{next(_keys)}", "namespace": namespace}
    container = {"name": "c", "image": "i"}
    pod = {"containers": [container], "restartPolicy": "Never"}
    return {
        "Pod": {"apiVersion": "v1", "kind": "Pod", "spec": pod},
        "Job": {"apiVersion": "batch/v1", "kind": "Job", "spec": {"template": {"spec": pod}}},
        "ConfigMap": {"apiVersion": "v1", "kind": "ConfigMap", "data": {"model.json": "{}"}},
        "Secret": {"apiVersion": "v1", "kind": "Secret", "stringData": {"netrc": "x"}},
    }[kind] | {"metadata": metadata}


@pytest.fixture(scope="module")
def team(cluster: Cluster) -> str:
    """A namespace whose people may do what editors may, and the roles of the chart for them."""
    cluster.kubectl("create", "namespace", "team")
    for role in ("system:aggregate-to-edit", "rma-edit", "rma-view"):
        binding = role.replace(":", "-")
        cluster.kubectl("create", "rolebinding", binding, f"--clusterrole={role}", f"--user={TEAM[0]}", "-n", "team")
    return "team"


@pytest.mark.parametrize("kind", ["Job", "ConfigMap", "Secret", M])
def test_whoever_edits_a_namespace_writes_nothing_where_shared_artifacts_are_built(
    cluster: Cluster, team: str, kind: str
) -> None:
    def made(namespace: str) -> Object:
        return custom_object(M, SMALLEST[M], namespace) if kind == M else _plain(kind, namespace)

    cluster.until(lambda: cluster.kubectl("create", "-f", "-", by=TEAM, stdin=made(team)), "it may in its own", 30)
    with pytest.raises(Refused, match=rf"cannot create resource .* in the namespace \"{BUILDS}\""):
        cluster.kubectl("create", "-f", "-", by=TEAM, stdin=made(BUILDS))


@pytest.mark.parametrize("namespace", ["team", BUILDS])
@pytest.mark.parametrize("user", [TEAM, TENANT, ADMIN])
def test_nobody_but_the_operator_makes_an_artifact_wherever_it_would_be(
    cluster: Cluster, team: str, user: User, namespace: str
) -> None:
    artifact = {**_artifact(), "metadata": {**_artifact()["metadata"], "namespace": namespace}}
    artifact["metadata"]["name"] = artifact_name(artifact["spec"]["key"])
    with pytest.raises(Refused, match=r"[Ff]orbidden"):
        cluster.kubectl("create", "-f", "-", by=user, stdin=artifact)
    made = cluster.apply(artifact, by=OPERATOR)
    bare = {**_bare(made), "metadata": {"name": made["metadata"]["name"], "namespace": namespace}}
    with pytest.raises(Refused, match=r"[Ff]orbidden"):
        cluster.apply({**bare, "status": STATUS}, by=user, subresource="status")
    if user is not ADMIN:
        with pytest.raises(Refused, match=r"[Ff]orbidden"):
            cluster.kubectl("delete", B.lower(), made["metadata"]["name"], "-n", namespace, by=user)


@pytest.mark.parametrize("user", [TENANT, ADMIN])
def test_no_model_is_deployed_where_shared_artifacts_are_built(cluster: Cluster, user: User) -> None:
    obj = custom_object(M, SMALLEST[M], BUILDS)
    cluster.until_refused(obj, "deploy models in another one", by=user)


def test_an_editor_of_a_namespace_gets_no_token_of_the_one_that_pushes_what_all_share(
    cluster: Cluster, team: str
) -> None:
    cluster.kubectl("create", "serviceaccount", "default", "-n", BUILDS)
    with pytest.raises(Refused, match="cannot create resource"):
        cluster.kubectl("create", "token", "default", "-n", BUILDS, by=TEAM)


EVERYTHING = ("create", "get", "list", "watch", "update", "patch", "delete")
READ = ("get", "list", "watch")
OURS = {"modeldeployments", "buildartifacts", "acceleratorresources", "buildprofiles"}


@pytest.mark.parametrize(
    ("role", "granted"),
    [
        ("edit", {"modeldeployments": EVERYTHING, "modeldeployments/scale": ("get", "update", "patch")}),
        ("view", dict.fromkeys(OURS, READ)),
    ],
)
def test_the_roles_that_are_aggregated_give_tenants_what_is_theirs(
    cluster: Cluster, role: str, granted: dict[str, tuple[str, ...]]
) -> None:
    """The controller that aggregates them is not here; their labels are what it goes by."""
    user = (f"{role}or",)
    cluster.kubectl("create", "clusterrolebinding", f"as-{role}", f"--clusterrole=rma-{role}", f"--user={user[0]}")
    labels = json.loads(cluster.kubectl("get", "clusterrole", f"rma-{role}", "-o", "json"))["metadata"]["labels"]
    assert labels[f"rbac.authorization.k8s.io/aggregate-to-{role}"] == "true"

    def rights() -> dict[str, set[str]]:
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview",
                  "spec": {"namespace": "default"}}  # fmt: skip
        path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
        answer = json.loads(cluster.kubectl("create", "--raw", path, "-f", "-", by=user, stdin=review))
        found = [rule for rule in answer["status"]["resourceRules"] if rule["apiGroups"] == ["rm-abstract.io"]]
        return {resource: set(rule["verbs"]) for rule in found for resource in rule["resources"]}

    cluster.until(rights, "the binding is taken up")
    assert rights() == {resource: set(verbs) for resource, verbs in granted.items()}


def test_the_names_that_the_tests_give_are_those_of_their_keys() -> None:
    obj = _artifact()
    assert obj["metadata"]["name"] == artifact_name(obj["spec"]["key"])


def _slice(node: str | None) -> Object:
    """A ResourceSlice of a node, or of all."""
    spec = {"driver": "npu.acme.com", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}}
    where: Object = {"allNodes": True} if node is None else {"nodeName": node}
    return {
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": f"s-{node}".lower()},
        "spec": {**spec, **where},
    }  # fmt: skip


def test_a_device_driver_writes_slices_of_its_own_node_only(cluster: Cluster, tmp_path: Path) -> None:
    cluster.install()

    def write(verb: str, node: str | None, *, on: str | None) -> str:
        config = yaml.safe_load(cluster.kubeconfig.read_text())
        extra = {"as-user-extra": {"authentication.kubernetes.io/node-name": [on]}} if on else {}
        config["users"][0]["user"] |= {"as": "system:serviceaccount:system:rma-device-driver", **extra}
        (tmp_path / "driver").write_text(yaml.safe_dump(config))
        return cluster.kubectl(verb, f"--kubeconfig={tmp_path / 'driver'}", "-f", "-", stdin=_slice(node))

    words = "may write ResourceSlices of the node that its pod runs on only"

    def refused(verb: str, node: str | None, on: str | None) -> bool:
        try:
            write(verb, node, on=on)
        except Refused as refusal:
            return words in str(refusal)
        return False

    # Until the policy is taken up such a slice is made; whoever may everything takes it away again.
    def in_force() -> bool:
        if refused("create", "other", on="mine"):
            return True
        cluster.kubectl("delete", "--ignore-not-found", "resourceslice", "s-other")
        return False

    cluster.until(in_force, "the slice of another node is refused")
    assert refused("create", "mine", on=None)
    assert refused("create", None, on="mine")
    write("create", "mine", on="mine")
    assert refused("delete", "mine", on="other")
    write("delete", "mine", on="mine")
    cluster.kubectl("create", "-f", "-", stdin=_slice("other"))
    assert refused("delete", "other", on="mine")
    cluster.kubectl("delete", "resourceslice", "s-other")
