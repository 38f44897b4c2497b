"""What the registry client owes to servers that are slow, broken or want to know too much."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rm_abstract.core.errors import ArtifactMismatch, BadInput
from rm_abstract.store.reference import Reference
from rm_abstract.store.registry import Descriptor, Registry
from sdk_support import Answer, Request, WebServer, ranged

BODY = os.urandom(300_000)
BLOB = Descriptor("application/octet-stream", "sha256:" + hashlib.sha256(BODY).hexdigest(), len(BODY), {})


def serve_blob(request: Request) -> Answer:
    return ranged(request, BODY, {}) if request.path == f"/v2/a/b/blobs/{BLOB.digest}" else Answer(404)


def reference(web: WebServer) -> Reference:
    return Reference.parse(f"{web.host}/a/b:v1")


@pytest.fixture
def client(web: WebServer) -> Iterator[Registry]:
    client = Registry()
    yield client
    client.close()


def pulled(web: WebServer) -> bytes:
    client = Registry()
    try:
        return b"".join(client.blob(reference(web), BLOB))
    finally:
        client.close()


def test_a_broken_layer_goes_on_where_it_broke(web: WebServer) -> None:
    sent = []

    def answer(request: Request) -> Answer:
        found = serve_blob(request)
        if len(found.body) > 100_000:
            found.cut = len(found.body) // 2
        sent.append(len(found.body) if found.cut is None else found.cut)
        return found

    web.answer = answer
    assert pulled(web) == BODY
    assert sent == [150_000, 75_000, 75_000]


@pytest.mark.parametrize(("start", "length"), [(0, 8), (8, 1000), (299_990, 1000)])
def test_a_part_of_a_layer_costs_no_more_than_the_part(
    web: WebServer, client: Registry, start: int, length: int
) -> None:
    sent = []

    def answer(request: Request) -> Answer:
        found = serve_blob(request)
        sent.append(len(found.body))
        return found

    web.answer = answer
    assert client.read_blob(reference(web), BLOB, start, length) == BODY[start : start + length]
    assert sent == [len(BODY[start : start + length])]


def test_a_manifest_has_a_bound(web: WebServer, client: Registry) -> None:
    web.answer = lambda _request: Answer(200, b" " * ((4 << 20) + 1))
    with pytest.raises(ArtifactMismatch, match="larger than 4194304 bytes"):
        client.manifest(reference(web))


def test_a_layer_that_is_elsewhere_is_fetched_without_the_credential(
    new_web_server: Callable[[], WebServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    front, elsewhere = new_web_server(), new_web_server()
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine {front.host} login me password secret\ndefault login all password everywhere\n")
    monkeypatch.setenv("NETRC", str(netrc))

    def answer(request: Request) -> Answer:
        if "authorization" not in request.headers:
            return Answer(401, headers={"WWW-Authenticate": 'Basic realm="front"'})
        return Answer(307, headers={"Location": f"http://{elsewhere.host}{request.path}"})

    front.answer, elsewhere.answer = answer, serve_blob
    monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", f"{front.host},{elsewhere.host}")
    assert pulled(front) == BODY
    assert [request.headers.get("authorization") for request in elsewhere.requests] == [None]

    monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", front.host)
    with pytest.raises(BadInput, match="without TLS"):
        pulled(front)
    assert len(elsewhere.requests) == 1
