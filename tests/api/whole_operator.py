"""The operator as it is, with its real controllers, in this loop; and what its surroundings would have done for it."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from custom_objects import apply, custom_object
from prometheus_client import generate_latest
from real_api import ApiServer, eventually
from rm_api import names
from rm_api.kinds.model_deployment import ModelSource
from rm_operator.app import Operator
from rm_operator.config import Config
from rm_operator.kube.errors import ApiError
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import BUILD_ARTIFACTS, CONFIGMAPS, MODEL_DEPLOYMENTS, NODES
from rm_operator.plan import resolve

Object = dict[str, Any]

DIGEST = "sha256:" + "a" * 64
FACTS: Object = {
    "revision": "main", "architecture": "LlamaForCausalLM", "parameters": 1000, "activeParameters": 1000,
    "weightBytes": 2000, "dtype": "fp16", "layers": 2, "heads": 4, "kvHeads": 2, "headDim": 64,
    "maxSequenceLength": 2048, "configDigest": DIGEST, "tensorsDigest": DIGEST, "weightsDigest": DIGEST,
}  # fmt: skip


class WholeOperator(logging.Handler):
    """A running operator, and what it complained of."""

    def __init__(self, server: ApiServer, namespace: str, **further: Any) -> None:
        super().__init__(logging.ERROR)
        self.errors: list[str] = []
        self.died: list[int] = []
        # Nothing listens at the store's address: builds wait, and say why.
        settings = {"store": "127.0.0.1:1", "metrics_port": 0, "leader_elect": False, **further}
        config = Config(system_namespace=namespace, runtime_image="r", launcher_image="l", **settings)
        self.operator = Operator(config, server.connection(), die=self.died.append)

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps what a person would be woken up for."""
        if record.name.startswith("rm_operator") or record.exc_info:
            self.errors.append(self.format(record))

    def metric(self, name: str) -> float:
        """Sum over the labels of a metric."""
        lines = generate_latest(self.operator.metrics.registry).decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))

    @property
    def idle(self) -> bool:
        """True while nothing waits to be reconciled."""
        return not self.operator.stores.unsynced and self.operator.queue.idle


@asynccontextmanager
async def whole_operator(server: ApiServer, namespace: str, **further: Any) -> AsyncIterator[WholeOperator]:
    """Runs until the end of the block; fails if a reconcile failed unexpectedly meanwhile, or anything else died.

    ``further`` is configuration that it would not have otherwise.
    Not for a fixture: when it stops, kopf cancels every task of the loop that was not there when it began.
    """
    found, stop = WholeOperator(server, namespace, **further), asyncio.Event()
    logger = logging.getLogger()
    logger.addHandler(found)
    task = asyncio.create_task(found.operator.run(stop))
    try:
        await eventually(lambda: task.done() or (found.operator.port != 0 and found.idle), "it has synced", 90)
        yield found
        assert not task.done()
    finally:
        stop.set()
        await asyncio.wait_for(task, 60)
        logger.removeHandler(found)
    assert found.died == []
    assert found.errors == []
    assert found.metric("controller_runtime_reconcile_panics_total") == 0


async def add_cpu(client: HttpClient, namespace: str, **accelerator: Any) -> str:
    """A node, a kind of CPU that is there, and a profile for it, all named after the namespace; returns that name."""
    try:
        await client.get(NODES, None, namespace)
    except ApiError:
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": namespace, "labels": {"tests": namespace}}}
        await client.create(NODES, node, field_manager="tests")
    target = {"type": "CPU", "vendor": namespace}
    spec = {
        **target, "product": "x", "nodeSelector": {"tests": namespace}, "runtime": {"plugin": "p", "image": "serve:1"},
        **accelerator,
    }  # fmt: skip
    step = {"name": "compile", "image": "cc:1", "command": ["cc"]}
    recipe = {"target": target, "steps": [step], "output": {"format": "f"}}
    await apply(client, custom_object("AcceleratorResource", spec, namespace, namespace))
    await apply(client, custom_object("BuildProfile", recipe, namespace, namespace))
    return namespace


async def add_facts(client: HttpClient, namespace: str, source: str) -> None:
    """What a resolve Job would have found out."""
    hash_ = resolve.source_hash(ModelSource(source=source))
    labels = {names.LABEL_MANAGED_BY: names.MANAGED_BY, names.LABEL_MODEL: hash_}
    metadata = {"name": resolve.config_map_name(hash_), "namespace": namespace, "labels": labels}
    data = {resolve.FACTS_KEY: json.dumps({**FACTS, "source": source})}
    obj = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
    await client.apply(CONFIGMAPS, obj, field_manager=names.FIELD_MANAGER)


async def artifact_of(client: HttpClient, namespace: str, name: str) -> Object:
    """The BuildArtifact that a deployment waits for, once there is one."""

    async def asked() -> bool:
        live = await client.get(MODEL_DEPLOYMENTS, namespace, name)
        return bool((live.get("status") or {}).get("artifact"))

    await eventually(asked, f"{name} asks for an artifact")
    live = await client.get(MODEL_DEPLOYMENTS, namespace, name)
    wanted: str = live["status"]["artifact"]

    async def there() -> bool:
        found = await client.list(BUILD_ARTIFACTS, namespace)
        return wanted in {each["metadata"]["name"] for each in found.items}

    await eventually(there, f"{wanted} is there")
    return await client.get(BUILD_ARTIFACTS, namespace, wanted)


async def build(client: HttpClient, namespace: str, name: str) -> None:
    """What a build Job and the store would have come to: the artifact that a deployment waits for is Ready."""

    async def written() -> bool:
        artifact = await artifact_of(client, namespace, name)
        said = {"status": "True", "reason": "Built", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        status = {
            "digest": DIGEST, "location": f"store/artifacts/{artifact['metadata']['name']}@{DIGEST}",
            "conditions": [{"type": kind, **said} for kind in ("Ready", "Built")],
        }  # fmt: skip
        try:
            await client.apply_status(BUILD_ARTIFACTS, artifact, status)
        except ApiError:
            return False
        return True

    await eventually(written, "the artifact is ready")
