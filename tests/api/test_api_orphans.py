"""Orphans with a real registry and a real API server: what goes, what stays, and what one may not take from anybody."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from custom_objects import apply, custom_object
from real_api import ApiServer, eventually
from rm_abstract.core.resource import BuildArtifact
from rm_abstract.store import ArtifactStore as Pushing
from rm_api import names
from rm_operator.controllers import orphans
from rm_operator.kube.artifact_store import ArtifactStore
from rm_operator.kube.errors import NotFound
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import CONFIGMAPS
from rm_operator.plan.artifact import Presence
from whole_operator import add_cpu, add_facts, artifact_of, whole_operator

sys.path.append(str(Path(__file__).resolve().parents[1] / "contract"))
from registry_server import RunningRegistry, running_registry

LONG_AGO = "2026-01-01T00:00:00Z"
Object = dict[str, Any]


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningRegistry]:
    with running_registry(tmp_path) as found:
        monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", found.host)
        yield found


@pytest.fixture
async def store(registry: RunningRegistry) -> AsyncIterator[ArtifactStore]:
    found = ArtifactStore(registry.host, plain_http=True)
    yield found
    await found.close()


def _push(registry: RunningRegistry, directory: Path, repository: str, *tags: str, key: str = "1" * 64) -> None:
    directory.mkdir(parents=True)
    (directory / "model.bin").write_bytes(repository.encode())
    with Pushing() as pushing:
        for tag in tags or ("v1",):
            pushing.push(BuildArtifact(directory, key, "acme"), f"{registry.host}/{repository}:{tag}")


async def _written(client: HttpClient, namespace: str) -> Object:
    try:
        live = await client.get(CONFIGMAPS, namespace, names.ORPHANS_CONFIG_MAP)
    except NotFound:
        return {}
    found: Object = json.loads(live["data"][names.ORPHANS_KEY])
    return found


async def test_what_nobody_names_goes_in_time_and_nothing_else(
    api_server: ApiServer,
    client: HttpClient,
    api_namespace: str,
    registry: RunningRegistry,
    store: ArtifactStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ns = api_namespace
    monkeypatch.setattr(orphans, "FIRST_SECONDS", 1)
    monkeypatch.setattr(orphans, "EVERY_SECONDS", 1)
    for number, repository in enumerate((f"artifacts/{ns}/old", f"artifacts/{ns}/new", f"models/{ns}/old", "old")):
        _push(registry, tmp_path / str(number), repository, "v1", "latest")
    since = {f"artifacts/{ns}/old": LONG_AGO, f"models/{ns}/old": LONG_AGO, "old": LONG_AGO}
    await add_cpu(client, ns)
    await add_facts(client, ns, "hf://acme/model")
    spec = {"model": {"source": "hf://acme/model"}, "accelerators": {"names": [ns]}}
    further = {"store": registry.host, "store_plain_http": True, "orphan_days": 30}
    async with whole_operator(api_server, ns, **further):
        await apply(client, custom_object("ModelDeployment", spec, ns, "d"))
        wanted = await artifact_of(client, ns, "d")
        mine = f"artifacts/{ns}/{wanted['metadata']['name']}"
        # An earlier life of the cluster made it; it is adopted. Its name is among those that go, as it was long lost.
        _push(registry, tmp_path / "mine", mine, key=wanted["spec"]["key"])
        told = {"lookedAt": LONG_AGO, "removedAfterDays": 30, "since": {**since, mine: LONG_AGO}}
        body = {
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": names.ORPHANS_CONFIG_MAP, "namespace": ns},
            "data": {names.ORPHANS_KEY: json.dumps(told)},
        }  # fmt: skip
        await client.apply(CONFIGMAPS, body, field_manager="tests")

        async def gone() -> bool:
            return (await store.ask(f"artifacts/{ns}/old")).presence is Presence.ABSENT

        await eventually(gone, "the orphan is gone")

        async def written() -> bool:
            return set((await _written(client, ns)).get("since", {})) == {f"artifacts/{ns}/new"}

        await eventually(written, "what is left is written down")
        for kept in (f"artifacts/{ns}/new", mine, f"models/{ns}/old", "old"):
            assert (await store.ask(kept)).presence is Presence.FOUND
        assert (await _written(client, ns))["since"][f"artifacts/{ns}/new"] > LONG_AGO


async def test_nobody_is_told_that_it_is_there_while_it_goes(
    registry: RunningRegistry, store: ArtifactStore, tmp_path: Path
) -> None:
    repository = "artifacts/ns/b-1"
    _push(registry, tmp_path / "a", repository)
    assert (await store.ask(repository)).presence is Presence.FOUND
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def is_used() -> bool:
        asked.set()
        await go_on.wait()
        return False

    going = asyncio.create_task(store.forget_unless(repository, is_used))
    await asked.wait()
    answer = await store.ask(repository)
    assert (answer.presence, "being removed" in answer.message) == (Presence.UNREACHABLE, True)
    assert await store.forget_unless(repository, is_used) is False, "twice at a time is once"
    go_on.set()
    assert await going is True
    assert (await store.ask(repository)).presence is Presence.ABSENT


async def test_what_turns_out_to_be_used_stays(registry: RunningRegistry, store: ArtifactStore, tmp_path: Path) -> None:
    async def is_used() -> bool:
        return True

    _push(registry, tmp_path / "a", "artifacts/ns/b-1", "v1", "stage-1")
    assert await store.forget_unless("artifacts/ns/b-1", is_used) is False
    assert (await store.ask("artifacts/ns/b-1")).presence is Presence.FOUND


async def test_a_stage_goes_alone(registry: RunningRegistry, store: ArtifactStore, tmp_path: Path) -> None:
    _push(registry, tmp_path / "a", "artifacts/ns/b-1", "v1")
    _push(registry, tmp_path / "b", "artifacts/ns/b-1/x", "v1")
    with Pushing() as pushing:
        (tmp_path / "a" / "more").write_text("an intermediate result")
        pushing.push(BuildArtifact(tmp_path / "a", "2" * 64, "acme"), f"{registry.host}/artifacts/ns/b-1:stage-1")
    await store.forget_tag("artifacts/ns/b-1", "stage-1")
    assert await store.tags("artifacts/ns/b-1") == ("v1",)
    assert (await store.ask("artifacts/ns/b-1")).presence is Presence.FOUND
    assert await store.tags("artifacts/ns/none") == ()


async def test_all_repositories_are_listed_page_by_page(
    registry: RunningRegistry, store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rm_operator.kube.artifact_store._PAGE", 2)
    wanted = [f"artifacts/ns/b-{number}" for number in range(5)]
    for repository in wanted:
        _push(registry, tmp_path / repository, repository)
    assert sorted(await store.repositories()) == wanted
