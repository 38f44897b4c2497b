"""``rma-launch`` as a process: signals, orphans, memory, and an image that holds nothing else."""

import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from rm_api.conditions import Reason
from rm_api.names import ExitCode
from rm_api.report import Report
from rma_launch_driver import OWN_REPORT, PATIENCE, Binaries, Launch, alive, lines_until, requires_root, running, until

# --- processes and signals ----------------------------------------------------------------------------------------


SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2]


@pytest.mark.parametrize("which", SIGNALS)
def test_signals_are_forwarded_to_the_whole_group(launch: Launch, which: signal.Signals) -> None:
    """The child's helpers get them too, and the child decides how it ends."""
    actions = [f"spawn=trap={int(which)}", f"trap={int(which)}"]
    with running(launch.popen("run", "--name", "x", *launch.child(actions))) as process:
        lines_until(process, "trapping", 2)
        process.send_signal(which)
        lines_until(process, f"caught {int(which)}", 2)
        assert launch.end(process).code == 0


@pytest.mark.parametrize(
    ("after", "code", "reason"),
    [
        ("exit=0", 0, Reason.BUILT),
        ("exit=1", 75, Reason.RETRYING),
        ("exit=3", 75, Reason.RETRYING),  # mapped, but the step did not get to say so
        ("exit=143", 75, Reason.RETRYING),
        (f"report={OWN_REPORT}", 0, Reason.SOURCE_UNREACHABLE),
    ],
)
def test_a_step_that_is_asked_to_stop_is_tried_again(launch: Launch, after: str, code: int, reason: Reason) -> None:
    arguments = ["run", "--name", "x", "--exit-code", "3=BadInput", *launch.child(["trap=15", after])]
    with running(launch.popen(*arguments)) as process:
        lines_until(process, "trapping")
        process.terminate()
        ended = launch.end(process)
    assert (ended.code, ended.report.reason) == (code, reason)


def test_a_step_without_a_handler_ends_by_the_signal(launch: Launch) -> None:
    with running(launch.popen("run", "--name", "x", *launch.child(["out=up", "sleep=60s"]))) as process:
        lines_until(process, "up")
        process.terminate()
        launch.end(process).failed(ExitCode.TRANSIENT, Reason.RETRYING, "asked to stop", "signal 15")


def test_a_helper_that_outlives_the_step_is_ended(launch: Launch) -> None:
    ended = launch.step("spawn=sleep=600s", "out=done")
    assert ended.code == 0
    pid = int(ended.stdout.splitlines()[0].removeprefix("spawned "))
    until("the helper's end", lambda: not alive(pid))


def test_as_process_1_it_reaps_orphans(launch: Launch) -> None:
    requires_root()
    command = ["unshare", "--pid", "--fork", "--mount-proc", launch.binaries.launcher, "run", "--name", "x"]
    command += launch.child(["orphan=30:50ms", "count="])
    done = subprocess.run(
        command, env=launch.environment(), capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    last = done.stdout.splitlines()[-1]
    assert last.startswith("processes 2 zombies 0 ")
    assert last.endswith(" ppid 1")


def test_it_adopts_orphans_also_where_it_is_not_process_1(launch: Launch) -> None:
    with running(launch.popen("run", "--name", "x", *launch.child(["orphan=1:600s", "trap=15"]))) as process:
        orphan = int(lines_until(process, "trapping")[0].removeprefix("spawned "))
        parent = int(Path(f"/proc/{orphan}/stat").read_text().rpartition(") ")[2].split()[1])
        assert parent == process.pid
        os.kill(orphan, signal.SIGKILL)
        until("the orphan to be reaped", lambda: not Path(f"/proc/{orphan}").exists())
        process.terminate()
        assert launch.end(process).code == 0


# --- an image without anything ------------------------------------------------------------------------------------


@pytest.fixture
def bare_root(binaries: Binaries, tmp_path: Path) -> Path:
    """A root file system with two static programs, and what a container runtime adds."""
    requires_root()
    root = tmp_path / "root"
    for directory in ("proc", "dev", "tmp", "rma/bin", "rma/output"):
        (root / directory).mkdir(parents=True)
    for directory in ("tmp", "rma/bin", "rma/output"):
        (root / directory).chmod(0o777)
    (root / "dev" / "termination-log").touch()
    (root / "dev" / "termination-log").chmod(0o666)
    os.mknod(root / "dev" / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    (root / "dev" / "null").chmod(0o666)
    shutil.copy(binaries.launcher, root / "rma-launch")
    shutil.copy(binaries.child, root / "tool")
    tmp_path.chmod(0o755)
    return root


def in_bare_root(root: Path, *command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs ``command`` as process 1, user 65532, with nothing but ``root`` to see."""
    outer = ["unshare", "--pid", "--fork", "--mount", f"--mount-proc={root}/proc", "chroot", "--userspec=65532:65532"]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **(env or {})}
    return subprocess.run(
        [*outer, str(root), *command], env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def test_it_needs_neither_python_nor_a_shell(bare_root: Path) -> None:
    assert in_bare_root(bare_root, "/rma-launch", "install", "/rma/bin").returncode == 0
    launcher = "/rma/bin/rma-launch"
    assert stat.S_IMODE((bare_root / launcher[1:]).stat().st_mode) == 0o755

    flags = ["--name", "compile", "--output", "*.bin", "--success-pattern", "^saved$"]
    actions = ["write=${OUTPUT}/model.bin:weights", "orphan=3:50ms", "count=", "out=saved"]
    done = in_bare_root(bare_root, launcher, "run", *flags, "--", "/tool", *actions, env={"OUTPUT": "/rma/output"})
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "saved"), done.stderr
    assert "zombies 0 pid" in done.stdout
    assert " ppid 1" in done.stdout
    report = Report.parse((bare_root / "dev" / "termination-log").read_text())
    assert report.reason == Reason.BUILT
    assert (bare_root / "rma/output/model.bin").read_text() == "weights"

    done = in_bare_root(bare_root, launcher, "run", "--name", "shell", "--", "sh", "-c", "true")
    assert done.returncode == ExitCode.BAD_INPUT
    assert "sh is not in PATH" in Report.parse((bare_root / "dev" / "termination-log").read_text()).message


# --- memory -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A cgroup with 48 MiB, of version 1 or 2 as the machine has it."""
    requires_root()
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = {controllers: path for _, controllers, path in (line.split(":", 2) for line in lines)}
    first = Path("/sys/fs/cgroup/memory")
    if "memory" in own:
        directory, limits = first / own["memory"].lstrip("/"), ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
    else:
        directory, limits = Path("/sys/fs/cgroup"), ["memory.max", "memory.swap.max"]
    directory /= f"rma-launch-test-{os.getpid()}"
    directory.mkdir()
    try:
        for limit in limits:
            if (directory / limit).exists():
                (directory / limit).write_text("0" if limit == "memory.swap.max" else str(48 << 20))
        yield directory
    finally:
        until("the cgroup to be empty", lambda: not (directory / "cgroup.procs").read_text())
        directory.rmdir()


@pytest.mark.parametrize("actions", [["alloc=200"], ["spawn=alloc=200", "join=", "err=a helper died", "exit=1"]])
def test_a_step_that_the_kernel_kills_for_memory(launch: Launch, small_cgroup: Path, actions: list[str]) -> None:
    ended = launch.step(*actions, preexec_fn=lambda: (small_cgroup / "cgroup.procs").write_text("0"))
    ended.failed(ExitCode.TRANSIENT, Reason.OUT_OF_MEMORY, "48 MiB", "resources.memory")


def test_a_step_that_fails_inside_its_memory(launch: Launch, small_cgroup: Path) -> None:
    ended = launch.step("alloc=5", "exit=1", preexec_fn=lambda: (small_cgroup / "cgroup.procs").write_text("0"))
    ended.failed(ExitCode.TOOLCHAIN_FAILURE, Reason.TOOLCHAIN_FAILED)
