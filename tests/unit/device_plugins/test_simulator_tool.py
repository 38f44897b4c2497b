"""``rma-sim``: a host's directory of simulated NPUs, and the tool's answers."""

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from rm_device_plugins import simulator_tool

INIT = ("--devices", "2", "--product", "Simulated NPU X1", "--driver", "1.4.0")


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """As an image without our packages runs it: the file alone, without site-packages."""
    argv = [sys.executable, "-I", "-S", simulator_tool.__file__, *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def status(root: Path) -> dict[str, Any]:
    answer = run("status", "--json", "--driver-dir", root / "driver")
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)  # type: ignore[no-any-return]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "simulator"
    assert run("init", "--root", path, *INIT).returncode == 0
    return path


def node(root: Path, index: int) -> tuple[int, int, int]:
    found = (root / "dev" / f"npu{index}").stat()
    assert stat.S_ISCHR(found.st_mode)
    return os.major(found.st_rdev), os.minor(found.st_rdev), stat.S_IMODE(found.st_mode)


def test_init_makes_nodes_and_the_status_of_the_contract(root: Path) -> None:
    said = status(root)
    assert said == {
        "driver": "1.4.0",
        "firmware": "1.0.0",
        "product": "Simulated NPU X1",
        "devices": [
            {
                "index": index,
                "serial": f"SIMX1-000{index}",
                "uuid": said["devices"][index]["uuid"],
                "node": f"npu{index}",
                "major": 1,
                "minor": minor,
                "health": "ok",
                "numaNode": 0,
                "memoryMiB": 16384,
            }
            for index, minor in ((0, 3), (1, 5))
        ],
    }
    assert said["devices"][0]["uuid"] != said["devices"][1]["uuid"]
    assert [node(root, index) for index in (0, 1)] == [(1, 3, 0o666), (1, 5, 0o666)]


def test_every_node_can_be_opened_and_they_differ_in_turn(tmp_path: Path) -> None:
    simulator_tool.initialise(tmp_path / "s", 7, "P", "1", numa_nodes=2)
    assert [node(tmp_path / "s", index)[1] for index in range(7)] == [3, 5, 7, 8, 9, 3, 5]
    for index in range(7):
        os.close(os.open(tmp_path / "s" / "dev" / f"npu{index}", os.O_RDWR))
    numa = [device["numaNode"] for device in simulator_tool.read_status(tmp_path / "s" / "driver")["devices"]]
    assert numa == [0, 0, 0, 0, 1, 1, 1]


def test_init_keeps_what_is_there_and_adds_what_is_missing(root: Path) -> None:
    assert run("set", "--root", root, "--driver", "2.0", "--device", 0, "--health", "failed").returncode == 0
    assert run("set", "--root", root, "--remove-node", 1).returncode == 0
    before = status(root)
    written = (root / "driver" / "status.json").stat()
    assert run("init", "--root", root, *INIT).returncode == 0
    assert status(root) == before
    assert (root / "driver" / "status.json").stat().st_ino == written.st_ino, "nothing changed, nothing is written"
    assert not (root / "dev" / "npu1").exists()
    assert run("init", "--root", root, "--devices", 3, "--driver", "3.0", "--product", "Other").returncode == 0
    after = status(root)
    assert after["driver"] == "2.0"
    assert after["devices"][:2] == before["devices"]
    assert after["devices"][2]["serial"] == "SIMX1-0002"
    assert node(root, 2)[:2] == (1, 7)


@pytest.mark.parametrize(
    ("arguments", "member", "value"),
    [
        (("--driver", "1.5.0"), "driver", "1.5.0"),
        (("--firmware", "2.2"), "firmware", "2.2"),
    ],
)
def test_set_changes_what_is_named_and_nothing_else(
    root: Path, arguments: tuple[str, ...], member: str, value: str
) -> None:
    before = status(root)
    assert run("set", "--root", root, *arguments).returncode == 0
    assert status(root) == {**before, member: value}


def test_set_changes_one_device_and_another_serial_is_another_card(root: Path) -> None:
    before = status(root)["devices"]
    assert run("set", "--root", root, "--device", 1, "--health", "failed", "--serial", "X-9").returncode == 0
    after = status(root)["devices"]
    assert after[0] == before[0]
    assert (after[1]["health"], after[1]["serial"]) == ("failed", "X-9")
    assert after[1]["uuid"] != before[1]["uuid"]
    assert run("set", "--root", root, "--device", 1, "--health", "ok", "--serial", "SIMX1-0001").returncode == 0
    assert status(root)["devices"] == before


def test_a_node_goes_and_comes_back_as_it_was(root: Path) -> None:
    assert run("set", "--root", root, "--remove-node", 1).returncode == 0
    assert not (root / "dev" / "npu1").exists()
    assert status(root)["devices"][1]["health"] == "ok"
    assert run("set", "--root", root, "--restore-node", 1).returncode == 0
    assert node(root, 1) == (1, 5, 0o666)


def test_a_reader_of_the_mounted_directory_never_sees_half_a_status(root: Path) -> None:
    stop = threading.Event()

    def change() -> None:
        for number in range(100):
            simulator_tool.change(root, driver=f"{number}" * 50)
        stop.set()

    writer = threading.Thread(target=change)
    writer.start()
    drivers = set()
    while not stop.is_set():
        drivers.add(simulator_tool.read_status(root / "driver")["driver"])
    writer.join()
    assert len(drivers) > 1
    assert os.listdir(root / "driver") == ["status.json"]


def test_simultaneous_changes_are_all_kept(root: Path) -> None:
    simulator_tool.initialise(root, 8, "Simulated NPU X1", "1")
    changes = [
        threading.Thread(target=simulator_tool.change, args=(root,), kwargs={"device": i, "serial": f"S{i}"})
        for i in range(8)
    ]
    for each in changes:
        each.start()
    for each in changes:
        each.join()
    assert [device["serial"] for device in status(root)["devices"]] == [f"S{i}" for i in range(8)]


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "does not exist"), ("{", "cannot be read"), ("[]", "is not a driver status"), ("{}", "not a driver")],
)
def test_no_driver_is_exit_1_with_the_reason(tmp_path: Path, content: str | None, says: str) -> None:
    if content is not None:
        (tmp_path / "status.json").write_text(content)
    answer = run("status", "--json", "--driver-dir", tmp_path)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert "no driver" in answer.stderr
    assert says in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--health", "failed"), "need --device"),
        (("--watts", "5"), "need --device"),
        (("--device", "7", "--health", "ok"), "there is no device 7; there are [0, 1]"),
        (("--remove-node", "9"), "there is no device 9"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused(root: Path, arguments: tuple[str, ...], says: str) -> None:
    before = status(root)
    answer = run("set", "--root", root, *arguments)
    assert answer.returncode == 1
    assert says in answer.stderr
    assert status(root) == before


def test_a_device_can_be_given_a_failure_and_a_power_and_keeps_the_rest(root: Path) -> None:
    before = status(root)["devices"]
    assert run("set", "--root", root, "--device", 1, "--failure", "Dead", "--watts", 61.5).returncode == 0
    first, second = status(root)["devices"]
    assert (first, second) == (before[0], {**before[1], "failure": "Dead", "watts": 61.5})
    assert run("set", "--root", root, "--device", 1, "--failure", "Broken").returncode == 2


def test_set_and_init_refuse_what_is_no_directory_of_ours(tmp_path: Path, root: Path) -> None:
    answer = run("set", "--root", tmp_path / "none", "--driver", "1")
    assert answer.returncode == 1
    assert "rma-sim init" in answer.stderr
    (root / "dev" / "npu2").write_text("in the way")
    answer = run("init", "--root", root, "--devices", 3)
    assert answer.returncode == 1
    assert "npu2 exists and is not the device 1:7" in answer.stderr


def test_without_json_it_is_a_table_for_people(root: Path) -> None:
    answer = run("status", "--driver-dir", root / "driver")
    assert "Simulated NPU X1  driver 1.4.0" in answer.stdout
    assert "SIMX1-0001" in answer.stdout
