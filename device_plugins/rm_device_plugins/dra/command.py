"""``rm-device-plugin --dra``: runs a vendor's module as a driver for dynamic resource allocation."""

import argparse
import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from rm_api.names import DEVICE_PLUGIN_PORT, ExitCode

from rm_device_plugins import config, logs, reload
from rm_device_plugins.dra import api, naming
from rm_device_plugins.dra.driver import DraDriver, Place
from rm_device_plugins.vendor_class import BUILT_IN, vendor_class

ENV_DRIVER = "RMA_DRA_DRIVER"
ENV_NODE = "NODE_NAME"
TAINT_EFFECTS = ("NoSchedule", "NoExecute")

log = logs.Log("main")


async def _run(options: argparse.Namespace) -> None:
    driver = naming.driver_name(options.driver, options.vendor)
    place = Place(driver, naming.check_node(options.node), options.kubelet_dir, options.cdi_dir, options.taint_effect)
    loaded = config.load(options.config, naming.resource_name(driver))
    new_vendor = vendor_class(options.vendor)
    client = api.ApiClient(api.Server.in_cluster(options.service_account), f"rm-device-plugin/{driver}")
    running = DraDriver(place, loaded.plugin, new_vendor(loaded.vendor), options.port, client)
    watch = asyncio.ensure_future(reload.watch(options.config or config.DEFAULT_CONFIG, loaded, new_vendor, running))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        await running.run(stop)
    finally:
        watch.cancel()


def main(argv: Sequence[str]) -> int:
    """Entry point; 0 after SIGTERM, 64 for what can never work, 75 where a port or a directory fails it."""
    parser = argparse.ArgumentParser(prog="rm-device-plugin --dra", description=__doc__)
    parser.add_argument(
        "--vendor", required=True, help=f"{', '.join(BUILT_IN)}, an entry point's name, or module:Class"
    )
    parser.add_argument("--driver", default=os.environ.get(ENV_DRIVER), help="default VENDOR.rm-abstract.io")
    parser.add_argument("--node", default=os.environ.get(ENV_NODE, ""), help=f"this node's name; default ${ENV_NODE}")
    parser.add_argument("--config", type=Path, help=f"default {config.DEFAULT_CONFIG}, if it exists")
    parser.add_argument("--kubelet-dir", type=Path, default=Path("/var/lib/kubelet"))
    parser.add_argument(
        "--cdi-dir", type=Path, default=Path("/var/run/cdi"), help="one that the container runtime watches"
    )
    parser.add_argument("--taint-effect", choices=TAINT_EFFECTS, default=TAINT_EFFECTS[0], help="of unhealthy devices")
    parser.add_argument("--service-account", type=Path, default=api.SERVICE_ACCOUNT, metavar="DIRECTORY")
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
