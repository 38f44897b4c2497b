"""Whose an artifact is: built for one namespace, or once for the deployments of all of them.

What all share is built in a namespace of its own, where no tenant has rights, and from what anybody can read: no
credentials, no volume, no code that comes with the model. What is fetched there is checked against the digests that the
key is made of, so that nobody has to believe what a tenant's server or a tenant's pod has said of a model. Who may not
have it built there can still use what is there: an equal key means an equal result.

A source that turns out not to be what was resolved stands in nobody else's way: the deployment that named it goes on
for itself, and the next one with another source has it built anew. For one that does not answer nobody waits who names
another: it is their own build then.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from rm_api.conditions import Reason
from rm_api.kinds import BuildArtifactSpec, BuildProfileSpec
from rm_api.kinds.build_artifact import BaseArtifact
from rm_api.kinds.build_profile import Sharing
from rm_api.kinds.model_deployment import ModelFacts, ModelSource

from rm_operator.plan.model import Object, is_deleting, moment_of

FETCH: Final = "fetch"
FETCH_CONFIG: Final = "fetch-config"
"""Containers of a build that read the model from its source."""
PATIENCE: Final = 3
"""Attempts that a source which does not answer has, before those who name another one go on for themselves."""
GRACE_SECONDS: Final = 10
_PUBLIC: Final = ("hf", "https", "oci")
_TRUSTS_CODE: Final = re.compile(r"trust[-_]remote[-_]code", re.I)


@dataclass(frozen=True)
class Home:
    """Where an artifact is built, or is already."""

    namespace: str
    shared: bool = False
    why_not: str = ""
    """Why it is not shared, where the profile would have it so."""

    @property
    def suffix(self) -> str:
        """What a message about the artifact ends with."""
        return f"; it is for this namespace only: {self.why_not}" if self.why_not else ""


def is_wanted(profile: BuildProfileSpec) -> bool:
    """True if the profile's artifacts are for all namespaces."""
    return profile.sharing is Sharing.CLUSTER


def obstacle(profile: BuildProfileSpec, model: ModelSource, facts: ModelFacts, base: BaseArtifact | None) -> str:
    """Why the artifact cannot be built for all namespaces, for a person; empty where it can.

    ``base`` is the artifact that it starts from; it names its namespace where that is the shared one.
    """
    scheme = facts.source.partition("://")[0]
    if facts.source != model.source:
        return f"what is known of the model is about {facts.source}"
    if model.credentials_secret_ref is not None:
        return f"the model is read with this namespace's Secret {model.credentials_secret_ref}"
    if scheme not in _PUBLIC:
        return f"{scheme}:// is not read without a claim or an account; {_said(_PUBLIC)} are"
    if facts.remote_code:
        return "the model brings code of its own (auto_map in its config)"
    if _TRUSTS_CODE.search(_texts(profile)):
        return "the profile has code of the model's run (trust-remote-code)"
    private = [each.name for each in profile.inputs if each.source.partition("://")[0] not in _PUBLIC]
    if private:
        return f"the profile's input {private[0]} is not read from {_said(_PUBLIC)}"
    if base is not None and base.namespace is None:
        return f"it starts from {base.name}, which is for this namespace only"
    return ""


def _said(schemes: tuple[str, ...]) -> str:
    return ", ".join(f"{each}://" for each in schemes)


def _texts(profile: BuildProfileSpec) -> str:
    """All that drives the compiler."""
    commands = [argument for step in profile.steps for argument in (*step.command, *step.args)]
    values = [f"{each.name}={each.value}" for step in profile.steps for each in step.env]
    flags = [f"{flag.name}={flag.value}" for flag in profile.flags]
    others = [*(profile.check.command if profile.check else ()), *(profile.probe.command if profile.probe else ())]
    template = [profile.config_template.content] if profile.config_template else []
    return "\n".join([*commands, *values, *flags, *others, *template])


def failed_by_its_source(artifact: Object) -> str:
    """What a shared artifact failed with for good that its source may be to blame for; empty where it did not.

    A source can also be so slow that the time was over when it was the compiler's turn.
    """
    ended = _ended(artifact)
    if not ended.get("final") or is_deleting(artifact):
        return ""
    if ended.get("container") in (FETCH, FETCH_CONFIG) or ended.get("outcome") == Reason.BUILD_TIMED_OUT:
        return str(ended.get("message", ""))
    return ""


def seconds_to_replacement(artifact: Object, now: datetime) -> float:
    """Seconds until an artifact that failed by its source makes room for one that is built from another.

    Until then those who named the source have seen it, and do not ask for the same again.
    """
    conditions = (artifact.get("status") or {}).get("conditions") or []
    since = next((moment_of(each.get("lastTransitionTime")) for each in conditions if each["type"] == "Stalled"), None)
    return 0.0 if since is None else max(0.0, GRACE_SECONDS - (now - since).total_seconds())


def does_not_answer(artifact: Object) -> bool:
    """True if an artifact's source was asked for several times and still does not answer."""
    ended = _ended(artifact)
    fetching = ended.get("container") in (FETCH, FETCH_CONFIG)
    return fetching and not ended.get("final") and int(ended.get("attempt") or 0) >= PATIENCE


def same_source(one: BuildArtifactSpec, other: BuildArtifactSpec) -> bool:
    """True if both are built from the same place."""
    return (one.model.source, one.model.revision) == (other.model.source, other.model.revision)


def _ended(artifact: Object) -> Object:
    return (artifact.get("status") or {}).get("ended") or {}
