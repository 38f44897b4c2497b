"""The operator's token is shown to the token service that its registry names, and to nobody else."""

import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import yarl
from aiohttp import web
from rm_operator.kube.artifact_store import ArtifactStore
from rm_operator.kube.auth import FileToken, StaticToken, TokenSource
from rm_operator.kube.registry_token import RegistryAuthenticator
from rm_operator.plan.artifact import Presence

SHOWN = "Basic " + base64.b64encode(b"serviceaccount:sesame").decode()
Answer = Callable[[web.Request], web.Response]


class Server:
    """A web server on loopback whose answers a test writes."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.shown: list[str | None] = []
        self.host = ""

    async def handle(self, request: web.Request) -> web.Response:
        self.shown.append(request.headers.get("Authorization"))
        return self.answer(request)


@asynccontextmanager
async def serving(*servers: Server) -> AsyncIterator[None]:
    runners = []
    try:
        for server in servers:
            app = web.Application()
            app.router.add_route("*", "/{path:.*}", server.handle)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
            await runner.setup()
            runners.append(runner)
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            server.host = f"127.0.0.1:{runner.addresses[0][1]}"
        yield
    finally:
        for runner in runners:
            await runner.cleanup()


class World:
    """A registry and its token service."""

    def __init__(self) -> None:
        self.lifetime = 300
        self.realm = ""
        self.tokens = Server(lambda _request: web.json_response({"token": "granted", "expires_in": self.lifetime}))
        self.registry = Server(self._registry)
        self.other = Server(lambda _request: web.Response(status=401))

    def challenge(self) -> web.Response:
        realm = self.realm or f"http://{self.tokens.host}/token"
        said = f'Bearer realm="{realm}",service="store",scope="repository:artifacts/a/x:pull"'
        return web.Response(status=401, headers={"WWW-Authenticate": said})

    def _registry(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != "Bearer granted":
            return self.challenge()
        return web.json_response({"layers": []}, headers={"Docker-Content-Digest": "sha256:0"})

    async def ask(self, *, times: int = 1, account: TokenSource | None = None) -> tuple[Presence, str]:
        store = ArtifactStore(self.registry.host, plain_http=True, account=account or StaticToken("sesame"))
        try:
            for _ in range(times):
                answer = await store.ask("artifacts/a/x")
            return answer.presence, answer.message
        finally:
            await store.close()


async def test_it_is_shown_to_the_token_service_once_for_many_requests() -> None:
    world = World()
    async with serving(world.registry, world.tokens):
        assert await world.ask(times=3) == (Presence.FOUND, "")
    assert world.tokens.shown == [SHOWN]
    assert world.registry.shown == [None, *["Bearer granted"] * 3]


async def test_a_token_that_is_about_to_run_out_is_not_used() -> None:
    world = World()
    world.lifetime = 20
    async with serving(world.registry, world.tokens):
        assert await world.ask(times=2) == (Presence.FOUND, "")
    assert world.tokens.shown == [SHOWN, SHOWN]
    assert world.registry.shown == [None, "Bearer granted"] * 2


@pytest.mark.parametrize("realm", ["http://auth.example/token", "https://", "", "ftp://127.0.0.1/token", "http://[/"])
async def test_it_goes_over_tls_only(realm: str) -> None:
    world = World()
    world.realm = realm or "nowhere"
    async with serving(world.registry, world.tokens):
        presence, message = await world.ask()
    assert presence is Presence.UNREACHABLE
    assert "is not reached over TLS" in message


async def test_it_follows_no_redirect() -> None:
    world = World()
    async with serving(world.registry, world.tokens, world.other):
        moved = {"Location": f"http://{world.other.host}/token"}
        world.tokens.answer = lambda _request: web.Response(status=307, headers=moved)
        presence, message = await world.ask()
    assert (presence, world.other.shown) == (Presence.UNREACHABLE, [])
    assert "answered 307" in message


async def test_who_a_redirect_of_the_registry_leads_to_gets_nothing() -> None:
    world = World()
    async with serving(world.registry, world.tokens, world.other):
        world.other.answer = lambda _request: world.challenge()
        moved = {"Location": f"http://{world.other.host}/v2/"}
        granted = {"Authorization": "Bearer granted"}

        def answer(request: web.Request) -> web.Response:
            has = request.headers.get("Authorization") == granted["Authorization"]
            return web.Response(status=307, headers=moved) if has else world.challenge()

        world.registry.answer = answer
        presence, _ = await world.ask()
    assert presence is Presence.UNREACHABLE
    assert world.other.shown == [None]
    assert world.tokens.shown == [SHOWN], "the other one's challenge is not answered"


async def test_another_host_in_the_same_session_gets_nothing() -> None:
    world = World()
    async with serving(world.registry, world.tokens, world.other):
        world.other.answer = lambda _request: world.challenge()
        way_in = RegistryAuthenticator(yarl.URL(f"http://{world.registry.host}/v2"), StaticToken("sesame"))
        async with (
            aiohttp.ClientSession(middlewares=(way_in,)) as session,
            session.get(f"http://{world.other.host}/v2/") as answer,
        ):
            assert answer.status == 401
    assert (world.other.shown, world.tokens.shown) == ([None], [])


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, "{}", "does not accept the operator's token"),
        (503, "", "answered 503"),
        (200, "{}", "answered without a token"),
        (200, "[]", "answered without a token"),
        (200, '{"token": 1}', "answered without a token"),
    ],
)
async def test_a_token_service_that_gives_none(status: int, body: str, said: str) -> None:
    world = World()
    world.tokens.answer = lambda _request: web.Response(status=status, text=body)
    async with serving(world.registry, world.tokens):
        presence, message = await world.ask()
    assert presence is Presence.UNREACHABLE
    assert said in message


async def test_a_registry_that_refuses_what_was_granted_is_asked_once_more_only() -> None:
    world = World()
    world.registry.answer = lambda _request: world.challenge()
    async with serving(world.registry, world.tokens):
        presence, message = await world.ask()
    assert (presence, message) == (Presence.UNREACHABLE, "it answered 401 Unauthorized")
    assert world.registry.shown == [None, "Bearer granted"]


async def test_a_token_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    world = World()
    async with serving(world.registry, world.tokens):
        presence, message = await world.ask(account=FileToken(tmp_path / "token"))
    assert presence is Presence.UNREACHABLE
    assert str(tmp_path / "token") in message
