"""How NVIDIA's GPUs are, as NVML tells it.

A GPU is unhealthy while the driver asks for a recovery action (a reset, a reboot), does not answer for it, or could not
remap broken rows of its memory, after which NVIDIA replaces it. Drivers that do not know recovery actions tell of
trouble by XID events only: an XID that is not an application's own fault makes the GPU, or the MIG instance that it is
about, unhealthy: for good where it takes a reset to recover, and otherwise until nothing was heard for a while.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from rm_device_plugins.logs import Log
from rm_device_plugins.vendor import WELL, Failure, Trouble

log = Log("nvidia")

APPLICATION_XIDS: Final = frozenset({8, 13, 31, 43, 45, 68, 109})
"""What a program did wrong, and the next one need not: illegal accesses, its own page faults, its own time limits."""
RESET_XIDS: Final = frozenset({48, 62, 64, 74, 79, 95, 110, 119, 120, 136, 140, 143, 155, 156, 158})
"""After these the GPU has to be reset, or the node to be started again: NVIDIA's catalogue of XIDs says so."""
_NO_INSTANCE: Final = 0xFFFFFFFF
_MAX_PIDS: Final = 4
_IDLE_BYTES: Final = 128 * 1024 * 1024
"""More than this is taken of an idle GPU's memory by nobody but a program: a CUDA context alone is twice as big."""


@dataclass(frozen=True, slots=True)
class _Xid:
    number: int
    at: float


class Health:
    """What is known of each GPU's trouble. Its methods call NVML, so they belong on NVML's thread."""

    def __init__(
        self,
        nvml: Any,
        ignored_xids: frozenset[int],
        probation_seconds: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises NVMLError where no events can be had."""
        self._nvml = nvml
        self._ignored = ignored_xids
        self._probation = probation_seconds
        self._now = now
        self._events = nvml.nvmlEventSetCreate()
        self._watched: set[str] = set()
        self._xids: dict[tuple[str, int], _Xid] = {}
        """By GPU and MIG instance; the GPU as a whole is an instance, too."""

    def watch(self, handle: Any, uuid: str) -> None:
        """Asks for this GPU's events, once."""
        if uuid in self._watched:
            return
        nvml = self._nvml
        try:
            wanted = nvml.nvmlEventTypeXidCriticalError & nvml.nvmlDeviceGetSupportedEventTypes(handle)
            if wanted:
                nvml.nvmlDeviceRegisterEvents(handle, wanted, self._events)
        except nvml.NVMLError as error:
            log.warning("no events of this GPU", device=uuid, cause=str(error))
        self._watched.add(uuid)

    def hear(self) -> None:
        """Takes in the events since the last time."""
        nvml = self._nvml
        while True:
            try:
                event = nvml.nvmlEventSetWait_v2(self._events, 0)
            except nvml.NVMLError:
                return  # nothing more, which NVML calls a timeout; what else it may be shows in the queries
            number = int(event.eventData)
            if event.eventType != nvml.nvmlEventTypeXidCriticalError or number in self._ignored:
                continue
            try:
                uuid = nvml.nvmlDeviceGetUUID(event.device)
            except nvml.NVMLError as error:
                log.warning("an XID of a GPU that does not say which it is", xid=number, cause=str(error))
                continue
            where = (uuid, int(event.gpuInstanceId))
            before = self._xids.get(where)
            if before is None or before.number not in RESET_XIDS:
                self._xids[where] = _Xid(number, self._now())
            log.warning("XID", device=uuid, xid=number, instance=None if where[1] == _NO_INSTANCE else where[1])

    def gpu(self, handle: Any, uuid: str) -> Trouble:
        """What is wrong with the whole GPU. Raises NVMLError if it does not answer."""
        action = self._recovery_action(handle)
        if action is not None and not action:
            # The driver has the last word: a reset has happened, or none is needed.
            for where in [each for each in self._xids if each[0] == uuid]:
                del self._xids[where]
        if self._remapping_failed(handle):
            return Trouble("rows of its memory could not be remapped: it has to be replaced", Failure.DEAD)
        if action:
            xid = self._xids.get((uuid, _NO_INSTANCE))
            heard = f" after XID {xid.number}" if xid is not None else ""
            return Trouble(f"the driver asks for {action.cause}{heard}", action.failure)
        return self._heard(uuid, _NO_INSTANCE)

    def instance(self, uuid: str, instance: int) -> Trouble:
        """What is wrong with one MIG instance of the GPU alone; ask for the GPU first."""
        return self._heard(uuid, instance)

    def any_instance(self, uuid: str) -> Trouble:
        """What is wrong with one of the GPU's MIG instances, for whoever gives the GPU away as a whole."""
        instances = sorted(instance for gpu, instance in self._xids if gpu == uuid)
        return next((trouble for each in instances if (trouble := self._heard(uuid, each))), WELL)

    def _heard(self, uuid: str, instance: int) -> Trouble:
        xid = self._xids.get((uuid, instance))
        if xid is None:
            return WELL
        if xid.number in RESET_XIDS:
            told = f"XID {xid.number}: the GPU has to be reset; restart this plugin afterwards"
            return Trouble(told, Failure.NEEDS_RESET)
        if self._now() - xid.at < self._probation:
            return Trouble(f"XID {xid.number}", Failure.TRANSIENT)
        del self._xids[uuid, instance]
        return WELL

    def _remapping_failed(self, handle: Any) -> bool:
        try:
            *_, failed = self._nvml.nvmlDeviceGetRemappedRows(handle)
        except (self._nvml.NVMLError_NotSupported, self._nvml.NVMLError_FunctionNotFound):
            return False  # memory that has no spare rows, or a driver that does not tell
        return bool(failed)

    def _recovery_action(self, handle: Any) -> Trouble | None:
        """What the driver wants to be done, a Trouble without a cause if nothing; None if it knows no such thing."""
        nvml = self._nvml
        (answer,) = nvml.nvmlDeviceGetFieldValues(handle, [nvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])
        if answer.nvmlReturn != nvml.NVML_SUCCESS:
            return None
        actions = {
            nvml.NVML_GPU_RECOVERY_ACTION_NONE: WELL,
            nvml.NVML_GPU_RECOVERY_ACTION_GPU_RESET: Trouble("a reset of the GPU", Failure.NEEDS_RESET),
            nvml.NVML_GPU_RECOVERY_ACTION_NODE_REBOOT: Trouble("a restart of the node", Failure.NEEDS_RESET),
            nvml.NVML_GPU_RECOVERY_ACTION_DRAIN_P2P: Trouble("a drain of its peer-to-peer traffic", Failure.TRANSIENT),
            nvml.NVML_GPU_RECOVERY_ACTION_DRAIN_AND_RESET: Trouble(
                "a drain and a reset of the GPU", Failure.NEEDS_RESET
            ),
            nvml.NVML_GPU_RECOVERY_ACTION_BUS_RESET: Trouble("a reset of its bus", Failure.NEEDS_RESET),
            nvml.NVML_GPU_RECOVERY_ACTION_SYSTEM_REBOOT: Trouble("a restart of the node", Failure.NEEDS_RESET),
        }
        number = int(answer.value.uiVal)
        return actions.get(number, Trouble(f"recovery action {number}"))


def of_error(nvml: Any, error: Exception) -> Trouble:
    """What an error that NVML answers with for a GPU says of it."""
    code = getattr(error, "value", None)
    reset = code in (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED)
    return Trouble(f"NVML: {error}", Failure.NEEDS_RESET if reset else Failure.UNKNOWN)


def use(nvml: Any, handle: Any) -> str:
    """What computes on a GPU or an instance: processes, or, as these are not shown to a pod that does not share the
    host's process IDs, whoever holds its memory.
    """
    try:
        pids = sorted({int(each.pid) for each in nvml.nvmlDeviceGetComputeRunningProcesses(handle)})
        if pids:
            more = f" and {len(pids) - _MAX_PIDS} more" if len(pids) > _MAX_PIDS else ""
            return f"process{'es' if len(pids) > 1 else ''} {', '.join(map(str, pids[:_MAX_PIDS]))}{more}"
        held = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2).used
        return "a program that holds memory of it" if held > _IDLE_BYTES else ""
    except nvml.NVMLError:
        return ""
