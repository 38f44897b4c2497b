"""BuildProfile: is it usable as written, what is its toolchain, and how many artifacts came of it?"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any

from rm_api import config_template
from rm_api.conditions import ConditionType, Reason
from rm_api.kinds import BuildProfileSpec
from rm_api.kinds.build_profile import BuildInterface
from rm_api.names import BUILD_VARIABLES, INPUT_FROM, input_variable, variables_in

from rm_operator.plan import build_job, in_use, version_probe
from rm_operator.plan.conditions import Conditions
from rm_operator.plan.in_use import NOBODY, Users
from rm_operator.plan.model import Object, Plan, Settings, deletion_of, is_deleting, name_of
from rm_operator.plan.placement import ProfileView
from rm_operator.plan.version_probe import ProbeJob, Probing

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
    settings: Settings
    users: Users = NOBODY
    """Deployments that are placed with it or ask for it, and artifacts that are being built with it."""
    probes: Sequence[ProbeJob] = ()
    """Jobs that probe its toolchain, but for those that are being deleted."""
    spent_seconds: Decimal = Decimal(0)
    """How long builds with it took, of all artifacts that exist."""


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
    if spec.version_probe is not None:
        found += _unknown("versionProbe", spec.version_probe.command, frozenset())
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
    return [f"{where}: unknown variable {', '.join(unknown)}; there are {', '.join(sorted(known)) or 'none'}"]


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


def view_of(profile: Object) -> ProfileView:
    """The profile as placement and builds see it."""
    spec = BuildProfileSpec.model_validate(profile["spec"])
    name = name_of(profile)
    if found := problems(spec):
        return ProfileView(name, spec, usable=False, reason="; ".join(found))
    if spec.version_probe is None:
        return ProfileView(name, spec)
    known = version_probe.known_of(profile, spec)
    if known is not None:
        return ProfileView(name, spec, toolchain=known[0])
    generation = profile["metadata"].get("generation", 0)
    said = {
        entry["type"]: entry
        for entry in (profile.get("status") or {}).get("conditions") or []
        if entry["type"] in (_READY, _STALLED) and entry.get("observedGeneration", 0) == generation
    }
    reason = said[_READY]["message"] if said.get(_READY, {}).get("status") == "False" else version_probe.UNDER_WAY
    return ProfileView(name, spec, usable=False, reason=reason, awaited=_STALLED not in said)


def said_of_toolchain(profile: Object) -> tuple[object, ...]:
    """What of the status ``view_of`` looks at; two that are equal, of the same spec, look the same."""
    status = profile.get("status") or {}
    if "versionProbe" not in profile["spec"]:
        return ()
    said: list[Any] = [status.get(name) for name in ("versions", "images")]
    said += [(status.get("probed") or {}).get("recipe"), profile["metadata"].get("generation", 0)]
    said += [
        (entry["type"], entry["status"], entry["message"], entry.get("observedGeneration"))
        for entry in status.get("conditions") or []
        if entry["type"] in (_READY, _STALLED)
    ]
    return tuple(said)


def plan(snapshot: ProfileSnapshot, now: datetime) -> Plan:
    """States whether the profile can be used, and has its toolchain probed where it asks for that."""
    profile = snapshot.profile
    protect = in_use.protection(profile, snapshot.users)
    leaving = is_deleting(profile)
    if leaving and not snapshot.users.count:
        return Plan(protect=protect)
    conditions = Conditions(profile, now)
    spec = BuildProfileSpec.model_validate(profile["spec"])
    found = problems(spec)
    # What the profile owns and somebody else has made is none of ours.
    probes = [each for each in snapshot.probes if each.attempt.number]
    probing = _as_known(profile, spec, probes)
    if leaving:
        in_use.state_use(profile, snapshot.users, conditions, "they are deleted or use another profile")
    elif found:
        message = "; ".join(found)
        conditions.set(ConditionType.READY, False, Reason.INVALID_SPEC, message)
        conditions.set(ConditionType.STALLED, True, Reason.INVALID_SPEC, message)
    elif spec.version_probe is None:
        conditions.set(ConditionType.READY, True, Reason.ACCEPTED, "can be used")
    else:
        probing = version_probe.plan(profile, spec, probes, conditions=conditions, settings=snapshot.settings, now=now)
    status = {
        "observedGeneration": profile["metadata"].get("generation", 0),
        "artifacts": snapshot.artifacts,
        **({"buildMinutes": str(round(snapshot.spent_seconds / 60, 1))} if snapshot.spent_seconds else {}),
        "conditions": conditions.to_list(),
        **_toolchain(probing),
    }
    return Plan(
        apply=probing.apply,
        delete=probing.delete,
        protect=protect,
        status=status,
        events=conditions.transitions(),
        requeue_after=probing.requeue_after,
    )


_READY, _STALLED = ConditionType.READY.value, ConditionType.STALLED.value


def _as_known(profile: Object, spec: BuildProfileSpec, probes: Sequence[ProbeJob]) -> Probing:
    """What is known stays known; whatever probes, for a profile that is not to be used, is of no use either."""
    known = version_probe.known_of(profile, spec) if spec.version_probe is not None else None
    toolchain, probed = known if known is not None else (None, None)
    gone = tuple(deletion_of(each.attempt.job) for each in probes)
    return Probing(delete=gone, toolchain=toolchain, probed=probed)


def _toolchain(probing: Probing) -> dict[str, Any]:
    if probing.toolchain is None or probing.probed is None:
        return {}
    said = probing.toolchain.to_wire()
    return {"versions": said["versions"], "images": said["images"], "probed": probing.probed.to_wire()}
