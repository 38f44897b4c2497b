"""A client of the OCI distribution API: manifests, blobs, both ways of logging in. No digest is believed."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import httpx2
from rm_api.conditions import Reason
from rm_api.names import ENV_REGISTRY_CA, MEDIA_TYPE_INDEX, MEDIA_TYPE_MANIFEST

from rm_abstract.core.errors import ArtifactMismatch, BadInput, SourceUnreachable
from rm_abstract.http import Credentials, Http, NotFound, netloc
from rm_abstract.store.behind import Behind
from rm_abstract.store.reference import DIGEST, Reference
from rm_abstract.store.token import StoreToken
from rm_abstract.store.upload import Upload, patiently

_DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
_DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
_INDEXES: Final = frozenset({MEDIA_TYPE_INDEX, _DOCKER_INDEX})
_ACCEPT: Final = ", ".join((MEDIA_TYPE_MANIFEST, _DOCKER_MANIFEST, MEDIA_TYPE_INDEX, _DOCKER_INDEX))
MAX_MANIFEST: Final = 4 << 20
_LARGE: Final = 1 << 20
"""Bytes from which on a blob is hashed beside what else is done with it."""
_CHALLENGE: Final = re.compile(r'(\w+)="([^"]*)"')
_REPOSITORY: Final = re.compile(r"/v2/(.+)/(?:manifests|blobs|tags)/")


def sha256(data: bytes | bytearray) -> str:
    """Digest of ``data`` as ``sha256:…``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Descriptor:
    """A blob that a manifest names."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str]

    @classmethod
    def of(cls, raw: Any) -> "Descriptor":
        """The descriptor in a manifest. Raises ArtifactMismatch where it is not valid."""
        try:
            media_type, digest, size = raw["mediaType"], raw["digest"], raw["size"]
            annotations = raw.get("annotations") or {}
        except (KeyError, TypeError, AttributeError):
            raise ArtifactMismatch("the manifest has a descriptor without mediaType, digest or size") from None
        if not (isinstance(digest, str) and DIGEST.fullmatch(digest) and isinstance(size, int) and size >= 0):
            raise ArtifactMismatch(f"the manifest names a blob that is not valid: {digest!r}, {size!r} bytes")
        return cls(str(media_type), digest, size, {str(key): str(value) for key, value in annotations.items()})

    def to_json(self) -> dict[str, Any]:
        """As it stands in a manifest."""
        body: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        return {**body, "annotations": self.annotations} if self.annotations else body


@dataclass(frozen=True)
class Manifest:
    """An image manifest whose bytes are what its digest says."""

    digest: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: dict[str, str]
    body: bytes
    """It, byte for byte."""

    @classmethod
    def of(cls, body: bytes, where: str) -> "Manifest":
        """The image manifest in ``body``. Raises ArtifactMismatch where it is none."""
        try:
            raw = json.loads(body)
            layers, config, annotations = raw.get("layers"), raw.get("config"), raw.get("annotations") or {}
            named = {str(key): str(value) for key, value in annotations.items()}
        except (ValueError, AttributeError, RecursionError):
            raise ArtifactMismatch(f"{where} is no manifest") from None
        if not isinstance(layers, list):
            raise ArtifactMismatch(f"{where} is no image manifest")
        return cls(sha256(body), Descriptor.of(config), tuple(map(Descriptor.of, layers)), named, bytes(body))

    @property
    def size(self) -> int:
        """Bytes of the layers."""
        return sum(layer.size for layer in self.layers)


def verified(chunks: Iterator[bytes], blob: Descriptor, where: str) -> Iterator[bytes]:
    """The same bytes. The last piece comes only if size and digest are right; ArtifactMismatch otherwise.

    What is large is hashed by a thread of its own, some pieces behind the one that receives and writes.
    """
    digest, size, held = hashlib.sha256(), 0, b""
    with Behind("store-sha256") as hashing:
        for chunk in chunks:
            size += len(chunk)
            if size > blob.size:
                break
            if blob.size > _LARGE:
                hashing.do(digest.update, chunk)
            else:
                digest.update(chunk)
            if held:
                yield held
            held = chunk
        hashing.finish()
    if size != blob.size or f"sha256:{digest.hexdigest()}" != blob.digest:
        raise ArtifactMismatch(f"{where} gave other bytes than {blob.digest} ({size} of {blob.size})")
    yield held


class _RegistryAuth(httpx2.Auth):
    """Answers a registry's challenge, Basic or Bearer, and remembers the answer per repository and kind of access.

    A token server gets only the credential that is for its own host, that of the artifact store the pod's own token.
    """

    def __init__(self, credentials: Credentials, *, unreachable: Reason) -> None:
        self._credentials = credentials
        self._store_token = StoreToken.from_environment()
        self._unreachable = unreachable
        self._answers: dict[tuple[str, str, bool], str] = {}

    def sync_auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        match = _REPOSITORY.match(request.url.path)
        key = (netloc(request.url), match.group(1) if match else "", request.method in ("GET", "HEAD"))
        if key in self._answers:
            request.headers["Authorization"] = self._answers[key]
        response = yield request
        # Whoever a redirect led to has no say in what is shown to whom.
        if response.status_code != 401 or response.request.url.origin != request.url.origin:
            return
        answer = yield from self._answer(request, response.headers.get("WWW-Authenticate", ""))
        if answer is None:
            return
        request.headers["Authorization"] = self._answers[key] = answer
        response = yield request
        if response.status_code == 401 and self._is_store(request.url):
            raise BadInput(
                f"{key[0]} refuses {request.url.path} (401): the store gives a pod what belongs to its own namespace"
            )

    def _is_store(self, url: httpx2.URL) -> bool:
        return self._store_token is not None and self._store_token.is_for(url)

    def _answer(
        self, request: httpx2.Request, challenge: str
    ) -> Generator[httpx2.Request, httpx2.Response, str | None]:
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic":
            credential = self._credentials.of(request.url)
            return credential.basic if credential else None
        fields = dict(_CHALLENGE.findall(rest))
        if scheme.lower() != "bearer" or not fields.get("realm"):
            return None
        query = {name: fields[name] for name in ("service", "scope") if fields.get(name)}
        token_request = httpx2.Request("GET", fields["realm"], params=query)
        ours = self._store_token if self._store_token and self._store_token.is_for(request.url) else None
        credential = ours.credential(token_request.url) if ours else self._credentials.of(token_request.url)
        if credential:
            token_request.headers["Authorization"] = credential.basic
        response = yield token_request
        response.read()
        host, status = netloc(response.request.url), response.status_code
        if status in (408, 425, 429) or status >= 500:
            raise SourceUnreachable(f"the token service {host} cannot answer now ({status})", reason=self._unreachable)
        if ours and status in (401, 403):
            raise BadInput(f"the token service {host} does not accept the token of the pod's account ({status})")
        if status != 200:
            return None
        try:
            body = response.json()
            token = body.get("token") or body.get("access_token")
        except (ValueError, AttributeError):
            return None
        return f"Bearer {token}" if token else None


class Registry:
    """Registries. Methods raise NotFound, BadInput (refused), SourceUnreachable and ArtifactMismatch (wrong bytes)."""

    def __init__(self, *, unreachable: Reason = Reason.SOURCE_UNREACHABLE, attempts: int = 1) -> None:
        """A registry that cannot answer now is asked up to ``attempts`` times, with growing pauses between."""
        authority = os.environ.get(ENV_REGISTRY_CA, "")
        self._attempts = attempts
        self._http = Http(
            partial(_RegistryAuth, unreachable=unreachable),
            unreachable=unreachable,
            authority=authority or None,
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _url(self, reference: Reference, kind: str, name: str) -> str:
        return f"{self._http.base(reference.host)}/v2/{reference.repository}/{kind}/{name}"

    def resolve(self, reference: Reference) -> str | None:
        """Digest of the manifest at a reference, or None where there is none."""
        try:
            url = self._url(reference, "manifests", reference.target)
            response = patiently(lambda: self._http.request("HEAD", url, headers={"Accept": _ACCEPT}), self._attempts)
        except NotFound:
            return None
        digest = response.headers.get("Docker-Content-Digest", "")
        if reference.digest and digest not in ("", reference.digest):
            raise ArtifactMismatch(f"{reference.host} says that {reference.digest} is {digest}")
        return digest if DIGEST.fullmatch(digest) else sha256(self._manifest_bytes(reference))

    def manifest(self, reference: Reference) -> Manifest:
        """The image manifest at a reference, through an index if that has just one. Bytes and digest agree."""
        body = self._manifest_bytes(reference)
        digest = sha256(body)
        if reference.digest and reference.digest != digest:
            raise ArtifactMismatch(f"{reference.host} gave another manifest than {reference.digest}: {digest}")
        try:
            raw = json.loads(body)
            media_type = raw.get("mediaType", MEDIA_TYPE_MANIFEST)
            children = raw.get("manifests") or []
        except (ValueError, AttributeError, RecursionError):
            raise ArtifactMismatch(f"{reference} is no manifest") from None
        if media_type in _INDEXES or children:
            if len(children) != 1:
                raise BadInput(f"{reference} is an index of {len(children)} manifests; name one of them by its digest")
            return self.manifest(reference.at(Descriptor.of(children[0]).digest))
        return Manifest.of(body, str(reference))

    def _manifest_bytes(self, reference: Reference) -> bytes:
        return patiently(lambda: self._read_manifest(reference), self._attempts)

    def document(self, reference: Reference) -> bytes | None:
        """The bytes of whatever manifest is at a reference, an index too, or None where there is none."""
        try:
            return self._manifest_bytes(reference)
        except NotFound:
            return None

    def _read_manifest(self, reference: Reference) -> bytes:
        url = self._url(reference, "manifests", reference.target)
        body = bytearray()
        with self._http.open("GET", url, headers={"Accept": _ACCEPT}) as response:
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > MAX_MANIFEST:
                    raise ArtifactMismatch(f"the manifest of {reference} is larger than {MAX_MANIFEST} bytes")
        return bytes(body)

    def put_manifest(self, reference: Reference, body: bytes, *, media_type: str = MEDIA_TYPE_MANIFEST) -> str:
        """Push a manifest, by default of an image, and return its digest."""
        url = self._url(reference, "manifests", reference.target)
        kind = {"Content-Type": media_type}
        response = patiently(lambda: self._http.request("PUT", url, content=body, headers=kind), self._attempts)
        digest = sha256(body)
        found = response.headers.get("Docker-Content-Digest", digest)
        if found != digest:
            raise ArtifactMismatch(f"{reference.host} took the manifest {digest} for {found}")
        return digest

    def blob(self, reference: Reference, blob: Descriptor) -> Iterator[bytes]:
        """The bytes of a blob. The last piece comes only if size and digest are right; ArtifactMismatch otherwise."""
        return verified(self._http.download(self._url(reference, "blobs", blob.digest)), blob, reference.host)

    def read_blob(self, reference: Reference, blob: Descriptor, start: int, length: int) -> bytes:
        """A part of a blob. Its bytes are not verified, as its digest is about the whole."""
        return self._http.read(self._url(reference, "blobs", blob.digest), start, length)

    def put_blob(self, reference: Reference, digest: str, size: int, content: Callable[[], Iterable[bytes]]) -> None:
        """Upload a blob if the repository has none of this digest. ``content`` gives its bytes anew with every call."""
        Upload(self._http, self._url(reference, "blobs", ""), digest, size, content).run(self._attempts)
