"""Artifacts that the deployments of all namespaces share: who shares one, who may not, and who tries to spoil it.

The operator's real controllers run over a cluster in memory with several tenants. What a tenant's Job reports, and
what a source turns out to be, the tests choose.
"""

import hashlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from memory_cluster import Installation, Object
from rm_api import names

SHARED = names.BUILDS_NAMESPACE
HONEST, OTHER, EVIL = "hf://meta/llama", "oci://registry/llama:1", "https://evil.example/llama"
MISMATCH = {"reason": "ArtifactMismatch", "message": "the weights have another digest", "container": "fetch"}


def installation(*, devices: int = 8, **profile: Any) -> Installation:
    cluster = Installation(devices=devices)
    cluster.surroundings.builds_namespace = SHARED
    cluster.api.update(("BuildProfile", "", "acme"), lambda live: live["spec"].update(sharing="Cluster", **profile))
    cluster.restart()
    return cluster


def artifacts(cluster: Installation) -> list[tuple[str, str]]:
    """Namespace of each artifact, and the source that it is built from."""
    return sorted(
        (each["metadata"]["namespace"], each["spec"]["model"]["source"]) for each in cluster.api.of("BuildArtifact")
    )


def builds(cluster: Installation) -> list[Object]:
    return [job for job in cluster.api.of("Job") if job["metadata"]["labels"][names.LABEL_ROLE] == names.ROLE_BUILD]


def condition(cluster: Installation, namespace: str, type_: str = "ArtifactReady", name: str = "hello") -> Object:
    status = cluster.api.objects["ModelDeployment", namespace, name].get("status") or {}
    return next((each for each in status.get("conditions") or () if each["type"] == type_), {})


def ready(cluster: Installation, *namespaces: str) -> bool:
    return all(condition(cluster, each, "Ready").get("status") == "True" for each in namespaces)


def with_source(source: str, **model: Any) -> Object:
    return {"source": source, **model}


def deploy(cluster: Installation, namespace: str, source: str = HONEST, *, name: str = "hello", **model: Any) -> None:
    cluster.deploy(name, namespace=namespace, model=with_source(source, **model))


def source_of(job: Object) -> str:
    """The source that a Job reads."""
    pod = job["spec"]["template"]["spec"]
    commands = [each["command"] for each in [*pod.get("initContainers", ()), *pod["containers"]]]
    said = [argument for command in commands for argument in command if argument.startswith("--source=")]
    return said[0].removeprefix("--source=")


def failing(*sources: str, code: int = 65, **report: Any) -> Callable[[Object], tuple[int, Object] | None]:
    """Builds from these sources fail as they are fetched."""

    def judge(job: Object) -> tuple[int, Object] | None:
        build = job["metadata"]["labels"][names.LABEL_ROLE] == names.ROLE_BUILD
        return (code, {**MISMATCH, **report}) if build and source_of(job) in sources else None

    return judge


def test_deployments_of_several_namespaces_share_one_job() -> None:
    cluster = installation()
    tenants = [f"tenant-{number}" for number in range(5)]
    for namespace in tenants:
        deploy(cluster, namespace)
    cluster.settle()
    assert ready(cluster, *tenants)
    assert artifacts(cluster) == [(SHARED, HONEST)]
    artifact = cluster.api.of("BuildArtifact")[0]
    assert [name for name in cluster.surroundings.ran if name.startswith("b-")] == [
        f"b-{artifact['metadata']['name'].removeprefix('a-')}-1"
    ]
    assert list(cluster.surroundings.registry) == [f"artifacts/{SHARED}/{artifact['metadata']['name']}:v1"]
    assert artifact["status"]["referrerCount"] == 5
    assert artifact["status"]["keptBecause"] == "used by " + ", ".join(f"{each}/hello" for each in tenants)
    for namespace in tenants:
        status = cluster.api.objects["ModelDeployment", namespace, "hello"]["status"]
        assert (status["artifact"], status["artifactNamespace"]) == (artifact["metadata"]["name"], SHARED)
        assert condition(cluster, namespace)["message"] == artifact["status"]["location"]
    references = {
        argument
        for pod in cluster.api.of("Pod")
        for container in pod["spec"].get("initContainers", ())
        for argument in container["command"]
        if argument.startswith("--reference=")
    }
    assert references == {f"--reference={artifact['status']['location']}"}


def test_without_a_namespace_for_it_each_builds_for_itself() -> None:
    cluster = installation()
    cluster.surroundings.builds_namespace = ""
    cluster.restart()
    for namespace in ("a", "b"):
        deploy(cluster, namespace)
    cluster.settle()
    assert ready(cluster, "a", "b")
    assert [namespace for namespace, _ in artifacts(cluster)] == ["a", "b"]
    assert "the installation names no namespace for shared builds" in condition(cluster, "a")["message"]


PRIVATE = {
    "Secret": ({"credentials_secret_ref": "token"}, {}, "the model is read with this namespace's Secret token"),
    "volume": ({"source": "pvc://claim/model"}, {}, "pvc:// is not read without a claim or an account"),
    "bucket": ({"source": "s3://bucket/model"}, {}, "s3:// is not read without a claim or an account"),
    "flag": (
        {},
        {"steps": [{"name": "c", "image": "i", "command": ["cc", "--trust-remote-code"]}]},
        "the profile has code of the model's run",
    ),
    "variable": (
        {},
        {"steps": [{"name": "c", "image": "i", "command": ["cc"], "env": [{"name": "TRUST_REMOTE_CODE"}]}]},
        "the profile has code of the model's run",
    ),
    "input": (
        {},
        {"inputs": [{"name": "data", "source": "s3://private/data", "digest": "sha256:" + "1" * 64}]},
        "the profile's input data is not read from hf://",
    ),
}


@pytest.mark.parametrize(("model", "profile", "why"), PRIVATE.values(), ids=PRIVATE)
def test_what_is_a_tenants_own_is_built_in_its_namespace_and_the_status_says_why(
    model: Object, profile: Object, why: str
) -> None:
    cluster = installation(**profile)
    given = {"source": HONEST, **model}
    if "credentials_secret_ref" in given:
        given["credentialsSecretRef"] = given.pop("credentials_secret_ref")
    cluster.deploy(namespace="tenant", model=given)
    cluster.settle()
    assert ready(cluster, "tenant")
    assert artifacts(cluster) == [("tenant", given["source"])]
    message = condition(cluster, "tenant")["message"]
    assert f"it is for this namespace only: {why}" in message
    assert "artifactNamespace" not in cluster.api.objects["ModelDeployment", "tenant", "hello"]["status"]


def test_nothing_of_a_tenant_reaches_a_shared_build() -> None:
    cluster = installation()
    cluster.surroundings.held.add(names.ROLE_BUILD)
    deploy(cluster, "tenant")
    cluster.settle()
    (job,) = builds(cluster)
    pod = job["spec"]["template"]["spec"]
    assert job["metadata"]["namespace"] == SHARED
    assert not [volume for volume in pod["volumes"] if "secret" in volume or "persistentVolumeClaim" in volume]
    fetch = next(each for each in pod["initContainers"] if each["name"] == "fetch")["command"]
    assert "--shared" in fetch
    spec = cluster.api.of("BuildArtifact")[0]["spec"]["model"]
    assert {f"--{part}-digest={spec[f'{part}Digest']}" for part in ("config", "tensors", "weights")} <= set(fetch)
    assert "credentialsSecret" not in spec


def test_of_a_namespaces_own_build_digests_are_checked_too() -> None:
    cluster = installation()
    cluster.surroundings.held.add(names.ROLE_BUILD)
    deploy(cluster, "tenant", credentialsSecretRef="token")
    cluster.settle()
    (job,) = builds(cluster)
    fetch = next(each for each in job["spec"]["template"]["spec"]["initContainers"] if each["name"] == "fetch")
    assert {argument.partition("=")[0] for argument in fetch["command"]} >= {
        "--config-digest",
        "--tensors-digest",
        "--weights-digest",
    }
    assert "--shared" not in fetch["command"]


def test_code_of_the_model_keeps_it_in_its_namespace() -> None:
    cluster = installation()
    facts = cluster.surroundings.facts
    cluster.surroundings.facts = lambda job: {**facts(job), "remoteCode": True}
    served = {"capability": {"architectures": ["LlamaForCausalLM"]}}
    cluster.api.update(("AcceleratorResource", "", "npu"), lambda live: live["spec"].update(served))
    cluster.restart()
    deploy(cluster, "tenant")
    cluster.settle()
    assert artifacts(cluster) == [("tenant", HONEST)]
    assert "brings code of its own" in condition(cluster, "tenant")["message"]


def test_code_that_the_facts_hide_is_refused_by_the_build_and_goes_on_in_its_namespace() -> None:
    cluster = installation()
    said = {"reason": "SourceInvalid", "message": "it names code of its own (auto_map)", "container": "fetch"}
    shared_only = failing(EVIL, code=64, **said)
    cluster.surroundings.judge = lambda job: shared_only(job) if job["metadata"]["namespace"] == SHARED else None
    deploy(cluster, "tenant", EVIL)
    cluster.settle()
    assert ready(cluster, "tenant")
    assert "could not be built for all" in condition(cluster, "tenant")["message"]
    assert artifacts(cluster) == [("tenant", EVIL)], "what nobody waits for any more is gone"


def test_who_brings_credentials_uses_what_is_there_for_all() -> None:
    """An equal key means an equal result: its weights are known by their digest, wherever they were read."""
    cluster = installation()
    deploy(cluster, "public")
    cluster.settle()
    deploy(cluster, "private", "s3://bucket/mirror", credentialsSecretRef="account")
    cluster.settle()
    assert ready(cluster, "public", "private")
    assert artifacts(cluster) == [(SHARED, HONEST)]
    assert len([name for name in cluster.surroundings.ran if name.startswith("b-")]) == 1


def test_a_lying_source_does_not_stand_in_the_way_of_an_honest_one() -> None:
    """One tenant's server says at resolve that it has a well-known model, and has something else for the build."""
    cluster = installation()
    cluster.surroundings.judge = failing(EVIL)
    deploy(cluster, "evil", EVIL)
    deploy(cluster, "honest", HONEST)
    cluster.settle()
    assert ready(cluster, "honest")
    assert (SHARED, HONEST) in artifacts(cluster)
    assert (SHARED, EVIL) not in artifacts(cluster)
    assert cluster.api.objects["ModelDeployment", "honest", "hello"]["status"]["artifactNamespace"] == SHARED


def test_a_lying_source_fails_for_its_own_deployment_alone() -> None:
    cluster = installation()
    cluster.surroundings.judge = failing(EVIL)
    deploy(cluster, "evil", EVIL)
    cluster.settle()
    assert artifacts(cluster) == [("evil", EVIL)]
    stalled = condition(cluster, "evil", "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "ArtifactMismatch")
    assert "fetch: the weights have another digest" in stalled["message"]
    assert "could not be built for all" in condition(cluster, "evil")["message"]
    before = len(cluster.surroundings.ran)
    cluster.api.now += timedelta(days=1)
    cluster.settle()
    assert len(cluster.surroundings.ran) == before, "it is not tried again for ever"

    deploy(cluster, "honest", HONEST)
    cluster.settle()
    assert ready(cluster, "honest")
    assert artifacts(cluster) == [("evil", EVIL), (SHARED, HONEST)]


def test_nobody_waits_for_a_source_that_somebody_else_names_and_that_does_not_answer() -> None:
    cluster = installation()
    unreachable = {"reason": "SourceUnreachable", "message": "it does not answer", "retryable": True}
    cluster.surroundings.judge = failing(EVIL, code=69, **unreachable)
    deploy(cluster, "evil", EVIL)
    deploy(cluster, "honest", HONEST)
    cluster.settle()
    assert ready(cluster, "honest")
    assert artifacts(cluster) == [("honest", HONEST), (SHARED, EVIL)]
    assert condition(cluster, "evil")["reason"] == "SourceUnreachable"


def test_a_source_of_all_that_does_not_answer_is_asked_by_one_job() -> None:
    cluster = installation()
    unreachable = {"reason": "SourceUnreachable", "message": "it does not answer", "retryable": True}
    cluster.surroundings.judge = failing(HONEST, code=69, **unreachable)
    for namespace in ("a", "b"):
        deploy(cluster, namespace)
    cluster.settle()
    assert artifacts(cluster) == [(SHARED, HONEST)]
    cluster.surroundings.judge = lambda job: None
    cluster.api.now += timedelta(minutes=10)
    cluster.replica.wake_due()
    cluster.settle()
    assert ready(cluster, "a", "b")
    assert artifacts(cluster) == [(SHARED, HONEST)]


def test_a_failure_of_the_compiler_is_remembered_for_all() -> None:
    cluster = installation()
    said = {"reason": "ToolchainFailed", "message": "internal error", "container": "compile"}
    cluster.surroundings.judge = failing(HONEST, OTHER, code=70, **said)
    deploy(cluster, "a", HONEST)
    cluster.settle()
    ran = len([name for name in cluster.surroundings.ran if name.startswith("b-")])
    deploy(cluster, "b", OTHER)
    cluster.settle()
    assert len([name for name in cluster.surroundings.ran if name.startswith("b-")]) == ran
    assert [condition(cluster, each, "Stalled")["reason"] for each in ("a", "b")] == ["ToolchainFailed"] * 2
    assert artifacts(cluster) == [(SHARED, HONEST)]


def test_facts_that_somebody_forged_are_checked_and_not_believed() -> None:
    """Who may write ConfigMaps in a namespace can say of a model what it likes; the build asks the model itself."""
    cluster = installation()
    deploy(cluster, "evil", EVIL)
    cluster.surroundings.held.add(names.ROLE_BUILD)
    cluster.settle()
    (config_map,) = cluster.api.of("ConfigMap")
    forged = config_map["data"]["model.json"].replace(EVIL, "pvc://theirs/secrets")
    key = ("ConfigMap", "evil", config_map["metadata"]["name"])
    cluster.api.remove(("BuildArtifact", SHARED, cluster.api.of("BuildArtifact")[0]["metadata"]["name"]))
    cluster.api.update(key, lambda live: live.update(data={"model.json": forged}))
    cluster.settle()
    assert {namespace for namespace, _ in artifacts(cluster)} == {"evil"}
    assert "what is known of the model is about pvc://theirs/secrets" in condition(cluster, "evil")["message"]


STRUCTURE = {"binds": "Structure", "weightsInArtifact": False}


def own_weights(cluster: Installation) -> None:
    """From now on every source has weights of its own, in the same structure."""
    facts = cluster.surroundings.facts

    def of(job: Object) -> Object:
        return {**facts(job), "weightsDigest": "sha256:" + hashlib.sha256(source_of(job).encode()).hexdigest()}

    cluster.surroundings.facts = of


def test_two_tenants_share_a_structure_and_never_weights() -> None:
    cluster = installation(**STRUCTURE)
    own_weights(cluster)
    deploy(cluster, "a", "hf://tuned/a")
    deploy(cluster, "b", "hf://tuned/b")
    cluster.settle()
    assert ready(cluster, "a", "b")
    (only,) = artifacts(cluster)
    assert only[0] == SHARED
    for namespace in ("a", "b"):
        (pod,) = (
            each
            for each in cluster.api.of("Pod")
            if each["metadata"]["namespace"] == namespace and names.LABEL_VARIANT in each["metadata"]["labels"]
        )
        fetch = next(each for each in pod["spec"]["initContainers"] if each["name"] == "fetch-model")["command"]
        facts = cluster.api.objects["ModelDeployment", namespace, "hello"]["status"]["model"]
        assert f"--source=hf://tuned/{namespace}" in fetch
        assert f"--weights-digest={facts['weightsDigest']}" in fetch


def test_a_private_fine_tune_uses_a_shared_structure_with_its_own_weights() -> None:
    cluster = installation(**STRUCTURE)
    own_weights(cluster)
    deploy(cluster, "public", "hf://base/model")
    cluster.settle()
    deploy(cluster, "private", "pvc://claim/tuned")
    cluster.settle()
    assert ready(cluster, "public", "private")
    assert artifacts(cluster) == [(SHARED, "hf://base/model")]
    (pod,) = (
        each
        for each in cluster.api.of("Pod")
        if each["metadata"]["namespace"] == "private" and names.LABEL_VARIANT in each["metadata"]["labels"]
    )
    assert any(volume.get("persistentVolumeClaim", {}).get("claimName") == "claim" for volume in pod["spec"]["volumes"])


def test_what_binds_weights_is_not_shared_with_other_weights() -> None:
    cluster = installation()
    own_weights(cluster)
    deploy(cluster, "a", "hf://tuned/a")
    deploy(cluster, "b", "hf://tuned/b")
    cluster.settle()
    assert artifacts(cluster) == [(SHARED, "hf://tuned/a"), (SHARED, "hf://tuned/b")]


def test_a_deployment_in_the_namespace_of_builds_is_refused() -> None:
    """Where the policy of the chart is not there: what it would build would be everybody's, credentials and all."""
    cluster = installation()
    deploy(cluster, SHARED, credentialsSecretRef="token")
    cluster.settle()
    assert artifacts(cluster) == []
    assert condition(cluster, SHARED, "Stalled")["reason"] == "InvalidSpec"
    assert "deploy models in another one" in condition(cluster, SHARED)["message"]


def test_it_is_kept_as_long_as_anybody_in_any_namespace_uses_it() -> None:
    cluster = installation()
    for namespace in ("a", "b"):
        deploy(cluster, namespace)
    cluster.settle()
    cluster.api.remove(("ModelDeployment", "a", "hello"))
    cluster.settle()
    (artifact,) = cluster.api.of("BuildArtifact")
    assert (artifact["status"]["referrerCount"], artifact["status"]["keptBecause"]) == (1, "used by b/hello")
    cluster.api.remove(("ModelDeployment", "b", "hello"))
    cluster.settle()
    (artifact,) = cluster.api.of("BuildArtifact")
    assert artifact["status"]["referrerCount"] == 0
    assert artifact["status"]["keptBecause"].startswith("nobody uses it; kept until")


def collect(cluster: Installation) -> None:
    """It is to go, with its content, as the operator has it go when its time has come."""
    (artifact,) = cluster.api.of("BuildArtifact")
    key = ("BuildArtifact", SHARED, artifact["metadata"]["name"])
    metadata = {"name": key[2], "namespace": SHARED, "finalizers": [names.FINALIZER_ARTIFACT]}
    marked = {"apiVersion": names.API_VERSION, "kind": key[0], "metadata": metadata}
    cluster.api.patch(marked, names.FIELD_MANAGER_IN_USE)
    cluster.api.remove(key)
    cluster.settle()


def test_its_content_is_not_taken_from_somebody_in_another_namespace() -> None:
    cluster = installation()
    deploy(cluster, "tenant")
    cluster.settle()
    before = dict(cluster.surroundings.registry)
    collect(cluster)
    assert cluster.surroundings.registry == before
    assert ready(cluster, "tenant")
    assert len([name for name in cluster.surroundings.ran if name.startswith("b-")]) == 1, "it is adopted, not built"
    cluster.api.remove(("ModelDeployment", "tenant", "hello"))
    cluster.settle()
    collect(cluster)
    assert (artifacts(cluster), cluster.surroundings.registry) == ([], {})


def test_a_build_that_starts_from_another_is_shared_as_a_whole_or_not_at_all() -> None:
    cluster = installation()
    step = {"name": "tune", "image": "acme/tune:1", "command": ["tune", "${INPUT_from}"]}

    def made(name: str, **more: Any) -> None:
        spec = dict(cluster.api.objects["BuildProfile", "", "acme"]["spec"]) | {"steps": [step]} | more
        cluster.api.create(
            {"apiVersion": names.API_VERSION, "kind": "BuildProfile", "metadata": {"name": name}, "spec": spec}
        )

    made("tuned", priority=10, **{"from": "acme"})
    deploy(cluster, "a")
    cluster.settle()
    assert ready(cluster, "a")
    assert artifacts(cluster) == [(SHARED, HONEST)] * 2

    cluster.api.update(("BuildProfile", "", "acme"), lambda live: live["spec"].update(sharing="Namespace", priority=-5))
    cluster.api.update(
        ("BuildProfile", "", "tuned"), lambda live: live["spec"].update(steps=[{**step, "image": "acme/tune:2"}])
    )
    cluster.settle()
    own = [each for each in cluster.api.of("BuildArtifact") if each["metadata"]["namespace"] == "a"]
    assert len(own) == 2
    assert "which is for this namespace only" in condition(cluster, "a")["message"]


def test_who_asks_for_much_fills_its_own_line_only() -> None:
    cluster = installation(devices=64)
    own_weights(cluster)
    cluster.surroundings.held.add(names.ROLE_BUILD)
    for number in range(8):
        deploy(cluster, "greedy", f"hf://greedy/{chr(97 + number)}", name=f"m{number}")
    cluster.settle()
    assert len(builds(cluster)) == 4, "as many as one namespace may have"
    deploy(cluster, "modest", "hf://modest/z")
    # What the greedy one waits for as well.
    deploy(cluster, "modest", "hf://greedy/h", name="also")
    cluster.settle()
    running = {source_of(job) for job in builds(cluster)}
    assert {"hf://modest/z", "hf://greedy/h"} <= running
    assert len(running) == 6
    cluster.surroundings.held.clear()
    cluster.settle()
    assert all(condition(cluster, "greedy", "ArtifactReady", f"m{number}")["status"] == "True" for number in range(8))


@pytest.mark.parametrize("number", range(1, 30, 2))
def test_a_crash_between_any_two_writes_leaves_one_job(number: int) -> None:
    cluster = installation()
    for namespace in ("a", "b"):
        deploy(cluster, namespace)
    cluster.die_at(number, "after")
    cluster.settle()
    cluster.api.on_write = None
    cluster.settle()
    assert ready(cluster, "a", "b")
    assert len([name for name in cluster.surroundings.ran if name.startswith("b-")]) == 1
    assert artifacts(cluster) == [(SHARED, HONEST)]
