"""The operator dies at one of its writes, and everything ends as if it had not.

The real controllers run over a cluster in memory. Each scenario is walked once without a fault; then again and again,
with a death at one write each time. What is there in the end, and how often each object was made and deleted on the
way, must be the same.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, partial
from typing import Any

from memory_cluster import NAMESPACE, Installation, Object, ObjectKey, at
from rm_api import names

MODEL = ("ModelDeployment", NAMESPACE, "hello")
FAILURE = (70, {"reason": "ToolchainFailed", "message": "internal error 7"})
OUT_OF_MEMORY = (75, {"reason": "OutOfMemory", "message": "killed", "container": "compile"})
AWAY = (69, {"reason": "SourceUnreachable", "message": "registry: no route", "retryable": True})


@dataclass(frozen=True)
class Scenario:
    """From a state at rest to another one. The operator dies on the way."""

    name: str
    start: Callable[[], Installation]
    act: Callable[[Installation], None]
    end: str
    """Reason of Ready in the end; empty where the deployment is gone."""
    longer: bool = False
    """Also with the faults that take long to try."""
    race: bool = False
    """The garbage collector decides what is made anew and what is taken over: only the end can be compared."""


def _first(cluster: Installation) -> None:
    cluster.deploy()
    cluster.settle()


def _reuse(cluster: Installation) -> None:
    cluster.deploy("again")
    cluster.deploy("other", model={"source": "oci://registry/model:2"})
    cluster.settle()


def _another_model(cluster: Installation) -> None:
    cluster.deploy(model={"source": "oci://registry/model:2"})
    cluster.settle()


def _source_away_twice(cluster: Installation) -> None:
    cluster.surroundings.outcomes[names.ROLE_RESOLVE] = [AWAY, AWAY]
    cluster.settle()


def _build_fails_once(cluster: Installation) -> None:
    cluster.surroundings.outcomes[names.ROLE_BUILD] = [FAILURE]
    cluster.settle()


def _build_fails_for_good(cluster: Installation) -> None:
    cluster.surroundings.outcomes[names.ROLE_BUILD] = [FAILURE, FAILURE]
    cluster.settle()


def _staged() -> Installation:
    """The profile's second step needs a device: a build is two Jobs."""
    cluster = at("nothing").fork()
    cluster.in_stages()
    cluster.settle()
    return cluster


def _stage_fails_once(cluster: Installation) -> None:
    cluster.surroundings.outcomes[names.ROLE_BUILD] = [(0, {}), FAILURE]
    _first(cluster)


def _too_little_memory_twice(cluster: Installation) -> None:
    limits = {"resources": {"memory": "1Gi"}}
    cluster.api.update(("BuildProfile", "", "acme"), lambda live: live["spec"]["steps"][0].update(limits))
    cluster.api.update(("BuildProfile", "", "acme"), lambda live: live["spec"].update(maxMemory="4Gi"))
    cluster.surroundings.outcomes[names.ROLE_BUILD] = [OUT_OF_MEMORY, OUT_OF_MEMORY]
    _first(cluster)


def _one_at_a_time(cluster: Installation) -> None:
    cluster.api.update(("BuildProfile", "", "acme"), lambda live: live["spec"].update(parallelBuilds=1))
    cluster.settle()
    for number in range(3):
        cluster.deploy("hello" if number == 2 else f"other{number}", model={"source": f"oci://registry/own:{number}"})
    cluster.watch = lambda: _at_most_one(cluster)
    cluster.settle()


def _at_most_one(cluster: Installation) -> None:
    active = [
        job["metadata"]["name"]
        for job in cluster.api.of("Job")
        if job["metadata"]["name"].startswith("b-") and not job.get("status", {}).get("conditions")
    ]
    assert len(active) <= 1, f"builds at the same time: {active}"


def _failed_for_good() -> Installation:
    cluster = at("build").fork()
    _build_fails_for_good(cluster)
    return cluster


def _mended_profile(cluster: Installation) -> None:
    cluster.api.update(("BuildProfile", "", "acme"), lambda live: live["spec"]["steps"][0].update(args=["--legacy"]))
    cluster.settle()


def _cut_over(cluster: Installation) -> None:
    cluster.engine_image("acme/serve:2")
    cluster.settle()


def _there_and_back(cluster: Installation) -> None:
    """The cut-over is taken back while the old pods drain."""
    cluster.surroundings.held = {"slices"}
    cluster.engine_image("acme/serve:2")
    cluster.settle()
    cluster.engine_image("acme/serve:1")
    cluster.settle()
    cluster.surroundings.held = set()
    cluster.settle()


def _scaled(cluster: Installation) -> None:
    for replicas in (0, 3, 1):
        cluster.deploy(replicas=replicas)
        cluster.settle()


def _suspended_and_resumed(cluster: Installation) -> None:
    cluster.deploy(suspend=True)
    cluster.settle()
    cluster.deploy()
    cluster.settle()


def _autoscaled_for_a_while(cluster: Installation) -> None:
    metrics = [{"name": "requests", "averageValue": "4"}]
    cluster.deploy(autoscaling={"minReplicas": 1, "maxReplicas": 3, "metrics": metrics})
    cluster.settle()
    cluster.deploy()
    cluster.settle()


def _device_fails(cluster: Installation) -> None:
    """One of the devices in use: the pod on it is replaced, once that has lasted."""
    cluster.surroundings.devices_are({0})
    cluster.settle()


def _device_fails_while_requests_come(cluster: Installation) -> None:
    """The EndpointSlices name the pod that leaves for a while."""
    cluster.surroundings.devices_are({1})
    cluster.surroundings.held = {"slices"}
    cluster.settle()
    cluster.surroundings.held = set()
    cluster.settle()


def _device_recovers_too_late(cluster: Installation) -> None:
    """Its pod's successor is starting by then."""
    cluster.surroundings.held = {"starts"}
    cluster.surroundings.devices_are({0})
    cluster.settle()
    cluster.surroundings.devices_are(())
    cluster.settle()
    cluster.surroundings.held = set()
    cluster.settle()


def _refused_by_the_kubelet(cluster: Installation) -> None:
    """More often than is kept in mind; then the node takes the pod."""
    cluster.surroundings.refusing = 5
    cluster.deploy(replicas=3)
    cluster.settle()
    cluster.api.now += timedelta(minutes=11)
    cluster.replica.wake_due()
    cluster.settle()


def _deleted(cluster: Installation) -> None:
    cluster.api.remove(MODEL)
    cluster.settle()


def _deleted_and_made_again(cluster: Installation) -> None:
    cluster.api.remove(MODEL)
    cluster.deploy(replicas=2)
    cluster.settle()


SCENARIOS = (
    Scenario("first deployment", lambda: at("nothing"), _first, "Ready", longer=True),
    Scenario("reuse", lambda: at("ready"), _reuse, "Ready"),
    Scenario("another model", lambda: at("ready"), _another_model, "Ready"),
    Scenario("source away twice", lambda: at("resolve"), _source_away_twice, "Ready"),
    Scenario("build fails once", lambda: at("build"), _build_fails_once, "Ready"),
    Scenario("build fails for good", lambda: at("build"), _build_fails_for_good, "ToolchainFailed"),
    Scenario("fails from the start", lambda: at("resolve"), _build_fails_for_good, "ToolchainFailed"),
    Scenario("in stages", cache(_staged), _first, "Ready", longer=True),
    Scenario("a stage fails once", cache(_staged), _stage_fails_once, "Ready", longer=True),
    Scenario("memory fails twice", lambda: at("nothing"), _too_little_memory_twice, "Ready"),
    Scenario("one at a time", lambda: at("nothing"), _one_at_a_time, "Ready"),
    Scenario("profile mended", cache(_failed_for_good), _mended_profile, "Ready"),
    Scenario("cut-over", lambda: at("ready", 2), _cut_over, "Ready", longer=True),
    Scenario("there and back", lambda: at("ready", 2), _there_and_back, "Ready", longer=True),
    Scenario("scaled", lambda: at("ready", 2), _scaled, "Ready"),
    Scenario("suspended and resumed", lambda: at("ready"), _suspended_and_resumed, "Ready"),
    Scenario("suspended while it is built", lambda: at("build"), _suspended_and_resumed, "Ready"),
    Scenario("autoscaled for a while", lambda: at("ready"), _autoscaled_for_a_while, "Ready"),
    Scenario("device falls ill", lambda: at("ready", 2), _device_fails, "Ready", longer=True),
    Scenario("device falls ill, requests come", lambda: at("ready", 2), _device_fails_while_requests_come, "Ready"),
    Scenario("device recovers too late", lambda: at("ready", 2), _device_recovers_too_late, "Ready", longer=True),
    Scenario("refused by the kubelet", lambda: at("ready", 2), _refused_by_the_kubelet, "Ready"),
    *(
        Scenario(f"deleted at {stage}", partial(at, stage), _deleted, "")
        for stage in ("resolve", "build", "pods", "starts", "ready")
    ),
    *(
        Scenario(f"made again at {stage}", partial(at, stage), _deleted_and_made_again, "Ready", race=True)
        for stage in ("build", "ready")
    ),
)


@dataclass(frozen=True)
class Outcome:
    """What a walk came to."""

    objects: dict[ObjectKey, Object]
    created: Counter[ObjectKey]
    deleted: Counter[ObjectKey]
    ran: Counter[str]
    """Jobs that came to an end."""
    writes: int
    first_writes: set[int]


_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_VOLATILE = frozenset({"uid", "resourceVersion", "generation", "observedGeneration", names.ANNOTATION_APPLIED_HASH})


def _masked(value: Any) -> Any:
    """``value`` without what may differ between two walks: identities, versions and moments."""
    if isinstance(value, dict):
        return {key: _masked(member) for key, member in value.items() if key not in _VOLATILE}
    if isinstance(value, list):
        return [_masked(member) for member in value]
    return _MOMENT.sub("*", value) if isinstance(value, str) else value


def walk(scenario: Scenario, fault: tuple[int, str] | None = None) -> Outcome:
    cluster = scenario.start().fork()
    if fault:
        cluster.die_at(*fault)
    scenario.act(cluster)
    assert cluster.deaths == bool(fault), "the fault was injected"
    api = cluster.api
    ran = Counter(cluster.surroundings.ran)
    return Outcome(_masked(api.objects), api.created, api.deleted, ran, api.writes, api.first_writes)


@cache
def reference(scenario: Scenario) -> Outcome:
    """The walk without a fault."""
    return walk(scenario)


def difference(found: Any, expected: Any, place: str = "") -> Iterator[str]:
    """Where two values differ."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in sorted(found.keys() | expected.keys(), key=str):
            yield from difference(found.get(key), expected.get(key), f"{place}.{key}")
    elif found != expected:
        yield f"{place}: {str(found)[:120]}, without the fault {str(expected)[:120]}"


def deaths() -> Iterator[tuple[Scenario, str]]:
    """Each scenario with each way to die that it is tried with."""
    for scenario in SCENARIOS:
        for how in ("before", "after", *(("outage", "late", "sleeps") if scenario.longer else ())):
            yield scenario, how


def writes_to_die_at(scenario: Scenario, how: str) -> list[int]:
    """The numbers of the writes, from 1."""
    expected = reference(scenario)
    # To die before a write that follows another at once is to die after that other one: that has its turn.
    return sorted(expected.first_writes) if how == "before" else list(range(1, expected.writes + 1))


def check_a_death(scenario: Scenario, how: str, number: int) -> None:
    """Fails unless a walk with a death at that write comes to what the walk without a fault did."""
    expected, found = reference(scenario), walk(scenario, (number, how))
    problems = [*difference(found.objects, expected.objects)]
    if scenario.race:
        pass
    elif how in ("late", "sleeps"):
        # A writer that was overtaken may have the source read once more: no harm, and soon cleared away. A compiler
        # is never started again.
        problems += difference(_builds(found), _builds(expected), "ran")
    else:
        problems += difference(found.ran, expected.ran, "ran")
        problems += difference(found.created, expected.created, "created")
        problems += difference(found.deleted, expected.deleted, "deleted")
    assert problems == [], f"{how} write {number} of {expected.writes}"


def _builds(outcome: Outcome) -> Counter[str]:
    return Counter({name: count for name, count in outcome.ran.items() if name.startswith("b-")})
