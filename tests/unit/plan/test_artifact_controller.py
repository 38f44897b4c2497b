"""What the controller of builds asks, counts and tells, with the whole operator around it."""

from datetime import timedelta

from memory_cluster import NAMESPACE, Installation, Object, at
from rm_api import names

BUILD = names.ROLE_BUILD


def staged() -> Installation:
    """A build will be two Jobs."""
    cluster = at("nothing").fork()
    cluster.in_stages()
    cluster.settle()
    return cluster


def artifact(cluster: Installation) -> Object:
    (found,) = cluster.api.of("BuildArtifact")
    return found


def minutes(cluster: Installation) -> dict[str, float]:
    """Seconds by outcome, as the metric has them."""
    return {
        sample.labels["outcome"]: sample.value
        for metric in cluster.replica.metrics.registry.collect()
        for sample in metric.samples
        if sample.name == "rma_build_seconds_total"
        and (sample.labels["namespace"], sample.labels["profile"]) == (NAMESPACE, "acme")
    }


def test_a_build_of_two_jobs_goes_through_the_store() -> None:
    cluster = staged()
    cluster.deploy()
    cluster.settle()
    assert cluster.reason() == "Ready"
    jobs = [name.split("-", 2)[2] for name in cluster.surroundings.ran if name.startswith("b-")]
    assert jobs == ["1", "1-2"]
    tags = {reference.rpartition(":")[2] for reference in cluster.surroundings.registry}
    assert tags == {"stage-1", "v1"}


def test_a_stage_with_another_key_is_not_gone_on_with() -> None:
    cluster = staged()
    cluster.surroundings.held = {BUILD}
    cluster.deploy()
    cluster.settle()
    reference = f"{names.artifact_repository(NAMESPACE, artifact(cluster)['metadata']['name'])}:stage-1"
    cluster.surroundings.push(reference, "f" * 64)
    (job,) = [job for job in cluster.api.of("Job") if job["metadata"]["name"].startswith("b-")]
    cluster.api.remove(("Job", NAMESPACE, job["metadata"]["name"]))
    cluster.settle()
    (again,) = [job for job in cluster.api.of("Job") if job["metadata"]["name"].startswith("b-")]
    assert again["metadata"]["name"] == job["metadata"]["name"]
    cluster.surroundings.push(reference, artifact(cluster)["spec"]["key"])
    cluster.api.remove(("Job", NAMESPACE, again["metadata"]["name"]))
    cluster.settle()
    (second,) = [job for job in cluster.api.of("Job") if job["metadata"]["name"].startswith("b-")]
    assert second["metadata"]["name"] == f"{job['metadata']['name']}-2"


def test_a_stage_that_finds_no_device_begins_when_there_is_one() -> None:
    cluster = staged()
    cluster.surroundings.devices_are((), number=0)
    cluster.surroundings.held = {BUILD}
    cluster.deploy()
    cluster.settle()
    assert cluster.reason() == "NoEligibleAccelerator"
    cluster.surroundings.devices_are((), number=1)
    cluster.settle()
    cluster.surroundings.devices_are((), number=0)
    cluster.settle()
    cluster.surroundings.held = set()
    cluster.settle()
    built = next(each for each in artifact(cluster)["status"]["conditions"] if each["type"] == "Built")
    assert (built["reason"], built["message"]) == ("Unschedulable", "no device of npu is free")
    cluster.surroundings.devices_are((), number=1)
    cluster.settle()
    assert cluster.reason() == "Ready"


def test_seconds_are_accounted_by_namespace_profile_and_outcome() -> None:
    cluster = at("build").fork()
    before = minutes(cluster)
    cluster.surroundings.clock_jump = timedelta(seconds=-9)
    failure = {"reason": "ToolchainFailed", "message": "internal error"}
    cluster.surroundings.outcomes[BUILD] = [(70, failure)]
    cluster.settle()
    assert cluster.reason() == "Ready"
    assert artifact(cluster)["status"]["spentSeconds"] == "18.0"
    after = minutes(cluster)
    spent = {outcome: after[outcome] - before.get(outcome, 0) for outcome in ("ToolchainFailed", "Succeeded")}
    assert spent == {"ToolchainFailed": 9, "Succeeded": 9}


def test_what_others_with_the_profile_took_is_expected() -> None:
    cluster = at("nothing").fork()
    for number, seconds in enumerate((10, 30, 50)):
        cluster.surroundings.clock_jump = timedelta(seconds=-seconds)
        cluster.deploy(f"d{number}", model={"source": f"oci://registry/own:{number}"})
        cluster.settle()
    cluster.surroundings.held = {BUILD}
    cluster.deploy("hello", model={"source": "oci://registry/own:9"})
    cluster.settle()
    (running,) = [each for each in cluster.api.of("BuildArtifact") if each["status"].get("startedAt")]
    assert running["status"]["expectedSeconds"] == 30
