"""What removes an accelerator from the candidates, each check alone, in the order of ``FILTERS``.

A filter gets the ways in which a model could be served on an accelerator and returns those that remain. It raises
``Removed`` with one sentence, which says what to change, if none does.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from rm_api.dtypes import DType
from rm_api.kinds.accelerator_resource import AcceleratorResourceSpec
from rm_api.kinds.build_profile import BuildProfileSpec
from rm_api.kinds.model_deployment import AcceleratorSelector

from rm_operator.plan.buckets import Shape, required_shape, round_up
from rm_operator.plan.placement.estimate import GIB, USABLE_MEMORY, memory_limit, memory_of
from rm_operator.plan.placement.request import AcceleratorView, PlacementRequest, ProfileView


class Removed(Exception):
    """The accelerator is out; the argument is the sentence that says why."""


@dataclass(frozen=True)
class Option:
    """One way to serve the model on an accelerator."""

    profile: ProfileView
    dtype: DType
    sequence: int | None = None
    """Compiled length in tokens; None where it is not compiled in."""
    batch: int | None = None
    """Compiled batch; None where it is not compiled in."""


@dataclass(frozen=True)
class Trial:
    """An accelerator under examination, and the ways that are left."""

    request: PlacementRequest
    shape: Shape
    accelerator: AcceleratorView
    options: tuple[Option, ...] = ()

    @property
    def spec(self) -> AcceleratorResourceSpec:
        """The accelerator's spec."""
        return self.accelerator.spec

    @property
    def selector(self) -> AcceleratorSelector:
        """What the deployment says of accelerators."""
        return self.request.spec.accelerators

    @property
    def profiles(self) -> tuple[BuildProfileSpec, ...]:
        """The profiles that are left."""
        return tuple(option.profile.spec for option in self.options)


def allowed_type(trial: Trial) -> Trial:
    """Removes types that ``spec.accelerators.types`` does not list."""
    _require_listed("type", trial.spec.type, "types", trial.selector.types)
    return trial


def allowed_vendor(trial: Trial) -> Trial:
    """Removes vendors that ``spec.accelerators.vendors`` does not list."""
    _require_listed("vendor", trial.spec.vendor, "vendors", trial.selector.vendors)
    return trial


def allowed_name(trial: Trial) -> Trial:
    """Removes accelerators that ``spec.accelerators.names`` does not list."""
    _require_listed("name", trial.accelerator.name, "names", trial.selector.names)
    return trial


def required_tags(trial: Trial) -> Trial:
    """Removes what lacks one of ``spec.accelerators.tags``."""
    lacking = sorted(set(trial.selector.tags) - set(trial.spec.tags))
    if lacking:
        raise Removed(f"it lacks the tags {', '.join(lacking)} of spec.accelerators.tags")
    return trial


def not_excluded(trial: Trial) -> Trial:
    """Removes what ``spec.accelerators.exclude`` lists."""
    if trial.accelerator.name in trial.selector.exclude:
        raise Removed("spec.accelerators.exclude lists it")
    return trial


def has_profile(trial: Trial) -> Trial:
    """Finds the BuildProfiles for the target; removes an accelerator that nothing compiles for."""
    spec, pinned, dtype = trial.spec, trial.request.spec.build_profile, _wanted(trial)
    known = [p for p in trial.request.profiles if pinned is None or p.name == pinned]
    if not known and pinned is not None:
        raise Removed(f"the BuildProfile {pinned} does not exist; create it, or change spec.buildProfile")
    options = tuple(Option(p, dtype) for p in known if _targets(p.spec, spec))
    if not options and pinned is not None:
        raise Removed(f"the BuildProfile {pinned}, which spec.buildProfile names, is for another target")
    if not options:
        raise Removed(f"no BuildProfile targets {spec.type} {spec.vendor} {spec.product}; install one")
    return replace(trial, options=options)


def supported_architecture(trial: Trial) -> Trial:
    """Removes an accelerator none of whose profiles compiles the model's architecture."""
    architecture = trial.request.facts.architecture

    def settle(option: Option) -> Option | None:
        listed = option.profile.spec.supports.architectures
        return option if _admits(listed, architecture) else None

    def sentence() -> str:
        listed = {name for profile in trial.profiles for name in profile.supports.architectures}
        return f"no BuildProfile for it compiles {architecture}; they compile {_list(listed)}"

    return _keep(trial, settle, sentence)


def supported_dtype(trial: Trial) -> Trial:
    """Settles the number format: what is required, else the model's own, else the first plain float that is supported.

    Nothing is ever quantised that nobody asked to quantise.
    """
    computed = trial.spec.capability.dtypes
    required, wanted = trial.request.spec.requirements.dtype, _wanted(trial)

    def compiled(option: Option) -> list[DType]:
        return option.profile.spec.supports.dtypes

    def settle(option: Option) -> Option | None:
        if _admits(compiled(option), wanted) and _admits(computed, wanted):
            return option
        plain = [d for d in compiled(option) or computed if d in _PLAIN_FLOATS and _admits(computed, d)]
        return replace(option, dtype=plain[0]) if plain and required is None else None

    def sentence() -> str:
        possible = {d for o in trial.options for d in DType if _admits(computed, d) and _admits(compiled(o), d)}
        whose = f"{wanted} of spec.requirements.dtype" if required is not None else f"{wanted} of the model"
        advice = f"set spec.requirements.dtype to one of {_list(possible)}" if possible else "no dtype suits both"
        return f"it and its BuildProfiles do not take the {whose}; {advice}"

    return _keep(trial, settle, sentence)


def fitting_sequence(trial: Trial) -> Trial:
    """Rounds the length up to a compiled one; removes what is made for shorter ones."""
    needed, limit = trial.shape.sequence, trial.spec.capability.max_sequence_length
    own = trial.request.facts.max_sequence_length
    if needed > own:
        raise Removed(f"the model takes at most {own} tokens, {needed} are required; lower maxSequenceLength")
    advice = "lower spec.requirements.maxSequenceLength or the tokens of spec.workload"
    if limit is not None and needed > limit:
        raise Removed(f"it takes sequences of at most {limit} tokens, {needed} are needed; {advice}")

    def settle(option: Option) -> Option | None:
        buckets = option.profile.spec.shapes.sequence
        found = round_up(needed, buckets, limit)
        return option if not buckets else replace(option, sequence=found) if found is not None else None

    def sentence() -> str:
        compiled = {b for p in trial.profiles for b in p.shapes.sequence if limit is None or b <= limit}
        return f"its BuildProfiles compile sequences of {_list(compiled)} tokens, {needed} are needed; {advice}"

    return _keep(trial, settle, sentence)


def fitting_batch(trial: Trial) -> Trial:
    """Rounds the batch up to a compiled one; removes what is made for smaller ones."""
    needed, limit = trial.shape.batch, trial.spec.capability.max_batch_size
    advice = "lower spec.requirements.maxBatchSize or spec.workload.concurrency"
    if limit is not None and needed > limit:
        raise Removed(f"it takes batches of at most {limit}, {needed} are needed; {advice}")

    def settle(option: Option) -> Option | None:
        buckets = option.profile.spec.shapes.batch
        found = round_up(needed, buckets, limit)
        return option if not buckets else replace(option, batch=found) if found is not None else None

    def sentence() -> str:
        compiled = {b for p in trial.profiles for b in p.shapes.batch if limit is None or b <= limit}
        return f"its BuildProfiles compile batches of {_list(compiled)}, {needed} are needed; {advice}"

    return _keep(trial, settle, sentence)


def usable_profile(trial: Trial) -> Trial:
    """Removes an accelerator whose remaining profiles are all broken."""

    def settle(option: Option) -> Option | None:
        return option if option.profile.usable else None

    def sentence() -> str:
        broken = sorted(": ".join(filter(None, (p.name, p.reason))) for p in (o.profile for o in trial.options))
        return f"no BuildProfile for it is usable ({'; '.join(broken)})"

    return _keep(trial, settle, sentence)


def fitting_memory(trial: Trial) -> Trial:
    """Removes a device whose memory is too small. Memory that is not declared is taken to suffice."""
    limit = memory_limit(trial.spec)
    if limit is None:
        return trial
    request = trial.request
    needs = {
        dtype: memory_of(request.facts, dtype, request.spec.workload, trial.shape)
        for dtype in {option.dtype for option in trial.options}
    }

    def sentence() -> str:
        least = min(needs.values(), key=lambda memory: memory.total)
        return (
            f"the model needs {_gib(least.total)} GiB (weights {_gib(least.weights)}, KV cache {_gib(least.kv_cache)}, "
            f"reserve {_gib(least.reserve)}), {_gib(limit)} GiB may be used ({USABLE_MEMORY:g} of the device's); "
            "lower spec.requirements.maxBatchSize, spec.workload or spec.requirements.dtype"
        )

    return _keep(trial, lambda option: option if needs[option.dtype].total <= limit else None, sentence)


def ready(trial: Trial) -> Trial:
    """Removes what cannot take a new deployment; one that is there already stays."""
    accelerator = trial.accelerator
    if not accelerator.ready and accelerator.name != trial.request.current:
        raise Removed(f"it is not ready: {accelerator.reason}" if accelerator.reason else "it is not ready")
    return trial


def has_device(trial: Trial) -> Trial:
    """Removes what has no free device; a deployment that is there already holds its own, and stays."""
    accelerator, what = trial.accelerator, trial.spec.resource_name or "it"
    if accelerator.name == trial.request.current:
        return trial
    if accelerator.nodes == 0:
        raise Removed(f"no node has {what}; add one, or correct its nodeSelector")
    if accelerator.healthy is not None and accelerator.healthy <= 0:
        raise Removed(f"no device of {what} is healthy; look at its device plugin and nodes")
    if accelerator.free is not None and accelerator.free <= 0:
        raise Removed(f"no device of {what} is free; add one, or release one of those that are taken")
    return trial


FILTERS: tuple[Callable[[Trial], Trial], ...] = (
    # What the deployment says, first: nobody wants to read about the memory of what they excluded.
    allowed_type,
    allowed_vendor,
    allowed_name,
    required_tags,
    not_excluded,
    # Is there a way to compile for it at all?
    has_profile,
    # Which of these ways take the model, and in which number format?
    supported_architecture,
    supported_dtype,
    # Which shapes are compiled? These settle the buckets, so they come before everything that counts bytes.
    fitting_sequence,
    fitting_batch,
    # A broken profile is named only if it would have been used.
    usable_profile,
    # Needs the number format.
    fitting_memory,
    # What may pass by itself comes last, so that whoever reads it knows that nothing else is in the way.
    ready,
    has_device,
)


def examine(request: PlacementRequest, accelerator: AcceleratorView) -> Option:
    """The way in which ``accelerator`` would serve the model: of all that fit, the profile of the highest priority.

    Raises ``Removed`` where there is none.
    """
    trial = Trial(request, required_shape(request.spec, request.facts), accelerator)
    for check in FILTERS:
        trial = check(trial)
    return min(trial.options, key=lambda o: (-o.profile.spec.priority, o.profile.name))


_PLAIN_FLOATS = frozenset({DType.FP32, DType.FP16, DType.BF16})


def _wanted(trial: Trial) -> DType:
    return trial.request.spec.requirements.dtype or trial.request.facts.dtype


def _targets(profile: BuildProfileSpec, spec: AcceleratorResourceSpec) -> bool:
    target = profile.target
    return (target.type, target.vendor) == (spec.type, spec.vendor) and _admits(target.products, spec.product)


def _admits(listed: Sequence[str], value: str) -> bool:
    """An empty list admits everything."""
    return not listed or value in listed


def _require_listed(what: str, value: str, member: str, listed: Sequence[str]) -> None:
    if not _admits(listed, value):
        raise Removed(f"its {what} {value} is not among spec.accelerators.{member} ({_list(listed)})")


def _keep(trial: Trial, settle: Callable[[Option], Option | None], sentence: Callable[[], str]) -> Trial:
    left = tuple(settled for option in trial.options if (settled := settle(option)) is not None)
    if not left:
        raise Removed(sentence())
    return replace(trial, options=left)


def _list(values: Iterable[str | int]) -> str:
    ordered = sorted(set(values), key=lambda value: (value, "") if isinstance(value, int) else (0, value))
    return ", ".join(str(value) for value in ordered) or "none"


def _gib(amount: float) -> str:
    return f"{amount / GIB:.2f}"
