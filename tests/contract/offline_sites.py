"""Two clusters that cannot reach each other: a real API server, a real registry and the operator as a process each.

What a kubelet would do for the operator's Jobs is done here: a resolve Job's command is run as it is; of a build Job
the stand-in for a compiler is run, and what it made is pushed. Nothing else acts on objects.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from real_api import ApiServer
from registry_server import RunningRegistry, running_registry
from rm_abstract.core.resource import BuildArtifact
from rm_abstract.store import ArtifactStore
from rm_api import names
from rm_cli.kubectl import CommandFailed, Kubectl, condition, wait_until
from rm_local_cluster import Cluster, build, families

Object = dict[str, Any]
ROOT = Path(__file__).parents[2]
PATIENCE = 180
DIGEST = "sha256:" + "d" * 64


@dataclass
class Site:
    """A cluster with its registry."""

    directory: Path
    registry: RunningRegistry
    cluster: Cluster
    done: set[str] = field(default_factory=set)
    """Jobs that were run."""

    def kubectl(self, namespace: str | None = None) -> Kubectl:
        return Kubectl(self.cluster, namespace)

    @property
    def environment(self) -> dict[str, str]:
        """That of somebody who works with this site and can reach no other."""
        kept = {name: value for name, value in os.environ.items() if name not in ("NETRC", "KUBECONFIG")}
        path = f"{self.cluster.kubectl.parent}:{os.environ['PATH']}"
        return {**kept, "PATH": path, "RMA_PLAIN_HTTP_HOSTS": self.registry.host}

    def command(self, *arguments: str) -> list[str]:
        """``rm-abstract artifacts ARGUMENTS`` against this site."""
        return [sys.executable, "-m", "rm_cli", "artifacts", *arguments, "--kubeconfig", str(self.cluster.kubeconfig)]

    def artifacts(self, *arguments: str, code: int = 0) -> str:
        """What that prints; it must end with ``code``."""
        done = subprocess.run(
            self.command(*arguments), env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == code, f"{done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def condition(self, kind: str, namespace: str, name: str, type_: str) -> Object:
        return condition(self.kubectl(namespace).get(kind, name), type_)

    def artifact_of(self, namespace: str, deployment: str) -> Object | None:
        """The BuildArtifact that a deployment asks for."""
        found = self.kubectl(namespace).get("mdep", deployment)
        wanted = ((found or {}).get("status") or {}).get("artifact")
        return self.kubectl(namespace).get("bart", wanted) if wanted else None

    def wait_for_artifact(self, namespace: str, deployment: str) -> Object:
        """That artifact, once it is Ready; Jobs are run meanwhile."""

        def ready() -> Object | None:
            self.run_jobs()
            found = self.artifact_of(namespace, deployment)
            return found if condition(found, "Ready").get("status") == "True" else None

        try:
            found: Object = wait_until(f"the artifact of {deployment} is Ready", ready, timeout=PATIENCE)
        except CommandFailed as error:
            log = (self.directory / "operator.log").read_text()[-3000:]
            status = (self.kubectl(namespace).get("mdep", deployment) or {}).get("status")
            raise AssertionError(f"{error}\n{json.dumps(status, indent=1)}\n{log}") from None
        return found

    def jobs(self, role: str) -> list[Object]:
        text = self.kubectl().run("get", "jobs", "-A", "-o", "json", "-l", f"{names.LABEL_ROLE}={role}")
        return list(json.loads(text)["items"])

    def run_jobs(self) -> None:
        """What a kubelet and the Job controller would have made of the Jobs that are there."""
        for role, run in ((names.ROLE_RESOLVE, self._resolve), (names.ROLE_BUILD, self._build)):
            for job in self.jobs(role):
                if job["metadata"]["uid"] not in self.done:
                    self.done.add(job["metadata"]["uid"])
                    run(job)

    def _resolve(self, job: Object) -> None:
        container = job["spec"]["template"]["spec"]["containers"][0]
        assert container["command"][0] == "rm-abstract"
        environment = {each["name"]: each.get("value", "") for each in container["env"]}
        message = self.directory / "termination"
        subprocess.run(
            [sys.executable, "-m", "rm_cli", *container["command"][1:]],
            env={**self.environment, **environment, "RMA_TERMINATION_LOG": str(message)}, check=True, timeout=120,
            capture_output=True,
        )  # fmt: skip
        self._end(job, message.read_text())

    def _build(self, job: Object) -> None:
        namespace, name = job["metadata"]["namespace"], job["metadata"]["labels"][names.LABEL_ARTIFACT]
        artifact = self.kubectl(namespace).get("bart", name)
        assert artifact is not None
        made = self.directory / "made"
        made.mkdir(exist_ok=True)
        (made / "compiled.bin").write_bytes(bytes(range(256)) * 40_000)
        with ArtifactStore() as store:
            described = BuildArtifact(made, artifact["spec"]["key"], artifact["spec"]["format"])
            store.push(described, f"{self.registry.host}/{names.artifact_repository(namespace, name)}:v1")
        self._end(job, json.dumps({"reason": "Built"}))

    def _end(self, job: Object, message: str) -> None:
        """The pod of a Job that succeeded, and the Job's own status."""
        kubectl = self.kubectl(job["metadata"]["namespace"])
        template = job["spec"]["template"]
        name = f"{job['metadata']['name']}-x"
        labels = {**template["metadata"]["labels"], "batch.kubernetes.io/job-name": job["metadata"]["name"]}
        pod = {
            "apiVersion": "v1", "kind": "Pod", "spec": template["spec"],
            "metadata": {"name": name, "namespace": job["metadata"]["namespace"], "labels": labels},
        }  # fmt: skip
        kubectl.apply(pod)
        moment = "2026-01-01T00:00:00Z"
        ended = {"exitCode": 0, "reason": "Completed", "startedAt": moment, "finishedAt": moment, "message": message}
        statuses = [
            {"name": each["name"], "image": each["image"], "imageID": f"x@{DIGEST}", "ready": False, "restartCount": 0,
             "state": {"terminated": ended if part == "containers" else {**ended, "message": ""}}}
            for part in ("containers",) for each in template["spec"][part]
        ]  # fmt: skip
        _patch(kubectl, "pod", name, {"phase": "Succeeded", "containerStatuses": statuses})
        said = {"status": "True", "lastTransitionTime": moment, "lastProbeTime": moment}
        conditions = [{"type": "SuccessCriteriaMet", **said}, {"type": "Complete", **said}]
        status = {"startTime": moment, "completionTime": moment, "succeeded": 1, "conditions": conditions}
        _patch(kubectl, "job", job["metadata"]["name"], status)


def _patch(kubectl: Kubectl, kind: str, name: str, status: Object) -> None:
    kubectl.run("patch", kind, name, "--subresource=status", "--type=merge", "-p", json.dumps({"status": status}))


@contextmanager
def site(directory: Path) -> Iterator[Site]:
    """A cluster with our kinds, a registry and a running operator that was told of it."""
    directory.mkdir()
    with ExitStack() as stack:
        registry = stack.enter_context(running_registry(directory))
        server = ApiServer(directory)
        stack.callback(server.stop)
        server.start()
        kubectl = build.ensure([families.KUBERNETES], print)["kubectl"]
        cluster = Cluster("tests", "existing", server.kubeconfig(directory / "kubeconfig"), kubectl, Path("helm"))
        found = Site(directory, registry, cluster)
        _install(found)
        environment = found.environment | {
            "KUBECONFIG": str(cluster.kubeconfig), "RMA_SYSTEM_NAMESPACE": "default", "RMA_STORE": registry.host,
            "RMA_STORE_PLAIN_HTTP": "true", "RMA_RUNTIME_IMAGE": "reg.example.com/rma/runtime:1",
            "RMA_LAUNCHER_IMAGE": "reg.example.com/rma/launcher:1", "RMA_LEADER_ELECT": "false",
            "RMA_METRICS_PORT": "0",
        }  # fmt: skip
        with (directory / "operator.log").open("wb") as log:
            argv = [sys.executable, "-m", "rm_operator", "run"]
            operator = subprocess.Popen(argv, env=environment, stdout=log, stderr=subprocess.STDOUT)
        stack.callback(_end, operator)
        yield found
        assert operator.poll() is None, (directory / "operator.log").read_text()[-4000:]


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()


def _install(found: Site) -> None:
    kubectl = found.kubectl()

    def served() -> bool:
        try:
            return bool(kubectl.run("get", "namespace", "default", "-o", "name"))
        except CommandFailed:
            return False

    wait_until("the API server serves", served, timeout=PATIENCE)
    crds = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds").glob("*.yaml"))]
    kubectl.apply(*crds)
    kubectl.run("wait", "--for=condition=Established", "crd", "--all", f"--timeout={PATIENCE}s", timeout=PATIENCE + 10)
    kubectl.apply(
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1", "labels": {"example.com/cpu": "yes"}}}
    )


def operator_objects(store: str) -> list[Object]:
    """What the chart would have installed, as far as the commands look at it: a Deployment, and a pod of it."""
    labels = {"app.kubernetes.io/name": "rm-abstract", "app.kubernetes.io/component": "operator"}
    variables = {
        "RMA_STORE": store, "RMA_RUNTIME_IMAGE": "reg.example.com/rma/runtime:1",
        "RMA_LAUNCHER_IMAGE": f"reg.example.com/rma/launcher:1@{DIGEST}",
    }  # fmt: skip
    env = [{"name": name, "value": value} for name, value in variables.items()]
    spec = {"containers": [{"name": "operator", "image": "reg.example.com/rma/operator:1", "env": env}]}
    deployment = {
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "rma-operator", "namespace": "default", "labels": labels},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}},
    }  # fmt: skip
    metadata = {"name": "rma-operator-1", "namespace": "default", "labels": labels}
    return [deployment, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}]
