"""Objects of the four kinds that tests of the API share."""

import secrets
from typing import Any

from rm_api import names
from rm_api.kinds import KINDS
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import of_kind

Object = dict[str, Any]

DIGEST = "sha256:" + "a" * 64
STEP: Object = {"name": "compile", "image": "acme/cc:1", "command": ["cc", "${MODEL_DIR}"]}
TARGET: Object = {"type": "NPU", "vendor": "Acme"}
SMALLEST: dict[str, Object] = {
    "ModelDeployment": {"model": {"source": "hf://acme/model"}},
    "AcceleratorResource": {
        "type": "NPU", "vendor": "Acme", "product": "X1", "resourceName": "acme.com/npu",
        "runtime": {"plugin": "acme", "image": "acme/serve:1"},
    },
    "BuildProfile": {"target": TARGET, "steps": [STEP], "output": {"format": "acme"}},
    "BuildArtifact": {
        "key": "0" * 64, "keySchema": 1, "profile": "p", "target": TARGET, "dtype": "fp16", "format": "acme",
        "steps": [STEP],
        "model": {
            "source": "hf://acme/model", "revision": "main", "configDigest": DIGEST, "tensorsDigest": DIGEST,
            "weightsDigest": DIGEST, "architecture": "LlamaForCausalLM",
        },
    },
}  # fmt: skip
OF = {info.kind: info for info in KINDS}


def custom_object(kind: str, spec: Object, namespace: str, name: str | None = None) -> Object:
    """An object of ours with ``spec``."""
    metadata = {"name": name or f"x-{secrets.token_hex(6)}"}
    if OF[kind].namespaced:
        metadata["namespace"] = namespace
    return {"apiVersion": names.API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}


async def apply(client: HttpClient, obj: Object) -> Object:
    """Server-side apply; what the API server made of it."""
    return await client.apply(of_kind(OF[obj["kind"]]), obj, field_manager="tests")
