"""Rebellions' RSD groups: devices that work on one model together, with a device node of their own.

Groups are made and taken apart by the vendor's status tool, under the lock that the vendor's own tools take. Nobody
takes a group apart when its pod ends, so that is done when one of its devices is given to somebody else.
"""

import asyncio
import fcntl
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from rm_device_plugins.tool import run_tool
from rm_device_plugins.vendor import VendorError

_LOCK_POLL_SECONDS: Final = 0.05

NobodyHas = Callable[[Collection[int]], Awaitable[bool]]
"""Whether certainly no pod has any of the devices with these indexes."""


async def status(tool: Sequence[str], *options: str) -> dict[str, Any]:
    """What the status tool says. Raises VendorError for what is no JSON object."""
    output = await run_tool([*tool, *options, "-j"])
    try:
        said = json.loads(output)
    except ValueError as error:
        raise VendorError(f"the status tool's answer is no JSON: {error}") from error
    if not isinstance(said, dict):
        raise VendorError("the status tool's answer is no object")
    return said


class RsdGroups:
    """The groups of this host. ``tool`` is the status tool's command, ``lock`` the file that is locked."""

    def __init__(self, tool: Sequence[str], lock: str) -> None:
        self._tool = tool
        self._lock = lock
        self._grouped: set[int] | None = None
        """Devices that were in a group when that was last asked; None if it was not."""

    async def all(self) -> dict[int, set[int]]:
        """Indexes of devices by the number of their group. Raises VendorError."""
        groups: dict[int, set[int]] = {}
        for raw in (await status(self._tool, "-g")).get("devices") or []:
            try:
                groups.setdefault(int(raw["group_id"]), set()).add(int(raw["npu"]))
            except (KeyError, TypeError, ValueError) as error:
                raise VendorError(f"the status tool's answer makes no sense: {error!r}") from error
        # Group 0 is where devices without a group are.
        groups.pop(0, None)
        self._grouped = {index for members in groups.values() for index in members}
        return groups

    async def of(self, wanted: set[int], nobody_has: NobodyHas) -> int:
        """The number of the group that consists of these devices, made anew where there is none.

        Raises VendorError where one of them is in a group with others, and a pod may have that.
        """
        async with self._locked():
            groups = await self.all()
            overlapping = {number: members for number, members in groups.items() if members & wanted}
            for number, members in overlapping.items():
                if members == wanted:
                    return number
                others = sorted(members - wanted)
                if others and not await nobody_has(members):
                    raise VendorError(f"RSD group {number} also has the devices {others}, and a pod may have them")
            for number in sorted(overlapping):
                await self._take_apart(number)
            free = next(each for each in range(1, len(groups) + 2) if each not in groups or each in overlapping)
            indexes = ",".join(map(str, sorted(wanted)))
            await run_tool([*self._tool, "group", "-c", str(free), "-a", indexes])
            self._grouped = None
            return free

    async def leave(self, index: int, nobody_has: NobodyHas) -> None:
        """Takes the group apart that the device was left in, if no pod has any of it. Raises VendorError."""
        if self._grouped is not None and index not in self._grouped:
            return
        async with self._locked():
            for number, members in (await self.all()).items():
                if index in members and await nobody_has(members):
                    await self._take_apart(number)

    async def _take_apart(self, number: int) -> None:
        await run_tool([*self._tool, "group", "-d", str(number)])
        self._grouped = None

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[None]:
        try:
            descriptor = os.open(self._lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise VendorError(f"{self._lock}: {error.strerror}") from error
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(_LOCK_POLL_SECONDS)
            yield
        finally:
            os.close(descriptor)
