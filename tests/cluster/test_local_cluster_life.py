"""A node comes up once for all who ask, heals when it is asked for again, and leaves nothing behind.

A node of its own, beside the one that the other tests share: it is killed and taken down here.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Network
from pathlib import Path

import pytest
import rm_local_cluster
from rm_local_cluster import Cluster, node, paths
from rm_local_cluster.process import Process, wait_until

NAME = "rmalife"
PATHS = paths.NodePaths(NAME)
PROCESS_KINDS = ("pid", "pid_for_children")
# In hierarchies that the machine does not mount, the node's groups can only be seen by mounting them somewhere.
LIST_CONTROL_GROUPS = f"""
find /sys/fs/cgroup -name 'rm-abstract-{NAME}'
mount -t tmpfs none /mnt
mount -t cgroup -o hugetlb none /mnt 2>/dev/null && find /mnt -name 'rm-abstract-{NAME}' || true
"""


@pytest.fixture(scope="module", autouse=True)
def taken_down_at_the_end() -> Iterator[None]:
    rm_local_cluster.down(name=NAME, purge=True)
    yield
    rm_local_cluster.down(name=NAME, purge=True)


def up(progress: list[str] | None = None) -> Cluster:
    said: list[str] = [] if progress is None else progress
    return rm_local_cluster.up(driver="node", name=NAME, outside=False, progress=said.append)


def supervisor() -> Process:
    process = node.owner(PATHS)
    assert process is not None
    return process


def pids_of(component: str) -> list[int]:
    """Processes of the second node's component, by the paths in their arguments."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            argv = (directory / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if Path(argv[0]).name == component and any(str(PATHS.root) in argument for argument in argv):
            found.append(int(directory.name))
    return found


def namespaces(pid: int | str, kinds: Iterable[str] = ("net", "mnt", "pid")) -> set[str]:
    return {os.readlink(f"/proc/{pid}/ns/{kind}") for kind in kinds}


@contextlib.contextmanager
def processes_of(node: Process) -> Iterator[Callable[[], list[str]]]:
    """A function that says which processes are in the node's process namespace or start their children there, also when
    the node is gone.

    The namespace is held open: the kernel gives the number of one that is gone to the next, such as a pod's of the
    node that the other tests share.
    """
    with Path(f"/proc/{node.pid}/ns/pid").open("rb") as held:
        number = f"pid:[{os.fstat(held.fileno()).st_ino}]"

        def inside() -> list[str]:
            found = []
            for directory in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    found += [directory.name] if number in namespaces(directory.name, PROCESS_KINDS) else []
            return found

        yield inside


def output(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def traces() -> dict[str, list[str]]:
    """Everything but processes of the second node that can be seen on this machine."""
    links = [line.split()[0] for line in output("ip", "-br", "link").splitlines() if line.startswith(NAME)]
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if NAME in line]
    groups = output("unshare", "--mount", "sh", "-c", LIST_CONTROL_GROUPS).split()
    rules = [line for line in output("iptables-save").splitlines() if NAME in line]
    routes = [line for line in output("ip", "route", "show", "table", "all").splitlines() if f"dev {NAME}" in line]
    files = [str(path) for path in (PATHS.root, PATHS.chosen, PATHS.images, PATHS.outside) if path.exists()]
    return {
        "links": links,
        "mounts": mounts,
        "control groups": groups,
        "packet filter rules": rules,
        "routes": routes,
        "files": files,
    }


def test_two_who_ask_at_once_get_one_node_and_the_next_gets_the_same() -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = (future.result() for future in [pool.submit(up), pool.submit(up)])
    assert first == second
    assert len(pids_of("kube-apiserver")) == 1
    said: list[str] = []
    assert up(said) == first
    assert said == [f"the node {NAME} is running"]
    status = rm_local_cluster.status(name=NAME)
    assert status.healthy, status.message
    assert {"etcd", "kubelet", "API server", f"node {NAME}"} <= {part.name for part in status.components}


def test_it_is_apart_from_the_shared_one(cluster: Cluster) -> None:
    second = up()
    assert cluster.node_ip != second.node_ip
    assert cluster.image_registry_pull != second.image_registry_pull
    assert not namespaces(supervisor().pid) & namespaces("self")
    seen = second.exec_in_node(["sh", "-c", "cat /proc/[0-9]*/comm; ls /run; hostname"]).stdout
    assert "kubelet" in seen
    assert "pytest" not in seen


def test_an_address_that_belongs_to_no_service_is_refused_at_once() -> None:
    service = IPv4Network((up().node_ip, 16), strict=False)[128 * 256 + 4000]
    with pytest.raises(OSError) as refusal:  # noqa: PT011 - any errno will do but a timeout
        socket.create_connection((str(service), 80), timeout=10)
    assert not isinstance(refusal.value, TimeoutError)


def test_a_component_can_be_restarted_as_by_a_crash_and_the_node_goes_on() -> None:
    second = up()
    (kubelet,), (server,) = pids_of("kubelet"), pids_of("kube-apiserver")
    for component in ("kubelet", "kube-apiserver"):
        rm_local_cluster.restart(component, name=NAME, progress=lambda _: None)
    assert not {kubelet, server} & {*pids_of("kubelet"), *pids_of("kube-apiserver")}
    assert wait_until(lambda: rm_local_cluster.status(name=NAME).healthy, 30), rm_local_cluster.status(name=NAME)
    assert up() == second
    with pytest.raises(rm_local_cluster.LocalClusterError, match=r"no component 'kubelets'; it has containerd, etcd"):
        rm_local_cluster.restart("kubelets", name=NAME)


def test_restarting_a_dead_component_mends_the_node() -> None:
    up()
    (scheduler,) = pids_of("kube-scheduler")
    os.kill(scheduler, signal.SIGKILL)
    assert wait_until(lambda: rm_local_cluster.status(name=NAME).phase == "Broken", 10)
    rm_local_cluster.restart("kube-scheduler", name=NAME, progress=lambda _: None)
    assert rm_local_cluster.status(name=NAME).healthy


def test_a_component_that_dies_is_reported_with_its_last_words_and_up_starts_anew() -> None:
    before = up()
    (scheduler,) = pids_of("kube-scheduler")
    os.kill(scheduler, signal.SIGKILL)
    assert wait_until(lambda: rm_local_cluster.status(name=NAME).phase == "Broken", 10)
    status = rm_local_cluster.status(name=NAME)
    first, *log = status.message.splitlines()
    assert first.startswith("kube-scheduler was killed by SIGKILL; its log")
    assert log
    assert log[-1] in (PATHS.logs / "kube-scheduler.log").read_text()
    assert not next(part for part in status.components if part.name == "kube-scheduler").healthy

    said: list[str] = []
    assert up(said).node_ip == before.node_ip
    assert any("not in order, starting it anew: kube-scheduler was killed" in line for line in said)
    assert rm_local_cluster.status(name=NAME).healthy


def test_a_node_whose_supervisor_was_killed_is_gone_and_up_clears_away_after_it() -> None:
    up()
    killed = supervisor()
    with processes_of(killed) as left:
        assert left()
        os.kill(killed.pid, signal.SIGKILL)
        assert wait_until(lambda: not left(), 10)
    assert rm_local_cluster.status(name=NAME).phase == "Broken"
    said: list[str] = []
    up(said)
    assert any("ended without being taken down" in line for line in said)
    assert rm_local_cluster.status(name=NAME).healthy


@contextlib.contextmanager
def server_outside(directory: Path) -> Iterator[str]:
    """A web server beyond this machine: in a network of its own that knows no way to the node, only to this machine's
    end.
    """
    interface, script = f"{NAME}out", "read go; ip addr add 198.51.100.2/30 dev out && ip link set out up && exec"
    serve = f"{script} busybox httpd -f -p 8000 -h {directory}"
    argv = ["unshare", "--net", "sh", "-c", serve]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        try:
            ours = os.readlink("/proc/self/ns/net")
            assert wait_until(lambda: os.readlink(f"/proc/{process.pid}/ns/net") != ours, 10)
            output("ip", "link", "add", interface, "type", "veth", "peer", "name", "out", "netns", str(process.pid))
            output("ip", "addr", "add", "198.51.100.1/30", "dev", interface)
            output("ip", "link", "set", interface, "up")
            process.stdin.write("go\n")
            process.stdin.flush()
            assert wait_until(lambda: answers("198.51.100.2", 8000), 10)
            yield "http://198.51.100.2:8000/"
        finally:
            process.kill()


def answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def test_the_node_reaches_the_outside_only_while_that_is_asked_for(tmp_path: Path) -> None:
    forwarding = Path("/proc/sys/net/ipv4/ip_forward")
    before = forwarding.read_text()
    (tmp_path / "index.html").write_text("outside\n")
    fetch = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=2).read().decode())"
    with server_outside(tmp_path) as url:
        refused = up().exec_in_node([sys.executable, "-c", fetch, url], check=False)
        assert "timed out" in refused.stderr
        opened = rm_local_cluster.up(driver="node", name=NAME, outside=True, progress=lambda _: None)
        assert opened.exec_in_node([sys.executable, "-c", fetch, url]).stdout.strip() == "outside"
        assert len(traces()["packet filter rules"]) == 3
        rm_local_cluster.down(name=NAME)
    assert traces()["packet filter rules"] == []
    assert forwarding.read_text() == before


def test_an_up_that_was_killed_half_way_does_not_matter() -> None:
    rm_local_cluster.down(name=NAME)
    code = f"import rm_local_cluster; rm_local_cluster.up(driver='node', name={NAME!r})"
    environment = {**os.environ, "PYTHONPATH": str(Path(rm_local_cluster.__file__).parent.parent)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL) as process:
        assert wait_until(lambda: bool(pids_of("kube-apiserver")), 30)
        process.kill()
    up()
    assert len(pids_of("kube-apiserver")) == 1
    assert rm_local_cluster.status(name=NAME).healthy


def test_down_leaves_nothing() -> None:
    up()
    assert [kind for kind, found in traces().items() if not found] == ["mounts", "packet filter rules"]
    with processes_of(supervisor()) as left:
        assert left()
        rm_local_cluster.down(name=NAME, purge=True)
        assert left() == []
    assert {kind: found for kind, found in traces().items() if found} == {}
    assert rm_local_cluster.status(name=NAME).phase == "Absent"


def test_a_start_that_fails_says_why_and_leaves_nothing_running(monkeypatch: pytest.MonkeyPatch) -> None:
    # A port of the node's that is taken from inside: the registry cannot listen.
    monkeypatch.setattr("rm_local_cluster.worker.REGISTRY_PORT", 6443)
    with pytest.raises(
        rm_local_cluster.LocalClusterError, match=r"the node did not start: (?s:.*)address already in use"
    ):
        up()
    assert node.owner(PATHS) is None
    assert not pids_of("etcd")
