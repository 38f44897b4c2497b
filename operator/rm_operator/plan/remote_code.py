"""Code that comes with a model: run only where the tenant asks for it and the accelerator's owner allows it."""

from rm_api.kinds import AcceleratorResourceSpec, ModelDeploymentSpec
from rm_api.kinds.model_deployment import ModelFacts


def trusted(spec: ModelDeploymentSpec, accelerator: AcceleratorResourceSpec, facts: ModelFacts) -> str | None:
    """Digest of the model's code where that is run on ``accelerator``; None where none is."""
    runtime = accelerator.runtime
    allowed = runtime is not None and runtime.allow_remote_code
    return facts.remote_code_digest if facts.remote_code and spec.runtime.trust_remote_code and allowed else None
