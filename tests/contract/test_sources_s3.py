"""Models in buckets, against a real server."""

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rm_abstract.core.errors import ArtifactMismatch, BadInput, SourceUnreachable
from rm_abstract.http import Changed, NotFound
from rm_abstract.s3 import S3
from rm_abstract.sources import fetch_model, open_source, resolve_model
from rm_abstract.sources.inputs import fetch_input, files_digest
from rm_api.kinds.model_deployment import ModelFacts
from s3_server import RunningS3, running_s3


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningS3]:
    with running_s3(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def bucket(server: RunningS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A bucket of the test's own, and the environment of whoever may use it."""
    name = "b-" + hashlib.sha256(request.node.name.encode()).hexdigest()[:20]
    server.make_bucket(name)
    monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", server.host)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(server.credentials_file(tmp_path / "aws")))
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    return name


@pytest.fixture
def s3(server: RunningS3, bucket: str) -> Iterator[S3]:
    with S3(server.account) as client:
        yield client


def model_files() -> dict[str, bytes]:
    """A model of 544 parameters."""
    config = {
        "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32,
        "max_position_embeddings": 128,
    }  # fmt: skip
    header = json.dumps({"w": {"dtype": "BF16", "shape": [17, 32], "data_offsets": [0, 1088]}}).encode()
    weights = struct.pack("<Q", len(header)) + header + bytes(index % 251 for index in range(1088))
    return {"config.json": json.dumps(config).encode(), "tokenizer.json": b"{}", "model.safetensors": weights}


def put(s3: S3, bucket: str, key: str, content: bytes) -> None:
    assert s3.put(bucket, key, content, size=len(content), digest=digest_of(content))


def upload(s3: S3, bucket: str, prefix: str) -> dict[str, bytes]:
    files = model_files()
    for name, content in files.items():
        put(s3, bucket, prefix + name, content)
    return files


def test_a_model_in_a_bucket_is_resolved_and_fetched(s3: S3, bucket: str, tmp_path: Path) -> None:
    files = upload(s3, bucket, "models/a b+c/ä/")
    put(s3, bucket, "models/a b+c/ä/README.md", b"not needed")
    put(s3, bucket, "models/a b+c/ä/original/params.json", b"{}")
    put(s3, bucket, "models/a b+c/ä-other/config.json", b"{}")
    uri = f"s3://{bucket}/models/a b+c/ä/"
    facts = resolve_model(uri)
    ModelFacts.model_validate(facts)
    assert facts["parameters"] == 544
    assert resolve_model(uri.rstrip("/"), facts["revision"])["weightsDigest"] == facts["weightsDigest"]
    fetch_model(uri, facts["revision"], facts["weightsDigest"], tmp_path / "dest")
    assert {path.name: path.read_bytes() for path in (tmp_path / "dest").iterdir() if path.is_file()} == files


def files(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def test_all_of_a_model_but_its_weights(s3: S3, bucket: str, tmp_path: Path) -> None:
    small = {name: raw for name, raw in upload(s3, bucket, "m/").items() if not name.endswith(".safetensors")}
    revision = resolve_model(f"s3://{bucket}/m")["revision"]
    assert fetch_model(f"s3://{bucket}/m", revision, None, tmp_path / "dest") == sum(map(len, small.values()))
    assert files(tmp_path / "dest") == small


def test_all_objects_below_a_prefix_are_an_input(s3: S3, bucket: str, tmp_path: Path) -> None:
    contents = {"a.bin": b"1", "b/c/d.txt": b"2", "b/e f+ä.parquet": b"3"}
    for name, content in contents.items():
        put(s3, bucket, f"data/{name}", content)
    put(s3, bucket, "data/b/empty/", b"")
    put(s3, bucket, "data-2/x", b"no part of it")
    digest = files_digest({name: digest_of(content) for name, content in contents.items()})
    assert fetch_input(f"s3://{bucket}/data/", digest, tmp_path / "dest") == 3
    assert files(tmp_path / "dest") == contents
    put(s3, bucket, "data/a.bin", b"4")
    with pytest.raises(ArtifactMismatch, match=f"not {digest}"):
        fetch_input(f"s3://{bucket}/data", digest, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_one_object_is_an_input(s3: S3, bucket: str, tmp_path: Path) -> None:
    put(s3, bucket, "data/a.bin", b"1")
    fetch_input(f"s3://{bucket}/data/a.bin", digest_of(b"1"), tmp_path / "dest")
    assert files(tmp_path / "dest") == {"a.bin": b"1"}
    with pytest.raises(BadInput, match=f"s3://{bucket}/none/ has no file"):
        fetch_input(f"s3://{bucket}/none", digest_of(b"1"), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_scales_are_read_from_the_middle_of_an_object(s3: S3, bucket: str) -> None:
    upload(s3, bucket, "m/")
    assert "scalesDigest" not in resolve_model(f"s3://{bucket}/m")
    weights, scale = bytes(range(256)) * 4096, bytes(range(8))
    header = json.dumps(
        {
            "w": {"dtype": "F8_E4M3", "shape": [1 << 20], "data_offsets": [0, 1 << 20]},
            "w_scale": {"dtype": "F32", "shape": [2], "data_offsets": [1 << 20, (1 << 20) + 8]},
        }
    ).encode()
    put(s3, bucket, "m/model.safetensors", struct.pack("<Q", len(header)) + header + weights + scale)
    facts = resolve_model(f"s3://{bucket}/m")
    listing = json.dumps([["w_scale", "F32", [2], digest_of(scale)]], separators=(",", ":"))
    assert (facts["dtype"], facts["scalesDigest"]) == ("fp8", digest_of(listing.encode()))


def test_the_root_of_a_bucket_may_be_a_model(s3: S3, bucket: str) -> None:
    upload(s3, bucket, "")
    assert resolve_model(f"s3://{bucket}")["revision"] == resolve_model(f"s3://{bucket}/")["revision"]


def test_a_digest_that_the_server_verified_is_known_without_a_download(s3: S3, bucket: str) -> None:
    files = upload(s3, bucket, "m/")
    with open_source(f"s3://{bucket}/m") as source:
        assert {name: file.digest for name, file in source.files.items()} == {
            name: digest_of(content) for name, content in files.items()
        }


def test_a_file_without_a_digest_is_read_for_it(s3: S3, bucket: str, server: RunningS3) -> None:
    files = upload(s3, bucket, "m/")
    known = resolve_model(f"s3://{bucket}/m")
    # Written past the server, as by its file gateway: it has neither checksum nor a digest as ETag.
    s3.delete(bucket, "m/model.safetensors")
    (server.buckets / bucket / "m/model.safetensors").write_bytes(files["model.safetensors"])
    with open_source(f"s3://{bucket}/m") as source:
        assert source.files["model.safetensors"].digest == ""
    found = resolve_model(f"s3://{bucket}/m")
    assert found["weightsDigest"] == known["weightsDigest"]


def test_a_replaced_file_is_another_revision(s3: S3, bucket: str, tmp_path: Path) -> None:
    files = upload(s3, bucket, "m/")
    facts = resolve_model(f"s3://{bucket}/m")
    put(s3, bucket, "m/tokenizer.json", b"[]")
    with pytest.raises(ArtifactMismatch, match="has changed"):
        fetch_model(f"s3://{bucket}/m", facts["revision"], facts["weightsDigest"], tmp_path / "dest")
    assert not [path for path in (tmp_path / "dest").rglob("*") if path.is_file()]
    put(s3, bucket, "m/tokenizer.json", files["tokenizer.json"])
    assert resolve_model(f"s3://{bucket}/m")["configDigest"] == facts["configDigest"]


def test_a_file_that_is_replaced_while_it_is_read_is_not_joined(s3: S3, bucket: str) -> None:
    upload(s3, bucket, "m/")
    with open_source(f"s3://{bucket}/m") as source:
        put(s3, bucket, "m/model.safetensors", b"another")
        with pytest.raises(Changed, match="another"):
            b"".join(source.stream("model.safetensors"))
        with pytest.raises(Changed, match="another"):
            source.read("model.safetensors", 0, 8)


def test_listings_of_many_pages(s3: S3, bucket: str, server: RunningS3) -> None:
    directory = server.buckets / bucket / "many"
    directory.mkdir()
    for number in range(1100):
        (directory / f"{number:04}.json").write_bytes(b"")
    assert [thing.key for thing in s3.list(bucket, "many/")] == [f"many/{number:04}.json" for number in range(1100)]


def test_only_a_recursive_listing_goes_below(s3: S3, bucket: str) -> None:
    for key in ("a/x", "a/b/y", "ab"):
        put(s3, bucket, key, b"1")
    assert [thing.key for thing in s3.list(bucket, "a/")] == ["a/x"]
    assert {thing.key for thing in s3.list(bucket, "a/", recursive=True)} == {"a/x", "a/b/y"}
    assert {thing.key for thing in s3.list(bucket, "", recursive=True)} == {"a/x", "a/b/y", "ab"}


def test_the_server_refuses_content_with_another_digest(s3: S3, bucket: str) -> None:
    with pytest.raises(BadInput, match="refuses"):
        s3.put(bucket, "x", b"these", size=5, digest=digest_of(b"those"))
    with pytest.raises(NotFound):
        s3.head(bucket, "x")


def test_what_is_there_stays_where_only_an_absent_object_may_be_written(s3: S3, bucket: str) -> None:
    first, second = b"first", b"second"
    assert s3.put(bucket, "x", iter([b"fi", b"rst"]), size=5, digest=digest_of(first), absent=True)
    assert not s3.put(bucket, "x", second, size=6, digest=digest_of(second), absent=True)
    thing = s3.head(bucket, "x")
    assert (thing.size, thing.digest) == (5, digest_of(first))
    assert b"".join(s3.download(bucket, thing)) == first
    assert s3.read(bucket, thing, 1, 2) == b"ir"
    s3.delete(bucket, "x")
    s3.delete(bucket, "x")
    with pytest.raises(NotFound):
        s3.head(bucket, "x")


def test_a_wrong_secret_is_refused_without_being_told(
    server: RunningS3, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = server.credentials_file(tmp_path / "wrong", secret="hush-hush")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    with pytest.raises(BadInput, match=r"refuses .*SignatureDoesNotMatch.*AWS_SHARED_CREDENTIALS_FILE") as raised:
        resolve_model(f"s3://{bucket}/m")
    assert "hush-hush" not in str(raised.value)


def test_without_an_account_nothing_is_signed_and_the_server_refuses(server: RunningS3, bucket: str) -> None:
    with S3(replace(server.account, key_id="", secret="")) as nobody, pytest.raises(BadInput, match="credentials"):
        list(nobody.list(bucket, ""))


def test_plain_text_has_to_be_allowed(s3: S3, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(s3, bucket, "m/")
    monkeypatch.delenv("RMA_PLAIN_HTTP_HOSTS")
    with pytest.raises(BadInput, match="without TLS"):
        resolve_model(f"s3://{bucket}/m")


@pytest.mark.usefixtures("bucket")
def test_a_bucket_that_is_not_there() -> None:
    with pytest.raises(NotFound, match="has no bucket no-such-bucket"):
        resolve_model("s3://no-such-bucket/m")


def test_a_prefix_without_a_model(s3: S3, bucket: str) -> None:
    put(s3, bucket, "a/b/config.json", b"{}")
    with pytest.raises(BadInput, match="has no file of a model"):
        resolve_model(f"s3://{bucket}/a")


def test_a_server_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = RunningS3("127.0.0.1:1", tmp_path).credentials_file(tmp_path / "aws")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", "127.0.0.1:1")
    with pytest.raises(SourceUnreachable, match=r"127\.0\.0\.1:1 does not answer"):
        resolve_model("s3://bucket/m")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://",
        "s3://UPPER/m",
        "s3://b/m",
        "s3://bucket/a//b",
        "s3://bucket/../other",
        "s3://bucket/m?X-Amz-Signature=x",
    ],
)
def test_places_that_make_no_sense(uri: str) -> None:
    with pytest.raises(BadInput, match="s3://"):
        resolve_model(uri)
