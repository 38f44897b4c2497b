"""Kills the preparation of a claim before each of its steps, one process for each, and looks at what follows.

``python dra_crashes.py DIRECTORY`` writes a line of JSON for each step: what it was, and what was wrong afterwards.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from rm_device_plugins import files
from rm_device_plugins.allocator import Allocator
from rm_device_plugins.config import PluginSettings
from rm_device_plugins.dra.api import ApiClient
from rm_device_plugins.dra.cdi import Specs
from rm_device_plugins.dra.claims import Claims
from rm_device_plugins.inventory import Inventory
from rm_device_plugins.vendor import Allocation, Device, DeviceNode, Discovery, Vendor

DRIVER, NODE = "npu.example.com", "node-1"
CLAIM, OTHER = "11111111-0000-4000-8000-000000000001", "11111111-0000-4000-8000-000000000002"
NULL = DeviceNode("/dev/null", "/dev/npu0", 1, 3)


class Api:
    """Claims as the API server has them: each with the device that is named as it is."""

    async def get(self, path: str, name: str) -> dict[str, Any]:
        """The claim; nothing else is asked for."""
        del path
        result = {"request": "npu", "driver": DRIVER, "pool": NODE, "device": name}
        return {
            "metadata": {"namespace": "default", "name": name, "uid": {"a": CLAIM, "b": OTHER}[name]},
            "status": {"allocation": {"devices": {"results": [result]}}},
        }


class Devices(Vendor):
    """Two devices, and a hook that is one of the steps."""

    async def discover(self) -> Discovery:
        """``a`` and ``b``."""
        return Discovery(tuple(Device(name, at, name, "NPU", (NULL,)) for at, name in enumerate("ab")))

    async def allocate(self, devices: Sequence[Device]) -> Allocation:
        """Nothing more than the devices."""
        _step("hook")
        return await super().allocate(devices)


_kill_at = 0
_step_file = Path()
_steps = 0


def _step(name: str) -> None:
    global _steps  # noqa: PLW0603
    _steps += 1
    if _steps == _kill_at:
        _step_file.write_text(name)
        os.kill(os.getpid(), signal.SIGKILL)


def _before(owner: Any, attribute: str) -> None:
    """Makes each call of it a step."""
    real: Callable[..., Any] = getattr(owner, attribute)

    def stepped(*arguments: Any, **named: Any) -> Any:
        _step(attribute)
        return real(*arguments, **named)

    setattr(owner, attribute, stepped)


async def _claims(root: Path) -> Claims:
    inventory = Inventory(PluginSettings(), None)
    vendor = Devices({})
    inventory.observe(await vendor.discover())
    allocator = Allocator(inventory, vendor, PluginSettings(), lambda: None)
    specs = Specs(root / "cdi", DRIVER)
    claims = Claims(cast("ApiClient", Api()), inventory, allocator, root / "own", specs, DRIVER, NODE)
    await claims.start()
    return claims


async def _work(root: Path) -> None:
    claims = await _claims(root)
    for owner, attribute in ((os, "fsync"), (os, "open"), (Path, "replace"), (Path, "unlink"), (Path, "open")):
        _before(owner, attribute)
    await claims.prepare("default", "a", CLAIM)
    await claims.unprepare(CLAIM)


def _names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


async def _follow(root: Path, again: bool) -> None:
    """What the kubelet does after a restart of the driver."""
    global _kill_at  # noqa: PLW0603
    _kill_at = 0
    claims = await _claims(root)
    records = {name.removesuffix(".json") for name in _names(root / "own" / "claims")}
    specs = {name.removeprefix(f"{DRIVER}-device_").removesuffix(".json") for name in _names(root / "cdi")}
    assert specs <= records <= {CLAIM}, f"left over: {specs}, {records}"
    ((_, other),) = await claims.prepare("default", "b", OTHER)
    assert other[0].startswith(f"{DRIVER}/device={OTHER}"), other
    if again:
        ((held, ids),) = await claims.prepare("default", "a", CLAIM)
        assert (held.device, ids[0]) == ("a", f"{DRIVER}/device={CLAIM}-npu.a"), ids
        spec = json.loads((root / "cdi" / f"{DRIVER}-device_{CLAIM}.json").read_text())
        assert {device["name"] for device in spec["devices"]} == {f"{CLAIM}-npu", f"{CLAIM}-npu.a"}, spec
    for uid in (CLAIM, OTHER):
        await claims.unprepare(uid)
    assert _names(root / "cdi") == _names(root / "own" / "claims") == set()
    async with asyncio.timeout(5):
        async with files.locked(root / "own" / "lock"):
            pass


def _forked(work: Callable[[], None]) -> int:
    """The status of a process that does it: negative for a signal, 0 if all was well."""
    pid = os.fork()
    if not pid:
        code = 1
        with contextlib.suppress(BaseException):
            try:
                work()
                code = 0
            except BaseException:
                traceback.print_exc()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(directory: Path) -> None:
    """Until the work is done before the step that would have been the next one."""
    global _kill_at, _step_file  # noqa: PLW0603
    while True:
        _kill_at += 1
        root = directory / str(_kill_at)
        root.mkdir()
        _step_file = root / "step"
        ended = _forked(lambda: asyncio.run(_work(root)))  # noqa: B023
        step = _step_file.read_text() if _step_file.exists() else ""
        _step_file.unlink(missing_ok=True)
        found = {"step": step, "ended": ended, "follow": []}
        for again in (True, False):
            copy = directory / f"{_kill_at}-{again}"
            shutil.copytree(root, copy)
            found["follow"].append(_forked(lambda: asyncio.run(_follow(copy, again))))  # type: ignore[union-attr] # noqa: B023
        sys.stdout.write(f"{json.dumps(found)}\n")
        sys.stdout.flush()
        if ended != -signal.SIGKILL:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]))
