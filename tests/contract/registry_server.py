"""A real registry (CNCF distribution) on a loopback port, for one test or for many."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rm_local_cluster import build, families
from rm_local_cluster.pki import KeyPair

_START_SECONDS = 20


def registry_program() -> Path:
    """The registry of the local cluster, built if it has not been."""
    return build.ensure([families.REGISTRY], lambda line: print(line, file=sys.stderr))["registry"]


@dataclass
class RunningRegistry:
    """A registry, and where it keeps its things."""

    host: str
    storage: Path
    pid: int

    def blob(self, digest: str) -> Path:
        """The file of a blob."""
        name = digest.removeprefix("sha256:")
        return self.storage / "docker/registry/v2/blobs/sha256" / name[:2] / name / "data"


@contextmanager
def running_registry(
    directory: Path, auth: Mapping[str, Any] | None = None, tls: KeyPair | None = None
) -> Iterator[RunningRegistry]:
    """Start a registry with its storage under ``directory``; it answers when this yields."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    storage = directory / "registry"
    configuration = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(storage)}, "delete": {"enabled": True}},
        "http": {
            "addr": f"127.0.0.1:{port}",
            **({"tls": {"certificate": str(tls.certificate), "key": str(tls.key)}} if tls else {}),
        },
        **({"auth": auth} if auth else {}),
    }
    file = directory / "registry.yaml"
    file.write_text(yaml.safe_dump(configuration))
    with (directory / "registry.log").open("wb") as log:
        process = subprocess.Popen(
            [str(registry_program()), "serve", str(file)],
            stdout=log, stderr=log, env={**os.environ, "OTEL_TRACES_EXPORTER": "none"},
        )  # fmt: skip
    try:
        _wait_until_it_answers(port, process, directory / "registry.log")
        yield RunningRegistry(f"127.0.0.1:{port}", storage, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def _wait_until_it_answers(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=1).close()
        except urllib.error.HTTPError:
            return  # it wants credentials, or TLS
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the registry does not start: {log.read_text()}") from None
            time.sleep(0.02)
        else:
            return
