"""Which pods have a device that is not well: what device plugins and observers report, and what kubelets say."""

from collections.abc import Callable, Iterable

from rm_api import names
from rm_api.kinds.accelerator_resource import DeviceFailure

from rm_operator.controllers.holders import Owner
from rm_operator.controllers.reading import Reading
from rm_operator.kube.client import Object
from rm_operator.kube.reports import Reports
from rm_operator.kube.resources import PODS
from rm_operator.kube.store import Stores
from rm_operator.plan.device_report import PodKey, UnhealthyUse, said_by_kubelet
from rm_operator.plan.model import labels_of, name_of, namespace_of, uid_of
from rm_operator.plan.replacement import is_marked
from rm_operator.plan.serving import is_ready


class Sickness:
    """What is known of the devices of serving pods. ``wake`` is called with deployments of whose pods that changed.

    A report says more than a kubelet, and comes first; a vendor's own device plugin makes no report. While the reports
    of a kind are awaited after a change of leaders, what a predecessor wrote on a pod holds.
    """

    def __init__(self, reports: Reports, stores: Stores, wake: Callable[[Owner], None]) -> None:
        self._reports = reports
        self._pods = stores[PODS]
        self._wake = wake
        reports.on_pods(self._changed)

    def of(self, pods: Iterable[Object], known: Reading) -> dict[str, UnhealthyUse]:
        """Devices that are not well, by the uid of the pod that has one."""
        reported, found = self._reports.unhealthy_pods(), {}
        for pod in pods:
            namespace, name = namespace_of(pod), name_of(pod)
            known.note(self._reports.place_of_pod(namespace, name))
            use = reported.get((namespace, name)) or _by_kubelet(pod)
            if use is None and is_marked(pod):
                accelerator = labels_of(pod).get(names.LABEL_ACCELERATOR, "")
                known.note(self._reports.place_of(accelerator))
                if self._reports.awaited(accelerator):
                    use = UnhealthyUse(
                        accelerator, _node(pod), "a device", "reports are awaited", DeviceFailure.UNKNOWN
                    )
            if use is not None:
                found[uid_of(pod)] = use
        return found

    def used_outside(self, pods: Iterable[Object], known: Reading) -> dict[str, str]:
        """What uses devices of pods that are not ready outside of Kubernetes, by the uid of the pod."""
        found = {}
        for pod in pods:
            accelerator, node = labels_of(pod).get(names.LABEL_ACCELERATOR, ""), _node(pod)
            if is_ready(pod) or not node:
                continue
            known.note(self._reports.place_of(accelerator))
            report = self._reports.on(node, accelerator)
            for device in () if report is None else report.noted:
                if device.out_of_band and (namespace_of(pod), name_of(pod)) in device.pods:
                    found[uid_of(pod)] = (
                        f"{device.id} of node {node} is used outside of Kubernetes: {device.out_of_band}"
                    )
        return found

    def _changed(self, pods: Iterable[PodKey]) -> None:
        for namespace, name in pods:
            pod = self._pods.get(namespace, name)
            deployment = None if pod is None else labels_of(pod).get(names.LABEL_DEPLOYMENT)
            if deployment:
                self._wake((namespace, deployment))


def _by_kubelet(pod: Object) -> UnhealthyUse | None:
    said = said_by_kubelet(pod)
    if not said:
        return None
    accelerator = labels_of(pod).get(names.LABEL_ACCELERATOR, "")
    return UnhealthyUse(accelerator, _node(pod), said[0][1], "", DeviceFailure.UNKNOWN)


def _node(pod: Object) -> str:
    return str((pod.get("spec") or {}).get("nodeName") or "")
