"""What is to be built for a profile, a model and a class of nodes, and its key."""

from rm_api import names
from rm_api.base import Resources
from rm_api.dtypes import DType
from rm_api.kinds import BuildArtifactSpec, BuildProfileSpec
from rm_api.kinds.build_artifact import BaseArtifact, FetchedInput, ModelInput, ShapeBucket, Toolchain
from rm_api.kinds.model_deployment import ModelFacts

from rm_operator.plan import compatibility
from rm_operator.plan.compatibility import NodeClass
from rm_operator.plan.key import KeyInputs, artifact_key, dtype_name
from rm_operator.plan.memo import Memo, Specs
from rm_operator.plan.model import Object


def _made(
    profile_name: str,
    profile: BuildProfileSpec,
    facts: ModelFacts,
    dtype: DType,
    shape: ShapeBucket,
    credentials: str | None,
    isa: str,
    base: BaseArtifact | None,
    toolchain: Toolchain | None,
    drivers: tuple[str, ...],
    sdks: tuple[str, ...],
    code: str | None = None,
) -> BuildArtifactSpec:
    chosen = NodeClass(drivers, sdks)
    profile = compatibility.targeted(profile, chosen)
    inputs = KeyInputs.from_profile(
        profile, facts, dtype, shape, isa,
        base=base.key if base else None, toolchain=toolchain, chosen=chosen, code=code,
    )  # fmt: skip
    return BuildArtifactSpec(
        key=artifact_key(inputs),
        key_schema=names.KEY_SCHEMA_VERSION,
        model=ModelInput(
            source=facts.source,
            revision=facts.revision,
            credentials_secret=credentials,
            config_digest=facts.config_digest,
            tensors_digest=facts.tensors_digest,
            weights_digest=facts.weights_digest,
            architecture=facts.architecture,
            scales_digest=facts.scales_digest,
            code_digest=code,
        ),
        profile=profile_name,
        target=profile.target,
        dtype=dtype,
        dtype_name=dtype_name(profile, dtype),
        shape=shape,
        drivers=list(drivers),
        sdks=list(sdks),
        format=profile.output.format,
        interface=profile.interface,
        config_template=profile.config_template,
        flags=profile.flags,
        inputs=[FetchedInput(name=each.name, source=each.source, digest=each.digest) for each in profile.inputs],
        base=base,
        check=profile.check,
        toolchain=toolchain,
        weights_in_artifact=profile.weights_in_artifact,
        secret_refs=profile.secret_refs,
        max_memory=profile.max_memory,
        steps=[
            step.model_copy(update={"resources": _merged(step.resources, profile.resources)}) for step in profile.steps
        ],
        probe=profile.probe,
        scratch=profile.scratch,
        timeout_seconds=profile.timeout_seconds,
        exit_codes=profile.exit_codes,
    )


# Deployments of one model on one kind of accelerator ask for the same.
artifact_spec = Memo(_made, most=64)
"""What is to be built, and its key."""
spec_of = Specs(BuildArtifactSpec, most=64)


def recipe_was_mended(existing: Object, desired: BuildArtifactSpec) -> bool:
    """True if the profile changed in what does not count for the key: a time limit, memory, meanings of exit codes."""
    made_from = spec_of(existing)
    return made_from.profile == desired.profile and made_from.model_copy(update={"model": desired.model}) != desired


def _merged(wanted: Resources, otherwise: Resources) -> Resources:
    return wanted.model_copy(update={"cpu": wanted.cpu or otherwise.cpu, "memory": wanted.memory or otherwise.memory})
