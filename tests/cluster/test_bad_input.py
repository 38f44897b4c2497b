"""What is wrong is refused, or ends in a condition that says why; the rest goes on, and mending the spec heals."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from installation import Installed
from rm_cli.kubectl import CommandFailed, Kubectl, condition, wait_until
from support import deploy, left_over, wait_for


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"model": {"source": "ftp://somewhere/model"}}, "source must be hf://"),
        ({"model": {"source": "hf://Qwen/Qwen3-0.6B"}, "replicas": -1}, "replicas"),
        ({"model": {"source": "hf://Qwen/Qwen3-0.6B"}, "policy": {"type": "Fastest"}}, "Unsupported value"),
        ({"model": {}}, "source"),
        (
            {"model": {"source": "hf://Qwen/Qwen3-0.6B"}, "runtime": {"env": [{"name": "LD_PRELOAD", "value": "x"}]}},
            "LOG_LEVEL",
        ),
    ],
    ids=["unknown source", "negative replicas", "unknown policy", "no source", "forbidden variable"],
)
def test_the_api_server_refuses(namespace: Kubectl, spec: dict[str, Any], message: str) -> None:
    bad = {
        "apiVersion": "rm-abstract.io/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "bad"},
        "spec": spec,
    }
    with pytest.raises(CommandFailed, match=message):
        namespace.apply(bad)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("oci://nowhere.invalid/model:1", "SourceUnreachable"),
        ("oci://{host}/models/nothing:1", "SourceInvalid"),
    ],
    ids=["no such host", "no such model"],
)
def test_a_source_that_is_not_there(namespace: Kubectl, model_source: str, source: str, reason: str) -> None:
    host = model_source.removeprefix("oci://").partition("/")[0]
    deploy(namespace, "bad", source.format(host=host))
    deployment = wait_for(namespace, "bad", reason)
    assert condition(deployment, "ModelResolved")["message"]
    # The right one heals it.
    deploy(namespace, "bad", model_source, buildProfile="missing")
    wait_for(namespace, "bad", "ProfileNotFound")


@pytest.mark.usefixtures("installed")
def test_what_cannot_be_placed_says_why_and_a_mended_spec_heals(namespace: Kubectl, model_source: str) -> None:
    deploy(namespace, "bad", model_source, buildProfile="missing")
    deployment = wait_for(namespace, "bad", "ProfileNotFound")
    assert "missing" in condition(deployment, "Ready")["message"]
    deploy(namespace, "bad", model_source, requirements={"maxSequenceLength": 1_000_000})
    deployment = wait_for(namespace, "bad", "NoEligibleAccelerator")
    reasons = {each["name"]: each["reason"] for each in deployment["status"]["placement"]["candidates"]}
    assert set(reasons) >= {"simulated-npu", "cpu"}
    assert all(reasons.values())
    deploy(namespace, "bad", model_source, accelerators={"types": ["GPU"]})
    wait_for(namespace, "bad", "NoEligibleAccelerator")
    assert not namespace.list("bart")
    deploy(namespace, "bad", model_source)
    wait_for(namespace, "bad", "Building")
    # Deleted while it builds, it leaves nothing: nothing was built.
    namespace.delete("mdep", "bad")
    wait_until("objects are left", lambda: not left_over(namespace) and not namespace.list("bart"), timeout=120)


@pytest.mark.usefixtures("installed")
def test_deleted_while_its_model_is_read_it_leaves_nothing(namespace: Kubectl, model_source: str) -> None:
    deploy(namespace, "brief", model_source)
    wait_for(namespace, "brief", "Resolving")
    namespace.delete("mdep", "brief")
    wait_until("objects are left", lambda: not left_over(namespace) and not namespace.list("bart"), timeout=60)


@contextlib.contextmanager
def _credulous_profile(namespace: Kubectl, installed: Installed) -> Iterator[str]:
    """A BuildProfile that claims to support every model; nobody chooses it who does not name it."""
    (profile,) = installed.example("simulated-npu/build-profile.yaml")
    name = f"any-model-{namespace.namespace}"
    profile["metadata"] = {"name": name}
    spec: Any = profile["spec"]
    spec |= {"supports": {"dtypes": ["fp16"]}, "priority": -100}
    namespace.apply(profile)
    try:
        yield name
    finally:
        # It goes with its last user.
        namespace.delete("bprof", name, wait=False)


def test_a_model_that_the_compiler_rejects(
    namespace: Kubectl, installed: Installed, unsupported_source: str, model_source: str
) -> None:
    deploy(namespace, "odd", unsupported_source)
    deployment = wait_for(namespace, "odd", "NoEligibleAccelerator")
    assert "TapeRecorder" in str(deployment["status"]["placement"]), "every profile says what it supports"

    with _credulous_profile(namespace, installed) as profile:
        deploy(namespace, "odd", unsupported_source, buildProfile=profile)
        deployment = wait_for(namespace, "odd", "ToolchainFailed", on="Stalled", timeout=180)
        assert "does not recognize this architecture" in condition(deployment, "Ready")["message"]
        (failed,) = namespace.list("bart")
        assert failed["status"]["attempts"] == 2
        assert failed["status"]["logTail"]
    # The right model heals it, and nothing is left of what failed.
    deploy(namespace, "odd", model_source)
    wait_for(namespace, "odd", "Building")
    name = failed["metadata"]["name"]
    wait_until("the failed artifact is left", lambda: namespace.get("bart", name) is None, timeout=60)
    wait_until("the profile is kept without users", lambda: namespace.get("bprof", profile) is None, timeout=60)


@contextlib.contextmanager
def _registry_down(installed: Installed) -> Iterator[None]:
    registry = "deployment/rm-abstract-registry"
    installed.system.run("scale", registry, "--replicas=0")
    try:
        wait_until(
            "the registry still runs",
            lambda: not installed.system.list("pods", selector="app.kubernetes.io/component=registry"),
            timeout=60,
        )
        yield
    finally:
        installed.system.run("scale", registry, "--replicas=1")
        installed.system.run("rollout", "status", registry, "--timeout=60s")


def test_a_registry_that_is_down(namespace: Kubectl, installed: Installed, model_source: str) -> None:
    deploy(namespace, "waiting", model_source, buildProfile="missing")
    wait_for(namespace, "waiting", "ProfileNotFound")
    with _registry_down(installed):
        deploy(namespace, "waiting", model_source)
        deployment = wait_for(namespace, "waiting", "StoreUnreachable")
        assert "does not answer" in condition(deployment, "Ready")["message"]
        # Somebody else's work goes on.
        deploy(namespace, "other", "oci://nowhere.invalid/model:1")
        wait_for(namespace, "other", "SourceUnreachable")
    wait_for(namespace, "waiting", "Building")
