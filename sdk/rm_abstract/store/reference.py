"""References to things in a registry: ``HOST/REPOSITORY[:TAG][@DIGEST]``."""

import re
from dataclasses import dataclass, replace
from typing import Final, Self

from rm_abstract.core.errors import BadInput

_PART: Final = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_REFERENCE: Final = re.compile(
    rf"(?P<host>[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?(?::[0-9]{{1,5}})?|\[[0-9a-fA-F:]+\](?::[0-9]{{1,5}})?)"
    rf"/(?P<repository>{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True)
class Reference:
    """A manifest in a registry. Without tag and digest, the tag is ``latest``."""

    host: str
    repository: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """The reference in ``text``; the host is not optional. Raises BadInput."""
        match = _REFERENCE.fullmatch(text)
        if match is None:
            raise BadInput(
                f"{text!r} is no reference; one looks like registry.example.com/team/model:v1 or …@sha256:<digest>"
            )
        parts = match.groupdict(default="")
        return cls(parts["host"], parts["repository"], parts["tag"], parts["digest"])

    def at(self, revision: str) -> "Reference":
        """The same repository at another tag or digest."""
        if DIGEST.fullmatch(revision):
            return replace(self, tag="", digest=revision)
        if TAG.fullmatch(revision):
            return replace(self, tag=revision, digest="")
        raise BadInput(f"{revision!r} is neither a tag nor a digest")

    @property
    def target(self) -> str:
        """What a manifest is asked for by: the digest before the tag."""
        return self.digest or self.tag or "latest"

    def __str__(self) -> str:
        name = f"{self.host}/{self.repository}"
        return f"{name}@{self.digest}" if self.digest else f"{name}:{self.tag or 'latest'}"
