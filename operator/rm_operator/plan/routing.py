"""The step that puts one Service in front, whatever runs behind it."""

from rm_api.conditions import ConditionType, Reason

from rm_operator.plan import serving
from rm_operator.plan.model import is_controlled_by, name_of
from rm_operator.plan.state import State


def route(state: State) -> None:
    """Keeps the Service, unless the name is somebody else's."""
    snapshot = state.snapshot
    service = snapshot.service
    if service is not None and not is_controlled_by(service, snapshot.deployment):
        message = (
            f"a Service {name_of(service)} exists and belongs to somebody else; "
            "delete it, or deploy the model under another name"
        )
        state.conditions.set(ConditionType.ROUTED, False, Reason.NAME_TAKEN, message)
        state.stall(Reason.NAME_TAKEN, message)
        return
    state.apply.append(serving.service(snapshot.deployment))
    state.conditions.set(
        ConditionType.ROUTED, True, Reason.SERVICE_READY, serving.url(snapshot.deployment, snapshot.settings)
    )
