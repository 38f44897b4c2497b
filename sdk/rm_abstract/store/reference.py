"""References to images: ``[SCHEME://]PLACE/REPOSITORY[:TAG][@DIGEST]``; without a scheme, in a registry."""

import re
from dataclasses import dataclass, replace
from typing import Final, Self

from rm_abstract.core.errors import BadInput
from rm_abstract.s3 import BUCKET as _BUCKET_NAME

_PART: Final = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_REFERENCE: Final = re.compile(
    rf"(?P<host>[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?(?::[0-9]{{1,5}})?|\[[0-9a-fA-F:]+\](?::[0-9]{{1,5}})?)"
    rf"/(?P<repository>{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_KEPT: Final = re.compile(
    r"(?P<repository>[^:@\0]+)(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
DIRECTORY: Final = "file"
BUCKET: Final = "s3"
DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True)
class Reference:
    """A manifest in a registry, a directory or a bucket. Without tag and digest, the tag is ``latest``."""

    host: str
    repository: str
    tag: str = ""
    digest: str = ""
    scheme: str = ""
    """Of one in a directory (``file``, without host) or a bucket (``s3``, which the host is)."""

    @classmethod
    def of_store(cls, text: str) -> Self:
        """The reference in ``text``: ``file:///DIRECTORY/REPOSITORY:TAG``, ``s3://BUCKET/REPOSITORY:TAG``.

        Without a scheme, as ``parse`` reads it. Raises BadInput.
        """
        scheme, separator, rest = text.partition("://")
        if not separator:
            return cls.parse(text)
        match = _KEPT.fullmatch(rest)
        host, _, repository = match["repository"].partition("/") if match else ("", "", "")
        parts = repository.split("/")
        if match is None or scheme not in (DIRECTORY, BUCKET) or any(part in ("", ".", "..") for part in parts):
            raise BadInput(
                f"{text!r} is no reference; one looks like registry.example.com/team/model:v1, "
                "file:///directory/team/model:v1 or s3://bucket/team/model:v1"
            )
        if (scheme == DIRECTORY) == bool(host) or (scheme == BUCKET and not _BUCKET_NAME.fullmatch(host)):
            raise BadInput(f"{text!r} is no reference; after file:// comes a path, after s3:// the name of a bucket")
        path = f"/{repository}" if scheme == DIRECTORY else repository
        return cls(host, path, match["tag"] or "", match["digest"] or "", scheme)

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
        name = f"{self.host}/{self.repository.lstrip('/')}"
        if self.scheme:
            name = f"{self.scheme}://{name}"
        return f"{name}@{self.digest}" if self.digest else f"{name}:{self.tag or 'latest'}"
