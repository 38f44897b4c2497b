"""The packages of a file system: Debian's from dpkg, Python's from their metadata, Go's from `go version -m`."""

import re
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Final
from urllib.parse import quote

DPKG_STATUS: Final = "var/lib/dpkg/status"
_LONGEST_LICENCE: Final = 100
# In machine-readable copyright files, the short name is the rest of the line.
_COPYRIGHT_LICENCE: Final = re.compile(r"^License:[ \t]*(\S.*?)\s*$", re.MULTILINE)
_PIN: Final = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)", re.MULTILINE)


@dataclass(frozen=True, order=True)
class Package:
    """One package: ``url`` is its package URL (`pkg:deb/…`), which also identifies it; ``licences`` are as declared."""

    url: str
    name: str
    version: str
    licences: tuple[str, ...] = field(default=(), compare=False)
    expression: str | None = field(default=None, compare=False)
    """The licence as an SPDX expression, where the package declares one."""


def canonical(name: str) -> str:
    """The one spelling of a Python distribution's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(text: str) -> dict[str, str]:
    """The versions that a lock file pins, by canonical name."""
    return {canonical(name): version for name, version in _PIN.findall(text)}


def debian(root: Path = Path("/")) -> list[Package]:
    """The installed packages that dpkg knows of, in order; none where there is no dpkg."""
    status = root / DPKG_STATUS
    if not status.is_file():
        return []
    release = _os_release(root)
    distribution = release.get("ID", "debian")
    suffix = f"&distro={quote(distribution)}-{quote(number)}" if (number := release.get("VERSION_ID")) else ""
    found = []
    for paragraph in status.read_text(encoding="utf-8").split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", paragraph, re.MULTILINE))
        if not fields.get("Status", "").endswith(" installed"):
            continue
        name, version = fields["Package"], fields["Version"]
        url = f"pkg:deb/{quote(distribution)}/{quote(name)}@{quote(version, safe='~:')}"
        url += f"?arch={fields.get('Architecture', 'all')}{suffix}"
        found.append(Package(url, name, version, _debian_licences(root, name)))
    return sorted(found)


def operating_system(root: Path = Path("/")) -> tuple[str, str] | None:
    """Identifier and version of the distribution, or None where the file system does not say."""
    release = _os_release(root)
    return (release["ID"], release.get("VERSION_ID", "")) if "ID" in release else None


def python(site: Path | None = None) -> list[Package]:
    """The distributions of one site-packages (this environment's by default), in order.

    What a virtual environment takes from the system's Python belongs to packages of Debian and is not among them.
    """
    place = site or Path(sysconfig.get_path("purelib"))
    found = {}
    for distribution in distributions(path=[str(place)]):
        name, version = canonical(distribution.name), distribution.version
        expression, licences = _python_licence(distribution)
        found[name] = Package(f"pkg:pypi/{name}@{quote(version)}", name, version, licences, expression)
    return sorted(found.values())


def go(described: str) -> list[Package]:
    """The modules in a program of Go, the standard library among them; ``described`` is what `go version -m` prints."""
    lines = [line.split("\t") for line in described.splitlines()]
    found = []
    if compiler := re.search(r": go(\d\S*)", described):
        found.append(("stdlib", compiler[1]))
    for words in lines:
        if len(words) >= 4 and words[1] in ("mod", "dep") and words[3] != "(devel)":
            found.append((words[2], words[3]))
        elif len(words) >= 4 and words[1] == "=>":
            found[-1] = (words[2], words[3])
    return sorted(
        {Package(f"pkg:golang/{quote(name.lower())}@{quote(number)}", name, number) for name, number in found}
    )


def _os_release(root: Path) -> dict[str, str]:
    for name in ("etc/os-release", "usr/lib/os-release"):
        if (root / name).is_file():
            lines = (root / name).read_text(encoding="utf-8").splitlines()
            return {key: value.strip('"') for key, _, value in (line.partition("=") for line in lines) if value}
    return {}


def _debian_licences(root: Path, name: str) -> tuple[str, ...]:
    path = root / "usr/share/doc" / name / "copyright"
    if not path.is_file():
        return ()
    text = path.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("Format:"):
        return ()
    return tuple(_short(_COPYRIGHT_LICENCE.findall(text)))


def _python_licence(distribution: Distribution) -> tuple[str | None, tuple[str, ...]]:
    metadata = distribution.metadata
    if expressions := metadata.get_all("License-Expression"):
        return str(expressions[0]), ()
    classifiers = metadata.get_all("Classifier") or []
    named = [one.rpartition(" :: ")[2] for one in classifiers if one.startswith("License :: ")]
    return None, tuple(_short(named or metadata.get_all("License") or []))


def _short(licences: Iterable[str]) -> Iterator[str]:
    """Without repetitions, and without what is a text of a licence and no name."""
    for one in sorted(set(licences)):
        if one and "\n" not in one and len(one) <= _LONGEST_LICENCE:
            yield one
