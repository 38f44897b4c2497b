"""The local cluster is a real one: pods, images, names, volumes and devices work as anywhere."""

import functools
import http.server
import json
import secrets
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rm_cli.kubectl import CommandFailed, Kubectl
from rm_local_cluster import Cluster, oci

PROBE_COMMANDS = ("sh", "cat", "httpd", "ls", "mount", "nslookup", "sleep", "wget")
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "runAsUser": 4242,
    "seccompProfile": {"type": "RuntimeDefault"},
}
ORDINARY = {"runAsUser": 0}
PRIVILEGED = {"privileged": True, **ORDINARY}


@pytest.fixture(scope="module")
def image(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image that this cluster has never seen, pushed to its registry; the name that pods use."""
    assert cluster.image_registry_push, "name a registry by RM_IMAGE_REGISTRY"
    archive = tmp_path_factory.mktemp("probe") / "probe.tar"
    busybox = oci.File(Path("/bin/busybox").read_bytes())
    links = {f"bin/{command}": "busybox" for command in PROBE_COMMANDS}
    files = {"bin/busybox": busybox, "once": oci.File(secrets.token_bytes(8))}
    digest = oci.write_archive(archive, "probe", files, entrypoint=["/bin/busybox"], links=links)
    name = "rm-abstract/probe"
    target = f"docker://{cluster.image_registry_push}/{name}:{secrets.token_hex(8)}"
    subprocess.run(
        [
            "skopeo",
            "copy",
            "--quiet",
            "--preserve-digests",
            "--dest-tls-verify=false",
            f"oci-archive:{archive}",
            target,
        ],
        check=True,
    )
    return f"{cluster.image_registry_pull}/{name}@{digest}"


@pytest.fixture
def free_namespace(cluster: Cluster) -> Iterator[Kubectl]:
    """A namespace in which pods may be privileged."""
    name = f"t-{secrets.token_hex(4)}"
    Kubectl(cluster).apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield Kubectl(cluster, name)
    Kubectl(cluster).delete("namespace", name, wait=False)


def pod(name: str, image: str, script: str, security: dict[str, Any], **spec: Any) -> dict[str, Any]:
    mounts = [{"name": volume["name"], "mountPath": f"/{volume['name']}"} for volume in spec.get("volumes", [])]
    container = {
        "name": "main",
        "image": image,
        "command": ["/bin/sh", "-c", script],
        "securityContext": security,
        "volumeMounts": mounts,
    }
    metadata = {"name": name, "labels": {"app": name}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"containers": [container], "restartPolicy": "Never", "terminationGracePeriodSeconds": 0, **spec},
    }


def start(kubectl: Kubectl, *objects: dict[str, Any]) -> None:
    """Create objects and wait until the pods among them are Ready."""
    kubectl.run("wait", "--for=create", "serviceaccount/default", "--timeout=120s")
    kubectl.apply(*objects)
    pods = [f"pod/{each['metadata']['name']}" for each in objects if each["kind"] == "Pod"]
    try:
        kubectl.run("wait", "--for=condition=Ready", *pods, "--timeout=120s")
    except CommandFailed as error:
        described = kubectl.run("describe", *pods)
        logs = [kubectl.run("logs", each, "--ignore-errors") for each in pods]
        raise AssertionError("\n".join([str(error), described, *logs])) from None


def host_path(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "hostPath": {"path": path, "type": "Directory"}}


def test_a_restricted_pod_runs_confined_with_an_image_from_the_registry(namespace: Kubectl, image: str) -> None:
    start(namespace, pod("confined", image, "sleep 600", RESTRICTED))
    status = namespace.run("exec", "confined", "--", "cat", "/proc/self/status")
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert facts["Uid"].split() == ["4242"] * 4
    assert (facts["Seccomp"], facts["NoNewPrivs"], int(facts["CapBnd"], 16)) == ("2", "1", 0)
    found = namespace.get("pod", "confined")
    assert found is not None
    assert found["status"]["containerStatuses"][0]["imageID"] == image


def test_a_restricted_namespace_refuses_a_privileged_pod(namespace: Kubectl, image: str) -> None:
    with pytest.raises(CommandFailed, match='violates PodSecurity "restricted'):
        namespace.apply(pod("privileged", image, "sleep 600", PRIVILEGED))


def test_names_services_and_volumes_work_for_a_user_without_rights(namespace: Kubectl, image: str) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "page"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "page"},
        "spec": {"selector": {"app": "server"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }
    serve = "echo served > /page/index.html && exec httpd -f -p 8080 -h /page"
    volume = {"name": "page", "persistentVolumeClaim": {"claimName": "page"}}
    server = pod("server", image, serve, RESTRICTED, volumes=[volume])
    server["spec"]["containers"][0]["readinessProbe"] = {"httpGet": {"port": 8080}, "periodSeconds": 1}
    start(namespace, claim, service, server, pod("client", image, "sleep 600", RESTRICTED))
    name = f"page.{namespace.namespace}.svc.cluster.local"
    address = namespace.run("get", "service", "page", "--output=jsonpath={.spec.clusterIP}")
    assert f"Address: {address}\n" in namespace.run("exec", "client", "--", "nslookup", name) + "\n"
    # Endpoints follow readiness, and the node's rules follow endpoints.
    fetch = "until wget -q -O - http://page; do sleep 0.1; done"
    assert namespace.run("exec", "client", "--", "sh", "-c", fetch, timeout=120) == "served\n"


def test_pods_reach_this_machine_by_name(cluster: Cluster, namespace: Kubectl, image: str, tmp_path: Path) -> None:
    if cluster.host_ip is None:
        assert cluster.driver != "node"
        return
    (tmp_path / "index.html").write_text("from the machine\n")
    handler = functools.partial(QuietHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer((cluster.host_ip, 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        start(namespace, pod("client", image, "sleep 600", RESTRICTED))
        url = f"http://host.rm-abstract.internal:{server.server_port}/"
        assert namespace.run("exec", "client", "--", "wget", "-q", "-O", "-", url) == "from the machine\n"
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
        pass


def test_devices_are_refused_unless_the_pod_may_use_them(cluster: Cluster, free_namespace: Kubectl, image: str) -> None:
    directory = f"/run/{secrets.token_hex(4)}"
    cluster.exec_in_node(["mkdir", directory])
    try:
        # The kernel's log: no runtime gives it to a container by itself, unlike /dev/null and its like.
        cluster.exec_in_node(["mknod", f"{directory}/npu0", "c", "1", "11"])
        volumes = [host_path("devices", directory)]
        start(
            free_namespace,
            pod("trusted", image, "sleep 600", PRIVILEGED, volumes=volumes),
            pod("ordinary", image, "sleep 600", ORDINARY, volumes=volumes),
        )
        attempt = ("--", "sh", "-c", "(: < /devices/npu0) 2>&1 && echo opened || true")
        assert free_namespace.run("exec", "trusted", *attempt) == "opened\n"
        assert "Operation not permitted" in free_namespace.run("exec", "ordinary", *attempt)
    finally:
        cluster.exec_in_node(["rm", "-r", directory])


def test_a_device_plugins_pod_finds_the_kubelets_socket(free_namespace: Kubectl, image: str) -> None:
    volumes = [host_path("plugins", "/var/lib/kubelet/device-plugins")]
    start(free_namespace, pod("plugin", image, "sleep 600", PRIVILEGED, volumes=volumes))
    assert "kubelet.sock" in free_namespace.run("exec", "plugin", "--", "ls", "/plugins").split()


def test_a_device_plugins_mounts_reach_other_pods(cluster: Cluster, free_namespace: Kubectl, image: str) -> None:
    directory = f"/run/{secrets.token_hex(4)}"
    cluster.exec_in_node(["mkdir", "-p", f"{directory}/shared"])
    try:
        mounter = pod("mounter", image, "sleep 600", PRIVILEGED, volumes=[host_path("base", directory)])
        mounter["spec"]["containers"][0]["volumeMounts"][0]["mountPropagation"] = "Bidirectional"
        start(free_namespace, mounter)
        script = "mount -t tmpfs none /base/shared && echo here > /base/shared/note"
        free_namespace.run("exec", "mounter", "--", "sh", "-c", script)
        start(free_namespace, pod("reader", image, "sleep 600", ORDINARY, volumes=[host_path("base", directory)]))
        assert free_namespace.run("exec", "reader", "--", "cat", "/base/shared/note") == "here\n"
    finally:
        cluster.exec_in_node(["sh", "-c", f"umount {directory}/shared; rm -r {directory}"], check=False)


def test_every_write_is_in_the_audit_log(cluster: Cluster, namespace: Kubectl) -> None:
    if cluster.audit_log is None:
        assert cluster.driver != "node"
        return
    name = f"audited-{secrets.token_hex(4)}"
    namespace.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}})
    lines = [line for line in cluster.audit_log.read_text().splitlines() if name in line]
    events = [json.loads(line) for line in lines]
    written = [event for event in events if event["verb"] == "patch"]
    assert [(event["level"], event["responseStatus"]["code"]) for event in written] == [("Metadata", 201)]
    assert written[0]["objectRef"]["namespace"] == namespace.namespace


def test_a_name_from_outside_is_answered_at_once(cluster: Cluster, namespace: Kubectl, image: str) -> None:
    start(namespace, pod("client", image, "sleep 600", RESTRICTED))
    started = time.monotonic()
    answer = namespace.run("exec", "client", "--", "sh", "-c", "nslookup model-hub.example. 2>&1; true")
    assert "NXDOMAIN" in answer
    assert time.monotonic() - started < 30, "a resolver that is out of reach would be waited for"
