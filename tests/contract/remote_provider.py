"""A provider of models: our own server, behind TLS and a key, that can be told to fail as providers do."""

import asyncio
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from rm_abstract.serve.app import Api
from rm_abstract.serve.engine import Engine
from rm_local_cluster.pki import KeyPair
from starlette.requests import Request
from starlette.responses import JSONResponse

sys.path.append(str(Path(__file__).parents[1] / "unit/sdk"))

from scripted_session import ScriptedSession

MODEL = "vendor/large-1"


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


@dataclass
class Provider:
    """What it does, and what it was asked."""

    port: int
    session: ScriptedSession
    engine: Engine
    key: str
    answers: list[Any] = field(default_factory=list)
    """What it answers to the next requests instead of doing them: status, headers and body, or bytes on the wire."""
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Path, and what was shown as authorisation."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    chats_only: bool = False
    lists_models: bool = True

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}/v1"

    def application(self) -> Any:
        inner = Api(self.engine, MODEL).application()

        async def answer(scope: Any, receive: Any, send: Any) -> None:
            request = Request(scope)
            shown = request.headers.get("authorization", "")
            self.asked.append((request.url.path, shown))
            refusal = self._refusal(request.url.path, shown)
            if refusal is not None:
                await refusal(scope, receive, send)
                return
            if request.method == "POST":
                receive = await self._note(receive)
            await inner(scope, receive, send)

        return answer

    async def _note(self, receive: Any) -> Any:
        message = await receive()
        raw = message.get("body", b"")
        messages = [message]
        while message.get("more_body"):
            message = await receive()
            messages.append(message)
            raw += message.get("body", b"")
        self.bodies.append(json.loads(raw))

        async def again() -> Any:
            return messages.pop(0) if messages else await receive()

        return again

    def _refusal(self, path: str, shown: str) -> Any:
        if shown != f"Bearer {self.key}":
            # As providers do: they quote what they were shown.
            return _error(401, f"Incorrect API key provided: {shown.removeprefix('Bearer ')}", "invalid_api_key")
        if path == "/v1/models" and not self.lists_models:
            return _error(404, "no such path", None)
        if path == "/v1/models":
            return None
        if self.chats_only and path == "/v1/completions":
            return _error(404, "this is a chat model", None)
        if self.answers:
            told = self.answers.pop(0)
            if isinstance(told, Raw):
                return told
            status, headers, body = told
            return JSONResponse(body, status_code=status, headers=headers)
        return None


@dataclass
class Raw:
    """An answer of its own making. Its connection is lost before the end once ``breaks`` is set, if there is one."""

    content: bytes
    headers: dict[str, str]
    breaks: threading.Event | None = None

    async def __call__(self, _scope: Any, _receive: Any, send: Any) -> None:
        named = [(name.lower().encode(), value.encode()) for name, value in self.headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": named})
        await send({"type": "http.response.body", "body": self.content, "more_body": self.breaks is not None})
        if self.breaks is not None:
            await asyncio.to_thread(self.breaks.wait, 60)
            raise ConnectionResetError("the provider breaks")


def _error(status: int, message: str, code: str | None) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "x", "param": None, "code": code}}, status_code=status)


@contextmanager
def running(application: Any, tls: KeyPair | None = None) -> Iterator[int]:
    """The application on a port of its own, in a thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    files: dict[str, Any] = {}
    if tls is not None:
        files = {"ssl_certfile": str(tls.certificate), "ssl_keyfile": str(tls.key)}
    server = uvicorn.Server(uvicorn.Config(application, lifespan="off", log_level="warning", **files))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        thread.join(20)
        listener.close()
