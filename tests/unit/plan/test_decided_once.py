"""A reconcile that is not decided again writes what it would have written: nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_cluster import NAMESPACE, Installation, at
from rm_api import names
from rm_operator import controllers
from rm_operator.app import make_stores
from rm_operator.config import Config
from rm_operator.context import Context
from rm_operator.controllers.base import PlanningController
from rm_operator.controllers.reading import AtRest
from rm_operator.kube.resources import CUSTOM
from rm_operator.kube.store import Store, Stores
from rm_operator.runtime.metrics import Metrics
from rm_operator.runtime.queue import Key, Queue
from test_planner_properties import (
    TROUBLE,
    USERS,
    Move,
    deletes,
    deploys,
    devices,
    move,
    repeatable,
    some,
    starts,
    stories,
)

KINDS = ("ModelDeployment", "BuildArtifact", "BuildProfile", "AcceleratorResource")


# More for tokens to miss: everybody is woken for nothing, and people and other controllers touch what is ours.


def everybody_is_woken(cluster: Installation) -> None:
    for key in cluster.api.objects:
        if key[0] in KINDS:
            cluster.replica.wake(Key(*key))


def is_relabelled(cluster: Installation, which: int) -> None:
    """Somebody adds a label, or takes the one by which we find the object."""
    keys = sorted(key for key in cluster.api.objects if key[0] in ("Deployment", "Service", "ConfigMap", "Pod", "Node"))
    labels = (names.LABEL_MODEL, names.LABEL_DEPLOYMENT, "theirs")

    def change(live: dict[str, Any]) -> None:
        mine = dict(live["metadata"].get("labels") or {})
        label = labels[which % len(labels)]
        mine[label] = "changed" if label in mine or label == "theirs" else "new"
        live["metadata"]["labels"] = mine

    cluster.api.update(keys[which % len(keys)], change)


def is_edited(cluster: Installation, which: int) -> None:
    """Somebody scales a Deployment of ours by hand, and notes so."""
    keys = sorted(key for key in cluster.api.objects if key[0] == "Deployment")
    if keys:
        cluster.api.update(
            keys[which % len(keys)], lambda live: live["spec"].update(replicas=7, theirs={"scaled": "by hand"})
        )


def is_disowned(cluster: Installation, which: int) -> None:
    keys = sorted(key for key in cluster.api.objects if key[0] in ("Deployment", "Service", "ControllerRevision"))
    if keys:
        cluster.api.update(keys[which % len(keys)], lambda live: live["metadata"].pop("ownerReferences", None))


MISCHIEF = (
    move(everybody_is_woken),
    move(everybody_is_woken),
    move(is_relabelled, some),
    move(is_edited, some),
    move(is_disowned, some),
)
# Few devices for many: who waits is woken, and answers.
A_FEW = st.sampled_from(["a", "b", "c"])
SCARCE = (
    move(deploys, A_FEW, st.sampled_from([{}, {}, {"replicas": 2}, {"suspend": True}])),
    move(deploys, A_FEW, st.sampled_from([{}, {}, {"replicas": 0}])),
    move(deletes, A_FEW),
    move(devices, st.sampled_from([0, 1, 1, 2])),
)


def history(cluster: Installation) -> dict[str, Any]:
    """Everything that was written, with identities and versions: not one write more or less, nor another order."""
    api = cluster.api
    return {
        "objects": api.objects, "writes": api.writes, "created": api.created, "deleted": api.deleted,
        "version": api.version, "ran": cluster.surroundings.ran,
    }  # fmt: skip


def told(start: str, story: list[Move]) -> tuple[dict[str, Any], int]:
    """What came of a story, and how many decisions were made for it."""
    decisions = 0
    original = PlanningController._decide
    cluster = at(start).fork()

    async def counted(*arguments: Any) -> Any:
        nonlocal decisions
        decisions += 1
        return await original(*arguments)

    with mock.patch.object(PlanningController, "_decide", counted):
        for each in story:
            each(cluster)
            cluster.replica.work()
            everybody_is_woken(cluster)
            cluster.replica.work()
        cluster.settle()
        everybody_is_woken(cluster)
        cluster.replica.work()
    return history(cluster), decisions


@repeatable(200)
@given(starts, stories(*USERS, *TROUBLE, *MISCHIEF, *SCARCE))
def test_it_writes_what_it_would_have_written(start: str, story: list[Move]) -> None:
    found, decisions = told(start, story)
    with mock.patch.object(AtRest, "holds", return_value=False):
        expected, all_decisions = told(start, story)
    assert found == expected
    assert decisions < all_decisions


@repeatable(150)
@given(st.sampled_from(["ready", "starts"]), stories(*SCARCE, least=4, most=14))
def test_it_gives_devices_to_whom_it_would_have_given_them(start: str, story: list[Move]) -> None:
    story = [_Scarce(), *story]
    found, _ = told(start, story)
    with mock.patch.object(AtRest, "holds", return_value=False):
        expected, _ = told(start, story)
    assert found == expected


class _Scarce:
    def __call__(self, cluster: Installation) -> None:
        devices(cluster, 1)


@contextmanager
def decisions() -> Iterator[list[str]]:
    """Names of the objects that are decided about."""
    found: list[str] = []
    original = PlanningController._decide

    async def noted(self: PlanningController, obj: Any, *arguments: Any) -> Any:
        found.append(obj["metadata"]["name"])
        return await original(self, obj, *arguments)

    with mock.patch.object(PlanningController, "_decide", noted):
        yield found


def test_nothing_changed_is_not_decided_and_one_change_is_decided_where_it_matters() -> None:
    cluster = at("ready").fork()
    cluster.deploy("again")
    cluster.settle()
    with decisions() as found:
        everybody_is_woken(cluster)
        cluster.replica.work()
        first = len(found)
        everybody_is_woken(cluster)
        cluster.replica.work()
        assert len(found) == first, "nothing has changed"
        cluster.api.update(("Service", NAMESPACE, "hello"), lambda live: live.update(theirs="1"))
        everybody_is_woken(cluster)
        cluster.replica.work()
        assert found[first:] == ["hello"]


def test_who_waits_for_a_device_is_decided_about_when_one_is_free() -> None:
    cluster = at("ready").fork()
    devices(cluster, 1)
    cluster.deploy("waits")
    cluster.settle()
    assert cluster.reason("waits") == "NoEligibleAccelerator"
    everybody_is_woken(cluster)
    cluster.replica.work()
    cluster.deploy("hello", replicas=0)
    cluster.settle()
    assert cluster.reason("waits") == "Ready"


def test_time_alone_can_change_a_decision() -> None:
    cluster = at("starts").fork()
    cluster.surroundings.held = {"starts"}
    cluster.deploy(rollout={"deadlineSeconds": 300})
    cluster.settle()
    assert cluster.reason() == "Starting"
    cluster.api.now += timedelta(minutes=6)
    everybody_is_woken(cluster)
    cluster.replica.work()
    assert cluster.reason() == "RolloutTimedOut"


@pytest.mark.parametrize("changed", ["replicas", "labels"])
def test_a_child_that_somebody_changed_is_mended_and_what_is_theirs_stays(changed: str) -> None:
    cluster = at("ready").fork()
    everybody_is_woken(cluster)
    cluster.replica.work()
    ((key, before),) = [(key, obj) for key, obj in cluster.api.objects.items() if key[0] == "Deployment"]

    def change(live: dict[str, Any]) -> None:
        live["metadata"]["annotations"] = {**live["metadata"]["annotations"], "theirs": "1"}
        if changed == "replicas":
            live["spec"]["replicas"] = 7
        else:
            live["metadata"]["labels"] = {**live["metadata"]["labels"], names.LABEL_VARIANT: "wrong"}

    cluster.api.update(key, change)
    cluster.replica.work()
    after = cluster.api.objects[key]
    assert after["spec"] == before["spec"]
    assert after["metadata"]["labels"] == before["metadata"]["labels"]
    assert after["metadata"]["annotations"] == {**before["metadata"]["annotations"], "theirs": "1"}


def test_a_controller_has_no_store_that_it_could_read_unnoticed() -> None:
    """What decides reaches stores through its Reading only: neither directly nor through what it keeps."""
    stores = make_stores()
    config = Config("system", "store:5000", "runtime:1", "launcher:1")
    context = Context(mock.Mock(), stores, Queue(Metrics()), mock.Mock(), config)
    forbidden = (Store, Stores, Context)
    # The others decide anew each time, and may read what they like.
    remembering = [each for each in controllers.build(context) if isinstance(each, PlanningController)]
    assert {each.resource for each in remembering} == set(CUSTOM)
    for each in remembering:
        # The base class keeps its own under names that no other class can say; watches run when something changes.
        own = {name: value for name, value in vars(each).items() if not name.startswith("_PlanningController__")}
        assert not [name for name, value in own.items() if isinstance(value, forbidden)]
