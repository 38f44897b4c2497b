"""Versions by the rules of SemVer 2.0, ranges of them, and what a plugin says of itself and of its hosts."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import total_ordering
from typing import Any, Final, Self

from rm_abstract.core.errors import BadInput

_NUMBER: Final = r"(?:0|[1-9]\d*)"
_IDENTIFIER: Final = rf"(?:{_NUMBER}|\d*[A-Za-z-][0-9A-Za-z-]*)"
_VERSION: Final = re.compile(
    rf"(?P<major>{_NUMBER})(?:\.(?P<minor>{_NUMBER})(?:\.(?P<patch>{_NUMBER})"
    rf"(?:-(?P<pre>{_IDENTIFIER}(?:\.{_IDENTIFIER})*))?(?:\+(?P<build>[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?)?)?",
    re.ASCII,
)
_PRE: Final = re.compile(rf"{_IDENTIFIER}(?:\.{_IDENTIFIER})*", re.ASCII)
_CLAUSE: Final = re.compile(r"(?P<operator>\^|~|==|=|!=|>=|<=|>|<)?\s*(?P<version>\S+)")
_LONGEST: Final = 256


@total_ordering
@dataclass(frozen=True, eq=False, slots=True)
class VersionInfo:
    """A version, ordered as SemVer orders them: ``1.0.0-alpha < 1.0.0-alpha.2 < 1.0.0-alpha.10 < 1.0.0``.

    Raises BadInput where a part is negative or ``pre`` is not a row of identifiers.
    """

    major: int
    minor: int = 0
    patch: int = 0
    pre: str = ""
    """Of a pre-release: identifiers with dots between, such as ``rc.1``."""
    build: str = ""
    """Metadata of the build. It has no part in comparisons."""

    def __post_init__(self) -> None:
        if min(self.major, self.minor, self.patch) < 0:
            raise BadInput(f"the parts of a version are not negative, but {self.major}.{self.minor}.{self.patch}")
        if self.pre and not _PRE.fullmatch(self.pre):
            raise BadInput(
                f"{self.pre!r} names no pre-release; one looks like rc.1, and its numbers begin with no zero"
            )

    @classmethod
    def parse(cls, text: str, *, partial: bool = False) -> Self:
        """The version that ``text`` writes, such as ``1.4.0-rc.1+linux``. Raises BadInput where it is none.

        With ``partial``, ``1`` and ``1.4`` are versions too, whose missing parts are 0.
        """
        match = _VERSION.fullmatch(text) if len(text) <= _LONGEST else None
        if match is None or (match["patch"] is None and not partial):
            raise BadInput(f"{text[:80]!r} is no version; one looks like 1.4.0 or 1.4.0-rc.1 (semver.org)")
        major, minor, patch = (int(match[part] or 0) for part in ("major", "minor", "patch"))
        return cls(major, minor, patch, match["pre"] or "", match["build"] or "")

    @classmethod
    def current(cls) -> Self:
        """The version of RM Abstract that is running."""
        from rm_abstract import __version__  # noqa: PLC0415 (the package is complete only once this module is)

        return cls.parse(__version__)

    @property
    def core(self) -> tuple[int, int, int]:
        """Major, minor and patch."""
        return self.major, self.minor, self.patch

    def is_compatible_with(self, min_required: "VersionInfo") -> bool:
        """True if what was made for ``min_required`` works with this version: not older, and of the same major."""
        return self.major == min_required.major and self >= min_required

    def _key(self) -> tuple[Any, ...]:
        # Numeric identifiers come before words; a release comes after all of its pre-releases.
        identifiers = self.pre.split(".") if self.pre else []
        ranks = tuple((0, int(word), "") if word.isdecimal() else (1, 0, word) for word in identifiers)
        return (*self.core, not self.pre, ranks)

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, VersionInfo) else NotImplemented

    def __lt__(self, other: "VersionInfo") -> bool:
        return self._key() < other._key() if isinstance(other, VersionInfo) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __str__(self) -> str:
        pre, build = (f"-{self.pre}" if self.pre else ""), (f"+{self.build}" if self.build else "")
        return f"{self.major}.{self.minor}.{self.patch}{pre}{build}"


@dataclass(frozen=True, slots=True)
class VersionRange:
    """Which versions will do: clauses that must all hold.

    Written ``>=1.2, <2``; ``^1.2`` (nothing that SemVer calls breaking: below 2, and ``^0.2.1`` below 0.3), ``~1.2.3``
    (below 1.3), ``1.2.*``, ``==1.2.3``, ``!=1.2.3``. A bare version is the same as ``==``; the empty text and ``*`` are
    any version. A pre-release is in a range only where a clause names a pre-release of the same release.
    """

    clauses: tuple[tuple[str, VersionInfo], ...] = ()
    text: str = "*"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The range that ``text`` writes. Raises BadInput where it is none."""
        clauses: list[tuple[str, VersionInfo]] = []
        for part in (part.strip() for part in text.split(",")):
            if part in {"", "*"}:
                continue
            match = _CLAUSE.fullmatch(part)
            if match is None:
                raise BadInput(f"{part!r} in {text!r} is no range of versions; one looks like >=1.2,<2 or ^1.2")
            clauses.extend(_clause(match["operator"] or "==", match["version"]))
        return cls(tuple(clauses), text.strip() or "*")

    def __contains__(self, version: VersionInfo) -> bool:
        named = any(wanted.pre and wanted.core == version.core for _, wanted in self.clauses)
        return (not version.pre or named) and all(_holds(version, *clause) for clause in self.clauses)

    def __str__(self) -> str:
        return self.text


def _clause(operator: str, text: str) -> list[tuple[str, VersionInfo]]:
    if text.endswith(".*"):
        if operator != "==":
            raise BadInput(f"{operator}{text} is no range of versions; say {text}")
        text, operator = text[:-2], "~"
    version = VersionInfo.parse(text, partial=True)
    given = text.split("-", maxsplit=1)[0].split("+", maxsplit=1)[0].count(".") + 1
    if operator == "^":
        return [(">=", version), ("<", _next(version, _first_that_counts(version, given)))]
    if operator == "~":
        return [(">=", version), ("<", _next(version, min(given, 2) - 1))]
    return [("==" if operator == "=" else operator, version)]


def _first_that_counts(version: VersionInfo, given: int) -> int:
    """The part whose change breaks: the first that is not 0, or the last that was written."""
    return next((index for index, number in enumerate(version.core) if number), given - 1)


def _next(version: VersionInfo, part: int) -> VersionInfo:
    """The lowest release whose number in ``part`` is higher."""
    major, minor, patch = (*version.core[:part], version.core[part] + 1, 0, 0)[:3]
    return VersionInfo(major, minor, patch)


def _holds(version: VersionInfo, operator: str, wanted: VersionInfo) -> bool:
    match operator:
        case ">=":
            return version >= wanted
        case "<=":
            return version <= wanted
        case ">":
            return version > wanted
        case "<":
            return version < wanted
        case "!=":
            return version != wanted
        case _:
            return version == wanted


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """What a plugin says of itself. Raises BadInput where it has no name, or a minimum above its maximum."""

    name: str
    version: VersionInfo
    description: str = ""
    author: str = ""
    min_host_version: VersionInfo | None = None
    """The oldest RM Abstract that it works with."""
    max_host_version: VersionInfo | None = None
    """The newest RM Abstract that it works with, which may be of another major version."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else it says, such as ``device_types``."""

    def __post_init__(self) -> None:
        if not self.name:
            raise BadInput("a plugin needs a name")
        least, most = self.min_host_version, self.max_host_version
        if least is not None and most is not None and least > most:
            raise BadInput(f"plugin {self.name} works with no version: its minimum {least} is above its maximum {most}")

    @property
    def min_rm_abstract_version(self) -> VersionInfo | None:
        """The same as ``min_host_version``."""
        return self.min_host_version

    @property
    def max_rm_abstract_version(self) -> VersionInfo | None:
        """The same as ``max_host_version``."""
        return self.max_host_version

    def incompatibility(self, host: VersionInfo | None = None) -> str:
        """Why it does not work with this version of RM Abstract (default: the running one); empty if it does.

        Without a maximum, a plugin works with its minimum's major version alone: the next one may break it.
        """
        host = host or VersionInfo.current()
        least, most = self.min_host_version, self.max_host_version
        about = f"plugin {self.name} {self.version}"
        if least is not None and host < least:
            return f"{about} needs RM Abstract {least} or newer, and this is {host}"
        if most is not None and host > most:
            return f"{about} works with RM Abstract up to {most}, and this is {host}; look for a newer plugin"
        if least is not None and most is None and not host.is_compatible_with(least):
            return (
                f"{about} was made for RM Abstract {least.major}, and this is {host}; "
                f"look for a newer plugin, or have it state a maximum version"
            )
        return ""

    def __str__(self) -> str:
        author = f" by {self.author}" if self.author else ""
        return f"{self.name} v{self.version}{author}"
