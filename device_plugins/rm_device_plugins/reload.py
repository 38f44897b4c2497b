"""Takes up a configuration that changes while the plugin runs: the kubelet's streams stay open."""

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from rm_device_plugins import config
from rm_device_plugins.config import Config
from rm_device_plugins.logs import Log
from rm_device_plugins.monitor import Monitor
from rm_device_plugins.vendor import Vendor

log = Log("reload")

POLL_SECONDS = 1.0


def _version(path: Path) -> tuple[int, int, int] | None:
    """What tells one content of the file from another; a ConfigMap's file is a link to another one each time."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


async def watch(
    path: Path, running: Config, new_vendor: Callable[[Mapping[str, object]], Vendor], monitor: Monitor
) -> None:
    """Looks at the file until cancelled. What cannot be used is told, and what runs goes on as it is."""
    # Unknown at first: the file may have changed since it was read.
    seen: tuple[int, int, int] | None = None
    while True:
        await asyncio.sleep(POLL_SECONDS)
        version = _version(path)
        if version is None or version == seen:
            continue
        seen = version
        try:
            wanted = config.load(path, running.resource_name)
            if wanted != running:
                await monitor.reconfigure(wanted.plugin, new_vendor(wanted.vendor))
                running = wanted
            monitor.configuration_problem = ""
        except Exception as error:  # a vendor's module may raise anything
            monitor.configuration_problem = f"the changed configuration is not in use: {error}"
            log.error("the changed configuration is not in use", cause=str(error))
