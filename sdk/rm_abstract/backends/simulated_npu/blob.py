"""The file format of a compiled model: a program, and a header that binds it to a product and a driver version.

Layout: 8 bytes of magic, the header's length (4 bytes, big-endian), the header (JSON), the program.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from rm_abstract.core.errors import ArtifactMismatch, BadInput

MAGIC: Final = b"RMASIMX\x01"
_MAX_HEADER: Final = 1 << 16
_PRODUCTS: Final = {"simx1": "Simulated NPU X1"}


@dataclass(frozen=True)
class Target:
    """What is compiled for."""

    product: str
    driver: str

    @classmethod
    def parse(cls, text: str) -> "Target":
        """The target in the compiler's notation, such as ``simx1:driver=1.4.0``. Raises BadInput."""
        chip, _, options = text.partition(":")
        if chip not in _PRODUCTS:
            raise BadInput(f"there is no target {chip!r}; there are {', '.join(_PRODUCTS)}, as in simx1:driver=1.4.0")
        name, _, driver = options.partition("=")
        if name != "driver" or not driver or "," in driver:
            raise BadInput(f"the target {text!r} names no driver version; one does as in {chip}:driver=1.4.0")
        return cls(_PRODUCTS[chip], driver)


@dataclass(frozen=True)
class Header:
    """What a blob says of itself."""

    product: str
    driver: str
    compiler: str
    """Version of the compiler that made the program, which alone can load it."""
    size: int
    sha256: str


def write_blob(path: Path, target: Target, compiler: str, program: bytes | memoryview) -> None:
    """Write a blob around ``program``."""
    content = memoryview(program)
    header = Header(target.product, target.driver, compiler, content.nbytes, hashlib.sha256(content).hexdigest())
    text = json.dumps(asdict(header), sort_keys=True).encode()
    with path.open("wb") as file:
        file.write(MAGIC + len(text).to_bytes(4, "big") + text)
        file.write(content)


def read_header(path: Path) -> Header:
    """The header of a blob. Raises ArtifactMismatch where the file is none, or is not whole."""
    return _read(path)[0]


def read_program(path: Path) -> tuple[Header, bytes]:
    """The header and the program of a blob. Raises ArtifactMismatch where the file is none, or is not whole."""
    header, start = _read(path)
    with path.open("rb") as file:
        file.seek(start)
        content = file.read()
    if hashlib.sha256(content).hexdigest() != header.sha256:
        raise ArtifactMismatch(f"{path.name} is damaged: the program does not have the digest in its header")
    return header, content


def _read(path: Path) -> tuple[Header, int]:
    try:
        with path.open("rb") as file:
            magic, length = file.read(len(MAGIC)), int.from_bytes(file.read(4), "big")
            if magic != MAGIC or not 0 < length <= _MAX_HEADER:
                raise ArtifactMismatch(f"{path.name} was not compiled for this device: it does not begin like a blob")
            header = Header(**json.loads(file.read(length)))
            start = file.tell()
        size = path.stat().st_size
    except FileNotFoundError:
        raise ArtifactMismatch(f"the artifact has no {path.name}") from None
    except (ValueError, TypeError):
        raise ArtifactMismatch(f"{path.name} has a header that is not valid") from None
    if size != start + header.size:
        raise ArtifactMismatch(
            f"{path.name} is damaged: it has {size} bytes, and its header describes {start + header.size}"
        )
    return header, start
