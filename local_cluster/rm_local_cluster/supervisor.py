"""The first process of the node's namespaces: sets them up, starts the node's components in order, and ends them.

`main` takes the path of a `NodeSpec` as JSON, and waits for a line on standard input, by which its parent says that
the network link is there. It restarts nothing: a component that dies makes the node broken, and the report says which
one and what it said last. When this process ends, the kernel ends all that is left in its namespaces.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from . import cgroups
from .errors import LocalClusterError
from .logs import last_lines
from .probe import complaint
from .shell import run
from .spec import Component, NodeSpec, Stage
from .watch import NewEntries

_POLL = 0.05
_STOP_SECONDS = 15.0


class Supervisor:
    """Runs one node until it is told to stop: by SIGTERM. By SIGHUP it restarts the component that the request file
    names.
    """

    def __init__(self, spec: NodeSpec) -> None:
        self._spec = spec
        self._running: dict[int, Component] = {}
        self._failed: dict[str, str] = {}
        self._replaced: set[int] = set()
        self._stop_requested = False
        self._restart_requested = False
        self._stopping = False
        self._wakeup = -1
        self._volumes: NewEntries | None = None

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
            if self._restart_requested:
                self._restart()
            self._pause(None)
        self._stop()
        return 0

    def _listen(self) -> None:
        """Wake up by signals; they are not blocked, as the node's processes would inherit that."""
        self._wakeup, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._request_stop)
        signal.signal(signal.SIGHUP, self._request_restart)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)

    def _request_stop(self, _number: int, _frame: object) -> None:
        self._stop_requested = True

    def _request_restart(self, _number: int, _frame: object) -> None:
        self._restart_requested = True

    def _pause(self, seconds: float | None) -> None:
        """Wait for a signal or a new volume, for at most so many seconds."""
        wakers: list[int | NewEntries] = [self._wakeup]
        if self._volumes is not None:
            wakers.append(self._volumes)
        ready = select.select(wakers, [], [], seconds)[0]
        if self._wakeup in ready:
            os.read(self._wakeup, 4096)
        if self._volumes is not None:
            for volume in self._volumes.take():
                # The provisioner in the controller manager lets only root write there, whatever user the pod has.
                with contextlib.suppress(FileNotFoundError):
                    volume.chmod(0o777)

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
        self._volumes = NewEntries(Path(self._spec.writable_below))
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

    # ---- components

    def _start(self, stage: Stage) -> None:
        for component in stage.components:
            self._launch(component)
        started = time.monotonic()
        for component in stage.components:
            self._say("Starting", f"waiting for {component.name}")
            self._await(component, started + component.start_seconds)
        for command in stage.commands:
            run(command, timeout=300)

    def _launch(self, component: Component) -> None:
        with self._log(component).open("ab") as output:
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

    def _await(self, component: Component, deadline: float) -> None:
        while (wrong := complaint(component.probe)) is not None:
            self._reap()
            if self._stop_requested:
                raise _Stopped
            if self._failed:
                raise LocalClusterError("\n".join(self._failed.values()))
            if time.monotonic() > deadline:
                raise LocalClusterError(
                    f"{component.name} did not come up within {component.start_seconds:g} s ({wrong}); "
                    f"its log {self._log(component)} ends with:\n{last_lines(self._log(component), 10)}"
                )
            self._pause(_POLL)

    def _restart(self) -> None:
        """Kill a component as a crash would, or take one that is dead, and start it again."""
        self._restart_requested = False
        request = Path(self._spec.restart_request)
        try:
            name = request.read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        component = next(each for stage in self._spec.stages for each in stage.components if each.name == name)
        for pid, each in list(self._running.items()):
            if each is component:
                self._replaced.add(pid)
                os.kill(pid, signal.SIGKILL)
        while any(each is component for each in self._running.values()):
            self._pause(_POLL)
            self._reap()
        self._failed.pop(name, None)
        try:
            self._launch(component)
            self._await(component, time.monotonic() + component.start_seconds)
        except _Stopped:
            return
        except (LocalClusterError, OSError) as error:
            self._say("Broken", str(error))
        else:
            self._say("Running", "")
        request.unlink()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            component = self._running.pop(pid, None)
            if pid in self._replaced:
                self._replaced.remove(pid)
            elif component is not None and not self._stopping:
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


def main() -> int:
    """Run the node that the first argument specifies, once the parent has said that the link is there."""
    spec = NodeSpec.from_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if not sys.stdin.readline():
        return 1
    return Supervisor(spec).run()
