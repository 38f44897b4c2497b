"""The pod's own token goes to the token service that the store names, and nowhere else."""

import base64
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from rm_abstract.core.errors import BadInput, SourceUnreachable
from rm_abstract.store.reference import Reference
from rm_abstract.store.registry import Registry
from rm_abstract.store.token import StoreToken
from rm_api.conditions import Reason
from rm_api.names import ExitCode
from sdk_support import Answer, Request, WebServer

TOKEN = "header.payload.signature"
SHOWN = "Basic " + base64.b64encode(f"serviceaccount:{TOKEN}".encode()).decode()
SCOPE = "repository:artifacts/a/x:pull"
MANIFEST = Answer(200, b"{}", {"Docker-Content-Digest": "sha256:" + "0" * 64})


class World:
    """A store, its token service and a third party; the token is for the store's token service."""

    def __init__(self, new: Callable[[], WebServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store, self.tokens, self.other = new(), new(), new()
        self.store.answer = self.registry
        self.tokens.answer = lambda _request: Answer(200, b'{"token": "granted"}')
        self.file = tmp_path / "token"
        self.file.write_text(f"{TOKEN}\n")
        monkeypatch.delenv("NETRC", raising=False)
        monkeypatch.setenv("RMA_STORE", self.store.host)
        monkeypatch.setenv("RMA_REGISTRY_TOKEN_FILE", str(self.file))
        hosts = (self.store.host, self.tokens.host, self.other.host)
        monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", ",".join(hosts))

    def challenge(self, realm: str) -> Answer:
        said = f'Bearer realm="{realm}",service="store",scope="{SCOPE}"'
        return Answer(401, headers={"WWW-Authenticate": said})

    def registry(self, request: Request) -> Answer:
        if request.headers.get("authorization") == "Bearer granted":
            return MANIFEST
        return self.challenge(f"http://{self.tokens.host}/token")

    def ask(self, web: WebServer) -> str | None:
        client = Registry(unreachable=Reason.STORE_UNREACHABLE)
        try:
            return client.resolve(Reference.parse(f"{web.host}/artifacts/a/x:v1"))
        finally:
            client.close()


@pytest.fixture
def world(new_web_server: Callable[[], WebServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(new_web_server, tmp_path, monkeypatch)


def shown(web: WebServer) -> list[str | None]:
    return [request.headers.get("authorization") for request in web.requests]


def test_it_is_shown_to_the_token_service_of_the_store(world: World) -> None:
    assert world.ask(world.store) == MANIFEST.headers["Docker-Content-Digest"]
    assert shown(world.tokens) == [SHOWN]
    assert shown(world.store) == [None, "Bearer granted"]


def test_it_is_read_again_when_the_kubelet_has_renewed_it(world: World) -> None:
    world.ask(world.store)
    world.file.write_text("second")
    world.ask(world.store)
    renewed = "Basic " + base64.b64encode(b"serviceaccount:second").decode()
    assert shown(world.tokens) == [SHOWN, renewed]


def test_another_registry_gets_nothing_whatever_it_names(world: World) -> None:
    for realm in (world.tokens.host, world.other.host):
        world.other.answer = lambda _request, realm=realm: world.challenge(f"http://{realm}/token")
        with pytest.raises(BadInput):
            world.ask(world.other)
    assert SHOWN not in [*shown(world.tokens), *shown(world.other)]


def test_who_a_redirect_of_the_store_leads_to_gets_nothing(world: World) -> None:
    world.store.answer = lambda request: Answer(307, headers={"Location": f"http://{world.other.host}{request.path}"})
    world.other.answer = lambda _request: world.challenge(f"http://{world.other.host}/token")
    with pytest.raises(BadInput):
        world.ask(world.store)
    assert world.other.requests
    assert set(shown(world.other)) == {None}


def test_who_a_redirect_of_the_token_service_leads_to_gets_nothing(world: World) -> None:
    world.tokens.answer = lambda _request: Answer(307, headers={"Location": f"http://{world.other.host}/token"})
    world.other.answer = lambda _request: Answer(401)
    with pytest.raises(BadInput):
        world.ask(world.store)
    assert shown(world.tokens) == [SHOWN]
    assert shown(world.other) == [None]


@pytest.mark.parametrize(
    ("store", "url", "is_for"),
    [
        ("registry.system.svc:5000", "https://registry.system.svc:5000/v2/", True),
        ("registry.system.svc:5000", "http://registry.system.svc:5000/v2/", False),
        ("registry.system.svc:5000", "https://registry.system.svc:5001/v2/", False),
        ("registry.system.svc:5000", "https://registry.system.svc.evil:5000/v2/", False),
        ("registry.example", "https://registry.example:443/v2/", True),
        ("registry.example:443", "https://registry.example/v2/", True),
        ("127.0.0.1:5000", "http://127.0.0.1:5000/v2/", True),
    ],
)
def test_the_store_is_known_by_its_host_and_only_over_tls(store: str, url: str, is_for: bool) -> None:
    assert StoreToken(store, Path("unread")).is_for(httpx2.URL(url)) is is_for


@pytest.mark.parametrize("realm", ["http://auth.system.svc:5001/token", "ftp://auth/token"])
def test_it_is_not_sent_in_plain_text(realm: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    with pytest.raises(BadInput, match="over TLS only"):
        StoreToken("store:5000", tmp_path / "token").credential(httpx2.URL(realm))


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_a_token_service_that_is_down_is_worth_another_try(world: World, status: int) -> None:
    world.tokens.answer = lambda _request: Answer(status)
    with pytest.raises(SourceUnreachable, match=f"{world.tokens.host} cannot answer now") as caught:
        world.ask(world.store)
    assert (caught.value.reason, caught.value.code) == (Reason.STORE_UNREACHABLE, ExitCode.SOURCE_UNREACHABLE)


def test_a_token_service_that_is_not_there_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.store.answer = lambda _request: world.challenge("http://127.0.0.1:1/token")
    with pytest.raises(BadInput, match=r"127\.0\.0\.1:1 was reached without TLS"):
        world.ask(world.store)
    monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", f"{world.store.host},127.0.0.1:1")
    with pytest.raises(SourceUnreachable, match=r"127\.0\.0\.1:1 does not answer") as caught:
        world.ask(world.store)
    assert caught.value.reason is Reason.STORE_UNREACHABLE


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_is_refused_is_not_tried_again(world: World, status: int) -> None:
    world.tokens.answer = lambda _request: Answer(status)
    with pytest.raises(BadInput, match="does not accept the token of the pod's account"):
        world.ask(world.store)
    assert len(world.tokens.requests) == 1


def test_what_belongs_to_another_namespace_is_refused_with_words_that_help(world: World) -> None:
    world.store.answer = lambda _request: world.challenge(f"http://{world.tokens.host}/token")
    with pytest.raises(BadInput, match="what belongs to its own namespace"):
        world.ask(world.store)
    assert len(world.tokens.requests) == 1


def test_without_a_token_the_file_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.file.unlink()
    with pytest.raises(BadInput, match=r"RMA_REGISTRY_TOKEN_FILE names .*token, which is no token"):
        world.ask(world.store)
    monkeypatch.delenv("RMA_STORE")
    with pytest.raises(BadInput, match="name its host:port in RMA_STORE"):
        Registry()


def test_an_authority_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMA_REGISTRY_CA", "no certificate")
    with pytest.raises(BadInput, match="no certificate in PEM"):
        Registry()
