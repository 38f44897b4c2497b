"""Who has devices, or is to have some: deployments, by their serving pods, and builds, by the Jobs of their steps."""

from collections.abc import Mapping
from typing import Any

from rm_api import names

from rm_operator.plan.model import labels_of, namespace_of

Object = Mapping[str, Any]
Owner = tuple[str, str]
"""Namespace and name of a ModelDeployment; of a build, what no deployment can be called."""
_BUILD = "build/"


def build_of(namespace: str, artifact: str) -> Owner:
    """The build of an artifact."""
    return namespace, _BUILD + artifact


def is_build(owner: Owner) -> bool:
    """True of a build."""
    return owner[1].startswith(_BUILD)


def holder_of(obj: Object) -> tuple[Owner, str] | None:
    """Whose a pod or Job is, and of which accelerator it takes devices; None where it is not one of ours that does."""
    label = labels_of(obj)
    accelerator = label.get(names.LABEL_ACCELERATOR)
    if not accelerator:
        return None
    if deployment := label.get(names.LABEL_DEPLOYMENT):
        return (namespace_of(obj), deployment), accelerator
    artifact = label.get(names.LABEL_ARTIFACT)
    if artifact and label.get(names.LABEL_ROLE) == names.ROLE_BUILD:
        return build_of(namespace_of(obj), artifact), accelerator
    return None


def is_over(job: Object) -> bool:
    """True of a Job that has come to its end: it makes no more pods."""
    return any(
        entry["type"] in ("Complete", "Failed", "SuccessCriteriaMet", "FailureTarget") and entry["status"] == "True"
        for entry in (job.get("status") or {}).get("conditions") or ()
    )
