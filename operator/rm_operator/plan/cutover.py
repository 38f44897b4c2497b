"""The step that runs the pods: the wanted variant comes, and earlier ones go once it has taken over."""

from rm_api import names
from rm_api.conditions import ConditionType, Reason
from rm_api.kinds import BuildArtifactSpec

from rm_operator.plan import serving
from rm_operator.plan.model import deletion_of, is_deleting, name_of, namespace_of, uid_of
from rm_operator.plan.state import State


def serve(state: State) -> bool:
    """Runs the wanted pods; True once all of them answer."""
    assert state.placement is not None
    assert state.artifact_object is not None
    snapshot = state.snapshot
    accelerator = next(view for view in snapshot.accelerators if view.name == state.placement.chosen)
    variant = serving.Variant(
        deployment=snapshot.deployment,
        spec=state.spec,
        accelerator=accelerator.name,
        accelerator_spec=accelerator.spec,
        artifact=name_of(state.artifact_object),
        artifact_spec=BuildArtifactSpec.model_validate(state.artifact_object["spec"]),
        location=str((state.artifact_object["status"])["location"]),
    )
    state.apply += serving.children(variant, snapshot.revisions.get(variant.name), snapshot.settings)
    mine = snapshot.pods_of(variant.inputs_hash)
    ready = sum(serving.is_ready(pod) for pod in mine)
    wanted = state.spec.replicas
    if ready >= wanted and any(name_of(each) == variant.name for each in snapshot.variants):
        message = f"{ready} of {wanted} pods ready on {variant.accelerator}" if wanted else "scaled to zero"
        state.conditions.set(ConditionType.AVAILABLE, True, Reason.SERVING, message)
        _retire(state, variant)
        return True
    waiting = [pod for pod in mine if not serving.is_ready(pod) and "deletionTimestamp" not in pod["metadata"]]
    why = serving.trouble(waiting, accelerator.spec.resource_name)
    old = sum(serving.is_ready(pod) for pod in snapshot.pods) - ready
    meanwhile = f"; {old} pods of the previous variant keep serving" if old else ""
    message = f"{ready} of {wanted} pods ready: {why.message}{meanwhile}"
    state.conditions.set(ConditionType.AVAILABLE, False, why.reason, message)
    return False


def _retire(state: State, variant: serving.Variant) -> None:
    """Takes earlier variants out of the Service, and away once no EndpointSlice names their pods any more."""
    snapshot = state.snapshot
    for old in snapshot.variants:
        if name_of(old) == variant.name or is_deleting(old):
            continue
        its_pods = snapshot.pods_of(serving.variant_label(old))
        if not any(name_of(pod) in snapshot.routed_pods for pod in its_pods):
            state.delete.append(deletion_of(old))
            revision = snapshot.revisions.get(name_of(old))
            if revision is not None:
                state.delete.append(deletion_of(revision))
            continue
        for pod in its_pods:
            state.apply.append(
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {
                        "name": name_of(pod),
                        "namespace": namespace_of(pod),
                        "uid": uid_of(pod),
                        # Stated again, since a child of somebody else is not touched: it is our ReplicaSet's.
                        "ownerReferences": pod["metadata"].get("ownerReferences") or [],
                        "labels": {names.LABEL_ACTIVE: "false"},
                    },
                }
            )
