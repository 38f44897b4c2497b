"""The artifact store and models in registries, against a real registry."""

import base64
import gzip
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID
from registry_server import RunningRegistry, running_registry
from rm_abstract.core.errors import ArtifactMismatch, BadInput, SourceUnreachable
from rm_abstract.core.resource import BuildArtifact
from rm_abstract.sources import fetch_model, resolve_model
from rm_abstract.store import ArtifactStore, PushedArtifact, Reference, push_model
from rm_abstract.store.registry import Descriptor, Registry, sha256
from rm_api import names
from rm_api.conditions import Reason
from rm_api.kinds.model_deployment import ModelFacts

SECRET_BCRYPT = "$2b$05$6VTik8clX/EJyo4.auMpUeUPUedpyynpC87cDjo97NgD5/qmzB2/K"
"""The password "secret", as htpasswd keeps it."""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with running_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def repository(registry: RunningRegistry, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A repository of the test's own."""
    monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", registry.host)
    monkeypatch.delenv("NETRC", raising=False)
    return f"{registry.host}/artifacts/t/{hashlib.sha256(request.node.name.encode()).hexdigest()[:16]}"


@pytest.fixture
def store(repository: str) -> Iterator[ArtifactStore]:
    with ArtifactStore() as store:
        yield store


@pytest.fixture
def artifact(tmp_path: Path) -> BuildArtifact:
    root = tmp_path / "built"
    (root / "nested/empty").mkdir(parents=True)
    (root / "model.bin").write_bytes(os.urandom(300_000))
    (root / "nested/config.json").write_text("{}")
    (root / "run").write_text("#!/bin/sh\n")
    (root / "run").chmod(0o755)
    (root / "link").symlink_to("nested/config.json")
    return BuildArtifact(root, "key-1", "fmt", ("X1", "X2"), ("1.4.0",), {"tool": "2.0"})


def contents(root: Path) -> dict[str, Any]:
    paths = [path for path in root.rglob("*") if ".rma-fetch" not in path.parts]
    return {
        path.relative_to(root).as_posix(): os.readlink(path)
        if path.is_symlink()
        else path.is_file() and path.read_bytes()
        for path in paths
    }


def pinned(repository: str, digest: str) -> str:
    return f"{repository}@{digest}"


def test_what_is_pulled_is_what_was_pushed(
    store: ArtifactStore, repository: str, artifact: BuildArtifact, tmp_path: Path
) -> None:
    pushed = store.push(artifact, f"{repository}:v1")
    pulled = store.pull(pinned(repository, pushed.digest), tmp_path / "dest", key="key-1")
    assert contents(tmp_path / "dest") == contents(artifact.path)
    assert os.access(tmp_path / "dest/run", os.X_OK)
    assert pulled == BuildArtifact(tmp_path / "dest", "key-1", "fmt", ("X1", "X2"), ("1.4.0",), {"tool": "2.0"})


def test_the_same_tree_has_the_same_digest(store: ArtifactStore, repository: str, artifact: BuildArtifact) -> None:
    first = store.push(artifact, f"{repository}:v1")
    os.utime(artifact.path / "model.bin", (0, 0))
    assert store.push(artifact, f"{repository}:v2") == first
    (artifact.path / "nested/config.json").write_text("[]")
    assert store.push(artifact, f"{repository}:v3").digest != first.digest


def test_the_manifest_is_that_of_an_oci_image(
    repository: str, artifact: BuildArtifact, registry: RunningRegistry
) -> None:
    with ArtifactStore(max_layer_bytes=200_000) as store:
        pushed = store.push(artifact, f"{repository}:v1")
    manifest = json.loads(registry.blob(pushed.digest).read_bytes())
    assert manifest["mediaType"] == names.MEDIA_TYPE_MANIFEST
    config = json.loads(registry.blob(manifest["config"]["digest"]).read_bytes())
    assert (manifest["config"]["mediaType"], config["os"], config["rootfs"]["type"]) == (
        names.MEDIA_TYPE_CONFIG, "linux", "layers",
    )  # fmt: skip
    assert len(manifest["layers"]) > 1
    assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in manifest["layers"]]
    assert {layer["mediaType"] for layer in manifest["layers"]} == {names.MEDIA_TYPE_LAYER}
    assert pushed.size_bytes == sum(layer["size"] for layer in manifest["layers"])
    found = []
    for layer in manifest["layers"]:
        raw = registry.blob(layer["digest"]).read_bytes()
        assert (len(raw), sha256(raw)) == (layer["size"], layer["digest"])
        with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
            found += archive.getnames()
    assert found == sorted(contents(artifact.path))
    assert manifest["annotations"] == {
        names.OCI_ANNOTATION_KEY: "key-1",
        names.OCI_ANNOTATION_FORMAT: "fmt",
        names.OCI_ANNOTATION_PRODUCTS: "X1,X2",
        names.OCI_ANNOTATION_DRIVERS: "1.4.0",
        names.OCI_ANNOTATION_VERSIONS: '{"tool":"2.0"}',
    }


def test_resolve_manifest(store: ArtifactStore, repository: str, artifact: BuildArtifact) -> None:
    assert store.resolve_manifest(f"{repository}:v1") is None
    pushed = store.push(artifact, f"{repository}:v1")
    assert store.resolve_manifest(f"{repository}:v1") == pushed.digest
    assert store.resolve_manifest(pinned(repository, pushed.digest)) == pushed.digest
    assert store.resolve_manifest(f"{repository}:other") is None


def test_only_a_digest_is_pulled_and_only_a_tag_is_pushed_to(
    store: ArtifactStore, repository: str, artifact: BuildArtifact, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="does not name a digest"):
        store.pull(f"{repository}:v1", tmp_path / "dest", key="key-1")
    with pytest.raises(BadInput, match="to a tag"):
        store.push(artifact, pinned(repository, "sha256:" + "0" * 64))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="nothing to push"):
        store.push(BuildArtifact(tmp_path / "empty", "k", "f"), f"{repository}:v1")


def test_an_artifact_of_another_key_is_refused(
    store: ArtifactStore, repository: str, artifact: BuildArtifact, tmp_path: Path
) -> None:
    pushed = store.push(artifact, f"{repository}:v1")
    with pytest.raises(ArtifactMismatch, match="key key-1, not key-2"):
        store.pull(pinned(repository, pushed.digest), tmp_path / "dest", key="key-2")
    assert not contents(tmp_path / "dest")


def test_an_artifact_that_is_not_there(store: ArtifactStore, repository: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactMismatch) as raised:
        store.pull(pinned(repository, "sha256:" + "0" * 64), tmp_path / "dest", key="k")
    assert raised.value.reason is Reason.ARTIFACT_MISSING


def damaged(raw: bytes) -> bytes:
    return raw[: len(raw) // 2] + bytes([raw[len(raw) // 2] ^ 1]) + raw[len(raw) // 2 + 1 :]


@pytest.mark.parametrize("part", ["layer", "config", "manifest"])
@pytest.mark.parametrize("change", [damaged, lambda raw: raw[:-1]], ids=["flipped bit", "truncated"])
def test_wrong_bytes_are_found_and_leave_nothing(
    store: ArtifactStore,
    repository: str,
    artifact: BuildArtifact,
    registry: RunningRegistry,
    tmp_path: Path,
    part: str,
    change: Any,
) -> None:
    pushed = store.push(artifact, f"{repository}:v1")
    manifest = json.loads(registry.blob(pushed.digest).read_bytes())
    digests = {
        "layer": manifest["layers"][0]["digest"],
        "config": manifest["config"]["digest"],
        "manifest": pushed.digest,
    }
    file = registry.blob(digests[part])
    good = file.read_bytes()
    file.write_bytes(change(good))
    try:
        # A registry that checks by itself says that it has a failure: that is not the artifact's fault.
        with pytest.raises((ArtifactMismatch, SourceUnreachable)):
            store.pull(pinned(repository, pushed.digest), tmp_path / "dest", key="key-1")
    finally:
        file.write_bytes(good)
    assert not contents(tmp_path / "dest")
    store.pull(pinned(repository, pushed.digest), tmp_path / "dest", key="key-1")
    assert contents(tmp_path / "dest") == contents(artifact.path)


def push_image(
    reference: str, layers: list[tuple[str, bytes, dict[str, str]]], config: dict[str, Any], key: str
) -> str:
    """Push an image by hand, whatever is in it."""
    target, client = Reference.parse(reference), Registry()
    try:
        descriptors = []
        for media_type, raw, annotations in layers:
            client.put_blob(target, sha256(raw), len(raw), lambda raw=raw: [raw])  # type: ignore[misc]
            descriptors.append(Descriptor(media_type, sha256(raw), len(raw), annotations).to_json())
        body = json.dumps(config).encode()
        client.put_blob(target, sha256(body), len(body), lambda: [body])
        manifest = {
            "schemaVersion": 2,
            "mediaType": names.MEDIA_TYPE_MANIFEST,
            "config": Descriptor(names.MEDIA_TYPE_CONFIG, sha256(body), len(body), {}).to_json(),
            "layers": descriptors,
            "annotations": {names.OCI_ANNOTATION_KEY: key},
        }
        return client.put_manifest(target, json.dumps(manifest).encode())
    finally:
        client.close()


def tar(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def description(key: str) -> bytes:
    return json.dumps({"schema": 1, "key": key, "format": "f"}).encode()


EVIL = tar(**{"rma-artifact.json": description("k"), "../evil": b"x"})
GOOD = tar(**{"rma-artifact.json": description("k")})
OTHER_KEY = tar(**{"rma-artifact.json": description("other")})


@pytest.mark.parametrize(
    ("layer", "media_type", "diff_ids", "message"),
    [
        (EVIL, names.MEDIA_TYPE_LAYER, None, "leads out of the tree"),
        (GOOD, names.MEDIA_TYPE_LAYER, ["sha256:" + "1" * 64], "diff_ids are not its layers"),
        (gzip.compress(GOOD), names.MEDIA_TYPE_LAYER + "+gzip", None, "a layer that is not of type"),
        (OTHER_KEY, names.MEDIA_TYPE_LAYER, None, "names key other"),
        (tar(file=b"x"), names.MEDIA_TYPE_LAYER, None, "has no rma-artifact.json"),
    ],
    ids=["traversal", "diff_ids", "compressed", "another key inside", "no description"],
)
def test_images_that_are_no_artifacts_of_ours(
    store: ArtifactStore,
    repository: str,
    tmp_path: Path,
    layer: bytes,
    media_type: str,
    diff_ids: list[str] | None,
    message: str,
) -> None:
    config = {"rootfs": {"type": "layers", "diff_ids": diff_ids or [sha256(layer)]}}
    digest = push_image(f"{repository}:v1", [(media_type, layer, {})], config, "k")
    with pytest.raises(ArtifactMismatch, match=message):
        store.pull(pinned(repository, digest), tmp_path / "dest", key="k")
    assert not contents(tmp_path / "dest")
    assert not (tmp_path / "evil").exists()


def test_a_store_that_does_not_answer(artifact: BuildArtifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", "127.0.0.1:1")
    with ArtifactStore() as store:
        for action in (
            lambda: store.push(artifact, "127.0.0.1:1/a:v1"),
            lambda: store.pull("127.0.0.1:1/a@sha256:" + "0" * 64, tmp_path / "dest", key="k"),
            lambda: store.resolve_manifest("127.0.0.1:1/a:v1"),
        ):
            with pytest.raises(SourceUnreachable) as raised:
                action()
            assert raised.value.reason is Reason.STORE_UNREACHABLE


# Models


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1, "num_attention_heads": 2,
        "hidden_size": 8, "max_position_embeddings": 64,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "F16", "shape": [100, 50], "data_offsets": [0, 10_000]}}).encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + os.urandom(10_000))
    return directory


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_a_model_pushed_as_files(repository: str, model: Path, tmp_path: Path) -> None:
    digest = push_model(model, f"oci://{repository}:v1")
    assert push_model(model, f"oci://{repository}:v2") == digest
    facts = resolve_model(f"oci://{repository}:v1")
    assert (facts["revision"], facts["parameters"], facts["dtype"]) == (digest, 5000, "fp16")
    fetch_model(f"oci://{repository}:v1", digest, facts["weightsDigest"], tmp_path / "dest")
    assert files_of(tmp_path / "dest") == files_of(model)


def test_a_tag_that_moves_does_not_move_what_was_resolved(repository: str, model: Path, tmp_path: Path) -> None:
    push_model(model, f"oci://{repository}:v1")
    facts = resolve_model(f"oci://{repository}:v1")
    before = files_of(model)
    (model / "tokenizer.json").write_text('{"new": true}')
    push_model(model, f"oci://{repository}:v1")
    assert resolve_model(f"oci://{repository}:v1")["revision"] != facts["revision"]
    fetch_model(f"oci://{repository}:v1", facts["revision"], facts["weightsDigest"], tmp_path / "dest")
    assert files_of(tmp_path / "dest") == before


def test_scales_of_a_model_in_a_registry(repository: str, model: Path) -> None:
    scale = os.urandom(100)
    header = json.dumps(
        {
            "w": {"dtype": "F16", "shape": [100, 50], "data_offsets": [0, 10_000]},
            "w.scales": {"dtype": "F16", "shape": [50], "data_offsets": [10_000, 10_100]},
        }
    ).encode()
    weights = struct.pack("<Q", len(header)) + header + os.urandom(10_000) + scale
    (model / "model.safetensors").write_bytes(weights)
    push_model(model, f"oci://{repository}:files")
    rows = [["w.scales", "F16", [50], "sha256:" + hashlib.sha256(scale).hexdigest()]]
    listing = json.dumps(rows, separators=(",", ":")).encode()
    as_files = resolve_model(f"oci://{repository}:files")
    assert as_files["scalesDigest"] == "sha256:" + hashlib.sha256(listing).hexdigest()
    # From the middle of a tar nothing can be read, so there all weights count.
    push_image(f"{repository}:tar", [(names.MEDIA_TYPE_LAYER, tar(**files_of(model)), {})], {}, "")
    as_tar = resolve_model(f"oci://{repository}:tar")
    listing = json.dumps({"weights": as_tar["weightsDigest"]}, separators=(",", ":")).encode()
    assert as_tar["scalesDigest"] == "sha256:" + hashlib.sha256(listing).hexdigest()


@pytest.mark.parametrize("form", ["tar", "tar+gzip", "two tars", "oras directory"])
def test_a_model_in_tars_is_the_same_model(repository: str, model: Path, tmp_path: Path, form: str) -> None:
    push_model(model, f"oci://{repository}:files")
    files = files_of(model)
    kind = names.MEDIA_TYPE_LAYER
    layers: list[tuple[str, bytes, dict[str, str]]] = {
        "tar": [(kind, tar(**files), {})],
        "tar+gzip": [(kind + "+gzip", gzip.compress(tar(**files)), {})],
        "two tars": [(kind, tar(**{name: raw}), {}) for name, raw in files.items()],
        "oras directory": [
            (kind + "+gzip", gzip.compress(tar(**files)),
             {names.OCI_ANNOTATION_TITLE: ".", "io.deis.oras.content.unpack": "true"})
        ],
    }[form]  # fmt: skip
    digest = push_image(f"{repository}:tars", layers, {}, "")
    as_files, as_tars = resolve_model(f"oci://{repository}:files"), resolve_model(f"oci://{repository}:tars")
    different = {name for name in as_files if as_files[name] != as_tars[name]}
    assert different == {"source", "revision"}
    fetch_model(f"oci://{repository}:tars", digest, as_tars["weightsDigest"], tmp_path / "dest")
    assert files_of(tmp_path / "dest") == files
    fetch_model(f"oci://{repository}:tars", digest, None, tmp_path / "dest")
    assert files_of(tmp_path / "dest") == {name: files[name] for name in ("config.json", "tokenizer.json")}


@pytest.mark.parametrize("title", ["../evil", "/etc/evil", "a/../../evil", "."])
def test_a_title_cannot_lead_out_of_the_model(repository: str, title: str) -> None:
    push_image(f"{repository}:v1", [(names.MEDIA_TYPE_LAYER, b"x", {names.OCI_ANNOTATION_TITLE: title})], {}, "")
    with pytest.raises(BadInput, match="no path inside"):
        resolve_model(f"oci://{repository}:v1")


@pytest.mark.parametrize("raw", [tar(**{"../evil": b"x"}), b"no tar at all" * 100], ids=["traversal", "garbage"])
def test_a_tar_that_is_no_model(repository: str, raw: bytes) -> None:
    push_image(f"{repository}:v1", [(names.MEDIA_TYPE_LAYER, raw, {})], {}, "")
    with pytest.raises(BadInput):
        resolve_model(f"oci://{repository}:v1")


def test_a_registry_that_has_no_such_model(repository: str) -> None:
    with pytest.raises(BadInput, match="has no /v2/"):
        resolve_model(f"oci://{repository}:v1")


def test_a_directory_that_is_no_model_is_not_pushed(repository: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"has no config\.json"):
        push_model(tmp_path, f"oci://{repository}:v1")


# Credentials


def push(artifact: BuildArtifact, reference: str) -> PushedArtifact:
    with ArtifactStore() as store:
        return store.push(artifact, reference)


def pull(reference: str, destination: Path, *, key: str) -> None:
    with ArtifactStore() as store:
        store.pull(reference, destination, key=key)


def write_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, password: str) -> None:
    (tmp_path / "netrc").write_text(f"machine {host} login user password {password}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_a_registry_with_passwords(artifact: BuildArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "htpasswd").write_text(f"user:{SECRET_BCRYPT}\n")
    auth = {"htpasswd": {"realm": "registry", "path": str(tmp_path / "htpasswd")}}
    with running_registry(tmp_path, auth) as registry:
        monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", registry.host)
        monkeypatch.delenv("NETRC", raising=False)
        reference = f"{registry.host}/a/b:v1"
        with pytest.raises(BadInput, match="netrc of the credentials Secret"):
            push(artifact, reference)
        write_netrc(tmp_path, monkeypatch, registry.host, "wrong")
        with pytest.raises(BadInput, match="netrc of the credentials Secret"):
            push(artifact, reference)
        write_netrc(tmp_path, monkeypatch, registry.host, "secret")
        pushed = push(artifact, reference)
        pull(f"{registry.host}/a/b@{pushed.digest}", tmp_path / "dest", key="key-1")
        assert contents(tmp_path / "dest") == contents(artifact.path)


class TokenServer:
    """A token service of the distribution specification: short tokens for exactly the access that is asked for."""

    def __init__(self, directory: Path) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tokens")])
        now = datetime.now(UTC)
        self._certificate = (
            x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(self._key.public_key())
            .serial_number(1).not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
            .sign(self._key, hashes.SHA256())
        )  # fmt: skip
        self.bundle = directory / "tokens.pem"
        self.bundle.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))
        self.asked: list[tuple[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_arguments: object) -> None:
                pass

            def do_GET(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                scope, authorization = query.get("scope", [""])[0], self.headers.get("Authorization", "")
                outer.asked.append((scope, authorization))
                granted = authorization == "Basic " + base64.b64encode(b"user:secret").decode()
                body = json.dumps({"token": outer.token(scope)}).encode() if granted else b"{}"
                self.send_response(200 if granted else 401)
                self.end_headers()
                self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def token(self, scope: str) -> str:
        kind, _, rest = scope.partition(":")
        name, _, actions = rest.rpartition(":")
        certificate = base64.b64encode(self._certificate.public_bytes(serialization.Encoding.DER)).decode()
        now = int(time.time())
        access = [{"type": kind, "name": name, "actions": actions.split(",")}] if scope else []
        claims = {
            "iss": "tokens", "aud": "registry", "sub": "user", "iat": now, "nbf": now - 10, "exp": now + 60,
            "jti": str(now), "access": access,
        }  # fmt: skip
        signed = b".".join(
            base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
            for part in ({"typ": "JWT", "alg": "RS256", "x5c": [certificate]}, claims)
        )
        signature = self._key.sign(signed, padding.PKCS1v15(), hashes.SHA256())
        return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def test_a_registry_with_a_token_service_gets_the_credential_of_that_service_only(
    artifact: BuildArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = TokenServer(tmp_path)
    auth = {
        "token": {
            "realm": f"http://{tokens.host}/token", "service": "registry", "issuer": "tokens",
            "rootcertbundle": str(tokens.bundle),
        }
    }  # fmt: skip
    try:
        with running_registry(tmp_path, auth) as registry:
            monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", f"{registry.host},{tokens.host}")
            write_netrc(tmp_path, monkeypatch, registry.host, "secret")
            with pytest.raises(BadInput, match="netrc of the credentials Secret"):
                push(artifact, f"{registry.host}/a/b:v1")
            assert {authorization for _, authorization in tokens.asked} == {""}
            write_netrc(tmp_path, monkeypatch, tokens.host, "secret")
            pushed = push(artifact, f"{registry.host}/a/b:v1")
            pull(f"{registry.host}/a/b@{pushed.digest}", tmp_path / "dest", key="key-1")
            assert contents(tmp_path / "dest") == contents(artifact.path)
    finally:
        tokens.close()


# Commands


def rm_abstract(tmp_path: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and report of a command."""
    log = tmp_path / "termination-log"
    environment = {**os.environ, "RMA_TERMINATION_LOG": str(log)}
    program = [sys.executable, "-c", "from rm_cli.main import main; main()"]
    done = subprocess.run([*program, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert log.exists(), done.stderr
    assert len(log.read_bytes()) <= names.MAX_TERMINATION_MESSAGE_BYTES
    return done.returncode, json.loads(log.read_text())


def test_the_commands_of_a_build_and_of_a_serving_pod(
    repository: str, model: Path, artifact: BuildArtifact, tmp_path: Path
) -> None:
    push_model(model, f"oci://{repository}/model:v1")
    code, report = rm_abstract(tmp_path, "resolve", "--source", f"oci://{repository}/model:v1")
    facts = report["facts"]
    assert (code, report["reason"]) == (0, "Resolved")
    ModelFacts.model_validate(facts)

    pinned_model = ["--source", facts["source"], "--revision", facts["revision"]]
    fetch = ["fetch", "model", *pinned_model, "--dest", str(tmp_path / "fetched")]
    code, _ = rm_abstract(tmp_path, *fetch, "--weights-digest", facts["weightsDigest"])
    assert (code, files_of(tmp_path / "fetched")) == (0, files_of(model))
    code, report = rm_abstract(tmp_path, *fetch, "--weights-digest", "sha256:" + "0" * 64)
    assert (code, report["reason"]) == (65, "ArtifactMismatch")

    pushing = [
        "push",
        "--dir",
        str(artifact.path),
        "--reference",
        f"{repository}:v1",
        "--key",
        "key-1",
        "--format",
        "fmt",
    ]
    code, report = rm_abstract(tmp_path, *pushing, "--product", "X1", "--driver", "1.4.0", "--version", "tool=2.0")
    assert (code, report["reason"], report["versions"]) == (0, "Built", {"tool": "2.0"})
    assert report["sizeBytes"] > 300_000

    fetch = ["fetch", "artifact", "--reference", pinned(repository, report["digest"]), "--dest", str(tmp_path / "dest")]
    code, report = rm_abstract(tmp_path, *fetch, "--key", "key-1")
    assert (code, contents(tmp_path / "dest")) == (0, contents(artifact.path))
    code, report = rm_abstract(tmp_path, *fetch, "--key", "key-2")
    assert (code, report["reason"], report["retryable"]) == (65, "ArtifactMismatch", False)


@pytest.mark.parametrize(
    ("source", "code", "reason"),
    [
        ("ftp://host/model", 64, "UnknownSource"),
        ("oci://{host}/no/such:model", 64, "SourceInvalid"),
        ("oci://127.0.0.1:1/a:v1", 69, "SourceUnreachable"),
    ],
)
def test_a_model_that_cannot_be_resolved(
    repository: str,
    registry: RunningRegistry,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    source: str,
    code: int,
    reason: str,
) -> None:
    monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", f"{registry.host},127.0.0.1:1")
    found, report = rm_abstract(tmp_path, "resolve", "--source", source.format(host=registry.host))
    assert (found, report["reason"], report["retryable"]) == (code, reason, code == 69)
    assert report["message"]


def test_the_longest_source_still_fits_the_report(
    repository: str, registry: RunningRegistry, model: Path, tmp_path: Path
) -> None:
    # A registry takes names of up to 255 characters.
    long = f"{registry.host}/{'n' * (254 - len(registry.host))}"
    # With scales there is one digest more to report.
    header = json.dumps({"w.scales": {"dtype": "F16", "shape": [5000], "data_offsets": [0, 10_000]}}).encode()
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(10_000))
    push_model(model, f"oci://{long}:{'t' * 128}")
    code, report = rm_abstract(tmp_path, "resolve", "--source", f"oci://{long}:{'t' * 128}")
    assert (code, report["facts"]["layers"], "scalesDigest" in report["facts"]) == (0, 1, True)
