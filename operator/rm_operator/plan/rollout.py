"""How many pods each variant is asked for next, while a new one takes over from old ones. Pure, over whole numbers.

Of the deployment: ``w`` pods wanted, at most ``u`` of them missing (maxUnavailable), at most ``s`` beyond (maxSurge; 0
with InPlace). Of the new variant: ``n`` pods asked for, ``r`` of them serve. Of the i-th old one: ``o[i]`` asked for,
``q[i]`` of them serve; ``O = Σ o[i]`` and ``Q = Σ q[i]``. A pod serves if it is ready and the Service selects it.

    ceiling  C = w + s       pods that may be asked for
    floor    F = w − u       pods that must serve, as far as that is up to us

    n' = min(w, max(n, C − O))            the new variant gets what the old ones leave below the ceiling
    g  = min(O, max(0, O + r − F))        old pods that may go: the floor can be held with what is left
    i  = min(g, O − Q)                    of them first those that do not serve: they hold devices for nothing
    b  = g − i                            then those that do

The old variants lose ``i`` and then ``b`` pods in the order in which they are given.

From that follows, whatever crashes and whatever somebody changes on the way: ``n' + O' ≤ max(C, n + O)``, so no step
takes more than the ceiling allows; ``b ≤ max(0, Q + r − F)``, so no step takes a pod that the floor needs.
While ``w`` stays, ``n`` never shrinks and ``O`` never grows. And as ``s ≥ 1`` or ``u ≥ 1``, it ends with ``n = w`` and
``O = 0`` if new pods come to serve: where the ceiling is reached and nothing may go, one of them is still on its way.
A variant that is scaled down loses the pods first that do not serve; that is the ReplicaSet's rule.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from rm_api.kinds.model_deployment import Rollout, RolloutStrategy


class Count(NamedTuple):
    """Pods of one variant."""

    asked: int
    """Replicas of its Deployment."""
    serving: int
    """Pods of it that serve."""


class Step(NamedTuple):
    """Pods that each variant is to be asked for."""

    new: int
    old: tuple[int, ...]


@dataclass(frozen=True)
class Bounds:
    """What a rollout may do: w, u and s."""

    wanted: int
    unavailable: int
    surge: int

    @classmethod
    def of(cls, wanted: int, rollout: Rollout) -> Self:
        """The bounds for ``wanted`` pods. One pod may always surge or be missing: otherwise nothing could change."""
        if rollout.strategy is RolloutStrategy.IN_PLACE:
            return cls(wanted, max(1, rollout.max_unavailable), 0)
        return cls(wanted, rollout.max_unavailable, rollout.max_surge or 1)

    @property
    def ceiling(self) -> int:
        """Pods that may be asked for."""
        return self.wanted + self.surge

    @property
    def floor(self) -> int:
        """Pods that must serve; none, where it is not above 0."""
        return self.wanted - self.unavailable


def advance(new: Count, old: Sequence[Count], bounds: Bounds) -> Step:
    """The next step from ``old`` variants, the one that goes first being first, to the ``new`` one."""
    asked = sum(each.asked for each in old)
    # More pods than were asked for may serve for a moment, after a step down.
    serving = sum(min(each) for each in old)
    target = min(bounds.wanted, max(new.asked, bounds.ceiling - asked))
    may_go = min(asked, max(0, asked + new.serving - bounds.floor))
    idle = min(may_go, asked - serving)
    busy = may_go - idle
    left = []
    for each in old:
        served = min(each)
        lost_idle = min(idle, each.asked - served)
        lost_busy = min(busy, served)
        idle -= lost_idle
        busy -= lost_busy
        left.append(each.asked - lost_idle - lost_busy)
    return Step(target, tuple(left))


def hold(variants: Sequence[Count], wanted: int) -> tuple[int, ...]:
    """Pods for the variants that run while their successor is not known yet, or not built.

    What runs goes on running. The variant with the most serving pods, of several the last, is scaled: it grows as far
    as the pods that the others are asked for leave it room, and shrinks as far as those of them that serve can do
    without it. With none wanted, all end.
    """
    if wanted == 0 or not variants:
        return (0,) * len(variants)
    main = max(range(len(variants)), key=lambda index: (variants[index].serving, index))
    others = [each for index, each in enumerate(variants) if index != main]
    room = max(0, wanted - sum(each.asked for each in others))
    needed = max(0, wanted - sum(min(each) for each in others))
    scaled = max(room, min(variants[main].asked, needed))
    return tuple(scaled if index == main else each.asked for index, each in enumerate(variants))
