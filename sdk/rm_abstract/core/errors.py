"""Failures that a container reports: each carries the exit code and the reason that the operator acts upon."""

from typing import ClassVar

from rm_api.conditions import Reason
from rm_api.names import ExitCode
from rm_api.report import Report


class WorkloadError(Exception):
    """A failure with an exit code of the workload contract. The message is one line for a person."""

    code: ClassVar[ExitCode]
    default_reason: ClassVar[Reason]

    def __init__(self, message: str, *, reason: Reason | None = None) -> None:
        super().__init__(" ".join(message.split()))
        self.reason = reason or self.default_reason

    def report(self) -> Report:
        """The report that the container leaves behind."""
        return Report(reason=self.reason, message=str(self), retryable=self.code.retryable)


class BadInput(WorkloadError):
    """The model, the source or the arguments are wrong; trying again does not help."""

    code = ExitCode.BAD_INPUT
    default_reason = Reason.SOURCE_INVALID


class ArtifactMismatch(WorkloadError):
    """The artifact is not what it should be, or does not fit the engine."""

    code = ExitCode.ARTIFACT_MISMATCH
    default_reason = Reason.ARTIFACT_MISMATCH


class DeviceMissing(WorkloadError):
    """An allocated device is not there, or is another one."""

    code = ExitCode.DEVICE_MISSING
    default_reason = Reason.DEVICE_MISSING


class DriverMismatch(WorkloadError):
    """The driver is not one that the artifact was built for."""

    code = ExitCode.DRIVER_MISMATCH
    default_reason = Reason.DRIVER_MISMATCH


class SourceUnreachable(WorkloadError):
    """A hub, registry or server does not answer; it may later."""

    code = ExitCode.SOURCE_UNREACHABLE
    default_reason = Reason.SOURCE_UNREACHABLE


class ToolchainFailure(WorkloadError):
    """A compiler or an engine failed, and would again."""

    code = ExitCode.TOOLCHAIN_FAILURE
    default_reason = Reason.TOOLCHAIN_FAILED


class PluginError(WorkloadError):
    """A plugin failed. What it raised, if anything, is the cause; other plugins and the host are not concerned."""

    code = ExitCode.TOOLCHAIN_FAILURE
    default_reason = Reason.ENGINE_FAILED


class Transient(WorkloadError):
    """Something that may pass by itself."""

    code = ExitCode.TRANSIENT
    default_reason = Reason.RETRYING
