"""Our device plugin with 256 devices, beside a bare grpc.aio server that gives the same answers.

First before the conformance suite's kubelet, then before a real one: a node of our own, where this machine can have it.
"""

import asyncio
import gc
import json
import math
import os
import pickle
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from real_api import free_port
from rm_cli.kubectl import Kubectl
from rm_device_plugins import kubelet_api
from rm_device_plugins.conformance.fake_kubelet import FakeKubelet
from rm_device_plugins.proto.deviceplugin.v1beta1 import api_pb2 as pb
from rm_local_cluster import Cluster, addons, down, restart, up

from scale.metrics import Samples, parse_metrics, total
from scale.process import Process
from scale.report import Bound, Row, percentile
from scale.sizes import Sizes

COUNT = 256
RESOURCE = "scale.rm-abstract.io/npu"
BARE = "scale.rm-abstract.io/bare"
_TOGETHER = (1, 8, COUNT)
_CALLS = 2000
_LARGE_CALLS = 400
_AT_A_TURN = 50
_RESTARTS = 10
_PODS = 24
_CLUSTER = "scale"
_AWAY_SECONDS = 0.3
_PATIENCE_SECONDS = 120.0
_RSS_MIB = 64
_ALLOCATE_MS = 5
_AGAIN_SECONDS = 2


async def run(sizes: Sizes) -> Sequence[Row]:
    """Both kubelets; the sizes are the target's own, and are not scaled."""
    del sizes
    rows = [*await _fake_kubelet()]
    if os.geteuid() == 0:
        rows += await asyncio.to_thread(_real_kubelet)
    return rows


# --- before the fake kubelet


async def _fake_kubelet() -> Sequence[Row]:
    with tempfile.TemporaryDirectory(prefix="rma-dev-") as temporary:
        ours, bare = _directory(temporary, "ours"), _directory(temporary, "bare")
        async with FakeKubelet(ours, by_socket=True) as kubelet, FakeKubelet(bare, by_socket=True) as other:
            with _plugin(Path(temporary), ours) as plugin:
                await _registered(kubelet, plugin)
                idle = plugin.rss_mib
                requests = _requests(kubelet)
                baseline = _bare(Path(temporary), bare, RESOURCE, await _answers(kubelet, requests))
                try:
                    await _registered(other, baseline)
                    bare_idle = baseline.rss_mib
                    times = await _allocations(kubelet, other, requests)
                    again = [await _restarted(kubelet, plugin) for _ in range(_RESTARTS)]
                    bare_again = [await _restarted(other, baseline) for _ in range(_RESTARTS)]
                    return [
                        *_allocate_rows(times),
                        Row("devices", "registered again, the slowest of ten", max(again), "s", "<=", _AGAIN_SECONDS,
                            f"P50 {percentile(again, 50):.2f} s; bare server max {max(bare_again):.2f} s"),
                        Row("devices", "RSS after all this", plugin.rss_mib, "MiB", "<=", _RSS_MIB,
                            f"{idle:.1f} at first; bare server {baseline.rss_mib:.1f}, {bare_idle:.1f} at first"),
                    ]  # fmt: skip
                finally:
                    baseline.end()


def _directory(*parts: str) -> Path:
    directory = Path(*parts)
    directory.mkdir()
    return directory


def _bare(work: Path, directory: Path, resource: str, answers: object, enter: Sequence[str] = ()) -> Process:
    recorded = work / "answers"
    recorded.write_bytes(pickle.dumps(answers))
    argv = [*enter, sys.executable, "-m", "scale.bare_plugin", str(directory), resource, str(recorded)]
    return Process(argv, os.environ, work / "bare.log")


@contextmanager
def _plugin(work: Path, directory: Path, enter: Sequence[str] = ()) -> Iterator[Process]:
    config = work / "config.yaml"
    config.write_text(yaml.safe_dump({"root": str(work / "npu"), "devices": COUNT, "numaNodes": 2}))
    argv = [*enter, sys.executable, "-m", "rm_device_plugins", "--vendor", "simulator", "--config", str(config)]
    argv += ["--plugin-dir", str(directory), "--port", str(free_port())]
    process = Process(argv, {**os.environ, "RMA_RESOURCE_NAME": RESOURCE}, work / "plugin.log")
    try:
        yield process
    finally:
        process.end()


async def _registered(kubelet: FakeKubelet, process: Process) -> None:
    def known() -> bool:
        process.check()
        return kubelet.allocatable(RESOURCE) == COUNT and kubelet.streams(RESOURCE) == 1

    await kubelet.until(known, _PATIENCE_SECONDS, f"{COUNT} devices are allocatable")


def _requests(kubelet: FakeKubelet) -> dict[int, list[tuple[str, ...]]]:
    devices = sorted(kubelet.resource(RESOURCE).healthy)
    return {
        together: [tuple(devices[at : at + together]) for at in range(0, COUNT, together)] for together in _TOGETHER
    }


def _request(devices: Sequence[str]) -> pb.AllocateRequest:
    return pb.AllocateRequest(container_requests=[pb.ContainerAllocateRequest(devices_ids=devices)])


async def _answers(
    kubelet: FakeKubelet, requests: dict[int, list[tuple[str, ...]]]
) -> tuple[bytes, dict[tuple[str, ...], bytes]]:
    client = kubelet.client(RESOURCE)
    answers = {}
    for each in (devices for listed in requests.values() for devices in listed):
        answers[each] = (await client.allocate(_request(each))).SerializeToString()
    async for listed in client.list_and_watch(pb.Empty()):
        return listed.SerializeToString(), answers
    raise AssertionError("the plugin ended its stream")


async def _allocations(
    ours: FakeKubelet, bare: FakeKubelet, requests: dict[int, list[tuple[str, ...]]]
) -> dict[int, tuple[list[float], list[float]]]:
    """Milliseconds of calls, one after the other; turns of both, so that what disturbs one disturbs the other, too."""
    times: dict[int, tuple[list[float], list[float]]] = {}
    for together, listed in requests.items():
        taken: tuple[list[float], list[float]] = ([], [])
        while len(taken[0]) < (_CALLS if together < COUNT else _LARGE_CALLS):
            for kubelet, into in zip((ours, bare), taken, strict=True):
                client = kubelet.client(RESOURCE)
                gc.collect()
                for _ in range(_AT_A_TURN):
                    request = _request(listed[len(into) % len(listed)])
                    began = time.perf_counter()
                    await client.allocate(request)
                    into.append((time.perf_counter() - began) * 1000)
        times[together] = taken
    return times


def _allocate_rows(times: dict[int, tuple[list[float], list[float]]]) -> list[Row]:
    rows = []
    for together, (ours, bare) in times.items():
        what = "one device" if together == 1 else f"{together} devices"
        note = (
            f"P50 {percentile(ours, 50):.2f}; bare server P99 {percentile(bare, 99):.2f}, "
            f"P50 {percentile(bare, 50):.2f}; {len(ours)} calls each"
        )
        bound: Bound = "<=" if together < COUNT else ""
        rows.append(Row("devices", f"Allocate of {what}, P99", percentile(ours, 99), "ms", bound, _ALLOCATE_MS, note))
    return rows


async def _restarted(kubelet: FakeKubelet, process: Process) -> float:
    """Seconds from the new kubelet.sock to the first list."""
    await kubelet.stop()
    await asyncio.sleep(_AWAY_SECONDS)
    await kubelet.start()
    began = time.monotonic()
    await _registered(kubelet, process)
    return time.monotonic() - began


# --- before a real kubelet


def _real_kubelet() -> Sequence[Row]:
    """A node of our own: processes in its namespaces, pods on its kubelet."""
    work = Path(tempfile.mkdtemp(prefix="rma-dev-"))
    cluster = up(driver="node", name=_CLUSTER)
    try:
        assert cluster.node_exec is not None
        directory = Path(kubelet_api.DEFAULT_PLUGIN_DIR)
        with _plugin(work, directory, cluster.node_exec) as plugin:
            kubectl = Kubectl(cluster)
            _until(lambda: _allocatable(kubectl, plugin) == COUNT, f"the node has {COUNT} devices")
            again = [_restarted_kubelet(cluster, plugin) for _ in range(3)]
            baseline = _bare(work, directory, BARE, _made_up(), cluster.node_exec)
            _until(lambda: _allocatable(kubectl, baseline, BARE) == COUNT, f"the node has {COUNT} of the bare server")
            _until(lambda: _allocatable(kubectl, plugin) == COUNT, f"the node has {COUNT} devices again")
            ours, bare = _pods(kubectl)
            return [
                Row("devices", "real kubelet: registered again, the slowest of three", max(again), "s", "<=",
                    _AGAIN_SECONDS, "from the file time of kubelet.sock to the plugin's log"),
                Row("devices", "real kubelet: Allocate, mean", ours.mean_ms, "ms", "", math.nan,
                    f"bare server {bare.mean_ms:.2f}; more than 5 ms: {ours.slow} of {ours.calls}, bare {bare.slow}; "
                    "by the kubelet's histogram, for pods that all start at once"),
            ]  # fmt: skip
    finally:
        down(name=_CLUSTER)
        shutil.rmtree(work, ignore_errors=True)


def _made_up() -> tuple[bytes, dict[tuple[str, ...], bytes]]:
    """Answers like ours, but without device files, which pods would have to be given."""
    names = [f"bare-{number:03d}" for number in range(COUNT)]
    listed = pb.ListAndWatchResponse(devices=[pb.Device(ID=name, health=kubelet_api.HEALTHY) for name in names])
    answers: dict[tuple[str, ...], bytes] = {}
    for name in names:
        container = pb.ContainerAllocateResponse(envs={"DEVICE_IDS": name})
        answers[name,] = pb.AllocateResponse(container_responses=[container]).SerializeToString()
    return listed.SerializeToString(), answers


def _allocatable(kubectl: Kubectl, plugin: Process, resource: str = RESOURCE) -> int:
    plugin.check()
    (node,) = kubectl.list("nodes")
    return int(node["status"]["allocatable"].get(resource, 0))


def _restarted_kubelet(cluster: Cluster, plugin: Process) -> float:
    before = len(_registrations(plugin))
    restart("kubelet", name=_CLUSTER)
    _until(lambda: len(_registrations(plugin)) > before, "the plugin is registered again")
    socket = f"{kubelet_api.DEFAULT_PLUGIN_DIR}/{kubelet_api.KUBELET_SOCKET}"
    made = float(cluster.exec_in_node(["stat", "--format=%.3Y", socket]).stdout)
    return _registrations(plugin)[-1] - made


def _registrations(plugin: Process) -> list[float]:
    """When the plugin says that it was registered, in Unix time."""
    found = []
    for line in plugin.log.read_text().splitlines():
        entry: dict[str, Any] = json.loads(line)
        if entry.get("message") == "registered":
            found.append(datetime.fromisoformat(entry["time"]).timestamp())
    return found


@dataclass(frozen=True)
class _Allocated:
    """What the kubelet counts of its calls of Allocate for one resource."""

    calls: int
    slow: int
    """More than 5 ms."""
    seconds: float

    @property
    def mean_ms(self) -> float:
        return self.seconds / self.calls * 1000

    @classmethod
    def of(cls, samples: Samples, resource: str) -> "_Allocated":
        name = "kubelet_device_plugin_alloc_duration_seconds"
        calls = total(samples, f"{name}_count", resource_name=resource)
        quick = total(samples, f"{name}_bucket", resource_name=resource, le="0.005")
        return cls(int(calls), int(calls - quick), total(samples, f"{name}_sum", resource_name=resource))


def _pods(kubectl: Kubectl) -> tuple[_Allocated, _Allocated]:
    """The kubelet's calls for a burst of pods, each with a device of the plugin or one of the bare server."""
    (node,) = kubectl.list("nodes")
    path = f"/api/v1/nodes/{node['metadata']['name']}/proxy/metrics"
    kubectl = Kubectl(kubectl.cluster, "default")
    _until(lambda: bool(kubectl.list("serviceaccounts")), "there is a service account for pods")
    kubectl.apply(*(_pod(f"device-{number}", (RESOURCE, BARE)[number % 2]) for number in range(2 * _PODS)))

    def allocated() -> tuple[_Allocated, _Allocated]:
        samples = parse_metrics(Kubectl(kubectl.cluster).run("get", "--raw", path))
        return _Allocated.of(samples, RESOURCE), _Allocated.of(samples, BARE)

    _until(lambda: all(each.calls >= _PODS for each in allocated()), f"the kubelet has allocated for {2 * _PODS} pods")
    return allocated()


def _pod(name: str, resource: str) -> dict[str, Any]:
    wait = {"name": "wait", "image": addons.image("pause"), "resources": {"limits": {resource: "1"}}}
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [wait], "automountServiceAccountToken": False},
    }  # fmt: skip


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {_PATIENCE_SECONDS:g} s: {what}")
        time.sleep(0.2)
