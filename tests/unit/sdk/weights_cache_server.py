"""The weights cache of a node as a process, and an API server's answers to whose a token is."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import yaml
from rm_api.names import NODE_CACHE_AUDIENCE

START_SECONDS = 120
MIB = 1 << 20


def content(seed: str, size: int) -> bytes:
    return hashlib.shake_256(seed.encode()).digest(size)


def digest_of(raw: bytes) -> str:
    return "sha256:" + hashlib.sha256(raw).hexdigest()


class Reviews(BaseHTTPRequestHandler):
    """Stands in for the API server: the token ``USER`` is that user's, ``elsewhere USER`` is for another audience."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_arguments: object) -> None:
        pass

    def do_POST(self) -> None:
        review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        token, asked = review["spec"]["token"], review["spec"]["audiences"]
        audiences = [] if token.startswith("elsewhere ") else [NODE_CACHE_AUDIENCE]
        good = bool(set(audiences) & set(asked))
        user = {"user": {"username": token}, "audiences": audiences} if good else {"error": "not for this audience"}
        body = json.dumps({**review, "status": {"authenticated": good, **user}}).encode()
        self.send_response(201)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def reviews(directory: Path) -> Iterator[Path]:
    """One, and the kubeconfig by which it is reached."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Reviews)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        context = {"cluster": "c", "user": "u"}
        config = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": context}],
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_address[1]}"}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
        }
        kubeconfig = directory / "kubeconfig"
        kubeconfig.write_text(yaml.safe_dump(config))
        yield kubeconfig
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class CacheServer:
    """The process; it can be killed and started again over the same directory."""

    def __init__(self, root: Path, kubeconfig: Path) -> None:
        self.directory = root / "cache"
        self._log = root / "log"
        self._kubeconfig = kubeconfig
        self._process: subprocess.Popen[bytes] | None = None
        self.host = ""

    def start(self, *, limit: int = 64 * MIB, share: int = 64 * MIB) -> None:
        command = [
            sys.executable, "-m", "rm_operator.weights_cache", f"--directory={self.directory}",
            f"--limit-bytes={limit}", f"--namespace-bytes={share}", f"--kubeconfig={self._kubeconfig}", "--port=0",
        ]  # fmt: skip
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ})
        until = time.monotonic() + START_SECONDS
        while (found := re.search(r"listening on port (\d+)", self._log.read_text())) is None:
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < until, "it did not start"
            time.sleep(0.05)
        self.host = f"127.0.0.1:{found[1]}"

    def stop(self, with_: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(with_)
            self._process.wait(START_SECONDS)
            self._process = None

    def ask(self, method: str, digest: str, namespace: str, **options: object) -> httpx2.Response:
        """A request by a pod of the namespace; ``headers`` are further ones, or other ones."""
        headers = {"Authorization": f"Bearer system:serviceaccount:{namespace}:default"}
        headers |= options.pop("headers", {})  # type: ignore[arg-type]
        url = f"http://{self.host}/v1/blobs/{digest}"
        return httpx2.request(method, url, headers=headers, timeout=START_SECONDS, trust_env=False, **options)  # type: ignore[arg-type]

    def put(self, raw: bytes, namespace: str, *, public: bool = False, digest: str | None = None) -> int:
        wanted = digest or digest_of(raw)
        return self.ask("PUT", wanted, namespace, params={"public": str(public).lower()}, content=raw).status_code

    def has(self, raw: bytes, namespace: str) -> bool:
        return self.ask("HEAD", digest_of(raw), namespace).status_code == 200

    def files(self) -> list[str]:
        """What lies in its directory."""
        return sorted(str(p.relative_to(self.directory)) for p in self.directory.rglob("*") if p.is_file())

    def metric(self, name: str) -> float:
        text = httpx2.get(f"http://{self.host}/metrics", trust_env=False, timeout=START_SECONDS).text
        return next(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(f"{name} "))

    def wait_for(self, name: str, value: float) -> None:
        """Until a figure has the value."""
        until = time.monotonic() + START_SECONDS
        while (found := self.metric(name)) != value:
            assert time.monotonic() < until, f"{name} is {found}, not {value}"
            time.sleep(0.05)
