"""Keeps the node's ResourceSlices as the inventory is: written when something differs, and at no other time.

The kubelet deletes them when it starts and when the driver was away for half a minute, and somebody may edit them: the
watch tells, and they are written again. While a younger instance of the driver runs, it writes, and we look on.
"""

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from rm_device_plugins.dra import slices
from rm_device_plugins.dra.api import NODES, SLICES, ApiClient, ApiError
from rm_device_plugins.inventory import Inventory
from rm_device_plugins.logs import Log
from rm_device_plugins.registration import STEADY_SECONDS, Backoff

log = Log("publisher")

SETTLE_SECONDS = 0.2
"""What happens in a moment is written once."""

Json = dict[str, Any]
Slices = dict[str, list[Json]]
"""The devices of each slice, by its name."""


class Publisher:
    """``leads`` is false while a younger instance runs; ``wrote`` is told of each update whether it succeeded."""

    def __init__(
        self,
        api: ApiClient,
        inventory: Inventory,
        pool: slices.Pool,
        effect: str,
        leads: Callable[[], bool],
        wrote: Callable[[bool], None],
    ) -> None:
        self._api = api
        self._inventory = inventory
        self._pool = pool
        self._effect = effect
        self._leads = leads
        self._wrote = wrote
        self._present: dict[str, Json] = {}
        self._owner_uid = ""
        self._taints = True
        self._accepted: tuple[Slices, Slices] = {}, {}
        """What was written last, and what the server made of it."""
        self._changed = asyncio.Event()
        self._backoff = Backoff()
        self.problem = "the ResourceSlices have not been looked at yet"
        """Why they may not be as they should; empty if they are."""

    def wake(self) -> None:
        """Looks at the inventory soon."""
        self._changed.set()

    async def run(self) -> None:
        """Works until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                await self._list()
                await self._follow()
            except ApiError as error:
                if error.status not in (409, 410):
                    # Who comes back may be another version.
                    self._taints = True
                    self._say(f"the ResourceSlices cannot be kept: {error}")
            except (KeyError, TypeError, ValueError) as error:
                self._say(f"the ResourceSlices cannot be kept: the API server's answer makes no sense: {error!r}")
            if loop.time() - began > STEADY_SECONDS:
                self._backoff.reset()
            await asyncio.sleep(self._backoff.next())

    async def _list(self) -> None:
        try:
            found = await self._api.list(SLICES, self._selector())
        except ApiError as error:
            if error.status == 404:
                raise ApiError("it does not serve resource.k8s.io/v1; Kubernetes 1.34 or newer is needed") from error
            raise
        self._present = {each["metadata"]["name"]: each for each in found.get("items") or ()}
        self._version = str(found["metadata"]["resourceVersion"])

    async def _follow(self) -> None:
        """Writes what differs and takes in what is told, until the server ends the watch."""
        await self._reconcile()
        watching = asyncio.ensure_future(self._watch())
        try:
            while not watching.done():
                await self._something(watching)
                await self._reconcile()
            watching.result()
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError, ApiError):
                await watching

    async def _something(self, watching: "asyncio.Task[None]") -> None:
        """Until something may have changed, and no more happens at once."""
        change = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait({watching, change}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            change.cancel()
        await asyncio.wait({watching}, timeout=SETTLE_SECONDS)

    def _selector(self) -> dict[str, str]:
        return {"fieldSelector": f"spec.nodeName={self._pool.node},spec.driver={self._pool.driver}"}

    async def _watch(self) -> None:
        query = {**self._selector(), "resourceVersion": self._version}
        async with aclosing(self._api.watch(SLICES, query)) as events:
            async for event in events:
                if event["type"] in ("ADDED", "MODIFIED", "DELETED"):
                    self._take_in(event["type"] == "DELETED", event["object"])

    def _take_in(self, deleted: bool, told: Json) -> None:
        name = told["metadata"]["name"]
        known = self._present.get(name)
        # What we wrote ourselves comes back, and may be older by then than what we have written since.
        if known is not None and _version(known) > _version(told):
            return
        if deleted:
            self._present.pop(name, None)
        else:
            self._present[name] = told
        self._changed.set()

    async def _reconcile(self) -> None:
        self._changed.clear()
        if not self._leads():
            self._say("")
            return
        if not await self._write():
            # The server has dropped the taints, which it does not know.
            self._taints = False
            log.warning("the API server keeps no device taints; unhealthy devices are left out of the ResourceSlices")
            await self._write()
        self._say("")

    async def _write(self) -> bool:
        """False if the server has dropped taints."""
        devices = slices.published(self._inventory, self._pool.driver, self._effect, self._taints)
        wanted = slices.wanted_slices(devices, self._pool)
        if not self._owner_uid or wanted.keys() - self._present.keys():
            # A node that was made anew has another UID, and slices of the old one are collected as garbage.
            self._owner_uid = str((await self._api.get(NODES, self._pool.node))["metadata"]["uid"])
        written, made = self._accepted
        if slices.up_to_date(self._present, made if wanted == written else wanted, self._owner_uid):
            return True
        generation = slices.next_generation(self._present)
        try:
            for name in wanted:
                before = self._present.get(name)
                body = slices.body(self._pool, self._owner_uid, generation, wanted, name, before)
                now = await (self._api.create(SLICES, body) if before is None else self._api.replace(SLICES, body))
                self._present[name] = now
            for name in sorted(self._present.keys() - wanted.keys()):
                await self._api.delete(SLICES, name, self._present[name]["metadata"]["resourceVersion"])
                del self._present[name]
        except ApiError:
            self._wrote(False)
            raise
        self._wrote(True)
        log.info("ResourceSlices written", devices=len(devices), slices=len(wanted), generation=generation)
        self._accepted = wanted, {name: slices.devices_of(self._present[name]) for name in wanted}
        return slices.tainted(wanted) == slices.tainted(self._accepted[1])

    def _say(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.warning("the ResourceSlices are not published", cause=problem)
        self.problem = problem


def _version(known: Json) -> int:
    # The API promises since 1.35 that versions of one resource can be compared as numbers; they always could.
    return int(known["metadata"]["resourceVersion"])
