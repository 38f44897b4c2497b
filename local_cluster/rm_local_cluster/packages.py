"""What the machine has to have installed, and installing it where that is a matter of one command."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from .build import Progress
from .shell import run

# Debian's package of every command. The last three and busybox make images; the node itself runs without.
PACKAGES: Mapping[str, str] = {
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "mount": "mount",
    "ip": "iproute2",
    "iptables": "iptables",
    "runc": "runc",
    "busybox": "busybox-static",
    "buildah": "buildah",
    "skopeo": "skopeo",
    "mmdebstrap": "mmdebstrap",
}
CNI_DIRECTORIES = (Path("/usr/lib/cni"), Path("/opt/cni/bin"), Path("/usr/libexec/cni"))
_CNI_PACKAGE = "containernetworking-plugins"
_SEARCHED = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def missing() -> list[str]:
    """The Debian packages that are missing, in order."""
    path = f"{os.environ.get('PATH', '')}:{_SEARCHED}"
    lacking = {package for command, package in PACKAGES.items() if shutil.which(command, path=path) is None}
    if not any((directory / "bridge").exists() for directory in CNI_DIRECTORIES):
        lacking.add(_CNI_PACKAGE)
    return sorted(lacking)


def can_install(os_release: str | None = None) -> bool:
    """Whether this package may install what is missing: root, on Debian or what is made from it. `os_release` stands
    in for the file.
    """
    release = Path("/etc/os-release")
    text = os_release if os_release is not None else release.read_text(encoding="utf-8") if release.exists() else ""
    settings = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    family = {word for key in ("ID", "ID_LIKE") for word in settings.get(key, "").strip("\"'").split()}
    return os.geteuid() == 0 and not family.isdisjoint({"debian", "ubuntu"})


def install(lacking: list[str], progress: Progress) -> None:
    """Install packages with apt-get. Raises LocalClusterError with what apt-get said last."""
    progress(f"installing with apt-get: {' '.join(lacking)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update"], timeout=600, environment=environment)
    argv = ["apt-get", "install", "--yes", "--no-install-recommends", *lacking]
    run(argv, timeout=1800, environment=environment)
