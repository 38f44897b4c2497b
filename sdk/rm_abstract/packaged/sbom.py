"""The bill of materials of an image, in CycloneDX 1.6. The same packages give the same bytes: it holds no time.

Run in the build's last step as `python -m rm_abstract.packaged.sbom`; an image of one program of Go gets its bill from
outside, as `go version -m PROGRAM | python -m rm_abstract.packaged.sbom --program-of IMAGE` prints it.
"""

import argparse
import json
import re
import sys
import uuid
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from rm_abstract.packaged import packages
from rm_abstract.packaged.description import PATH as DESCRIPTION
from rm_abstract.packaged.description import Description
from rm_abstract.packaged.packages import Package

PATH: Final = Path("/usr/share/sbom/rm-abstract.cdx.json")
MEDIA_TYPE: Final = "application/vnd.cyclonedx+json"
_VERSION: Final = re.compile(r"@[^?]*")
_NAMESPACE: Final = uuid.UUID("6f0d4d2c-7a54-5b0e-9d9a-3b7b7f1f3c11")


def document(
    name: str, number: str, found: Sequence[Package], *, system: tuple[str, str] | None = None
) -> dict[str, Any]:
    """The bill of materials of the image ``name`` in version ``number``, over these packages and the system's name."""
    root = f"pkg:oci/{name.rpartition('/')[2]}@{number}"
    components = [_component(package) for package in sorted(found)]
    if system is not None:
        about = {"type": "operating-system", "bom-ref": f"os:{system[0]}", "name": system[0]}
        components.insert(0, {**about, "version": system[1]} if system[1] else about)
    body: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "lifecycles": [{"phase": "build"}],
            "tools": {"components": [{"type": "application", "name": "rm-abstract", "version": number}]},
            "component": {"type": "container", "bom-ref": root, "name": name, "version": number},
        },
        "components": components,
        "dependencies": [{"ref": root, "dependsOn": [one["bom-ref"] for one in components]}],
    }
    # Of the content, so that two builds of one image have one bill, and two images never the same number.
    serial = uuid.uuid5(_NAMESPACE, json.dumps(body, sort_keys=True))
    return {**body, "serialNumber": f"urn:uuid:{serial}"}


def encode(bill: dict[str, Any]) -> bytes:
    """A bill as it is written: keys in order, a line each."""
    return (json.dumps(bill, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def of_program(name: str, number: str, described: str) -> bytes:
    """The bill of the image ``name`` that is one program of Go, of which ``go version -m`` says ``described``.

    Raises ValueError where that names no module.
    """
    found = packages.go(described)
    if not found:
        raise ValueError("`go version -m` names no module of the program")
    return encode(document(name, number, found))


def versions(bill: dict[str, Any]) -> dict[str, str]:
    """Version by package URL, without the version, of the packages in a bill. Raises KeyError where it is no bill."""
    return {_VERSION.sub("", one["purl"]): one["version"] for one in bill["components"] if "purl" in one}


def _component(package: Package) -> dict[str, Any]:
    body: dict[str, Any] = {
        "type": "library",
        "bom-ref": package.url,
        "name": package.name,
        "version": package.version,
        "purl": package.url,
    }
    if package.expression:
        body["licenses"] = [{"expression": package.expression}]
    elif package.licences:
        body["licenses"] = [{"license": {"name": one}} for one in package.licences]
    return body


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the bill of the image that this runs in, or print that of a program; 1 where there is nothing to list."""
    parser = argparse.ArgumentParser(
        prog="python -m rm_abstract.packaged.sbom", description="Write the bill of materials of this image."
    )
    parser.add_argument("--root", type=Path, default=Path("/"), help="another root of the file system")
    parser.add_argument(
        "--program-of", metavar="IMAGE",
        help="print the bill of an image of one program instead, from what `go version -m` says on standard input",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    root: Path = options.root
    try:
        if options.program_of:
            sys.stdout.buffer.write(of_program(options.program_of, version("rm-abstract"), sys.stdin.read()))
            return 0
        name = Description.read(root / DESCRIPTION.relative_to("/")).name
        debian = packages.debian(root)
        if not debian:
            raise ValueError(f"{root / packages.DPKG_STATUS} names no package; the base is to be a Debian")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    found = [*debian, *packages.python()]
    target = root / PATH.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    bill = document(name, version("rm-abstract"), found, system=packages.operating_system(root))
    target.write_bytes(encode(bill))
    return 0


if __name__ == "__main__":
    sys.exit(main())
