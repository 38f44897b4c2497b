"""Drives ``rma-launch`` and the programs under it, for its contract tests.

The programs are played by ``runtime_images/launcher/testchild``, which does what its arguments say.
"""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from rm_api import names
from rm_api.conditions import Reason
from rm_api.names import ExitCode
from rm_api.report import Report

T = TypeVar("T")
LAUNCHER_SOURCES = Path(__file__).parents[2] / "runtime_images" / "launcher"
PATIENCE = 60.0
"""Seconds that a condition may take on a busy machine; reached only by a failure."""

TERMINATION_LOG_VARIABLE = "RMA_TERMINATION_LOG"
OWN_REPORT = '{"reason":"SourceUnreachable","message":"the hub is away","retryable":true,"facts":{"own":1}}'
"""What a program of ours leaves."""


def until(what: str, condition: Callable[[], T | None]) -> T:
    """The first true value of ``condition``."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come about in {PATIENCE} s"
        time.sleep(0.01)
    return value


@dataclass(frozen=True)
class Binaries:
    """Where the two programs are."""

    launcher: str
    child: str


@dataclass(frozen=True)
class Ended:
    """A launcher that has ended."""

    code: int
    stdout: str
    stderr: str
    left: bytes
    """The termination message."""

    @property
    def report(self) -> Report:
        """The report; it has to be one that the operator can read."""
        assert len(self.left) <= names.MAX_TERMINATION_MESSAGE_BYTES
        return Report.parse(self.left.decode())

    def failed(self, code: int, reason: Reason, *words: str) -> Report:
        """Asserts how it failed, that the report and the log both say so, and gives the report."""
        report = self.report
        assert (self.code, report.reason) == (code, reason), (self.code, report, self.stderr)
        for word in words:
            assert word in report.message
            assert word in self.stderr.replace('\\"', '"')  # as in a line of ours, where it is quoted
        assert report.retryable == ExitCode(code).retryable
        return report


@dataclass
class Launch:
    """Starts the launcher with an environment of its own, and a termination log under ``tmp_path``."""

    binaries: Binaries
    directory: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        return self.directory / "termination-log"

    def environment(self, env: dict[str, str] | None = None) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], TERMINATION_LOG_VARIABLE: str(self.log), **self.env, **(env or {})}

    def child(self, actions: Sequence[str]) -> list[str]:
        return ["--", self.binaries.child, *actions]

    def popen(self, *arguments: str, env: dict[str, str] | None = None, **further: Any) -> subprocess.Popen[bytes]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **further}
        return subprocess.Popen(
            [self.binaries.launcher, *arguments], env=self.environment(env), cwd=self.directory,
            stdin=subprocess.DEVNULL, **pipes,
        )  # fmt: skip

    def end(self, process: subprocess.Popen[bytes]) -> Ended:
        streams = process.communicate(timeout=PATIENCE)
        stdout, stderr = ((stream or b"").decode(errors="surrogateescape") for stream in streams)
        return Ended(process.returncode, stdout, stderr, self.log.read_bytes() if self.log.exists() else b"")

    def __call__(self, *arguments: str, env: dict[str, str] | None = None, **further: Any) -> Ended:
        return self.end(self.popen(*arguments, env=env, **further))

    def step(
        self, *actions: str, flags: Sequence[str] = (), env: dict[str, str] | None = None, **further: Any
    ) -> Ended:
        """Runs the test child as a build step."""
        return self("run", "--name", "compile", *flags, *self.child(actions), env=env, **further)


def alive(pid: int) -> bool:
    """True for a process that runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def running(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Ends the launcher, and with it the child's group, whatever the test does."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(3)
            process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def lines_until(process: subprocess.Popen[bytes], want: str, times: int = 1) -> list[str]:
    """Lines of the launcher's output up to the last of ``times`` that are ``want``."""
    assert process.stdout is not None
    seen: list[str] = []
    while seen.count(want) < times:
        line = process.stdout.readline().decode()
        assert line, f"the output ended after {seen}"
        seen.append(line.rstrip("\n"))
    return seen


def requires_root() -> None:
    """What only root can do is a prerequisite; CI has to have it."""
    if os.geteuid() != 0:
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        missing("needs root: namespaces, cgroups, device nodes")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Engine:
    """An engine under the launcher."""

    launch: Launch
    served_name: str = "tiny"
    port: int = field(default_factory=free_port)
    report_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] = field(init=False)

    @property
    def behaviour(self) -> Path:
        return self.launch.directory / "behaviour.json"

    @property
    def drained(self) -> Path:
        """The engine ends with the code in it once it drains."""
        return self.behaviour.with_name("behaviour.json.drained")

    def drain(self, code: int = 0) -> None:
        """Lets a draining engine end with ``code``; it never reads half of it."""
        partial = self.drained.with_suffix(".new")
        partial.write_text(str(code))
        partial.rename(self.drained)

    @property
    def notes(self) -> Path:
        return self.launch.directory / "engine.json"

    def behave(self, **how: object) -> None:
        """Changes what the engine answers from now on."""
        partial = self.behaviour.with_suffix(".new")
        partial.write_text(json.dumps({"Health": 200, "Models": 200, "Completion": "token", **how}))
        partial.rename(self.behaviour)

    def note(self, **said: object) -> None:
        """Writes what an engine that knows the contract writes."""
        self.notes.write_text(json.dumps(said))

    def start(self, *flags: str, actions: Sequence[str] | None = None, env: dict[str, str] | None = None) -> None:
        own = ["--served-name", self.served_name, "--port", str(self.port), "--report-port", str(self.report_port)]
        environment = {"PORT": str(self.port), "EXPECTED_MODEL": "tiny", names.ENV_ENGINE_REPORT: str(self.notes)}
        child = self.launch.child(actions if actions is not None else [f"serve=${{PORT}},{self.behaviour}"])
        self.process = self.launch.popen("engine", *own, *flags, *child, env={**environment, **(env or {})})

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status and JSON; (0, {}) while nobody listens."""
        connection = http.client.HTTPConnection("127.0.0.1", self.report_port, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        except OSError:
            return 0, {}
        finally:
            connection.close()

    def ready(self) -> tuple[int, dict[str, Any]]:
        return self.get(names.READY_PATH)

    def report(self) -> dict[str, Any]:
        return self.get(names.REPORT_PATH)[1]

    def wait_ready(self) -> None:
        until("Ready", lambda: self.ready()[0] == 200)

    def wait_state(self, state: str, *words: str) -> dict[str, Any]:
        """The answer of the ready probe once it names ``state`` and every word."""

        def reached() -> dict[str, Any] | None:
            status, answer = self.ready()
            right = answer.get("state") == state and all(word in answer["message"] for word in words)
            return {"status": status, **answer} if right else None

        return until(f"{state} {words}", reached)

    def end(self) -> Ended:
        return self.launch.end(self.process)


def spawned(process: subprocess.Popen[bytes]) -> int:
    """The process id of a helper that the child made."""
    assert process.stdout is not None
    return int(process.stdout.readline().removeprefix(b"spawned "))
