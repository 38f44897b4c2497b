"""Which images there are, and what goes into each."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from ..errors import LocalClusterError

REPOSITORY = "rm-abstract"
PUBLIC_BASE = "docker.io/library/debian:trixie-slim"


class Part(StrEnum):
    """Something that is made before an image can be built; the value is its path in the build's context."""

    WHEEL = "dist"
    LAUNCHER = "runtime_images/launcher/rma-launch"
    REGISTRY = "runtime_images/registry/registry"


@dataclass(frozen=True)
class Image:
    """One image: its Dockerfile's directory under `runtime_images/`, and what the Dockerfile takes.

    `files` are paths in the checkout, copied to the same path of the build's context; `on_base` tells whether it starts
    from the Debian base or from nothing. One that is not made `by_default` is made only when it is named.
    """

    name: str
    part: Part
    files: tuple[str, ...] = ()
    on_base: bool = False
    by_default: bool = True

    @property
    def dockerfile(self) -> str:
        """Its path in the checkout."""
        return f"runtime_images/{self.name}/Dockerfile"

    @property
    def bill(self) -> str | None:
        """Where in the context the bill of materials is of a program of Go; images with Python make their own."""
        return None if self.part is Part.WHEEL else f"runtime_images/{self.name}/bill.cdx.json"

    @property
    def repository(self) -> str:
        """Its name in a registry, without a tag."""
        return f"{REPOSITORY}/{self.name}"


def _python(name: str, *further: str, by_default: bool = True) -> Image:
    files = (f"requirements/{name}.txt", f"runtime_images/{name}/image.json", *further)
    return Image(name, Part.WHEEL, files, on_base=True, by_default=by_default)


_UPMEM = "tests/contract/upmem_stand_in"


# In the order in which a first `up` needs them; the largest last.
IMAGES = {
    image.name: image
    for image in (
        Image("registry", Part.REGISTRY, ("runtime_images/registry/config.yml",)),
        Image("launcher", Part.LAUNCHER),
        _python("operator"),
        _python("runtime"),
        _python("device-plugin"),
        _python("openvino"),
        _python("iree"),
        _python(
            "pim",
            "sdk/rm_abstract/backends/pim/rma_pim.c",
            *(f"{_UPMEM}/{name}" for name in ("dpu.c", "dpu.h", "program.h")),
        ),
        _python("openvino-compiler"),
        _python("iree-compiler"),
        _python("deepspeed", by_default=False),
    )
}


def select(names: Iterable[str] | None) -> list[Image]:
    """The images of these names in the catalogue's order; for None those that are made by default.

    Raises LocalClusterError for any other name.
    """
    if names is None:
        return [image for image in IMAGES.values() if image.by_default]
    wanted = set(names)
    if unknown := sorted(wanted - IMAGES.keys()):
        raise LocalClusterError(f"no image is called {', '.join(unknown)}; there are {', '.join(IMAGES)}")
    return [image for image in IMAGES.values() if image.name in wanted]
