"""``rm-device-plugin``: runs the device plugin of one vendor for one resource."""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

from rm_api.names import DEVICE_PLUGIN_PORT, ExitCode

from rm_device_plugins import config, logs
from rm_device_plugins.kubelet_api import DEFAULT_PLUGIN_DIR
from rm_device_plugins.plugin import DevicePlugin
from rm_device_plugins.vendor import Vendor

ENTRY_POINTS = "rm_abstract.device_vendors"
"""Group of the entry points by which other distributions offer a Vendor class."""
ENV_RESOURCE_NAME = "RMA_RESOURCE_NAME"

BUILT_IN = {
    "furiosa": "rm_device_plugins.vendors.furiosa:FuriosaVendor",
    "generic": "rm_device_plugins.vendors.generic:GenericVendor",
    "nvidia": "rm_device_plugins.vendors.nvidia:NvidiaVendor",
    "rebellions": "rm_device_plugins.vendors.rebellions:RebellionsVendor",
    "simulator": "rm_device_plugins.vendors.simulator:SimulatorVendor",
    "upmem": "rm_device_plugins.vendors.upmem:UpmemVendor",
}

log = logs.Log("main")


def vendor_class(name: str) -> type[Vendor]:
    """The class for ``--vendor``: a built-in name, ``module:Class``, or an entry point. Raises ConfigError."""
    offered = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
    reference = BUILT_IN.get(name) or offered.get(name) or name
    module, colon, attribute = reference.partition(":")
    if not colon:
        known = ", ".join(sorted(BUILT_IN.keys() | offered.keys()))
        raise config.ConfigError(f"there is no vendor {name!r}; known are {known}; or name a class as module:Class")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise config.ConfigError(f"the vendor {name!r} cannot be loaded: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Vendor)):
        raise config.ConfigError(f"{reference} is no subclass of rm_device_plugins.vendor.Vendor")
    return found


async def _run(options: argparse.Namespace) -> None:
    loaded = config.load(options.config, os.environ.get(ENV_RESOURCE_NAME))
    vendor = vendor_class(options.vendor)(loaded.vendor)
    plugin = DevicePlugin(loaded.resource_name, loaded.plugin, vendor, options.plugin_dir, options.port)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await plugin.run(stop)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0 after SIGTERM, 64 for a configuration that can never work, 75 where the port is taken."""
    parser = argparse.ArgumentParser(prog="rm-device-plugin", description=__doc__)
    parser.add_argument(
        "--vendor", required=True, help=f"{', '.join(BUILT_IN)}, an entry point's name, or module:Class"
    )
    parser.add_argument("--config", type=Path, help=f"default {config.DEFAULT_CONFIG}, if it exists")
    parser.add_argument("--plugin-dir", type=Path, default=Path(DEFAULT_PLUGIN_DIR), help="the kubelet's directory")
    parser.add_argument("--port", type=int, default=DEVICE_PLUGIN_PORT, help="of report, probes and metrics")
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    options = parser.parse_args(argv)
    logs.configure(options.log_level)
    try:
        asyncio.run(_run(options))
    except config.ConfigError as error:
        log.error("cannot start", cause=str(error))
        return ExitCode.BAD_INPUT
    except OSError as error:
        log.error("ended", cause=str(error))
        return ExitCode.TRANSIENT
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
