"""What holds for the planners whatever happens: generated stories over a cluster in memory, with the real controllers.

A story is a list of things that users, vendors, nodes and mischief do, between which everybody else gets on a little.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from random import Random
from typing import Any
from unittest import mock

import pytest
from chain import FACTS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_cluster import NAMESPACE, Installation, Object, ObjectKey, at, copied, is_ready
from rm_api import names
from rm_api.crdgen import openapi_schema
from rm_api.kinds import KINDS
from rm_operator.kube.errors import ApiError
from rm_operator.plan import accelerator, artifact, deployment, profile
from rm_operator.plan.model import Plan
from structural_schema import violations


# The same stories each time, so that a run means the same on every machine; no deadline, as machines differ.
def repeatable(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


PLANNERS: tuple[Any, ...] = (accelerator, artifact, deployment, profile)
STATUS_SCHEMAS = {info.kind: openapi_schema(info.status) for info in KINDS}
Move = Callable[[Installation], None]


# What users and platform teams do.

DEPLOYMENTS = ("hello", "again")
SPECS: tuple[Object, ...] = (
    {},
    {"replicas": 0},
    {"replicas": 2},
    {"replicas": 3, "rollout": {"strategy": "InPlace", "maxUnavailable": 1}},
    {"replicas": 2, "rollout": {"maxSurge": 2, "maxUnavailable": 1}},
    {"model": {"source": "oci://registry/model:2"}},
    {"model": {"source": "oci://registry/model:2", "servedName": "other"}},
    {"accelerators": {"types": ["GPU"]}},
    {"buildProfile": "missing"},
    {"requirements": {"maxSequenceLength": 100000}},
    {"runtime": {"env": [{"name": "TZ", "value": "UTC"}]}},
    {"suspend": True},
    {"replicas": 2, "suspend": True},
)


def move(function: Callable[..., None], *strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[Move]:
    """Moves that call ``function`` with the cluster and drawn arguments."""
    return st.tuples(*strategies).map(lambda drawn: _Named(function, drawn))


class _Named:
    """A move that says what it is when an example fails."""

    def __init__(self, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self._function, self._arguments = function, arguments

    def __call__(self, cluster: Installation) -> None:
        self._function(cluster, *self._arguments)

    def __repr__(self) -> str:
        return f"{self._function.__name__}{self._arguments}"


def deploys(cluster: Installation, name: str, spec: Object) -> None:
    cluster.deploy(name, **spec)


def deletes(cluster: Installation, name: str) -> None:
    if ("ModelDeployment", NAMESPACE, name) in cluster.api.objects:
        cluster.api.remove(("ModelDeployment", NAMESPACE, name))


def another_engine(cluster: Installation, number: int) -> None:
    cluster.engine_image(f"acme/serve:{number}")


def other_steps(cluster: Installation, argument: str) -> None:
    cluster.api.update(("BuildProfile", "", "acme"), lambda live: live["spec"]["steps"][0].update(args=[argument]))


def in_stages(cluster: Installation) -> None:
    cluster.in_stages()


def one_build_at_a_time(cluster: Installation, number: int) -> None:
    cluster.api.update(("BuildProfile", "", "acme"), lambda live: live["spec"].update(parallelBuilds=number))


# What goes wrong.

FAILURES: tuple[tuple[int, Object], ...] = (
    (64, {"reason": "UnsupportedModel", "message": "no kernel"}),
    (69, {"reason": "SourceUnreachable", "message": "no route", "retryable": True}),
    (70, {"reason": "ToolchainFailed", "message": "internal error", "facts": {"logTail": "a\nb"}}),
    (75, {"reason": "OutOfMemory", "message": "killed"}),
    (1, {"reason": "", "facts": {}}),
    (0, {"facts": {"layers": 2}}),
)
# Reports that are well-formed, and hardly credible.
SURPRISES: tuple[tuple[int, Object], ...] = (
    (0, {"facts": {**FACTS, "layers": 10**30}}),
    (0, {"facts": {**FACTS, "architecture": "x" * 300}}),
    (0, {"facts": {**FACTS, "revision": "x" * 300}}),
    (0, {"facts": {**FACTS, "parameters": 2**63}}),
    (0, {"versions": {"x" * 5000: "y" * 5000, "": ""}}),
    (0, {"versions": {str(number): "1" for number in range(100)}}),
    (70, {"reason": "x" * 5000, "message": "x" * 9000, "facts": {"logTail": "\n".join(["x" * 5000] * 100)}}),
)


def job_fails(cluster: Installation, role: str, failure: tuple[int, Object]) -> None:
    cluster.surroundings.outcomes.setdefault(role, []).append(failure)


def clock_goes_back(cluster: Installation) -> None:
    cluster.surroundings.clock_jump = timedelta(seconds=9)


def devices(cluster: Installation, number: int) -> None:
    cluster.surroundings.devices_are((), number=number)


def devices_fall_ill(cluster: Installation, unwell: set[int]) -> None:
    cluster.surroundings.devices_are(unwell)


def kubelet_refuses(cluster: Installation, times: int) -> None:
    cluster.surroundings.refusing = times


def pod_crashes(cluster: Installation, which: int, code: int) -> None:
    pods = [pod for pod in cluster.api.of("Pod") if names.LABEL_VARIANT in pod["metadata"]["labels"]]
    if not pods:
        return
    terminated = {"exitCode": code, "message": "because"}
    crashed = {
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": "False"}],
        "containerStatuses": [{"name": "engine", "image": "x", "state": {"terminated": terminated}}],
    }
    metadata = pods[which % len(pods)]["metadata"]
    cluster.api.update(("Pod", NAMESPACE, metadata["name"]), lambda live: live.update(status=crashed))


CHILDREN = ("Job", "Pod", "ConfigMap", "Service", "Deployment", "ControllerRevision", "BuildArtifact", "EndpointSlice")


def _child(cluster: Installation, which: int) -> ObjectKey | None:
    keys = sorted(key for key in cluster.api.objects if key[0] in CHILDREN)
    return keys[which % len(keys)] if keys else None


def child_deleted(cluster: Installation, which: int) -> None:
    if key := _child(cluster, which):
        cluster.api.remove(key)


# How long everybody else gets on in between.


def operator_looks(cluster: Installation, times: int) -> None:
    for _ in range(times):
        cluster.replica.step()


def others_move(cluster: Installation, part: int) -> None:
    cluster.surroundings.parts[part]()


def all_settle(cluster: Installation) -> None:
    cluster.settle()


def time_passes(cluster: Installation, minutes: int) -> None:
    cluster.api.now += timedelta(minutes=minutes)
    cluster.replica.wake_due()


def operator_restarts(cluster: Installation) -> None:
    cluster.restart()


a_name = st.sampled_from(DEPLOYMENTS)
some = st.integers(0, 30)
USERS = (
    move(deploys, a_name, st.sampled_from(SPECS)),
    move(deploys, a_name, st.sampled_from(SPECS)),
    move(deletes, a_name),
    move(another_engine, st.integers(1, 3)),
    move(other_steps, st.sampled_from(["-O1", "-O2"])),
    move(in_stages),
    move(one_build_at_a_time, st.integers(1, 2)),
)
TROUBLE = (
    move(job_fails, st.sampled_from([names.ROLE_RESOLVE, names.ROLE_BUILD]), st.sampled_from(FAILURES + SURPRISES)),
    move(clock_goes_back),
    move(devices, st.sampled_from([0, 1, 2, 4])),
    move(devices_fall_ill, st.sets(st.integers(0, 3), max_size=3)),
    move(kubelet_refuses, st.sampled_from([1, 4])),
    move(pod_crashes, some, st.sampled_from([1, 65, 66, 67, 69, 137])),
    move(child_deleted, some),
)
OTHERS = (
    move(all_settle),
    move(operator_looks, st.integers(1, 4)),
    move(others_move, st.integers(0, 4)),
    move(time_passes, st.sampled_from([1, 40])),
    move(operator_restarts),
)


def stories(*moves: st.SearchStrategy[Move], least: int = 2, most: int = 10) -> st.SearchStrategy[list[Move]]:
    """Lists of such moves, between which others may get on."""
    return st.lists(st.one_of(*moves, *OTHERS), min_size=least, max_size=most)


starts = st.sampled_from(["nothing", "resolve", "build", "starts", "ready", "ready"])
"""How far the first deployment is when a story begins."""


def play(story: list[Move], cluster: Installation) -> Installation:
    for each in story:
        each(cluster)
    return cluster


def _statuses_fit(cluster: Installation) -> None:
    """The API server would have taken every status that was written."""
    for info in KINDS:
        for obj in cluster.api.of(info.kind):
            found = list(violations(STATUS_SCHEMAS[info.kind], obj.get("status") or {}, f"{info.kind}.status"))
            assert found == []


# The properties.


@repeatable(45)
@given(starts, stories(*USERS, *TROUBLE))
def test_at_rest_there_is_nothing_to_do(start: str, story: list[Move]) -> None:
    """It comes to rest; there the plan of what was planned is empty, also for an operator that has just begun."""
    cluster = at(start).fork()
    cluster.watch = lambda: _statuses_fit(cluster)
    play(story, cluster)
    cluster.settle()
    for _ in range(2):
        before = dict(cluster.api.objects)
        requests = _requests(cluster)
        cluster.restart()
        with requests as sent:
            cluster.replica.work()
        assert cluster.api.objects == before
        assert [each for each in sent if each != "get"] == [], "not even a request that changes nothing"


@contextmanager
def _requests(cluster: Installation) -> Iterator[list[str]]:
    sent: list[str] = []
    api = cluster.api

    def counted(verb: str) -> Callable[..., Any]:
        original = getattr(type(api), verb)

        async def request(*arguments: Any, **options: Any) -> Any:
            sent.append(verb)
            return await original(api, *arguments, **options)

        return request

    with ExitStack() as stack:
        for verb in ("get", "apply", "delete"):
            stack.enter_context(mock.patch.object(api, verb, counted(verb)))
        yield sent


@repeatable(40)
@given(starts, stories(*USERS, *TROUBLE))
def test_whatever_went_wrong_it_ends_as_if_nothing_had(start: str, story: list[Move]) -> None:
    """Once the troubles are over, what serves is what an untroubled cluster makes of the same wishes."""
    cluster = play(story, at(start).fork())
    cluster.surroundings.outcomes.clear()
    cluster.surroundings.refusing = 0
    devices(cluster, 8)
    cluster.settle()
    for each in cluster.api.of("ModelDeployment"):
        # What cannot be placed, or is suspended, leaves what is there already: that is a matter of the past.
        if cluster.reason(each["metadata"]["name"]) in ("NoEligibleAccelerator", "ProfileNotFound", "Suspended"):
            cluster.deploy(each["metadata"]["name"])
    for each in cluster.api.of("BuildArtifact"):
        # A build that failed for good waits for a person: this one deletes it, to have it tried again.
        if any(entry["type"] == "Stalled" for entry in each["status"]["conditions"]):
            cluster.api.remove(("BuildArtifact", NAMESPACE, each["metadata"]["name"]))
    for pod in cluster.api.of("Pod"):
        cluster.api.remove(("Pod", NAMESPACE, pod["metadata"]["name"]))
    for _ in range(3):
        cluster.settle()
        cluster.api.now += timedelta(minutes=10)
        cluster.replica.wake_due()
    cluster.settle()

    fresh = Installation(devices=8)
    for kind, name in (("AcceleratorResource", "npu"), ("BuildProfile", "acme")):
        spec = cluster.api.objects[kind, "", name]["spec"]
        fresh.api.update((kind, "", name), lambda live, spec=spec: live.update(spec=spec))  # type: ignore[misc]
    for each in cluster.api.of("ModelDeployment"):
        fresh.deploy(each["metadata"]["name"], **each["spec"])
    fresh.settle()
    assert _serving(cluster) == _serving(fresh)
    assert _ready(cluster) == _ready(fresh)


def _serving(cluster: Installation) -> Object:
    """Per deployment: which Deployments with which pods there are, and how many of their pods are reached."""
    return {
        name: (
            {
                each["metadata"]["name"]: each["spec"]["replicas"]
                for each in cluster.api.of("Deployment")
                if each["metadata"]["labels"][names.LABEL_DEPLOYMENT] == name
            },
            len(cluster.surroundings.routed(name)),
        )
        for name in DEPLOYMENTS
    }


def _ready(cluster: Installation) -> Object:
    return {
        each["metadata"]["name"]: (
            cluster.reason(each["metadata"]["name"]),
            cluster.reason(each["metadata"]["name"], "Stalled"),
        )
        for each in cluster.api.of("ModelDeployment")
    }


@repeatable(40)
@given(starts, stories(*USERS, *TROUBLE))
def test_a_status_is_honest_at_every_moment(start: str, story: list[Move]) -> None:
    cluster = at(start).fork()
    cluster.watch = lambda: _honest(cluster)
    for each in story:
        each(cluster)
        _one_build_at_a_time(cluster)
    cluster.settle()
    for each in cluster.api.of("ModelDeployment"):
        name, status = each["metadata"]["name"], each["status"]
        types = {entry["type"]: entry["status"] for entry in status["conditions"]}
        assert status["observedGeneration"] == each["metadata"]["generation"]
        assert not ("Reconciling" in types and "Stalled" in types)
        if types["Ready"] == "True":
            assert not {"Reconciling", "Stalled"} & types.keys()
            assert len(cluster.surroundings.routed(name)) == each["spec"]["replicas"]
        else:
            assert "Reconciling" in types or "Stalled" in types or cluster.reason(name) == "Suspended"


def _honest(cluster: Installation) -> None:
    """A status that says Ready for the spec as it is, is right, but for what happened since it was written."""
    _one_build_at_a_time(cluster)
    for each in cluster.api.of("ModelDeployment"):
        for entry in (each.get("status") or {}).get("conditions") or []:
            assert entry["observedGeneration"] <= each["status"]["observedGeneration"] <= each["metadata"]["generation"]


def _one_build_at_a_time(cluster: Installation) -> None:
    active = Counter(
        job["metadata"]["labels"].get(names.LABEL_ARTIFACT)
        for job in cluster.api.of("Job")
        if not job.get("status", {}).get("conditions") and job["metadata"]["labels"][names.LABEL_ROLE] == "build"
    )
    assert max(active.values(), default=0) <= 1, f"two compile Jobs at once: {active}"


# The planners as functions.


@contextmanager
def _scrutinised(random: Random) -> Iterator[Counter[str]]:
    """Has every call of a planner made three times: as it is, once more, and with everything in another order."""
    calls: Counter[str] = Counter()

    def scrutinising(planner: Any) -> Callable[[Any, datetime], Plan]:
        original = planner.plan

        def plan(snapshot: Any, now: datetime) -> Plan:
            calls[planner.__name__] += 1
            before = repr(snapshot)
            decided: Plan = original(snapshot, now)
            assert original(snapshot, now) == decided
            assert _normal(original(_shuffled(snapshot, random), now)) == _normal(decided)
            assert repr(snapshot) == before, "it changed what it was given to look at"
            return decided

        return plan

    with ExitStack() as stack:
        for planner in PLANNERS:
            stack.enter_context(mock.patch.object(planner, "plan", scrutinising(planner)))
        yield calls


@repeatable(20)
@given(starts, stories(*USERS, *TROUBLE, least=4), st.integers(0, 2**32))
def test_plans_depend_on_nothing_but_what_is_there(start: str, story: list[Move], seed: int) -> None:
    """The same again, and with everything in another order, the plan is the same, and changed nothing that it saw."""
    with _scrutinised(Random(seed)) as calls:
        cluster = play(story, at(start).fork())
        cluster.settle()
    assert set(calls) >= {accelerator.__name__, profile.__name__}


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


ONE_OBJECT = frozenset({"deployment", "artifact", "accelerator", "profile", "config_map", "service", "autoscaler"})
"""Parts of snapshots that are an object, not a collection."""


def _shuffled(snapshot: Any, random: Random) -> Any:
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(snapshot):
        value = getattr(snapshot, field.name)
        if isinstance(value, list | tuple):
            changes[field.name] = tuple(random.sample(value, len(value)))
        elif isinstance(value, dict) and field.name not in ONE_OBJECT:
            changes[field.name] = dict(random.sample(list(value.items()), len(value)))
    return dataclasses.replace(snapshot, **changes)


def _normal(plan: Plan) -> Any:
    """A plan without the order in which children of one kind, deletions and events come."""
    return (
        [child["kind"] for child in plan.apply if child["kind"] != "Pod"],
        sorted(map(_json, plan.apply)),
        sorted(map(str, plan.delete)),
        plan.status,
        plan.status_first,
        sorted(map(str, plan.events)),
        plan.requeue_after,
    )


@pytest.mark.parametrize("role", [names.ROLE_RESOLVE, names.ROLE_BUILD])
@pytest.mark.parametrize("report", SURPRISES, ids=range(len(SURPRISES)))
def test_a_report_that_is_hardly_credible_ends_in_a_status(report: tuple[int, Object], role: str) -> None:
    cluster = at(role).fork()
    cluster.watch = lambda: _statuses_fit(cluster)
    job_fails(cluster, role, report)
    cluster.settle()
    assert cluster.reason() in ("Ready", "ResolveFailed", "ToolchainFailed")


# Mischief: what people with kubectl, and other versions, leave in objects.

ODD_LABELS = ("", "x", "0", "99999999999999999999", "1_0", "A.b-c")
ODD_DATA: tuple[Any, ...] = (None, {}, {"model.json": ""}, {"model.json": "[]"}, {"model.json": "{}"}, {"other": "x"})
ODD_TEMPLATES: tuple[Any, ...] = (
    None, {}, [], {"template": {}}, {"template": "x"}, {"template": {"spec": {}}}, {"gzip": "H4sI"}, {"gzip": 7},
)  # fmt: skip
ODD_JOBS: tuple[Any, ...] = (
    {},
    {"conditions": [{"type": "Failed", "status": "True"}]},
    {"conditions": [{"type": "Complete", "status": "False"}, {"type": "Suspended", "status": "True"}]},
    {"conditions": [{"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}]},
    {"conditions": [{"type": "SuccessCriteriaMet", "status": "True"}], "failed": 3},
)
ODD_PODS: tuple[Any, ...] = (
    {},
    {"phase": "Failed"},
    {"phase": "Failed", "reason": "Evicted"},
    {"phase": "Failed", "reason": "UnexpectedAdmissionError"},
    {"conditions": [{"type": "PodScheduled", "status": "False"}, {"type": "Ready", "status": "True"}]},
    {"containerStatuses": [{"name": "x", "state": {}, "lastState": {}}]},
    {"containerStatuses": [{"name": "x", "state": {"waiting": {}}}]},
    {"containerStatuses": [{"name": "x", "state": {"terminated": {"exitCode": 999}}}]},
    {"initContainerStatuses": [{"name": "x", "state": {"waiting": {"reason": "ErrImagePull"}}}]},
    {
        "containerStatuses": [
            {
                "name": "x",
                "state": {
                    "terminated": {
                        "exitCode": 0,
                        "startedAt": "2026-01-01T00:00:09Z",
                        "finishedAt": "2026-01-01T00:00:00Z",
                        "message": '{"reason":"Done","versions":{"cc":"1"},"facts":{"logTail":5}}',
                    }
                },
            }
        ]
    },
)


def mislabelled(cluster: Installation, which: int, label: int, value: str | None) -> None:
    def change(live: Object) -> None:
        labels = live["metadata"].setdefault("labels", {})
        known = sorted(name for name in {*labels, names.LABEL_MODEL, names.LABEL_ATTEMPT, names.LABEL_VARIANT})
        if value is None:
            labels.pop(known[label % len(known)], None)
        else:
            labels[known[label % len(known)]] = value

    if key := _child(cluster, which):
        cluster.api.update(key, change)


def disowned(cluster: Installation, which: int) -> None:
    if key := _child(cluster, which):
        cluster.api.update(key, lambda live: live["metadata"].pop("ownerReferences", None))


def held_back(cluster: Installation, which: int) -> None:
    """A finalizer of somebody else, and then the deletion."""
    if key := _child(cluster, which):
        cluster.api.update(key, lambda live: live["metadata"].update(finalizers=["example.com/theirs"]))
        cluster.api.remove(key)


def _overwritten(kind: str, member: str) -> Callable[[Installation, int, Any], None]:
    def overwrites(cluster: Installation, which: int, value: Any) -> None:
        found = cluster.api.of(kind)
        if not found:
            return
        metadata = found[which % len(found)]["metadata"]

        def change(live: Object) -> None:
            live.pop("immutable", None)
            if value is None:
                live.pop(member, None)
            else:
                live[member] = copied(value)

        cluster.api.update((kind, metadata.get("namespace", ""), metadata["name"]), change)

    overwrites.__name__ = f"{kind}_{member}_overwritten"
    return overwrites


OWN_STATUSES = tuple(
    move(_overwritten(info.kind, "status"), some, st.deferred(lambda info=info: _statuses(info.kind)))  # type: ignore[misc]
    for info in KINDS
)
MISCHIEF = (
    move(mislabelled, some, some, st.one_of(st.none(), st.sampled_from(ODD_LABELS))),
    move(disowned, some),
    move(held_back, some),
    move(_overwritten("ConfigMap", "data"), some, st.sampled_from(ODD_DATA)),
    move(_overwritten("ControllerRevision", "data"), some, st.sampled_from(ODD_TEMPLATES)),
    move(_overwritten("Job", "status"), some, st.sampled_from(ODD_JOBS)),
    move(_overwritten("Pod", "status"), some, st.sampled_from(ODD_PODS)),
    *OWN_STATUSES,
)


def _statuses(kind: str) -> st.SearchStrategy[Any]:
    from structural_schema import values

    return values(STATUS_SCHEMAS[kind], {})


@repeatable(60)
@given(starts, stories(*USERS[:2], *MISCHIEF, least=4))
def test_nothing_that_objects_may_say_makes_a_planner_fail(start: str, story: list[Move]) -> None:
    """Planners are total, every status fits its schema, and it comes to rest, whatever was done to the objects."""
    cluster = at(start).fork()
    cluster.watch = lambda: _statuses_fit(cluster)
    try:
        play(story, cluster)
        cluster.settle()
    except ApiError as error:
        raise AssertionError(f"the story is not possible: {error}") from error


# What a rollout promises, and the replacement of pods on devices that are not well.


def _promise(spec: Object) -> int:
    """Pods that serve at least, while nobody takes any away."""
    if spec.get("suspend"):
        return 0
    rollout = spec.get("rollout", {})
    return max(0, int(spec["replicas"]) - int(rollout.get("maxUnavailable", 0)))


def redeploys(cluster: Installation, spec: Object) -> None:
    cluster.deploy(**spec)


ROLLOUTS: tuple[Object, ...] = (
    {},
    {"maxSurge": 2},
    {"maxUnavailable": 1},
    {"strategy": "InPlace", "maxUnavailable": 1},
    {"strategy": "InPlace", "maxUnavailable": 2},
)


@repeatable(60)
@given(
    st.integers(1, 3),
    st.sampled_from(ROLLOUTS),
    st.integers(3, 6),
    st.lists(
        st.one_of(
            move(another_engine, st.integers(1, 3)),
            move(other_steps, st.sampled_from(["-O1", "-O2"])),
            move(redeploys, st.just({"accelerators": {"types": ["GPU"]}})),
            move(redeploys, st.just({})),
            move(devices_fall_ill, st.sets(st.integers(0, 5), max_size=2)),
            *OTHERS,
            *OTHERS[1:3],
            *OTHERS[1:3],
        ),
        min_size=4,
        max_size=40,
    ),
)
def test_a_rollout_keeps_what_it_promised(replicas: int, rollout: Object, number: int, story: list[Move]) -> None:
    """At no moment are fewer pods reached than promised, or more asked for than allowed."""
    wanted = {"replicas": replicas, **({"rollout": rollout} if rollout else {})}
    cluster = Installation(devices=number)
    cluster.deploy(**wanted)
    cluster.settle()
    assert cluster.reason() == "Ready"
    promised, ill = _promise(wanted), False

    def check() -> None:
        reached = [
            pod
            for pod in cluster.api.of("Pod")
            if pod["metadata"]["name"] in cluster.surroundings.routed() and is_ready(pod)
        ]
        assert len(reached) >= promised, f"{len(reached)} of {promised} promised pods are reached"
        asked = sum(each["spec"]["replicas"] for each in cluster.api.of("Deployment"))
        # Who takes over from a pod on a sick device comes first whatever the strategy is: its device is of no use.
        in_place = rollout.get("strategy") == "InPlace" and not ill
        ceiling = replicas + (0 if in_place else rollout.get("maxSurge", 1))
        assert asked <= ceiling, f"{asked} pods are asked for, {ceiling} may be"

    cluster.watch = check
    for each in story:
        ill = ill or (isinstance(each, _Named) and each._function is devices_fall_ill)
        if isinstance(each, _Named) and each._function is redeploys:
            cluster.deploy(**wanted, **each._arguments[0])
        else:
            each(cluster)
        check()
    cluster.surroundings.devices_are(())
    cluster.deploy(**wanted)
    cluster.settle()
    check()
    if number > replicas or rollout.get("strategy") == "InPlace":
        assert cluster.reason() == "Ready"
        assert len(cluster.surroundings.routed()) == replicas
        assert len(cluster.api.of("Deployment")) == 1
    else:
        assert cluster.reason() in ("Ready", "NoSpareDevice", "RolloutTimedOut")
