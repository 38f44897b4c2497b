"""Models in a directory of a PersistentVolumeClaim that is mounted into the container."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rm_api.names import ENV_PVC_DIR

from rm_abstract.core.errors import ArtifactMismatch, BadInput
from rm_abstract.sources.base import ModelSource, SourceFile, hash_file, is_code
from rm_abstract.sources.facts import canonical_digest
from rm_abstract.store.layers import file_chunks

_CLAIM: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


class PvcSource(ModelSource):
    """A model in ``CLAIM/DIRECTORY``. Links are followed as long as they stay in the volume.

    The revision is a digest over names, sizes and digests of the files, which are all read for it: a volume has nothing
    else that could be relied on, as times are set by whoever writes.
    """

    local = True

    def __init__(self, location: str) -> None:
        claim, _, path = location.partition("/")
        self._uri = f"pvc://{location}"
        if not _CLAIM.fullmatch(claim) or ".." in path.split("/") or "\0" in path:
            raise BadInput(f"{self._uri} is no directory of a claim; one looks like pvc://claim/models/name")
        mounts = os.environ.get(ENV_PVC_DIR)
        if not mounts:
            raise BadInput(f"{self._uri} can be read only where the claim is mounted; {ENV_PVC_DIR} says where that is")
        self._volume = Path(mounts, claim)
        if not self._volume.is_dir():
            raise BadInput(f"the claim {claim} is not mounted at {self._volume}")
        self._volume = self._volume.resolve()
        self._directory = self._volume / path.strip("/")
        self._paths: dict[str, Path] = {}

    def open(self, revision: str | None) -> None:
        """See the base class."""
        try:
            directory = self._inside(self._directory)
            # Below the directory itself are only modules of embedding models, such as 1_Pooling.
            there = [*directory.iterdir(), *directory.glob("*/config.json")]
            named = {path.relative_to(directory).as_posix(): path for path in sorted(there)}
            self._paths = {name: self._inside(path) for name, path in named.items() if self.means(name)}
            odd = next((name for name, path in self._paths.items() if not path.is_file()), None)
            if odd:
                raise BadInput(f"{odd} of {self._uri} is no regular file; a model's files must be")
            hashed = self.pinned or revision is not None
            digests = {
                name: hash_file(path) if hashed else ("", path.stat().st_size) for name, path in self._paths.items()
            }
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BadInput(f"{self._uri} is no directory with a model: {error.strerror}") from error
        except PermissionError as error:
            raise BadInput(f"{self._uri} cannot be read by the user {os.getuid()} that this container has") from error
        if all(map(is_code, digests)):
            raise BadInput(f"{self._uri} has no file of a model; is there one below it?")
        self.files = {name: SourceFile(size, digest) for name, (digest, size) in digests.items()}
        listing = [[name, size, digest] for name, (digest, size) in sorted(digests.items()) if not is_code(name)]
        self.revision = canonical_digest(listing) if hashed else ""
        if revision not in (None, self.revision):
            raise ArtifactMismatch(f"{self._uri} has changed: it was {revision}, and is {self.revision} now")

    def _inside(self, path: Path) -> Path:
        real = path.resolve(strict=True)
        if not real.is_relative_to(self._volume):
            raise BadInput(f"{path.relative_to(self._volume)} of {self._uri} is a link that leads out of the volume")
        return real

    def read(self, name: str, start: int, length: int) -> bytes:
        """See the base class."""
        with self._paths[name].open("rb") as file:
            file.seek(start)
            return file.read(length)

    def stream(self, name: str) -> Iterator[bytes]:
        """See the base class."""
        return file_chunks(self._paths[name])

    def close(self) -> None:
        """See the base class."""
