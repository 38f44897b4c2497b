"""Models under a prefix of a bucket."""

import json
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256

from rm_abstract.core.errors import ArtifactMismatch, BadInput
from rm_abstract.http import NotFound
from rm_abstract.s3 import BUCKET, S3, S3Object
from rm_abstract.sources.base import ModelSource, SourceFile, is_code


class S3Source(ModelSource):
    """A model in ``BUCKET/PREFIX``: its files are the objects whose keys are the prefix, ``/``, and a name.

    The revision is a digest over names, sizes, ETags and version ids, so replacing a file makes another revision. A
    file's digest is believed where the server has verified it on writing (a SHA-256 over the whole object), and is
    checked when the file is fetched.
    """

    def __init__(self, location: str) -> None:
        self._bucket, _, path = location.partition("/")
        path = path.rstrip("/")
        if not BUCKET.fullmatch(self._bucket) or any(mark in path for mark in "?#"):
            raise BadInput(f"s3://{location} is no place in a bucket; one looks like s3://bucket/models/name")
        if path and any(part in ("", ".", "..") for part in path.split("/")):
            raise BadInput(f"s3://{location} has a part that is empty, . or ..")
        self._prefix = f"{path}/" if path else ""
        self._s3 = S3.from_environment()
        self._objects: dict[str, S3Object] = {}

    def open(self, revision: str | None) -> None:
        """See the base class."""
        for listed in self._s3.list(self._bucket, self._prefix, recursive=self.everything):
            name = listed.key.removeprefix(self._prefix)
            # Some tools make an object for what they take for a directory.
            if self.means(name) and name and not name.endswith("/"):
                self._objects[name] = self._s3.head(self._bucket, listed.key)
        if not self._objects and self.everything:
            self._add_object()
        if not self._objects:
            what = "file" if self.everything else "file of a model; is there one below it?"
            raise BadInput(f"s3://{self._bucket}/{self._prefix} has no {what}")
        self.files = {name: SourceFile(thing.size, thing.digest) for name, thing in self._objects.items()}
        pinned = [each for each in sorted(self._objects.items()) if self.everything or not is_code(each[0])]
        listing = [[name, thing.size, thing.etag, thing.version] for name, thing in pinned]
        text = json.dumps(listing, separators=(",", ":"), ensure_ascii=False)
        self.revision = "sha256:" + sha256(text.encode()).hexdigest()
        if revision not in (None, self.revision):
            raise ArtifactMismatch(
                f"s3://{self._bucket}/{self._prefix} has changed: it was {revision}, and is {self.revision} now"
            )

    def _add_object(self) -> None:
        """The location itself, where it is that of an object."""
        key = self._prefix.rstrip("/")
        if not key:
            return
        with suppress(NotFound):
            self._objects[key.rpartition("/")[2]] = self._s3.head(self._bucket, key)

    def read(self, name: str, start: int, length: int) -> bytes:
        """See the base class."""
        return self._s3.read(self._bucket, self._objects[name], start, length)

    def stream(self, name: str) -> Iterator[bytes]:
        """See the base class."""
        return self._s3.download(self._bucket, self._objects[name])

    def close(self) -> None:
        """See the base class."""
        self._s3.close()
