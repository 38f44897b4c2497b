"""Buckets of Amazon S3 and of servers that speak its interface: signed requests, listing, reading, writing."""

import base64
import binascii
import configparser
import hashlib
import hmac
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import parse_qsl, quote, urlsplit

import httpx2
from rm_api.conditions import Reason
from rm_api.names import ENV_AWS_CREDENTIALS

from rm_abstract.core.errors import BadInput, SourceUnreachable
from rm_abstract.http import Changed, Credentials, Http, NotFound, netloc

ENV_PROFILE: Final = "AWS_PROFILE"

BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_EMPTY: Final = hashlib.sha256(b"").hexdigest()
_UNSIGNED: Final = "UNSIGNED-PAYLOAD"
_UNRESERVED: Final = "-_.~"
_ALGORITHM: Final = "AWS4-HMAC-SHA256"
_SKEW: Final = "RequestTimeTooSkewed"
_MAX_LISTING: Final = 16 << 20


@dataclass(frozen=True)
class Account:
    """Where buckets are, and who asks; without keys, requests are not signed, which public buckets answer."""

    endpoint: str = ""
    """``https://host[:port]``; that of Amazon in the region, if empty."""
    region: str = "us-east-1"
    key_id: str = ""
    secret: str = ""
    session_token: str = ""

    @property
    def url(self) -> str:
        """The endpoint."""
        return self.endpoint or f"https://s3.{self.region}.amazonaws.com"

    @classmethod
    def from_environment(cls) -> Self:
        """That of the profile ``$AWS_PROFILE`` (or ``default``) in the file ``$AWS_SHARED_CREDENTIALS_FILE``.

        Nobody's, where no file is named. Raises BadInput where the file cannot be used; no message holds what is in it.
        """
        path = os.environ.get(ENV_AWS_CREDENTIALS)
        return cls.read(Path(path), os.environ.get(ENV_PROFILE) or "default") if path else cls()

    @classmethod
    def read(cls, path: Path, profile: str) -> Self:
        """The account of a profile in a file in the format of the AWS tools. ``endpoint_url`` and ``region`` count."""
        parser = configparser.RawConfigParser()
        try:
            with path.open(encoding="utf-8") as file:
                parser.read_file(file)
        except FileNotFoundError:
            raise BadInput(f"{ENV_AWS_CREDENTIALS} names {path}, which does not exist") from None
        except (configparser.Error, UnicodeDecodeError) as error:
            # The parser's own words quote the line, which may be a secret.
            line = getattr(error, "lineno", None)
            raise BadInput(f"{path} is no valid credentials file{f' (line {line})' if line else ''}") from None
        # The AWS tools have two files, in one of which sections are called "profile NAME".
        section = next((name for name in (profile, f"profile {profile}") if parser.has_section(name)), None)
        if section is None:
            raise BadInput(f"{path} has no profile {profile}; add a section [{profile}], or set {ENV_PROFILE}")
        values = parser[section]
        key_id, secret = values.get("aws_access_key_id", ""), values.get("aws_secret_access_key", "")
        if bool(key_id) != bool(secret):
            raise BadInput(
                f"{path}: the profile {profile} needs both aws_access_key_id and aws_secret_access_key, or neither"
            )
        endpoint = values.get("endpoint_url", "").rstrip("/")
        parts = urlsplit(endpoint)
        if endpoint and (
            parts.scheme not in ("http", "https") or not parts.netloc or parts.path or "@" in parts.netloc
        ):
            raise BadInput(f"{path}: endpoint_url of the profile {profile} must be https://HOST or https://HOST:PORT")
        region = values.get("region") or cls.region
        return cls(endpoint, region, key_id, secret, values.get("aws_session_token", ""))


def signature(account: Account, method: str, url: httpx2.URL, headers: Mapping[str, str], signed: Iterable[str]) -> str:
    """Value of the Authorization header: AWS Signature Version 4 over method, URL, and the headers named in ``signed``.

    ``headers`` has lower-case names, among them ``x-amz-date`` (``YYYYMMDDTHHMMSSZ``) and ``x-amz-content-sha256``.
    """
    names = sorted(signed)
    path, _, query = url.raw_path.decode("ascii").partition("?")
    pairs = sorted(
        (quote(name, safe=_UNRESERVED), quote(value, safe=_UNRESERVED))
        for name, value in parse_qsl(query, keep_blank_values=True)
    )
    canonical = "\n".join(
        [
            method,
            path or "/",
            "&".join(f"{name}={value}" for name, value in pairs),
            *(f"{name}:{' '.join(headers[name].split())}" for name in names),
            "",
            ";".join(names),
            headers["x-amz-content-sha256"],
        ]
    )
    moment = headers["x-amz-date"]
    scope = f"{moment[:8]}/{account.region}/s3/aws4_request"
    text = "\n".join([_ALGORITHM, moment, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = b"AWS4" + account.secret.encode()
    for part in (*scope.split("/"), text):
        key = hmac.digest(key, part.encode(), "sha256")
    return f"{_ALGORITHM} Credential={account.key_id}/{scope},SignedHeaders={';'.join(names)},Signature={key.hex()}"


class _Signer(httpx2.Auth):
    """Signs requests to the account's endpoint, and to nowhere else."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._host = netloc(httpx2.URL(account.url))

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        if self._account.key_id and netloc(request.url) == self._host:
            request.headers["X-Amz-Date"] = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
            without_body = request.method in ("GET", "HEAD", "DELETE")
            request.headers.setdefault("X-Amz-Content-Sha256", _EMPTY if without_body else _UNSIGNED)
            if self._account.session_token:
                request.headers["X-Amz-Security-Token"] = self._account.session_token
            headers = {name.lower(): value for name, value in request.headers.items()}
            signed = [name for name in headers if name == "host" or name.startswith("x-amz-")]
            request.headers["Authorization"] = signature(self._account, request.method, request.url, headers, signed)
        yield request


class _S3Http(Http):
    """HTTP with the errors of S3."""

    def refusal(self, response: httpx2.Response) -> Exception:
        """See the base class."""
        status, host = response.status_code, netloc(response.request.url)
        path = response.request.url.path
        code = _error_code(response.content)
        region = response.headers.get("X-Amz-Bucket-Region", "")
        if status in (301, 307, 308) or code in ("AuthorizationHeaderMalformed", "PermanentRedirect"):
            where = f"it is in the region {region}" if region else "it is in another region, or at another endpoint"
            return BadInput(f"{host} does not have the bucket of {path}: {where}; set region in the credentials file")
        if code == _SKEW:
            return SourceUnreachable(
                f"{host} refuses {path}: the clocks here and there differ", reason=self._unreachable
            )
        if status in (401, 403) or code in ("ExpiredToken", "InvalidToken", "InvalidAccessKeyId"):
            return BadInput(
                f"{host} refuses {path} ({status}{f' {code}' if code else ''}): credentials are missing or not "
                f"sufficient; see the profile in the file that {ENV_AWS_CREDENTIALS} names"
            )
        if code == "NoSuchBucket":
            return NotFound(f"{host} has no bucket {path.split('/')[1]}")
        return super().refusal(response)


def _error_code(body: bytes) -> str:
    try:
        return re.sub(r"\W", "", _text(ET.fromstring(body), "Code"))  # noqa: S314 (expat bounds what entities grow to)
    except ET.ParseError:
        return ""


def _text(element: ET.Element, name: str) -> str:
    """Text of a child; servers differ in whether they give the elements a namespace."""
    return element.findtext(f"{{*}}{name}") or element.findtext(name) or ""


@dataclass(frozen=True)
class S3Object:
    """What a bucket says of an object."""

    key: str
    size: int
    etag: str
    """With its quotes. No digest of the content in general: of parts, or of what is encrypted, it is another one."""
    version: str = ""
    """Id of the version, where the bucket keeps versions."""
    digest: str = ""
    """``sha256:…`` of the content where the server has verified that on writing; never told by a listing."""


class S3:
    """Buckets of one account. Methods raise NotFound, Changed, BadInput (refused) and SourceUnreachable."""

    def __init__(self, account: Account, *, unreachable: Reason = Reason.SOURCE_UNREACHABLE) -> None:
        self.account = account
        # A redirect would take a session token along, and its target would need a signature of its own.
        self._http = _S3Http(
            lambda _: _Signer(account), credentials=Credentials(), unreachable=unreachable, follow_redirects=False
        )
        self.host = netloc(httpx2.URL(account.url))

    @classmethod
    def from_environment(cls, *, unreachable: Reason = Reason.SOURCE_UNREACHABLE) -> Self:
        """With the account of the environment."""
        return cls(Account.from_environment(), unreachable=unreachable)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _url(self, bucket: str, key: str = "") -> str:
        if any(part in (".", "..") for part in key.split("/")):
            raise BadInput(f"the key {key!r} has a part that is . or .., which servers take for a directory")
        return f"{self.account.url}/{bucket}/{quote(key, safe='/' + _UNRESERVED)}"

    def list(self, bucket: str, prefix: str, *, recursive: bool = False) -> Iterator[S3Object]:
        """Objects whose keys begin with ``prefix``, in the order of keys; what is below a ``/`` only if recursive."""
        # Not encoding-type=url: servers differ in whether a + is then a space.
        query = {"list-type": "2", "prefix": prefix}
        if not recursive:
            query["delimiter"] = "/"
        while True:
            listing = self._listing(bucket, query)
            for entry in listing.iterfind("{*}Contents"):
                size = _text(entry, "Size")
                key = _text(entry, "Key")
                if not size.isdigit() or not key.startswith(prefix):
                    raise BadInput(f"{self.host} lists {bucket} in a way that is not understood")
                yield S3Object(key, int(size), _text(entry, "ETag"))
            token = _text(listing, "NextContinuationToken")
            if _text(listing, "IsTruncated") != "true":
                return
            if not token or token == query.get("continuation-token"):
                raise BadInput(f"{self.host} lists {bucket} without an end")
            query["continuation-token"] = token

    def _listing(self, bucket: str, query: Mapping[str, str]) -> ET.Element:
        body = bytearray()
        with self._http.open("GET", self._url(bucket), params=query) as response:
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > _MAX_LISTING:
                    raise BadInput(f"{self.host} lists {bucket} with more than {_MAX_LISTING} bytes at a time")
        try:
            return ET.fromstring(bytes(body))  # noqa: S314 (expat bounds what entities grow to)
        except ET.ParseError:
            raise BadInput(f"{self.host} answers with no listing; is it a server of S3?") from None

    def head(self, bucket: str, key: str) -> S3Object:
        """What the bucket says of an object."""
        response = self._http.request("HEAD", self._url(bucket, key), headers={"X-Amz-Checksum-Mode": "ENABLED"})
        size = response.headers.get("Content-Length", "")
        if not size.isdigit():
            raise BadInput(f"{self.host} gives no size of {key}")
        version = response.headers.get("X-Amz-Version-Id", "")
        return S3Object(
            key,
            int(size),
            response.headers.get("ETag", ""),
            "" if version == "null" else version,
            _digest(response.headers),
        )

    def read(self, bucket: str, thing: S3Object, start: int, length: int) -> bytes:
        """``length`` bytes of an object from ``start``, less at its end. Changed where it is another one by now."""
        return self._http.read(self._url(bucket, thing.key), start, length, headers=_unchanged(thing))

    def download(self, bucket: str, thing: S3Object) -> Iterator[bytes]:
        """An object in pieces, resumed where the connection broke. Changed where it is another one by now."""
        return self._http.download(self._url(bucket, thing.key), headers=_unchanged(thing))

    def put(
        self, bucket: str, key: str, content: bytes | Iterable[bytes], *, size: int, digest: str, absent: bool = False
    ) -> bool:
        """Write an object of at most 5 GiB; the server checks ``digest`` (``sha256:…``) of its content, and keeps it.

        With ``absent``, one that is there already stays, and the result is False.
        """
        hexadecimal = digest.removeprefix("sha256:")
        headers = {
            "Content-Length": str(size),
            "X-Amz-Content-Sha256": hexadecimal,
            "X-Amz-Checksum-Sha256": base64.b64encode(bytes.fromhex(hexadecimal)).decode(),
            **({"If-None-Match": "*"} if absent else {}),
        }
        try:
            self._http.request("PUT", self._url(bucket, key), headers=headers, content=content)
        except Changed:
            if absent:
                return False
            raise
        return True

    def delete(self, bucket: str, key: str) -> None:
        """Delete an object, if it is there."""
        self._http.request("DELETE", self._url(bucket, key))


def _unchanged(thing: S3Object) -> dict[str, str]:
    return {"If-Match": thing.etag} if thing.etag else {}


def _digest(headers: httpx2.Headers) -> str:
    """The digest that a server keeps of an object's content; one over the digests of parts is none of it."""
    value = headers.get("X-Amz-Checksum-Sha256", "")
    if not value or "-" in value or headers.get("X-Amz-Checksum-Type", "FULL_OBJECT") != "FULL_OBJECT":
        return ""
    try:
        raw = base64.b64decode(value, validate=True)
    except binascii.Error:
        return ""
    return f"sha256:{raw.hex()}" if len(raw) == hashlib.sha256().digest_size else ""
