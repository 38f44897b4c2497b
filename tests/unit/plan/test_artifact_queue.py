"""The queue of builds: limits that hold whatever happens, the order of those who wait, and that none is forgotten."""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_cluster import NAMESPACE, Installation, Object, copied
from rm_api import names
from rm_operator.controllers.build_queue import BuildQueue
from rm_operator.kube.resources import BUILD_ARTIFACTS, BUILD_PROFILES
from rm_operator.kube.store import Store, Stores
from rm_operator.plan.build_queue import MOST_TOLD, Line, Part, part_of

BUILD = names.ROLE_BUILD


def entry(
    name: str, *, profile: str = "p", namespace: str = "ns", made: int = 0, part: Part = Part.WAITS, uid: str = ""
) -> Object:
    """A BuildArtifact that builds, waits, or has nothing to do with the queue."""
    status: dict[Part, Object] = {
        Part.WAITS: {"conditions": [{"type": "Built", "status": "False", "reason": "Queued"}]},
        Part.BUILDS: {"startedAt": "x", "conditions": [{"type": "Built", "status": "False", "reason": "Building"}]},
        Part.NONE: {"conditions": [{"type": "Ready", "status": "True", "reason": "Ready"}]},
    }
    metadata = {
        "name": name, "namespace": namespace, "uid": uid or f"uid-{name}",
        "creationTimestamp": f"2026-01-01T00:00:{made:02}Z", "resourceVersion": str(next(_versions)),
    }  # fmt: skip
    kind = {"apiVersion": names.API_VERSION, "kind": "BuildArtifact"}
    return {**kind, "metadata": metadata, "spec": {"profile": profile}, "status": status[part]}


_versions = iter(range(1, 10**9))


class Queue:
    """A queue over stores, and whom it woke."""

    def __init__(self, *, per_namespace: int = 2, **limits: int) -> None:
        self.stores = Stores([Store(BUILD_ARTIFACTS), Store(BUILD_PROFILES)])
        self.woken: list[str] = []
        self.queue = BuildQueue(self.stores, per_namespace, lambda _, name: self.woken.append(name))
        for name, limit in limits.items():
            self.limit(name, limit)

    def limit(self, profile: str, limit: int) -> None:
        metadata = {"name": profile, "uid": profile, "resourceVersion": str(next(_versions))}
        kind = {"apiVersion": names.API_VERSION, "kind": "BuildProfile"}
        self.stores[BUILD_PROFILES].upsert({**kind, "metadata": metadata, "spec": {"parallelBuilds": limit}})

    def put(self, *artifacts: Object) -> None:
        for artifact in artifacts:
            self.stores[BUILD_ARTIFACTS].upsert(artifact)

    def may_begin(self, artifact: Object) -> bool:
        return all(line.is_open for line in self.queue.lines(artifact))


@pytest.mark.parametrize(
    ("status", "part"),
    [
        ({}, Part.WAITS),
        ({"conditions": [{"type": "Built", "status": "False", "reason": "Queued"}]}, Part.WAITS),
        ({"conditions": [{"type": "Built", "status": "False", "reason": "Suspended"}]}, Part.NONE),
        ({"conditions": [{"type": "Built", "status": "False", "reason": "SourceUnreachable"}]}, Part.NONE),
        ({"conditions": [{"type": "Built", "status": "False", "reason": "Unschedulable"}]}, Part.NONE),
        ({"startedAt": "x", "conditions": [{"type": "Built", "status": "False", "reason": "Building"}]}, Part.BUILDS),
        ({"startedAt": "x", "conditions": [{"type": "Stalled", "status": "True", "reason": "Refused"}]}, Part.NONE),
        ({"startedAt": "x", "conditions": [{"type": "Ready", "status": "True", "reason": "Ready"}]}, Part.NONE),
    ],
)
def test_who_builds_and_who_waits(status: Object, part: Part) -> None:
    artifact = {"metadata": {"name": "a"}, "status": status}
    assert part_of(artifact) is part
    leaving = {**artifact, "metadata": {"name": "a", "deletionTimestamp": "x"}}
    assert part_of(leaving) is Part.NONE


def test_without_a_limit_of_the_profile_only_the_namespace_counts() -> None:
    line = Queue(per_namespace=2)
    line.put(entry("a", part=Part.BUILDS), entry("b", part=Part.BUILDS, namespace="other"))
    assert line.may_begin(entry("c"))
    line.put(entry("d", part=Part.BUILDS))
    assert not line.may_begin(entry("c"))
    assert line.may_begin(entry("c", namespace="other"))


def test_the_limit_of_a_profile_holds_over_namespaces() -> None:
    line = Queue(per_namespace=9, p=1)
    line.put(entry("a", part=Part.BUILDS, namespace="other"))
    assert not line.may_begin(entry("b"))
    assert line.may_begin(entry("b", profile="q"))


def test_who_came_first_begins_first_and_the_name_of_none_decides() -> None:
    line = Queue(per_namespace=1)
    late, early = entry("a", made=2), entry("b", made=1)
    line.put(late, early)
    assert line.may_begin(early)
    assert not line.may_begin(late)
    same = entry("c", made=1, uid="uid-a0")
    line.put(same)
    assert not line.may_begin(early), "of two that came in the same second the uid decides"
    assert line.may_begin(same)


def test_who_was_let_in_counts_before_the_store_tells() -> None:
    line = Queue(per_namespace=1)
    first, second = entry("a", made=1), entry("b", made=2)
    line.put(first, second)
    line.queue.settle(first, begins=True)
    assert line.may_begin(first), "it goes on with what it was given"
    assert not line.may_begin(second)
    line.put(entry("a", made=1, part=Part.BUILDS))
    assert not line.may_begin(second)
    line.put(entry("a", made=1, part=Part.NONE))
    assert line.may_begin(second)


def test_a_place_that_was_not_taken_is_given_to_the_next() -> None:
    line = Queue(per_namespace=1)
    first, second = entry("a", made=1), entry("b", made=2)
    line.put(first, second)
    line.queue.settle(first, begins=True)
    line.woken.clear()
    line.put(entry("a", made=1, part=Part.NONE))
    line.queue.settle(first, begins=False)
    assert "b" in line.woken
    assert line.may_begin(second)


def test_one_that_is_kept_from_beginning_by_its_profile_lets_others_pass() -> None:
    line = Queue(per_namespace=2, p=1)
    line.put(entry("a", part=Part.BUILDS), entry("b", made=1), entry("c", made=2), entry("d", made=3, profile="q"))
    assert not line.may_begin(entry("b", made=1))
    assert line.may_begin(entry("d", made=3, profile="q"))


def test_a_place_that_is_free_wakes_those_who_are_next() -> None:
    line = Queue(per_namespace=1)
    line.put(entry("a", part=Part.BUILDS), *(entry(f"w{number:02}", made=number) for number in range(30)))
    line.woken.clear()
    line.put(entry("a", part=Part.NONE))
    assert set(line.woken) == {f"w{number:02}" for number in range(MOST_TOLD)}
    line.woken.clear()
    line.stores[BUILD_ARTIFACTS].remove("ns", "w00", uid="uid-w00", resource_version=str(next(_versions)))
    assert "w01" in line.woken, "who is gone was before somebody"


def test_a_higher_limit_wakes_those_who_wait() -> None:
    line = Queue(per_namespace=99, p=1)
    line.put(entry("a", part=Part.BUILDS), entry("b"), entry("c"))
    line.woken.clear()
    line.limit("p", 3)
    assert set(line.woken) == {"b", "c"}
    assert line.may_begin(entry("b"))


def test_the_place_is_told_as_long_as_it_is_a_small_number() -> None:
    assert Line("in namespace ns", 4, 4, 2).place == "place 3; at most 4 builds in namespace ns run at a time"
    assert Line("with BuildProfile p", 1, 1, 10).place.startswith("more than 10 wait before it; at most 1 builds with")
    assert Line("x", 1, 1, 11).place == Line("x", 1, 1, 500).place


# With the real controllers.


def active(cluster: Installation) -> list[str]:
    """Builds that run."""
    return [
        job["metadata"]["labels"][names.LABEL_ARTIFACT]
        for job in cluster.api.of("Job")
        if job["metadata"]["name"].startswith("b-") and not job.get("status", {}).get("conditions")
    ]


def building(limit: int | None, models: int, *, devices: int = 20) -> Installation:
    """As many models as these are asked for at once; their builds do not get on yet."""
    cluster = Installation(devices=devices)
    if limit is not None:
        cluster.api.update(("BuildProfile", "", "acme"), lambda live: live["spec"].update(parallelBuilds=limit))
    cluster.settle()
    cluster.surroundings.held = {BUILD}
    for number in range(models):
        cluster.deploy(f"d{number}", model={"source": f"oci://registry/own:{number}"})
    cluster.settle()
    return cluster


def messages(cluster: Installation) -> list[str]:
    found = [
        next(each["message"] for each in artifact["status"]["conditions"] if each["type"] == "Ready")
        for artifact in sorted(cluster.api.of("BuildArtifact"), key=lambda each: int(each["metadata"]["uid"][4:]))
    ]
    return [message for message in found if "at a time" in message]


@pytest.mark.parametrize(("limit", "running"), [(None, 4), (1, 1), (3, 3), (9, 4)])
def test_only_so_many_build_at_a_time_and_the_others_say_why(limit: int | None, running: int) -> None:
    cluster = building(limit, 6)
    assert len(active(cluster)) == running
    what = "in namespace ns" if running == 4 else "with BuildProfile acme"
    assert sorted(messages(cluster)) == [
        f"place {place}; at most {running} builds {what} run at a time" for place in range(1, 7 - running)
    ]
    assert sum(cluster.reason(f"d{number}", "ArtifactReady") == "Queued" for number in range(6)) == 6 - running
    cluster.watch = lambda: _at_most(cluster, running)
    cluster.surroundings.held = set()
    cluster.settle()
    assert {cluster.reason(f"d{number}") for number in range(6)} == {"Ready"}


def _at_most(cluster: Installation, limit: int) -> None:
    assert len(active(cluster)) <= limit


def test_a_limit_that_is_raised_is_used_at_once() -> None:
    cluster = building(1, 3)
    cluster.api.update(("BuildProfile", "", "acme"), lambda live: live["spec"].update(parallelBuilds=2))
    cluster.settle()
    assert len(active(cluster)) == 2


def test_one_that_pauses_lets_others_pass_and_comes_back() -> None:
    cluster = building(1, 2)
    (first,) = active(cluster)
    away = {"reason": "SourceUnreachable", "message": "no route", "retryable": True}
    cluster.surroundings.outcomes[BUILD] = [(69, away)]
    cluster.surroundings.held = set()
    cluster.watch = lambda: _at_most(cluster, 1)
    for _ in range(6):
        cluster.surroundings.run_jobs()
        cluster.replica.work()
    (now,) = active(cluster) or [""]
    assert now != first
    cluster.settle()
    assert {cluster.reason(f"d{number}") for number in range(2)} == {"Ready"}


def test_one_whose_deployments_are_suspended_takes_no_place() -> None:
    cluster = building(1, 3)
    (running,) = active(cluster)
    waiting = [
        each["metadata"]["name"] for each in cluster.api.of("ModelDeployment") if each["status"]["artifact"] != running
    ]
    spec = copied(cluster.api.objects["ModelDeployment", NAMESPACE, waiting[0]]["spec"])
    cluster.deploy(waiting[0], **{**spec, "suspend": True})
    cluster.surroundings.held = set()
    cluster.settle()
    assert cluster.reason(waiting[0]) == "Suspended"
    assert cluster.reason(waiting[1]) == "Ready"
    cluster.deploy(waiting[0], **spec)
    cluster.settle()
    assert cluster.reason(waiting[0]) == "Ready"


def test_what_the_store_has_needs_no_place() -> None:
    cluster = building(1, 2)
    waiting = next(each for each in cluster.api.of("BuildArtifact") if each["metadata"]["name"] not in active(cluster))
    repository = names.artifact_repository(NAMESPACE, waiting["metadata"]["name"])
    cluster.surroundings.push(f"{repository}:{names.ARTIFACT_TAG}", waiting["spec"]["key"])
    cluster.restart()
    cluster.settle()
    found = cluster.api.objects["BuildArtifact", NAMESPACE, waiting["metadata"]["name"]]
    assert next(each["reason"] for each in found["status"]["conditions"] if each["type"] == "Built") == "Adopted"


Move = Callable[[Installation], None]


def suspends(cluster: Installation, number: int, *, suspend: bool) -> None:
    cluster.deploy(f"d{number}", model={"source": f"oci://registry/own:{number}"}, suspend=suspend)


def goes(cluster: Installation, number: int) -> None:
    if ("ModelDeployment", NAMESPACE, f"d{number}") in cluster.api.objects:
        cluster.api.remove(("ModelDeployment", NAMESPACE, f"d{number}"))


def fails(cluster: Installation, code: int) -> None:
    reason = {69: "SourceUnreachable", 75: "Retrying", 70: "ToolchainFailed"}[code]
    cluster.surroundings.outcomes.setdefault(BUILD, []).append((code, {"reason": reason, "message": "because"}))


def others(cluster: Installation, times: int) -> None:
    for _ in range(times):
        cluster.surroundings.move()
        cluster.replica.step()


numbers = st.integers(0, 4)
moves = st.one_of(
    st.builds(lambda number: lambda cluster: suspends(cluster, number, suspend=True), numbers),
    st.builds(lambda number: lambda cluster: suspends(cluster, number, suspend=False), numbers),
    st.builds(lambda number: lambda cluster: goes(cluster, number), numbers),
    st.builds(lambda code: lambda cluster: fails(cluster, code), st.sampled_from([69, 70, 75])),
    st.builds(lambda times: lambda cluster: others(cluster, times), st.integers(1, 6)),
    st.just(lambda cluster: cluster.restart()),
    st.just(lambda cluster: cluster.settle()),
)


@settings(
    max_examples=25, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
@given(st.integers(1, 3), st.lists(moves, min_size=2, max_size=12))
def test_limits_hold_whatever_happens_and_all_are_built_in_the_end(limit: int, story: list[Move]) -> None:
    cluster = building(limit, 5)
    cluster.surroundings.held = set()
    cluster.watch = lambda: _at_most(cluster, limit)
    for each in story:
        each(cluster)
        _at_most(cluster, limit)
    cluster.surroundings.outcomes.clear()
    for number in range(5):
        suspends(cluster, number, suspend=False)
    cluster.settle()
    for artifact in cluster.api.of("BuildArtifact"):
        if any(each["type"] == "Stalled" for each in artifact["status"]["conditions"]):
            cluster.api.remove(("BuildArtifact", NAMESPACE, artifact["metadata"]["name"]))
    cluster.settle()
    assert {cluster.reason(f"d{number}") for number in range(5)} == {"Ready"}
