"""The index of community plugins: a static file, signed with Ed25519 keys that its readers trust.

The file is a DSSE envelope around a JSON document, so that what is signed are the bytes that are read. A reader
refuses what no trusted key has signed, what has expired, and what is older than something that it has seen already.
"""

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urljoin, urlsplit

from rm_abstract.core.errors import BadInput
from rm_abstract.core.filelock import locked
from rm_abstract.core.index_entries import IndexedPlugin, as_list, as_map, as_text, parse_plugin

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PAYLOAD_TYPE: Final = "application/vnd.rm-abstract.plugin-index+json"
SCHEMA: Final = 1
_LARGEST: Final = 16 << 20


class UntrustedIndex(BadInput):
    """The index is not what its readers may believe: unsigned, changed, expired or rolled back."""


@dataclass(frozen=True)
class Index:
    """An index whose signatures were checked."""

    name: str
    version: int
    """Grows with every change."""
    expires: datetime
    plugins: tuple[IndexedPlugin, ...]
    location: str = ""
    """Where it was read, which the places of files in it are relative to."""

    def search(self, text: str = "") -> list[IndexedPlugin]:
        """The plugins whose name, summary, vendor or types of devices have every word of ``text``, by name."""
        words = text.lower().split()
        found = (plugin for plugin in self.plugins if all(word in plugin.words for word in words))
        return sorted(found, key=lambda plugin: plugin.name)

    def plugin(self, name: str) -> IndexedPlugin:
        """The plugin of a name. Raises BadInput where there is none."""
        for plugin in self.plugins:
            if plugin.name == name:
                return plugin
        raise BadInput(f"the index {self.name} has no plugin {name}; it has {', '.join(p.name for p in self.search())}")

    def url(self, place: str) -> str:
        """The whole URL of a file. Raises UntrustedIndex where an index from elsewhere names a file of this machine."""
        url = urljoin(_as_url(self.location), place)
        if urlsplit(url).scheme == "file" and urlsplit(_as_url(self.location)).scheme != "file":
            raise UntrustedIndex(f"the index {self.name} is not from this machine, but names a file of it: {place}")
        return url


class SeenVersions:
    """Which versions of indexes were seen, in a file: what keeps an old index from coming back."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or _default_state()

    def check(self, identity: str, version: int, digest: str) -> None:
        """Remember a version. Raises UntrustedIndex where a newer one, or another one of this number, was seen."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.path.with_suffix(".lock"), timeout=60):
                seen = self._read()
                last = seen.get(identity, {"version": 0, "digest": ""})
                if version < last["version"]:
                    raise UntrustedIndex(
                        f"the index is version {version}, but version {last['version']} was seen before: "
                        "somebody offers an old one"
                    )
                if version == last["version"] and digest != last["digest"]:
                    raise UntrustedIndex(f"there are two different indexes of version {version}")
                if version != last["version"]:
                    seen[identity] = {"version": version, "digest": digest}
                    part = self.path.with_suffix(".part")
                    part.write_text(json.dumps(seen, indent=1, sort_keys=True) + "\n", encoding="utf-8")
                    part.replace(self.path)
        except OSError as error:
            raise BadInput(f"{self.path}, which protects from old indexes, cannot be used: {error}") from error

    def _read(self) -> dict[str, Any]:
        try:
            seen: dict[str, Any] = as_map(json.loads(self.path.read_text(encoding="utf-8")), "it")
            if all(isinstance(one["version"], int) and isinstance(one["digest"], str) for one in seen.values()):
                return seen
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, KeyError, BadInput):
            pass
        raise BadInput(f"{self.path}, which protects from old indexes, is damaged; look at it, then delete it")


def _default_state() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "rm-abstract" / "plugin-indexes.json"


def open_index(
    location: str | Path,
    keys: "Sequence[Ed25519PublicKey]",
    *,
    threshold: int = 1,
    seen: SeenVersions | None = None,
    now: datetime | None = None,
) -> Index:
    """Read an index, check that it can be believed, and remember its version.

    ``location`` is a path or a URL with https; at least ``threshold`` different keys among ``keys`` must have signed
    it. Raises UntrustedIndex where it cannot be believed, BadInput where it is none, SourceUnreachable.
    """
    location = str(location)
    payload = verify(_read(location), keys, threshold)
    index = parse_index(payload, location)
    now = now or datetime.now(UTC)
    if now >= index.expires:
        raise UntrustedIndex(
            f"the index {index.name} has expired at {index.expires.isoformat()}; get a new one from its makers"
        )
    identity = f"{index.name} {' '.join(sorted(key_id(key) for key in keys))}"
    (SeenVersions() if seen is None else seen).check(identity, index.version, hashlib.sha256(payload).hexdigest())
    return index


def verify(envelope: bytes, keys: "Sequence[Ed25519PublicKey]", threshold: int = 1) -> bytes:
    """The document in an envelope that at least ``threshold`` of these keys have signed. Raises UntrustedIndex."""
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 (only for indexes)

    trusted = {key_id(key): key for key in keys}
    if not 1 <= threshold <= len(trusted):
        raise BadInput(f"{threshold} signatures are wanted, but {len(trusted)} different keys are trusted")
    payload, signatures = _open_envelope(envelope)
    signed = set()
    for name, signature in signatures:
        key = trusted.get(name)
        if key is not None:
            try:
                key.verify(signature, _to_be_signed(payload))
            except InvalidSignature:
                raise UntrustedIndex(f"the index was changed after key {name} had signed it") from None
            signed.add(name)
    if len(signed) < threshold:
        by = ", ".join(name for name, _ in signatures) or "nobody"
        raise UntrustedIndex(
            f"the index is signed by {len(signed)} of the trusted keys ({', '.join(trusted)}), but {threshold} must "
            f"have signed it; it is signed by {by}"
        )
    return payload


def sign(content: bytes, keys: "Iterable[Ed25519PrivateKey]") -> bytes:
    """An envelope around an index, or one with further signatures. Raises BadInput for what is no index."""
    try:
        payload, signatures = _open_envelope(content)
    except BadInput:
        payload, signatures = content, []
    parse_index(payload)
    by_key = dict(signatures)
    for key in keys:
        by_key[key_id(key.public_key())] = key.sign(_to_be_signed(payload))
    document = {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode("ascii"),
        "signatures": [
            {"keyid": name, "sig": base64.b64encode(signature).decode("ascii")}
            for name, signature in sorted(by_key.items())
        ],
    }
    return (json.dumps(document, indent=1) + "\n").encode()


def key_id(key: "Ed25519PublicKey") -> str:
    """The name of a key: the first 16 digits of its hash."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def load_public_key(path: Path) -> "Ed25519PublicKey":
    """An Ed25519 public key of a PEM file. Raises BadInput."""
    key: Ed25519PublicKey = _key(path, "public")
    return key


def load_private_key(path: Path) -> "Ed25519PrivateKey":
    """An Ed25519 private key of a PEM file without a password. Raises BadInput."""
    key: Ed25519PrivateKey = _key(path, "private")
    return key


def _key(path: Path, what: str) -> Any:
    try:
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 (an extra)
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise BadInput(f"keys need the package {error.name}; pip install 'rm-abstract[cli]' brings it") from None
    public = what == "public"
    kind: type = ed25519.Ed25519PublicKey if public else ed25519.Ed25519PrivateKey
    key: Any
    try:
        pem = path.read_bytes()
        key = serialization.load_pem_public_key(pem) if public else serialization.load_pem_private_key(pem, None)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, kind):
        raise BadInput(f"{path} is no {what} Ed25519 key in PEM; openssl genpkey -algorithm ed25519 makes one")
    return key


def parse_index(payload: bytes, location: str = "") -> Index:
    """The index in a document. Raises BadInput where it is none; the message says where."""
    try:
        raw = as_map(json.loads(payload), "the index")
    except ValueError as error:
        raise BadInput(f"the index is not valid JSON: {error}") from None
    if raw.get("schema") != SCHEMA:
        raise BadInput(
            f"the index has schema {raw.get('schema')!r}, which this version does not know; it knows {SCHEMA}"
        )
    version = raw.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BadInput(f"the index has version {version!r}, but must have a whole number of at least 1")
    try:
        expires = datetime.fromisoformat(as_text(raw, "expires", "the index"))
    except ValueError as error:
        raise BadInput(f"the index: expires: {error}") from None
    if expires.tzinfo is None:
        raise BadInput("the index: expires has no time zone; end it with Z")
    plugins = tuple(parse_plugin(one, f"plugin {n}") for n, one in enumerate(as_list(raw, "plugins", "the index")))
    names = [plugin.name for plugin in plugins]
    if len(set(names)) < len(names):
        raise BadInput(f"the index names a plugin twice: {next(name for name in names if names.count(name) > 1)}")
    return Index(as_text(raw, "name", "the index"), version, expires, plugins, location)


def _to_be_signed(payload: bytes) -> bytes:
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _open_envelope(content: bytes) -> tuple[bytes, list[tuple[str, bytes]]]:
    try:
        raw: Mapping[str, Any] = as_map(json.loads(content), "it")
        if raw.get("payloadType") != PAYLOAD_TYPE:
            raise ValueError(f"its payloadType is {raw.get('payloadType')!r}")
        signatures = [
            (as_text(as_map(one, "it"), "keyid", "a signature"), base64.b64decode(one["sig"], validate=True))
            for one in as_list(raw, "signatures", "it")
        ]
        return base64.b64decode(as_text(raw, "payload", "it"), validate=True), signatures
    except (ValueError, TypeError, KeyError, BadInput) as error:
        raise UntrustedIndex(f"this is no signed index of plugins: {error}") from None


def _read(location: str) -> bytes:
    parts = urlsplit(location)
    if parts.scheme in ("http", "https"):
        return _download(location)
    path = Path(parts.path) if parts.scheme == "file" else Path(location)
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise BadInput(f"the index {location} cannot be read: {error.strerror}") from None
    _refuse_large(content, location)
    return content


def _download(url: str) -> bytes:
    try:
        from rm_abstract.http import Http  # noqa: PLC0415 (an extra)
    except ModuleNotFoundError as error:
        raise BadInput(f"{url} needs the package {error.name}; pip install 'rm-abstract[runtime]' brings it") from None
    http = Http()
    content = bytearray()
    try:
        for chunk in http.download(url):
            content += chunk
            _refuse_large(content, url)
    finally:
        http.close()
    return bytes(content)


def _refuse_large(content: bytes | bytearray, location: str) -> None:
    if len(content) > _LARGEST:
        raise UntrustedIndex(f"the index {location} is larger than {_LARGEST >> 20} MiB")


def _as_url(location: str) -> str:
    return location if urlsplit(location).scheme in ("http", "https", "file") else Path(location).absolute().as_uri()
