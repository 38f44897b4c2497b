"""The chart's registry in a real cluster: real pods and their projected tokens, keys that change, a switch to TLS.

The tests build on one another, in order: the installation begins without TLS and tokens, with an artifact built in it.
Its compiler is a small program of this file.
"""

import json
import os
import ssl
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from installation import Installed
from rm_abstract.store.reference import Reference
from rm_api import names
from rm_cli import release
from rm_cli.kubectl import CommandFailed, Kubectl, run, wait_until
from rm_cli.offline_import import FIELD_MANAGER
from rm_cli.store_access import Store
from scripted_model import write_model
from support import deploy, in_the_store, wait_for

Object = dict[str, Any]
OFF = [f"--set=store.registry.{part}.enabled=false" for part in ("tls", "auth")]
PROGRAM = 'import pathlib; pathlib.Path("/rma/output/result.bin").write_bytes(b"compiled" * 1000)'
BUILD_SECONDS = 240
KEY = "0" * 64
REFUSED = "exit code 64"
"""What a container of ours says of who may not: it is not worth another try."""


@dataclass(frozen=True)
class Kept:
    """An artifact that was built before anything was protected."""

    kubectl: Kubectl
    source: str
    profile: str
    name: str
    digest: str


@pytest.fixture(scope="module")
def kept(installed: Installed, module_namespace: Kubectl) -> Iterator[Kept]:
    """The installation with TLS and tokens, that was without them when the artifact was built."""
    release.install(installed.cluster, installed.references, *OFF)
    try:
        store = Store.find(installed.system)
        assert store is not None
        assert store.plain_http
        source = _push_model(installed)
        profile = f"quick-{module_namespace.namespace}"
        step = {"name": "compile", "image": installed.references["runtime"], "command": ["python3", "-c", PROGRAM]}
        spec = {
            "target": {"type": "NPU", "vendor": "RM Abstract"}, "priority": -100, "interface": "CLI",
            "output": {"format": "quick"}, "shapes": {"sequence": [512, 1024]}, "steps": [step], "timeoutSeconds": 300,
        }  # fmt: skip
        module_namespace.apply(
            {"apiVersion": names.API_VERSION, "kind": "BuildProfile", "metadata": {"name": profile}, "spec": spec}
        )
        deploy(module_namespace, "first", source, buildProfile=profile, replicas=0)
        deployment = wait_for(module_namespace, "first", "Built", on="ArtifactReady", timeout=BUILD_SECONDS)
        artifact = module_namespace.get("bart", deployment["status"]["artifact"])
        assert artifact is not None
    finally:
        release.install(installed.cluster, installed.references)
    yield Kept(module_namespace, source, profile, artifact["metadata"]["name"], artifact["status"]["digest"])
    module_namespace.delete("mdep", "first")
    module_namespace.delete("bprof", profile, wait=False)


def _push_model(installed: Installed) -> str:
    with tempfile.TemporaryDirectory() as directory:
        write_model(Path(directory))
        return release.ModelRegistry(installed.cluster).push(Path(directory), "models/registry-test", "1")


def test_what_was_there_before_it_was_switched_on_is_there_and_used(kept: Kept, installed: Installed) -> None:
    deploy(kept.kubectl, "second", kept.source, buildProfile=kept.profile, replicas=0)
    deployment = wait_for(kept.kubectl, "second", "Built", on="ArtifactReady")
    assert deployment["status"]["artifact"] == kept.name
    artifact = kept.kubectl.get("bart", kept.name)
    assert artifact is not None
    assert (artifact["status"]["attempts"], artifact["status"]["digest"]) == (1, kept.digest)
    with in_the_store(installed.cluster) as (host, registry):
        repository = names.artifact_repository(str(kept.kubectl.namespace), kept.name)
        assert registry.manifest(Reference.parse(f"{host}/{repository}:v1")).digest == kept.digest
    kept.kubectl.delete("mdep", "second")


def test_without_a_token_nothing_is_said(kept: Kept, installed: Installed) -> None:
    with installed.system.port_forward(f"svc/{release.REGISTRY_SERVICE}", 5000) as port:
        with pytest.raises(OSError, match="400"):
            _get(f"http://127.0.0.1:{port}/v2/")
        for path in ("", "_catalog", f"artifacts/{kept.kubectl.namespace}/{kept.name}/tags/list", "models/x/tags/list"):
            with pytest.raises(OSError, match="401"):
                _get(f"https://127.0.0.1:{port}/v2/{path}")


def _get(url: str) -> None:
    # Whose certificate it is does not matter here: nothing is shown to anybody.
    context = ssl._create_unverified_context()
    urllib.request.urlopen(url, timeout=60, context=context if url.startswith("https") else None).close()


class Pod:
    """A pod of the image that fetches and pushes, with what the operator gives such a container."""

    def __init__(self, kubectl: Kubectl, image: str, store: Store) -> None:
        self.kubectl = kubectl
        self._store = store
        token = {"audience": store.audience, "expirationSeconds": 3600, "path": "token"}
        other = {"audience": "vault", "expirationSeconds": 3600, "path": "other"}
        sources = [{"serviceAccountToken": token}, {"serviceAccountToken": other}]
        kubectl.apply(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "worker"},
                "spec": {
                    "automountServiceAccountToken": False,
                    "securityContext": {
                        "runAsNonRoot": True, "runAsUser": 65532, "fsGroup": 65532,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [
                        {
                            "name": "worker",
                            "image": image,
                            "command": ["sleep", "3600"],
                            "volumeMounts": [
                                {"name": "tmp", "mountPath": "/tmp"},
                                {"name": "store", "mountPath": names.STORE_DIR, "readOnly": True},
                            ],
                            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                        }
                    ],
                    "volumes": [
                        {"name": "tmp", "emptyDir": {}},
                        {"name": "store", "projected": {"defaultMode": 0o440, "sources": sources}},
                    ],
                    "terminationGracePeriodSeconds": 0,
                },
            }
        )  # fmt: skip
        kubectl.run("wait", "--for=condition=Ready", "pod/worker", "--timeout=180s", timeout=190)
        self.shell("mkdir /tmp/built && echo compiled > /tmp/built/result.bin")

    def shell(self, command: str) -> str:
        return self.kubectl.run("exec", "worker", "--", "sh", "-c", command)

    def rma(self, *arguments: str, token: str = f"{names.STORE_DIR}/token") -> str:
        """Runs ``rm-abstract``. Raises CommandFailed with its exit status."""
        environment = {
            "HOME": "/tmp",
            names.ENV_STORE: self._store.host,
            names.ENV_REGISTRY_TOKEN_FILE: token,
            names.ENV_REGISTRY_CA: self._store.authority,
        }
        variables = [f"{name}={value}" for name, value in environment.items()]
        return self.kubectl.run("exec", "worker", "--", "env", *variables, "rm-abstract", *arguments)

    def push(self, repository: str, **options: str) -> str:
        reference = f"--reference={self._store.host}/{repository}:v1"
        return self.rma("push", "--dir=/tmp/built", reference, f"--key={KEY}", "--format=quick", **options)

    def fetch(self, repository: str, digest: str, **options: str) -> str:
        self.shell("rm -rf /tmp/fetched")
        reference = f"--reference={self._store.host}/{repository}@{digest}"
        return self.rma("fetch", "artifact", reference, f"--key={KEY}", "--dest=/tmp/fetched", **options)


@dataclass(frozen=True)
class Neighbours:
    """Pods of two namespaces, and what one of them has pushed."""

    mine: Pod
    other: Pod
    repository: str
    digest: str


@pytest.fixture(scope="module")
def neighbours(kept: Kept, installed: Installed) -> Iterator[Neighbours]:
    store = Store.find(installed.system)
    assert store is not None
    further = Kubectl(installed.cluster, f"{kept.kubectl.namespace}-b")
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": further.namespace, "labels": labels}}
    installed.system.apply(namespace)
    try:
        mine, other = (Pod(each, installed.references["runtime"], store) for each in (kept.kubectl, further))
        repository = f"artifacts/{kept.kubectl.namespace}/by-hand"
        mine.push(repository)
        with in_the_store(installed.cluster) as (host, registry):
            digest = registry.manifest(Reference.parse(f"{host}/{repository}:v1")).digest
        yield Neighbours(mine, other, repository, digest)
    finally:
        installed.system.delete("namespace", str(further.namespace), wait=False)


def test_a_pod_reads_what_is_of_its_namespace_and_no_other_does(neighbours: Neighbours) -> None:
    neighbours.mine.fetch(neighbours.repository, neighbours.digest)
    assert neighbours.mine.shell("cat /tmp/fetched/result.bin").strip() == "compiled"
    with pytest.raises(CommandFailed, match=REFUSED):
        neighbours.other.fetch(neighbours.repository, neighbours.digest)
    assert neighbours.other.shell("find /tmp/fetched -name result.bin 2>/dev/null || true").strip() == ""


def test_a_pod_writes_nothing_of_another_namespace(neighbours: Neighbours, installed: Installed) -> None:
    neighbours.other.shell("echo poisoned > /tmp/built/result.bin")
    with pytest.raises(CommandFailed, match=REFUSED):
        neighbours.other.push(neighbours.repository)
    own = neighbours.repository.replace("/by-hand", "-b/by-hand")
    neighbours.other.push(own)
    with in_the_store(installed.cluster) as (host, registry):
        assert registry.manifest(Reference.parse(f"{host}/{neighbours.repository}:v1")).digest == neighbours.digest
        assert registry.resolve(Reference.parse(f"{host}/{own}:v1")) != neighbours.digest


def test_all_read_models_and_no_tenant_writes_one(neighbours: Neighbours, kept: Kept) -> None:
    for pod in (neighbours.mine, neighbours.other):
        pod.rma("resolve", f"--source={kept.source}")
        with pytest.raises(CommandFailed, match=REFUSED):
            pod.push("models/registry-test")
        with pytest.raises(CommandFailed, match=REFUSED):
            pod.push("elsewhere/model")


def test_tokens_that_are_for_others_or_over_are_refused(neighbours: Neighbours, installed: Installed) -> None:
    pod, repository, digest = neighbours.mine, neighbours.repository, neighbours.digest
    pod.fetch(repository, digest)
    with pytest.raises(CommandFailed, match=REFUSED):
        pod.fetch(repository, digest, token=f"{names.STORE_DIR}/other")
    # It is good as long as the object is there that it is bound to, and no longer.
    pod.kubectl.run("create", "secret", "generic", "bound")
    bound = ("--bound-object-kind=Secret", "--bound-object-name=bound", f"--audience={names.REGISTRY_AUDIENCE}")
    token = pod.kubectl.run("create", "token", "default", *bound).strip()
    pod.kubectl.run("exec", "-i", "worker", "--", "sh", "-c", "cat > /tmp/bound", stdin=token)
    pod.fetch(repository, digest, token="/tmp/bound")
    pod.kubectl.delete("secret", "bound")

    def over() -> bool:
        try:
            pod.fetch(repository, digest, token="/tmp/bound")
        except CommandFailed as error:
            return REFUSED in str(error)
        return False

    # The API server remembers for seconds what it has said of a token.
    wait_until("the token of an object that is gone is refused", over, timeout=120)
    assert "refused a token" in installed.system.run("logs", f"deploy/{release.REGISTRY_SERVICE}-auth", "--tail=1000")


def test_all_goes_on_with_another_key_for_tokens(neighbours: Neighbours, kept: Kept, installed: Installed) -> None:
    key = f"{release.REGISTRY_SERVICE}-signing"
    before = installed.system.get("secret", key)
    installed.system.delete("secret", key)
    release.install(installed.cluster, installed.references)
    after = installed.system.get("secret", key)
    assert before is not None
    assert after is not None
    assert before["data"]["tls.key"] != after["data"]["tls.key"]
    neighbours.mine.fetch(neighbours.repository, neighbours.digest)
    with pytest.raises(CommandFailed, match=REFUSED):
        neighbours.other.fetch(neighbours.repository, neighbours.digest)
    # A build of another shape: the operator asks the store, a pod pushes, the operator finds what it has pushed.
    shape = {"maxSequenceLength": 800}
    deploy(kept.kubectl, "third", kept.source, buildProfile=kept.profile, replicas=0, requirements=shape)
    deployment = wait_for(kept.kubectl, "third", "Built", on="ArtifactReady", timeout=BUILD_SECONDS)
    assert deployment["status"]["artifact"] != kept.name
    kept.kubectl.delete("mdep", "third")


def test_a_bundle_goes_out_and_comes_in_without_a_word_about_registries(
    kept: Kept, installed: Installed, tmp_path: Path
) -> None:
    cluster, bundle = installed.cluster, tmp_path / "bundle.tar"
    path = f"{cluster.kubectl.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig), "PATH": path}

    def artifacts(*arguments: str) -> str:
        return run([sys.executable, "-m", "rm_cli", "artifacts", *arguments], environment=environment)

    artifacts("export", "first", "-n", str(kept.kubectl.namespace), "-o", str(bundle))
    kept.kubectl.delete("mdep", "first")
    try:
        artifacts("import", str(bundle))
    finally:
        _let_go(installed)
    deployment = wait_for(kept.kubectl, "first", "Built", on="ArtifactReady", timeout=120)
    assert deployment["status"]["artifact"] == kept.name
    source = deployment["spec"]["model"]["source"]
    assert source != kept.source
    assert source.startswith(kept.source.partition("/models/")[0] + "/models/"), "what all may read"


def _let_go(installed: Installed) -> None:
    """What all tests share is not the import's any more, so that others may change it."""
    for name in (each["metadata"]["name"] for each in installed.system.list("accel")):
        nothing = {"apiVersion": names.API_VERSION, "kind": "AcceleratorResource", "metadata": {"name": name}}
        manager = f"--field-manager={FIELD_MANAGER}"
        installed.system.run("apply", "--server-side", manager, "-f", "-", stdin=json.dumps(nothing))


def test_the_renewal_of_certificates_runs_and_finds_nothing_due(kept: Kept, installed: Installed) -> None:
    job = f"certificates-{kept.kubectl.namespace}"
    installed.system.run("create", "job", f"--from=cronjob/{release.REGISTRY_SERVICE}-certificates", job)
    try:
        installed.system.run("wait", "--for=condition=Complete", f"job/{job}", "--timeout=120s", timeout=130)
        assert "nothing is due" in installed.system.run("logs", f"job/{job}")
    finally:
        installed.system.delete("job", job, wait=False)
