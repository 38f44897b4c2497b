"""BuildProfile: is it usable as written, and how many artifacts came of it?"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath

from rm_api.conditions import ConditionType, Reason
from rm_api.kinds import BuildProfileSpec
from rm_api.names import BUILD_VARIABLES, variables_in

from rm_operator.plan import in_use
from rm_operator.plan.conditions import Conditions
from rm_operator.plan.in_use import NOBODY, Users
from rm_operator.plan.model import Object, Plan, is_deleting

# Containers of a build that are ours.
_RESERVED_STEPS = frozenset({"launcher", "fetch", "probe", "push"})


@dataclass(frozen=True)
class ProfileSnapshot:
    """Everything that a decision about one BuildProfile rests on."""

    profile: Object
    artifacts: int
    """Artifacts that were made with it and exist."""
    users: Users = NOBODY
    """Deployments that are placed with it or ask for it, and artifacts that are being built with it."""


def problems(spec: BuildProfileSpec) -> list[str]:
    """What makes the profile unusable, beyond what the API server refuses; each with what to do."""
    found = []
    for step in spec.steps:
        if step.name in _RESERVED_STEPS:
            found.append(f"step {step.name}: the name is taken by a container of ours; choose another")
        texts = [*step.command, *step.args, *step.outputs, *(variable.value for variable in step.env)]
        unknown = sorted(set().union(*map(variables_in, texts)) - BUILD_VARIABLES)
        if unknown:
            known = ", ".join(sorted(BUILD_VARIABLES))
            found.append(f"step {step.name}: unknown variable {', '.join(unknown)}; there are {known}")
        found += [
            f"step {step.name}: output {output} leaves the build's directories"
            for output in step.outputs
            if ".." in PurePosixPath(output).parts
        ]
    if spec.probe is not None:
        unknown = sorted(set().union(*map(variables_in, spec.probe.command)) - BUILD_VARIABLES)
        if unknown:
            found.append(f"probe: unknown variable {', '.join(unknown)}")
    return found


def plan(snapshot: ProfileSnapshot, now: datetime) -> Plan:
    """States whether the profile can be used."""
    profile = snapshot.profile
    protect = in_use.protection(profile, snapshot.users)
    leaving = is_deleting(profile)
    if leaving and not snapshot.users.count:
        return Plan(protect=protect)
    conditions = Conditions(profile, now)
    found = problems(BuildProfileSpec.model_validate(profile["spec"]))
    if leaving:
        in_use.state_use(profile, snapshot.users, conditions, "they are deleted or use another profile")
    elif found:
        message = "; ".join(found)
        conditions.set(ConditionType.READY, False, Reason.INVALID_SPEC, message)
        conditions.set(ConditionType.STALLED, True, Reason.INVALID_SPEC, message)
    else:
        conditions.set(ConditionType.READY, True, Reason.ACCEPTED, "can be used")
    status = {
        "observedGeneration": profile["metadata"].get("generation", 0),
        "artifacts": snapshot.artifacts,
        "conditions": conditions.to_list(),
    }
    return Plan(protect=protect, status=status, events=conditions.transitions())
