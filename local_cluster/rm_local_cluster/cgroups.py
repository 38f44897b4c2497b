"""Control groups of a node: mounting the hierarchies in its mount namespace, its own group in each, and removing
them.
"""

import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from .errors import LocalClusterError
from .shell import run

ROOT = Path("/sys/fs/cgroup")
# The kubelet refuses to start without these; a machine may have them in the kernel and yet not mounted.
_NEEDED_V1 = ("cpu", "cpuacct", "cpuset", "memory", "pids", "devices", "freezer", "blkio", "hugetlb")
_V2_CONTROLLERS = ("cpu", "cpuset", "memory", "pids", "io", "hugetlb")


def version(mountinfo: str) -> int:
    """Which version of control groups /sys/fs/cgroup holds, 1 or 2, by the text of /proc/self/mountinfo."""
    for line in mountinfo.splitlines():
        mount, _, source = line.partition(" - ")
        if mount.split()[4] == str(ROOT) and source.split()[0] == "cgroup2":
            return 2
    return 1


def hierarchies_v1(mountinfo: str, kernel: str) -> list[str]:
    """The mount options of every version 1 hierarchy that the node gets, such as `memory` or `cpu,cpuacct`.

    `mountinfo` is /proc/self/mountinfo, `kernel` is /proc/cgroups. Those that the machine has mounted are mounted
    alike, as the kernel allows no other grouping; those that the kubelet needs besides are added where the kernel has
    them.
    """
    available = {
        fields[0] for line in kernel.splitlines() if not line.startswith("#") and (fields := line.split())[3] == "1"
    }
    options: list[str] = []
    for line in mountinfo.splitlines():
        source = line.partition(" - ")[2].split()
        if source and source[0] == "cgroup":
            names = [name for name in source[2].split(",") if name in available or name.startswith("name=")]
            if names and ",".join(names) not in options:
                options.append(",".join(names))
    mounted = {name for option in options for name in option.split(",")}
    return options + [name for name in _NEEDED_V1 if name in available and name not in mounted]


def lacking_v1(mountinfo: str, kernel: str) -> list[str]:
    """The controllers that the kubelet needs and this kernel does not have; arguments as for `hierarchies_v1`."""
    offered = {name for option in hierarchies_v1(mountinfo, kernel) for name in option.split(",")}
    return [name for name in _NEEDED_V1 if name not in offered]


def group_of(name: str) -> str:
    """The control group that holds the pods of the node called `name`."""
    return f"/rm-abstract-{name}"


def mount(mountinfo: str) -> None:
    """Mount the control groups at /sys/fs/cgroup; for a mount namespace whose /sys is already its own.

    `mountinfo` is /proc/self/mountinfo as it was before /sys was mounted anew.
    """
    if version(mountinfo) == 2:
        run(["mount", "-t", "cgroup2", "cgroup2", ROOT])
        return
    run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", ROOT])
    for option in hierarchies_v1(mountinfo, Path("/proc/cgroups").read_text(encoding="utf-8")):
        directory = ROOT / option.removeprefix("name=")
        directory.mkdir()
        run(["mount", "-t", "cgroup", "-o", option, "cgroup", directory])
        for alias in option.split(",") if "," in option else ():
            (ROOT / alias).symlink_to(option)


def create(name: str) -> None:
    """Make the node's group in every hierarchy that is mounted."""
    for hierarchy in _hierarchies():
        if (hierarchy / "cgroup.subtree_control").exists():
            _delegate(hierarchy)
        group = Path(f"{hierarchy}{group_of(name)}")
        group.mkdir(exist_ok=True)
        if (group / "cgroup.subtree_control").exists():
            _delegate(group)
        for setting in ("cpuset.cpus", "cpuset.mems"):
            # Version 1 leaves these empty in a new group, and then no process may enter it.
            if (group / setting).exists() and not (group / "cgroup.controllers").exists():
                (group / setting).write_text((hierarchy / setting).read_text(encoding="ascii"), encoding="ascii")


def remove(name: str, *, timeout: float = 10) -> None:
    """Remove the node's groups and all below them. Raises LocalClusterError when processes keep one busy for
    `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    for hierarchy in _hierarchies():
        top = Path(f"{hierarchy}{group_of(name)}")
        while top.exists():
            busy = [group for group in _bottom_up(top) if not _removed(group)]
            if busy and time.monotonic() > deadline:
                raise LocalClusterError(f"control group {busy[0]} still holds processes: see {busy[0]}/cgroup.procs")
            if busy:
                time.sleep(0.02)


def remove_from_outside(name: str) -> None:
    """Remove the groups of a node that is gone, from the machine's own namespaces.

    A version 1 hierarchy that only the node had mounted (hugetlb, where the machine does not use it) is out of reach
    here, so this happens in a mount namespace made for it.
    """
    code = "from rm_local_cluster.cgroups import main; main()"
    argv = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", code, name]
    run(argv, environment={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)})


def main() -> None:
    """Remove the groups of the node that the first argument names; for `remove_from_outside`."""
    mountinfo = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    if version(mountinfo) == 1:
        mount(mountinfo)
    remove(sys.argv[1])


def _hierarchies() -> list[Path]:
    mountinfo = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    if version(mountinfo) == 2:
        return [ROOT]
    pattern = rf"^\S+ \S+ \S+ \S+ ({re.escape(str(ROOT))}/\S+) .* - cgroup "
    return [Path(found) for found in dict.fromkeys(re.findall(pattern, mountinfo, re.MULTILINE))]


def _delegate(group: Path) -> None:
    present = (group / "cgroup.controllers").read_text(encoding="ascii").split()
    wanted = " ".join(f"+{controller}" for controller in _V2_CONTROLLERS if controller in present)
    try:
        (group / "cgroup.subtree_control").write_text(wanted, encoding="ascii")
    except OSError as error:
        raise LocalClusterError(
            f"control group {group} cannot pass controllers on ({error}), as it holds processes itself; "
            "run where it is the machine's root group"
        ) from error


def _bottom_up(top: Path) -> Iterator[Path]:
    for directory, _, _ in os.walk(top, topdown=False):
        yield Path(directory)


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
