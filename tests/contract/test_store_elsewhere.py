"""A store that is reached at another address than its name's, as through a forwarded port: a real registry, TLS."""

import os
from pathlib import Path

import pytest
from registry_server import running_registry
from rm_abstract.core.errors import BadInput, SourceUnreachable
from rm_abstract.core.resource import BuildArtifact
from rm_abstract.http import Http
from rm_abstract.store import ArtifactStore
from rm_api import names
from rm_local_cluster.pki import Authority

NAME = "store.test:5000"
REFERENCE = f"{NAME}/artifacts/tenant/elsewhere"


@pytest.fixture
def artifact(tmp_path: Path) -> BuildArtifact:
    root = tmp_path / "built"
    root.mkdir()
    (root / "model.bin").write_bytes(os.urandom(50_000))
    return BuildArtifact(root, "key-1", "fmt", ("X1",), ("1.4.0",), {"tool": "2.0"})


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """An authority that clients believe."""
    found = Authority(tmp_path, "store-ca")
    monkeypatch.setenv(names.ENV_REGISTRY_CA, found.pair.certificate.read_text())
    return found


def test_it_proves_to_be_the_one_that_it_is_called(
    artifact: BuildArtifact, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = authority.issue("store", "store", hosts=["store.test"])
    with running_registry(tmp_path, tls=tls) as registry:
        monkeypatch.setenv(names.ENV_CONNECT_TO, f"other.test:5001=127.0.0.1:9, {NAME}={registry.host}")
        with ArtifactStore() as store:
            pushed = store.push(artifact, f"{REFERENCE}:v1")
            store.pull(f"{REFERENCE}@{pushed.digest}", tmp_path / "dest", key="key-1")
    assert (tmp_path / "dest/model.bin").read_bytes() == (artifact.path / "model.bin").read_bytes()


def test_one_that_is_somebody_else_is_not_spoken_to(
    artifact: BuildArtifact, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = authority.issue("store", "store", hosts=["another.test", "127.0.0.1"])
    with running_registry(tmp_path, tls=tls) as registry:
        monkeypatch.setenv(names.ENV_CONNECT_TO, f"{NAME}={registry.host}")
        with (
            ArtifactStore() as store,
            pytest.raises(SourceUnreachable, match=r"store\.test:5000 does not answer.*certificate"),
        ):
            store.push(artifact, f"{REFERENCE}:v1")


def test_without_tls_too(artifact: BuildArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_registry(tmp_path) as registry:
        monkeypatch.setenv(names.ENV_CONNECT_TO, f"{NAME}={registry.host}")
        monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", NAME)
        with ArtifactStore() as store:
            assert store.push(artifact, f"{REFERENCE}:v1").digest


@pytest.mark.parametrize(
    "value",
    ["store.test", "store.test:5000", "store.test:5000=", "=127.0.0.1:1", "a:1=127.0.0.1", "a:1=b:2/c", "a b:1=c:2"],
)
def test_what_names_no_two_addresses_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(names.ENV_CONNECT_TO, value)
    with pytest.raises(BadInput, match="is not HOST:PORT=ADDRESS:PORT"):
        Http()
