"""In which ways an accelerator can serve a model: a BuildProfile, a number format, compiled shapes, and devices.

The profiles are tried from the preferred one on, and the first that passes every step is the way. If none passes, those
that came furthest say why. Before all others are preferred those whose result the engine is known to serve.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rm_api.accelerator_types import AcceleratorType
from rm_api.dtypes import DType
from rm_api.runtimes import facts_of, plugins_serving, serves
from rm_api.tasks import ModelTask

from rm_operator.plan.buckets import ONE_DEVICE, Group, chunk_of, round_up
from rm_operator.plan.placement import groups
from rm_operator.plan.placement.estimate import Work, estimate
from rm_operator.plan.placement.groups import ONLY_ONE, Groups
from rm_operator.plan.placement.machine import GIB, USABLE_MEMORY, Machine, machine_of
from rm_operator.plan.placement.question import Cause, Question, Removed, admits, listing
from rm_operator.plan.placement.request import AcceleratorView, ProfileView

LENGTH_ADVICE = "lower spec.requirements.maxSequenceLength or the tokens of spec.workload"
BATCH_ADVICE = "lower spec.requirements.maxBatchSize or spec.workload.concurrency"


class Way(NamedTuple):
    """How the model would be served."""

    profile: ProfileView | None
    """None where nothing is compiled: the endpoint serves the model itself."""
    dtype: DType
    sequence: int | None = None
    """Compiled length in tokens; None where it is not compiled in."""
    batch: int | None = None
    """Compiled batch; None where it is not compiled in."""
    prefill_chunk: int | None = None
    """Tokens of a prompt in one pass; None where that is not compiled in."""
    group: Group = ONE_DEVICE
    """The devices of one replica."""

    def is_doubtful(self, accelerator: AcceleratorView) -> bool:
        """True if the accelerator's engine is not known to serve what the profile makes, nor known not to."""
        return self.profile is not None and _serves(accelerator, self.profile) is None


class _Try(NamedTuple):
    """A way that is not settled yet."""

    profile: ProfileView
    dtype: DType
    sequence: int | None = None
    batch: int | None = None
    prefill_chunk: int | None = None
    group: Group = ONE_DEVICE
    groups: Groups = ONLY_ONE
    """What ``group`` is chosen from."""


class _Step(NamedTuple):
    """Settles one aspect of a way, or ends it (None); ``sentence`` says why all of them ended here."""

    settle: Callable[[Question, AcceleratorView, _Try], _Try | None]
    sentence: Callable[[Question, AcceleratorView, Sequence[_Try]], str]
    cause: Cause = Cause.UNFIT


def best_way(question: Question, accelerator: AcceleratorView) -> Way:
    """Of all ways that work the one with the profile of the highest priority, then the first name.

    One whose result the engine is not known to serve comes after all others. Raises ``Removed`` where there is none.
    """
    if accelerator.spec.type is AcceleratorType.REMOTE:
        return _ask_the_endpoint(question, accelerator)
    furthest, ended = 0, list[_Try]()
    for profile in _profiles(question, accelerator):
        chunk = chunk_of(question.spec.workload.input_tokens, profile.spec.shapes.prefill_chunk)
        attempt = _Try(profile, question.dtype, prefill_chunk=chunk)
        for stage, step in enumerate(_STEPS):
            settled = step.settle(question, accelerator, attempt)
            if settled is None:
                if stage > furthest:
                    furthest, ended = stage, []
                if stage == furthest:
                    ended.append(attempt)
                break
            attempt = settled
        else:
            return Way(*attempt[:-1])
    last = _STEPS[furthest]
    raise Removed(last.cause, last.sentence(question, accelerator, ended))


def _ask_the_endpoint(question: Question, accelerator: AcceleratorView) -> Way:
    remote, source = accelerator.spec.remote, question.spec.model.source
    if question.spec.build_profile is not None:
        raise Removed(Cause.UNFIT, "nothing is compiled for an endpoint; remove spec.buildProfile")
    if remote is None:
        raise Removed(Cause.UNFIT, "its spec.remote names no endpoint")
    served = [model.source for model in remote.models]
    if source not in served:
        raise Removed(Cause.UNFIT, f"the endpoint does not serve {source}; it serves {listing(served)}")
    most, wanted = remote.max_concurrency, question.spec.workload.concurrency
    if most is not None and wanted > most:
        raise Removed(
            Cause.UNFIT,
            f"the endpoint takes {most} requests at the same time, {wanted} are needed; "
            "lower spec.workload.concurrency",
        )
    return Way(None, question.dtype)


def _profiles(question: Question, accelerator: AcceleratorView) -> Sequence[ProfileView]:
    spec, pinned = accelerator.spec, question.spec.build_profile
    found = [
        view
        for view in question.profiles_for(spec.type, spec.vendor)
        if admits(view.spec.target.products, spec.product) and pinned in (None, view.name)
    ]
    if found:
        return sorted(found, key=lambda view: _serves(accelerator, view) is None) if len(found) > 1 else found
    if pinned is None:
        sentence = f"no BuildProfile targets {spec.type} {spec.vendor} {spec.product}; install one"
    elif any(view.name == pinned for view in question.request.profiles):
        sentence = f"the BuildProfile {pinned}, which spec.buildProfile names, is for another target"
    else:
        sentence = f"the BuildProfile {pinned} does not exist; create it, or change spec.buildProfile"
    raise Removed(Cause.UNFIT, sentence)


def _serves(accelerator: AcceleratorView, profile: ProfileView) -> bool | None:
    return serves(accelerator.spec.plugin, profile.spec.output.format)


def _served(_: Question, accelerator: AcceleratorView, attempt: _Try) -> _Try | None:
    return None if _serves(accelerator, attempt.profile) is False else attempt


def _not_served(question: Question, accelerator: AcceleratorView, ended: Sequence[_Try]) -> str:
    plugin, pinned = accelerator.spec.plugin, question.spec.build_profile
    formats = {each.profile.spec.output.format for each in ended}
    engines = {engine for each in formats for engine in plugins_serving(each)}
    makes, instead = "its BuildProfiles make", "install one for it"
    if pinned is not None:
        makes = f"the BuildProfile {pinned} that spec.buildProfile names makes"
        instead = "remove that, name one"
    return (
        f"its runtime plugin {plugin} does not serve {listing(formats)}, which {makes}; {instead} whose "
        f"spec.output.format is one of {listing(facts_of(plugin).formats)}, or use an accelerator with the plugin "
        f"{listing(engines)}"
    )


def _task(question: Question, _: AcceleratorView, attempt: _Try) -> _Try | None:
    tasks = attempt.profile.spec.supports.tasks or (ModelTask.GENERATE,)
    return attempt if (question.facts.task or ModelTask.GENERATE) in tasks else None


def _no_task(question: Question, _: AcceleratorView, ended: Sequence[_Try]) -> str:
    if question.facts.embeds:
        return "no BuildProfile for it compiles models that embed; install one whose spec.supports.tasks names Embed"
    return "its BuildProfiles compile models that embed only, and this one generates text"


def _architecture(question: Question, _: AcceleratorView, attempt: _Try) -> _Try | None:
    return attempt if admits(attempt.profile.spec.supports.architectures, question.facts.architecture) else None


def _no_architecture(question: Question, _: AcceleratorView, ended: Sequence[_Try]) -> str:
    compiled = {name for each in ended for name in each.profile.spec.supports.architectures}
    return f"no BuildProfile for it compiles {question.facts.architecture}; they compile {listing(compiled)}"


def _computed(accelerator: AcceleratorView) -> Sequence[DType]:
    """Number formats of the accelerator; where it does not say, those that its runtime plugin is known to take."""
    spec = accelerator.spec
    return spec.capability.dtypes or facts_of(spec.plugin).dtypes


def _number_format(question: Question, accelerator: AcceleratorView, attempt: _Try) -> _Try | None:
    """What is required, else the model's own, else the first plain float that is supported.

    Nothing is ever quantised that nobody asked to quantise.
    """
    compiled, computed = attempt.profile.spec.supports.dtypes, _computed(accelerator)
    wanted = question.dtype
    if admits(compiled, wanted) and admits(computed, wanted):
        return attempt
    if question.spec.requirements.dtype is not None:
        return None
    plain = (dtype for dtype in compiled or computed if dtype in _PLAIN_FLOATS and admits(computed, dtype))
    dtype = next(plain, None)
    return None if dtype is None else attempt._replace(dtype=dtype)


def _no_number_format(question: Question, accelerator: AcceleratorView, ended: Sequence[_Try]) -> str:
    computed, wanted = _computed(accelerator), question.dtype
    possible = {
        dtype
        for each in ended
        for dtype in DType
        if admits(computed, dtype) and admits(each.profile.spec.supports.dtypes, dtype)
    }
    required = question.spec.requirements.dtype is not None
    whose = f"{wanted} of spec.requirements.dtype" if required else f"{wanted} of the model"
    advice = f"set spec.requirements.dtype to one of {listing(possible)}" if possible else "no dtype suits both"
    return f"it and its BuildProfiles do not take the {whose}; {advice}"


def _sequence(question: Question, accelerator: AcceleratorView, attempt: _Try) -> _Try | None:
    buckets = attempt.profile.spec.shapes.sequence
    if not buckets:
        return attempt
    found = round_up(question.shape.sequence, buckets, accelerator.spec.capability.max_sequence_length)
    # No compiler makes more of a model than it was made for.
    return None if found is None else attempt._replace(sequence=min(found, question.facts.max_sequence_length))


def _no_sequence(question: Question, accelerator: AcceleratorView, ended: Sequence[_Try]) -> str:
    limit = accelerator.spec.capability.max_sequence_length
    compiled = {
        bucket for each in ended for bucket in each.profile.spec.shapes.sequence if limit is None or bucket <= limit
    }
    return (
        f"its BuildProfiles compile sequences of {listing(compiled)} tokens, {question.shape.sequence} are needed; "
        f"{LENGTH_ADVICE}"
    )


def _batch(question: Question, accelerator: AcceleratorView, attempt: _Try) -> _Try | None:
    buckets = attempt.profile.spec.shapes.batch
    if not buckets:
        return attempt
    found = round_up(question.shape.batch, buckets, accelerator.spec.capability.max_batch_size)
    return None if found is None else attempt._replace(batch=found)


def _no_batch(question: Question, accelerator: AcceleratorView, ended: Sequence[_Try]) -> str:
    limit = accelerator.spec.capability.max_batch_size
    compiled = {
        bucket for each in ended for bucket in each.profile.spec.shapes.batch if limit is None or bucket <= limit
    }
    return (
        f"its BuildProfiles compile batches of {listing(compiled)}, {question.shape.batch} are needed; {BATCH_ADVICE}"
    )


def _usable(_: Question, __: AcceleratorView, attempt: _Try) -> _Try | None:
    return attempt if attempt.profile.usable or attempt.profile.awaited else None


def _none_usable(_: Question, __: AcceleratorView, ended: Sequence[_Try]) -> str:
    broken = sorted(": ".join(filter(None, (each.profile.name, each.profile.reason))) for each in ended)
    return f"no BuildProfile for it is usable ({'; '.join(broken)})"


def _taken(question: Question, _: AcceleratorView, attempt: _Try) -> _Try | None:
    return None if attempt.profile.name in dict(question.request.refused) else attempt


def _none_taken(question: Question, _: AcceleratorView, ended: Sequence[_Try]) -> str:
    said = dict(question.request.refused)
    names = sorted(each.profile.name for each in ended)
    return "the compiler does not take the model: " + "; ".join(f"BuildProfile {name}: {said[name]}" for name in names)


def _divided(question: Question, accelerator: AcceleratorView, attempt: _Try) -> _Try | None:
    found = groups.of(question, accelerator, attempt.profile)
    if found is ONLY_ONE:
        return attempt
    return attempt._replace(groups=found) if found.divisible else None


def _not_divided(question: Question, accelerator: AcceleratorView, ended: Sequence[_Try]) -> str:
    return groups.not_divisible(question, [groups.of(question, accelerator, each.profile) for each in ended])


def _linked(_: Question, __: AcceleratorView, attempt: _Try) -> _Try | None:
    return attempt if attempt.groups.linked else None


def _not_linked(_: Question, accelerator: AcceleratorView, ended: Sequence[_Try]) -> str:
    return groups.not_linked(accelerator, [each.groups for each in ended])


def _on_one_node(_: Question, __: AcceleratorView, attempt: _Try) -> _Try | None:
    return attempt if attempt.groups.on_one_node else None


def _on_no_node(_: Question, accelerator: AcceleratorView, ended: Sequence[_Try]) -> str:
    return groups.on_no_node(accelerator, [each.groups for each in ended], [each.profile for each in ended])


def _memory(question: Question, accelerator: AcceleratorView, attempt: _Try) -> _Try | None:
    """The fewest devices on which the model fits and reaches ``spec.slo``; on which it comes nearest where none does.

    Memory that is not declared is taken to suffice.
    """
    work, machine = question.work(attempt.dtype), machine_of(accelerator.spec)
    fitting = [group for group in attempt.groups.on_one_node if _fits(work, machine, group)]
    if len(fitting) < 2 or question.is_without_objectives:
        return attempt._replace(group=fitting[0]) if fitting else None
    misses = [question.missed_by(estimate(work, machine, group, attempt.prefill_chunk)) for group in fitting]
    return attempt._replace(group=fitting[misses.index(min(misses))])


def _fits(work: Work, machine: Machine, group: Group) -> bool:
    return machine.memory is None or work.memory.on_each(group, work.kv_heads).total <= machine.memory


def _no_memory(question: Question, accelerator: AcceleratorView, ended: Sequence[_Try]) -> str:
    machine = machine_of(accelerator.spec)
    assert machine.memory is not None
    tried = [
        (question.work(each.dtype).memory.on_each(group, question.facts.kv_heads), group)
        for each in ended
        for group in each.groups.on_one_node
    ]
    least, group = min(tried, key=lambda each: each[0].total)
    larger = [
        more.devices for each in ended for more in each.groups.linked if _fits(question.work(each.dtype), machine, more)
    ]
    where = f" on each of {group.devices} devices" if group.devices > 1 else ""
    otherwise = (
        f" it would fit {min(larger)} devices of one node, and "
        f"{groups.most_on_node(accelerator, [each.profile for each in ended])};"
        if larger
        else ""
    )
    return (
        f"the model needs {_gib(least.total)} GiB{where} (weights {_gib(least.weights)}, KV cache "
        f"{_gib(least.kv_cache)}, reserve {_gib(least.reserve)}), {_gib(machine.memory)} GiB may be used "
        f"({USABLE_MEMORY:g} of the device's);{otherwise} "
        "lower spec.requirements.maxBatchSize, spec.workload or spec.requirements.dtype"
    )


_PLAIN_FLOATS = frozenset({DType.FP32, DType.FP16, DType.BF16})
_STEPS = (
    # Which of the profiles are for this engine, where several engines share a kind of device?
    _Step(_served, _not_served),
    # Which of the profiles take the model, and in which number format?
    _Step(_task, _no_task),
    _Step(_architecture, _no_architecture),
    _Step(_number_format, _no_number_format),
    # Which shapes are compiled?
    _Step(_sequence, _no_sequence),
    _Step(_batch, _no_batch),
    # A broken profile is named only if it would have been used.
    _Step(_usable, _none_usable),
    # What its compiler has said of the model counts for more than what it was declared to take.
    _Step(_taken, _none_taken, Cause.REFUSED),
    # How many devices can a replica have?
    _Step(_divided, _not_divided),
    _Step(_linked, _not_linked),
    _Step(_on_one_node, _on_no_node),
    # Needs the number format.
    _Step(_memory, _no_memory),
)


def _gib(amount: float) -> str:
    return f"{amount / GIB:.2f}"
