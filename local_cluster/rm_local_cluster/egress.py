"""A node's way to the outside, for those who ask for it: rules on this machine, which `close` takes away again.

Without them the node needs nothing of the machine's packet filter, so that is how a node starts.
"""

import ipaddress
from pathlib import Path

from .errors import LocalClusterError
from .network import Addresses, interface_of
from .paths import NodePaths, nodes_root
from .shell import run

_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
# systemd's own list of servers stands behind the stub on loopback that it names in /etc/resolv.conf.
_RESOLVER_FILES = (Path("/run/systemd/resolve/resolv.conf"), Path("/etc/resolv.conf"))


def open_for(paths: NodePaths, addresses: Addresses) -> None:
    """Let the node reach what this machine reaches; nothing changes where that is so already."""
    paths.outside.touch()
    if _FORWARDING.read_text(encoding="ascii").strip() == "0":
        _forwarding_was_off().touch()
        _FORWARDING.write_text("1", encoding="ascii")
    for table, chain, rule in _rules(paths.name, addresses):
        if run(["iptables", "-w", "-t", table, "-C", chain, *rule], check=False).returncode != 0:
            run(["iptables", "-w", "-t", table, "-I", chain, *rule])


def close(paths: NodePaths) -> None:
    """Take away the node's rules, if it has any; with the last, the machine forwards no more if it did not before."""
    if not is_open(paths):
        return
    for table in ("nat", "filter"):
        listed = run(["iptables", "-w", "-t", table, "-S"]).stdout.splitlines()
        for rule in map(str.split, listed):
            if _comment(paths.name) in rule:
                run(["iptables", "-w", "-t", table, "-D", *rule[1:]])
    paths.outside.unlink()
    if _forwarding_was_off().exists() and not list(nodes_root().glob(f"*{paths.outside.suffix}")):
        _FORWARDING.write_text("0", encoding="ascii")
        _forwarding_was_off().unlink()


def is_open(paths: NodePaths) -> bool:
    """Whether the node may reach the outside."""
    return paths.outside.exists()


def resolvers(files: tuple[Path, ...] = _RESOLVER_FILES) -> list[str]:
    """The addresses of name servers that a pod can ask. Raises LocalClusterError when all are on loopback."""
    for file in files:
        if file.exists():
            found = parse_resolvers(file.read_text(encoding="utf-8"))
            if found:
                return found
    raise LocalClusterError(
        "pods cannot resolve names from outside: this machine's name servers are on its loopback interface only; "
        "name another one in /etc/resolv.conf, or start the cluster without a way to the outside"
    )


def parse_resolvers(text: str) -> list[str]:
    """The IPv4 name servers in the text of a resolv.conf, but for those on loopback."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["nameserver"] and len(words) > 1:
            try:
                address = ipaddress.IPv4Address(words[1])
            except ValueError:
                continue
            if not address.is_loopback:
                found.append(str(address))
    return found


def _rules(name: str, addresses: Addresses) -> list[tuple[str, str, list[str]]]:
    interface = interface_of(name)
    comment = ["-m", "comment", "--comment", _comment(name)]
    answers = ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"]
    return [
        ("nat", "POSTROUTING", ["-s", str(addresses.link), "!", "-o", interface, *comment, "-j", "MASQUERADE"]),
        ("filter", "FORWARD", ["-i", interface, *comment, "-j", "ACCEPT"]),
        ("filter", "FORWARD", ["-o", interface, *answers, *comment, "-j", "ACCEPT"]),
    ]


def _comment(name: str) -> str:
    return f"rm-abstract-{name}"


def _forwarding_was_off() -> Path:
    return nodes_root() / "forwarding-was-off"
