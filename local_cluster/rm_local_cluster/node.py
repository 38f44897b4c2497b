"""A node of our own: starting, finding again, and ending it."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import addons, build, cgroups, egress, kept_images, network, worker
from .build import Progress
from .capabilities import has_capability
from .components import prepare
from .errors import LocalClusterError
from .families import NODE_FAMILIES
from .logs import last_lines
from .model import Cluster
from .packages import CNI_DIRECTORIES
from .paths import NodePaths
from .plan import PRIVATE, NodePlan
from .process import Process, wait_until
from .shell import run

_START_SECONDS = 240
_STOP_SECONDS = 60
_INOTIFY_INSTANCES = 1024


def up(paths: NodePaths, *, outside: bool, progress: Progress) -> Cluster:
    """Return the running node's cluster, starting it when there is none; `outside` lets its pods reach what this
    machine reaches.

    The caller holds the node's lock.
    """
    running = _reusable(paths, progress)
    if running is not None:
        if outside and not egress.is_open(paths):
            _equip(running, outside=True, progress=progress)
        return running
    binaries = build.ensure(NODE_FAMILIES, progress)
    stop(paths)
    plan = _plan(paths, binaries)
    progress(
        f"starting the node in {plan.addresses.block}: "
        f"the node is {plan.addresses.node}, this machine is {plan.addresses.host} to it"
    )
    try:
        _start(plan, progress)
        cluster = _cluster(plan)
        _equip(cluster, outside=outside, progress=progress)
    except BaseException:
        # The logs stay for whoever looks into it; the next `up` or `down` removes them.
        end(paths)
        raise
    paths.cluster.write_text(cluster.to_json(), encoding="utf-8")
    return cluster


def owner(paths: NodePaths) -> Process | None:
    """The supervisor of the node, None when it does not run."""
    process = Process.from_file(paths.owner)
    return process if process is not None and process.alive else None


def is_running(paths: NodePaths) -> bool:
    """Whether the node's supervisor runs and has seen no component die."""
    return owner(paths) is not None and report(paths).get("phase") == "Running"


def report(paths: NodePaths) -> dict[str, Any]:
    """What the supervisor last said: `phase`, `message`, `running`, `failed`; empty when it has said nothing."""
    try:
        said: dict[str, Any] = json.loads(paths.report.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return said


def restart(paths: NodePaths, component: str, timeout: float) -> None:
    """Have the supervisor kill a component and start it again; returns once it is up. The caller holds the node's
    lock.
    """
    process = owner(paths)
    said = report(paths)
    known = sorted({*said.get("running", ()), *said.get("failed", ())})
    if process is None:
        raise LocalClusterError(f"the node {paths.name} does not run; `rm-abstract up` starts it")
    if component not in known:
        raise LocalClusterError(f"the node has no component {component!r}; it has {', '.join(known)}")
    paths.restart_request.write_text(component, encoding="utf-8")
    process.signal(signal.SIGHUP)
    if not wait_until(lambda: not paths.restart_request.exists() or not process.alive, timeout):
        raise LocalClusterError(f"{component} did not come up again within {timeout:g} s")
    if not is_running(paths):
        raise LocalClusterError(f"{component} did not come up again: {report(paths).get('message')}")


def end(paths: NodePaths) -> None:
    """End the node if it runs, with its link and its control groups; its files stay. The caller holds the node's
    lock.
    """
    process = owner(paths)
    if process is not None:
        process.signal(signal.SIGTERM)
        if not wait_until(lambda: not process.alive, _STOP_SECONDS):
            process.signal(signal.SIGKILL)
            if not wait_until(lambda: not process.alive, _STOP_SECONDS):
                raise LocalClusterError(f"the node's supervisor, process {process.pid}, does not end even when killed")
    interface = Path("/sys/class/net") / network.interface_of(paths.name)
    # The kernel takes the link away with the network namespace, a moment after the last process.
    if not wait_until(lambda: not interface.exists(), 5):
        network.disconnect(paths.name)
    egress.close(paths)
    if paths.root.exists():
        cgroups.remove_from_outside(paths.name)


def stop(paths: NodePaths) -> None:
    """End the node and remove its files; its image store stays. The caller holds the node's lock."""
    end(paths)
    if paths.root.exists():
        shutil.rmtree(paths.root)


def _reusable(paths: NodePaths, progress: Progress) -> Cluster | None:
    if owner(paths) is None:
        if paths.root.exists():
            progress(f"the node {paths.name} ended without being taken down; removing what it left")
        return None
    said = report(paths)
    if said.get("phase") == "Running" and paths.cluster.exists():
        cluster = Cluster.from_json(paths.cluster.read_text(encoding="utf-8"))
        if _answers(cluster):
            progress(f"the node {paths.name} is running")
            return cluster
        said["message"] = "its API server does not answer"
    progress(
        f"the node {paths.name} is not in order, starting it anew: {said.get('message') or 'it was never finished'}"
    )
    stop(paths)
    return None


def _answers(cluster: Cluster) -> bool:
    argv: list[str | Path] = [
        cluster.kubectl,
        "--kubeconfig",
        cluster.kubeconfig,
        "--request-timeout=10s",
        "get",
        "--raw",
        "/readyz",
    ]
    return run(argv, check=False).returncode == 0


def check_places(places: Iterable[Path]) -> None:
    """Raise LocalClusterError for a place that is hidden from a node by a directory of its own."""
    for place in places:
        hidden = next((directory for directory in PRIVATE if place.resolve().is_relative_to(directory)), None)
        if hidden is not None:
            raise LocalClusterError(
                f"a node cannot use {place}, as {hidden} is another directory to it; "
                "set XDG_CACHE_HOME and XDG_STATE_HOME to other places"
            )


def _plan(paths: NodePaths, binaries: Mapping[str, Path]) -> NodePlan:
    check_places([paths.root, paths.images, binaries["kubelet"]])
    cni = next((directory for directory in CNI_DIRECTORIES if (directory / "bridge").exists()), None)
    if cni is None:
        raise LocalClusterError("the CNI plugins are not installed: install the package containernetworking-plugins")
    mountinfo = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    return NodePlan(
        paths=paths,
        addresses=network.choose(network.networks_in_use()),
        binaries=binaries,
        archives=addons.write_images(paths.root / "archives", binaries),
        cni_directory=cni,
        may_lower_oom_score=has_capability("SYS_RESOURCE"),
        cgroup_version=cgroups.version(mountinfo),
    )


def _start(plan: NodePlan, progress: Progress) -> None:
    paths = plan.paths
    _allow_watches(progress)
    spec = prepare(plan)
    _forget_images(plan, progress)
    paths.spec.write_text(spec.to_json(), encoding="utf-8")
    reader, writer = os.pipe()
    try:
        supervisor = _launch(paths, reader)
        paths.owner.write_text(supervisor.to_json(), encoding="utf-8")
        network.connect(paths.name, plan.addresses, supervisor.pid)
        os.write(writer, b"go\n")
    finally:
        os.close(reader)
        os.close(writer)
    _await_running(paths, supervisor, progress)


def _forget_images(plan: NodePlan, progress: Progress) -> None:
    """Keep of what was pushed to the node before only what was pushed last."""
    if gone := kept_images.forget(worker.registry_storage(plan.paths)):
        run(worker.collect_garbage(plan), timeout=300, environment={**os.environ, "OTEL_TRACES_EXPORTER": "none"})
        progress(f"{gone} older images are gone from the node's registry")


def _launch(paths: NodePaths, go: int) -> Process:
    """Start the supervisor as the first process of new namespaces, in a session of its own; returns it, not the
    command around it.
    """
    code = "from rm_local_cluster.supervisor import main; raise SystemExit(main())"
    namespaces = ["unshare", "--net", "--mount", "--propagation=slave", "--pid", "--mount-proc", "--fork"]
    namespaces.append("--kill-child=SIGKILL")
    # The shell ends at once, so that the supervisor is nobody's child here and no one has to wait for it. What a shell
    # starts in the background reads from nowhere, unless it is given something else than the shell's own input.
    script = 'exec 3<&0; setsid "$@" <&3 3<&- >>"$LOG" 2>&1 & echo $!'
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "LOG": str(paths.logs / "supervisor.log"),
    }
    argv = ["sh", "-c", script, "sh", *namespaces, sys.executable, "-c", code, str(paths.spec)]
    outer = int(run(argv, environment=environment, stdin_from=go).stdout)
    children = Path(f"/proc/{outer}/task/{outer}/children")

    def child() -> Process | None:
        try:
            pids = children.read_text(encoding="ascii").split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return Process.of(int(pids[0])) if pids else None

    if not wait_until(lambda: child() is not None or Process.of(outer) is None, 10):
        raise LocalClusterError(f"process {outer} started no supervisor")
    supervisor = child()
    if supervisor is None:
        raise LocalClusterError(
            f"the node's namespaces could not be made: {last_lines(paths.logs / 'supervisor.log', 5)}"
        )
    return supervisor


def _allow_watches(progress: Progress) -> None:
    limit = Path("/proc/sys/fs/inotify/max_user_instances")
    if int(limit.read_text(encoding="ascii")) < _INOTIFY_INSTANCES:
        progress(f"raising fs.inotify.max_user_instances to {_INOTIFY_INSTANCES} for this machine")
        limit.write_text(str(_INOTIFY_INSTANCES), encoding="ascii")


def _await_running(paths: NodePaths, supervisor: Process, progress: Progress) -> None:
    told = ""

    def settled() -> bool:
        nonlocal told
        said = report(paths)
        if said.get("phase") == "Starting" and said["message"] != told:
            told = said["message"]
            progress(told)
        return said.get("phase") in {"Running", "Broken"} or not supervisor.alive

    if not wait_until(settled, _START_SECONDS):
        raise LocalClusterError(f"the node did not start within {_START_SECONDS} s: {report(paths).get('message')}")
    said = report(paths)
    if said.get("phase") == "Broken":
        raise LocalClusterError(f"the node did not start: {said['message']}")
    if said.get("phase") != "Running":
        raise LocalClusterError(f"the node's supervisor ended: {last_lines(paths.logs / 'supervisor.log', 10)}")


def _equip(cluster: Cluster, *, outside: bool, progress: Progress) -> None:
    """Bring what runs inside the cluster, and wait until the node takes pods and names resolve."""

    def kubectl(*arguments: str, stdin: str | None = None) -> None:
        run([cluster.kubectl, "--kubeconfig", cluster.kubeconfig, *arguments], stdin=stdin)

    addresses = network.of_node(cluster.node_ip or "")
    if outside:
        progress("letting pods reach the outside through this machine")
        egress.open_for(NodePaths(cluster.name), addresses)
    progress("waiting for the node to be Ready and for the cluster's DNS")
    manifests = addons.manifests(addresses, egress.resolvers() if outside else ())
    kubectl("apply", "--server-side", "--field-manager=rm-local-cluster", "-f", "-", stdin=manifests)
    node = f"node/{cluster.name}"
    kubectl("wait", "--for=create", node, "--timeout=60s")
    kubectl("wait", "--for=condition=Ready", node, "--timeout=60s")
    kubectl("--namespace=kube-system", "rollout", "status", "deployment/coredns", "--timeout=60s")


def _cluster(plan: NodePlan) -> Cluster:
    supervisor = owner(plan.paths)
    if supervisor is None:
        raise LocalClusterError(f"the node's supervisor ended: {report(plan.paths).get('message')}")
    tools = {plan.binaries[name].parent for name in ("kubectl", "ctr")}
    path = ":".join([*sorted(map(str, tools)), "/usr/sbin", "/usr/bin", "/sbin", "/bin"])
    return Cluster(
        name=plan.paths.name,
        driver="node",
        kubeconfig=plan.paths.kubeconfig,
        kubectl=plan.binaries["kubectl"],
        helm=plan.binaries["helm"],
        image_registry_push=plan.registry,
        image_registry_pull=plan.registry,
        node_ip=str(plan.addresses.node),
        host_ip=str(plan.addresses.host),
        audit_log=plan.paths.audit_log,
        node_exec=(
            *("nsenter", "--target", str(supervisor.pid), "--net", "--mount", "--pid", "--"),
            *("env", f"PATH={path}", f"KUBECONFIG={plan.paths.kubeconfig}", "CONTAINERD_NAMESPACE=k8s.io"),
        ),
    )
