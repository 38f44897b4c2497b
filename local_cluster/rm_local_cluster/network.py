"""The addresses of a node, chosen clear of whatever the machine already routes."""

import ipaddress
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from .errors import LocalClusterError
from .shell import run

# Downwards from the range that Kubernetes recipes use for pods, so that addresses look familiar where nothing is in
# the way.
_CANDIDATES = tuple(IPv4Network(f"10.{second}.0.0/16") for second in range(244, 199, -1))


@dataclass(frozen=True)
class Addresses:
    """One /16, divided: pods (a /24, the one node's), services (a /20), and the link between machine and node (a
    /30).
    """

    block: IPv4Network

    @property
    def pods(self) -> IPv4Network:
        """The pods' addresses."""
        return IPv4Network((self.block[0], 24))

    @property
    def services(self) -> IPv4Network:
        """The Services' addresses."""
        return IPv4Network((self.block[128 * 256], 20))

    @property
    def link(self) -> IPv4Network:
        """The point-to-point network between the machine and the node."""
        return IPv4Network((self.block[255 * 256], 30))

    @property
    def host(self) -> IPv4Address:
        """The machine's address on the link."""
        return self.link[1]

    @property
    def node(self) -> IPv4Address:
        """The node's address on the link."""
        return self.link[2]

    @property
    def api_service(self) -> IPv4Address:
        """The address of the Service `kubernetes`."""
        return self.services[1]

    @property
    def dns_service(self) -> IPv4Address:
        """The address of the cluster's DNS."""
        return self.services[10]


def of_node(node: str) -> Addresses:
    """The addresses of which `node` is the node's."""
    return Addresses(IPv4Network((node, 16), strict=False))


def choose(taken: Iterable[IPv4Network]) -> Addresses:
    """Choose the first block that overlaps none of `taken`. Raises LocalClusterError when there is none."""
    in_use = list(taken)
    for block in _CANDIDATES:
        if not any(block.overlaps(network) for network in in_use):
            return Addresses(block)
    raise LocalClusterError(
        "no network is left for the node: the machine has routes into every /16 from "
        f"{_CANDIDATES[-1]} to {_CANDIDATES[0]}; remove one of them (see `ip route`)"
    )


def networks_in_use() -> list[IPv4Network]:
    """The networks that this machine routes, but for the default route."""
    routes = json.loads(run(["ip", "-json", "-4", "route", "show", "table", "all"]).stdout or "[]")
    return parse_routes(routes)


def parse_routes(routes: Sequence[Mapping[str, object]]) -> list[IPv4Network]:
    """The destinations in the output of `ip -json -4 route`, but for the default route."""
    found = []
    for route in routes:
        destination = str(route.get("dst", "default"))
        if destination not in {"default", "0.0.0.0/0"}:
            found.append(ipaddress.IPv4Network(destination, strict=False))
    return found


def interface_of(name: str) -> str:
    """The machine's end of the link to the node called `name`."""
    return f"{name}0"


def connect(name: str, addresses: Addresses, node_pid: int) -> None:
    """Make the link to the node whose supervisor is `node_pid`, and the routes to its pods and services.

    All of it hangs on one interface, and disappears with it when the node's network namespace does.
    """
    interface = interface_of(name)
    run(["ip", "link", "add", interface, "type", "veth", "peer", "name", "eth0", "netns", str(node_pid)])
    run(["ip", "addr", "add", f"{addresses.host}/{addresses.link.prefixlen}", "dev", interface])
    run(["ip", "link", "set", interface, "up"])
    for network in (addresses.pods, addresses.services):
        run(["ip", "route", "add", str(network), "via", str(addresses.node), "dev", interface])


def disconnect(name: str) -> None:
    """Remove the link if it is still there."""
    run(["ip", "link", "del", interface_of(name)], check=False)
