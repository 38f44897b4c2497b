"""Puts finalizers of ours there, and takes them off.

What a manager applies replaces what it applied before, so the entry goes when it is applied without.
"""

from collections.abc import Iterable
from typing import Any

from rm_api.names import FIELD_MANAGER_IN_USE

from rm_operator.kube.client import KubeClient
from rm_operator.kube.resources import resource_of
from rm_operator.kube.store import Stores
from rm_operator.plan.model import Protection


async def carry_out(client: KubeClient, stores: Stores, protections: Iterable[Protection]) -> None:
    """Write each of ``protections``. Raises Conflict where the object is another one by now, or was changed."""
    for each in protections:
        metadata: dict[str, Any] = {"name": each.name, "uid": each.uid}
        if each.namespace is not None:
            metadata["namespace"] = each.namespace
        if each.resource_version is not None:
            metadata["resourceVersion"] = each.resource_version
        if each.present:
            metadata["finalizers"] = [each.finalizer]
        intent = {"apiVersion": each.api_version, "kind": each.kind, "metadata": metadata}
        stores.put(await client.apply(resource_of(intent), intent, field_manager=FIELD_MANAGER_IN_USE))
