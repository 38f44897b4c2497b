"""Preparing claims: what the scheduler has allocated becomes devices that a container runtime can give to containers.

The order is: record (which reserves the devices), vendor's hook, CDI file, record (prepared). Each step can be the last
one before the process is killed; the kubelet asks again, here or in another instance, and the steps are taken anew.
Unprepare takes away the CDI file, then the record. The lock is held while files are looked at and changed, and not
while the vendor works, so a hook that hangs keeps nobody else waiting.
"""

import asyncio
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from rm_device_plugins import files
from rm_device_plugins.allocator import Allocator, environment
from rm_device_plugins.dra import api, naming
from rm_device_plugins.dra.allocation import ClaimError, results_of
from rm_device_plugins.dra.cdi import Request, Specs, digest, spec
from rm_device_plugins.dra.records import Held, Record, Records
from rm_device_plugins.inventory import Inventory
from rm_device_plugins.logs import Log
from rm_device_plugins.sharing import device_of
from rm_device_plugins.vendor import Device, DeviceNode

log = Log("claims")

Json = dict[str, Any]
Answer = list[tuple[Held, tuple[str, ...]]]
"""Devices of a claim, with the qualified names of their CDI devices."""

TAKE_OVER_SECONDS = 180.0
"""How long a device stays with a claim that is gone: its containers may still run, and the kubelet, which looks for
such claims each minute, unprepares it when they have ended. A kubelet that has lost its state never does."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Claims:
    """The claims of one driver on one node. ``directory`` is the driver's own, shared by its instances."""

    def __init__(
        self,
        client: api.ApiClient,
        inventory: Inventory,
        allocator: Allocator,
        directory: Path,
        specs: Specs,
        driver: str,
        node: str,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = client
        self._inventory = inventory
        self._allocator = allocator
        self._lock = directory / "lock"
        self._records = Records(directory / "claims")
        self._specs = specs
        self._driver = driver
        self._node = node
        self._now = now
        self._gone_since: dict[str, float] = {}
        """When a claim that is gone was first in the way."""
        self._busy: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._waiting: defaultdict[str, int] = defaultdict(int)
        self._boot = _BOOT_ID.read_text(encoding="ascii").strip()

    async def start(self) -> None:
        """Makes the directories, and removes CDI files that belong to no claim. Raises OSError, LockedError."""
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        async with files.locked(self._lock):
            self._records.prepare()
            self._specs.prepare()
            for record in self._records.all():
                log.info("prepared by an earlier instance", claim=_called(record), uid=record.uid)
            for uid in sorted(self._specs.uids() - self._records.uids()):
                self._specs.remove(uid)
                log.warning("removed a CDI file that belongs to no claim", uid=uid)

    async def prepare(self, namespace: str, name: str, uid: str) -> Answer:
        """Readies the claim's devices; the answer is the same each time.

        Raises ValueError, ClaimError, ApiError, LockedError, OSError, and what the allocator raises.
        """
        async with self._alone(naming.check_uid(uid)):
            claim = await self._fetch(namespace, name, uid)
            held = results_of(claim, self._driver, self._node)
            record = await self._reserve(Record(namespace, name, uid, held, self._boot, secrets.token_hex(8)))
            if not record.prepared:
                record = await self._make(record)
            return list(zip(record.devices, record.cdi_ids, strict=True))

    async def unprepare(self, uid: str) -> None:
        """Undoes it; a claim that is not prepared is no error. Raises ValueError, LockedError, OSError."""
        async with self._alone(naming.check_uid(uid)), files.locked(self._lock):
            self._forget(uid)

    def _forget(self, uid: str) -> None:
        self._specs.remove(uid)
        self._records.remove(uid)
        self._gone_since.pop(uid, None)

    @asynccontextmanager
    async def _alone(self, uid: str) -> AsyncIterator[None]:
        """One call for a claim at a time."""
        self._waiting[uid] += 1
        try:
            async with self._busy[uid]:
                yield
        finally:
            self._waiting[uid] -= 1
            if not self._waiting[uid]:
                del self._waiting[uid], self._busy[uid]

    async def _fetch(self, namespace: str, name: str, uid: str) -> Json:
        try:
            claim = await self._api.get(api.claims(namespace), name)
        except api.ApiError as error:
            if error.status == 404:
                raise ClaimError(f"the claim {namespace}/{name} does not exist any more") from error
            raise
        found = claim["metadata"]["uid"]
        if found != uid:
            raise ClaimError(f"the claim {namespace}/{name} is another one now: its UID is {found}, and not {uid}")
        return claim

    async def _reserve(self, wanted: Record) -> Record:
        """The claim's record: an earlier one if everything was done already, or ``wanted``, which is written."""
        dismissed: set[str] = set()
        while True:
            async with files.locked(self._lock):
                known = self._records.get(wanted.uid)
                if known is not None and self._valid(known, wanted):
                    return known
                rivals = [each for each in self._records.all() if _conflict(each, wanted)]
                if not [each for each in rivals if each.uid not in dismissed]:
                    for each in rivals:
                        log.warning("the record of a claim that is gone is removed", claim=_called(each), uid=each.uid)
                        self._forget(each.uid)
                    self._records.put(wanted)
                    return wanted
            for rival in rivals:
                await self._dismiss(rival, wanted)
                dismissed.add(rival.uid)

    def _valid(self, known: Record, wanted: Record) -> bool:
        same = known.devices == wanted.devices and known.boot == wanted.boot
        return same and known.prepared and self._specs.has(known.uid, known.cdi_digest)

    async def _dismiss(self, rival: Record, wanted: Record) -> None:
        """Raises ClaimError unless the API server says that ``rival`` does not have its devices any more, and has
        said so for long enough. The scheduler gives a device to one claim at a time, so one of the two is wrong.
        """
        both = _devices(rival) & _devices(wanted)
        stands = f"{', '.join(sorted(both))} is prepared for the claim {_called(rival)}, which"
        try:
            claim = await self._fetch(rival.namespace, rival.name, rival.uid)
            still = {held.device for held in results_of(claim, self._driver, self._node) if not held.admin}
        except ClaimError:
            still = set()
        if still & both:
            self._gone_since.pop(rival.uid, None)
            raise ClaimError(f"{stands} has it still")
        left = TAKE_OVER_SECONDS - (self._now() - self._gone_since.setdefault(rival.uid, self._now()))
        if left > 0:
            raise ClaimError(f"{stands} is gone; the kubelet has {left:.0f} s more to unprepare it")

    async def _make(self, record: Record) -> Record:
        requests = [await self._ready(name, record) for name in dict.fromkeys(held.request for held in record.devices)]
        content, ids = spec(self._driver, record.uid, requests)
        cdi_ids = tuple(ids[held.request, held.device] for held in record.devices)
        finished = record.finished(cdi_ids, digest(content))
        async with files.locked(self._lock):
            now = self._records.get(record.uid)
            if now is None or now.attempt != record.attempt:
                raise ClaimError("the claim was unprepared, or prepared by another instance, in the meantime")
            self._specs.write(record.uid, content)
            self._records.put(finished)
        return finished

    async def _ready(self, name: str, record: Record) -> Request:
        held = [each for each in record.devices if each.request == name]
        shares = {naming.device_name(share): share for share, _, _ in self._inventory.snapshot}
        unknown = next((each.device for each in held if each.device not in shares), None)
        if unknown is not None:
            raise ClaimError(
                f"there is no device {unknown!r} in the pool {self._node!r}; there are {sorted(shares)[:8]}"
            )
        ids = [shares[each.device] for each in held]
        if held[0].admin:
            # Whoever has the devices must not notice, and how they are is what the administrator wants to see.
            devices = [entry.device for share in ids if (entry := self._inventory.get(device_of(share))) is not None]
            return Request(name, _nodes(held, ids, devices), environment(devices, self._inventory.driver))
        devices, allocation = await self._allocator.allocate(ids)
        if allocation.annotations:
            raise ClaimError(
                "the vendor's module wants annotations on containers, which a claim cannot give; "
                f"change its settings: {', '.join(sorted(allocation.annotations))}"
            )
        return Request(
            name,
            _nodes(held, ids, devices),
            {**environment(devices, self._inventory.driver), **allocation.envs},
            allocation.mounts,
            allocation.nodes,
            allocation.cdi_devices,
        )


def _nodes(
    held: Sequence[Held], ids: Sequence[str], devices: Sequence[Device]
) -> tuple[tuple[str, tuple[DeviceNode, ...]], ...]:
    nodes = {device.id: device.nodes for device in devices}
    return tuple((each.device, nodes[device_of(share)]) for each, share in zip(held, ids, strict=True))


def _devices(record: Record) -> set[str]:
    return {held.device for held in record.devices if not held.admin}


def _conflict(record: Record, wanted: Record) -> bool:
    return record.uid != wanted.uid and not _devices(record).isdisjoint(_devices(wanted))


def _called(record: Record) -> str:
    return f"{record.namespace}/{record.name}"
