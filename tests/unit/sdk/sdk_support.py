"""Helpers of the SDK's tests: a model in the layout of Hugging Face, and a web server that can do what real ones do."""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

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
            return ranged(request, body, headers) if ranges else Answer(200, body, headers)

        self.answer = answer


def ranged(request: Request, body: bytes, headers: dict[str, str]) -> Answer:
    """The part of ``body`` that the request asks for."""
    wanted = request.headers.get("range")
    if not wanted:
        return Answer(200, body, headers)
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    start, end = int(first), min(int(last) if last else len(body) - 1, len(body) - 1)
    return Answer(206, body[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(body)}"})
