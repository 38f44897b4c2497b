"""What apt and pip on this machine know about reaching their mirrors, for use inside a build.

It is handed to a build as secrets, which are there while a step runs and reach no layer.
"""

import configparser
import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

# How to reach a mirror; nothing about what to install or where to keep it.
_PIP_KEYS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "retries")
_APT_KEYS = re.compile(
    r"Acquire::(?:https?::(?!CaInfo|SslCert|SslKey)\S+|Check-Valid-Until|Check-Date|Retries|ForceIPv[46])"
)
_CERTIFICATES_IN_BUILD = "/run/secrets/ca.crt"
_SYSTEM_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def pip_configuration(environment: Mapping[str, str], files: Iterable[str], *, certificates: bool) -> str:
    """The text of a pip.conf with this machine's way to its package index.

    `files` are the texts of its configuration files, the most important last; variables (`PIP_INDEX_URL` and so on)
    come before all. `certificates` tells whether a bundle goes to the build too. Several values of a setting are kept.
    """
    found: dict[str, str] = {}
    for text in files:
        parser = configparser.RawConfigParser()
        parser.read_string(text)
        for section in ("global", "install"):
            if parser.has_section(section):
                found |= {key: value for key, value in parser.items(section) if key in _PIP_KEYS}
    for key in _PIP_KEYS:
        variable = environment.get("PIP_" + key.upper().replace("-", "_"))
        if variable:
            found[key] = variable
    if certificates:
        found["cert"] = _CERTIFICATES_IN_BUILD
    lines = [f"{key} = {' '.join(found[key].split())}" for key in sorted(found)]
    return "\n".join(["[global]", *lines, ""])


def apt_configuration(dump: str) -> str:
    """The lines of `apt-config dump` that say how to reach a mirror (proxies, retries, dates), as an apt.conf."""
    kept = [line for line in dump.splitlines() if _APT_KEYS.match(line) and not line.endswith(' "";')]
    return "".join(f"{line}\n" for line in kept)


def certificate_bundle(environment: Mapping[str, str], system: Path = _SYSTEM_CERTIFICATES) -> Path | None:
    """The bundle of certificates that this machine trusts: what pip is told to use, else the system's, if any."""
    for variable in ("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        if (named := environment.get(variable)) and Path(named).is_file():
            return Path(named)
    return system if system.is_file() else None


def write_secrets(directory: Path) -> dict[str, Path]:
    """Write this machine's settings into `directory` and return the build's secrets: identifier → file."""
    certificates = certificate_bundle(os.environ)
    pip = pip_configuration(os.environ, _pip_files(), certificates=certificates is not None)
    secrets = {"apt.conf": directory / "apt.conf", "pip.conf": directory / "pip.conf"}
    secrets["apt.conf"].write_text(apt_configuration(_apt_dump()), encoding="utf-8")
    secrets["pip.conf"].write_text(pip, encoding="utf-8")
    if certificates is not None:
        secrets["ca.crt"] = certificates
    return secrets


def _pip_files() -> list[str]:
    home = Path.home()
    places = [Path("/etc/pip.conf"), home / ".pip/pip.conf", home / ".config/pip/pip.conf"]
    if named := os.environ.get("PIP_CONFIG_FILE"):
        places.append(Path(named))
    return [place.read_text(encoding="utf-8") for place in places if place.is_file()]


def _apt_dump() -> str:
    try:
        return subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""  # not a Debian: there is nothing to hand over
