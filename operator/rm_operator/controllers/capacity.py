"""Which devices are spoken for: by pods that hold or request them, and by promises to those that have none yet.

A deployment that is placed gets a promise at once, in the same step that decides, so that no other decision sees the
device as free while status and pods are still on their way. So does a build whose steps need devices, for a Job that
is still on its way; from when the Job is there it has the promise, and from when its pod is there that counts.
Everything can be told anew from the objects of the cluster: after a restart the statuses say who was placed where, the
Jobs which builds are to have devices, and the pods who has what.

A promise ends when

- the deployment's pods are there: then these count, whether they hold a device or wait for one;
- it is not confirmed by a status within ``ASSUMED_SECONDS``: the decision was never written;
- it is a build's, and the Job is over or has had no pod for as long;
- the deployment is Stalled for ``STALLED_SECONDS``, or none of its conditions moved for ``IDLE_SECONDS``, to which the
  time limit of the build is added while there is one. Then whoever needs the devices may have them. It is not
  available again by itself: the deployment is given what is free when it is placed the next time.
"""

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from rm_api import names

from rm_operator.controllers.demand import (
    Account,
    Claim,
    Use,
    accelerator_of,
    devices_each,
    devices_of,
    ends,
    owner_of,
    use_of,
    wanted_devices,
)
from rm_operator.controllers.holders import Owner, holder_of, is_build, is_over
from rm_operator.controllers.indexes import requested_as
from rm_operator.kube.client import Object
from rm_operator.plan.model import from_timestamp, is_deleting

ASSUMED_SECONDS: Final = 300.0

_NO_NODE: Final = "/"
"""In place of the node of a device that belongs to no single one; no node is called so."""


@dataclass(frozen=True, slots=True)
class Supply:
    """What there is of one kind of accelerator."""

    name: str
    resource: str | None
    """The extended resource; None where devices are not counted."""
    node_selector: Mapping[str, str]
    most: int | None
    """Devices that may be promised: those that are healthy, or as many as can be had; None without a limit."""
    total: int | None
    """Devices that are there or can be had, healthy or not; None without a limit."""
    also: str | None = None
    """Another extended resource by which pods get these devices, too: that of their DeviceClass."""
    on_nodes: Mapping[str, int] | None = None
    """Healthy devices by node; None where nobody asks for several of one node, or where that is not known."""


class Ledger:
    """Counts what is spoken for. Knows no clock and no store: it is told of changes, and of the time.

    ``freed(accelerators)`` is called with the names of what may have become free, ``changed`` after anything changed
    that an answer rests on; ``node_labels`` gives the labels of a node, and ``build_seconds`` the time limit of the
    build that a ModelDeployment waits for, or 0.
    """

    def __init__(
        self,
        freed: Callable[[Iterable[str]], None],
        changed: Callable[[], None],
        *,
        node_labels: Callable[[str], Mapping[str, str]],
        build_seconds: Callable[[Object], float],
    ) -> None:
        self._freed = freed
        self._changed = changed
        self._node_labels = node_labels
        self._build_seconds = build_seconds
        self._accounts: dict[Owner, Account] = {}
        self._demand: Counter[str] = Counter()
        self._bound: dict[str, Counter[str]] = {}
        self._roomiest: dict[str, tuple[Supply, int]] = {}
        self._building: Counter[str] = Counter()
        """Of those that are bound: devices that builds have, which they give back before long."""
        self._sick: dict[str, Counter[Owner]] = {}
        self._foreign: dict[str, Counter[str]] = {}
        self._foreign_known: dict[tuple[str, bool], tuple[Supply, int]] = {}
        self._kinds: dict[str, set[str]] = {}
        self._ends: list[tuple[float, int, Owner]] = []
        self._order = itertools.count()

    def room(self, supply: Supply, owner: Owner | None = None) -> tuple[int | None, int | None]:
        """What ``free`` and ``spare`` say: asked of every kind for every decision, and much of it is the same."""
        if supply.resource is None or supply.most is None:
            return None, None
        name, account, sick = supply.name, None, self._sick.get(supply.name)
        if owner is not None:
            account = self._accounts.get(owner)
        left = supply.most - self._demand.get(name, 0) - self._foreign_on(supply, bound_only=False)
        spare = left
        if sick and supply.total is not None:
            spare += min(max(0, supply.total - supply.most), sum(sick.values()))
        return left if account is None else left + account.demand(name), spare

    def roomiest(self, supply: Supply) -> int | None:
        """Devices that no pod has on the node that has most of those; None where that is not known.

        Promises are of no node, so this may be more than a replica that comes will find.
        """
        if supply.on_nodes is None:
            return None
        known = self._roomiest.get(supply.name)
        if known is None or known[0] is not supply:
            ours = self._bound.get(supply.name, Counter())
            theirs = [self._foreign.get(resource or "", Counter()) for resource in (supply.resource, supply.also)]
            taken = (ours, *theirs)
            most = max(
                (healthy - sum(each.get(node, 0) for each in taken) for node, healthy in supply.on_nodes.items()),
                default=0,
            )
            known = self._roomiest[supply.name] = supply, max(0, most)
        return known[1]

    def free(self, supply: Supply, owner: Owner | None = None) -> int | None:
        """Devices that ``owner`` could have, counting those that it has; None without a limit."""
        return self.room(supply, owner)[0]

    def spare(self, supply: Supply) -> int | None:
        """Healthy devices that no pod has or waits for, and nobody was promised; None without a limit.

        This is what there is for pods that are to take over from those on devices that are not well, whosesoever they
        are. Such a pod is not counted as soon as its device is not counted as healthy any more: the kubelet says so a
        while after the pod is known to be on a sick one, and of one that recovers a while before or after.
        """
        return self.room(supply)[1]

    def on_sick_devices(self, accelerator: str) -> list[Owner]:
        """Who has pods there whose device is not well."""
        return list(self._sick.get(accelerator, ()))

    def is_taken(self, supply: Supply, owner: Owner) -> bool:
        """True if ``owner`` has no device there and can get none: others hold all, or were promised the rest.

        What builds hold breaks no promise: the pods wait for it.
        """
        account = self._accounts.get(owner) or Account()
        if supply.resource is None or account.pods.get(supply.name):
            return False
        if account.promised(supply.name):
            ours = self._bound.get(supply.name, Counter()).total() - self._building[supply.name]
            others = ours + self._foreign_on(supply, bound_only=True)
            return supply.total is not None and others >= supply.total > 0
        free = self.free(supply, owner)
        return free is not None and free <= 0

    def promise(
        self, owner: Owner, supply: Supply | None, devices: int, stored: Object, now: float, *, each: int = 1
    ) -> None:
        """``owner`` was placed on ``supply``, or nowhere, and wants so many devices; ``stored`` is what is known of it.

        It gets what is free, at most what it wants, and for whole replicas of ``each`` devices.
        """
        account = self._accounts.get(owner) or Account()
        if supply is None:
            self._claim(owner, account.stored, None)
            return
        free = self.free(supply, owner)
        granted = devices if free is None else max(0, min(devices, free) // each * each)
        if accelerator_of(stored) == supply.name:
            until = ends(stored, self._build_seconds)
            # A device that is sick for a moment breaks no promise.
            granted = max(granted, min(devices, account.promised(supply.name)))
            granted = 0 if until is not None and until <= now else granted
            self._claim(owner, Claim(supply.name, granted, until), None)
        else:
            self._claim(owner, account.stored, Claim(supply.name, granted, now + ASSUMED_SECONDS))

    def spoken_for(self, supply: Supply, build: Owner, users: Iterable[Owner]) -> int:
        """Devices that ``build`` cannot have. What its ``users`` were promised and have no pods for, it can.

        They wait for what it makes: were it to wait for them, neither would ever get on.
        """
        own = self._accounts.get(build) or Account()
        idle = sum(account.idle(supply.name) for user in users if (account := self._accounts.get(user)) is not None)
        taken = self._demand.get(supply.name, 0) + self._foreign_on(supply, bound_only=False)
        return max(0, taken - own.demand(supply.name) - idle)

    def claim(self, build: Owner, claim: tuple[str, int] | None, now: float) -> None:
        """``build`` is about to have a Job that takes so many devices (accelerator and number), or none."""
        known = self._accounts.get(build)
        stored, assumed = (known.stored, known.assumed) if known is not None else (None, None)
        if claim is None:
            if assumed is not None:
                self._claim(build, stored, None)
            return
        self._claim(build, stored, Claim(*claim, now + ASSUMED_SECONDS))

    def job_changed(self, old: Object | None, new: Object | None) -> None:
        """A Job came, changed or went; those that take no devices do not matter."""
        obj = new if new is not None else old
        assert obj is not None
        held = holder_of(obj)
        if held is None or not is_build(held[0]):
            return
        owner, accelerator = held
        account = self._accounts.get(owner) or Account()
        if new is None or is_over(new):
            # Another attempt may be on its way already.
            self._claim(owner, None, account.assumed)
        else:
            until = from_timestamp(new["metadata"]["creationTimestamp"]).timestamp() + ASSUMED_SECONDS
            self._claim(owner, Claim(accelerator, devices_of(new), until), None)

    def asks(self, owner: Owner, pods: tuple[str, int] | None) -> None:
        """So many devices (accelerator and number) the pods want that ``owner`` asks for while some are to take over.

        For until the pods are there: two must not ask for one device that is spare. None while none is to take over.
        """
        known = self._accounts.get(owner)
        if pods == (known.asked if known is not None else None):
            return
        account = self._accounts.setdefault(owner, Account())
        before = {each[0]: account.demand(each[0]) for each in (account.asked, pods) if each is not None}
        account.asked = pods
        self._changed()
        self._forget_empty(owner)
        self._freed(self._counted(account, before))

    def deployment_changed(self, old: Object | None, new: Object | None) -> None:
        """A ModelDeployment came, changed or went."""
        obj = new if new is not None else old
        assert obj is not None
        owner = owner_of(obj)
        if new is None or is_deleting(new):
            self._claim(owner, None, None)
            self.asks(owner, None)
            return
        account = self._accounts.get(owner) or Account()
        stored, assumed = account.stored, account.assumed
        chosen, wanted = accelerator_of(new), wanted_devices(new, devices_each(new))
        if chosen is None:
            self._claim(owner, None, assumed)
            return
        # Without a decision of ours: as after a restart, or where another replica decides.
        granted = wanted
        if assumed is not None and assumed.accelerator == chosen:
            granted, assumed = min(assumed.devices, wanted), None
        elif stored is not None and stored.accelerator == chosen:
            granted = min(stored.devices, wanted)
        self._claim(owner, Claim(chosen, granted, ends(new, self._build_seconds)), assumed)

    def pod_changed(self, old: Object | None, new: Object | None) -> None:
        """A pod came, changed or went."""
        before, after = use_of(old), use_of(new)
        if before == after:
            return
        self._changed()
        touched: set[tuple[Owner, str]] = set()
        freed: set[str] = set()
        for use, sign in ((before, -1), (after, 1)):
            if use is None:
                continue
            if use.owner is not None and use.accelerator is not None:
                self._count(use, sign)
                touched.add((use.owner, use.accelerator))
            else:
                for resource, devices in use.devices.items():
                    if use.node and resource.startswith(names.DEVICE_CLASS_RESOURCE_PREFIX):
                        continue  # It has them by a claim, and is counted by that.
                    self._count_foreign(resource, use.node, sign * devices)
                    freed |= self._kinds.get(resource, set()) if sign < 0 else set()
        self._freed([*{accelerator for _, accelerator in touched if before is not None}, *freed])
        for owner, _ in touched:
            self._forget_empty(owner)

    def accelerator_changed(self, old: Object | None, new: Object | None) -> None:
        """An AcceleratorResource came, changed or went."""
        for obj, known in ((old, False), (new, True)):
            resource = None if obj is None else requested_as(obj)
            if obj is not None and resource:
                self.known_by(obj["metadata"]["name"], resource, known=known)

    def known_by(self, accelerator: str, resource: str, *, known: bool) -> None:
        """Pods request devices of ``accelerator`` by this extended resource, or do so no more."""
        kinds = self._kinds.setdefault(resource, set())
        for kind in (*kinds, accelerator):
            self._forget_foreign(kind)
        (kinds.add if known else kinds.discard)(accelerator)

    def held_by_others(self, resource: str, node: str, change: int) -> None:
        """Claims that are not ours hold so many more devices of a class on a node, or so many fewer."""
        self._changed()
        self._count_foreign(resource, node or _NO_NODE, change)
        if change < 0:
            self._freed(self._kinds.get(resource, set()))

    def nodes_changed(self) -> None:
        """Labels of nodes changed, and with them what pods stand in the way of whom."""
        self._changed()
        self._foreign_known.clear()

    def expire(self, now: float) -> None:
        """Ends what is over by ``now``."""
        while self._ends and self._ends[0][0] <= now:
            _, _, owner = heapq.heappop(self._ends)
            account = self._accounts.get(owner)
            if account is None:
                continue
            stored, assumed = account.stored, account.assumed
            if stored is not None and stored.until is not None and stored.until <= now:
                stored = Claim(stored.accelerator, 0, None)
            if assumed is not None and assumed.until is not None and assumed.until <= now:
                assumed = None
            self._claim(owner, stored, assumed)

    def until(self, owner: Owner) -> float | None:
        """When the next promise to ``owner`` ends that its pods have not taken up yet."""
        account = self._accounts.get(owner) or Account()
        return min(
            (
                claim.until
                for claim in (account.stored, account.assumed)
                if claim is not None
                and claim.until is not None
                and claim.devices > account.pods.get(claim.accelerator, 0)
            ),
            default=None,
        )

    def _claim(self, owner: Owner, stored: Claim | None, assumed: Claim | None) -> None:
        account = self._accounts.get(owner) or Account()
        known, claims = (account.stored, account.assumed), (stored, assumed)
        if known == claims:
            return
        self._accounts[owner] = account
        before = {each.accelerator: account.demand(each.accelerator) for each in (*known, *claims) if each is not None}
        account.stored, account.assumed = claims
        self._changed()
        for last, claim in zip(known, claims, strict=True):
            moment = claim.until if claim is not None and claim.devices else None
            if moment is not None and (last is None or not last.devices or last.until != moment):
                heapq.heappush(self._ends, (moment, next(self._order), owner))
        self._forget_empty(owner)
        self._freed(self._counted(account, before))

    def _counted(self, account: Account, before: Mapping[str, int]) -> list[str]:
        """Counts what ``account`` demands now; the accelerators of which that is less than before."""
        freed = []
        for name, devices in before.items():
            change = account.demand(name) - devices
            self._demand[name] += change
            if change < 0:
                freed.append(name)
        return freed

    def _count(self, use: Use, sign: int) -> None:
        assert use.owner is not None
        assert use.accelerator is not None
        account = self._accounts.setdefault(use.owner, Account())
        devices, name = sum(use.devices.values()), use.accelerator
        before = account.demand(name)
        account.pods[name] = account.pods.get(name, 0) + sign * devices
        if not account.pods[name]:
            del account.pods[name]
        if use.node:
            bound = self._bound.setdefault(name, Counter())
            bound[use.node] += sign * devices
            if not bound[use.node]:
                del bound[use.node]
            if is_build(use.owner):
                self._building[name] += sign * devices
            self._roomiest.pop(name, None)
        if use.sick:
            owners = self._sick.setdefault(name, Counter())
            owners[use.owner] += sign * devices
            if not owners[use.owner]:
                del owners[use.owner]
        self._demand[name] += account.demand(name) - before

    def _forget_empty(self, owner: Owner) -> None:
        account = self._accounts.get(owner)
        if account is None or account.stored is not None or account.assumed is not None:
            return
        if not account.pods and account.asked is None:
            del self._accounts[owner]

    def _foreign_on(self, supply: Supply, *, bound_only: bool) -> int:
        """Devices of pods that are not ours: of those on its nodes, and of those that may still come to them."""
        known = self._foreign_known.get((supply.name, bound_only))
        if known is None or known[0] is not supply:
            known = supply, self._count_on(supply, bound_only=bound_only)
            self._foreign_known[supply.name, bound_only] = known
        return known[1]

    def _count_on(self, supply: Supply, *, bound_only: bool) -> int:
        nodes = self._foreign.get(supply.resource or "", Counter())
        also = self._foreign.get(supply.also or "", Counter())
        pending = 0 if bound_only else nodes.get("", 0) + also.get("", 0)
        if len(self._kinds.get(supply.resource or "", ())) <= 1 or not supply.node_selector:
            return nodes.total() - nodes.get("", 0) + pending
        wanted = supply.node_selector.items()
        return pending + sum(
            count
            for node, count in nodes.items()
            if node == _NO_NODE or (node and wanted <= self._node_labels(node).items())
        )

    def _count_foreign(self, resource: str, node: str, change: int) -> None:
        nodes = self._foreign.setdefault(resource, Counter())
        nodes[node] += change
        if nodes[node] <= 0:
            del nodes[node]
        for kind in self._kinds.get(resource, ()):
            self._forget_foreign(kind)

    def _forget_foreign(self, kind: str) -> None:
        self._roomiest.pop(kind, None)
        for bound_only in (True, False):
            self._foreign_known.pop((kind, bound_only), None)
