"""The simulated NPU's fault hook: each action changes what the status tool says, and its opposite takes that back."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rm_device_plugins import simulator_faults, simulator_tool
from rm_device_plugins.conformance.faults import ACTIONS, NOT_OFFERED

Devices = dict[str, dict[str, Any]]
FOR_NO_SIMULATOR = {"allocate-hang", "allocate-ok", "reload"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    simulator_tool.initialise(tmp_path, 3, "Simulated NPU X1", "1.4.0")
    return tmp_path


def tool(root: Path, seconds: float = 60) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, simulator_tool.__file__, "status", "--json", "--driver-dir", str(root / "driver")]
    return subprocess.run(argv, capture_output=True, text=True, timeout=seconds, check=False)


def listed(root: Path) -> Devices:
    return {device["uuid"]: device for device in json.loads(tool(root).stdout)["devices"]}


def hook(root: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "rm_device_plugins.simulator_faults", "--root", str(root), *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("action", "opposite", "holds"),
    [
        ("fail", "recover", lambda devices, uuid: devices[uuid]["health"] == "failed"),
        ("busy", "idle", lambda devices, uuid: devices[uuid].get("inUse") is True and devices[uuid]["health"] == "ok"),
        ("remove", "add", lambda devices, uuid: uuid not in devices and len(devices) == 2),
        ("tool-partial", "tool-ok", lambda devices, uuid: uuid not in devices and len(devices) == 2),
        ("no-devices", "all-devices", lambda devices, uuid: not devices),
    ],
)
def test_what_the_tool_lists_changes_and_changes_back(
    root: Path, action: str, opposite: str, holds: Callable[[Devices, str], bool]
) -> None:
    before = listed(root)
    uuid = list(before)[1]
    simulator_faults.inject(root, action, uuid)
    assert holds(listed(root), uuid)
    simulator_tool.initialise(root, 3, "Simulated NPU X1", "1.4.0")
    assert holds(listed(root), uuid), "a plugin that starts now does not repair what is broken"
    simulator_faults.inject(root, opposite, uuid)
    after = listed(root)
    assert list(after) == list(before)
    assert {uuid: {**device, "inUse": False} for uuid, device in before.items()} == {
        uuid: {**device, "inUse": False} for uuid, device in after.items()
    }


def test_a_device_file_goes_and_comes_back_as_it_was(root: Path) -> None:
    (uuid, device), *_ = listed(root).items()
    node = root / "dev" / device["node"]
    before = node.stat()
    simulator_faults.inject(root, "node-remove", uuid)
    assert not node.exists()
    simulator_faults.inject(root, "node-restore", uuid)
    assert (node.stat().st_rdev, node.stat().st_mode) == (before.st_rdev, before.st_mode)


def test_a_tool_fails_or_says_half_of_it_or_hangs_until_it_is_well(root: Path) -> None:
    simulator_faults.inject(root, "tool-fail")
    failed = tool(root)
    assert (failed.returncode, failed.stdout, failed.stderr) == (1, "", "rma-sim: the driver does not answer\n")
    simulator_faults.inject(root, "tool-garbage")
    cut = tool(root)
    assert cut.returncode == 0
    with pytest.raises(ValueError, match=r"line 1 column"):
        json.loads(cut.stdout)
    simulator_faults.inject(root, "tool-hang")
    with pytest.raises(subprocess.TimeoutExpired):
        tool(root, seconds=3)
    simulator_faults.inject(root, "tool-ok")
    assert len(listed(root)) == 3


def test_it_offers_what_the_suite_may_ask_for_and_refuses_the_rest(root: Path) -> None:
    assert ACTIONS.keys() - set(simulator_faults.OFFERED) == FOR_NO_SIMULATOR
    assert set(simulator_faults.OFFERED) <= ACTIONS.keys()
    refused = hook(root, "reload")
    assert refused.returncode == NOT_OFFERED == simulator_faults.NOT_OFFERED
    assert "'reload' is not offered; there are fail" in refused.stderr
    unknown = hook(root, "fail", "no-such-device")
    assert unknown.returncode == 1
    assert "no device 'no-such-device'" in unknown.stderr
    nowhere = hook(root / "nowhere", "tool-ok")
    assert nowhere.returncode == 1
    assert "rma-sim init" in nowhere.stderr
