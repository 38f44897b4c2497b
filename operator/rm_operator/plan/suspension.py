"""What a suspended deployment does: nothing, but keep what it has."""

from pydantic import ValidationError
from rm_api.conditions import ConditionType, Reason
from rm_api.kinds.model_deployment import ModelFacts

from rm_operator.plan import cutover, serving
from rm_operator.plan.model import is_deleting
from rm_operator.plan.state import State

_KEPT = (ConditionType.MODEL_RESOLVED, ConditionType.PLACED, ConditionType.ARTIFACT_READY)
_HINT = "suspended; set spec.suspend to false to go on"


def suspend(state: State) -> None:
    """Ends the serving pods, which frees their devices. Facts, placement and artifact stay; no Job begins."""
    snapshot = state.snapshot
    state.facts = _known(state)
    for condition in _KEPT:
        state.conditions.keep(condition, Reason.SUSPENDED, _HINT)
    for each in snapshot.variants:
        if not is_deleting(each):
            cutover.resize(state, each, 0)
    ending = sum(map(serving.is_live, snapshot.pods))
    message = f"{_HINT}; {ending} pods are ending" if ending else _HINT
    state.conditions.set(ConditionType.AVAILABLE, False, Reason.SUSPENDED, message)


def _known(state: State) -> ModelFacts | None:
    known = (state.snapshot.deployment.get("status") or {}).get("model") or {}
    try:
        return ModelFacts.model_validate(known) if known.get("source") == state.spec.model.source else None
    except ValidationError:
        return None
