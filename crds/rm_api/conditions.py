"""Condition types and reasons: closed vocabularies that all kinds share."""

from enum import StrEnum


class ConditionType(StrEnum):
    """Types of conditions. ``Reconciling``, ``Stalled`` (kstatus) and ``Stale`` are there only while true."""

    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    # ModelDeployment
    MODEL_RESOLVED = "ModelResolved"
    PLACED = "Placed"
    ARTIFACT_READY = "ArtifactReady"
    AVAILABLE = "Available"
    ROUTED = "Routed"
    # BuildArtifact
    BUILT = "Built"
    STALE = "Stale"
    # AcceleratorResource
    DEVICES_ADVERTISED = "DevicesAdvertised"
    DEVICES_HEALTHY = "DevicesHealthy"
    ENDPOINT_READY = "EndpointReady"


class Reason(StrEnum):
    """Why a condition has its status."""

    # progress
    RESOLVING = "Resolving"
    PROBING = "Probing"
    BUILDING = "Building"
    STARTING = "Starting"
    WAITING_FOR_MODEL = "WaitingForModel"
    WAITING_FOR_PLACEMENT = "WaitingForPlacement"
    WAITING_FOR_ARTIFACT = "WaitingForArtifact"
    RETRYING = "Retrying"
    QUEUED = "Queued"
    DELETING = "Deleting"
    SUSPENDED = "Suspended"
    ROLLING_OUT = "RollingOut"
    # success
    RESOLVED = "Resolved"
    PLACED = "Placed"
    BUILT = "Built"
    ADOPTED = "Adopted"
    SERVING = "Serving"
    SERVICE_READY = "ServiceReady"
    READY = "Ready"
    ACCEPTED = "Accepted"
    ADVERTISED = "Advertised"
    ALL_HEALTHY = "AllHealthy"
    NOT_COUNTED = "NotCounted"
    # the model
    UNKNOWN_SOURCE = "UnknownSource"
    SOURCE_INVALID = "SourceInvalid"
    SOURCE_UNREACHABLE = "SourceUnreachable"
    RESOLVE_FAILED = "ResolveFailed"
    # placement
    NO_ACCELERATOR = "NoAccelerator"
    NO_ELIGIBLE_ACCELERATOR = "NoEligibleAccelerator"
    SLO_UNREACHABLE = "SloUnreachable"
    REMOTE_CODE_NOT_ALLOWED = "RemoteCodeNotAllowed"
    PROFILE_NOT_FOUND = "ProfileNotFound"
    # build
    UNSUPPORTED_MODEL = "UnsupportedModel"
    TOOLCHAIN_FAILED = "ToolchainFailed"
    BUILD_TIMED_OUT = "BuildTimedOut"
    OUT_OF_MEMORY = "OutOfMemory"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    STORE_UNREACHABLE = "StoreUnreachable"
    REPORT_MISSING = "ReportMissing"
    UNSCHEDULABLE = "Unschedulable"
    ARTIFACT_MISSING = "ArtifactMissing"
    NO_MATCHING_NODE = "NoMatchingNode"
    # serving
    NO_DEVICE = "NoDevice"
    NO_SPARE_DEVICE = "NoSpareDevice"
    ROLLOUT_TIMED_OUT = "RolloutTimedOut"
    DEVICE_MISSING = "DeviceMissing"
    DRIVER_MISMATCH = "DriverMismatch"
    ARTIFACT_MISMATCH = "ArtifactMismatch"
    ENGINE_FAILED = "EngineFailed"
    NAME_TAKEN = "NameTaken"
    # endpoints
    NOT_NEEDED = "NotNeeded"
    PROXY_NOT_READY = "ProxyNotReady"
    CREDENTIALS_REFUSED = "CredentialsRefused"
    # specs
    INVALID_SPEC = "InvalidSpec"
    IN_USE = "InUse"
    PLUGIN_NOT_READY = "PluginNotReady"
    NO_DEVICES = "NoDevices"
    DEVICE_UNHEALTHY = "DeviceUnhealthy"
    RESOURCE_NAME_CONFLICT = "ResourceNameConflict"
    NODE_CONFLICT = "NodeConflict"
    # the operator's own
    REFUSED = "Refused"
    INTERNAL_ERROR = "InternalError"
