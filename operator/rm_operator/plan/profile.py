"""BuildProfile: is it usable as written, and how many artifacts came of it?"""

import re
from collections import Counter
from collections.abc import Iterable, Set
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath

from rm_api import config_template
from rm_api.conditions import ConditionType, Reason
from rm_api.kinds import BuildProfileSpec
from rm_api.kinds.build_profile import BuildInterface
from rm_api.names import BUILD_VARIABLES, INPUT_FROM, input_variable, variables_in

from rm_operator.plan import build_job, in_use
from rm_operator.plan.conditions import Conditions
from rm_operator.plan.in_use import NOBODY, Users
from rm_operator.plan.model import Object, Plan, is_deleting

# Containers of a build that are ours.
_RESERVED_STEPS = frozenset(
    {"launcher", "fetch", "fetch-config", "check", "base", "earlier", "config", "probe", "push"}
)
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


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
    variables = BUILD_VARIABLES | {input_variable(each.name) for each in spec.inputs}
    if spec.from_profile is not None:
        variables |= {input_variable(INPUT_FROM)}
    for step in spec.steps:
        if step.name in _RESERVED_STEPS or step.name.startswith("input-"):
            found.append(f"step {step.name}: the name is taken by a container of ours; choose another")
        texts = [*step.command, *step.args, *step.outputs, *(variable.value for variable in step.env)]
        found += _unknown(f"step {step.name}", texts, variables)
        found += [
            f"step {step.name}: output {output} leaves the build's directories"
            for output in step.outputs
            if ".." in PurePosixPath(output).parts
        ]
    if spec.probe is not None:
        found += _unknown("probe", spec.probe.command, variables)
    if spec.check is not None:
        found += _unknown("check", spec.check.command, BUILD_VARIABLES)
    alike = Counter(build_job.input_container(each.name) for each in spec.inputs)
    found += [
        f"input {each.name}: another one differs from it in case or underscores only; rename one of them"
        for each in spec.inputs
        if alike[build_job.input_container(each.name)] > 1
    ]
    return [*found, *_template_problems(spec, variables), *_interface_problems(spec)]


def _unknown(where: str, texts: Iterable[str], known: Set[str]) -> list[str]:
    unknown = sorted(set().union(*map(variables_in, texts)) - known)
    if not unknown:
        return []
    return [f"{where}: unknown variable {', '.join(unknown)}; there are {', '.join(sorted(known))}"]


def _template_problems(spec: BuildProfileSpec, variables: Set[str]) -> list[str]:
    template = spec.config_template
    if template is None:
        return []
    if ".." in PurePosixPath(template.path).parts:
        return [f"configTemplate: {template.path} leaves the working directory"]
    try:
        data = config_template.read(template.format, template.content)
        # What a format cannot say is found out now, and not in a build.
        config_template.write(template.format, data)
    except config_template.TemplateInvalid as error:
        return [f"configTemplate: {error}"]
    return _unknown("configTemplate", config_template.variables_of(data), variables)


def _interface_problems(spec: BuildProfileSpec) -> list[str]:
    """What an interface asks of a step's command."""
    found = []
    for step in spec.steps:
        if spec.interface is BuildInterface.PYTHON and not _FUNCTION.fullmatch(step.command[0]):
            found.append(f"step {step.name}: with the interface Python the command is module:function")
        if spec.interface is BuildInterface.SHARED_LIBRARY and not (
            len(step.command) == 1 and not step.args and step.command[0].startswith("/")
        ):
            found.append(
                f"step {step.name}: with the interface SharedLibrary the command is the absolute path of the library "
                "in the image, and nothing else; options are in spec.flags"
            )
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
