"""The endpoint: where it is, with which key, and what its failures mean."""

import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
from rm_api.remote import RemoteProtocol

CONNECT_SECONDS: Final = 10.0
MAX_ERROR_BYTES: Final = 64 << 10
RETRY_SECONDS: Final = 2
"""When to come again, where the provider refuses for now and does not say until when."""
REFUSALS: Final = (401, 403)
_V1: Final = "/v1"


class UnusableKey(Exception):
    """The file has no key that could be sent; the message says why, and nothing of its content."""


class Failure(Exception):
    """A request that has failed, in the words of the OpenAI API."""

    def __init__(self, status: int, message: str, *, code: str | None = None, retry: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry = retry

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        kind = "rate_limit_error" if self.status == 429 else "server_error"
        if 400 <= self.status < 500 and self.status != 429:
            kind = "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": None, "code": self.code}}


@dataclass(frozen=True)
class Endpoint:
    """An endpoint, as an AcceleratorResource describes it."""

    accelerator: str
    """Name of the AcceleratorResource, for messages."""
    url: str
    """Base URL, such as https://api.example.com/v1."""
    protocol: RemoteProtocol = RemoteProtocol.OPENAI
    key_file: Path | None = field(default=None, repr=False)
    """Read for each request, as a Secret may change; None for an endpoint that asks for no key."""
    ca_file: Path | None = None
    """Certificate authorities that are believed instead of those of the system."""
    timeout_seconds: float = 600.0
    """For how long it may send nothing."""

    @property
    def paths(self) -> Mapping[str, str]:
        """What may be asked, and the URL that answers it."""
        base = self.url.rstrip("/")
        known = {f"{_V1}/{name}": f"{base}/{name}" for name in ("chat/completions", "completions", "embeddings")}
        if self.protocol is RemoteProtocol.VLLM:
            root = base.removesuffix(_V1)
            known |= {f"/{name}": f"{root}/{name}" for name in ("tokenize", "detokenize")}
        return known

    @property
    def models(self) -> str:
        """The URL of its list of models."""
        return f"{self.url.rstrip('/')}/models"

    def key(self) -> str:
        """The key as it is now; empty where there is none to be. Raises UnusableKey."""
        if self.key_file is None:
            return ""
        try:
            key = self.key_file.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UnusableKey(f"the key cannot be read: {type(error).__name__}") from None
        if not key or any(character.isspace() or not character.isprintable() for character in key):
            raise UnusableKey("the key is empty, or is not one word of printable characters")
        return key

    def tls(self) -> ssl.SSLContext:
        """How it is made sure that it is the endpoint. Raises OSError or ssl.SSLError for unusable certificates."""
        return ssl.create_default_context(cafile=str(self.ca_file) if self.ca_file else None)


def session(endpoint: Endpoint) -> aiohttp.ClientSession:
    """Connections to the endpoint. No cookies, and as many connections as the limits let through."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=endpoint.tls(), limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_SECONDS, sock_read=endpoint.timeout_seconds, connect=CONNECT_SECONDS
        ),
        # What it sends compressed is handed on as text: a stream must not wait for a block to be full.
        headers={"Accept-Encoding": "identity", "User-Agent": "rm-abstract"},
    )


def authorization(key: str) -> dict[str, str]:
    """The header with the key; none without one."""
    return {"Authorization": f"Bearer {key}"} if key else {}


async def failure_of(endpoint: Endpoint, answer: aiohttp.ClientResponse, key: str) -> Failure:
    """What an answer that is no success means for whoever asked."""
    status, name = answer.status, endpoint.accelerator
    if status in REFUSALS:
        # What it says may quote the key.
        return Failure(
            502,
            f"the endpoint of {name} refuses its credentials ({status}); whoever administers {name} can renew them",
            code="credentials_refused",
        )
    if status == 504:
        return Failure(504, f"the endpoint of {name} answered 504: it has had no answer in time", code="timeout")
    if status >= 500 or status < 400:
        return Failure(502, f"the endpoint of {name} answered {status}", code="endpoint_failed")
    message, code = _told(await _beginning(answer))
    if key:
        message = message.replace(key, "***")
    if status == 429:
        retry = answer.headers.get("Retry-After", str(RETRY_SECONDS))
        return Failure(429, message or f"the endpoint of {name} has too many requests", code=code, retry=retry)
    return Failure(status, message or f"the endpoint of {name} answered {status}", code=code)


async def _beginning(answer: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) > MAX_ERROR_BYTES:
            break
    return bytes(body[:MAX_ERROR_BYTES])


def _told(body: bytes) -> tuple[str, str | None]:
    """Message and code of an error, by OpenAI's shape or TGI's; the text as it is where it has another one."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return body.decode(errors="replace").strip()[:500], None
    error = said.get("error", said) if isinstance(said, dict) else said
    if isinstance(error, dict):
        message, code = error.get("message"), error.get("code")
        return str(message or json.dumps(error))[:2000], code if isinstance(code, str) else None
    kind = said.get("error_type") if isinstance(said, dict) else None
    return str(error)[:2000], kind if isinstance(kind, str) else None
