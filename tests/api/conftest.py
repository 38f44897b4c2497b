"""An API server of the tests' own, with our CRDs and nothing that would act on objects."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from real_api import CRD, NAMESPACES, START_SECONDS, ApiServer, eventually
from rm_api.names import FIELD_MANAGER_IN_USE, FINALIZER_IN_USE
from rm_operator.app import MANAGED
from rm_operator.kube.errors import ApiError
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import (
    CONFIGMAPS,
    CONTROLLERREVISIONS,
    CUSTOM,
    DAEMONSETS,
    DEPLOYMENTS,
    HORIZONTALPODAUTOSCALERS,
    JOBS,
    PODS,
    SERVICES,
)

CHILDREN = (
    DEPLOYMENTS,
    DAEMONSETS,
    JOBS,
    SERVICES,
    CONFIGMAPS,
    CONTROLLERREVISIONS,
    HORIZONTALPODAUTOSCALERS,
    PODS,
)
CRDS = Path(__file__).parents[2] / "crds"

# A TLS handshake that is given up, as with a server that is frozen, is ended by asyncio half a minute later, when the
# test and its event loop are gone. A session that a test forgets is told by other words, and still fails it.
_GIVEN_UP = (
    "ignore:unclosed transport <_SelectorSocketTransport:ResourceWarning",
    r"ignore:unclosed <socket\.socket .* raddr=\('127\.0\.0\.1':ResourceWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Says so of the tests of this directory."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for each in _GIVEN_UP:
                item.add_marker(pytest.mark.filterwarnings(each))


async def _install_crds(server: ApiServer) -> None:
    async with HttpClient(server.connection()) as client:

        async def ready() -> bool:
            try:
                await client.get(NAMESPACES, None, "default")
            except ApiError:
                return False
            return True

        await eventually(ready, "the API server serves", START_SECONDS)
        for path in sorted(CRDS.glob("*.yaml")):
            await client.apply(CRD, yaml.safe_load(path.read_text()), field_manager="tests")
        for resource in CUSTOM:
            await eventually(partial(client.serves, resource), f"{resource.name} is served")


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """One for the session, with our CRDs installed."""
    server = ApiServer(tmp_path_factory.mktemp("api-server"))
    try:
        server.start()
        asyncio.run(_install_crds(server))
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module", autouse=True)
def _cleared(api_server: ApiServer) -> Iterator[None]:
    """What a module leaves is no work for the operators of the next one. Nothing collects garbage here."""
    yield
    asyncio.run(_clear(api_server))


async def _clear(server: ApiServer) -> None:
    async with HttpClient(server.connection()) as client:
        for resource in (*CUSTOM, *CHILDREN):
            selector = None if resource in CUSTOM else MANAGED
            for item in (await client.list(resource, label_selector=selector)).items:
                metadata = item["metadata"]
                bare = {key: metadata[key] for key in ("namespace", "name", "uid") if key in metadata}
                if FINALIZER_IN_USE in metadata.get("finalizers", ()):
                    body = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": bare}
                    await client.apply(resource, body, field_manager=FIELD_MANAGER_IN_USE)
                await client.delete(resource, metadata.get("namespace"), metadata["name"])


@pytest.fixture
async def client(api_server: ApiServer) -> AsyncIterator[HttpClient]:
    """A client of the administrator."""
    async with HttpClient(api_server.connection()) as opened:
        yield opened


@pytest.fixture
async def api_namespace(client: HttpClient) -> str:
    """The name of a fresh namespace; it goes with the server."""
    name = f"t-{secrets.token_hex(4)}"
    body: dict[str, Any] = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    await client.create(NAMESPACES, body, field_manager="tests")
    return name
