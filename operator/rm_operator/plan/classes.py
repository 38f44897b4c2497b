"""How the replicas of a deployment are given to classes of nodes, where each class needs an artifact of its own. Pure.

A replica stays where it was given, as long as its class has the devices and the artifact is there: an untouched fleet
moves nothing, and a class that appears takes nothing from those that serve. What has no place is given to classes with
free devices: first to those whose artifact is in the store, then to those for which it is to be built. Meanwhile a
class that serves keeps what is to go to one that cannot serve yet.

Replicas are counted throughout, and not devices: of how many devices a replica is makes no difference here.

Beyond the classes that are needed one more is named, with no replicas: its artifact is built ahead, so that it is there
before the nodes of the others are gone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rm_operator.plan.compatibility import NodeClass, Room


@dataclass(frozen=True)
class Option:
    """A class that replicas may be given to."""

    for_: NodeClass
    room: Room
    warm: bool = False
    """Its artifact is in the store: it can serve."""
    failed: bool = False
    """Its artifact cannot be had."""
    held: int = 0
    """Replicas that the devices of the deployment's own pods there suffice for."""
    stuck: int = 0
    """Pods of one variant there that no node takes."""
    beside: int = 0
    """The same of the devices that other pods of that variant have."""

    def further(self, given: int) -> int | None:
        """Replicas beyond those ``given`` that find their devices there now; None for any number."""
        if self.failed or self.stuck:
            return 0
        if self.room.most is None or self.room.free is None:
            return None
        return max(0, min(self.room.most, self.room.free + self.held) - given)


@dataclass(frozen=True)
class Share:
    """What a class is given."""

    option: Option
    replicas: int


def split(wanted: int, options: Sequence[Option], before: Mapping[NodeClass, int]) -> list[Share]:
    """Shares of ``wanted`` replicas, the largest first; the one that is only built ahead is the last, with none.

    ``before`` is what was given last, with the class that was built ahead. The shares of classes that can serve, and
    those of the others, together are ``wanted``, but for what the former keep until the others can take it over.
    """
    ranked = _ranked(wanted, options, before)
    if not ranked:
        return []
    given = _kept(ranked, before)
    _cut(given, ranked, sum(given.values()) - wanted)
    _free_to_move(given, ranked)
    missing = wanted - sum(given.values())
    for option in ranked:
        further = option.further(given[option.for_])
        more = missing if further is None else min(missing, further)
        given[option.for_] += more
        missing -= more
    if missing:
        # There is no device: they wait where most are already.
        most = max(ranked, key=lambda each: (not each.failed, each.warm or bool(each.held), given[each.for_]))
        given[most.for_] += missing
    _keep_meanwhile(given, ranked, before)
    shares = [Share(option, given[option.for_]) for option in ranked]
    needed = sorted(
        (share for share in shares if share.replicas),
        key=lambda share: (share.replicas, share.option.for_.drivers, share.option.for_.sdks),
        reverse=True,
    )
    idle = [share for share in shares if not share.replicas and (not share.option.failed or not needed)]
    ahead = idle[:1] if wanted or not needed else []
    return [*needed, *ahead]


def _ranked(wanted: int, options: Sequence[Option], before: Mapping[NodeClass, int]) -> list[Option]:
    """Whom replicas are given to first."""
    by_version = sorted(options, key=lambda each: (each.for_.drivers, each.for_.sdks), reverse=True)

    def rank(each: Option) -> tuple[bool, bool, int, bool, int]:
        further = each.further(0)
        takes_all = further is None or further >= wanted
        return each.failed, not each.warm, -before.get(each.for_, -1), not takes_all, -each.room.nodes

    return sorted(by_version, key=rank)


def _kept(ranked: Sequence[Option], before: Mapping[NodeClass, int]) -> dict[NodeClass, int]:
    """What stays where it is, where there are devices for it."""
    given: dict[NodeClass, int] = {}
    for option in ranked:
        stays = 0 if option.failed and not option.held else before.get(option.for_, 0)
        given[option.for_] = stays if option.room.most is None else min(stays, option.room.most)
    return given


def _free_to_move(given: dict[NodeClass, int], ranked: Sequence[Option]) -> None:
    """Takes away what others can serve sooner: what nobody serves yet, and pods that find no node there."""
    most, room = sum(given.values()), {True: 0, False: 0}
    for option in ranked:
        further = option.further(given[option.for_])
        room[option.warm] += most if further is None else further
    for option in reversed(ranked):
        has = given[option.for_]
        idle = has if not option.warm and not option.held else 0
        # Others were quicker, or the pods that they are to succeed hold what there is. What goes anyway is not counted.
        stuck = 0 if idle else min(option.stuck, max(0, has - option.beside))
        for warm, most_moved in ((True, idle + stuck), (False, stuck)):
            moved = min(room[warm], most_moved - (has - given[option.for_]))
            if moved > 0:
                given[option.for_] -= moved
                room[warm] -= moved


def _cut(given: dict[NodeClass, int], ranked: Sequence[Option], surplus: int) -> None:
    """Takes away what is too much: from those that cannot serve yet, then from the smallest, which may end so."""
    last_first = ranked[::-1]
    for option in sorted(last_first, key=lambda each: (each.warm, given[each.for_])):
        less = min(max(0, surplus), given[option.for_])
        given[option.for_] -= less
        surplus -= less


def _keep_meanwhile(given: dict[NodeClass, int], ranked: Sequence[Option], before: Mapping[NodeClass, int]) -> None:
    """Those that serve keep what is to go to those that cannot yet."""
    waiting = sum(given[option.for_] for option in ranked if not option.warm)
    for option in ranked:
        if option.warm:
            keeps = min(waiting, max(0, before.get(option.for_, 0) - given[option.for_]))
            given[option.for_] += keeps
            waiting -= keeps
