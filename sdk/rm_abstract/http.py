"""HTTP for sources and the store: credentials by host, no silent plain text, downloads that resume."""

import base64
import netrc
import os
import re
import ssl
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import httpx2
from rm_api.conditions import Reason
from rm_api.names import ENV_CONNECT_TO, ENV_NETRC, ENV_PLAIN_HTTP_HOSTS

from rm_abstract.core.errors import ArtifactMismatch, BadInput, SourceUnreachable
from rm_abstract.transport import Transport, proxies

_CONNECT_TO: Final = re.compile(r"([-A-Za-z0-9.]+:[0-9]{1,5})=((?:[-A-Za-z0-9.]+|\[[0-9a-fA-F:]+\]):[0-9]{1,5})")
_RESUMES: Final = 5
_TIMEOUT: Final = httpx2.Timeout(60, connect=10)


class ReadOnly(SourceUnreachable):
    """The server takes nothing for the time being, as a registry while it collects its garbage."""


class NotFound(BadInput):
    """The server says that there is no such thing."""


class Changed(ArtifactMismatch):
    """What is there is not, or no longer, what the request was made for."""


@dataclass(frozen=True)
class Credential:
    """A user name and password, or a token as the password."""

    login: str
    password: str

    @property
    def basic(self) -> str:
        """Value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.login}:{self.password}".encode()).decode()


class Credentials:
    """Credentials by host, from a netrc file. A ``default`` entry is ignored: a credential is for its host only."""

    def __init__(self, path: Path | None = None) -> None:
        self._hosts: dict[str, Credential] = {}
        if path is None:
            return
        try:
            entries = netrc.netrc(str(path)).hosts
        except FileNotFoundError:
            raise BadInput(f"{ENV_NETRC} names {path}, which does not exist") from None
        except netrc.NetrcParseError as error:
            raise BadInput(f"the credentials are not a valid netrc file: {error.msg} (line {error.lineno})") from None
        self._hosts = {
            host: Credential(login, secret) for host, (login, _, secret) in entries.items() if host != "default"
        }

    @classmethod
    def from_environment(cls) -> Self:
        """Those of the file that ``$NETRC`` names; none without it."""
        path = os.environ.get(ENV_NETRC)
        return cls(Path(path) if path else None)

    def of(self, url: httpx2.URL) -> Credential | None:
        """The credential for a URL's host; an entry with the port comes before one without."""
        return self._hosts.get(netloc(url)) or self._hosts.get(url.host)


def netloc(url: httpx2.URL) -> str:
    """``host`` or ``host:port`` of a URL."""
    return url.netloc.decode("ascii")


class HostAuth(httpx2.Auth):
    """Sends the credential of the request's host with the request. A redirect elsewhere drops it."""

    def __init__(self, credentials: Credentials, *, bearer: bool = False) -> None:
        self._credentials = credentials
        self._bearer = bearer

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        """Add the header, if there is a credential."""
        credential = self._credentials.of(request.url)
        if credential:
            request.headers["Authorization"] = f"Bearer {credential.password}" if self._bearer else credential.basic
        yield request


class _Seen:
    """What the first answer of a download said of the file, so that the pieces of two files are never joined."""

    def __init__(self) -> None:
        self.validator = ""

    def check(self, response: httpx2.Response, start: int) -> None:
        """Raise Changed where an answer is about another file, or begins elsewhere than at ``start``."""
        host, path = netloc(response.request.url), response.request.url.path
        tag = response.headers.get("ETag", "")
        if tag.startswith("W/"):  # two files may have the same, so it can tell no difference
            tag = ""
        if self.validator and tag and tag != self.validator:
            raise Changed(f"{host} has another {path} since the download began")
        self.validator = self.validator or tag
        given = response.headers.get("Content-Range", "")
        if response.status_code == 206 and not given.startswith(f"bytes {start}-"):
            raise Changed(f"{host} gave {given or 'an unnamed range'} of {path} when asked for bytes from {start}")


def _trusting(authority: str | None) -> ssl.SSLContext:
    context = httpx2.create_ssl_context()
    if not authority:
        return context
    try:
        context.load_verify_locations(cadata=authority)
    except (ValueError, ssl.SSLError) as error:
        raise BadInput(f"the certificate authority of the registry is no certificate in PEM: {error}") from None
    return context


def _moved() -> Iterator[tuple[str, httpx2.URL]]:
    """Hosts that are reached elsewhere, and where. Raises BadInput."""
    for entry in filter(None, (each.strip() for each in os.environ.get(ENV_CONNECT_TO, "").split(","))):
        match = _CONNECT_TO.fullmatch(entry)
        if match is None:
            raise BadInput(f"{ENV_CONNECT_TO} has {entry!r}, which is not HOST:PORT=ADDRESS:PORT")
        yield match[1], httpx2.URL(f"https://{match[2]}/")


class _Elsewhere(httpx2.BaseTransport):
    """Reaches a host at another address. It has to prove that it is the host all the same, where it speaks TLS."""

    def __init__(self, address: httpx2.URL, context: ssl.SSLContext) -> None:
        self._address = address
        self._transport = Transport(context)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """As the transport that goes where a URL says; the Host header is that of the URL already."""
        return self._transport.handle_request(
            httpx2.Request(
                request.method,
                request.url.copy_with(host=self._address.host, port=self._address.port),
                headers=request.headers,
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": request.url.host},
            )
        )

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()


def _asked(error: httpx2.HTTPError, url: str) -> str:
    """The host that a request failed at: that of a redirect or of a token service, or the one of ``url``."""
    try:
        return netloc(error.request.url)
    except RuntimeError:
        return netloc(httpx2.URL(url))


class Http:
    """An HTTP client. Methods raise SourceUnreachable, BadInput or NotFound, with the host's name in the message."""

    def __init__(
        self,
        auth: Callable[[Credentials], httpx2.Auth] = HostAuth,
        *,
        credentials: Credentials | None = None,
        plain_hosts: Iterable[str] | None = None,
        unreachable: Reason = Reason.SOURCE_UNREACHABLE,
        follow_redirects: bool = True,
        authority: str | None = None,
    ) -> None:
        """Credentials and plain-text hosts come from the environment where they are not given.

        ``unreachable`` is the reason that a failure to reach a host is reported with. Without ``follow_redirects`` a
        redirect is a refusal. ``authority`` are certificates (PEM) that are believed beside those of the system.
        """
        if plain_hosts is None:
            plain_hosts = os.environ.get(ENV_PLAIN_HTTP_HOSTS, "").split(",")
        self._plain_hosts = frozenset(host.strip() for host in plain_hosts if host.strip())
        self._unreachable = unreachable
        self._success = 400 if follow_redirects else 300
        context = _trusting(authority)
        self._client = httpx2.Client(
            auth=auth(credentials or Credentials.from_environment()),
            follow_redirects=follow_redirects,
            timeout=_TIMEOUT,
            transport=Transport(context),
            mounts={
                **{hosts: Transport(context, proxy) if proxy else None for hosts, proxy in proxies().items()},
                **{f"all://{host}": _Elsewhere(address, context) for host, address in _moved()},
            },
            headers={"User-Agent": "rm-abstract"},
            event_hooks={"request": [self._refuse_plain_text]},
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def base(self, host: str) -> str:
        """``https://host``, or ``http://host`` for a host that is spoken to in plain text."""
        return f"{'http' if host in self._plain_hosts else 'https'}://{host}"

    def _refuse_plain_text(self, request: httpx2.Request) -> None:
        self.refuse_plain_text(request.url)

    def refuse_plain_text(self, url: httpx2.URL) -> None:
        """Raise BadInput for a URL without TLS, unless its host is one that is spoken to so."""
        if url.scheme != "https" and netloc(url) not in self._plain_hosts:
            raise BadInput(
                f"{netloc(url)} was reached without TLS; if that is meant, name it in {ENV_PLAIN_HTTP_HOSTS}"
            )

    @contextmanager
    def open(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | Iterable[bytes] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> Iterator[httpx2.Response]:
        """Send a request and give its response, whose body is not read yet. Any error status raises."""
        try:
            with self._client.stream(method, url, headers=headers, content=content, params=params) as response:
                if response.status_code >= self._success:
                    response.read()
                    raise self.refusal(response)
                yield response
        except httpx2.HTTPError as error:
            host = _asked(error, url)
            raise SourceUnreachable(
                f"{host} does not answer: {str(error) or type(error).__name__}", reason=self._unreachable
            ) from error
        except httpx2.InvalidURL as error:
            raise BadInput(f"{url} is not a valid URL: {error}") from error

    def request(self, method: str, url: str, **options: Any) -> httpx2.Response:
        """Send a request, and give the response with its body read. Options as in ``open``."""
        with self.open(method, url, **options) as response:
            response.read()
            return response

    def read(self, url: str, start: int, length: int, *, headers: Mapping[str, str] | None = None) -> bytes:
        """``length`` bytes of a file from ``start``, less at its end; by a range request where the server does them."""
        parts = bytearray()
        for chunk in self._ranged(url, start, start + length - 1, _Seen(), headers):
            parts += chunk
            if len(parts) >= length:
                break
        return bytes(parts[:length])

    def download(self, url: str, *, headers: Mapping[str, str] | None = None) -> Iterator[bytes]:
        """The whole file in pieces. A broken connection is resumed where it broke; the caller checks digest or size.

        Raises Changed where the server has another file by the time it is resumed.
        """
        done, left, seen = 0, _RESUMES, _Seen()
        while True:
            try:
                for chunk in self._ranged(url, done, None, seen, headers):
                    done, left = done + len(chunk), _RESUMES
                    yield chunk
                return
            except SourceUnreachable:
                left -= 1
                if left == 0 or done == 0:
                    raise

    def _ranged(
        self, url: str, start: int, last: int | None, seen: "_Seen", extra: Mapping[str, str] | None
    ) -> Iterator[bytes]:
        # Without this, a server may compress, and then ranges count compressed bytes.
        headers = {"Accept-Encoding": "identity", **(extra or {})}
        if start or last is not None:
            headers["Range"] = f"bytes={start}-{'' if last is None else last}"
            if seen.validator:
                headers["If-Range"] = seen.validator
        with self.open("GET", url, headers=headers) as response:
            seen.check(response, start)
            skip = 0 if response.status_code == 206 else start
            for chunk in response.iter_bytes():
                if skip >= len(chunk):
                    skip -= len(chunk)
                    continue
                yield chunk[skip:]
                skip = 0

    def refusal(self, response: httpx2.Response) -> Exception:
        """What an error status means; its body has been read."""
        host, status = netloc(response.request.url), response.status_code
        path = response.request.url.path
        if status in (401, 403):
            return BadInput(
                f"{host} refuses {path} ({status}): credentials are missing or not sufficient; "
                f"put an entry for machine {response.request.url.host} into the netrc of the credentials Secret"
            )
        if status in (404, 410):
            return NotFound(f"{host} has no {path}")
        if status == 405 and response.request.method not in ("GET", "HEAD"):
            return ReadOnly(f"{host} takes nothing now ({status} for {path})", reason=self._unreachable)
        if status == 412:
            return Changed(f"{host} has another {path} than was asked for")
        if status in (408, 425, 429) or status >= 500:
            why = "it has no room left" if status == 507 else _told(response)
            return SourceUnreachable(
                f"{host} cannot answer now ({status} for {path}){f': {why}' if why else ''}", reason=self._unreachable
            )
        detail = response.text[:200]
        return BadInput(f"{host} refuses {path} ({status}): {detail}")


def _told(response: httpx2.Response) -> str:
    """What a registry says of a failure of its own, such as that its disk is full."""
    try:
        error = response.json()["errors"][0]
        return str(error.get("detail") or error["message"])[:200]
    except (ValueError, LookupError, TypeError, AttributeError):
        return ""
