"""Finds the class of a vendor's module by its name."""

from importlib import import_module
from importlib.metadata import entry_points

from rm_device_plugins.config import ConfigError
from rm_device_plugins.vendor import Vendor

ENTRY_POINTS = "rm_abstract.device_vendors"
"""Group of the entry points by which other distributions offer a Vendor class."""

BUILT_IN = {
    "furiosa": "rm_device_plugins.vendors.furiosa:FuriosaVendor",
    "generic": "rm_device_plugins.vendors.generic:GenericVendor",
    "nvidia": "rm_device_plugins.vendors.nvidia:NvidiaVendor",
    "rebellions": "rm_device_plugins.vendors.rebellions:RebellionsVendor",
    "simulator": "rm_device_plugins.vendors.simulator:SimulatorVendor",
    "upmem": "rm_device_plugins.vendors.upmem:UpmemVendor",
}


def vendor_class(name: str) -> type[Vendor]:
    """The class for ``--vendor``: a built-in name, ``module:Class``, or an entry point. Raises ConfigError."""
    offered = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
    reference = BUILT_IN.get(name) or offered.get(name) or name
    module, colon, attribute = reference.partition(":")
    if not colon:
        known = ", ".join(sorted(BUILT_IN.keys() | offered.keys()))
        raise ConfigError(f"there is no vendor {name!r}; known are {known}; or name a class as module:Class")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"the vendor {name!r} cannot be loaded: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Vendor)):
        raise ConfigError(f"{reference} is no subclass of rm_device_plugins.vendor.Vendor")
    return found
