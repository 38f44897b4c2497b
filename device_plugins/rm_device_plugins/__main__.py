"""``rm-device-plugin``: runs the device plugin of one vendor for one resource, or observes somebody else's."""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rm_api.names import DEVICE_PLUGIN_PORT, ExitCode

from rm_device_plugins import config, logs, reload
from rm_device_plugins.kubelet_api import DEFAULT_PLUGIN_DIR
from rm_device_plugins.monitor import Monitor
from rm_device_plugins.observer import KubeletVendor, Observer
from rm_device_plugins.plugin import DevicePlugin
from rm_device_plugins.pod_resources import DEFAULT_SOCKET, PodResources
from rm_device_plugins.vendor import Vendor
from rm_device_plugins.vendor_class import BUILT_IN, vendor_class

ENV_RESOURCE_NAME = "RMA_RESOURCE_NAME"
ENV_ACCELERATOR = "RMA_ACCELERATOR"
"""The AcceleratorResource that a device plugin runs for."""

log = logs.Log("main")


def _new_vendor(options: argparse.Namespace, resource: str) -> Callable[[Mapping[str, object]], Vendor]:
    if options.vendor is not None:
        return vendor_class(options.vendor)
    return lambda settings: KubeletVendor(settings, resource, PodResources(options.pod_resources))


def _monitor(options: argparse.Namespace, loaded: config.Config, vendor: Vendor) -> Monitor:
    name, settings, port = loaded.resource_name, loaded.plugin, options.port
    if options.observe:
        return Observer(name, settings, vendor, port, PodResources(options.pod_resources))
    owner = os.environ.get(ENV_ACCELERATOR, "")
    return DevicePlugin(name, settings, vendor, options.plugin_dir, port, options.pod_resources, owner)


async def _run(options: argparse.Namespace) -> None:
    loaded = config.load(options.config, os.environ.get(ENV_RESOURCE_NAME))
    new_vendor = _new_vendor(options, loaded.resource_name)
    monitor = _monitor(options, loaded, new_vendor(loaded.vendor))
    watch = asyncio.ensure_future(reload.watch(options.config or config.DEFAULT_CONFIG, loaded, new_vendor, monitor))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        await monitor.run(stop)
    finally:
        watch.cancel()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0 after SIGTERM, 64 for a configuration that can never work, 75 where the port is taken."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--dra" in arguments:
        from rm_device_plugins.dra import command  # noqa: PLC0415 (device plugins do without it)

        return command.main([each for each in arguments if each != "--dra"])
    parser = argparse.ArgumentParser(prog="rm-device-plugin", description=__doc__)
    parser.add_argument("--dra", action="store_true", help="run as a DRA driver; --dra --help tells of its options")
    parser.add_argument("--vendor", help=f"{', '.join(BUILT_IN)}, an entry point's name, or module:Class")
    parser.add_argument(
        "--observe",
        action="store_true",
        help="look at the devices of another plugin and report; without --vendor only what the kubelet knows",
    )
    parser.add_argument("--config", type=Path, help=f"default {config.DEFAULT_CONFIG}, if it exists")
    parser.add_argument("--plugin-dir", type=Path, default=Path(DEFAULT_PLUGIN_DIR), help="the kubelet's directory")
    parser.add_argument(
        "--pod-resources", type=Path, default=DEFAULT_SOCKET, metavar="SOCKET", help="the kubelet's, of that API"
    )
    parser.add_argument("--port", type=int, default=DEVICE_PLUGIN_PORT, help="of report, probes and metrics")
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    options = parser.parse_args(arguments)
    if options.vendor is None and not options.observe:
        parser.error("--vendor is needed, but with --observe")
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
