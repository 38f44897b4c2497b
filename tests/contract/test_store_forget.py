"""The operator has a real registry forget what nobody uses: all of it, nothing else, and the space comes back."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from registry_server import RunningRegistry, registry_program, running_registry
from rm_abstract.core.resource import BuildArtifact
from rm_abstract.store import ArtifactStore as Pushing
from rm_operator.kube.artifact_store import ArtifactStore, StoreTrouble
from rm_operator.plan.artifact import Presence

KEY = "1" * 64
MIB = 1024 * 1024


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


def push(registry: RunningRegistry, directory: Path, repository: str, content: bytes, *tags: str) -> None:
    directory.mkdir(parents=True)
    (directory / "model.bin").write_bytes(content)
    with Pushing() as pushing:
        for tag in tags or ("v1",):
            pushing.push(BuildArtifact(directory, KEY, "acme"), f"{registry.host}/{repository}:{tag}")


def bytes_kept(registry: RunningRegistry) -> int:
    return sum(path.stat().st_size for path in registry.storage.rglob("data"))


async def test_what_is_forgotten_is_gone_under_every_tag_and_nothing_else_is(
    registry: RunningRegistry, store: ArtifactStore, tmp_path: Path
) -> None:
    push(registry, tmp_path / "a", "artifacts/ns/a-1", b"a" * MIB, "v1", "stage-1", "stage-2")
    push(registry, tmp_path / "b", "artifacts/ns/a-2", b"b" * MIB)
    push(registry, tmp_path / "c", "artifacts/other/a-1", b"a" * MIB)
    await store.forget("artifacts/ns/a-1")
    for tag in ("v1", "stage-1", "stage-2"):
        assert (await store.ask("artifacts/ns/a-1", tag)).presence is Presence.ABSENT
    for kept in ("artifacts/ns/a-2", "artifacts/other/a-1"):
        assert (await store.ask(kept)).presence is Presence.FOUND


async def test_the_registrys_own_collector_frees_the_space_and_keeps_what_others_share(
    registry: RunningRegistry, store: ArtifactStore, tmp_path: Path
) -> None:
    push(registry, tmp_path / "a", "artifacts/ns/a-1", b"a" * 8 * MIB)
    push(registry, tmp_path / "b", "artifacts/ns/a-2", b"b" * MIB)
    push(registry, tmp_path / "shared", "artifacts/ns/a-3", b"s" * 4 * MIB)
    push(registry, tmp_path / "shared2", "artifacts/other/a-3", b"s" * 4 * MIB)
    await store.forget("artifacts/ns/a-1")
    await store.forget("artifacts/ns/a-3")
    assert bytes_kept(registry) > 13 * MIB
    await asyncio.to_thread(
        subprocess.run,
        [str(registry_program()), "garbage-collect", "--delete-untagged", str(tmp_path / "registry.yaml")],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    assert 5 * MIB <= bytes_kept(registry) < 6 * MIB
    for kept in ("artifacts/ns/a-2", "artifacts/other/a-3"):
        answer = await store.ask(kept)
        assert answer.presence is Presence.FOUND
        with Pushing() as fetching:
            fetching.pull(f"{registry.host}/{kept}@{answer.digest}", tmp_path / "again" / kept, key=KEY)


async def test_to_forget_what_is_not_there_is_no_trouble(store: ArtifactStore) -> None:
    await store.forget("artifacts/ns/a-none")


async def test_a_store_that_is_down_is_told_of(tmp_path: Path) -> None:
    store = ArtifactStore("127.0.0.1:9", plain_http=True)
    with pytest.raises(StoreTrouble, match="the artifact store does not delete artifacts/ns/a-1"):
        await store.forget("artifacts/ns/a-1")
    await store.close()
