"""Accelerators and profiles do not vanish under those who use them: a finalizer, and a condition that names the users.

A deployment has the finalizer put there before it makes anything that rests on the object, because deletion cannot be
undone: without it the object, its device plugin and whatever else it owns would be gone at once, with pods still on its
devices. It is taken off as soon as nobody uses the object, asked to go or not, so that none is left over when the
operator itself is removed.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from rm_api.conditions import ConditionType, Reason
from rm_api.names import FINALIZER_IN_USE

from rm_operator.plan.conditions import Conditions
from rm_operator.plan.model import Object, Protection, is_deleting, name_of, uid_of
from rm_operator.plan.placement import AcceleratorView, ProfileView
from rm_operator.plan.state import DeploymentSnapshot, State

MOST_NAMED = 5
_ACCELERATOR = "AcceleratorResource"
_PROFILE = "BuildProfile"
_LEAVING = "it is being deleted, and takes no new users"


@dataclass(frozen=True)
class Users:
    """Who uses an object."""

    count: int = 0
    named: tuple[str, ...] = ()
    """Some of them, for a person: ``namespace/name``, with the kind before it where it is no ModelDeployment."""


NOBODY = Users()


def is_protected(obj: Object) -> bool:
    """True if the object would outlive its deletion."""
    return FINALIZER_IN_USE in (obj["metadata"].get("finalizers") or ())


def open_accelerators(snapshot: DeploymentSnapshot, current: str | None) -> tuple[AcceleratorView, ...]:
    """The accelerators as a deployment sees them that is placed on ``current``: one that goes takes no others."""
    if not snapshot.leaving:
        return tuple(snapshot.accelerators)
    return tuple(
        replace(view, ready=False, reason=_LEAVING)
        if view.name != current and (_ACCELERATOR, view.name) in snapshot.leaving
        else view
        for view in snapshot.accelerators
    )


def open_profiles(snapshot: DeploymentSnapshot, current: str | None) -> tuple[ProfileView, ...]:
    """The same for profiles."""
    if not snapshot.leaving:
        # A tuple is the same one then, by which placement knows that nothing has changed.
        return tuple(snapshot.profiles)
    return tuple(
        replace(view, usable=False, awaited=False, reason=_LEAVING)
        if view.name != current and (_PROFILE, view.name) in snapshot.leaving
        else view
        for view in snapshot.profiles
    )


def protect_placement(state: State) -> None:
    """Protects what the deployment was placed on, before anything is made that rests on it."""
    assert state.placement is not None
    for kind, name in ((_ACCELERATOR, state.placement.chosen), (_PROFILE, state.placement.profile)):
        obj = state.snapshot.unprotected.get((kind, name or ""))
        if obj is not None:
            state.protect.append(_protection(obj, present=True))
            # Who looks for users looks at statuses: the name is there before the finalizer is.
            state.status_first = True


def protection(obj: Object, users: Users) -> tuple[Protection, ...]:
    """What is to be done about the finalizer of ``obj``; nothing, mostly."""
    if users.count and not is_protected(obj) and not is_deleting(obj):
        return (_protection(obj, present=True),)
    if not users.count and is_protected(obj):
        return (_protection(obj, present=False),)
    return ()


def state_use(obj: Object, users: Users, conditions: Conditions, hint: str) -> None:
    """States that ``obj`` is to go and cannot, because of ``users``; ``hint`` says what to do."""
    named = ", ".join(users.named)
    others = users.count - len(users.named)
    more = f" and {others} more" if others > 0 else ""
    message = f"{name_of(obj)} is being deleted, and used by {named}{more}; it takes no new users and goes when {hint}"
    conditions.set(ConditionType.READY, False, Reason.IN_USE, message)


def some(users: Iterable[str], count: int) -> Users:
    """``count`` users, of which ``users`` gives the names."""
    return Users(count, tuple(sorted(users)[:MOST_NAMED]))


def _protection(obj: Object, *, present: bool) -> Protection:
    # Taken off only from the object that was looked at: somebody may just have begun to use it.
    version = None if present else str(obj["metadata"]["resourceVersion"])
    return Protection(obj["apiVersion"], obj["kind"], name_of(obj), uid_of(obj), present, version)
