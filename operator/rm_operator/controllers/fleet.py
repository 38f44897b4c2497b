"""The fleet as placement sees it: what there is, what is spoken for, and who waits for it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from rm_api.kinds import AcceleratorResourceSpec

from rm_operator.controllers.capacity import Ledger, Supply
from rm_operator.controllers.claims import ClaimsOfOthers
from rm_operator.controllers.demand import owner_of, wanted_devices
from rm_operator.controllers.holders import Owner, build_of
from rm_operator.controllers.indexes import artifact_named
from rm_operator.controllers.waiting import Waiting
from rm_operator.kube.client import Object
from rm_operator.kube.resources import (
    ACCELERATOR_RESOURCES,
    BUILD_ARTIFACTS,
    BUILD_PROFILES,
    DEVICE_CLASSES,
    JOBS,
    MODEL_DEPLOYMENTS,
    NODES,
    PODS,
)
from rm_operator.kube.store import Place, Stores
from rm_operator.plan.accelerator import devices_on, matching_nodes
from rm_operator.plan.device_class import extended_resource, requested_resource
from rm_operator.plan.model import labels_of, name_of, namespace_of
from rm_operator.plan.placement import AcceleratorView, PlacementResult, ProfileView
from rm_operator.plan.placement.choose import STABILIZATION_SECONDS
from rm_operator.plan.placement.groups import linkable
from rm_operator.plan.placement.observed import Observed, observe
from rm_operator.plan.profile import view_of

_FLEET: Place = ("fleet",)
"""Touched when what there is, or what is spoken for, changes."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """An AcceleratorResource, read once per change of it."""

    written: Mapping[str, Any]
    """The spec as it is written."""
    spec: AcceleratorResourceSpec
    supply: Supply
    seen: Observed


class Fleet:
    """Accelerators and profiles, each validated once per change, with a ledger of devices.

    Follows the stores from its making on. ``wake`` is called with deployments that a change gives something to decide,
    ``wake_builds`` when builds that wait for a device may find one. For the event loop's thread only: between
    ``accelerators`` and ``settle`` of one deployment, or ``spoken_for`` and ``claim`` of one build, nothing may be
    awaited, or another one may be promised the same device.
    """

    def __init__(self, stores: Stores, wake: Callable[[Owner], None], wake_builds: Callable[[], None]) -> None:
        self._stores = stores
        self._wake = wake
        self._wake_builds = wake_builds
        self._ticks = stores.ticks
        self._waiting = Waiting()
        self._ledger = Ledger(
            self._freed, self._touch, node_labels=self._node_labels, build_seconds=self._build_seconds
        )
        self._kinds: dict[str, _Kind] = {}
        self._views: dict[str, tuple[_Kind, AcceleratorView]] = {}
        """How each looked last, to whomever."""
        self._profiles: dict[str, ProfileView] = {}
        self._all_profiles: tuple[ProfileView, ...] = ()
        self._led: dict[Owner, float] = {}
        for resource, follow in (
            (ACCELERATOR_RESOURCES, self._accelerator_changed),
            (BUILD_PROFILES, self._profile_changed),
            (MODEL_DEPLOYMENTS, self._deployment_changed),
            (JOBS, self._ledger.job_changed),
            (PODS, self._ledger.pod_changed),
            (NODES, self._node_changed),
            (DEVICE_CLASSES, self._class_changed),
        ):
            for obj in stores[resource]:
                follow(None, obj)
            stores[resource].on_change(follow)
        ClaimsOfOthers(stores, self._ledger.held_by_others)

    build_places: Final[tuple[Place, ...]] = (_FLEET,)
    """The same for builds."""

    def places(self, deployment: Object) -> tuple[Place, ...]:
        """Where ``Stores.ticks`` is told of changes of what is said here to ``deployment``."""
        return _FLEET, _asked(owner_of(deployment))

    def time_passed(self, now: datetime) -> None:
        """Ends promises that are over."""
        self._ledger.expire(now.timestamp())

    def accelerators(self, deployment: Object, now: datetime) -> list[AcceleratorView]:
        """All accelerators as ``deployment`` sees them."""
        owner = owner_of(deployment)
        current = ((deployment.get("status") or {}).get("placement") or {}).get("chosen")
        self.time_passed(now)
        return [self._view(name, kind, owner, current) for name, kind in self._kinds.items()]

    def _view(self, name: str, kind: _Kind, owner: Owner, current: str | None) -> AcceleratorView:
        free, spare = self._ledger.room(kind.supply, owner)
        taken = name == current and self._ledger.is_taken(kind.supply, owner)
        roomiest = self._ledger.roomiest(kind.supply)
        known = self._views.get(name)
        # To most deployments most kinds look alike.
        if known is not None and known[0] is kind:
            view = known[1]
            if (view.free, view.spare, view.taken, view.roomiest) == (free, spare, taken, roomiest):
                return view
        view = AcceleratorView(
            name=name,
            spec=kind.spec,
            free=free,
            healthy=kind.seen.healthy,
            nodes=kind.seen.nodes,
            ready=kind.seen.ready,
            reason=kind.seen.reason,
            taken=taken,
            spare=spare,
            versions=kind.seen.versions,
            largest=kind.seen.largest,
            roomiest=roomiest,
        )
        self._views[name] = kind, view
        return view

    def profiles(self) -> tuple[ProfileView, ...]:
        """All BuildProfiles; the same tuple until one of them changes."""
        return self._all_profiles

    def led_for(self, deployment: Object, now: datetime) -> float:
        """Seconds for which a clearly better accelerator has been known for ``deployment``.

        Only remembered: after a restart it begins anew, and a move comes later.
        """
        since = self._led.get(owner_of(deployment))
        return 0.0 if since is None else max(0.0, now.timestamp() - since)

    def settle(
        self,
        deployment: Object,
        result: PlacementResult | None,
        now: datetime,
        *,
        replacing: tuple[str, int] | None = None,
    ) -> float | None:
        """Books what was decided for ``deployment``; returns in how many seconds time alone would change something.

        ``replacing`` is an accelerator, and the devices of the pods that are asked for there while some are to take
        over from others.
        """
        owner, moment = owner_of(deployment), now.timestamp()
        self._ledger.asks(owner, replacing)
        if result is None:
            self._led.pop(owner, None)
            self._offer(self._waiting.forget(owner))
            return None
        chosen = None if result.chosen is None else self._kinds[result.chosen]
        supply = None if chosen is None else chosen.supply
        each = result.devices_each
        self._ledger.promise(owner, supply, wanted_devices(deployment, each), deployment, moment, each=each)
        self._offer(
            self._waiting.wait(
                owner,
                result.waits_for,
                placed=result.chosen is not None,
                next_to=result.leader,
                devices=result.devices,
            )
        )
        moments = [until] if (until := self._ledger.until(owner)) is not None else []
        if result.leader is None:
            self._led.pop(owner, None)
        else:
            moments.append(self._led.setdefault(owner, moment) + STABILIZATION_SECONDS)
        return max(1.0, min(moments) - moment) if moments else None

    def spoken_for(self, artifact: Object, users: Iterable[Object], now: datetime) -> dict[str, int]:
        """Devices that steps of the build of ``artifact`` cannot have, by accelerator, where devices are counted.

        ``users`` are the deployments that wait for it: what they were promised meanwhile, the build may use.
        """
        self.time_passed(now)
        build, owners = build_of(namespace_of(artifact), name_of(artifact)), [owner_of(user) for user in users]
        return {
            name: self._ledger.spoken_for(kind.supply, build, owners)
            for name, kind in self._kinds.items()
            if kind.supply.resource is not None
        }

    def claim(self, artifact: Object, claim: tuple[str, int] | None, now: datetime) -> None:
        """Books what was decided for a build: a Job that takes so many devices (accelerator and number), or none."""
        self._ledger.claim(build_of(namespace_of(artifact), name_of(artifact)), claim, now.timestamp())

    def _accelerator_changed(self, old: Object | None, new: Object | None) -> None:
        obj = new if new is not None else old
        assert obj is not None
        name = name_of(obj)
        self._ledger.accelerator_changed(old, new)
        self._touch()
        before = self._kinds.pop(name, None)
        self._views.pop(name, None)
        after = None if new is None else self._with_nodes(_kind(new, before, self._extended_resource(new)))
        self._rename(name, before, after)
        if after is not None:
            self._kinds[name] = after
            self._offer([name])

    def _class_changed(self, old: Object | None, new: Object | None) -> None:
        obj = new if new is not None else old
        assert obj is not None
        for _, name in self._stores[ACCELERATOR_RESOURCES].keys_by_index("class", name_of(obj)):
            before = self._kinds.get(name)
            if before is None or before.supply.also == extended_resource(new):
                continue
            after = replace(before, supply=replace(before.supply, also=extended_resource(new)))
            self._rename(name, before, after)
            self._kinds[name] = after
            self._touch()
            self._offer([name])

    def _rename(self, name: str, before: _Kind | None, after: _Kind | None) -> None:
        """Tells by which extended resource of its class a kind is known."""
        for kind, known in ((before, False), (after, True)):
            if kind is not None and kind.supply.also is not None:
                self._ledger.known_by(name, kind.supply.also, known=known)

    def _extended_resource(self, accelerator: Object) -> str | None:
        name = accelerator["spec"].get("deviceClassName")
        return None if name is None else extended_resource(self._stores[DEVICE_CLASSES].get(None, name))

    def _profile_changed(self, old: Object | None, new: Object | None) -> None:
        obj = new if new is not None else old
        assert obj is not None
        self._profiles.pop(name_of(obj), None)
        if new is not None:
            self._profiles[name_of(new)] = view_of(new)
        self._all_profiles = tuple(self._profiles.values())
        self._touch()

    def _deployment_changed(self, old: Object | None, new: Object | None) -> None:
        self._ledger.deployment_changed(old, new)
        if new is None and old is not None:
            owner = owner_of(old)
            self._led.pop(owner, None)
            self._offer(self._waiting.forget(owner))

    def _node_changed(self, old: Object | None, new: Object | None) -> None:
        # Kubelets write a node's status every few seconds.
        labelled = old is None or new is None or labels_of(old) != labels_of(new)
        if labelled:
            self._ledger.nodes_changed()
        if labelled or _healthy_on(old) != _healthy_on(new):
            for name, kind in self._kinds.items():
                if kind.supply.on_nodes is not None:
                    self._kinds[name] = self._with_nodes(kind)
                    self._offer([name])

    def _with_nodes(self, kind: _Kind) -> _Kind:
        """``kind`` with the devices of each node, where a replica may have several of one."""
        resource, several = kind.supply.resource, (kind.seen.largest or 0) > 1
        if resource is None or kind.spec.resource_name is None or not several or linkable(kind.spec) == 1:
            return kind
        there = {
            name_of(node): devices_on(node, "allocatable", resource)
            for node in matching_nodes(kind.spec, self._stores[NODES])
        }
        return replace(kind, supply=replace(kind.supply, on_nodes=there))

    def _touch(self) -> None:
        self._ticks.touch([_FLEET])

    def _freed(self, accelerators: Iterable[str]) -> None:
        self._offer(accelerators)

    def _offer(self, accelerators: Iterable[str]) -> None:
        """Wakes who waits for these, as far as there are devices for them."""
        for name in accelerators:
            kind = self._kinds.get(name)
            if kind is not None and kind.seen.ready:
                woken = self._waiting.wake(name, self._ledger.free(kind.supply), self._ledger.roomiest(kind.supply))
                spare = self._ledger.spare(kind.supply)
                if spare is None or spare > 0:
                    woken += self._ledger.on_sick_devices(name)
                if spare is None or spare > 0:
                    self._wake_builds()
                for owner in woken:
                    # It has to answer, whether or not that is news to it: the next in line may be waiting for that.
                    self._ticks.touch([_asked(owner)])
                    self._wake(owner)

    def _node_labels(self, node: str) -> Mapping[str, str]:
        obj = self._stores[NODES].get(None, node)
        return {} if obj is None else labels_of(obj)

    def _build_seconds(self, deployment: Object) -> float:
        place = artifact_named(deployment)
        artifact = self._stores[BUILD_ARTIFACTS].get(*place) if place else None
        if artifact is None or (artifact.get("status") or {}).get("location"):
            return 0.0
        return float(artifact["spec"].get("timeoutSeconds", 0))


def _healthy_on(node: Object | None) -> object:
    return None if node is None else (node.get("status") or {}).get("allocatable")


def _asked(owner: Owner) -> Place:
    return "asked", owner


def _kind(obj: Object, before: _Kind | None, also: str | None) -> _Kind:
    # Most changes are of the status, and the spec need not be validated again.
    spec = (
        before.spec
        if before is not None and before.written == obj["spec"]
        else AcceleratorResourceSpec.model_validate(obj["spec"])
    )
    seen = observe(spec, obj.get("status") or {})
    resource = requested_resource(spec) if seen.healthy is not None else None
    supply = Supply(name_of(obj), resource, spec.node_selector, seen.most, seen.total, also)
    return _Kind(obj["spec"], spec, supply, seen)
