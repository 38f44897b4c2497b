"""The module for Rebellions' NPUs, over a stand-in for `rbln-smi` that keeps groups as the vendor documents it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rm_device_plugins.config import ConfigError
from rm_device_plugins.vendors.rebellions import RebellionsVendor
from vendor_process import VendorProcess, causes, make_node, troubles

STAND_IN = Path(__file__).parent / "stand_ins/rbln_smi.py"


class Host:
    def __init__(self, directory: Path, count: int = 4) -> None:
        self.directory = directory
        self.state = directory / "rbln-smi.json"
        self.tool = directory / "rbln-smi"
        self.tool.write_text(f"#!{sys.executable}\n{STAND_IN.read_text()}")
        self.tool.chmod(0o755)
        devices = []
        for index in range(count):
            devices.append(
                {
                    "group_id": 0, "npu": str(index), "name": "RBLN-CA25", "sid": f"CARD{index // 2}",
                    "uuid": f"uuid-{index}", "device": f"rbln{index}", "status": "normal", "fw_ver": "1.0",
                    "pci": {"dev": "0x1250", "bus_id": f"0000:0{index}:00.0", "numa_node": str(index // 2)},
                    "memory": {"used": "0", "total": "16877879296"},
                }
            )  # fmt: skip
            make_node(directory / f"dev/rbln{index}")
            make_node(directory / f"dev/rsd{index + 1}")
            self.status(index, "READY")
        self.write(devices=devices)

    def write(self, **state: Any) -> None:
        self.state.write_text(json.dumps(state))

    def status(self, index: int, text: str) -> None:
        file = self.directory / f"sys/class/rebellions/rbln{index}/status"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def groups(self) -> dict[int, int]:
        return {int(d["npu"]): int(d["group_id"]) for d in json.loads(self.state.read_text())["devices"]}

    def vendor(self, **settings: object) -> VendorProcess:
        return VendorProcess(
            "rebellions",
            {
                "statusTool": [str(self.tool)], "sysRoot": str(self.directory / "sys"),
                "devRoot": str(self.directory / "dev"), "groupLock": str(self.directory / "lock"), **settings,
            },
        )  # fmt: skip


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_devices_are_found(host: Host) -> None:
    with host.vendor() as vendor:
        found = vendor.discover()
    assert (found["driver"], found["product"]) == ("2.0.1", "RBLN-CA25")
    last = found["devices"][3]
    assert (last["id"], last["index"], last["serial"], last["numa_nodes"]) == ("uuid-3", 3, "CARD1", [1])
    assert (found["firmware"], last["firmware"], last["out_of_band"]) == ("1.0", "1.0", "")
    assert (last["group"], last["nodes"][0]["container_path"]) == ("CARD1", "/dev/rbln3")
    assert set(causes(found).values()) == {""}


@pytest.mark.parametrize(
    ("status", "failure"),
    [
        ("READY", ""), ("1 BUSY", ""), ("0", ""), ("1", ""),
        ("INIT", "Transient"), ("PROBING", "Transient"), ("4 FINISH", "Transient"),
        ("2", "Unknown"), ("3 FAULT", "Unknown"), ("3", "Unknown"), ("", "Unknown"),
    ],
)  # fmt: skip
def test_what_the_driver_says_of_a_device(host: Host, status: str, failure: str) -> None:
    host.status(1, status)
    with host.vendor() as vendor:
        found = troubles(vendor.discover())
    said = f"the driver reports its state as {status or 'nothing'}"
    assert found == ({"uuid-1": (said, failure)} if failure else {})


def uses(vendor: VendorProcess) -> list[str]:
    return [device["out_of_band"] for device in vendor.discover()["devices"]]


def test_a_device_that_computes_is_in_use_and_so_is_all_of_its_group(host: Host) -> None:
    with host.vendor() as vendor:
        vendor.allocate("uuid-0", "uuid-1")
        assert uses(vendor) == ["", "", "", ""], "a group alone computes nothing"
        host.status(0, "BUSY")
        host.status(3, "1 BUSY")
        group = "RSD group 1, of which 0 is BUSY"
        assert uses(vendor) == [group, group, "", "the driver reports it as BUSY"]


def test_groups_that_cannot_be_asked_for_make_nobody_sick(host: Host) -> None:
    tool = host.tool.read_text()
    host.tool.write_text(tool.replace("import json, sys", "import json, sys\nif '-g' in sys.argv: sys.exit('too old')"))
    host.status(0, "BUSY")
    with host.vendor() as vendor:
        found = vendor.discover()
    assert troubles(found) == {}
    assert found["devices"][0]["out_of_band"] == "the driver reports it as BUSY"


def test_a_state_that_cannot_be_read_is_not_taken_for_well(host: Host) -> None:
    (host.directory / "sys/class/rebellions/rbln0/status").unlink()
    with host.vendor() as vendor:
        assert causes(vendor.discover())["uuid-0"].endswith("status: No such file or directory")


@pytest.mark.parametrize(
    ("said", "watts"),
    [
        (["58.4W", "58.4W", "61W", "61W"], {"uuid-0": 29.2, "uuid-1": 29.2, "uuid-2": 30.5, "uuid-3": 30.5}),
        (["20W/150W", "N/A", "", "12 W"], {"uuid-0": 10.0, "uuid-3": 6.0}),
        ([], {}),
    ],
)
def test_power_is_the_cards_and_its_devices_share_it(host: Host, said: list[str], watts: dict[str, float]) -> None:
    devices = json.loads(host.state.read_text())["devices"]
    for raw, power in zip(devices, said, strict=False):
        raw["card_power"] = power
    host.write(devices=devices)
    with host.vendor() as vendor:
        assert vendor.power() == watts


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"answer": "Segmentation fault", "code": 139}, "rbln-smi ended with 139: Segmentation fault"),
        ({"answer": "{"}, "is no JSON"),
        ({"answer": "[]"}, "is no object"),
        ({"answer": '{"devices": []}'}, "makes no sense: KeyError('KMD_version')"),
        ({"answer": '{"KMD_version": "1", "devices": [{"npu": "x"}]}'}, "makes no sense"),
    ],
)
def test_a_tool_that_fails_or_answers_nonsense(host: Host, state: dict[str, Any], says: str) -> None:
    host.write(**state)
    with host.vendor() as vendor:
        assert says in vendor.discover()["error"]


def test_one_device_needs_no_group(host: Host) -> None:
    with host.vendor(cdiDevice="rebellions.ai/npu=runtime") as vendor:
        answer = vendor.allocate("uuid-2")
    assert answer["envs"] == {"RBLN_VISIBLE_DEVICES": "2"}
    assert (answer["nodes"], answer["cdi_devices"]) == ([], ["rebellions.ai/npu=runtime"])
    assert set(host.groups().values()) == {0}


def test_several_devices_become_one_group_and_stay_it(host: Host) -> None:
    with host.vendor() as vendor:
        first = vendor.allocate("uuid-0", "uuid-1")
        again = vendor.allocate("uuid-0", "uuid-1")
        other = vendor.allocate("uuid-2", "uuid-3")
    assert "error" not in other, other
    assert first == again
    assert first["nodes"][0]["host_path"] == str(host.directory / "dev/rsd1")
    assert first["nodes"][0]["container_path"] == other["nodes"][0]["container_path"] == "/dev/rsd0"
    assert other["nodes"][0]["host_path"] == str(host.directory / "dev/rsd2")
    assert host.groups() == {0: 1, 1: 1, 2: 2, 3: 2}


def test_groups_that_nobody_needs_any_more_are_taken_apart(host: Host) -> None:
    with host.vendor() as vendor:
        vendor.allocate("uuid-0", "uuid-1")
        vendor.allocate("uuid-2", "uuid-3")
        vendor.allocate("uuid-0", "uuid-1", "uuid-2", "uuid-3")
    assert host.groups() == {0: 1, 1: 1, 2: 1, 3: 1}


def test_a_group_that_others_are_part_of_is_left_alone(host: Host) -> None:
    with host.vendor() as vendor:
        vendor.allocate("uuid-0", "uuid-1")
        refused = "RSD group 1 also has the devices [0], and a pod may have them"
        assert refused in vendor.allocate("uuid-1", "uuid-2")["error"], "nobody knows"
        vendor.held("uuid-0")
        assert refused in vendor.allocate("uuid-1", "uuid-2")["error"], "a pod has one of them"
        vendor.allocate("uuid-1")
    assert host.groups() == {0: 1, 1: 1, 2: 0, 3: 0}


def test_a_group_that_an_ended_pod_left_is_taken_apart(host: Host) -> None:
    with host.vendor() as vendor:
        vendor.allocate("uuid-0", "uuid-1", "uuid-2")
        vendor.held("uuid-3")
        assert "error" not in vendor.allocate("uuid-1", "uuid-2")
    assert host.groups() == {0: 0, 1: 1, 2: 1, 3: 0}


def test_one_device_leaves_the_group_of_an_ended_pod(host: Host) -> None:
    with host.vendor() as vendor:
        vendor.allocate("uuid-0", "uuid-1")
        vendor.held()
        assert vendor.allocate("uuid-1")["nodes"] == []
        assert set(host.groups().values()) == {0}
        vendor.held("uuid-1")
        assert "error" not in vendor.allocate("uuid-0", "uuid-2")
    assert host.groups() == {0: 1, 1: 0, 2: 1, 3: 0}


def test_one_device_is_given_also_where_the_tool_knows_no_groups(host: Host) -> None:
    tool = host.tool.read_text()
    host.tool.write_text(tool.replace("import json, sys", "import json, sys\nif '-g' in sys.argv: sys.exit('too old')"))
    with host.vendor() as vendor:
        assert vendor.allocate("uuid-1")["envs"] == {"RBLN_VISIBLE_DEVICES": "1"}


def test_a_tool_must_be_named() -> None:
    with pytest.raises(ConfigError, match="statusTool must name a command"):
        RebellionsVendor({"statusTool": []})
