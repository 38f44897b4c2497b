"""An operator in kopf's usual way, which makes the same children and statuses: ``python -m scale.naive FILE``.

``on.create`` and ``on.update`` do the work, the status goes through kopf's patch. It is spared everything that it would
have to find out: what to write is in FILE. Its events are switched off.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

import kopf
from rm_operator.kube.auth import load
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import MODEL_DEPLOYMENTS

from scale.writes import Writes


async def run(path: Path) -> None:
    """Run until the process is ended."""
    connection = load()
    writes = Writes.from_file(path)
    registry = kopf.OperatorRegistry()
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.AiohttpSession:
        return kopf.AiohttpSession(server=connection.server, aiohttp_session=connection.open_session())

    async with HttpClient(connection) as client:

        async def reconcile(name: str, namespace: str | None, uid: str, patch: kopf.Patch, **_: Any) -> None:
            if name not in writes:
                return
            assert namespace is not None
            wanted = writes[name].of(namespace, uid)
            await wanted.send_children(client)
            patch.status.update(wanted.status)

        kind = (MODEL_DEPLOYMENTS.group, MODEL_DEPLOYMENTS.version, MODEL_DEPLOYMENTS.plural)
        kopf.on.create(*kind, registry=registry)(reconcile)
        kopf.on.update(*kind, registry=registry)(reconcile)
        await kopf.operator(registry=registry, settings=settings, standalone=True, clusterwide=True)


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1])))
