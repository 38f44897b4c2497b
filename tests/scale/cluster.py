"""The API server that a benchmark runs against: a real one, with an audit log, whose etcd can be filled directly."""

import asyncio
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson
import yaml
from real_api import CRD, NAMESPACES, START_SECONDS, ApiServer, eventually
from rm_operator.kube.errors import AlreadyExists, ApiError
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import CUSTOM, Resource

from scale import etcd

CRDS = Path(__file__).parents[2] / "crds"
OPERATORS = ("operator-a", "operator-b")
"""Users that operators run as, so that the audit log tells their requests from the benchmark's."""
SYSTEM_NAMESPACE = "rm-abstract-system"
_AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "rules": [
        {"level": "Metadata", "users": list(OPERATORS), "verbs": ["create", "update", "patch", "delete", "get"]},
        {"level": "None"},
    ],
}


@dataclass(frozen=True)
class Request:
    """What the audit log says of one request of an operator."""

    user: str
    verb: str
    resource: str
    subresource: str
    namespace: str
    name: str
    code: int
    at: str

    @property
    def is_write(self) -> bool:
        """True for what changes the cluster, renewals of a Lease excepted."""
        return self.verb != "get" and self.resource != "leases"


class Cluster:
    """Start it with ``async with``; it ends its processes and removes its files."""

    def __init__(self) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="rma-scale-")
        self.directory = Path(self._temporary.name)
        policy = self.directory / "audit-policy.yaml"
        policy.write_text(yaml.safe_dump(_AUDIT))
        self._audit = self.directory / "audit.log"
        self.server = ApiServer(
            self.directory,
            etcd_flags=("--quota-backend-bytes=8589934592", "--max-txn-ops=1000", "--max-request-bytes=16777216"),
            server_flags=(
                f"--audit-policy-file={policy}",
                f"--audit-log-path={self._audit}",
                "--audit-log-mode=blocking",
                "--max-requests-inflight=800",
                "--max-mutating-requests-inflight=400",
            ),
            admins=OPERATORS,
        )
        self.client: HttpClient

    async def __aenter__(self) -> Self:
        try:
            self.server.start()
            self.client = HttpClient(self.server.connection(), attempt_seconds=120, deadline_seconds=240)
            await self._install()
        except BaseException:
            self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.client.close()
        self._end()

    def _end(self) -> None:
        self.server.stop()
        self._temporary.cleanup()

    async def _install(self) -> None:
        await eventually(self._serves, "the API server serves", START_SECONDS)
        for path in sorted(CRDS.glob("*.yaml")):
            await self.client.apply(CRD, yaml.safe_load(path.read_text()), field_manager="scale")
        for resource in CUSTOM:
            await eventually(partial(self.client.serves, resource), f"{resource.name} is served", START_SECONDS)
        await self.add_namespaces([SYSTEM_NAMESPACE])

    async def _serves(self) -> bool:
        try:
            await self.client.get(NAMESPACES, None, "default")
        except ApiError:
            return False
        return True

    async def add_namespaces(self, names: Iterable[str]) -> None:
        """Create the namespaces that are not there."""
        for name in names:
            body: dict[str, Any] = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
            with suppress(AlreadyExists):
                await self.client.create(NAMESPACES, body, field_manager="scale")

    async def fill(self, entries: Iterable[etcd.Entry], warm: Iterable[Resource]) -> int:
        """Put objects into etcd while the API server is down; returns their number.

        On return the server's watch caches of ``warm`` are filled: nobody's start pays for them.
        """
        self.server.kill()
        count = await asyncio.to_thread(etcd.write, self.server.etcd_address, entries)
        self.server.start()
        await eventually(self._serves, "the API server serves again", START_SECONDS)
        for resource in warm:
            await eventually(partial(self._lists, resource), f"{resource.name} are listed", 4 * START_SECONDS)
        return count

    async def _lists(self, resource: Resource) -> bool:
        # Of the cache, whatever its version. Nothing matches: it is looked through, and no answer has to be made.
        query = {"resourceVersion": "0", "fieldSelector": "metadata.name=none"}
        async with (
            self.server.connection().open_session() as session,
            session.get(f"{self.server.url}{resource.path(None)}", params=query) as answer,
        ):
            return answer.status == 200

    @contextmanager
    def requests(self) -> Iterator[list[Request]]:
        """The requests of operators within the block; the list is filled at its end."""
        found: list[Request] = []
        begin = self._audit.stat().st_size if self._audit.exists() else 0
        yield found
        found += self.requests_since(begin)

    def audit_position(self) -> int:
        """A place in the audit log for ``requests_since``."""
        return self._audit.stat().st_size if self._audit.exists() else 0

    def requests_since(self, position: int) -> list[Request]:
        """The requests of operators that were answered after ``position`` was taken."""
        with self._audit.open("rb") as log:
            log.seek(position)
            return [_request(orjson.loads(line)) for line in log if line.endswith(b"\n")]


def _request(entry: dict[str, Any]) -> Request:
    about = entry.get("objectRef") or {}
    return Request(
        user=entry["user"]["username"],
        verb=entry["verb"],
        resource=about.get("resource", ""),
        subresource=about.get("subresource", ""),
        namespace=about.get("namespace", ""),
        name=about.get("name", ""),
        code=(entry.get("responseStatus") or {}).get("code", 0),
        at=entry["stageTimestamp"],
    )
