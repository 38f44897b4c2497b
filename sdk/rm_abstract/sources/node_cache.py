"""The weights cache of the pod's node: asked before a model's source, and given what it did not have.

It need not be believed: what it gives is hashed while it is written. Where it is away, slow or wrong, the source is as
ever; nothing fails because of it.
"""

import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self

import httpx2
from rm_api.names import (
    ENV_AWS_CREDENTIALS,
    ENV_NETRC,
    ENV_NODE_CACHE,
    ENV_NODE_CACHE_TOKEN_FILE,
    ENV_PVC_DIR,
    ENV_REGISTRY_TOKEN_FILE,
)

from rm_abstract.sources.base import ModelSource, hash_chunks
from rm_abstract.store.layers import file_chunks

LEAST_BYTES: Final = 1 << 20
"""Of a file that it is asked for; smaller ones are not worth the question."""
_CREDENTIALS: Final = (ENV_NETRC, ENV_AWS_CREDENTIALS, ENV_REGISTRY_TOKEN_FILE, ENV_PVC_DIR)
_TIMEOUT: Final = httpx2.Timeout(10, connect=3)
_GRACE_SECONDS: Final = 20.0
_LEAST_RATE: Final = 4 << 20
"""Bytes a second, once the grace is over, below which it is no help."""
_PIECE: Final = 1 << 20


class _Slow(Exception):
    """It gives, or takes, less than is worth the wait."""


class NodeCache:
    """The cache at ``host`` (host:port). What is stored there is for all namespaces where ``public``."""

    def __init__(self, host: str, token_file: Path, *, public: bool, grace_seconds: float = _GRACE_SECONDS) -> None:
        self._host, self._token_file, self._public, self._grace = host, token_file, public, grace_seconds
        # Plain text, to the same node: neither a proxy nor a redirect may lead it elsewhere.
        self._client = httpx2.Client(base_url=f"http://{host}", timeout=_TIMEOUT, trust_env=False)
        self._hits: list[str] = []
        self._filled = self._bytes = 0
        self._why = ""
        self._away = False

    @classmethod
    def from_environment(cls) -> Self | None:
        """That of ``$RMA_NODE_CACHE``; None without it. Public is what a container without credentials can read."""
        host, token = os.environ.get(ENV_NODE_CACHE), os.environ.get(ENV_NODE_CACHE_TOKEN_FILE)
        if not host or not token:
            return None
        return cls(host, Path(token), public=not any(os.environ.get(name) for name in _CREDENTIALS))

    def fetch(self, source: ModelSource, directory: Path, names: Collection[str]) -> dict[str, str]:
        """Write those of the files that it has under ``directory``; their digests. Raises OSError of the disk only."""
        digests = {}
        for name in self._askable(source, names):
            digest, path = source.files[name].digest, directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if self._get(digest, source.files[name].size, path):
                digests[name] = digest
                self._hits.append(digest)
                self._bytes += source.files[name].size
            else:
                path.unlink(missing_ok=True)
        return digests

    def _askable(self, source: ModelSource, names: Collection[str]) -> Iterator[str]:
        """Files of a source elsewhere that can be named by their digest and are large enough; none where it is away."""
        for name in sorted(names):
            file = source.files[name]
            if not self._away and not source.local and file.digest and file.size >= LEAST_BYTES:
                yield name

    def _get(self, digest: str, size: int, path: Path) -> bool:
        try:
            with self._client.stream("GET", f"/v1/blobs/{digest}", headers=self._headers()) as response:
                if response.status_code == 404:
                    return False
                if response.status_code != 200:
                    response.read()
                    return self._refused(response)
                with path.open("wb") as out:
                    found = hash_chunks(self._paced(self._bounded(response.iter_bytes(_PIECE), size)), out)
        except (httpx2.HTTPError, _Slow) as error:
            return self._gone(error)
        if found != (digest, size):
            self._why = f"it gave {found[1]} bytes with digest {found[0]} for {digest} of {size} bytes"
            return False
        return True

    def _bounded(self, chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
        """No more than one byte too many is taken, which shows that it is wrong, however much is given."""
        left = size + 1
        for chunk in chunks:
            yield chunk[:left]
            left -= len(chunk)
            if left <= 0:
                return

    def _paced(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        began, done = time.monotonic(), 0
        for chunk in chunks:
            yield chunk
            done += len(chunk)
            took = time.monotonic() - began
            if took > self._grace and done / took < _LEAST_RATE:
                raise _Slow(f"it moves {done} bytes in {took:.0f} s")

    def fill(self, source: ModelSource, directory: Path, digests: Mapping[str, str]) -> None:
        """Give it what it did not have of the files under ``directory``, which have been verified."""
        for name in self._askable(source, digests):
            if digests[name] not in self._hits:
                self._put(digests[name], source.files[name].size, directory / name)

    def _put(self, digest: str, size: int, path: Path) -> None:
        url, headers = f"/v1/blobs/{digest}", self._headers()
        try:
            # Where it has given something else for this digest, it is to have the right thing.
            if digest not in self._why and self._client.head(url, headers=headers).status_code != 404:
                return
            response = self._client.put(
                url,
                params={"public": "true" if self._public else "false"},
                headers={**headers, "Content-Length": str(size)},
                content=self._paced(file_chunks(path)),
            )
        except (httpx2.HTTPError, OSError, _Slow) as error:
            self._gone(error)
            return
        if response.status_code == 201:
            self._filled += 1
        else:
            self._refused(response)

    def _headers(self) -> dict[str, str]:
        try:
            token = self._token_file.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            raise httpx2.RequestError(f"the token cannot be read: {error}") from error
        return {"Authorization": f"Bearer {token}", "Accept-Encoding": "identity"}

    def _gone(self, error: Exception) -> bool:
        self._away, self._why = True, str(error) or type(error).__name__
        return False

    def _refused(self, response: httpx2.Response) -> bool:
        self._why = f"{response.status_code}: {response.text[:200]}"
        return False

    def facts(self) -> dict[str, Any]:
        """For a report: files and bytes that came from it, files that it was given, and what went wrong."""
        found: dict[str, Any] = {"hits": len(self._hits), "bytes": self._bytes, "filled": self._filled}
        return {**found, **({"trouble": self._why[:300]} if self._why else {})}

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
