"""An engine's own server as a child of this process, on a socket file that nobody else reaches."""

import http.client
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from rm_api.conditions import Reason

from rm_abstract.backends import keeper
from rm_abstract.backends.openai import Endpoint
from rm_abstract.core.errors import ToolchainFailure

_SECONDS_BETWEEN_LOOKS: Final = 0.2
_LAST_LINES: Final = 20
_ANSWER_SECONDS: Final = 10
_STOP_SECONDS: Final = keeper.GRACE_SECONDS + 10


class ServerProcess:
    """The server that ``command(socket)`` starts. It ends with ``stop``, and also when this process ends, however."""

    def __init__(self, command: Callable[[Path], Sequence[str]], environment: Mapping[str, str]) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="rma-engine-", ignore_cleanup_errors=True)
        socket = Path(self._directory.name, "http.sock")
        self._log = Path(self._directory.name, "log")
        self.endpoint = Endpoint("http://engine/v1", socket=str(socket))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, keeper.__file__, *command(socket)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        self._lock = threading.Lock()
        self._stopped = False

    def wait_until_ready(self) -> None:
        """Wait until it answers ``GET /health``. Raises ToolchainFailure with its last lines if it ends before."""
        while not self._healthy():
            try:
                self._process.wait(_SECONDS_BETWEEN_LOOKS)
            except subprocess.TimeoutExpired:
                continue
            raise ToolchainFailure(
                f"the engine's server ended with {self._process.returncode} while it started: {self.last_lines()}",
                reason=Reason.ENGINE_FAILED,
            )

    def _healthy(self) -> bool:
        connection = self.endpoint.connect(_ANSWER_SECONDS)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def last_lines(self) -> str:
        """The last lines that it wrote."""
        return " | ".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:])

    def watch(self, ended: Callable[[str], None]) -> None:
        """Call ``ended`` with the reason, on a thread of its own, if it ends without ``stop``."""

        def wait() -> None:
            code = self._process.wait()
            with self._lock:
                stopped = self._stopped
            if not stopped:
                ended(f"the engine's server ended with {code}: {self.last_lines()}")

        threading.Thread(target=wait, name="engine-watch", daemon=True).start()

    def stop(self) -> None:
        """End it and all that it started, and wait for that. Harmless the second time."""
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._directory.cleanup()
