"""Where the API server is and how to prove who we are: a pod's service account, or a kubeconfig.

One loader serves our client and kopf's, so both follow a rotated token at once.
"""

import asyncio
import base64
import os
import ssl
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Protocol

import aiohttp
import msgspec
import yaml

SERVICE_ACCOUNT_DIR: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_REREAD_SECONDS: Final = 60.0
EXEC_TIMEOUT_SECONDS: Final = 60.0
EXPIRY_MARGIN: Final = timedelta(seconds=60)


class ConfigError(Exception):
    """There is no usable configuration; the message says what is missing and where it was looked for."""


class TokenSource(Protocol):
    """Gives the bearer token to send now."""

    async def token(self) -> str:
        """The token. Raises ConfigError."""
        ...

    def invalidate(self) -> None:
        """Forget a token that the server refused."""
        ...


@dataclass
class StaticToken:
    """A token that never changes."""

    value: str = field(repr=False)

    async def token(self) -> str:
        """The token."""
        return self.value

    def invalidate(self) -> None:
        """Nothing to forget: there is no other."""


@dataclass
class FileToken:
    """A token in a file that somebody else (the kubelet) replaces; read again each minute and after a refusal."""

    path: Path
    _value: str = field(default="", repr=False)
    _read_at: float = float("-inf")

    async def token(self) -> str:
        """The file's content. A file that cannot be read any more leaves the last one in use."""
        now = asyncio.get_running_loop().time()
        if now - self._read_at >= TOKEN_REREAD_SECONDS:
            try:
                # A kilobyte from a tmpfs: a thread would cost more than the read.
                self._value = self.path.read_text(encoding="utf-8").strip()
            except OSError as error:
                if not self._value:
                    raise ConfigError(f"the token file {self.path} cannot be read: {error}") from None
            self._read_at = now
        return self._value

    def invalidate(self) -> None:
        """Read the file at the next request."""
        self._read_at = float("-inf")


@dataclass
class ExecToken:
    """A token printed by a credential plugin (``users[].user.exec``), until it says that it expires."""

    command: Sequence[str]
    env: Mapping[str, str]
    api_version: str
    _value: str = field(default="", repr=False)
    _expires: datetime | None = None
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)

    async def token(self) -> str:
        """The token, from the plugin if none is at hand. Raises ConfigError with what the plugin wrote."""
        async with self._lock:
            expired = self._expires is not None and datetime.now(UTC) >= self._expires - EXPIRY_MARGIN
            if not self._value or expired:
                await self._run()
            return self._value

    def invalidate(self) -> None:
        """Run the plugin at the next request."""
        self._value = ""

    async def _run(self) -> None:
        info = {"apiVersion": self.api_version, "kind": "ExecCredential", "spec": {"interactive": False}}
        env = {**os.environ, **self.env, "KUBERNETES_EXEC_INFO": msgspec.json.encode(info).decode()}
        try:
            process = await asyncio.create_subprocess_exec(
                *self.command, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
            )
        except OSError as error:
            raise ConfigError(f"the credential plugin {self.command[0]!r} cannot be started: {error}") from None
        try:
            async with asyncio.timeout(EXEC_TIMEOUT_SECONDS):
                out, err = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise ConfigError(f"the credential plugin {self.command[0]!r} did not end in time") from None
        if process.returncode != 0:
            text = err.decode(errors="replace").strip()[-500:]
            raise ConfigError(f"the credential plugin {self.command[0]!r} failed ({process.returncode}): {text}")
        try:
            status = msgspec.json.decode(out)["status"]
            self._value = status["token"]
            expires = status.get("expirationTimestamp")
            self._expires = datetime.fromisoformat(expires) if expires else None
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f"the credential plugin {self.command[0]!r} printed no ExecCredential with a token"
            ) from None


@dataclass(frozen=True)
class Connection:
    """An API server and the credentials for it; ``tls`` is None for plain HTTP."""

    server: str
    tls: ssl.SSLContext | None = None
    credentials: TokenSource | None = None
    proxy: str | None = None

    def open_session(self, *, limit: int = 0) -> aiohttp.ClientSession:
        """A new session of at most ``limit`` connections (0: any) that authenticates each request."""
        middlewares: tuple[aiohttp.ClientMiddlewareType, ...] = ()
        if self.credentials is not None:
            middlewares = (_Authenticator(self.credentials),)
        connector = aiohttp.TCPConnector(limit=limit, ssl=self.tls if self.tls is not None else True)
        return aiohttp.ClientSession(
            connector=connector,
            middlewares=middlewares,
            proxy=self.proxy,
            # The server would compress every large list: many times the work of sending it as it is, for both sides.
            headers={"User-Agent": "rm-abstract-operator", "Accept-Encoding": "identity"},
            json_serialize=lambda value: msgspec.json.encode(value).decode(),
            # A redirect would carry the token to another place, and cookies have no business here.
            cookie_jar=aiohttp.DummyCookieJar(),
        )


class _Authenticator:
    """Adds the token to each request, and tries once more with a fresh one after a 401."""

    def __init__(self, credentials: TokenSource) -> None:
        self._credentials = credentials

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        used = await self._credentials.token()
        request.headers["Authorization"] = f"Bearer {used}"
        response = await handler(request)
        if response.status == 401:
            self._credentials.invalidate()
            fresh = await self._credentials.token()
            if fresh != used:
                response.release()
                request.headers["Authorization"] = f"Bearer {fresh}"
                response = await handler(request)
        return response


def load(kubeconfig: str | None = None) -> Connection:
    """The connection of this process.

    In this order: ``kubeconfig`` (a path), ``$KUBECONFIG``, the pod's service account, ``~/.kube/config``.
    Raises ConfigError.
    """
    if kubeconfig or os.environ.get("KUBECONFIG"):
        paths = [kubeconfig] if kubeconfig else os.environ["KUBECONFIG"].split(os.pathsep)
        return from_kubeconfig([Path(path).expanduser() for path in paths if path.strip()])
    if os.environ.get("KUBERNETES_SERVICE_HOST") and (SERVICE_ACCOUNT_DIR / "token").exists():
        return in_cluster()
    default = Path("~/.kube/config").expanduser()
    if default.exists():
        return from_kubeconfig([default])
    raise ConfigError(
        "no API server is configured: set KUBECONFIG, or run in a pod with a service account token "
        f"(neither {SERVICE_ACCOUNT_DIR / 'token'} nor {default} exists)"
    )


def in_cluster(directory: Path = SERVICE_ACCOUNT_DIR, environ: Mapping[str, str] = os.environ) -> Connection:
    """The connection of a pod: the address that the kubelet put into the environment, CA and token from files."""
    host, port = environ["KUBERNETES_SERVICE_HOST"], environ.get("KUBERNETES_SERVICE_PORT", "443")
    try:
        tls = ssl.create_default_context(cafile=str(directory / "ca.crt"))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"the cluster's CA in {directory / 'ca.crt'} cannot be read: {error}") from None
    address = f"[{host}]" if ":" in host else host
    return Connection(f"https://{address}:{port}", tls, FileToken(directory / "token"))


def from_kubeconfig(paths: Sequence[Path], context: str | None = None) -> Connection:
    """The connection of the current context (or ``context``) of kubeconfig files; the first entry of a name counts."""
    current = context
    contexts: _Named = {}
    clusters: _Named = {}
    users: _Named = {}
    for path in paths:
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except FileNotFoundError:
            continue
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"the kubeconfig {path} cannot be read: {error}") from None
        current = current or config.get("current-context")
        sections = ((contexts, "contexts", "context"), (clusters, "clusters", "cluster"), (users, "users", "user"))
        for known, section, member in sections:
            for entry in config.get(section) or ():
                known.setdefault(entry["name"], (entry.get(member) or {}, path.parent))
    where = ", ".join(map(str, paths))
    if not current:
        raise ConfigError(f"no current-context in {where}")
    try:
        chosen, _ = contexts[current]
        cluster, cluster_dir = clusters[chosen["cluster"]]
        user, user_dir = users[chosen["user"]] if chosen.get("user") else ({}, Path())
        server = str(cluster["server"]).rstrip("/")
    except KeyError as error:
        raise ConfigError(f"context {current!r} in {where} refers to {error.args[0]!r}, which is not there") from None
    tls = _tls(cluster, cluster_dir, user, user_dir) if server.startswith("https:") else None
    return Connection(server, tls, _token_source(user, user_dir), cluster.get("proxy-url"))


_Named = dict[str, tuple[dict[str, Any], Path]]


def _tls(cluster: dict[str, Any], cluster_dir: Path, user: dict[str, Any], user_dir: Path) -> ssl.SSLContext:
    try:
        if data := cluster.get("certificate-authority-data"):
            context = ssl.create_default_context(cadata=base64.b64decode(data).decode("ascii"))
        elif file := cluster.get("certificate-authority"):
            context = ssl.create_default_context(cafile=str(cluster_dir / file))
        else:
            context = ssl.create_default_context()
        if cluster.get("insecure-skip-tls-verify"):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        with ExitStack() as stack:
            certificate = _as_file(stack, user, "client-certificate", user_dir)
            if certificate is not None:
                context.load_cert_chain(certificate, _as_file(stack, user, "client-key", user_dir))
    except (OSError, ValueError) as error:
        raise ConfigError(f"the kubeconfig's certificates for {cluster['server']} cannot be used: {error}") from None
    return context


def _as_file(stack: ExitStack, user: dict[str, Any], name: str, directory: Path) -> str | None:
    """Path of a certificate or key; inline data goes through a temporary file, for ssl reads nothing else."""
    if data := user.get(f"{name}-data"):
        file = stack.enter_context(tempfile.NamedTemporaryFile())  # noqa: SIM115 - the stack closes it
        file.write(base64.b64decode(data))
        file.flush()
        return file.name
    return str(directory / user[name]) if user.get(name) else None


def _token_source(user: dict[str, Any], directory: Path) -> TokenSource | None:
    if token := user.get("token"):
        return StaticToken(token)
    if file := user.get("tokenFile"):
        return FileToken(directory / file)
    if plugin := user.get("exec"):
        command = str(plugin["command"])
        if os.sep in command:  # as kubectl does: a relative path is relative to the file it stands in
            command = str(directory / command)
        env = {entry["name"]: entry["value"] for entry in plugin.get("env") or ()}
        return ExecToken([command, *(plugin.get("args") or ())], env, plugin["apiVersion"])
    return None
