"""The artifact store: how fast an artifact is fetched, against a plain copy of the same files."""

import asyncio
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from rm_abstract.core.resource import BuildArtifact
from rm_abstract.store import ArtifactStore

from scale.report import Row
from scale.sizes import Sizes

FILES = 4
BYTES = 256 << 20
SMALL = 200
ROUNDS = 5


async def run(sizes: Sizes) -> Sequence[Row]:
    """Ratios of medians; the three take turns, so that the machine's noise is that of all."""
    return await asyncio.to_thread(_run, max(1 << 20, BYTES * sizes.deployments // Sizes().deployments))


def _run(size: int) -> Sequence[Row]:
    sys.path.append(str(Path(__file__).resolve().parents[2] / "contract"))
    from registry_server import running_registry

    before = os.environ.get("RMA_PLAIN_HTTP_HOSTS")
    with tempfile.TemporaryDirectory(prefix="rma-scale-store-") as place:
        directory = Path(place)
        with running_registry(directory) as registry, ArtifactStore() as store:
            os.environ["RMA_PLAIN_HTTP_HOSTS"] = registry.host
            try:
                return _measured(store, registry.host, directory, size)
            finally:
                if before is None:
                    del os.environ["RMA_PLAIN_HTTP_HOSTS"]
                else:
                    os.environ["RMA_PLAIN_HTTP_HOSTS"] = before


def _measured(store: ArtifactStore, host: str, directory: Path, size: int) -> Sequence[Row]:
    built, copy = directory / "built", directory / "copy"
    built.mkdir()
    for number in range(FILES):
        with (built / f"weights-{number}.bin").open("wb") as file:
            for _ in range(size // FILES >> 18):
                file.write(os.urandom(1 << 18))
    for number in range(SMALL):
        (built / f"kernel-{number}.o").write_bytes(os.urandom(5000))
    artifact = BuildArtifact(built, "key", "format")
    pushed = store.push(artifact, f"{host}/artifacts/scale/model:v1")
    store.push(artifact, f"file://{directory}/store/model:v1")
    digests = f"@{pushed.digest}"
    layer = max((path for path in (directory / "registry").rglob("data")), key=lambda path: path.stat().st_size)
    blob = f"/v2/artifacts/scale/model/blobs/sha256:{layer.parent.name}"
    ways: dict[str, Callable[[], object]] = {
        "copy": lambda: subprocess.run(["cp", "-r", str(built), str(copy)], check=True),
        "download": lambda: _download(host, blob, copy),
        "hashed download": lambda: _hashed_download(host, blob, copy),
        "registry": lambda: store.pull(f"{host}/artifacts/scale/model{digests}", copy, key="key"),
        "directory": lambda: store.pull(f"file://{directory}/store/model{digests}", copy, key="key"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    settled: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
            _settle(copy)
            settled[name].append(time.perf_counter() - began)
            shutil.rmtree(copy)
    rate, lasting = (
        {name: pushed.size_bytes / 1e6 / median(values) for name, values in all_.items()} for all_ in (seconds, settled)
    )
    told = f"{pushed.size_bytes / 1e6:.0f} MB in {FILES + SMALL} files, until they are on the disk"
    memory = "in the page cache, where nothing waits for a disk"
    return [
        Row("store", "fetch from a registry, of the speed of cp -r", _percent(lasting, "registry", "copy"), "%",
            ">=", 80, told),
        Row("store", "… from a directory", _percent(lasting, "directory", "copy"), "%", ">=", 80, told),
        Row("store", "… from a registry, not waiting for the disk", _percent(rate, "registry", "copy"), "%",
            note=memory),
        Row("store", "… from a directory, not waiting for the disk", _percent(rate, "directory", "copy"), "%",
            note=memory),
        Row("store", "… from a registry, of the speed of a bare download", _percent(rate, "registry", "download"), "%",
            note="one connection into one file, nothing looked at"),
        Row("store", "a hashed download, of the speed of cp -r", _percent(lasting, "hashed download", "copy"), "%",
            note="one connection into one file, hashed in a second thread: the least that checks what it gets"),
        *(Row("store", f"{name}, on the disk", lasting[name], "MB/s") for name in ways),
        *(Row("store", f"{name}, in the page cache", rate[name], "MB/s") for name in ways),
    ]  # fmt: skip


def _percent(rates: dict[str, float], name: str, of: str) -> float:
    return 100 * rates[name] / rates[of]


def _settle(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def _asked(host: str, path: str) -> socket.socket:
    name, _, port = host.partition(":")
    server = socket.create_connection((name, int(port)))
    server.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    return server


def _download(host: str, path: str, directory: Path) -> None:
    directory.mkdir()
    buffer = memoryview(bytearray(1 << 20))
    with _asked(host, path) as server, (directory / "blob").open("wb", buffering=0) as file:
        while count := server.recv_into(buffer):
            file.write(buffer[:count])


def _hashed_download(host: str, path: str, directory: Path) -> None:
    directory.mkdir()
    digest = hashlib.sha256()
    with (
        _asked(host, path) as server,
        (directory / "blob").open("wb", buffering=0) as file,
        ThreadPoolExecutor(1) as hasher,
    ):
        while piece := server.recv(1 << 20, socket.MSG_WAITALL):
            hasher.submit(digest.update, piece)
            file.write(piece)
