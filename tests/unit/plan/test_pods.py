"""The pods that we make, held to the `restricted` Pod Security standard and to what they may see."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from chain import SETTINGS, World
from rm_api import names
from rm_api.base import EnvVar, Resources
from rm_operator.plan import build_job, pods
from rm_operator.plan.model import Settings, StoreConfig

Object = dict[str, Any]
SECRET = "hub"


@cache
def _pods(source: str = "hf://acme/cost$1", *, weights_in_artifact: bool = True) -> dict[str, Object]:
    """A pod of each role, with everything that a spec can ask for."""
    world = World()
    world.profiles = [
        type(view)(
            view.name,
            view.spec.model_validate(
                {
                    **view.spec.to_wire(),
                    "probe": {"image": "acme/cc:1", "command": ["check", "${OUTPUT}"]},
                    "resources": {"cpu": "500m", "memory": "4Gi"},
                    **({} if weights_in_artifact else {"weightsInArtifact": False, "binds": "Structure"}),
                }
            ),
        )
        for view in world.profiles
    ]
    world.deploy(model={"source": source, "revision": "$(HOME)", "credentialsSecretRef": SECRET})
    world.settle()
    found = {"resolve": world.jobs("resolve")[0]["spec"]["template"]["spec"]}
    world.resolve_model()
    world.settle()
    found["build"] = world.jobs("build")[0]["spec"]["template"]["spec"]
    world.build()
    world.settle()
    found["serve"] = world.of("Deployment")[0]["spec"]["template"]["spec"]
    return found


def _containers(pod: Object) -> Iterator[Object]:
    yield from pod.get("initContainers", [])
    yield from pod["containers"]


ROLES = pytest.mark.parametrize("role", ["resolve", "build", "serve"])

# https://kubernetes.io/docs/concepts/security/pod-security-standards/: volumes that `restricted` allows.
VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip


def _violations(pod: Object) -> list[str]:
    """What the `baseline` and `restricted` standards forbid, for pods of Linux."""
    found = [name for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)]
    outer = pod.get("securityContext", {})
    found += [f"volume {each['name']}" for each in pod.get("volumes", []) if not set(each) - {"name"} <= VOLUMES]
    found += ["sysctls"] if outer.get("sysctls") else []
    for container in _containers(pod):
        inner = container.get("securityContext", {})
        both = {**outer, **inner}
        capabilities = inner.get("capabilities", {})
        checks = {
            "privileged": not inner.get("privileged", False),
            "allowPrivilegeEscalation": inner.get("allowPrivilegeEscalation") is False,
            "runAsNonRoot": both.get("runAsNonRoot") is True,
            "runAsUser": both.get("runAsUser") != 0,
            "seccompProfile": both.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
            "capabilities.drop": "ALL" in capabilities.get("drop", []),
            "capabilities.add": set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"},
            "procMount": inner.get("procMount", "Default") == "Default",
            "seLinuxOptions": not both.get("seLinuxOptions"),
            "appArmorProfile": both.get("appArmorProfile", {}).get("type", "RuntimeDefault") != "Unconfined",
            "hostPort": not any(port.get("hostPort") for port in container.get("ports", [])),
        }
        found += [f"{container['name']}: {name}" for name, passed in checks.items() if not passed]
    return found


@ROLES
def test_the_restricted_standard_is_kept(role: str) -> None:
    assert _violations(_pods()[role]) == []


def test_the_check_of_the_standard_sees_what_breaks_it() -> None:
    broken: Object = {
        "hostNetwork": True,
        "volumes": [{"name": "root", "hostPath": {"path": "/"}}],
        "containers": [{"name": "c", "securityContext": {"privileged": True, "capabilities": {"add": ["SYS_ADMIN"]}}}],
    }
    assert {finding.split(": ")[-1] for finding in _violations(broken)} == {
        "hostNetwork", "volume root", "privileged", "allowPrivilegeEscalation", "runAsNonRoot", "seccompProfile",
        "capabilities.drop", "capabilities.add",
    }  # fmt: skip


@ROLES
def test_root_is_read_only_and_home_is_an_empty_directory(role: str) -> None:
    pod = _pods()[role]
    for container in _containers(pod):
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert {"name": "HOME", "value": "/tmp"} in container["env"]
        needs_no_home = container["name"] == "launcher"
        assert needs_no_home or "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]]


@pytest.mark.parametrize("role", ["build", "serve"])
def test_what_runs_engines_and_compilers_has_shared_memory_of_a_bounded_size(role: str) -> None:
    pod = _pods()[role]
    (volume,) = [each for each in pod["volumes"] if "medium" in each.get("emptyDir", {})]
    assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    shared = [
        container["name"]
        for container in _containers(pod)
        if {"name": volume["name"], "mountPath": "/dev/shm"} in container["volumeMounts"]
    ]
    assert shared == {"serve": ["engine"], "build": ["compile"]}[role]


@ROLES
def test_there_is_no_way_to_the_kubernetes_api(role: str) -> None:
    pod = _pods()[role]
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert "serviceAccountName" not in pod
    assert not [volume for volume in pod["volumes"] if "projected" in volume]


@ROLES
def test_a_container_leaves_its_report_where_the_operator_reads_it(role: str) -> None:
    for container in _containers(_pods()[role]):
        assert container["terminationMessagePath"] == names.TERMINATION_LOG
        assert container["terminationMessagePolicy"] == "File", "a log is no report"
        assert container["imagePullPolicy"] == SETTINGS.images.pull_policy


@ROLES
def test_mounts_are_of_volumes_that_exist_each_at_one_place(role: str) -> None:
    pod = _pods()[role]
    volumes = [volume["name"] for volume in pod["volumes"]]
    assert len(set(volumes)) == len(volumes)
    used = set()
    for container in _containers(pod):
        paths = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert len(set(paths)) == len(paths)
        used |= {mount["name"] for mount in container["volumeMounts"]}
    assert used == set(volumes)
    assert all("emptyDir" in volume or volume["name"] == "credentials" for volume in pod["volumes"])


@pytest.mark.parametrize(("role", "reader"), [("resolve", "resolve"), ("build", "fetch")])
def test_only_the_netrc_key_is_mounted_and_only_where_the_source_is_read(role: str, reader: str) -> None:
    pod = _pods()[role]
    secrets = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
    assert secrets == [{"secretName": SECRET, "defaultMode": 0o440, "items": [{"key": "netrc", "path": "netrc"}]}]
    for container in _containers(pod):
        mounts = [mount for mount in container["volumeMounts"] if mount["name"] == "credentials"]
        variables = {entry["name"]: entry["value"] for entry in container["env"]}
        if container["name"] != reader:
            assert mounts == []
            assert names.ENV_NETRC not in variables
            continue
        assert mounts == [{"name": "credentials", "mountPath": names.CREDENTIALS_DIR, "readOnly": True}]
        assert variables[names.ENV_NETRC] == f"{names.CREDENTIALS_DIR}/netrc"


READERS = {"resolve": "resolve", "build": "fetch", "serve": "fetch-model"}
AWS = {"secretName": SECRET, "defaultMode": 0o440, "items": [{"key": "aws", "path": "aws"}]}


@ROLES
@pytest.mark.parametrize(
    ("source", "variable", "mount", "volume"),
    [
        (
            "s3://models/llama",
            (names.ENV_AWS_CREDENTIALS, f"{names.CREDENTIALS_DIR}/aws"),
            {"name": "credentials-aws", "mountPath": names.CREDENTIALS_DIR, "readOnly": True},
            {"name": "credentials-aws", "secret": AWS},
        ),
        (
            "pvc://my.shelf/llms/llama",
            (names.ENV_PVC_DIR, names.VOLUMES_DIR),
            {"name": "source", "mountPath": f"{names.VOLUMES_DIR}/my.shelf", "readOnly": True},
            {"name": "source", "persistentVolumeClaim": {"claimName": "my.shelf", "readOnly": True}},
        ),
    ],
)
def test_what_a_scheme_needs_is_mounted_only_where_the_source_is_read(
    role: str, source: str, variable: tuple[str, str], mount: Object, volume: Object
) -> None:
    pod = _pods(source, weights_in_artifact=False)[role]
    assert [each for each in pod["volumes"] if "emptyDir" not in each] == [volume]
    assert _violations(pod) == []
    of_sources = {names.ENV_AWS_CREDENTIALS, names.ENV_PVC_DIR, names.ENV_NETRC}
    for container in _containers(pod):
        mounts = [each for each in container["volumeMounts"] if each["name"] == volume["name"]]
        found = {entry["name"]: entry["value"] for entry in container["env"] if entry["name"] in of_sources}
        reads = container["name"] == READERS[role]
        assert mounts == ([mount] if reads else [])
        assert found == (dict([variable]) if reads else {})


@pytest.mark.parametrize(
    ("endpoint", "source", "plain_http", "told"),
    [
        ("", "hf://o/m", False, {}),
        ("https://hub.example/hf", "hf://o/m", False, {"HF_ENDPOINT": "https://hub.example/hf"}),
        ("https://hub.example", "hf://o/m", True,
         {"HF_ENDPOINT": "https://hub.example", "RMA_PLAIN_HTTP_HOSTS": "store:5000"}),
        ("http://hub:8080/x", "hf://o/m", False,
         {"HF_ENDPOINT": "http://hub:8080/x", "RMA_PLAIN_HTTP_HOSTS": "hub:8080"}),
        ("http://hub:8080", "hf://o/m", True,
         {"HF_ENDPOINT": "http://hub:8080", "RMA_PLAIN_HTTP_HOSTS": "store:5000,hub:8080"}),
        ("http://hub:8080", "https://hub:8080/m", False, {}),
        ("http://hub:8080", "oci://hub:8080/m", False, {}),
    ],
)  # fmt: skip
def test_a_hub_of_ones_own_is_told_to_who_reads_from_a_hub(
    endpoint: str, source: str, plain_http: bool, told: dict[str, str]
) -> None:
    """Without TLS only where it is the installation's own endpoint that says so."""
    settings = replace(SETTINGS, hf_endpoint=endpoint, store=replace(SETTINGS.store, plain_http=plain_http))
    assert pods.source_access(settings, source, None) == (told, [], [])


def test_a_public_bucket_needs_no_secret() -> None:
    environment, mounts, volumes = pods.source_access(SETTINGS, "s3://models/llama", None)
    assert names.ENV_AWS_CREDENTIALS not in environment
    assert (mounts, volumes) == ([], [])


def test_serving_pods_have_no_credentials() -> None:
    assert [volume for volume in _pods()["serve"]["volumes"] if "secret" in volume] == []
    assert "valueFrom" not in str(_pods()["serve"])


@pytest.mark.parametrize(
    ("role", "container", "sealed"),
    [
        ("build", "compile", {"bin", "model"}),
        ("build", "probe", {"bin", "model", "output"}),
        ("serve", "engine", {"bin", "artifact"}),
    ],
)
def test_what_a_vendors_image_must_not_change_is_read_only(role: str, container: str, sealed: set[str]) -> None:
    mounts = next(each for each in _containers(_pods()[role]) if each["name"] == container)["volumeMounts"]
    assert {mount["name"] for mount in mounts if mount.get("readOnly")} == sealed


def test_a_build_runs_its_containers_in_order_under_the_launcher() -> None:
    pod = _pods()["build"]
    assert [container["name"] for container in _containers(pod)] == ["launcher", "fetch", "compile", "probe", "push"]
    for container in pod["initContainers"][2:]:
        assert container["command"][:2] == [names.LAUNCHER, "run"]


def test_what_a_tenant_wrote_reaches_the_program_as_written() -> None:
    # The kubelet turns $$ into $ and $(HOME) into the variable's value.
    resolve = _pods()["resolve"]["containers"][0]["command"]
    assert "--source=hf://acme/cost$$1" in resolve
    assert "--revision=$$(HOME)" in resolve


def _as_the_kubelet_expands(text: str, variables: dict[str, str]) -> str:
    """Expansion of $(NAME) and $$ in commands and environment, after Kubernetes' documentation."""
    result, rest = "", text
    while rest:
        before, dollar, rest = rest.partition("$")
        result += before
        if not dollar:
            break
        if rest.startswith("$"):
            result, rest = result + "$", rest[1:]
        elif rest.startswith("(") and ")" in rest:
            name, _, rest = rest[1:].partition(")")
            result += variables.get(name, f"$({name})")
        else:
            result += "$"
    return result


@pytest.mark.parametrize(
    "text", ["", "plain", "$", "$$", "$$$", "$(HOME)", "$$(HOME)", "${MODEL_DIR}", "$${X}", "a$b$(c", "5$ $(HOME)$"]
)
def test_a_literal_survives_the_kubelet(text: str) -> None:
    assert _as_the_kubelet_expands(pods.literal(text), {"HOME": "/root"}) == text
    merged = pods.env({"A": "1", "B": "2"}, [EnvVar(name="B", value=text)])
    assert [entry["name"] for entry in merged] == ["A", "B"], "the author's value takes the place of ours"
    assert _as_the_kubelet_expands(merged[1]["value"], {"HOME": "/root"}) == text


def test_the_steps_variables_are_the_whole_catalogue() -> None:
    step = next(each for each in _containers(_pods()["build"]) if each["name"] == "compile")
    assert {entry["name"] for entry in step["env"]} - {"HOME"} == names.BUILD_VARIABLES
    engine = _pods()["serve"]["containers"][0]
    from_the_device_plugin = {names.ENV_DEVICE_IDS, names.ENV_DEVICE_INDEXES}
    assert {entry["name"] for entry in engine["env"]} - {"HOME", names.ENV_ENGINE_REPORT} == (
        names.SERVE_VARIABLES - from_the_device_plugin
    )


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, {}),
        ({"cpu": "1"}, {"requests": {"cpu": "1"}}),
        ({"memory": "1Gi"}, {"requests": {"memory": "1Gi"}, "limits": {"memory": "1Gi"}}),
        ({"cpu": "2", "memory": "1Gi"}, {"requests": {"cpu": "2", "memory": "1Gi"}, "limits": {"memory": "1Gi"}}),
    ],
)
def test_memory_is_limited_to_what_is_requested_and_cpu_is_not(wanted: Object, expected: Object) -> None:
    assert pods.resources(Resources(**wanted)) == expected


def test_volumes_are_bounded_by_the_scratch_size() -> None:
    sizes = {volume["name"]: volume["emptyDir"] for volume in _pods()["build"]["volumes"] if "emptyDir" in volume}
    bounded = {"sizeLimit": "20Gi"}
    memory = sizes.pop("shm")
    assert memory["medium"] == "Memory"
    assert sizes == {"bin": {}, "tmp": {}, **dict.fromkeys(("model", "work", "output", "cache"), bounded)}


@pytest.mark.parametrize("plain_http", [True, False])
def test_the_store_is_spoken_to_without_tls_only_where_that_is_configured(plain_http: bool) -> None:
    settings = Settings(SETTINGS.images, StoreConfig("store:5000", plain_http), "system")
    environment, _, _ = pods.source_access(settings, "hf://acme/model", None)
    assert environment == ({"RMA_PLAIN_HTTP_HOSTS": "store:5000"} if plain_http else {})


def test_the_name_of_a_job_is_made_of_the_artifact_and_the_attempt() -> None:
    assert build_job.job_name("a-" + "0" * 10, build_job.Run(3)) == "b-" + "0" * 10 + "-3"


def test_a_later_job_of_an_attempt_has_its_number_after_that() -> None:
    assert build_job.job_name("a-" + "0" * 10, build_job.Run(3, stage=1)) == "b-" + "0" * 10 + "-3-2"
