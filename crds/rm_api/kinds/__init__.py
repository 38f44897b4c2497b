"""The four kinds, as pydantic models. The CRDs are generated from them (``python -m rm_api.crdgen``)."""

from rm_api.accelerator_types import AcceleratorType
from rm_api.crd import KindInfo
from rm_api.kinds import accelerator_resource, build_artifact, build_profile, model_deployment
from rm_api.kinds.accelerator_resource import AcceleratorResourceSpec, AcceleratorResourceStatus
from rm_api.kinds.build_artifact import BuildArtifactSpec, BuildArtifactStatus
from rm_api.kinds.build_profile import BuildProfileSpec, BuildProfileStatus
from rm_api.kinds.model_deployment import ModelDeploymentSpec, ModelDeploymentStatus, ModelFacts

ACCELERATOR_RESOURCE = accelerator_resource.KIND
BUILD_PROFILE = build_profile.KIND
BUILD_ARTIFACT = build_artifact.KIND
MODEL_DEPLOYMENT = model_deployment.KIND

KINDS: tuple[KindInfo, ...] = (ACCELERATOR_RESOURCE, BUILD_ARTIFACT, BUILD_PROFILE, MODEL_DEPLOYMENT)

__all__ = [
    "ACCELERATOR_RESOURCE",
    "BUILD_ARTIFACT",
    "BUILD_PROFILE",
    "KINDS",
    "MODEL_DEPLOYMENT",
    "AcceleratorResourceSpec",
    "AcceleratorResourceStatus",
    "AcceleratorType",
    "BuildArtifactSpec",
    "BuildArtifactStatus",
    "BuildProfileSpec",
    "BuildProfileStatus",
    "ModelDeploymentSpec",
    "ModelDeploymentStatus",
    "ModelFacts",
]
