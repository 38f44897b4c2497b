"""When a device plugin keeps out of the way, and for how long: the rules, with a clock of the test's own."""

import asyncio
import json
import socket
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
from rm_device_plugins.ownership import CHECKPOINT, LOSS_SECONDS, MAX_IDS, MAX_LOSSES, Ownership, OwnIds, state_file

RESOURCE = "example.com/npu"
HOLD = 10.0


@pytest.fixture
def neighbour(tmp_path: Path) -> Iterator[socket.socket]:
    """A plugin's socket that is served."""
    with socket.socket(socket.AF_UNIX) as served:
        served.bind(str(tmp_path / "neighbour.sock"))
        served.listen()
        yield served


def tell(directory: Path, *ids: str) -> None:
    """The kubelet was told of these last."""
    content = {"Data": {"PodDeviceEntries": None, "RegisteredDevices": {RESOURCE: ids}}, "Checksum": 7}
    (directory / CHECKPOINT).write_text(json.dumps(content))


def watching(directory: Path, *ids: str, owner: str = "npu", offered: list[str] | None = None) -> Ownership:
    async def ask() -> list[str] | None:
        return offered

    return Ownership(directory, RESOURCE, owner, lambda: ids, lambda: HOLD, ask)


def look(watch: Ownership, own_sockets: Collection[Path], now: float) -> str:
    return asyncio.run(watch.look(own_sockets, now))


def test_no_checkpoint_accuses_nobody(tmp_path: Path, neighbour: socket.socket) -> None:
    assert look(watching(tmp_path, "a"), (), 1.0) == ""


@pytest.mark.parametrize("told", [[], ["a"], ["a::0", "a::3"], ["a", "b"]], ids=",".join)
def test_our_own_devices_are_no_conflict(tmp_path: Path, neighbour: socket.socket, told: list[str]) -> None:
    tell(tmp_path, *told)
    assert look(watching(tmp_path, "a", "b"), (), 1.0) == ""


def test_a_strangers_devices_are_named_with_the_sockets_there(tmp_path: Path, neighbour: socket.socket) -> None:
    tell(tmp_path, "a", *(f"GPU-{number}" for number in range(5)))
    words = look(watching(tmp_path, "a"), (), 1.0)
    assert "GPU-0, GPU-1, GPU-2 and 2 more as example.com/npu" in words
    assert "neighbour.sock" in words


def test_our_own_socket_is_nobody_elses(tmp_path: Path, neighbour: socket.socket) -> None:
    watch = watching(tmp_path, "a")
    assert look(watch, [tmp_path / "neighbour.sock"], 1.0) == ""
    tell(tmp_path, "x")
    assert look(watch, [tmp_path / "neighbour.sock"], 2.0) == ""


def test_we_come_back_once_the_other_has_been_gone_for_long_enough(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "other.sock"))
        other.listen()
        watch = watching(tmp_path, "a")
        tell(tmp_path, "x")
        for now in range(100, 200, 5):
            assert look(watch, (), float(now))
    # The checkpoint stays as it is; its plugin is gone.
    assert look(watch, (), 200.0)
    assert look(watch, (), 204.0)
    assert look(watch, (), 195 + HOLD) == ""
    tell(tmp_path, "a")
    assert look(watch, (), 300.0) == ""


def test_what_is_left_of_another_plugin_at_our_start_is_waited_for_once(tmp_path: Path) -> None:
    tell(tmp_path, "x")
    watch = watching(tmp_path, "a")
    assert "now gone" in look(watch, (), 100.0)
    assert look(watch, (), 100 + HOLD - 1)
    assert look(watch, (), 100 + HOLD) == ""
    assert look(watch, (), 500.0) == ""


def test_what_the_kubelet_does_not_give_out_any_more_is_a_memory(tmp_path: Path, neighbour: socket.socket) -> None:
    offered = ["x"]
    watch = watching(tmp_path, "a", offered=offered)
    tell(tmp_path, "x", "y")
    assert look(watch, (), 100.0)
    assert look(watch, (), 150.0), "it is given out, as the kubelet says"
    offered.clear()  # its plugin has ended; a neighbour, of another resource, is there as before
    assert look(watch, (), 150 + HOLD / 2)
    assert look(watch, (), 150 + HOLD) == ""


def test_who_turns_out_to_be_there_after_all_is_left_alone_for_longer(tmp_path: Path) -> None:
    watch = watching(tmp_path, "a")
    now, held = 100.0, []
    for _ in range(7):
        tell(tmp_path, "x")
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(tmp_path / "other.sock"))
            other.listen()
            assert look(watch, (), now)
        (tmp_path / "other.sock").unlink()
        tell(tmp_path, "a")
        began = now
        while look(watch, (), now):
            now += 1
        held.append(now - began)
        now += 60
    assert held == [HOLD, 2 * HOLD, 4 * HOLD, 8 * HOLD, 16 * HOLD, 16 * HOLD, 16 * HOLD]


def test_streams_that_end_now_and_then_are_forgiven(tmp_path: Path) -> None:
    watch = watching(tmp_path, "a")
    for number in range(10):
        watch.lost_stream(number * LOSS_SECONDS / (MAX_LOSSES - 1))
        assert look(watch, (), number * LOSS_SECONDS / (MAX_LOSSES - 1)) == ""


def test_streams_that_end_again_and_again_are_not(tmp_path: Path) -> None:
    watch = watching(tmp_path, "a")
    for number in range(MAX_LOSSES):
        assert look(watch, (), 100.0 + number) == ""
        watch.lost_stream(100.0 + number)
    last = 100.0 + MAX_LOSSES - 1
    assert f"{MAX_LOSSES} times" in look(watch, (), last)
    assert look(watch, (), last + HOLD) == ""
    watch.lost_stream(last + HOLD + 1)
    assert look(watch, (), last + HOLD + HOLD + 2), "for twice as long"


def test_instances_of_one_owner_know_of_each_others_devices(tmp_path: Path, neighbour: socket.socket) -> None:
    old, new = watching(tmp_path, "a"), watching(tmp_path, "b")
    stranger = watching(tmp_path, "c", owner="another")
    for watch in (old, new, stranger):
        assert look(watch, (), 1.0) == ""
    tell(tmp_path, "b")
    assert look(old, (), 2.0) == ""
    assert "b as" in look(stranger, (), 2.0)
    # Also one that starts later, when what it knew is called otherwise.
    tell(tmp_path, "a", "b")
    assert look(watching(tmp_path, "d"), (), 3.0) == ""


def test_each_owner_has_files_of_its_own(tmp_path: Path) -> None:
    names = {state_file(tmp_path, RESOURCE, owner, kind).name for owner in ("", "x", "y") for kind in ("ids", "state")}
    assert len(names) == 6
    assert all(len(name) < 255 for name in names)
    assert len(state_file(tmp_path, "a" * 200 + "/" + "b" * 63, "o" * 253, "state").name) < 255


def test_ids_of_partitions_that_come_and_go_fill_no_disk(tmp_path: Path) -> None:
    own = OwnIds(tmp_path / "ids.json")
    for number in range(3):
        own.add(f"{number}-{each}" for each in range(MAX_IDS // 2))
    assert len(json.loads((tmp_path / "ids.json").read_text())) == MAX_IDS
    assert own.strange(["2-0", "1-0", "0-0"]) == ["0-0"]


@pytest.mark.parametrize("content", ["", "{", "null", "7", '{"a": 1}', '[1, null, "a"]'])
def test_a_file_of_ids_that_makes_no_sense_is_written_anew(tmp_path: Path, content: str) -> None:
    (tmp_path / "ids.json").write_text(content)
    own = OwnIds(tmp_path / "ids.json")
    own.add(["b"])
    assert own.strange(["b"]) == []
    assert "b" in json.loads((tmp_path / "ids.json").read_text())


def _told(value: Any) -> str:
    return json.dumps({"Data": {"RegisteredDevices": value}})


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "7", '{"Data": null}', '{"Data": {}}', '{"RegisteredDevices": {"example.com/npu": ["x"]}}',
     _told(None), _told([1]), _told({RESOURCE: None}), _told({RESOURCE: [{}]}), _told({RESOURCE: 7})],
)  # fmt: skip
def test_a_checkpoint_that_cannot_be_read_accuses_nobody(
    tmp_path: Path, neighbour: socket.socket, content: str
) -> None:
    (tmp_path / CHECKPOINT).write_text(content)
    watch = watching(tmp_path, "a")
    assert look(watch, (), 1.0) == ""
    tell(tmp_path, "x")
    assert look(watch, (), 20.0)
