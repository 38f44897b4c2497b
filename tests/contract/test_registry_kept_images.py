"""What is taken from a registry's storage while it does not run is gone, and what stays can still be pulled."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from registry_server import registry_program, running_registry
from rm_abstract.store.reference import Reference
from rm_abstract.store.registry import Registry, sha256
from rm_local_cluster.kept_images import forget

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def push(registry: Registry, reference: Reference, *blobs: bytes) -> list[str]:
    for blob in blobs:
        registry.put_blob(reference, sha256(blob), len(blob), [blob].copy)
    config, *layers = [{"mediaType": "application/x", "digest": sha256(blob), "size": len(blob)} for blob in blobs]
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}
    return [registry.put_manifest(reference, json.dumps(manifest).encode()), *map(sha256, blobs)]


def test_older_images_are_gone_and_others_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed = {}
    with running_registry(tmp_path) as running:
        monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", running.host)
        client = Registry()
        for number, name in enumerate(["rm-abstract/x:1", "rm-abstract/x:2", "rm-abstract/x:3", "team/y:1"]):
            # A layer of its own, and one that all share.
            reference = Reference.parse(f"{running.host}/{name}")
            pushed[name] = push(client, reference, b"{}", b"shared", b"layer of " + name.encode())
            links = running.storage.glob(
                f"docker/registry/v2/repositories/{reference.repository}/_manifests/tags/*/current/link"
            )
            for link in links:
                if link.parents[1].name == name[-1]:
                    os.utime(link, (number, number))
        client.close()
    assert forget(running.storage) == 1
    collected = [registry_program(), "garbage-collect", "--quiet", tmp_path / "registry.yaml"]
    subprocess.run(collected, check=True, timeout=120, env={**os.environ, "OTEL_TRACES_EXPORTER": "none"})
    manifest, _, shared, alone = pushed["rm-abstract/x:1"]
    assert not running.blob(manifest).exists()
    assert not running.blob(alone).exists()
    assert running.blob(shared).exists()
    with running_registry(tmp_path) as again:
        monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", again.host)
        client = Registry()
        assert client.document(Reference.parse(f"{again.host}/rm-abstract/x:1")) is None
        for name in ("rm-abstract/x:2", "rm-abstract/x:3", "team/y:1"):
            reference = Reference.parse(f"{again.host}/{name}")
            for layer, wanted in zip(client.manifest(reference).layers, pushed[name][2:], strict=True):
                assert sha256(b"".join(client.blob(reference, layer))) == wanted
        # What is gone can be pushed again, although the repository had it before.
        reference = Reference.parse(f"{again.host}/rm-abstract/x:1")
        push(client, reference, b"{}", b"shared", b"layer of rm-abstract/x:1")
        assert b"".join(client.blob(reference, client.manifest(reference).layers[1])) == b"layer of rm-abstract/x:1"
        client.close()
