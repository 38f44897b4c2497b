"""The weights cache of a node, as a process with its real sockets, disk and kills, and models fetched through it."""

import asyncio
import hashlib
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from aiohttp import web
from click.testing import CliRunner
from rm_abstract.sources import fetch_model, resolve_model
from rm_abstract.sources.node_cache import NodeCache
from rm_cli.main import main
from rm_operator.weights_cache.blobs import Blobs
from rm_operator.weights_cache.service import MOST_RECEIVED, Service
from sdk_support import COMMIT, Hub, WebServer, safetensors
from weights_cache_server import MIB, CacheServer, content, digest_of, reviews

WEIGHTS = 2 * MIB
URI = "hf://org/tiny"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The kubeconfig of a server that says whose a token is."""
    with reviews(tmp_path_factory.mktemp("api")) as kubeconfig:
        yield kubeconfig


@pytest.fixture
def stopped(tmp_path: Path, api: Path) -> Iterator[CacheServer]:
    """Not started yet."""
    (tmp_path / "server").mkdir()
    server = CacheServer(tmp_path / "server", api)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, api: Path) -> Iterator[CacheServer]:
    """One for all tests that need none of their own: what they store differs."""
    running = CacheServer(tmp_path_factory.mktemp("server"), api)
    running.start(limit=256 * MIB, share=256 * MIB)
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
def hub(web: WebServer, model: Path, monkeypatch: pytest.MonkeyPatch) -> WebServer:
    """A model on a hub, whose weights no other test has."""
    numbers = hashlib.shake_256(str(model).encode()).digest(WEIGHTS)
    raw = bytearray(safetensors({"embed.weight": ("BF16", [WEIGHTS // 2], WEIGHTS)}))
    raw[-WEIGHTS:] = numbers
    (model / "model.safetensors").write_bytes(bytes(raw))
    monkeypatch.setenv("HF_ENDPOINT", f"http://{web.host}")
    Hub(web, model)
    return web


def pod(
    server: CacheServer, tmp_path: Path, namespace: str = "a", *, public: bool = False, grace: float = 20
) -> NodeCache:
    """The cache as a pod of the namespace sees it."""
    token = tmp_path / f"token-{namespace}"
    token.write_text(f"system:serviceaccount:{namespace}:default")
    return NodeCache(server.host, token, public=public, grace_seconds=grace)


def fetched(cache: NodeCache, hub: WebServer, model: Path, destination: Path) -> tuple[int, dict[str, object]]:
    """How often the weights were read from the hub, and what the report says. All of the model is there afterwards."""
    facts = resolve_model(URI)
    hub.requests.clear()
    fetch_model(URI, COMMIT, facts["weightsDigest"], destination, cache=cache)
    cache.close()
    for path in model.iterdir():
        assert (destination / path.name).read_bytes() == path.read_bytes()
    downloads = [r for r in hub.requests if r.method == "GET" and r.path.endswith(".safetensors")]
    return len(downloads), cache.facts()


def test_the_second_pod_of_a_node_has_the_weights_from_there(
    server: CacheServer, hub: WebServer, model: Path, tmp_path: Path
) -> None:
    size, before = (model / "model.safetensors").stat().st_size, server.metric("rma_weights_cache_given_bytes_total")
    first, said = fetched(pod(server, tmp_path), hub, model, tmp_path / "one")
    assert (first, said) == (1, {"hits": 0, "bytes": 0, "filled": 1})
    second, said = fetched(pod(server, tmp_path), hub, model, tmp_path / "two")
    assert (second, said) == (0, {"hits": 1, "bytes": size, "filled": 0})
    assert server.metric("rma_weights_cache_given_bytes_total") - before == size


def test_what_needs_credentials_is_for_who_has_had_all_of_it(
    server: CacheServer, hub: WebServer, model: Path, tmp_path: Path
) -> None:
    fetched(pod(server, tmp_path, "a"), hub, model, tmp_path / "a")
    raw = (model / "model.safetensors").read_bytes()
    assert server.has(raw, "a")
    assert server.ask("GET", digest_of(raw), "b").content == server.ask(
        "GET", digest_of(raw + b"x"), "b"
    ).content.replace(digest_of(raw + b"x").encode(), digest_of(raw).encode()), (
        "that others have it cannot be told from that nobody has"
    )
    downloads, said = fetched(pod(server, tmp_path, "b"), hub, model, tmp_path / "b")
    assert (downloads, said["filled"]) == (1, 1)
    assert fetched(pod(server, tmp_path, "b"), hub, model, tmp_path / "again")[0] == 0
    assert not server.has(raw, "c")


def test_what_anybody_can_read_is_for_all(server: CacheServer, hub: WebServer, model: Path, tmp_path: Path) -> None:
    said = fetched(pod(server, tmp_path, "a", public=True), hub, model, tmp_path / "a")[1]
    assert said == {"hits": 0, "bytes": 0, "filled": 1}
    assert fetched(pod(server, tmp_path, "b"), hub, model, tmp_path / "b") == (
        0,
        {"hits": 1, "bytes": (model / "model.safetensors").stat().st_size, "filled": 0},
    )


def test_one_that_is_away_is_no_loss(stopped: CacheServer, hub: WebServer, model: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        stopped.host = f"127.0.0.1:{free.getsockname()[1]}"
    downloads, said = fetched(pod(stopped, tmp_path), hub, model, tmp_path / "dest")
    assert downloads == 1
    assert said["hits"] == 0
    assert "refused" in str(said["trouble"])


def test_one_that_is_wrong_is_found_out_and_put_right(
    server: CacheServer, hub: WebServer, model: Path, tmp_path: Path
) -> None:
    fetched(pod(server, tmp_path), hub, model, tmp_path / "one")
    wanted = digest_of((model / "model.safetensors").read_bytes())
    blob = server.directory / "blobs" / wanted.removeprefix("sha256:")
    raw = bytearray(blob.read_bytes())
    raw[MIB] ^= 1
    blob.write_bytes(raw)
    downloads, said = fetched(pod(server, tmp_path), hub, model, tmp_path / "two")
    assert downloads == 1
    assert "with digest" in str(said["trouble"])
    assert fetched(pod(server, tmp_path), hub, model, tmp_path / "three")[0] == 0


def test_one_that_is_slow_is_left(stopped: CacheServer, hub: WebServer, model: Path, tmp_path: Path) -> None:
    """It gives a piece, and the next one so late that the rate is too low."""
    size = (model / "model.safetensors").stat().st_size
    listening = socket.create_server(("127.0.0.1", 0))
    gone = threading.Event()

    def trickle() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
            for _ in range(100):
                try:
                    connection.sendall(b"x" * (size // 100))
                except OSError:
                    break
                if gone.wait(0.1):
                    break

    thread = threading.Thread(target=trickle, daemon=True)
    thread.start()
    stopped.host = f"127.0.0.1:{listening.getsockname()[1]}"
    downloads, said = fetched(pod(stopped, tmp_path, grace=0.05), hub, model, tmp_path / "dest")
    gone.set()
    listening.close()
    thread.join()
    assert downloads == 1
    assert "it moves" in str(said["trouble"])


def test_small_files_and_those_without_a_digest_are_not_asked_for(
    server: CacheServer, web: WebServer, model: Path, tmp_path: Path
) -> None:
    web.serve_directory(model)
    before = server.files()
    uri = f"https://{web.host}/"
    facts = resolve_model(uri)
    cache = pod(server, tmp_path)
    fetch_model(uri, facts["revision"], facts["weightsDigest"], tmp_path / "dest", cache=cache)
    cache.close()
    assert cache.facts() == {"hits": 0, "bytes": 0, "filled": 0}
    assert server.files() == before


def test_the_command_says_what_came_from_it(
    server: CacheServer, hub: WebServer, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod(server, tmp_path)
    monkeypatch.setenv("RMA_NODE_CACHE", server.host)
    monkeypatch.setenv("RMA_NODE_CACHE_TOKEN_FILE", str(tmp_path / "token-a"))
    facts = resolve_model(URI)
    for hits in (0, 1):
        arguments = ["fetch", "model", f"--source={URI}", f"--revision={COMMIT}", f"--dest={tmp_path / str(hits)}"]
        done = CliRunner().invoke(main, [*arguments, f"--weights-digest={facts['weightsDigest']}"])
        assert done.exit_code == 0, done.output
        report = json.loads(done.stdout)
        assert report["facts"]["nodeCache"]["hits"] == hits
    assert server.has((model / "model.safetensors").read_bytes(), "anybody"), "it was read without credentials"


@pytest.mark.parametrize(
    ("token", "status"),
    [
        ("", 401),
        ("Basic YTpi", 401),
        ("Bearer elsewhere system:serviceaccount:a:default", 401),
        ("Bearer system:node:n", 403),
        ("Bearer admin", 403),
    ],
)
def test_who_is_no_pod_is_given_and_stores_nothing(server: CacheServer, token: str, status: int) -> None:
    raw = content("x", 1000)
    assert server.put(raw, "a", public=True) == 201
    for method in ("GET", "PUT"):
        options = {"content": raw} if method == "PUT" else {}
        answer = server.ask(method, digest_of(raw), "a", headers={"Authorization": token}, **options)
        assert answer.status_code == status
        assert raw not in answer.content


@pytest.mark.parametrize(
    "name", ["sha256:" + "A" * 64, "sha256:" + "a" * 63, "sha256:..%2f..%2fetc", "sha512:" + "a" * 64]
)
def test_names_that_are_no_digest(server: CacheServer, name: str) -> None:
    before = server.files()
    assert server.ask("GET", name, "a").status_code in (400, 404)
    assert server.put(b"x", "a", digest=name) in (400, 404, 405)
    assert server.files() == before


def test_only_what_has_the_digest_is_stored(server: CacheServer) -> None:
    raw, before = content("right", 3000), server.files()
    assert server.put(content("wrong", 3000), "evil", public=True, digest=digest_of(raw)) == 400
    assert server.files() == before
    assert server.put(raw, "a") == 201
    assert server.put(content("wrong", 3000), "evil", public=True, digest=digest_of(raw)) == 400
    assert server.ask("GET", digest_of(raw), "a").content == raw
    assert not server.has(raw, "evil"), "who does not have it does not get at it by naming it"


def test_ranges(server: CacheServer) -> None:
    raw = content("r", 5000)
    server.put(raw, "a")
    answer = server.ask("GET", digest_of(raw), "a", headers={"Range": "bytes=1000-1999"})
    assert (answer.status_code, answer.content) == (206, raw[1000:2000])
    assert answer.headers["Content-Range"] == "bytes 1000-1999/5000"


def test_what_was_used_longest_ago_makes_room(stopped: CacheServer) -> None:
    stopped.start(limit=3 * MIB)
    blobs = [content(str(number), MIB) for number in range(4)]
    for raw in blobs[:3]:
        assert stopped.put(raw, "a") == 201
    assert stopped.has(blobs[0], "a")
    # When each was used is not lost with the process.
    stopped.stop(signal.SIGKILL)
    stopped.start(limit=3 * MIB)
    assert stopped.put(blobs[3], "a") == 201
    assert [stopped.has(raw, "a") for raw in blobs] == [True, False, True, True]
    assert stopped.metric("rma_weights_cache_bytes") == 3 * MIB
    assert stopped.metric("rma_weights_cache_evicted_total") == 1
    stopped.stop()
    stopped.start(limit=MIB)
    assert sum(stopped.has(raw, "a") for raw in blobs) == 1, "a lower limit holds from the start"


def test_a_namespace_drives_out_its_own_only(stopped: CacheServer) -> None:
    stopped.start(limit=8 * MIB, share=2 * MIB)
    other = content("other", MIB)
    assert stopped.put(other, "b") == 201
    blobs = [content(str(number), MIB) for number in range(4)]
    for raw in blobs:
        assert stopped.put(raw, "a") == 201
    assert [stopped.has(raw, "a") for raw in blobs] == [False, False, True, True]
    assert stopped.has(other, "b")
    too_large = stopped.ask("PUT", digest_of(content("l", 3 * MIB)), "a", content=content("l", 3 * MIB))
    assert too_large.status_code == 507
    assert f"it has {3 * MIB} bytes, and {2 * MIB} are what a namespace may have" in too_large.text
    assert stopped.has(blobs[3], "a"), "nothing goes for what does not fit anyway"


def test_one_that_is_killed_while_it_stores_has_lost_that_one_only(stopped: CacheServer) -> None:
    """With it goes what a crash of the machine may leave: half a file, one without a note, a note without one."""
    stopped.start()
    kept, raw = content("kept", MIB), content("half", 8 * MIB)
    damaged = [content(f"damaged {number}", 5000) for number in range(4)]
    for each in (kept, *damaged):
        assert stopped.put(each, "a") == 201
    host, _, port = stopped.host.partition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            f"PUT /v1/blobs/{digest_of(raw)} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(raw)}\r\n"
            "Authorization: Bearer system:serviceaccount:a:default\r\n\r\n".encode()
            + raw[: 4 * MIB]
        )
        while not [name for name in stopped.files() if name.startswith("incoming/")]:
            time.sleep(0.01)
        stopped.stop(signal.SIGKILL)
    names = [digest_of(each).removeprefix("sha256:") for each in damaged]
    (stopped.directory / "blobs" / names[0]).write_bytes(damaged[0][:100])
    (stopped.directory / "said" / names[1]).unlink()
    (stopped.directory / "said" / names[2]).write_bytes(b"\0" * 100)
    (stopped.directory / "blobs" / names[3]).unlink()
    stopped.start()
    name = digest_of(kept).removeprefix("sha256:")
    assert stopped.files() == [f"blobs/{name}", f"said/{name}"]
    assert stopped.metric("rma_weights_cache_bytes") == len(kept)
    assert stopped.has(kept, "a")
    for each in (raw, *damaged):
        assert stopped.put(each, "a") == 201
        assert stopped.ask("GET", digest_of(each), "a").content == each


def test_many_at_once_store_and_read_the_same(server: CacheServer) -> None:
    raw, before, bytes_before = content("same", 3 * MIB), server.files(), server.metric("rma_weights_cache_bytes")

    def one(number: int) -> tuple[int, bytes]:
        stored = server.put(raw, f"ns-{number % 4}")
        return stored, server.ask("GET", digest_of(raw), f"ns-{number % 4}").content

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, range(16)))
    assert {stored for stored, _ in found} == {201}
    assert {got for _, got in found} == {raw}
    assert server.metric("rma_weights_cache_bytes") - bytes_before == len(raw)
    assert len(server.files()) - len(before) == 2


def test_who_reads_what_is_driven_out_reads_on(stopped: CacheServer) -> None:
    stopped.start(limit=9 * MIB)
    raw = content("large", 8 * MIB)
    stopped.put(raw, "a")
    host, _, port = stopped.host.partition(":")
    with socket.create_connection((host, int(port))) as connection, connection.makefile("rb") as reader:
        connection.sendall(
            f"GET /v1/blobs/{digest_of(raw)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            "Authorization: Bearer system:serviceaccount:a:default\r\n\r\n".encode()
        )
        while reader.readline().strip():
            pass
        assert stopped.put(content("next", 4 * MIB), "a") == 201
        assert not stopped.has(raw, "a")
        assert reader.read() == raw


def half_stored(server: CacheServer, raw: bytes, namespace: str) -> socket.socket:
    """A connection over which the first half of a blob came."""
    host, _, port = server.host.partition(":")
    connection = socket.create_connection((host, int(port)))
    connection.sendall(
        f"PUT /v1/blobs/{digest_of(raw)} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(raw)}\r\n"
        f"Authorization: Bearer system:serviceaccount:{namespace}:default\r\n\r\n".encode()
        + raw[: len(raw) // 2]
    )
    return connection


def test_only_so_many_are_stored_at_a_time(stopped: CacheServer) -> None:
    """Each that is being stored takes memory and keeps room, whether more of it comes or not."""
    stopped.start()
    raw = content("next", 1000)
    held = [half_stored(stopped, content(f"half {number}", 1000), "greedy") for number in range(MOST_RECEIVED)]
    try:
        stopped.wait_for("rma_weights_cache_bytes", 1000 * MOST_RECEIVED)
        refused = stopped.ask("PUT", digest_of(raw), "a", content=raw)
        assert (refused.status_code, "come again" in refused.text) == (503, True)
        assert stopped.ask("HEAD", digest_of(raw), "a").status_code == 404, "and it still answers"
    finally:
        for connection in held:
            connection.close()
    stopped.wait_for("rma_weights_cache_bytes", 0)
    assert stopped.put(raw, "a") == 201


class Anybody:
    """Takes a token for the name of its account."""

    async def account(self, token: str) -> str:
        return token


def test_who_stops_in_the_middle_of_storing_is_not_waited_for(tmp_path: Path) -> None:
    async def scenario() -> tuple[bytes, int]:
        blobs = Blobs(tmp_path, limit=MIB, share=MIB)
        runner = web.AppRunner(Service(blobs, Anybody(), wait_seconds=0.2).app())
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            reader, writer = await asyncio.open_connection(*runner.addresses[0])
            writer.write(
                f"PUT /v1/blobs/{digest_of(b'ab')} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"
                "Authorization: Bearer system:serviceaccount:a:default\r\n\r\na".encode()
            )
            line = await reader.readline()
            writer.close()
            return line, blobs.bytes
        finally:
            await runner.cleanup()

    line, kept = asyncio.run(scenario())
    assert line.split()[1] == b"408"
    assert kept == 0
