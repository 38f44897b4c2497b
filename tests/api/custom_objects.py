"""Objects of the four kinds that tests of the API share."""

import secrets
from copy import deepcopy
from typing import Any

from rm_api import names
from rm_api.kinds import KINDS
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import of_kind
from rm_operator.plan.key import artifact_name

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


def changed(kind: str, **changes: Any) -> Object:
    """The smallest spec with members set by path (``a__b`` is a.b); None takes one away."""
    spec = deepcopy(SMALLEST[kind])
    for path, value in changes.items():
        *parents, last = path.split("__")
        place: Any = spec
        for name in parents:
            place = place[int(name)] if isinstance(place, list) else place.setdefault(name, {})
        if value is None:
            place.pop(last, None)
        else:
            place[last] = value
    return spec


def custom_object(kind: str, spec: Object, namespace: str, name: str | None = None) -> Object:
    """An object of ours with ``spec``; an artifact of a valid key has the name that belongs to it."""
    if name is None and len(spec.get("key", "")) == 64:
        name = artifact_name(spec["key"])
    metadata = {"name": name or f"x-{secrets.token_hex(6)}"}
    if OF[kind].namespaced:
        metadata["namespace"] = namespace
    return {"apiVersion": names.API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}


async def apply(client: HttpClient, obj: Object) -> Object:
    """Server-side apply; what the API server made of it."""
    return await client.apply(of_kind(OF[obj["kind"]]), obj, field_manager="tests")
