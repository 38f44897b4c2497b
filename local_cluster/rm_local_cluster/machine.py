"""Looking at the machine before anything is started, and saying in plain words what it lacks."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from . import build, cgroups, kind, network, packages, paths
from .capabilities import has_capability
from .errors import LocalClusterError
from .families import NODE_FAMILIES
from .model import Driver, Finding
from .shell import run

_GIB = 1024**3
_COLD_DISK = 20 * _GIB
_WARM_DISK = 5 * _GIB
_MEMORY = 4 * _GIB
_POD_LINKS = "ip link add left type veth peer name right && ip link add middle type bridge"
# One rule for every match and target that kube-proxy's rules are made of.
_SERVICE_RULES = " && ".join(
    f"iptables -t nat -A POSTROUTING {rule}"
    for rule in (
        "-m comment --comment x -j MARK --or-mark 0x4000",
        "-m mark ! --mark 0x4000/0x4000 -j RETURN",
        "-m statistic --mode random --probability 0.5 -j RETURN",
        "-m conntrack --ctstate NEW -j RETURN",
        "-m addrtype --dst-type LOCAL -j RETURN",
        "-j MASQUERADE --random-fully",
    )
)


def choose_driver(named: Path | None, docker: Callable[[], bool] = kind.docker_answers) -> Driver:
    """Which kind of cluster `up` uses: the one that the user names, else kind where Docker answers, else a node of
    our own.
    """
    if named is not None:
        return "existing"
    return "kind" if docker() else "node"


def examine(driver: Driver) -> list[Finding]:
    """Examine the machine for what a driver needs; nothing is changed, and no network is asked."""
    if driver != "node":
        return [toolchain(needed=not all(shutil.which(tool) for tool in ("kubectl", "helm")))]
    findings = [_root(), _packages()]
    if any(finding.severity == "problem" for finding in findings) or packages.missing():
        return findings
    cold = not _binaries_are_built()
    mountinfo = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    return [
        *findings,
        toolchain(needed=cold),
        _trial("namespaces", "true", "this machine does not let root make network, mount and process namespaces"),
        _trial("links", _POD_LINKS, "the kernel has no veth pairs or bridges, so pods cannot be connected"),
        _trial("iptables", _SERVICE_RULES, "iptables lacks what Services need"),
        _overlayfs(),
        control_groups(mountinfo, Path("/proc/cgroups").read_text(encoding="utf-8")),
        _oom_score(),
        _addresses(),
        disk(_free_disk(), cold=cold),
        memory(Path("/proc/meminfo").read_text(encoding="utf-8")),
    ]


def driver_finding(driver: Driver, named: Path | None) -> Finding:
    """What `up` would use, and why."""
    reasons = {
        "existing": f"the cluster of {named} is used, as it was named",
        "kind": "kind is used, as a Docker engine answers",
        "node": "a node of its own is made on this machine, as no cluster was named and no Docker engine answers",
    }
    return Finding("cluster", "ok", reasons[driver])


def toolchain(*, needed: bool) -> Finding:
    """The Go toolchain, which is a matter only while something is to be built."""
    if not needed:
        return Finding("go", "ok", "nothing has to be built")
    wanted = ".".join(map(str, build.MINIMUM_GO))
    fix = f"install Go {wanted} or newer: https://go.dev/dl"
    go = build.go_command()
    if go is None:
        return Finding("go", "problem", "Go is not installed, and the cluster's binaries have to be built", fix)
    try:
        return Finding(
            "go", "ok", f"{build.go_version(go)} builds the cluster's binaries, which takes some minutes once"
        )
    except LocalClusterError as error:
        return Finding("go", "problem", str(error), fix)


def control_groups(mountinfo: str, kernel: str) -> Finding:
    """Which control groups there are, by the texts of /proc/self/mountinfo and /proc/cgroups."""
    if cgroups.version(mountinfo) == 2:
        return Finding("cgroups", "ok", "control groups of version 2")
    lacking = cgroups.lacking_v1(mountinfo, kernel)
    if lacking:
        return Finding(
            "cgroups",
            "problem",
            f"the kernel lacks these control group controllers, which the kubelet needs: {', '.join(lacking)}",
            "use a kernel that has them, or one with control groups of version 2",
        )
    return Finding("cgroups", "ok", "control groups of version 1; the kubelet is told to accept them")


def disk(free: int, *, cold: bool) -> Finding:
    """Free bytes where the cache is: building everything once takes more than starting again."""
    wanted = _COLD_DISK if cold else _WARM_DISK
    said = f"{free / _GIB:.0f} GiB free at {paths.cache_root()}"
    if free >= wanted:
        return Finding("disk", "ok", said)
    return Finding(
        "disk",
        "problem",
        f"{said}, {wanted // _GIB} GiB are needed",
        "free some, or set XDG_CACHE_HOME to a larger disk",
    )


def memory(meminfo: str) -> Finding:
    """Memory that is available, by the text of /proc/meminfo."""
    available = next(int(line.split()[1]) * 1024 for line in meminfo.splitlines() if line.startswith("MemAvailable:"))
    said = f"{available / _GIB:.1f} GiB of memory available"
    if available >= _MEMORY:
        return Finding("memory", "ok", said)
    return Finding(
        "memory", "problem", f"{said}, {_MEMORY // _GIB} GiB are needed", "end something that uses much of it"
    )


def _root() -> Finding:
    if os.geteuid() != 0:
        return Finding(
            "root",
            "problem",
            "a node of its own needs root",
            "run as root, or name a cluster by KUBECONFIG, or start a Docker engine",
        )
    lacking = [name for name in ("SYS_ADMIN", "NET_ADMIN", "MKNOD") if not has_capability(name)]
    if lacking:
        names = ", ".join(f"CAP_{name}" for name in lacking)
        return Finding(
            "root", "problem", f"root lacks {names} here", "run outside the container or sandbox that takes them away"
        )
    return Finding("root", "ok", "root, with the capabilities that a node needs")


def _packages() -> Finding:
    lacking = packages.missing()
    if not lacking:
        return Finding("packages", "ok", "all host packages are installed")
    said = f"not installed: {' '.join(lacking)}"
    if packages.can_install():
        return Finding("packages", "note", f"{said}; `up` installs them with apt-get")
    return Finding("packages", "problem", said, f"install what these Debian packages hold: {' '.join(lacking)}")


def _trial(check: str, script: str, complaint: str) -> Finding:
    """Try a shell script in namespaces that end with it."""
    argv = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", script]
    done = run(argv, check=False)
    if done.returncode == 0:
        return Finding(check, "ok", f"{check} work")
    said = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
    fix = "use a machine or a virtual machine whose kernel allows it, or name a cluster by KUBECONFIG"
    return Finding(check, "problem", f"{complaint}: {said[0]}", fix)


def _overlayfs() -> Finding:
    root = paths.cache_root()
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as scratch:
        for name in ("lower", "upper", "work", "merged"):
            (Path(scratch) / name).mkdir()
        options = ",".join(f"{name}dir={scratch}/{name}" for name in ("lower", "upper", "work"))
        script = f"mount -t overlay -o {options} overlay {scratch}/merged && umount {scratch}/merged"
        return _trial("overlayfs", script, f"images cannot be unpacked at {root}, as overlayfs does not mount there")


def _oom_score() -> Finding:
    if has_capability("SYS_RESOURCE"):
        return Finding("oom score", "ok", "pods get the memory pressure priorities that Kubernetes gives them")
    return Finding(
        "oom score", "note", "root lacks CAP_SYS_RESOURCE, so all pods get the same memory pressure priority"
    )


def _addresses() -> Finding:
    try:
        addresses = network.choose(network.networks_in_use())
    except LocalClusterError as error:
        return Finding("addresses", "problem", str(error), "remove a route")
    return Finding("addresses", "ok", f"a new node would take {addresses.block}, which nothing here routes")


def _binaries_are_built() -> bool:
    go = build.go_command()
    try:
        return go is not None and build.are_built(NODE_FAMILIES, build.go_version(go))
    except LocalClusterError:
        return False


def _free_disk() -> int:
    place = paths.cache_root()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
