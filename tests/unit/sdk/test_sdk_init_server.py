"""Sessions over a server that speaks OpenAI's API, with a real server: on a port, on a socket file, as a child."""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rm_abstract.backends.openai import Endpoint, OpenAiSession
from rm_abstract.backends.remote import RemotePlugin
from rm_abstract.backends.server_process import ServerProcess
from rm_abstract.core.errors import BadInput, SourceUnreachable, ToolchainFailure
from rm_abstract.core.plugin import BackendConfig
from rm_abstract.core.resource import BuildArtifact
from rm_abstract.core.session import FinishReason, GenerationRequest, generate
from test_sdk_text import ByteTokenizer

PATIENCE = 120
END = 0
SERVER = r"""
import http.server, json, os, socket, socketserver, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def address_string(self): return "socket"
    def log_message(self, *arguments): pass
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
print("loading"); sys.stdout.flush()
if sys.argv[2] == "die":
    print("out of memory"); sys.exit(3)
Server(sys.argv[1], Handler).serve_forever()
"""


class Api:
    """A server whose answer a test writes, and the bodies that it was sent."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.status = 200
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.models = [{"id": "tape", "owned_by": "vllm"}]
        self.hold = threading.Event()
        self.hold.set()
        self.left = threading.Event()
        api = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_arguments: object) -> None:
                pass

            def do_GET(self) -> None:
                self._json({"data": api.models})

            def do_POST(self) -> None:
                api.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                api.headers.append(dict(self.headers))
                if api.status != 200:
                    self._json({"message": "too much"})
                    return
                self.send_response(200)
                self.end_headers()
                for event in api.events:
                    self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                while not api.hold.wait(0.05):
                    try:
                        self.wfile.write(b": still there\n\n")
                    except OSError:
                        api.left.set()
                        return
                self.wfile.write(b"data: [DONE]\n\n")

            def _json(self, value: object) -> None:
                body = json.dumps(value).encode()
                self.send_response(api.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def says(self, *pieces: tuple[list[int] | None, str, str | None]) -> None:
        self.events = []
        for tokens, text, finish in pieces:
            choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": finish}
            if tokens is not None:
                choice["token_ids"] = tokens
            self.events.append({"choices": [choice]})


@pytest.fixture
def api() -> Iterator[Api]:
    api = Api()
    yield api
    api.hold.set()
    api.server.shutdown()
    api.server.server_close()


@pytest.fixture
def session(api: Api) -> Iterator[OpenAiSession]:
    session = OpenAiSession(
        Endpoint(api.url, token="secret"),
        "tape",
        ByteTokenizer(),
        max_sequence_length=100,
        vocabulary_size=257,
        end_tokens=frozenset({END}),
    )
    yield session
    session.close()


@pytest.mark.parametrize(
    ("pieces", "tokens", "finish"),
    [
        ([([1, 2], "ab", None), ([3], "c", "stop")], [1, 2, 3], FinishReason.STOP),
        ([([1], "a", None), ([], "", "length")], [1], FinishReason.LENGTH),
        ([(None, "a", None), (None, "b", "length")], [97, 98], FinishReason.LENGTH),
        ([(None, "ab", "stop")], [97, 98, END], FinishReason.STOP),
        ([([1], "a", None), ([], "", "abort")], [1], FinishReason.ERROR),
        ([([1], "a", None)], [1], FinishReason.ERROR),
        ([], [], FinishReason.ERROR),
    ],
)
def test_what_the_server_says(
    api: Api, session: OpenAiSession, pieces: Any, tokens: list[int], finish: FinishReason
) -> None:
    api.says(*pieces)
    assert generate(session, GenerationRequest([5, 6], 10)) == (tokens, finish)


def test_what_the_server_is_asked(api: Api, session: OpenAiSession) -> None:
    api.says(([1], "a", "stop"))
    generate(session, GenerationRequest([5, 6], 7, temperature=0.5, top_p=0.9, top_k=3, seed=11, ignore_eos=True))
    generate(session, GenerationRequest([5], 8))
    plain = {"model": "tape", "top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "stream": True}
    sampled = {"prompt": [5, 6], "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "seed": 11, "top_k": 3}
    assert api.bodies == [
        {**plain, **sampled, "ignore_eos": True},
        {**plain, "prompt": [5], "max_tokens": 8, "temperature": 0.0},
    ]
    assert api.headers[0]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("status", "events", "error"),
    [
        (429, [], '/v1 answered 429: {"message": "too much"}'),
        (200, [{"error": {"message": "out of memory"}}], '{"message": "out of memory"}'),
        (200, [{"choices": [{"token_ids": "no list of numbers"}]}], "ValueError: "),
        (200, [], "the server ended its answer without saying why"),
    ],
)
def test_why_a_generation_failed(
    api: Api, session: OpenAiSession, status: int, events: list[dict[str, Any]], error: str
) -> None:
    api.status, api.events = status, events
    ended = threading.Event()
    generation = session.execute(GenerationRequest([5], 1), lambda _tokens, finish: finish and ended.set())
    assert ended.wait(PATIENCE)
    assert error in getattr(generation, "error", "")


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_what_is_cancelled_ends_here_and_on_the_server(api: Api, session: OpenAiSession, how: str) -> None:
    api.hold.clear()
    api.says(([1], "a", None))
    first, ended = threading.Event(), threading.Event()
    finishes: list[FinishReason] = []

    def sink(tokens: Any, finish: FinishReason | None) -> None:
        first.set()
        if finish is not None:
            finishes.append(finish)
            ended.set()

    generation = session.execute(GenerationRequest([5], 50), sink)
    assert first.wait(PATIENCE)
    if how == "cancel":
        generation.cancel()
    else:
        session.close()
    assert ended.wait(PATIENCE)
    assert finishes == [FinishReason.CANCELLED]
    assert api.left.wait(PATIENCE)
    generation.cancel()


def test_more_than_the_model_takes_is_refused_before_it_is_sent(api: Api, session: OpenAiSession) -> None:
    with pytest.raises(BadInput, match="90 tokens of prompt and 20 of answer are more than the 100"):
        session.execute(GenerationRequest([1] * 90, 20), print)
    assert api.bodies == []


def test_a_server_that_has_gone_fails_once_and_for_all(session: OpenAiSession) -> None:
    told: list[str] = []
    session.on_failure = lambda: told.append(session.failure)
    session.fail("it ended with 3")
    session.fail("again")
    assert (told, session.failure) == (["it ended with 3"], "it ended with 3")
    assert generate(session, GenerationRequest([5], 1)) == ([], FinishReason.ERROR)


def test_a_remote_endpoint(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 64, "vocab_size": 9, "eos_token_id": 0}')
    monkeypatch.setenv("RM_REMOTE_TOKEN", "secret")
    plugin = RemotePlugin(url=api.url.removesuffix("/v1"))
    (resource,) = plugin.probe()
    assert resource.attributes == {"endpoint": api.url, "models": ["tape"]}
    session = plugin.create_session(plugin.prepare_resource(BuildArtifact(tmp_path, "k", "huggingface")))
    api.says(([7], "", "stop"))
    assert generate(session, GenerationRequest([5], 3)) == ([7], FinishReason.STOP)
    assert api.bodies[0]["return_token_ids"] is True
    session.close()


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ([], {}, "serves no model, and not"),
        ([{"id": "a"}, {"id": "b"}], {}, "serves a, b, and not .*; say which with compile_options={'model': NAME}"),
        ([{"id": "a"}], {"model": "c"}, "serves a, and not c"),
    ],
)
def test_a_remote_endpoint_with_other_models(
    api: Api, tmp_path: Path, models: list[dict[str, str]], options: dict[str, str], message: str
) -> None:
    api.models = models
    with pytest.raises(BadInput, match=message):
        RemotePlugin(api.url).prepare_resource(
            BuildArtifact(tmp_path, "k", "huggingface"), BackendConfig(options=options)
        )


def test_a_remote_endpoint_that_does_not_answer() -> None:
    assert not RemotePlugin().is_available()
    with pytest.raises(SourceUnreachable, match=r"http://127\.0\.0\.1:9/v1 does not answer"):
        RemotePlugin("http://127.0.0.1:9").probe()


def server(directory: Path, how: str = "live") -> ServerProcess:
    program = directory / "server.py"
    program.write_text(SERVER)
    return ServerProcess(lambda socket: [sys.executable, str(program), str(socket), how], {"WHOSE": str(directory)})


def children(directory: Path) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"WHOSE={directory}".encode() in (path / "environ").read_bytes().split(b"\0"):
                found.append(path.name)
        except OSError:
            continue
    return found


def test_a_server_of_ones_own_lives_until_it_is_stopped(tmp_path: Path) -> None:
    process = server(tmp_path)
    process.wait_until_ready()
    directory = Path(process.endpoint.socket).parent
    assert oct(directory.stat().st_mode & 0o777) == "0o700"
    assert len(children(tmp_path)) == 2
    process.stop()
    process.stop()
    assert children(tmp_path) == []
    assert not directory.exists()


def test_a_server_that_does_not_start_says_what_it_wrote(tmp_path: Path) -> None:
    process = server(tmp_path, "die")
    with pytest.raises(ToolchainFailure, match=r"ended with 3 while it started: loading \| out of memory"):
        process.wait_until_ready()
    process.stop()


def test_a_server_that_dies_is_told(tmp_path: Path) -> None:
    process = server(tmp_path)
    process.wait_until_ready()
    told: list[str] = []
    ended = threading.Event()
    process.watch(lambda reason: (told.append(reason), ended.set()))  # type: ignore[func-returns-value]
    for pid in children(tmp_path):
        if b"keeper.py" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(int(pid), 9)
    assert ended.wait(PATIENCE)
    assert "the engine's server ended with" in told[0]
    process.stop()


def test_a_server_ends_with_the_process_that_started_it_however_that_ends(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    code = (
        "import os, sys; from rm_abstract.backends.server_process import ServerProcess\n"
        "command = [sys.executable, sys.argv[1] + '/server.py']\n"
        "p = ServerProcess(lambda socket: [*command, str(socket), 'live'], {'WHOSE': sys.argv[1]})\n"
        "p.wait_until_ready(); os.kill(os.getpid(), 9)"
    )
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code, str(tmp_path)]) == -9
    deadline = time.monotonic() + PATIENCE
    while children(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.05)
