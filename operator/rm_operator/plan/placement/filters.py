"""What removes an accelerator from the candidates, each check alone; a sentence says why, and what to change.

``WANTED`` is about the accelerator as such, ``within_objectives`` about its estimate, ``AVAILABLE`` about what there is
of it now. Which BuildProfile serves on it, and whether the model fits, is in ``ways``.
"""

from collections.abc import Callable, Sequence

from rm_api.accelerator_types import AcceleratorType
from rm_api.kinds.accelerator_resource import ProvisioningMode
from rm_api.runtimes import EngineOption, facts_of
from rm_api.tasks import FEATURE_EMBEDDINGS

from rm_operator.plan import compatibility
from rm_operator.plan.buckets import Group
from rm_operator.plan.device_class import requested_resource
from rm_operator.plan.placement.estimate import Estimate
from rm_operator.plan.placement.question import Cause, Question, Removed, admits, listing
from rm_operator.plan.placement.request import AcceleratorView, ProfileView
from rm_operator.plan.placement.ways import BATCH_ADVICE, LENGTH_ADVICE
from rm_operator.plan.remote_code import trusted

_MOST_NAMED = 8
Check = Callable[[Question, AcceleratorView], None]
Available = Callable[[Question, AcceleratorView, Group], None]


def allowed_type(question: Question, accelerator: AcceleratorView) -> None:
    """Removes types that ``spec.accelerators.types`` does not list."""
    _require_listed("type", accelerator.spec.type, "types", question.spec.accelerators.types)


def allowed_vendor(question: Question, accelerator: AcceleratorView) -> None:
    """Removes vendors that ``spec.accelerators.vendors`` does not list."""
    _require_listed("vendor", accelerator.spec.vendor, "vendors", question.spec.accelerators.vendors)


def allowed_name(question: Question, accelerator: AcceleratorView) -> None:
    """Removes accelerators that ``spec.accelerators.names`` does not list."""
    _require_listed("name", accelerator.name, "names", question.spec.accelerators.names)


def required_tags(question: Question, accelerator: AcceleratorView) -> None:
    """Removes what lacks one of ``spec.accelerators.tags``."""
    wanted = question.spec.accelerators.tags
    if wanted and (lacking := sorted(set(wanted) - set(accelerator.spec.tags))):
        raise Removed(Cause.EXCLUDED, f"it lacks the tags {', '.join(lacking)} of spec.accelerators.tags")


def not_excluded(question: Question, accelerator: AcceleratorView) -> None:
    """Removes what ``spec.accelerators.exclude`` lists."""
    if accelerator.name in question.spec.accelerators.exclude:
        raise Removed(Cause.EXCLUDED, "spec.accelerators.exclude lists it")


def allowed_namespace(question: Question, accelerator: AcceleratorView) -> None:
    """Removes what the deployment's namespace may not use. Endpoints are for those only that are named."""
    allowed, namespace = accelerator.spec.allowed_namespaces, question.request.namespace
    if namespace in allowed or (not allowed and accelerator.spec.type is not AcceleratorType.REMOTE):
        return
    raise Removed(
        Cause.EXCLUDED,
        f"namespace {namespace} may not use it; whoever administers it can add the namespace to its "
        f"spec.allowedNamespaces ({listing(allowed)})",
    )


def allowed_code(question: Question, accelerator: AcceleratorView) -> None:
    """Removes what may not run the code that comes with the model, unless it is known to serve the model without."""
    facts, runtime = question.facts, accelerator.spec.runtime
    if not facts.remote_code or accelerator.spec.type is AcceleratorType.REMOTE:
        return
    assert runtime is not None
    known = accelerator.spec.capability.architectures or _known(runtime.plugin, embeds=facts.embeds)
    if not question.spec.runtime.trust_remote_code:
        if facts.architecture in known:
            return
        raise Removed(
            Cause.CODE,
            f"the model brings code of its own, and it is not known to serve {facts.architecture} without that; set "
            "spec.runtime.trustRemoteCode to have the code run, where its owner allows it; an owner whose engine needs "
            "no such code lists the architecture in capability.architectures",
        )
    if not runtime.allow_remote_code:
        raise Removed(
            Cause.CODE,
            "it does not allow code that comes with a model; whoever administers it can set its "
            "spec.runtime.allowRemoteCode",
        )
    if facts.remote_code_digest is None:
        raise Removed(
            Cause.CODE,
            "the model's code cannot be pinned, as not all of it is among the files that its source lists; copy it "
            "there",
        )
    # Of a command the owner, who allows it, says whether the engine runs the code; a plugin has to be told.
    if runtime.command is None and EngineOption.REMOTE_CODE not in facts_of(runtime.plugin).options:
        raise Removed(
            Cause.CODE,
            f"its runtime plugin {runtime.plugin} cannot be told spec.runtime.{EngineOption.REMOTE_CODE}; use an "
            "accelerator whose engine can",
        )


def served_architecture(question: Question, accelerator: AcceleratorView) -> None:
    """Removes what does not serve the model: as the accelerator says, or else as its runtime plugin is known to."""
    stated, plugin = accelerator.spec.capability.architectures, accelerator.spec.plugin
    architecture = question.facts.architecture
    if accelerator.spec.type is AcceleratorType.REMOTE:
        return  # its endpoint lists models, and not what they are made like
    if stated:
        if architecture not in stated:
            raise Removed(Cause.REFUSED, f"its capability.architectures lack {architecture}; it serves {_some(stated)}")
    elif trusted(question.spec, accelerator.spec, question.facts) is None and not admits(
        _known(plugin, embeds=question.facts.embeds), architecture
    ):
        raise Removed(
            Cause.REFUSED,
            f"{plugin} does not serve {architecture}; where its image does, list what it serves in "
            "capability.architectures",
        )


def _known(plugin: str | None, *, embeds: bool) -> tuple[str, ...]:
    facts = facts_of(plugin)
    return (*facts.architectures, *facts.embedding_architectures) if embeds else facts.architectures


def served_task(question: Question, accelerator: AcceleratorView) -> None:
    """Removes what computes no embeddings, where the model does nothing else."""
    spec = accelerator.spec
    if not question.facts.embeds:
        return
    if FEATURE_EMBEDDINGS not in (spec.capability.features or facts_of(spec.plugin).features):
        raise Removed(
            Cause.UNFIT,
            f"the model computes embeddings, and its capability.features lack {FEATURE_EMBEDDINGS}; list it where its "
            "engine serves /v1/embeddings",
        )


def served_options(question: Question, accelerator: AcceleratorView) -> None:
    """Removes what cannot be told an option of ``spec.runtime``."""
    if question.spec.runtime.prefix_caching is None:
        return
    plugin = accelerator.spec.plugin
    if EngineOption.PREFIX_CACHING not in facts_of(plugin).options:
        raise Removed(
            Cause.UNFIT,
            f"{_engine(accelerator)} cannot be told spec.runtime.{EngineOption.PREFIX_CACHING}; leave that out",
        )


def _engine(accelerator: AcceleratorView) -> str:
    plugin = accelerator.spec.plugin
    if plugin:
        return f"its runtime plugin {plugin}"
    return "its endpoint" if accelerator.spec.type is AcceleratorType.REMOTE else "its runtime.command"


def required_features(question: Question, accelerator: AcceleratorView) -> None:
    """Removes what lacks one of ``spec.requirements.features``."""
    wanted, spec = question.spec.requirements.features, accelerator.spec
    known = spec.capability.features or facts_of(spec.plugin).features
    if wanted and (lacking := sorted(set(wanted) - set(known))):
        raise Removed(Cause.UNFIT, f"its capability.features lack {', '.join(lacking)} of spec.requirements.features")


def possible_sequence(question: Question, accelerator: AcceleratorView) -> None:
    """Removes what takes shorter sequences only; and everything, if the model itself takes no such length."""
    needed, own = question.shape.sequence, question.facts.max_sequence_length
    limit = accelerator.spec.capability.max_sequence_length
    if needed > own:
        raise Removed(
            Cause.UNFIT, f"the model takes at most {own} tokens, {needed} are required; lower maxSequenceLength"
        )
    if limit is not None and needed > limit:
        raise Removed(
            Cause.UNFIT, f"it takes sequences of at most {limit} tokens, {needed} are needed; {LENGTH_ADVICE}"
        )


def possible_batch(question: Question, accelerator: AcceleratorView) -> None:
    """Removes what takes smaller batches only."""
    needed, limit = question.shape.batch, accelerator.spec.capability.max_batch_size
    if limit is not None and needed > limit:
        raise Removed(Cause.UNFIT, f"it takes batches of at most {limit}, {needed} are needed; {BATCH_ADVICE}")


def within_objectives(question: Question, estimate: Estimate) -> None:
    """Removes what ``spec.slo`` rules out. What is not known is not ruled out; it ranks last anyway."""
    slo = question.spec.slo
    for what, seconds, most, member in (
        ("time to the first token", estimate.ttft, slo.ttft_ms, "ttftMs"),
        ("time per token", estimate.tpot, slo.tpot_ms, "tpotMs"),
    ):
        if most is not None and seconds is not None and seconds * 1e3 > most:
            raise Removed(
                Cause.SLO,
                f"its estimated {what} is {seconds * 1e3:.4g} ms, spec.slo.{member} allows {most}; "
                "raise it, or lower spec.workload",
            )


def ready(question: Question, accelerator: AcceleratorView, _: Group) -> None:
    """Removes what cannot take a new deployment; one that is there already stays."""
    if not accelerator.ready and accelerator.name != question.request.current:
        raise Removed(
            Cause.CAPACITY, f"it is not ready: {accelerator.reason}" if accelerator.reason else "it is not ready"
        )


def has_device(question: Question, accelerator: AcceleratorView, group: Group) -> None:
    """Removes what has no device to give, or too few for a replica.

    A deployment keeps its place unless others have taken every device of it.
    """
    what, provisioning = requested_resource(accelerator.spec) or "it", accelerator.spec.provisioning
    elastic = provisioning.mode is ProvisioningMode.ELASTIC
    if accelerator.name == question.request.current:
        if accelerator.taken and question.replicas:
            raise Removed(
                Cause.CAPACITY, f"other pods hold every device of {what}, and none is left for this deployment"
            )
        return
    if accelerator.nodes == 0 and not elastic:
        raise Removed(Cause.CAPACITY, f"no node has {what}; add one, or correct its nodeSelector")
    if accelerator.healthy is not None and accelerator.healthy <= 0 and not elastic:
        raise Removed(Cause.CAPACITY, f"no device of {what} is healthy; look at its device plugin and nodes")
    free, needed = accelerator.free, group.devices
    if free is not None and free <= 0 and question.replicas:
        if elastic:
            raise Removed(
                Cause.CAPACITY,
                f"the {provisioning.max_devices} devices of {what} that spec.provisioning.maxDevices allows are taken "
                "or promised",
            )
        raise Removed(Cause.CAPACITY, f"no device of {what} is free; add one, or release one of those that are taken")
    if needed == 1 or not question.replicas:
        return
    if free is not None and free < needed:
        raise Removed(
            Cause.CAPACITY, f"{free} devices of {what} are free, a replica needs {needed}; add some, or release others"
        )
    if accelerator.roomiest is not None and accelerator.roomiest < needed and not elastic:
        raise Removed(
            Cause.CAPACITY,
            f"no node has {needed} free devices of {what}, which a replica needs on one node ({accelerator.roomiest} "
            "at most); release others of one node",
        )


def fitting_version(accelerator: AcceleratorView, profile: ProfileView | None) -> None:
    """Removes what has no node with a version that the profile builds for."""
    if profile is None:
        return
    wanted, versions = profile.spec.compatibility, accelerator.versions
    if not versions and not wanted.one_artifact_per:
        return
    if compatibility.matching(wanted, versions):
        return
    if not versions:
        raise Removed(
            Cause.CAPACITY,
            f"its nodes do not say which versions they have, for each of which BuildProfile {profile.name} makes "
            "an artifact",
        )
    raise Removed(
        Cause.UNFIT,
        f"BuildProfile {profile.name} builds for {compatibility.wanted(wanted)}; "
        f"its nodes have {compatibility.said(versions)}",
    )


SELECTED: tuple[Check, ...] = (
    allowed_type,
    allowed_vendor,
    allowed_name,
    required_tags,
    not_excluded,
)
"""What the deployment says."""
WANTED: tuple[Check, ...] = (
    # First: nobody wants to read about the features of what they excluded.
    *SELECTED,
    allowed_namespace,
    allowed_code,
    served_task,
    served_architecture,
    served_options,
    required_features,
    possible_sequence,
    possible_batch,
)
# What may pass by itself comes last, so that whoever reads it knows that nothing else is in the way.
AVAILABLE: tuple[Available, ...] = (ready, has_device)


def _some(values: Sequence[str]) -> str:
    """The first of them, in a sentence that has to stay short."""
    ordered = sorted(values)
    return ", ".join(ordered[:_MOST_NAMED]) + (
        f" and {len(ordered) - _MOST_NAMED} more" if values[_MOST_NAMED:] else ""
    )


def _require_listed(what: str, value: str, member: str, listed: Sequence[str]) -> None:
    if listed and not admits(listed, value):
        raise Removed(Cause.EXCLUDED, f"its {what} {value} is not among spec.accelerators.{member} ({listing(listed)})")
