"""What one new ModelDeployment comes to, as the writes that the operator makes for it; for those who only write."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import orjson
from rm_api.names import ANNOTATION_APPLIED_HASH, LABEL_DEPLOYMENT
from rm_operator.kube.apply import desired_hash
from rm_operator.kube.client import KubeClient
from rm_operator.kube.resources import CONFIGMAPS, MODEL_DEPLOYMENTS, resource_of

from scale.objects import Object
from scale.settled import TEMPLATE, Settled

FIELD_MANAGER = "rm-abstract-operator"


@dataclass(frozen=True)
class Writes:
    """Server-side applies of a deployment's children, in order, and its status."""

    name: str
    uid: str
    """Of the template's deployment; the real one takes its place."""
    children: Sequence[Object]
    status: Object

    def of(self, namespace: str, uid: str) -> "Writes":
        """The same for the deployment of this name in ``namespace`` that has ``uid``."""
        text = json.dumps([self.children, self.status]).replace(TEMPLATE, namespace).replace(self.uid, uid)
        children, status = json.loads(text)
        for child in children:
            # As long as the operator's own, and as costly to keep.
            child["metadata"].setdefault("annotations", {})[ANNOTATION_APPLIED_HASH] = desired_hash(child)
        return Writes(self.name, uid, children, status)

    async def send_children(self, client: KubeClient) -> None:
        """Apply the children, one after another."""
        for child in self.children:
            await client.apply(resource_of(child), child, field_manager=FIELD_MANAGER)

    async def send_status(self, client: KubeClient, namespace: str) -> None:
        """Apply the status."""
        metadata = {"namespace": namespace, "name": self.name, "uid": self.uid}
        await client.apply_status(MODEL_DEPLOYMENTS, {"metadata": metadata}, self.status)

    @classmethod
    def from_file(cls, path: Path) -> "dict[str, Self]":
        """What ``to_file`` wrote, by name."""
        return {each["name"]: cls(**each) for each in orjson.loads(path.read_bytes())}


def to_file(path: Path, writes: Sequence[Writes]) -> None:
    """Write them where another process finds them."""
    path.write_bytes(orjson.dumps(list(writes)))


def writes_of(template: Settled) -> list[Writes]:
    """For each deployment of ``template`` what the operator writes, if they come one after another."""
    found: list[Writes] = []
    owners: list[Any] = []
    for resource, obj, _ in template.namespaced:
        if resource is not MODEL_DEPLOYMENTS:
            continue
        metadata = obj["metadata"]
        children: list[Object] = []
        for kind, _, intent in template.namespaced:
            child = orjson.loads(intent) if intent else None
            if child is None:
                continue
            if kind is CONFIGMAPS:
                # Everyone who joins adds himself to the owners of the model's facts.
                owners += [each for each in child["metadata"]["ownerReferences"] if each["uid"] == metadata["uid"]]
                children.append({**child, "metadata": {**child["metadata"], "ownerReferences": list(owners)}})
            elif child["metadata"]["labels"].get(LABEL_DEPLOYMENT) == metadata["name"]:
                children.append(child)
        found.append(Writes(metadata["name"], metadata["uid"], children, obj["status"]))
    return found
