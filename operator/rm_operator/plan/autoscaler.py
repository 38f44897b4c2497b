"""The HorizontalPodAutoscaler that scales a deployment, where the deployment asks for one.

It writes ``spec.replicas`` through the scale subresource; the operator never does.
"""

from typing import Any

from rm_api import names
from rm_api.conditions import Reason
from rm_api.kinds.model_deployment import Autoscaling

from rm_operator.plan import pods
from rm_operator.plan.model import (
    Object,
    deletion_of,
    is_controlled_by,
    is_deleting,
    name_of,
    namespace_of,
    owner_reference,
)
from rm_operator.plan.state import State


def autoscale(state: State) -> None:
    """Keeps the autoscaler as the spec says, or takes ours away."""
    deployment, live = state.snapshot.deployment, state.snapshot.autoscaler
    ours = live is not None and is_controlled_by(live, deployment)
    if state.spec.autoscaling is None:
        if live is not None and ours and not is_deleting(live):
            state.delete.append(deletion_of(live))
    elif live is not None and not ours:
        state.stall(
            Reason.NAME_TAKEN,
            f"a HorizontalPodAutoscaler {name_of(deployment)} exists and belongs to somebody else; "
            "delete it, or remove spec.autoscaling",
        )
    else:
        state.apply.append(_autoscaler(deployment, state.spec.autoscaling))


def _autoscaler(deployment: Object, autoscaling: Autoscaling) -> dict[str, Any]:
    name = name_of(deployment)
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {
            "name": name,
            "namespace": namespace_of(deployment),
            "labels": pods.labels(names.ROLE_SERVE, **{names.LABEL_DEPLOYMENT: name}),
            "ownerReferences": [owner_reference(deployment, controller=True)],
        },
        "spec": {
            "scaleTargetRef": {"apiVersion": deployment["apiVersion"], "kind": deployment["kind"], "name": name},
            "minReplicas": autoscaling.min_replicas,
            "maxReplicas": autoscaling.max_replicas,
            "metrics": [
                {
                    "type": "Pods",
                    "pods": {
                        "metric": {"name": metric.name},
                        "target": {"type": "AverageValue", "averageValue": metric.average_value},
                    },
                }
                for metric in autoscaling.metrics
            ],
        },
    }
