"""Who is looked at again after a change: all whom it concerns, and of many that share something no more than that."""

from collections.abc import Callable
from typing import Any

import pytest
from memory_cluster import Installation, at


@pytest.fixture
def sharers() -> Installation:
    """Five deployments of one model, at rest."""
    cluster = at("ready").fork()
    for number in range(4):
        cluster.deploy(f"also{number}", replicas=0)
    cluster.settle()
    return cluster


def looked_at(cluster: Installation, change: Callable[[], None]) -> set[str]:
    """Names of the deployments that are put on the queue by ``change``."""
    change()
    cluster.replica.hear()
    return {key.name for key in cluster.replica.awake if key.kind == "ModelDeployment"}


def one(cluster: Installation, kind: str) -> tuple[str, str, str]:
    (found,) = [key for key in cluster.api.objects if key[0] == kind]
    return found


def test_that_one_more_joins_is_news_to_few(sharers: Installation) -> None:
    """Otherwise a thousand that come to share a model would be a million reconciles."""
    before = sharers.replica.reconciled
    sharers.deploy("joins", replicas=0)
    sharers.settle()
    assert sharers.reason("joins") == "Ready"
    assert sharers.replica.reconciled - before <= 8


@pytest.mark.parametrize(
    ("change", "all_of_them"),
    [
        (lambda live: live["status"].update(referrerCount=17), False),
        (lambda live: live["status"].update(location="elsewhere@sha256:" + "0" * 64), True),
        (lambda live: live["status"].update(conditions=[]), True),
        (lambda live: live["metadata"].update(deletionTimestamp="2026-01-01T00:00:00Z", finalizers=["x"]), True),
    ],
    ids=["who names it", "where it is", "how far it is", "that it goes"],
)
def test_an_artifact_concerns_its_users_where_it_says_something_to_them(
    sharers: Installation, change: Callable[[Any], None], all_of_them: bool
) -> None:
    key = one(sharers, "BuildArtifact")
    found = looked_at(sharers, lambda: sharers.api.update(key, change))
    assert len(found) == (5 if all_of_them else 0)


def test_what_is_known_of_a_model_concerns_all_who_share_it(sharers: Installation) -> None:
    key = one(sharers, "ConfigMap")
    assert len(looked_at(sharers, lambda: sharers.api.remove(key))) == 5


@pytest.mark.parametrize("part", ["some owners", "all owners", "labels", "data"])
def test_what_somebody_changed_of_it_is_mended(sharers: Installation, part: str) -> None:
    key = one(sharers, "ConfigMap")
    before = sharers.api.objects[key]

    def change(live: Any) -> None:
        if part == "data":
            live["data"] = {"model.json": "{}"}
        elif part == "labels":
            live["metadata"]["labels"] = {
                **live["metadata"]["labels"],
                "app.kubernetes.io/managed-by": "rm-abstract",
                "x": "theirs",
            }
            live["metadata"]["labels"].pop("rm-abstract.io/role", None)
        else:
            live["metadata"]["ownerReferences"] = (
                live["metadata"]["ownerReferences"][1:] if part == "some owners" else []
            )

    sharers.api.update(key, change)
    sharers.settle()
    after = sharers.api.objects[key]
    assert after["data"] == before["data"]
    assert after["metadata"]["ownerReferences"] == before["metadata"]["ownerReferences"]
    assert before["metadata"]["labels"].items() <= after["metadata"]["labels"].items()


@pytest.mark.parametrize(
    ("said", "all_of_them"),
    [({"versions": [{"driver": "9.9.9", "nodes": 1}]}, True), ({"nodes": 7}, False)],
    ids=["versions", "nodes"],
)
def test_other_versions_on_nodes_concern_who_is_placed_there(
    sharers: Installation, said: dict[str, Any], all_of_them: bool
) -> None:
    """They may need another artifact."""
    (placed,) = {
        live["status"]["placement"]["chosen"]
        for (kind, _, _), live in sharers.api.objects.items()
        if kind == "ModelDeployment"
    }
    (key,) = [key for key in sharers.api.objects if key[0] == "AcceleratorResource" and key[2] == placed]
    found = looked_at(sharers, lambda: sharers.api.update(key, lambda live: live["status"].update(said)))
    assert len(found) == (5 if all_of_them else 0)
