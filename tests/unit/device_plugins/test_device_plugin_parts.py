"""The pure parts of the device plugin framework: configuration, preferred sets, back-off, sockets, generated code."""

import asyncio
import os
import random
import socket
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import pytest
from rm_device_plugins import config, sockets
from rm_device_plugins.config import ConfigError, PluginSettings
from rm_device_plugins.inventory import MISSING, UNCHECKED, Inventory
from rm_device_plugins.preferred import preferred
from rm_device_plugins.proto import generate
from rm_device_plugins.registration import BACKOFF_FIRST_SECONDS, BACKOFF_MAX_SECONDS, Backoff
from rm_device_plugins.vendor import Device, DeviceNode, Discovery


def device(index: int, numa: int = 0, group: str = "", cause: str = "") -> Device:
    node = DeviceNode(f"/dev/npu{index}", f"/dev/npu{index}", 1, 3)
    return Device(f"id{index}", index, f"S{index}", "P", (node,), cause, (numa,), group)


@pytest.mark.parametrize(
    "name",
    [
        "a/b",
        "nvidia.com/gpu",
        "nvidia.com/mig-1g.10gb",
        "rebellions.ai/ATOM",
        "x.y-z.io/A_b.c",
        f"{'a' * 63}.io/{'b' * 63}",
    ],
)
def test_resource_names_that_the_kubelet_takes(name: str) -> None:
    config.check_resource_name(name)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("npu", "one slash"),
        ("a/b/c", "one slash"),
        ("/npu", "DNS domain"),
        ("a/", "1 to 63"),
        ("Acme.com/npu", "DNS domain"),
        ("acme_x.com/npu", "DNS domain"),
        ("acme.com/-npu", "1 to 63"),
        ("acme.com/npu!", "1 to 63"),
        (f"acme.com/{'n' * 64}", "1 to 63"),
        (f"{'a' * 245}/npu", "at most 244"),
        ("requests.acme.com/npu", "must not begin"),
        ("foo.kubernetes.io/npu", "Kubernetes' own"),
    ],
)
def test_resource_names_that_it_refuses(name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        config.check_resource_name(name)


@dataclass(frozen=True)
class Settings:
    name: str
    count: int = 1
    seconds: float = 2.0
    memory_mib: int = 0
    words: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"name": "x"}, Settings("x")),
        ({"name": "x", "seconds": 3}, Settings("x", seconds=3.0)),
        ({"name": "x", "memoryMiB": 5, "words": ["a", "b"]}, Settings("x", memory_mib=5, words=("a", "b"))),
    ],
)
def test_settings_are_read(raw: object, expected: Settings) -> None:
    assert config.parse(Settings, raw) == expected


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({}, "the setting p.name is missing"),
        ({"name": "x", "cuont": 2}, "unknown setting p.cuont; known are name, count, seconds, memoryMiB, words"),
        ({"name": 1.4}, "p.name must be a string: write it in quotes, '1.4'"),
        ({"name": "x", "count": True}, "p.count is True; a whole number"),
        ({"name": "x", "count": 1.5}, "p.count is 1.5"),
        ({"name": "x", "seconds": "3"}, "p.seconds is '3'; a number"),
        ({"name": "x", "words": "a b"}, "p.words is 'a b'; a list of strings"),
        ({"name": "x", "words": [1]}, "a list of strings"),
        ([], "p must be a mapping"),
    ],
)
def test_settings_that_are_wrong_are_refused(raw: object, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse(Settings, raw, "p.")
    assert says in str(caught.value)


def test_the_configuration_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("resourceName: a.io/b\nroot: /x\nplugin: {healthyAfter: 5}\n")
    assert config.load(file, None) == config.Config(PluginSettings(healthy_after=5), {"root": "/x"}, "a.io/b")
    assert config.load(file, "c.io/d").resource_name == "c.io/d"
    for text, says in [("a: [", "is not YAML"), ("- a", "must be a mapping"), ("plugin: 3", "plugin must be")]:
        file.write_text(text)
        with pytest.raises(ConfigError, match=says):
            config.load(file, "a.io/b")
    with pytest.raises(ConfigError, match="does not exist"):
        config.load(tmp_path / "none", "a.io/b")


@pytest.mark.parametrize(
    ("free", "must", "size", "expected"),
    [
        # (index, NUMA node, card)
        ([(0, 0, ""), (1, 1, ""), (2, 1, "")], [], 1, [0]),
        ([(0, 0, ""), (1, 1, ""), (2, 1, "")], [], 2, [1, 2]),
        ([(0, 0, ""), (1, 0, ""), (2, 0, ""), (3, 1, ""), (4, 1, "")], [], 2, [3, 4]),
        ([(0, 0, ""), (1, 0, ""), (2, 0, ""), (3, 1, ""), (4, 1, "")], [0], 2, [0, 1]),
        ([(0, 0, "a"), (1, 0, "b"), (2, 0, "b"), (3, 0, "a")], [], 2, [0, 3]),
        ([(0, 0, "a"), (1, 0, "b"), (2, 0, "b"), (3, 0, "c")], [], 1, [0]),
        ([(0, 0, "a"), (1, 0, "a"), (2, 0, "b")], [], 1, [2]),
        ([(0, 0, ""), (1, 1, ""), (2, 2, ""), (3, 2, "")], [], 3, [0, 2, 3]),
        ([(0, 0, "")], [], 0, []),
    ],
)
def test_the_preferred_set(free: list[tuple[int, int, str]], must: list[int], size: int, expected: list[int]) -> None:
    devices = {index: device(index, numa, group) for index, numa, group in free}
    chosen = preferred(list(devices.values()), [devices[index] for index in must], size)
    assert [each.index for each in chosen] == expected


def test_the_preferred_set_spans_as_few_numa_nodes_as_any_set_could() -> None:
    """The oracle is every possible set."""
    dice = random.Random(7)
    for _ in range(150):
        free = [device(index, numa=dice.randrange(3)) for index in range(dice.randint(1, 7))]
        must = dice.sample(free, dice.randint(0, min(2, len(free))))
        size = dice.randint(len(must), len(free))
        chosen = preferred(free, must, size)
        assert len(chosen) == len({each.id for each in chosen}) == size
        assert set(must) <= set(chosen) <= set(free)

        def spread(devices: object) -> int:
            return len({each.numa_nodes for each in devices})  # type: ignore[attr-defined]

        best = min(spread(each) for each in combinations(free, size) if set(must) <= set(each))
        assert spread(chosen) == best


@pytest.mark.parametrize(("free", "must", "size"), [(2, 0, 3), (2, 2, 1), (2, 0, -1)])
def test_a_preferred_set_that_cannot_be_is_an_error(free: int, must: int, size: int) -> None:
    devices = [device(index) for index in range(free)]
    with pytest.raises(ValueError, match="cannot be taken"):
        preferred(devices, devices[:must], size)


def test_back_off_doubles_to_its_limit_with_jitter_and_begins_again() -> None:
    longest, shortest = Backoff(lambda low, high: high), Backoff(lambda low, high: low)
    steps = [longest.next() for _ in range(40)]
    assert steps[:3] == [BACKOFF_FIRST_SECONDS * factor for factor in (1, 2, 4)]
    assert steps[-1] == BACKOFF_MAX_SECONDS == max(steps)
    assert [shortest.next() * 2 for _ in range(40)] == steps
    longest.reset()
    assert longest.next() == BACKOFF_FIRST_SECONDS
    assert len({Backoff().next() for _ in range(20)}) > 1


def test_socket_names_are_unique_and_fit_the_kernel(tmp_path: Path) -> None:
    names = {sockets.new_socket_path(tmp_path, "a.io/b") for _ in range(50)}
    assert len(names) == 50
    for directory in (tmp_path, Path("/var/lib/kubelet/device-plugins"), Path("/" + "d" * 90)):
        path = sockets.new_socket_path(directory, f"{'r' * 200}.io/{'n' * 63}")
        assert len(os.fsencode(path)) <= 107
        assert path.parent == directory
    with pytest.raises(ConfigError, match="too long"):
        sockets.new_socket_path(Path("/" + "d" * 91), "a.io/b")


def test_a_recreated_socket_is_another_one_and_a_chmod_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "kubelet.sock"
    assert sockets.identity(path) is None
    seen = set()
    for _ in range(3):  # file systems hand the same inode out again
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            found = sockets.identity(path)
            assert found is not None
            path.chmod(0o600)
            assert sockets.identity(path) == found
            os.utime(path, ns=(0, found.modified_ns + len(seen)))  # coarse clocks must not make this test flaky
            seen.add(sockets.identity(path))
        path.unlink()
    assert len(seen) == 3
    path.write_text("")
    assert sockets.identity(path) is None, "a file is no socket"


async def test_only_dead_sockets_of_the_same_resource_are_stale(tmp_path: Path) -> None:
    def bind(name: str, listen: bool) -> socket.socket:
        made = socket.socket(socket.AF_UNIX)
        made.bind(str(tmp_path / name))
        if listen:
            made.listen()
        return made

    with bind("a.io_b-0000000a.sock", True), bind("a.io_b-0000000b.sock", False) as late:
        for name in ("a.io_b-0000000c.sock", "a.io_bb-0000000d.sock", "a.io_b-xyz.sock", "kubelet.sock"):
            bind(name, False).close()
        removing = asyncio.ensure_future(sockets.remove_stale(tmp_path, "a.io/b"))
        await asyncio.sleep(0)  # it has probed once
        late.listen()  # bound before, listening now: an instance that just starts
        assert await removing == [tmp_path / "a.io_b-0000000c.sock"]
        served = sockets.served_siblings(tmp_path, "a.io/b", besides=tmp_path / "a.io_b-0000000b.sock")
        assert set(served) == {tmp_path / "a.io_b-0000000a.sock"}


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def inventory(tmp_path: Path, clock: Clock | None = None, **settings: object) -> Inventory:
    wanted = replace(PluginSettings(healthy_after=3), **settings)  # type: ignore[arg-type]
    return Inventory(wanted, tmp_path / "state.json", clock or Clock())


def found(*causes: str) -> Discovery:
    return Discovery(tuple(device(index, cause=cause) for index, cause in enumerate(causes)), "1.0", "P")


@pytest.mark.parametrize(
    ("unhealthy_after", "healthy_after", "observed", "healthy"),
    [
        (1, 3, "gbggg", "g bbb g".replace(" ", "")),
        (1, 1, "gbgbg", "gbgbg"),
        (2, 2, "gbgbbgbgg", "ggggbbbbg"),
        (1, 3, "gbggbggg", "gbbbbbbg"),
        (1, 3, "bggg", "bbbg"),
        (3, 1, "gbbbg", "gggbg"),
    ],
)
def test_hysteresis(tmp_path: Path, unhealthy_after: int, healthy_after: int, observed: str, healthy: str) -> None:
    """g and b: good and bad, as observed and as advertised."""
    kept = inventory(tmp_path, unhealthy_after=unhealthy_after, healthy_after=healthy_after)
    advertised = ""
    for each in observed:
        kept.observe(found("" if each == "g" else "bad"))
        advertised += "g" if kept.snapshot[0][1] else "b"
    assert advertised == healthy


def test_a_recovering_device_says_so(tmp_path: Path) -> None:
    kept = inventory(tmp_path)
    kept.observe(found("hot"))
    assert kept.entries()[0].cause == "hot"
    kept.observe(found(""))
    assert kept.entries()[0].cause == "recovering: 1 of 3 checks passed"


def test_a_missing_device_is_unhealthy_until_it_is_forgotten(tmp_path: Path) -> None:
    clock = Clock()
    kept = inventory(tmp_path, clock, forget_after_seconds=100)
    kept.observe(found("", ""))
    kept.observe(found(""))
    assert [(each.healthy, each.cause) for each in kept.entries()] == [(True, ""), (False, MISSING)]
    clock.time += 100
    kept.fail("the tool hangs")
    kept.observe(found(""))
    assert len(kept.entries()) == 2
    again = inventory(tmp_path, clock, forget_after_seconds=100)  # the plugin restarts meanwhile
    again.load()
    clock.time += 1
    again.observe(found(""))
    assert [each.device.id for each in again.entries()] == ["id0"]


def test_a_restart_takes_up_what_was_known(tmp_path: Path) -> None:
    kept = inventory(tmp_path)
    kept.observe(found("", "hot"))
    again = inventory(tmp_path)
    again.load()
    assert [(each.device.id, each.healthy, each.cause) for each in again.entries()] == [
        ("id0", False, UNCHECKED),
        ("id1", False, UNCHECKED),
    ]
    assert (again.driver, again.product) == ("1.0", "P")
    again.observe(found("", ""))
    assert [each.healthy for each in again.entries()] == [True, False], "what was unhealthy has to prove itself"
    assert again.entries()[0].device == device(0)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 99}', '{"version": 1, "devices": [{"id": 1}]}', "null"])
def test_a_state_file_that_is_none_is_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    kept = inventory(tmp_path)
    kept.load()
    assert kept.entries() == []
    kept.observe(found(""))
    again = inventory(tmp_path)
    again.load()
    assert len(again.entries()) == 1


def test_a_directory_that_cannot_be_written_is_no_reason_to_end(tmp_path: Path) -> None:
    kept = Inventory(PluginSettings(), tmp_path / "absent" / "state.json")
    kept.observe(found(""))
    assert kept.snapshot == (("id0", True, (0,)),)


def test_the_generated_code_is_that_of_the_definitions(tmp_path: Path) -> None:
    for fresh in generate.generate(tmp_path):
        kept = generate.IMPORT_ROOT / fresh.relative_to(tmp_path)
        assert kept.read_text() == fresh.read_text(), "run `python -m rm_device_plugins.proto.generate`"
