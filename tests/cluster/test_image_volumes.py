"""Artifacts that the node mounts: the kubelet and the container runtime take them from the chart's registry.

The tests build on one another, in order. Nodes reach the registry through a port of their own, where container runtimes
ask for no certificate. Without the token service: its tokens are for pods, and its name is known in the cluster only.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from installation import Installed
from rm_cli import release
from rm_cli.kubectl import CommandFailed, Kubectl, condition, wait_until
from scripted_model import SAMPLES, expected_text, write_model
from support import NPU, ask, deploy, serving_pods, wait_for

COMPILE_SECONDS = 300
# After failed pulls the kubelet waits up to five minutes.
BACK_OFF_SECONDS = 420
ENTRANCE = "registry-for-nodes"

Object = dict[str, Any]


def _entrance(installed: Installed, port: int | None = None) -> Object:
    """A port of each node that leads to the registry."""
    registry = installed.system.get("service", release.REGISTRY_SERVICE)
    assert registry is not None
    chosen = {"nodePort": port} if port else {}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": ENTRANCE},
        "spec": {
            "type": "NodePort",
            "selector": registry["spec"]["selector"],
            "ports": [{"port": 5000, "targetPort": registry["spec"]["ports"][0]["targetPort"], **chosen}],
        },
    }


@pytest.fixture(scope="module")
def port(installed: Installed) -> Iterator[int]:
    """The registry's port on nodes, with an operator that has nodes mount artifacts."""
    installed.system.apply(_entrance(installed))
    try:
        made = installed.system.get("service", ENTRANCE)
        assert made is not None
        found = int(made["spec"]["ports"][0]["nodePort"])
        release.install(
            installed.cluster,
            installed.references,
            "--set=store.registry.auth.enabled=false",
            "--set=store.imageVolumes.mode=Auto",
            f"--set=store.imageVolumes.host=localhost:{found}",
        )
        yield found
    finally:
        release.install(installed.cluster, installed.references)
        installed.system.delete("service", ENTRANCE)


@pytest.fixture(scope="module")
def mounted(port: int, module_namespace: Kubectl, model_source: str) -> Kubectl:
    """The namespace with a deployment `mounted` that serves."""
    deploy(module_namespace, "mounted", model_source, **NPU)
    wait_for(module_namespace, "mounted", "Ready", timeout=COMPILE_SECONDS)
    return module_namespace


def _volume(pod: Object) -> Object:
    (found,) = [each for each in pod["spec"]["volumes"] if each["name"] == "artifact"]
    return dict(found)


def test_it_answers_from_an_artifact_that_the_node_has_mounted(mounted: Kubectl, port: int) -> None:
    (pod,) = serving_pods(mounted, "mounted")
    (artifact,) = mounted.list("bart")
    path = artifact["status"]["location"].partition("/")[2]
    assert _volume(pod)["image"] == {"reference": f"localhost:{port}/{path}", "pullPolicy": "IfNotPresent"}
    assert [each["name"] for each in pod["spec"]["initContainers"]] == ["launcher"], "nothing fetches it"
    messages = [{"role": "user", "content": SAMPLES[0].prompt}]
    with tempfile.TemporaryDirectory() as directory:
        write_model(Path(directory))
        expected = expected_text(Path(directory), messages)
    assert ask(mounted, "mounted", messages)["choices"][0]["message"]["content"] == expected


def test_nobody_can_write_to_it(mounted: Kubectl) -> None:
    pod = serving_pods(mounted, "mounted")[0]["metadata"]["name"]
    script = "import os, pathlib; pathlib.Path(os.environ['ARTIFACT_DIR'], 'more').write_text('x')"
    with pytest.raises(CommandFailed, match="Read-only file system"):
        mounted.run("exec", pod, "-c", "engine", "--", "python3", "-c", script)


def test_where_the_node_does_not_reach_the_registry_it_says_so_and_recovers(
    mounted: Kubectl, installed: Installed, port: int, model_source: str
) -> None:
    installed.system.delete("service", ENTRANCE)
    try:
        # Another shape bucket is another artifact, which no node has.
        deploy(mounted, "other", model_source, requirements={"maxSequenceLength": 800}, **NPU)
        deployment = wait_for(mounted, "other", "ImagePullFailed", timeout=COMPILE_SECONDS)
        message = condition(deployment, "Ready")["message"]
        assert f"cannot take the artifact localhost:{port}/artifacts/{mounted.namespace}/" in message
        # What the node has already needs no registry.
        pod = serving_pods(mounted, "mounted")[0]["metadata"]["name"]
        mounted.delete("pod", pod)

        def again() -> bool:
            found = {each["metadata"]["name"]: each for each in serving_pods(mounted, "mounted")}
            return pod not in found and any(condition(each, "Ready").get("status") == "True" for each in found.values())

        wait_until("no pod with the same artifact starts", again, timeout=120)
    finally:
        installed.system.apply(_entrance(installed, port))
    wait_for(mounted, "other", "Ready", timeout=BACK_OFF_SECONDS)
    mounted.delete("mdep", "other")


def test_switched_off_its_pods_fetch_again(mounted: Kubectl, installed: Installed, port: int) -> None:
    release.install(installed.cluster, installed.references, "--set=store.registry.auth.enabled=false")

    def replaced() -> bool:
        return any(
            "emptyDir" in _volume(pod) and condition(pod, "Ready").get("status") == "True"
            for pod in serving_pods(mounted, "mounted")
        )

    wait_until("the pods mount it still", replaced, timeout=120)
    wait_for(mounted, "mounted", "Ready")
