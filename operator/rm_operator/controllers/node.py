"""Controller of Nodes: has them say which versions they have, and which of their devices are not well."""

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rm_api.names import FIELD_MANAGER_NODES

from rm_operator.context import Context
from rm_operator.kube.client import Object
from rm_operator.kube.errors import Conflict, NotFound
from rm_operator.kube.reports import Reports
from rm_operator.kube.resources import ACCELERATOR_RESOURCES, NODES
from rm_operator.plan.device_report import Report
from rm_operator.plan.model import labels_of, name_of, to_timestamp
from rm_operator.plan.node_health import condition_on, labels_on, wish
from rm_operator.runtime.controller import Watch
from rm_operator.runtime.queue import Key

logger = logging.getLogger(__name__)


class NodeController:
    """Labels and one condition of each node, from the reports of its device plugins and observers.

    A node is no object of ours: what is written there is applied under a manager of its own, and what is not to be
    there any more is applied without. Nothing is written where everything is so already.
    """

    kind = NODES.kind

    def __init__(self, context: Context, reports: Reports) -> None:
        self._client = context.client
        self._queue = context.queue
        self._stores = context.stores
        self._reports = reports
        self._selectors: dict[str, Mapping[str, str]] = {}
        """Labels of the nodes of each kind of accelerator that reports."""
        self.watches: Sequence[Watch] = ()
        for obj in self._stores[ACCELERATOR_RESOURCES]:
            self._take(obj)
        self._stores[ACCELERATOR_RESOURCES].on_change(self._kind_changed)
        reports.on_report(lambda _, node: context.queue.add(Key(self.kind, "", node)))

    async def reconcile(self, key: Key) -> float | None:
        """Brings labels and condition of one node to what is reported. Raises ApiError."""
        node = self._stores[NODES].get(None, key.name)
        if node is None:
            return None
        now = datetime.now(UTC)
        labels = labels_of(node)
        kinds = [name for name, wanted in self._selectors.items() if wanted.items() <= labels.items()]
        reports: dict[str, Report | None] = {kind: self._reports.on(key.name, kind) for kind in kinds}
        wanted = wish(node, reports, now)
        try:
            if wanted.labels != labels_on(node):
                await self._apply(node, {"labels": dict(wanted.labels)}, {})
            if wanted.condition != condition_on(node):
                conditions = [{**wanted.condition, "lastHeartbeatTime": to_timestamp(now)}] if wanted.condition else []
                await self._apply(node, {}, {"status": {"conditions": conditions}}, subresource="status")
        except (Conflict, NotFound) as error:
            # The store is about to learn that it is gone, or is another one of the name.
            logger.info("%s: %s", key, error)
        return None

    async def _apply(
        self, node: Object, metadata: Mapping[str, Any], body: Mapping[str, Any], *, subresource: str | None = None
    ) -> None:
        # With its uid it is never made anew.
        identity = {"name": name_of(node), "uid": node["metadata"]["uid"]}
        intent = {"apiVersion": NODES.api_version, "kind": NODES.kind, "metadata": {**identity, **metadata}, **body}
        answer = await self._client.apply(NODES, intent, field_manager=FIELD_MANAGER_NODES, subresource=subresource)
        self._stores.put(answer)

    def _kind_changed(self, old: Object | None, new: Object | None) -> None:
        """Wakes all nodes, if it reports from other nodes than before."""
        obj = new if new is not None else old
        assert obj is not None
        before = self._selectors.get(name_of(obj))
        if new is not None:
            self._take(new)
        else:
            self._selectors.pop(name_of(obj), None)
        if self._selectors.get(name_of(obj)) == before:
            return
        for _, name in self._stores[NODES].keys():  # noqa: SIM118 - a store is no mapping
            self._queue.add(Key(self.kind, "", name))

    def _take(self, accelerator: Object) -> None:
        spec = accelerator["spec"]
        if spec.get("devicePlugin") is not None or spec.get("observer") is not None:
            self._selectors[name_of(accelerator)] = dict(spec.get("nodeSelector") or {})
        else:
            self._selectors.pop(name_of(accelerator), None)
