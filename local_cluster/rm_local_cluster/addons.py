"""What runs inside the cluster to make it whole: the images for it, and its manifests."""

import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from . import oci
from .families import COREDNS
from .network import Addresses

# Under this name pods reach the machine that runs the node.
HOST_NAME = "host.rm-abstract.internal"
# The machine's own resolvers are out of the pods' reach, so a name from outside is answered at once: there is no such
# name.
_NO_OUTSIDE = """template ANY ANY {
            rcode NXDOMAIN
        }"""


@dataclass(frozen=True)
class Images:
    """The images that come with the node: their names, and the archives that hold them."""

    coredns: str
    pause: str
    archives: tuple[Path, ...]


def write_images(directory: Path, binaries: Mapping[str, Path]) -> Images:
    """Write the archives of the images that the node needs below `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    names, archives = [], []
    for name, user in (("coredns", "0:0"), ("pause", "65535:65535")):
        reference = f"localhost/rm-abstract/{name}:{COREDNS.version}"
        archive = directory / f"{name}.tar"
        oci.write_archive(
            archive, reference, {name: oci.File(binaries[name].read_bytes())}, entrypoint=[f"/{name}"], user=user
        )
        names.append(reference)
        archives.append(archive)
    return Images(coredns=names[0], pause=names[1], archives=tuple(archives))


def manifests(addresses: Addresses, images: Images) -> str:
    """The manifests of the cluster's DNS and its storage class, as YAML documents."""
    template = (Path(__file__).parent / "manifests" / "addons.yaml").read_text(encoding="utf-8")
    return string.Template(template).substitute(
        coredns_image=images.coredns,
        dns_service=addresses.dns_service,
        host_ip=addresses.host,
        host_name=HOST_NAME,
        outside=_NO_OUTSIDE,
    )
