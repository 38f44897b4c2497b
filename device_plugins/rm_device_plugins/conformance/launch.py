"""Starting the plugin under test, as a child or as a container, and ending it as the node would."""

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rm_device_plugins.conformance import template
from rm_device_plugins.conformance.model import CannotJudge, CannotRun
from rm_device_plugins.kubelet_api import DEFAULT_PLUGIN_DIR

PLACEHOLDERS = {
    "socket_dir": "the directory of kubelet.sock",
    "resource": "the resource name that the plugin must register",
    "port": "a free TCP port, different for each instance",
    "work_dir": "an empty directory, different for each instance",
}
ENV_SOCKET_DIR = "RMA_CONFORMANCE_SOCKET_DIR"
ENV_INSTANCE = "RMA_CONFORMANCE_INSTANCE"
"""The container's name, in its environment: by it a process is known to be the plugin's."""
RUNTIMES = ("docker", "podman", "nerdctl", "ctr")
_COMMAND_SECONDS = 60.0
_PULL_SECONDS = 1800.0
_REMOVE_AGAIN_SECONDS = 1.0


class Instance:
    """One start of the plugin. ``expected`` is True while nobody has asked it to end."""

    def __init__(self, process: Any, log: Path, container: "tuple[ImageLauncher, str] | None" = None) -> None:
        self._process = process
        self._log = log
        self._container = container
        self.expected = True

    @property
    def ended(self) -> int | None:
        """Its exit code; None while it runs."""
        code: int | None = self._process.returncode
        return code

    async def pid(self) -> int | None:
        """Of the plugin's own process; None where it is not one of this machine's."""
        if self._container is None:
            return int(self._process.pid)
        launcher, name = self._container
        return await launcher.pid(name)

    def output(self, size: int = 4000) -> str:
        """The end of what it said."""
        with contextlib.suppress(OSError):
            return self._log.read_bytes()[-size:].decode(errors="replace").strip()
        return ""

    async def terminate(self) -> None:
        """Asks it to end, as the kubelet does."""
        self.expected = False
        await self._signal(signal.SIGTERM)

    async def kill(self) -> None:
        """Ends it and its children without asking, and waits."""
        self.expected = False
        if self._container is not None:
            launcher, name = self._container
            await launcher.remove(name, self._process)
            return
        await self._signal(signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        try:
            await asyncio.wait_for(self._process.wait(), _COMMAND_SECONDS)
        except TimeoutError:
            raise CannotJudge(f"process {self._process.pid} does not end though it was killed") from None

    async def _signal(self, number: signal.Signals) -> None:
        if self.ended is not None:
            return
        if self._container is not None:
            launcher, name = self._container
            await launcher.signal(name, number)
        else:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)


class Launcher(Protocol):
    """Starts plugins."""

    takes_resource: bool
    """The resource name can be chosen, so a bad one can be tried."""

    async def check(self) -> None:
        """Raises CannotRun where no plugin can be started."""

    async def start(self, socket_dir: Path, work_dir: Path, resource: str) -> Instance:
        """Starts one more; raises CannotRun where there is nothing to start."""


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _spawn(argv: Sequence[str], env: Mapping[str, str], log: Path) -> Any:
    with log.open("ab") as output:
        try:
            return await asyncio.create_subprocess_exec(
                *argv,
                env=env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        except OSError as error:
            raise CannotRun(f"{argv[0]} cannot be started: {error.strerror}") from error


class CommandLauncher:
    """The plugin as a child process. The words of the command and the values of ``env`` may have placeholders."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self._argv, self._env = tuple(argv), dict(env)
        for word in self._argv:
            template.check("--command", word, PLACEHOLDERS)
        for name, value in self._env.items():
            template.check(f"--env {name}", value, PLACEHOLDERS)
        used = frozenset[str]().union(*(template.placeholders(text) for text in (*self._argv, *self._env.values())))
        self.takes_resource = "resource" in used

    async def check(self) -> None:
        """Raises CannotRun where the program does not exist."""
        if shutil.which(self._argv[0]) is None:
            raise CannotRun(f"--command: there is no program {self._argv[0]!r}, or it is not executable")

    async def start(self, socket_dir: Path, work_dir: Path, resource: str) -> Instance:
        """Starts one more."""
        values = {
            "socket_dir": str(socket_dir),
            "resource": resource,
            "port": str(free_port()),
            "work_dir": str(work_dir / "work"),
        }
        (work_dir / "work").mkdir()
        env = {name: template.fill(value, values) for name, value in self._env.items()}
        argv = [template.fill(word, values) for word in self._argv]
        log = work_dir / "output"
        process = await _spawn(argv, {**os.environ, ENV_SOCKET_DIR: str(socket_dir), **env}, log)
        return Instance(process, log)


class ImageLauncher:
    """The plugin's image, with the directory where the kubelet's is. ``runtime`` may begin with other words."""

    def __init__(
        self,
        image: str,
        arguments: Sequence[str],
        env: Mapping[str, str],
        runtime: Sequence[str] | None = None,
        run_options: Sequence[str] = (),
    ) -> None:
        self._image, self._arguments, self._env = image, tuple(arguments), dict(env)
        self._run_options = tuple(run_options)
        for text in (*self._arguments, *self._env.values()):
            template.check("--image", text, PLACEHOLDERS)
        used = frozenset[str]().union(*(template.placeholders(t) for t in (*self._arguments, *self._env.values())))
        self.takes_resource = "resource" in used
        self._runtime, self.kind = find_runtime(runtime)

    async def check(self) -> None:
        """Raises CannotRun where the image is neither there nor can be pulled."""
        code, words = await self._call(*self._presence())
        present = code == 0 and (self.kind != "ctr" or bool(words.strip()))
        if present:
            return
        pull = ("images", "pull", self._image) if self.kind == "ctr" else ("pull", self._image)
        code, words = await self._call(*pull, seconds=_PULL_SECONDS)
        if code:
            raise CannotRun(f"{self.kind} has no image {self._image} and cannot pull it: {words.strip()[-300:]}")

    def _presence(self) -> tuple[str, ...]:
        if self.kind == "ctr":
            return ("images", "ls", "-q", f"name=={self._image}")
        return ("image", "inspect", "--format", "{{.Id}}", self._image)

    def argv(self, name: str, socket_dir: Path, values: Mapping[str, str]) -> list[str]:
        """The command that runs a container called ``name``."""
        env = [f"{key}={template.fill(value, values)}" for key, value in self._env.items()]
        env.append(f"{ENV_INSTANCE}={name}")
        arguments = [template.fill(word, values) for word in self._arguments]
        if self.kind == "ctr":
            mount = f"type=bind,src={socket_dir},dst={DEFAULT_PLUGIN_DIR},options=rbind:rw"
            options = ["--rm", "--net-host", "--mount", mount, *(word for pair in env for word in ("--env", pair))]
            return [*self._runtime, "run", *options, *self._run_options, self._image, name, *arguments]
        options = ["--rm", "--name", name, "--volume", f"{socket_dir}:{DEFAULT_PLUGIN_DIR}"]
        options += [word for pair in env for word in ("--env", pair)]
        return [*self._runtime, "run", *options, *self._run_options, self._image, *arguments]

    async def start(self, socket_dir: Path, work_dir: Path, resource: str) -> Instance:
        """Starts one more container."""
        values = {
            "socket_dir": DEFAULT_PLUGIN_DIR,
            "resource": resource,
            "port": str(free_port()),
            "work_dir": "/tmp",  # noqa: S108 (the container's own)
        }
        name = f"rma-conformance-{secrets.token_hex(4)}"
        log = work_dir / "output"
        process = await _spawn(self.argv(name, socket_dir, values), os.environ, log)
        return Instance(process, log, (self, name))

    async def signal(self, name: str, number: signal.Signals) -> None:
        """Sends a signal to the container; one that has ended already is no error."""
        if self.kind == "ctr":
            await self._call("task", "kill", "--signal", number.name, name)
        else:
            await self._call("kill", "--signal", number.name, name)

    async def remove(self, name: str, process: Any) -> None:
        """Ends the container and takes it away, also one that is only being made; waits for ``process``, its client."""
        waiting = asyncio.ensure_future(process.wait())
        try:
            async with asyncio.timeout(_COMMAND_SECONDS):
                while not waiting.done():
                    await self._remove(name)
                    await asyncio.wait({waiting}, timeout=_REMOVE_AGAIN_SECONDS)
                await self._remove(name)
        except TimeoutError:
            raise CannotJudge(f"the container {name} does not end though it was removed") from None
        finally:
            waiting.cancel()

    async def _remove(self, name: str) -> None:
        if self.kind == "ctr":
            await self._call("task", "rm", "--force", name)
            await self._call("containers", "rm", name)
        else:
            await self._call("rm", "--force", name)

    async def pid(self, name: str) -> int | None:
        """The plugin's process, where the runtime names it and it is a process of this machine with our mark."""
        if self.kind == "ctr":
            _, listed = await self._call("task", "ls")
            rows = [line.split() for line in listed.splitlines()]
            said = next((row[1] for row in rows if row[:1] == [name] and len(row) > 1), "")
        else:
            _, said = await self._call("inspect", "--format", "{{.State.Pid}}", name)
        return int(said) if said.strip().isdigit() and _marked(said.strip(), name) else None

    async def _call(self, *arguments: str, seconds: float = _COMMAND_SECONDS) -> tuple[int, str]:
        try:
            process = await asyncio.create_subprocess_exec(
                *self._runtime, *arguments,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
        except OSError as error:
            raise CannotRun(f"{self._runtime[0]} cannot be run: {error.strerror}") from error
        try:
            async with asyncio.timeout(seconds):
                output, _ = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise CannotRun(f"{' '.join((*self._runtime, *arguments))} did not end within {seconds:g} s") from None
        return process.returncode or 0, output.decode(errors="replace")


def _marked(pid: str, name: str) -> bool:
    """True if it is the instance's process on this machine: the runtime may have a machine of its own."""
    try:
        marks = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return f"{ENV_INSTANCE}={name}".encode() in marks


def find_runtime(given: Sequence[str] | None) -> tuple[tuple[str, ...], str]:
    """The runtime's command and its kind: what is ``given``, or the first on the PATH. Raises CannotRun."""
    if given:
        kinds = [os.path.basename(word) for word in given if os.path.basename(word) in RUNTIMES]
        if not kinds:
            raise CannotRun(f"--runtime {' '.join(given)!r} has none of {', '.join(RUNTIMES)} in it")
        if shutil.which(given[0]) is None:
            raise CannotRun(f"--runtime: there is no program {given[0]!r}")
        return tuple(given), kinds[0]
    for kind in RUNTIMES:
        if path := shutil.which(kind):
            return (path,), kind
    raise CannotRun(
        f"--image needs a container runtime, and none of {', '.join(RUNTIMES)} is on the PATH; "
        "install one, name one with --runtime, or start the plugin with --command"
    )
