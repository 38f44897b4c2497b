"""What builds with a profile took: always the sum over the artifacts that exist, and news to who has read it."""

import itertools
import random
from decimal import Decimal
from typing import Any
from unittest import mock

from rm_operator.controllers.reading import AtRest, Reading
from rm_operator.controllers.spent import SpentSeconds
from rm_operator.kube.resources import BUILD_ARTIFACTS
from rm_operator.kube.store import Store, Stores
from rm_operator.runtime.queue import Key

Object = dict[str, Any]
KEY = Key("BuildProfile", "", "p")


def artifact(number: int, version: int, profile: str, spent: str | None) -> Object:
    metadata = {"namespace": "ns", "name": f"a-{number}", "uid": f"u{number}", "resourceVersion": str(version)}
    status = {} if spent is None else {"spentSeconds": spent}
    return {
        "apiVersion": BUILD_ARTIFACTS.api_version, "kind": "BuildArtifact", "metadata": metadata,
        "spec": {"profile": profile}, "status": status,
    }  # fmt: skip


def read(stores: Stores) -> Reading:
    return Reading(stores, mock.Mock())


def test_it_is_the_sum_over_what_exists_whatever_happened() -> None:
    chance = random.Random(7)
    stores = Stores([Store(BUILD_ARTIFACTS)])
    store, existing, versions = stores[BUILD_ARTIFACTS], dict[int, Object](), itertools.count(1)
    spent = SpentSeconds(stores)
    for _ in range(500):
        number = chance.randrange(12)
        known = existing.get(number)
        if known is not None and chance.random() < 0.3:
            store.remove("ns", f"a-{number}")
            del existing[number]
        else:
            amount = chance.choice([None, "0", "0.1", "12.5", str(chance.randrange(10**6))])
            obj = artifact(number, next(versions), chance.choice("pq"), amount)
            store.upsert(obj)
            existing[number] = obj
        # Who starts now knows the same.
        for each in (spent, SpentSeconds(stores)):
            for profile in ("p", "q", "none"):
                wanted = [
                    Decimal(obj["status"].get("spentSeconds", 0))
                    for obj in existing.values()
                    if obj["spec"]["profile"] == profile
                ]
                assert each.of(profile, read(stores)) == sum(wanted)


def test_who_has_read_it_is_told_of_a_change_and_of_no_other() -> None:
    stores = Stores([Store(BUILD_ARTIFACTS)])
    store, spent, rest = stores[BUILD_ARTIFACTS], SpentSeconds(stores), AtRest(stores.ticks)
    store.upsert(artifact(1, 1, "p", "10"))

    def decide() -> None:
        known = read(stores)
        spent.of("p", known)
        rest.remember(KEY, known.result, 0.0, None)

    decide()
    store.upsert(artifact(1, 2, "p", "10"))
    store.upsert(artifact(2, 3, "q", "10"))
    assert rest.holds(KEY, 1.0)
    store.upsert(artifact(1, 4, "p", "20"))
    assert not rest.holds(KEY, 1.0)
