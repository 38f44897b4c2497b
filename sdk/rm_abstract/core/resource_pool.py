"""The resources of a process, and who is using them."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from types import TracebackType
from typing import Any, Final, Self

from rm_abstract.core.errors import BadInput, Transient
from rm_abstract.core.resource import Capability, Resource, ResourceType

Order = Callable[[Sequence[Resource]], Sequence[Resource]]
"""Puts resources into the order of preference, the best first; those that it leaves out are not used."""

_SHORTEST_WAIT: Final = 0.001
"""Seconds: where the next lease ends this instant, time must still pass before it is looked at again."""


@dataclass(frozen=True)
class Query:
    """Which resources will do; what is empty restricts nothing."""

    types: Sequence[ResourceType] = ()
    ids: Sequence[str] = ()
    tags: Sequence[str] = ()
    """Tags that it must all have."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Attributes that it must have with these values, or, for a function, with values that it is true of."""
    capability: Capability = field(default_factory=Capability)
    """What it must be capable of."""

    def admits(self, resource: Resource, capability: Capability) -> bool:
        """True if this resource, which can do this, will do."""
        return (
            (not self.types or resource.type in self.types)
            and (not self.ids or resource.id in self.ids)
            and set(self.tags) <= set(resource.tags)
            and all(_matches(resource.attributes, name, wanted) for name, wanted in self.attributes.items())
            and capability.covers(self.capability)
        )


def _matches(attributes: Mapping[str, Any], name: str, wanted: Any) -> bool:
    if name not in attributes:
        return False
    return bool(wanted(attributes[name])) if callable(wanted) else bool(attributes[name] == wanted)


@dataclass(eq=False)
class _Member:
    resource: Resource
    capability: Capability
    slots: int
    used: int = 0


@dataclass(frozen=True, eq=False)
class Lease:
    """The right to use a resource; a context manager that gives it back. Giving it back twice is harmless."""

    resource: Resource
    number: int
    _pool: "ResourcePool" = field(repr=False)

    def release(self) -> None:
        """Give it back."""
        self._pool.release(self)

    def renew(self, seconds: float | None) -> None:
        """Let it last for ``seconds`` from now, or without end. Raises BadInput where it has ended already."""
        self._pool.renew(self, seconds)

    @property
    def valid(self) -> bool:
        """True until it is given back, or has run out."""
        return self._pool.holds(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@dataclass
class _Grant:
    members: list[_Member]
    ends: float | None


class ResourcePool:
    """Resources that are found by what they are, and lent. Safe to use from any thread.

    Each resource is lent to as many users at once as it has slots. Whoever leases a HYBRID resource gets a slot of each
    of its members too. ``clock`` gives seconds that only grow.
    """

    def __init__(self, resources: Iterable[Resource] = (), *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._members: dict[str, _Member] = {}
        self._grants: dict[int, _Grant] = {}
        self._numbers = count(1)
        for resource in resources:
            self.add(resource)

    # What there is

    def add(self, resource: Resource, capability: Capability | None = None, *, slots: int = 1) -> None:
        """Add a resource. Raises BadInput where its id is taken, or where a member of a HYBRID one is not there."""
        if slots < 1:
            raise BadInput(f"{resource.id}: slots is {slots}; a resource is lent to at least one user")
        with self._changed:
            if resource.id in self._members:
                raise BadInput(f"there already is a resource {resource.id}; remove it first")
            absent = [member for member in resource.members if member not in self._members]
            if absent:
                raise BadInput(f"the hybrid resource {resource.id} has a member that is not there: {absent[0]}")
            self._members[resource.id] = _Member(resource, capability or Capability(), slots)
            self._changed.notify_all()

    def remove(self, resource_id: str) -> Resource:
        """Take a resource out, with the HYBRID ones that have it as a member. Leases of it stay valid until their end.

        Raises BadInput where there is none of this id.
        """
        with self._changed:
            resource = self._member(resource_id).resource
            del self._members[resource_id]
            for whole in [each.resource for each in self._members.values() if resource_id in each.resource.members]:
                self.remove(whole.id)
            self._changed.notify_all()
        return resource

    def get(self, resource_id: str) -> Resource:
        """The resource of this id. Raises BadInput where there is none."""
        with self._changed:
            return self._member(resource_id).resource

    def capability(self, resource_id: str) -> Capability:
        """What the resource of this id can do. Raises BadInput where there is none."""
        with self._changed:
            return self._member(resource_id).capability

    def find(self, query: Query | None = None) -> list[Resource]:
        """The resources that will do, in the order in which they were added; without a query all."""
        query = query or Query()
        with self._changed:
            return [each.resource for each in self._members.values() if query.admits(each.resource, each.capability)]

    def find_by_type(self, resource_type: ResourceType) -> list[Resource]:
        """The resources of a type."""
        return self.find(Query(types=(ResourceType(resource_type),)))

    def find_by_tag(self, *tags: str) -> list[Resource]:
        """The resources that have all of these tags."""
        return self.find(Query(tags=tags))

    def find_by_attributes(self, **attributes: Any) -> list[Resource]:
        """The resources that have these attributes; a function as a value is asked about the attribute's."""
        return self.find(Query(attributes=attributes))

    def find_by_capability(self, needed: Capability) -> list[Resource]:
        """The resources that cover what is needed."""
        return self.find(Query(capability=needed))

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, resource_id: object) -> bool:
        return resource_id in self._members

    def __iter__(self) -> Iterator[Resource]:
        return iter(self.find())

    # Who uses it

    def free(self, resource_id: str) -> int:
        """Leases of this resource that could be had now. Raises BadInput where there is none of this id."""
        with self._changed:
            self._collect()
            return min(each.slots - each.used for each in self._parts(self._member(resource_id)))

    def load(self, resource_ids: Iterable[str] | None = None) -> tuple[int, int]:
        """How many slots of these resources (or of all) are in use, and how many there are."""
        with self._changed:
            self._collect()
            wanted = set(self._members if resource_ids is None else resource_ids)
            members = [member for name, member in self._members.items() if name in wanted]
            return sum(member.used for member in members), sum(member.slots for member in members)

    def acquire(
        self,
        query: Query | None = None,
        *,
        timeout: float | None = None,
        lasts: float | None = None,
        order: Order | None = None,
    ) -> Lease:
        """Lease a resource that will do, the first in ``order`` (default: as added) that is free; wait until one is.

        The lease ends by itself after ``lasts`` seconds, where given. Raises BadInput where no resource that is here
        will do, and Transient where none became free within ``timeout`` seconds (0: at once).
        """
        return self.acquire_all([query or Query()], timeout=timeout, lasts=lasts, order=order)[0]

    def acquire_all(
        self,
        queries: Sequence[Query],
        *,
        timeout: float | None = None,
        lasts: float | None = None,
        order: Order | None = None,
    ) -> list[Lease]:
        """A lease for each query, all of them at once or none: two who need two resources each cannot block each other.

        Raises as ``acquire`` does.
        """
        deadline = None if timeout is None else self._clock() + timeout
        with self._changed:
            while True:
                self._collect()
                leases = self._try(queries, lasts, order)
                if leases is not None:
                    return leases
                now = self._clock()
                if deadline is not None and now >= deadline:
                    raise Transient("no resource that will do is free; release a lease, or wait longer")
                ends = [grant.ends for grant in self._grants.values() if grant.ends is not None]
                until = min([*ends, *([] if deadline is None else [deadline])], default=None)
                self._changed.wait(None if until is None else max(until - now, _SHORTEST_WAIT))

    def release(self, lease: Lease) -> None:
        """Give a lease back. Harmless where it has ended."""
        with self._changed:
            self._end(lease.number)

    def renew(self, lease: Lease, seconds: float | None) -> None:
        """See ``Lease.renew``."""
        with self._changed:
            self._collect()
            grant = self._grants.get(lease.number)
            if grant is None:
                raise BadInput(f"the lease of {lease.resource.id} has ended; acquire another one")
            grant.ends = None if seconds is None else self._clock() + seconds
            self._changed.notify_all()

    def holds(self, lease: Lease) -> bool:
        """See ``Lease.valid``."""
        with self._changed:
            self._collect()
            return lease.number in self._grants

    def _member(self, resource_id: str) -> _Member:
        try:
            return self._members[resource_id]
        except KeyError:
            known = ", ".join(self._members) or "none"
            raise BadInput(f"there is no resource {resource_id}; there are {known}") from None

    def _parts(self, member: _Member) -> list[_Member]:
        parts = {member.resource.id: member}
        for inner in member.resource.members:
            parts.update({part.resource.id: part for part in self._parts(self._members[inner])})
        return list(parts.values())

    def _collect(self) -> None:
        now = self._clock()
        for number in [
            number for number, grant in self._grants.items() if grant.ends is not None and grant.ends <= now
        ]:
            self._end(number)

    def _end(self, number: int) -> None:
        grant = self._grants.pop(number, None)
        if grant is not None:
            for member in grant.members:
                member.used -= 1
            self._changed.notify_all()

    def _try(self, queries: Sequence[Query], lasts: float | None, order: Order | None) -> list[Lease] | None:
        choices = []
        for query in queries:
            found = [each.resource for each in self._members.values() if query.admits(each.resource, each.capability)]
            if not found:
                raise BadInput(f"no resource of this pool will do: it has {', '.join(self._members) or 'none'}")
            if order is not None:
                found = list(order(found))
            choices.append([self._members[resource.id] for resource in found])
        taken: list[_Member] = []
        if not self._assign(choices, taken):
            return None
        return [self._grant(member, lasts) for member in taken]

    def _assign(self, choices: Sequence[Sequence[_Member]], taken: list[_Member]) -> bool:
        """A free member of each list, by trying: the first that leaves something for the lists after it."""
        if len(taken) == len(choices):
            return True
        for member in choices[len(taken)]:
            parts = self._parts(member)
            if all(part.used < part.slots for part in parts):
                for part in parts:
                    part.used += 1
                taken.append(member)
                done = self._assign(choices, taken)
                for part in parts:
                    part.used -= 1
                if done:
                    return True
                taken.pop()
        return False

    def _grant(self, member: _Member, lasts: float | None) -> Lease:
        parts = self._parts(member)
        for part in parts:
            part.used += 1
        number = next(self._numbers)
        self._grants[number] = _Grant(parts, None if lasts is None else self._clock() + lasts)
        return Lease(member.resource, number, self)
