"""What runs inside the cluster to make it whole: the images for it, and its manifests."""

import json
import string
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import oci
from .families import COREDNS
from .network import Addresses

# Under this name pods reach the machine that runs the node.
HOST_NAME = "host.rm-abstract.internal"


def image(name: str) -> str:
    """The reference of one of the node's own images, `coredns` or `pause`."""
    return f"localhost/rm-abstract/{name}:{COREDNS.version}"


def write_images(directory: Path, binaries: Mapping[str, Path]) -> tuple[Path, ...]:
    """Write the archives of the images that the node needs below `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    archives = []
    for name, user in (("coredns", "0:0"), ("pause", "65535:65535")):
        archive = directory / f"{name}.tar"
        files = {name: oci.File(binaries[name].read_bytes())}
        oci.write_archive(archive, image(name), files, entrypoint=[f"/{name}"], user=user)
        archives.append(archive)
    return tuple(archives)


def manifests(addresses: Addresses, resolvers: Sequence[str] = ()) -> str:
    """The manifests of the cluster's DNS and its storage class, as YAML documents.

    `resolvers` are name servers for names from outside; without any, such a name is answered at once: it does not
    exist.
    """
    template = (Path(__file__).parent / "manifests" / "addons.yaml").read_text(encoding="utf-8")
    outside = (
        f"forward . {' '.join(resolvers)}" if resolvers else "template ANY ANY {\n            rcode NXDOMAIN\n        }"
    )
    return string.Template(template).substitute(
        coredns_image=image("coredns"),
        dns_service=addresses.dns_service,
        host_ip=addresses.host,
        host_name=HOST_NAME,
        outside=outside,
        # A change of it brings new pods; by itself CoreDNS would notice its new configuration minutes later.
        outside_name=json.dumps(",".join(resolvers)),
    )
