"""``rm-device-plugin``: runs the device plugin of one vendor for one resource."""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rm_api.names import DEVICE_PLUGIN_PORT, ExitCode

from rm_device_plugins import config, logs, reload
from rm_device_plugins.kubelet_api import DEFAULT_PLUGIN_DIR
from rm_device_plugins.plugin import DevicePlugin
from rm_device_plugins.vendor_class import BUILT_IN, vendor_class

ENV_RESOURCE_NAME = "RMA_RESOURCE_NAME"

log = logs.Log("main")


async def _run(options: argparse.Namespace) -> None:
    loaded = config.load(options.config, os.environ.get(ENV_RESOURCE_NAME))
    vendor = vendor_class(options.vendor)(loaded.vendor)
    plugin = DevicePlugin(loaded.resource_name, loaded.plugin, vendor, options.plugin_dir, options.port)
    watch = asyncio.ensure_future(reload.watch(options.config or config.DEFAULT_CONFIG, loaded, options.vendor, plugin))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        await plugin.run(stop)
    finally:
        watch.cancel()


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
