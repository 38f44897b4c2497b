"""Models fetched over connections that break, from a real registry and a real server of buckets."""

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from breaking_proxy import BreakingProxy, breaking_proxy
from registry_server import running_registry
from rm_abstract.core.errors import ArtifactMismatch, SourceUnreachable
from rm_abstract.s3 import S3
from rm_abstract.sources import fetch_model, resolve_model
from rm_abstract.sources.inputs import fetch_input, files_digest
from rm_abstract.store import push_model
from s3_server import RunningS3, running_s3

WEIGHTS = 3 << 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of some megabytes, no two parts of which are alike."""
    directory = tmp_path_factory.mktemp("model")
    config = {
        "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32,
        "max_position_embeddings": 128,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    header = json.dumps({"w": {"dtype": "U8", "shape": [WEIGHTS], "data_offsets": [0, WEIGHTS]}}).encode()
    numbers = hashlib.shake_256(b"weights").digest(WEIGHTS)
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + numbers)
    return directory


@pytest.fixture(scope="module")
def places(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[BreakingProxy, str]]]:
    """Where the model is: by scheme the proxy, and the source as it is seen through it."""
    root = tmp_path_factory.mktemp("servers")
    (root / "s3").mkdir()
    with (
        pytest.MonkeyPatch.context() as patch,
        running_registry(root) as registry,
        running_s3(root / "s3") as buckets,
        breaking_proxy(registry.host) as to_registry,
        breaking_proxy(buckets.host) as to_buckets,
    ):
        hosts = ",".join((registry.host, buckets.host, to_registry.host, to_buckets.host))
        patch.setenv("RMA_PLAIN_HTTP_HOSTS", hosts)
        patch.delenv("NETRC", raising=False)
        patch.delenv("AWS_PROFILE", raising=False)
        seen = RunningS3(to_buckets.host, buckets.buckets)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(seen.credentials_file(root / "aws")))
        push_model(model, f"oci://{registry.host}/models/big:v1")
        buckets.make_bucket("models")
        with S3(buckets.account) as s3:
            for path in model.iterdir():
                content = path.read_bytes()
                digest = "sha256:" + hashlib.sha256(content).hexdigest()
                s3.put("models", f"big/{path.name}", content, size=len(content), digest=digest)
        yield {
            "oci": (to_registry, f"oci://{to_registry.host}/models/big:v1"),
            "s3": (to_buckets, "s3://models/big"),
        }


@pytest.fixture(params=["oci", "s3"])
def place(
    request: pytest.FixtureRequest, places: dict[str, tuple[BreakingProxy, str]]
) -> Iterator[tuple[BreakingProxy, str]]:
    proxy, uri = places[request.param]
    proxy.cut_after, proxy.broken = None, 0
    yield proxy, uri
    proxy.cut_after = None


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_what_breaks_off_is_gone_on_with(place: tuple[BreakingProxy, str], model: Path, tmp_path: Path) -> None:
    proxy, uri = place
    facts = resolve_model(uri)
    proxy.cut_after = 700_000
    fetch_model(uri, facts["revision"], facts["weightsDigest"], tmp_path / "dest")
    assert files(tmp_path / "dest") == files(model)
    # With pieces of 700 kB a file of 3 MB takes five connections; from its start again it would never end.
    assert proxy.broken == 4


def test_what_always_breaks_off_ends_with_a_reason_and_leaves_nothing(
    place: tuple[BreakingProxy, str], tmp_path: Path
) -> None:
    proxy, uri = place
    facts = resolve_model(uri)
    proxy.cut_after = 0
    with pytest.raises(SourceUnreachable, match=f"{proxy.host} does not answer"):
        fetch_model(uri, facts["revision"], facts["weightsDigest"], tmp_path / "dest")
    assert proxy.broken
    assert not files(tmp_path / "dest")


def test_an_input_is_fetched_over_connections_that_break(
    place: tuple[BreakingProxy, str], model: Path, tmp_path: Path
) -> None:
    proxy, uri = place
    contents = files(model)
    digest = files_digest({name: "sha256:" + hashlib.sha256(raw).hexdigest() for name, raw in contents.items()})
    proxy.cut_after = 700_000
    assert fetch_input(uri, digest, tmp_path / "inputs/data") == sum(map(len, contents.values()))
    assert files(tmp_path / "inputs/data") == contents
    assert proxy.broken == 4
    with pytest.raises(ArtifactMismatch, match=f"has digest {digest}, not sha256:0"):
        fetch_input(uri, "sha256:" + "0" * 64, tmp_path / "inputs/other")
    proxy.cut_after = 0
    with pytest.raises(SourceUnreachable, match=f"{proxy.host} does not answer"):
        fetch_input(uri, digest, tmp_path / "inputs/third")
    assert [path.name for path in (tmp_path / "inputs").iterdir()] == ["data"]
