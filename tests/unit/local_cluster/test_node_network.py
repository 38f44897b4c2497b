"""The node's addresses stay clear of the machine's routes and of each other."""

from ipaddress import IPv4Network

import pytest
from rm_local_cluster import LocalClusterError, network

FIRST = IPv4Network("10.244.0.0/16")


@pytest.mark.parametrize(
    ("taken", "chosen"),
    [
        ([], "10.244.0.0/16"),
        (["192.168.1.0/24", "172.17.0.0/16"], "10.244.0.0/16"),
        (["10.244.0.0/24"], "10.243.0.0/16"),
        (["10.244.255.0/30", "10.243.128.0/20"], "10.242.0.0/16"),
        (["10.240.0.0/12"], "10.239.0.0/16"),
    ],
)
def test_the_first_block_without_overlap_is_chosen(taken: list[str], chosen: str) -> None:
    assert network.choose(map(IPv4Network, taken)).block == IPv4Network(chosen)


def test_no_block_left_is_an_error_that_names_the_range() -> None:
    with pytest.raises(LocalClusterError, match=r"10\.200\.0\.0/16 to 10\.244\.0\.0/16.*ip route"):
        network.choose([IPv4Network("10.0.0.0/8")])


def test_the_parts_of_a_block_lie_in_it_and_apart() -> None:
    addresses = network.Addresses(FIRST)
    parts = [addresses.pods, addresses.services, addresses.link]
    assert all(part.subnet_of(FIRST) for part in parts)
    assert not any(a.overlaps(b) for a in parts for b in parts if a is not b)
    assert addresses.host != addresses.node
    assert {addresses.host, addresses.node} <= set(addresses.link.hosts())
    assert {addresses.api_service, addresses.dns_service} <= set(addresses.services.hosts())


def test_the_nodes_address_tells_the_rest() -> None:
    addresses = network.choose([])
    assert network.of_node(str(addresses.node)) == addresses


def test_all_routes_count_but_the_default_one() -> None:
    routes = [
        {"dst": "default", "gateway": "192.0.2.1", "dev": "eth0"},
        {"dst": "192.0.2.0/24", "dev": "eth0", "scope": "link"},
        {"type": "local", "dst": "127.0.0.1", "dev": "lo", "table": "local"},
        {"dst": "10.244.3.7/16", "dev": "tun0"},
    ]
    assert network.parse_routes(routes) == [
        IPv4Network("192.0.2.0/24"),
        IPv4Network("127.0.0.1/32"),
        IPv4Network("10.244.0.0/16"),
    ]
