"""A Debian to build on where no public registry is reached: made with mmdebstrap from the archive's packages."""

from pathlib import Path

from .keys import recipe_digest
from .process import Progress, run_logged

_SUITE = "trixie"
_PACKAGES = ("ca-certificates",)
# What Debian's own slim images leave out, too.
_DPKG_OPTIONS = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
)
_APT_OPTIONS = ('Acquire::Languages "none"', 'APT::Install-Recommends "false"')

DOCKERFILE = 'FROM scratch\nADD base.tar /\nCMD ["/bin/bash"]\n'


def base_key(architecture: str) -> str:
    """What identifies the base: its recipe, 16 hex digits. The date is not part of it: a base is made once and kept."""
    return recipe_digest(_SUITE, _PACKAGES, _DPKG_OPTIONS, _APT_OPTIONS, DOCKERFILE, architecture)


def make_archive(target: Path, apt_configuration: Path, progress: Progress) -> None:
    """Write the base's root file system as a tar. Raises LocalClusterError with mmdebstrap's last lines."""
    inside = '"$1"/etc/apt/apt.conf.d/99-build'
    argv = [
        "mmdebstrap",
        "--variant=minbase",
        f"--include={','.join(_PACKAGES)}",
        *(f"--aptopt={option}" for option in _APT_OPTIONS),
        *(f"--dpkgopt={option}" for option in _DPKG_OPTIONS),
        # This machine's way to its mirror is needed inside too, and must not stay.
        f"--setup-hook=cp '{apt_configuration}' {inside}",
        f"--customize-hook=rm {inside}",
        '--customize-hook=rm -rf "$1"/var/log/* "$1"/var/cache/debconf/*-old',
        _SUITE,
        str(target),
    ]
    run_logged(argv, target.with_suffix(".log"), what=f"making a Debian {_SUITE} base", progress=progress)
