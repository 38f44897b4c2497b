"""The first process of the node's namespaces: sets them up, starts the node's components in order, and ends them.

`main` takes the path of a `NodeSpec` as JSON, and waits for a line on standard input, by which its parent says that
the network link is there. It restarts nothing: a component that dies makes the node broken, and the report says which
one and what it said last. When this process ends, the kernel ends all that is left in its namespaces.
"""

import contextlib
import ctypes
import dataclasses
import json
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import time
import traceback
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import cgroups
from .errors import LocalClusterError
from .logs import last_lines
from .shell import run

_POLL = 0.05
_STOP_SECONDS = 15.0
_IN_CREATE = 0x100


@dataclass(frozen=True)
class Probe:
    """How to see that a component is up: an https or http URL that answers 200 (with a client certificate), or a
    socket that accepts.
    """

    url: str | None = None
    unix: str | None = None
    authority: str | None = None
    certificate: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class Component:
    """One process of the node.

    `start_seconds` bounds the time until `probe` succeeds; `outlived` says that its files are used again by the next
    node, so that it has to end in order.
    """

    name: str
    argv: tuple[str, ...]
    probe: Probe
    environment: dict[str, str] = field(default_factory=dict)
    start_seconds: float = 60
    outlived: bool = False


@dataclass(frozen=True)
class Stage:
    """Components that start together; then all are waited for, and then `commands` run, before the next stage."""

    components: tuple[Component, ...]
    commands: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class NodeSpec:
    """All that the supervisor has to know.

    `address` is the node's with its prefix length, `gateway` the machine's, `services` the Services' network; `binds`
    are pairs of a directory and where it is mounted in the node; `fixed_settings` are kernel settings by name (as in
    sysctl) that the node sees as given and cannot change; `writable_below` is a directory in the node whose new
    entries every user may write.
    """

    name: str
    address: str
    gateway: str
    services: str
    logs: str
    report: str
    binds: tuple[tuple[str, str], ...]
    fixed_settings: dict[str, str]
    writable_below: str
    stages: tuple[Stage, ...]

    def to_json(self) -> str:
        """The specification as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "NodeSpec":
        """Read what `to_json` wrote."""
        data: dict[str, Any] = json.loads(text)
        stages = []
        for stage in data.pop("stages"):
            components = []
            for component in stage["components"]:
                probe = Probe(**component.pop("probe"))
                components.append(Component(argv=tuple(component.pop("argv")), probe=probe, **component))
            stages.append(Stage(tuple(components), tuple(tuple(command) for command in stage["commands"])))
        binds = tuple((source, target) for source, target in data.pop("binds"))
        return cls(stages=tuple(stages), binds=binds, **data)


class Supervisor:
    """Runs one node until it is told to stop."""

    def __init__(self, spec: NodeSpec) -> None:
        self._spec = spec
        self._running: dict[int, Component] = {}
        self._stopping = False
        self._stop_requested = False
        self._wakeup = -1
        self._new_volumes = -1
        self._failed: dict[str, str] = {}

    def run(self) -> int:
        """Run the node to its end; returns the exit status."""
        self._listen()
        try:
            self._set_up_namespaces()
            for stage in self._spec.stages:
                self._start(stage)
            self._say("Running", "")
        except _Stopped:
            pass
        except (LocalClusterError, OSError) as error:
            self._say("Broken", str(error))
        while not self._stop_requested:
            self._reap()
            if self._new_volumes >= 0:
                self._open_new_volumes()
            self._pause(None)
        self._stop()
        return 0

    def _listen(self) -> None:
        """Wake up by signals; they are not blocked, as the node's processes would inherit that."""
        self._wakeup, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._request_stop)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)

    def _request_stop(self, _number: int, _frame: object) -> None:
        self._stop_requested = True

    def _pause(self, seconds: float | None) -> None:
        """Wait for a signal, for at most so many seconds."""
        wakers = [waker for waker in (self._wakeup, self._new_volumes) if waker >= 0]
        for waker in select.select(wakers, [], [], seconds)[0]:
            os.read(waker, 4096)

    # ---- namespaces

    def _set_up_namespaces(self) -> None:
        before = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
        # What the machine unmounts is not to live on here, and nothing mounted here is to show there.
        run(["mount", "--make-rslave", "/"])
        run(["mount", "-t", "sysfs", "sysfs", "/sys"])
        cgroups.mount(before)
        cgroups.create(self._spec.name)
        # Sockets, locks and the machine's service manager stay out of sight: nothing in the node may talk to them.
        run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"])
        Path("/run/lock").mkdir()
        for source, target in self._spec.binds:
            for directory in (source, target):
                Path(directory).mkdir(parents=True, exist_ok=True)
            run(["mount", "--bind", source, target])
        self._fix_settings()
        self._new_volumes = _watch_for_new_entries(self._spec.writable_below)
        # Pods that ask for bidirectional propagation need it; the peers are the mount namespaces made from this one.
        run(["mount", "--make-rshared", "/"])
        run(["ip", "link", "set", "lo", "up"])
        run(["ip", "addr", "add", self._spec.address, "dev", "eth0"])
        run(["ip", "link", "set", "eth0", "up"])
        run(["ip", "route", "add", "default", "via", self._spec.gateway])
        # A Service whose rules are not there yet is refused at once. Sent on, its packets would get lost, and the
        # connection that they belong to would stay lost even when the rules come.
        for interface in ("cni0", "eth0"):
            run(["ip", "rule", "add", "iif", interface, "to", self._spec.services, "unreachable"])
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1", encoding="ascii")

    def _fix_settings(self) -> None:
        # The kubelet sets these for the whole kernel. It leaves alone what already reads as it wants, so it is shown
        # that.
        directory = Path("/run/rm-abstract/settings")
        directory.mkdir(parents=True)
        for setting, value in self._spec.fixed_settings.items():
            real = Path("/proc/sys") / setting.replace(".", "/")
            if not real.exists():
                continue
            shown = directory / setting
            shown.write_text(f"{value}\n", encoding="ascii")
            run(["mount", "--bind", shown, real])

    def _open_new_volumes(self) -> None:
        # The provisioner in the controller manager makes directories that only root may write, whatever user the pod
        # has.
        with os.scandir(self._spec.writable_below) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    os.chmod(entry.path, 0o777)  # noqa: S103

    # ---- components

    def _start(self, stage: Stage) -> None:
        for component in stage.components:
            log = self._log(component)
            with log.open("ab") as output:
                process = subprocess.Popen(
                    component.argv,
                    env={**os.environ, **component.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self._running[process.pid] = component
            # From here on it is reaped below, with whatever the node's processes leave to process 1.
            process.returncode = 0
        started = time.monotonic()
        for component in stage.components:
            self._await(component, started + component.start_seconds)
        for command in stage.commands:
            run(command, timeout=300)

    def _await(self, component: Component, deadline: float) -> None:
        self._say("Starting", f"waiting for {component.name}")
        while (complaint := _complaint(component.probe)) is not None:
            self._reap()
            if self._stop_requested:
                raise _Stopped
            if self._failed:
                raise LocalClusterError(" ".join(self._failed.values()))
            if time.monotonic() > deadline:
                raise LocalClusterError(
                    f"{component.name} did not come up within {component.start_seconds:g} s ({complaint}); "
                    f"its log {self._log(component)} ends with:\n{last_lines(self._log(component), 10)}"
                )
            self._pause(_POLL)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            component = self._running.pop(pid, None)
            if component is not None and not self._stopping:
                self._record_death(component, os.waitstatus_to_exitcode(status))

    def _record_death(self, component: Component, code: int) -> None:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        log = self._log(component)
        self._failed[component.name] = f"{component.name} {how}; its log {log} ends with:\n{last_lines(log, 10)}"
        self._say("Broken", "\n".join(self._failed.values()))

    def _stop(self) -> None:
        self._stopping = True
        self._say("Stopping", "")
        # What is thrown away with the node needs no graceful end; an API server would take a minute over its own.
        for pid, component in self._running.items():
            os.kill(pid, signal.SIGTERM if component.outlived else signal.SIGKILL)
        deadline = time.monotonic() + _STOP_SECONDS
        while self._running and time.monotonic() < deadline:
            self._pause(_POLL)
            self._reap()
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
        cgroups.remove(self._spec.name)

    # ---- report

    def _say(self, phase: str, message: str) -> None:
        report = {
            "phase": phase,
            "message": message,
            "running": sorted(component.name for component in self._running.values()),
            "failed": self._failed,
        }
        path = Path(self._spec.report)
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps(report), encoding="utf-8")
        draft.rename(path)

    def _log(self, component: Component) -> Path:
        return Path(self._spec.logs) / f"{component.name}.log"


class _Stopped(Exception):
    """The node was told to stop while it started."""


def _watch_for_new_entries(directory: str) -> int:
    """A file descriptor that is readable when an entry was made in the directory; Python has no inotify of its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0 or libc.inotify_add_watch(descriptor, directory.encode(), _IN_CREATE) < 0:
        raise LocalClusterError(f"{directory} cannot be watched: {os.strerror(ctypes.get_errno())}")
    return descriptor


def _complaint(probe: Probe) -> str | None:
    """Why the probe does not succeed yet, or None."""
    try:
        if probe.unix is not None:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(2)
                connection.connect(probe.unix)
        if probe.url is not None:
            context = ssl.create_default_context(cafile=probe.authority) if probe.url.startswith("https:") else None
            if context is not None and probe.certificate is not None:
                context.load_cert_chain(probe.certificate, probe.key)
            # Whatever proxy the machine uses, the node's own addresses are not behind it.
            opener = urllib.request.build_opener(
                urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
            )
            with opener.open(probe.url, timeout=5):
                pass
    except (OSError, urllib.error.URLError) as error:
        return str(error)
    return None


def main() -> int:
    """Run the node that the first argument specifies, once the parent has said that the link is there."""
    spec = NodeSpec.from_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if not sys.stdin.readline():
        return 1
    try:
        return Supervisor(spec).run()
    except Exception:
        traceback.print_exc()
        return 1
