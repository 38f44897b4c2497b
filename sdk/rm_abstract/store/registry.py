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
from rm_abstract.store.reference import DIGEST, Reference
from rm_abstract.store.token import StoreToken

_DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
_DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
_INDEXES: Final = frozenset({MEDIA_TYPE_INDEX, _DOCKER_INDEX})
_ACCEPT: Final = ", ".join((MEDIA_TYPE_MANIFEST, _DOCKER_MANIFEST, MEDIA_TYPE_INDEX, _DOCKER_INDEX))
_MAX_MANIFEST: Final = 4 << 20
_CHALLENGE: Final = re.compile(r'(\w+)="([^"]*)"')
_REPOSITORY: Final = re.compile(r"/v2/(.+)/(?:manifests|blobs|tags)/")


def sha256(data: bytes) -> str:
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

    def __init__(self, *, unreachable: Reason = Reason.SOURCE_UNREACHABLE) -> None:
        authority = os.environ.get(ENV_REGISTRY_CA, "")
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
            response = self._http.request(
                "HEAD", self._url(reference, "manifests", reference.target), headers={"Accept": _ACCEPT}
            )
        except NotFound:
            return None
        digest = response.headers.get("Docker-Content-Digest", "")
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
        except (ValueError, AttributeError):
            raise ArtifactMismatch(f"{reference} is no manifest") from None
        if media_type in _INDEXES or children:
            if len(children) != 1:
                raise BadInput(f"{reference} is an index of {len(children)} manifests; name one of them by its digest")
            return self.manifest(reference.at(Descriptor.of(children[0]).digest))
        if not isinstance(raw.get("layers"), list):
            raise ArtifactMismatch(f"{reference} is no image manifest")
        return Manifest(
            digest,
            Descriptor.of(raw.get("config")),
            tuple(Descriptor.of(layer) for layer in raw["layers"]),
            {str(key): str(value) for key, value in (raw.get("annotations") or {}).items()},
        )

    def _manifest_bytes(self, reference: Reference) -> bytes:
        url = self._url(reference, "manifests", reference.target)
        body = bytearray()
        with self._http.open("GET", url, headers={"Accept": _ACCEPT}) as response:
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > _MAX_MANIFEST:
                    raise ArtifactMismatch(f"the manifest of {reference} is larger than {_MAX_MANIFEST} bytes")
        return bytes(body)

    def put_manifest(self, reference: Reference, body: bytes) -> str:
        """Push an image manifest, and return its digest."""
        url = self._url(reference, "manifests", reference.target)
        self._http.request("PUT", url, content=body, headers={"Content-Type": MEDIA_TYPE_MANIFEST})
        return sha256(body)

    def blob(self, reference: Reference, blob: Descriptor) -> Iterator[bytes]:
        """The bytes of a blob. The last piece comes only if size and digest are right; ArtifactMismatch otherwise."""
        digest, size, held = hashlib.sha256(), 0, b""
        for chunk in self._http.download(self._url(reference, "blobs", blob.digest)):
            digest.update(chunk)
            size += len(chunk)
            if size > blob.size:
                break
            if held:
                yield held
            held = chunk
        if size != blob.size or f"sha256:{digest.hexdigest()}" != blob.digest:
            raise ArtifactMismatch(f"{reference.host} gave other bytes than {blob.digest} ({size} of {blob.size})")
        yield held

    def read_blob(self, reference: Reference, blob: Descriptor, start: int, length: int) -> bytes:
        """A part of a blob. Its bytes are not verified, as its digest is about the whole."""
        return self._http.read(self._url(reference, "blobs", blob.digest), start, length)

    def put_blob(self, reference: Reference, digest: str, size: int, content: Callable[[], Iterable[bytes]]) -> None:
        """Upload a blob if the repository has none of this digest. ``content`` gives its bytes anew with every call."""
        try:
            self._http.request("HEAD", self._url(reference, "blobs", digest))
            return
        except NotFound:
            pass
        session = self._http.request("POST", self._url(reference, "blobs", "uploads/"))
        location = httpx2.URL(str(session.request.url)).join(session.headers.get("Location", ""))
        self._http.request(
            "PUT",
            str(location.copy_merge_params({"digest": digest})),
            content=_Body(content),
            headers={"Content-Length": str(size), "Content-Type": "application/octet-stream"},
        )


class _Body:
    """A request body that can be sent again, should the registry ask for credentials in the middle."""

    def __init__(self, content: Callable[[], Iterable[bytes]]) -> None:
        self._content = content

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._content())
