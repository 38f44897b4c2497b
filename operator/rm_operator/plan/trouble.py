"""Why serving pods are not ready: the most telling reason that the pods themselves give."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rm_api.conditions import Reason
from rm_api.names import DEVICE_CLASS_RESOURCE_PREFIX, ExitCode
from rm_api.report import Report, ReportInvalid

from rm_operator.plan import image_volume
from rm_operator.plan.attempt import PULL_PROBLEMS, UNMAKEABLE
from rm_operator.plan.model import Object, name_of
from rm_operator.plan.rejected import Rejection, rejection_of, told


@dataclass(frozen=True)
class Trouble:
    """Why serving pods are not ready."""

    reason: Reason
    message: str


_NO_CLAIM = "cannot allocate all claims"
_EXIT_REASONS = {
    ExitCode.ARTIFACT_MISMATCH: Reason.ARTIFACT_MISMATCH,
    ExitCode.DEVICE_MISSING: Reason.DEVICE_MISSING,
    ExitCode.DRIVER_MISMATCH: Reason.DRIVER_MISMATCH,
    ExitCode.SOURCE_UNREACHABLE: Reason.STORE_UNREACHABLE,
}


def trouble(variant_pods: Sequence[Object], resource_name: str | None) -> Trouble:
    """The most telling reason why pods of a variant are not ready; Starting where nothing is wrong."""
    if not variant_pods:
        return Trouble(Reason.STARTING, "the pods are being made")
    refused = {name_of(pod): rejection for pod in variant_pods if (rejection := rejection_of(pod)) is not None}
    nodes = Counter(each.node for each in refused.values())
    found = [
        _rejected(refused[name_of(pod)], nodes) if name_of(pod) in refused else _trouble_of(pod, resource_name)
        for pod in sorted(variant_pods, key=name_of)
    ]
    return min(found, key=lambda each: (each.reason is Reason.STARTING, each.reason is Reason.NO_DEVICE))


def is_stuck(pod: Object) -> bool:
    """True if no node takes the pod."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(each["type"] == "PodScheduled" and each["status"] == "False" for each in conditions)


def _trouble_of(pod: Object, resource_name: str | None) -> Trouble:
    status = pod.get("status") or {}
    name = name_of(pod)
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            message = condition.get("message", "")
            if resource_name and _lacks_devices(message, resource_name):
                return Trouble(Reason.NO_DEVICE, f"{name}: no free {resource_name}: {message}")
            return Trouble(Reason.UNSCHEDULABLE, f"{name}: no node takes the pod: {message}")
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        if (bad := _container_trouble(pod, container)) is not None:
            return bad
    stage = next(
        (
            container["name"]
            for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
            if "running" in (container.get("state") or {})
        ),
        None,
    )
    return Trouble(Reason.STARTING, f"{name}: {stage} runs" if stage else f"{name} is starting")


def _rejected(rejection: Rejection, nodes: Mapping[str, int]) -> Trouble:
    reason = Reason.NO_DEVICE if rejection.lacks_device else Reason.UNSCHEDULABLE
    return Trouble(reason, told(rejection, again=nodes[rejection.node] > 1))


def _lacks_devices(message: str, resource_name: str) -> bool:
    """True if the scheduler says that no device is free. Of devices of a class it does not say the name."""
    by_class = resource_name.startswith(DEVICE_CLASS_RESOURCE_PREFIX)
    return f"Insufficient {resource_name}" in message or (by_class and _NO_CLAIM in message)


def _container_trouble(obj: Object, status: Mapping[str, Any]) -> Trouble | None:
    pod = name_of(obj)
    state = status.get("state") or {}
    waiting = state.get("waiting") or {}
    if problem := image_volume.problem(obj, waiting):
        return Trouble(Reason.IMAGE_PULL_FAILED, f"{pod}: {problem}")
    if waiting.get("reason") in PULL_PROBLEMS:
        message = f"{pod}: the image of {status['name']} cannot be pulled: {waiting.get('message', '')}"
        return Trouble(Reason.IMAGE_PULL_FAILED, message)
    if waiting.get("reason") in UNMAKEABLE:
        said = f"{waiting.get('message', '')}{image_volume.hint(obj, waiting)}"
        return Trouble(Reason.ENGINE_FAILED, f"{pod}: {status['name']} cannot be started: {said}")
    ended = state.get("terminated") or (status.get("lastState") or {}).get("terminated")
    if ended is None or ended["exitCode"] == 0 or status.get("ready"):
        return None
    code = int(ended["exitCode"])
    reason = Reason.ENGINE_FAILED
    if code in set(ExitCode):
        reason = _EXIT_REASONS.get(ExitCode(code), Reason.ENGINE_FAILED)
    if ended.get("reason") == "OOMKilled":
        reason = Reason.OUT_OF_MEMORY
    return Trouble(reason, f"{pod}: {status['name']} ended with {code}: {_said(ended)}")


def _said(ended: Mapping[str, Any]) -> str:
    try:
        return Report.parse(ended.get("message", "")).message
    except ReportInvalid:
        return str(ended.get("message") or ended.get("reason") or "it left no report")
