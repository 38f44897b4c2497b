"""Starting, looking at and ending the local cluster, whatever drives it."""

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from . import existing, kind, machine, node, packages
from .build import Progress
from .errors import LocalClusterError
from .kubeconfig import named_by_user
from .model import Cluster, ComponentStatus, Driver, Finding, Status
from .paths import NodePaths, cluster_name, nodes_root
from .shell import run


def to_stderr(text: str) -> None:
    """Show progress on standard error; what `up` and `down` do unless told otherwise."""
    print(text, file=sys.stderr, flush=True)


def up(
    *,
    kubeconfig: Path | None = None,
    driver: Literal["auto"] | Driver = "auto",
    name: str | None = None,
    outside: bool | None = None,
    progress: Progress = to_stderr,
) -> Cluster:
    """Return a cluster that takes pods, starting one where there is none: in seconds, and in minutes the very first
    time.

    In this order: the cluster of a kubeconfig that the user names (the argument, RM_KUBECONFIG, KUBECONFIG), kind
    where a Docker engine answers, a node of our own; `driver` picks one of them instead. `name` tells several
    clusters apart (default: RM_LOCAL_CLUSTER_NAME, else `rma`). `outside` lets the pods of a node of our own reach
    what this machine reaches (default: RM_LOCAL_CLUSTER_OUTSIDE, else no): it is asked for, as it needs packet filter
    rules on the machine. `progress` gets one line at a time. Raises LocalClusterError, saying what to do.
    """
    paths = NodePaths(cluster_name(name))
    named, chosen = _choose(kubeconfig, driver)
    with _locked(paths, progress):
        if chosen == "existing":
            if named is None:
                raise LocalClusterError("no cluster is named: give a kubeconfig, or set RM_KUBECONFIG or KUBECONFIG")
            cluster = existing.use(paths.name, named, progress)
        elif chosen == "kind":
            command = kind.kind_command(progress)
            image = os.environ.get("RM_KIND_REGISTRY_IMAGE") or kind.REGISTRY_IMAGE
            cluster = kind.Kind(paths, command).up(kind.tools(progress), image, progress)
        else:
            if outside is None:
                outside = os.environ.get("RM_LOCAL_CLUSTER_OUTSIDE", "0") not in {"", "0"}
            if not node.is_running(paths):
                _prepare_machine(progress)
            cluster = node.up(paths, outside=outside, progress=progress)
        paths.chosen.write_text(cluster.to_json(), encoding="utf-8")
    return cluster


def down(*, name: str | None = None, purge: bool = False, progress: Progress = to_stderr) -> None:
    """End the cluster and leave nothing of it behind; a cluster that the user named is left alone.

    Binaries stay, and so do the images in the node's image store and registry, unless `purge`. Nothing happens when
    there is no cluster.
    """
    paths = NodePaths(cluster_name(name))
    with _locked(paths, progress):
        cluster = _chosen(paths)
        if cluster is not None and cluster.driver == "existing":
            progress(f"the cluster of {cluster.kubeconfig} is not ours and stays as it is")
        if cluster is not None and cluster.driver == "kind":
            kind.Kind(paths, kind.kind_command(progress)).down()
            progress("the kind cluster and its registry are deleted")
        if paths.root.exists():
            node.stop(paths)
            progress(f"the cluster {paths.name} is gone")
        paths.chosen.unlink(missing_ok=True)
        if purge and paths.images.exists():
            shutil.rmtree(paths.images)
            progress(f"the images of {paths.name} are gone")


def restart(component: str, *, name: str | None = None, timeout: float = 120, progress: Progress = to_stderr) -> None:
    """Kill a component of a node of our own, such as `kubelet` or `kube-apiserver`, as a crash would, and start it
    again.

    Returns when it is up. A component that is dead is started, which mends a node that is Broken. Raises
    LocalClusterError when there is no such component or node, and when it is not up within `timeout` seconds.
    """
    paths = NodePaths(cluster_name(name))
    with _locked(paths, progress):
        node.restart(paths, component, timeout)
        progress(f"{component} was restarted")


def status(*, name: str | None = None) -> Status:
    """Look at the cluster that `up` returned last; nothing is started or changed."""
    paths = NodePaths(cluster_name(name))
    cluster = _chosen(paths)
    if cluster is None:
        said = node.report(paths)
        if node.owner(paths) is not None and said.get("phase") == "Starting":
            return Status(paths.name, "Starting", str(said.get("message", "")))
        return Status(paths.name, "Absent", f"there is no cluster {paths.name}; `rm-abstract up` makes one")
    components = tuple(_components_of_node(paths)) if cluster.driver == "node" else ()
    broken = [component.message for component in components if not component.healthy]
    if cluster.driver == "node" and not broken and not node.is_running(paths):
        broken = ["the node's supervisor has ended; `rm-abstract up` starts it anew"]
    if broken:
        return Status(paths.name, "Broken", "\n".join(broken), cluster, None, components)
    server, inside = _inside(cluster)
    components += inside
    failing = [component.message for component in inside if not component.healthy]
    if failing:
        return Status(paths.name, "Broken", "\n".join(failing), cluster, server, components)
    return Status(paths.name, "Running", f"cluster {paths.name} is running", cluster, server, components)


def doctor(*, kubeconfig: Path | None = None, driver: Literal["auto"] | Driver = "auto") -> list[Finding]:
    """Say what `up` would use here, and what the machine lacks for it; nothing is started or installed."""
    named, chosen = _choose(kubeconfig, driver)
    return [machine.driver_finding(chosen, named), *machine.examine(chosen)]


def _choose(kubeconfig: Path | None, driver: Literal["auto"] | Driver) -> tuple[Path | None, Driver]:
    if driver in {"kind", "node"}:
        return None, driver
    named = named_by_user(kubeconfig)
    return named, "existing" if driver == "existing" else machine.choose_driver(named)


def _prepare_machine(progress: Progress) -> None:
    lacking = packages.missing()
    if lacking and packages.can_install():
        packages.install(lacking, progress)
    problems = [finding for finding in machine.examine("node") if finding.severity == "problem"]
    if problems:
        lines = [f"- {finding.message}: {finding.fix}" for finding in problems]
        raise LocalClusterError("\n".join(["no cluster can be started on this machine:", *lines]))


@contextmanager
def _locked(paths: NodePaths, progress: Progress) -> Iterator[None]:
    nodes_root().mkdir(parents=True, exist_ok=True)
    with paths.lock.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"another process is starting or ending the cluster {paths.name}; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _chosen(paths: NodePaths) -> Cluster | None:
    try:
        return Cluster.from_json(paths.chosen.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _components_of_node(paths: NodePaths) -> list[ComponentStatus]:
    said = node.report(paths)
    failed: dict[str, str] = said.get("failed", {})
    running: list[str] = said.get("running", []) if node.owner(paths) is not None else []
    return [
        *(ComponentStatus(name, False, message) for name, message in failed.items()),
        *(ComponentStatus(name, True, "runs") for name in running),
    ]


def _inside(cluster: Cluster) -> tuple[str | None, tuple[ComponentStatus, ...]]:
    """The API server's URL, and the state of API server and nodes."""
    base: list[str | Path] = [cluster.kubectl, "--kubeconfig", cluster.kubeconfig, "--request-timeout=10s"]
    view = run([*base, "config", "view", "--minify", "--output=jsonpath={.clusters[0].cluster.server}"], check=False)
    server = view.stdout.strip() or None
    answer = run([*base, "get", "nodes", "--output=json"], check=False)
    if answer.returncode != 0:
        said = (answer.stderr.strip().splitlines() or ["no answer"])[-1]
        return server, (ComponentStatus("API server", False, f"the API server does not answer: {said}"),)
    nodes = tuple(_node_status(item) for item in json.loads(answer.stdout)["items"])
    return server, (ComponentStatus("API server", True, f"answers at {server}"), *nodes)


def _node_status(item: dict[str, Any]) -> ComponentStatus:
    conditions = item["status"].get("conditions", [])
    ready = next((condition for condition in conditions if condition["type"] == "Ready"), None)
    name = f"node {item['metadata']['name']}"
    if ready is not None and ready["status"] == "True":
        return ComponentStatus(name, True, "Ready")
    why = "its kubelet has not reported" if ready is None else f"{ready.get('reason')}: {ready.get('message')}"
    return ComponentStatus(name, False, f"{name} is not Ready: {why}")
