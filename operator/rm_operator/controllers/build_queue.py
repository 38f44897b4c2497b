"""The queue of builds, where only so many may run: kept up to date with the store, and one step ahead of it.

What all namespaces share counts for each namespace whose deployments want it, and begins when one of them has room: who
asks for much at once fills its own line, and keeps nobody else from what they want.
"""

from collections.abc import Callable
from typing import NamedTuple

from rm_operator.controllers.indexes import scoped
from rm_operator.kube.client import Object
from rm_operator.kube.resources import BUILD_ARTIFACTS, BUILD_PROFILES, MODEL_DEPLOYMENTS
from rm_operator.kube.store import Stores
from rm_operator.plan.build_queue import MOST_TOLD, Line, Part, part_of
from rm_operator.plan.model import name_of, namespace_of, uid_of


class _Limit(NamedTuple):
    """What a limit is of."""

    kind: str
    """namespace or profile."""
    name: str


class _Entry(NamedTuple):
    """A build, in the order of the queue."""

    made: str
    uid: str
    namespace: str
    name: str
    profile: str


class BuildQueue:
    """Who builds and who waits.

    ``wake`` is called with namespace and name of a build that may have a better place than before. For the event loop's
    thread only: between ``lines`` and ``settle`` of one build nothing may be awaited, or two may take the last place.
    """

    def __init__(
        self, stores: Stores, per_namespace: int, wake: Callable[[str, str], None], *, shared: str = ""
    ) -> None:
        self._per_namespace = per_namespace
        self._shared = shared
        self._deployments = stores[MODEL_DEPLOYMENTS] if shared else None
        self._wake = wake
        self._parts: dict[str, tuple[_Entry, Part]] = {}
        """By uid, as the store has it."""
        self._begun: dict[str, _Entry] = {}
        """Builds that were let in, which the store does not tell yet."""
        self._of: dict[tuple[Part, _Limit], dict[str, _Entry]] = {}
        self._profile_limits: dict[str, int] = {}
        for resource, follow in ((BUILD_PROFILES, self._profile_changed), (BUILD_ARTIFACTS, self._artifact_changed)):
            for obj in stores[resource]:
                follow(None, obj)
            stores[resource].on_change(follow)

    def lines(self, artifact: Object) -> list[Line]:
        """The limits that hold for ``artifact``, and how far it is from them.

        Of the namespaces that want it, the one with most room counts.
        """
        mine = _entry(artifact)
        lines = [self._line(limit, self._per_namespace, mine) for limit in self._namespaces(mine)]
        found = [min(lines, key=lambda line: line.building + line.before)]
        profile = _Limit("profile", mine.profile)
        if (most := self._most(profile)) is not None:
            found.append(self._line(profile, most, mine))
        return found

    def _line(self, limit: _Limit, most: int, mine: _Entry) -> Line:
        return Line(self._what(limit), most, self._building(limit, mine.uid), self._before(limit, mine))

    def _namespaces(self, entry: _Entry) -> list[_Limit]:
        """The namespaces that want a build; its own, where it is not for all."""
        names = [entry.namespace]
        if self._deployments is not None and entry.namespace == self._shared:
            users = self._deployments.keys_by_index("artifact", scoped(entry.namespace, entry.name))
            names = sorted({namespace for namespace, _ in users}) or names
        return [_Limit("namespace", name) for name in names]

    def _limits(self, entry: _Entry) -> list[_Limit]:
        return [*self._namespaces(entry), _Limit("profile", entry.profile)]

    def _members(self, part: Part, limit: _Limit) -> dict[str, _Entry]:
        """Builds for which a limit holds, by uid."""
        members = dict(self._of.get((part, limit), {}))
        if self._shared and limit.kind == "namespace" and limit.name != self._shared:
            shared = self._of.get((part, _Limit("namespace", self._shared)), {})
            members |= {uid: entry for uid, entry in shared.items() if limit in self._namespaces(entry)}
        return members

    def settle(self, artifact: Object, *, begins: bool) -> None:
        """Books what was decided for ``artifact``."""
        entry = _entry(artifact)
        if not begins:
            self._release(entry.uid)
        elif self._parts.get(entry.uid, (entry, Part.NONE))[1] is not Part.BUILDS:
            self._begun[entry.uid] = entry

    def _most(self, limit: _Limit) -> int | None:
        return self._per_namespace if limit.kind == "namespace" else self._profile_limits.get(limit.name)

    def _what(self, limit: _Limit) -> str:
        return f"in namespace {limit.name}" if limit.kind == "namespace" else f"with BuildProfile {limit.name}"

    def _building(self, limit: _Limit, but: str = "") -> int:
        known = self._members(Part.BUILDS, limit)
        further = sum(
            uid not in known and limit in self._limits(entry) for uid, entry in self._begun.items() if uid != but
        )
        return len(known) - (but in known) + further

    def _before(self, limit: _Limit, mine: _Entry) -> int:
        """Who came earlier, waits for the same, and is not kept from it by its other limit."""
        return sum(
            entry < mine
            and entry.uid != mine.uid
            and entry.uid not in self._begun
            and not all(self._is_full(other) for other in self._limits(entry) if other.kind != limit.kind)
            for entry in self._members(Part.WAITS, limit).values()
        )

    def _is_full(self, limit: _Limit) -> bool:
        most = self._most(limit)
        return most is not None and self._building(limit) >= most

    def _artifact_changed(self, old: Object | None, new: Object | None) -> None:
        obj = new if new is not None else old
        assert obj is not None
        before = self._parts.pop(uid_of(old), None) if old is not None else None
        if before is not None:
            self._move(before, add=False)
        if new is None:
            self._begun.pop(uid_of(obj), None)
        after = (_entry(new), part_of(new)) if new is not None else None
        if after is not None:
            self._parts[after[0].uid] = after
            self._move(after, add=True)
            if after[1] is Part.BUILDS:
                self._begun.pop(after[0].uid, None)
        if before is not None and before[1] is not Part.NONE and before != after:
            self._wake_next(before[0])

    def _move(self, known: tuple[_Entry, Part], *, add: bool) -> None:
        entry, part = known
        if part is Part.NONE:
            return
        for limit in (_Limit("namespace", entry.namespace), _Limit("profile", entry.profile)):
            members = self._of.setdefault((part, limit), {})
            if add:
                members[entry.uid] = entry
            elif members.pop(entry.uid, None) is not None and not members:
                del self._of[part, limit]

    def _profile_changed(self, old: Object | None, new: Object | None) -> None:
        obj = new if new is not None else old
        assert obj is not None
        name = name_of(obj)
        before = self._profile_limits.pop(name, None)
        after = None if new is None else new["spec"].get("parallelBuilds")
        if after is not None:
            self._profile_limits[name] = int(after)
        if before != after:
            self._wake_first(_Limit("profile", name), most=max(MOST_TOLD, after or 1000))

    def _release(self, uid: str) -> None:
        entry = self._begun.pop(uid, None)
        if entry is not None and self._parts.get(uid, (entry, Part.NONE))[1] is not Part.BUILDS:
            self._wake_next(entry)

    def _wake_next(self, entry: _Entry) -> None:
        for limit in self._limits(entry):
            self._wake_first(limit, most=MOST_TOLD)

    def _wake_first(self, limit: _Limit, *, most: int) -> None:
        for entry in sorted(self._members(Part.WAITS, limit).values())[:most]:
            self._wake(entry.namespace, entry.name)


def _entry(artifact: Object) -> _Entry:
    made = str(artifact["metadata"].get("creationTimestamp", ""))
    return _Entry(made, uid_of(artifact), namespace_of(artifact), name_of(artifact), artifact["spec"]["profile"])
