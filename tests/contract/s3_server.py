"""A real server that speaks the interface of S3 (versitygw) on a loopback port, for one test or for many."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rm_abstract.s3 import Account
from rm_local_cluster import build, families

_START_SECONDS = 60
KEY_ID, SECRET = "loopback-key", "loopback-secret"  # of a server that is gone after the test


def s3_program() -> Path:
    """The server, built if it has not been."""
    return build.ensure([families.S3], sys.stderr.write)["versitygw"]


@dataclass
class RunningS3:
    """A server, its account, and where buckets are directories."""

    host: str
    buckets: Path

    @property
    def account(self) -> Account:
        """The account that owns all buckets."""
        return Account(f"http://{self.host}", "us-east-1", KEY_ID, SECRET)

    def make_bucket(self, name: str) -> None:
        """Make a bucket: a directory, as the server keeps them."""
        (self.buckets / name).mkdir()

    def credentials_file(self, path: Path, *, key_id: str = KEY_ID, secret: str = SECRET) -> Path:
        """Write a credentials file that names this server."""
        path.write_text(
            f"[default]\naws_access_key_id = {key_id}\naws_secret_access_key = {secret}\n"
            f"endpoint_url = http://{self.host}\nregion = us-east-1\n"
        )
        return path


@contextmanager
def running_s3(directory: Path) -> Iterator[RunningS3]:
    """Start a server with its storage under ``directory``; it answers when this yields."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    buckets, attributes, versions = directory / "buckets", directory / "attributes", directory / "versions"
    for path in (buckets, attributes, versions):
        path.mkdir()
    environment = {**os.environ, "ROOT_ACCESS_KEY": KEY_ID, "ROOT_SECRET_KEY": SECRET}
    log_file = directory / "s3.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            # Not all file systems that tests run on have extended attributes, hence files for them.
            [str(s3_program()), "--port", f"127.0.0.1:{port}", "--quiet", "posix", "--sidecar", str(attributes),
             "--versioning-dir", str(versions), str(buckets)],
            stdout=log, stderr=log, env=environment, cwd=directory,
        )  # fmt: skip
    try:
        _wait_until_it_answers(port, process, log_file)
        yield RunningS3(f"127.0.0.1:{port}", buckets)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_it_answers(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
        except urllib.error.HTTPError:
            return  # it wants a signature
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server does not start: {log.read_text()}") from None
            time.sleep(0.02)
        else:
            return
