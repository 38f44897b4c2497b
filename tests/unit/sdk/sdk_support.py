"""Helpers of the SDK's tests: a model in the layout of Hugging Face, and a web server that can do what real ones do."""

import hashlib
import json
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 32,
    "max_position_embeddings": 128,
    "vocab_size": 16,
    "transformers_version": "5.0.0",
}


def safetensors(tensors: dict[str, tuple[str, list[int], int]]) -> bytes:
    """A file of tensors, given as (number format, shape, bytes)."""
    header, end = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(index % 251 for index in range(end))


@dataclass
class Request:
    """What the server was asked."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Answer:
    """What it answers."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    """Bytes of the body after which the connection breaks."""


@dataclass
class WebServer:
    """A server on a loopback port whose answers a test writes."""

    host: str
    answer: Callable[[Request], Answer] = lambda _request: Answer(404)
    requests: list[Request] = field(default_factory=list)

    def serve_directory(self, directory: Path, prefix: str = "/", *, ranges: bool = True) -> None:
        """Serve files like a usual web server, with ETags."""

        def answer(request: Request) -> Answer:
            path = directory / request.path.removeprefix(prefix).lstrip("/")
            if not request.path.startswith(prefix) or not path.is_file():
                return Answer(404)
            body = path.read_bytes()
            headers = {"ETag": f'"{hash(body)}"', "Content-Type": "application/octet-stream"}
            if ranges:
                headers["Accept-Ranges"] = "bytes"
            return ranged(request, body, headers) if ranges else Answer(200, body, headers)

        self.answer = answer


@contextmanager
def running_web_server() -> Iterator[WebServer]:
    """Start one."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_arguments: object) -> None:
            pass

        def _do(self) -> None:
            request = Request(self.command, self.path, {key.lower(): value for key, value in self.headers.items()})
            web.requests.append(request)
            answer = web.answer(request)
            self.send_response(answer.status)
            for key, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body if answer.cut is None else answer.body[: answer.cut])
                if answer.cut is not None:
                    self.close_connection = True

        do_GET = do_HEAD = _do  # noqa: N815 (the library's names)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    web = WebServer(f"127.0.0.1:{server.server_port}")
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()


def ranged(request: Request, body: bytes, headers: dict[str, str]) -> Answer:
    """The part of ``body`` that the request asks for."""
    wanted = request.headers.get("range")
    if not wanted:
        return Answer(200, body, headers)
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    start, end = int(first), min(int(last) if last else len(body) - 1, len(body) - 1)
    return Answer(206, body[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(body)}"})


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """The parts of the hub's API that a model needs, over a directory."""

    def __init__(self, web: WebServer, model: Path, *, token: str = "", dataset: bool = False) -> None:
        self._model, self._token, self._dataset = model, token, dataset
        web.answer = self.answer

    def answer(self, request: Request) -> Answer:
        path = unquote(request.path.partition("?")[0])
        if self._dataset:
            path = path.replace("/api/datasets/", "/api/models/").replace("/datasets/org/", "/org/")
        if self._token and request.headers.get("authorization") != f"Bearer {self._token}":
            return Answer(401, b"{}", {"X-Error-Code": "GatedRepo"})
        if path == f"/api/models/org/tiny/tree/{COMMIT}":
            return self._json([self._entry(p) for p in self._files()])
        if path.startswith("/api/models/org/tiny"):
            revision = path.partition("/revision/")[2]
            if revision not in ("", "main", "v1", COMMIT):
                return Answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return self._json({"id": "org/tiny", "sha": COMMIT, "siblings": [self._sibling(p) for p in self._files()]})
        if path.startswith("/api/models/"):
            return Answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        file = self._model / path.removeprefix(f"/org/tiny/resolve/{COMMIT}/")
        if not file.is_file():
            return Answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        body = file.read_bytes()
        return ranged(request, body, {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT})

    def _files(self) -> list[Path]:
        return sorted(path for path in self._model.rglob("*") if path.is_file())

    def _sibling(self, path: Path) -> dict[str, Any]:
        body = path.read_bytes()
        name = path.relative_to(self._model).as_posix()
        entry: dict[str, Any] = {"rfilename": name, "size": len(body), "blobId": hashlib.sha1(body).hexdigest()}
        if name.endswith((".safetensors", ".bin")):
            digest = hashlib.sha256(body).hexdigest()
            entry["lfs"] = {"sha256": digest, "size": len(body), "pointerSize": 134}
        return entry

    def _entry(self, path: Path) -> dict[str, Any]:
        sibling = self._sibling(path)
        entry = {"type": "file", "path": sibling["rfilename"], "size": sibling["size"], "oid": sibling["blobId"]}
        lfs = sibling.get("lfs")
        return {**entry, "lfs": {"oid": lfs["sha256"], "size": lfs["size"], "pointerSize": 134}} if lfs else entry

    @staticmethod
    def _json(body: Any) -> Answer:
        return Answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})
