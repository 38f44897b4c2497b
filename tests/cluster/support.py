"""What the tests of the chain do again and again: deploy, wait for a condition, ask the model."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rm_abstract.store.registry import Registry
from rm_cli.kubectl import CommandFailed, Kubectl, condition, wait_until
from rm_cli.store_access import Store, applied
from rm_local_cluster import Cluster

OURS = "app.kubernetes.io/managed-by=rm-abstract"
NPU = {"accelerators": {"names": ["simulated-npu"]}}
SMALL = {"workload": {"inputTokens": 256, "outputTokens": 64}}
PATIENCE = 180.0
"""Seconds for what takes a few on a machine that does nothing else."""


def deploy(kubectl: Kubectl, name: str, source: str, **spec: Any) -> None:
    """Applies a ModelDeployment."""
    kubectl.apply(
        {
            "apiVersion": "rm-abstract.io/v1alpha1",
            "kind": "ModelDeployment",
            "metadata": {"name": name},
            "spec": {"model": {"source": source}, **SMALL, **spec},
        }
    )


def wait_for(
    kubectl: Kubectl, name: str, reason: str, *, on: str = "Ready", timeout: float = PATIENCE
) -> dict[str, Any]:
    """The ModelDeployment once its condition has the reason; says the last state otherwise."""
    last: dict[str, Any] = {}

    def reached() -> dict[str, Any] | None:
        current = kubectl.get("mdep", name)
        last.update(condition(current, on))
        return current if last.get("reason") == reason else None

    try:
        found: dict[str, Any] = wait_until(f"{name}: {on} is not {reason}", reached, timeout=timeout)
    except CommandFailed as error:
        raise AssertionError(f"{error}; it is {last}") from None
    return found


def ask(kubectl: Kubectl, name: str, messages: list[dict[str, str]], **options: Any) -> dict[str, Any]:
    """A greedy chat completion through the deployment's Service."""
    body = {"model": name, "messages": messages, "max_tokens": 128, "temperature": 0, **options}
    answer: dict[str, Any] = kubectl.post(f"{name}:http", "/v1/chat/completions", body)
    return answer


@contextmanager
def asking(kubectl: Kubectl, name: str, messages: list[dict[str, str]], text: str) -> Iterator[list[str]]:
    """Asks without a pause through the Service meanwhile; what went wrong, another answer than ``text`` too, is in the
    list.
    """
    wrong: list[str] = []
    asked = 0
    stop = threading.Event()

    def run() -> None:
        nonlocal asked
        while not stop.is_set():
            try:
                answer = ask(kubectl, name, messages)["choices"][0]["message"]["content"]
            except CommandFailed as error:
                wrong.append(str(error))
            else:
                asked += 1
                if answer != text:
                    wrong.append(answer)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield wrong
    finally:
        stop.set()
        thread.join()
    assert asked > 0


@contextmanager
def in_the_store(cluster: Cluster) -> Iterator[tuple[str, Registry]]:
    """The chart's store as its administrator reaches it from outside: its host by pods' name, and a client."""
    kubectl = Kubectl(cluster)
    store = Store.find(kubectl)
    assert store is not None
    with store.reached(kubectl) as variables, applied(variables):
        registry = Registry()
        try:
            yield store.host, registry
        finally:
            registry.close()


def restart_engine(kubectl: Kubectl, pod: str) -> None:
    """Kills the engine of a pod: the launcher ends with it, and the kubelet starts the container again where it was.

    It has nothing to finish then, as it would have after SIGTERM, while a successor elsewhere may come to serve.
    """
    kill = "import os, signal; os.kill(-1, signal.SIGKILL)"
    kubectl.run("exec", pod, "-c", "engine", "--", "python3", "-c", kill)


def serving_pods(kubectl: Kubectl, name: str) -> list[dict[str, Any]]:
    """Pods that serve a deployment."""
    return kubectl.list("pods", selector=f"rm-abstract.io/deployment={name}")


def left_over(kubectl: Kubectl) -> list[str]:
    """Objects of ours in the namespace, as kind/name."""
    kinds = "jobs,pods,deployments,services,configmaps,controllerrevisions"
    return [f"{each['kind']}/{each['metadata']['name']}" for each in kubectl.list(kinds, selector=OURS)]
