"""MIG: which instances are devices, what a container needs for one, and whose trouble is whose."""

from collections.abc import Callable
from typing import Any

import pytest
from nvml_driver import UNKNOWN, A, B, Driver
from vendor_process import VendorProcess, make_node, troubles

SMALL = [f"MIG-aaaa000{place}-0000-0000-0000-000000000000" for place in range(2)]
BIG = "MIG-aaaa0009-0000-0000-0000-000000000000"
OTHER = "MIG-bbbb0000-0000-0000-0000-000000000000"

A_CUT = [
    "mig 0 1",
    f"part 0 {SMALL[0]} 0 7 0 1g.18gb",
    f"part 0 {SMALL[1]} 1 8 0 1g.18gb+me",
    f"part 0 {BIG} 2 1 0 3g.71gb",
]
B_CUT = ["mig 1 1", f"part 1 {OTHER} 0 9 0 1g.18gb"]


@pytest.fixture
def capabilities(driver: Driver) -> Driver:
    """The files that NVIDIA's driver shows of MIG, beside the facts of NVML."""
    minors = {"config": 1, "monitor": 2}
    for gpu, instances in ((0, (1, 7, 8)), (1, (9,))):
        for instance in instances:
            for name in (f"gpu{gpu}/gi{instance}/access", f"gpu{gpu}/gi{instance}/ci0/access"):
                minors[name] = len(minors) + 1
    file = driver.directory / "proc/driver/nvidia-caps/mig-minors"
    file.parent.mkdir(parents=True)
    file.write_text("".join(f"{name} {minor}\n" for name, minor in minors.items()))
    for minor in minors.values():
        make_node(driver.directory / f"dev/nvidia-caps/nvidia-cap{minor}")
    return driver


def ids(answer: dict[str, Any]) -> list[str]:
    assert "devices" in answer, answer
    return [device["id"] for device in answer["devices"]]


@pytest.mark.parametrize(
    ("settings", "facts", "devices"),
    [
        ({}, A_CUT, [A, B]),
        ({"mig": "none"}, A_CUT, [A, B]),
        ({"mig": "single"}, [], [A, B]),
        ({"mig": "single"}, ["mig 0 0", "mig 1 0"], [A, B]),
        ({"mig": "single"}, [A_CUT[0], A_CUT[1], *B_CUT], [SMALL[0], OTHER]),
        ({"mig": "mixed"}, A_CUT, [B]),
        ({"mig": "mixed"}, [*A_CUT, *B_CUT], []),
        ({"mig": "mixed", "migProfile": "1g.18gb"}, [*A_CUT, *B_CUT], [SMALL[0], OTHER]),
        ({"mig": "mixed", "migProfile": "1g.18gb+me"}, A_CUT, [SMALL[1]]),
        ({"mig": "mixed", "migProfile": "1g.18gb.me"}, A_CUT, [SMALL[1]]),
        ({"mig": "mixed", "migProfile": "3g.71gb"}, A_CUT, [BIG]),
        ({"mig": "mixed", "migProfile": "7g.141gb"}, A_CUT, []),
        ({"mig": "mixed", "migProfile": "1g.18gb"}, [], []),
    ],
)
def test_which_instances_are_devices(
    start: Callable[..., VendorProcess],
    capabilities: Driver,
    settings: dict[str, str],
    facts: list[str],
    devices: list[str],
) -> None:
    capabilities.more(*facts)
    found = start(**settings).discover()
    assert ids(found) == devices
    assert (troubles(found), found["parents"]) == ({}, {})


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        (A_CUT[:2], "mig is single, and GPU 1 is not cut while GPU 0 is: cut all of them in the same way, or set mig"),
        ([*A_CUT, *B_CUT], "mig is single, and there are instances of 1g.18gb and 1g.18gb.me and 3g.71gb: "),
        ([*B_CUT, "mig 0 1"], "mig is single, and GPU 0 has MIG on and no instances: "),
    ],
)
def test_gpus_that_are_not_cut_alike_cannot_be_one_resource(
    start: Callable[..., VendorProcess], capabilities: Driver, facts: list[str], says: str
) -> None:
    capabilities.more(*facts)
    assert says in start(mig="single").discover()["error"]


def test_an_instance_that_does_not_tell_its_profile_is_told_of(
    start: Callable[..., VendorProcess], capabilities: Driver
) -> None:
    capabilities.more("mig 0 1", f"part 0 {SMALL[0]} 0 7 0 -")
    answer = start(mig="mixed", migProfile="1g.18gb").discover()
    assert f"the MIG device {SMALL[0]} is called 'NVIDIA H200', which tells no profile" in answer["error"]


def test_what_a_container_gets_for_an_instance(start: Callable[..., VendorProcess], capabilities: Driver) -> None:
    capabilities.more(*A_CUT)
    vendor = start(mig="mixed", migProfile="1g.18gb+me")
    found = vendor.discover()
    assert (found["driver"], found["sdk"], found["product"]) == ("580.95.05", "13.1", "NVIDIA H200 MIG 1g.18gb+me")
    (part,) = found["devices"]
    assert (part["id"], part["index"], part["serial"]) == (SMALL[1], 1, "1650001-gi8-ci0")
    assert (part["parent"], part["group"], part["numa_nodes"]) == (A, A, [0])
    assert [node["container_path"] for node in part["nodes"]] == [
        "/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm",
        "/dev/nvidia-caps/nvidia-cap7", "/dev/nvidia-caps/nvidia-cap8",
    ]  # fmt: skip
    assert vendor.allocate(SMALL[1])["envs"] == {"NVIDIA_VISIBLE_DEVICES": SMALL[1]}


def test_an_instance_without_its_files_is_unhealthy_alone(
    start: Callable[..., VendorProcess], capabilities: Driver
) -> None:
    capabilities.more(*A_CUT[:2], *B_CUT)
    (capabilities.directory / "dev/nvidia-caps/nvidia-cap9").unlink()
    vendor = start(mig="single")
    missing = f"{capabilities.directory}/dev/nvidia-caps/nvidia-cap9: No such file or directory"
    assert troubles(vendor.discover()) == {OTHER: (missing, "Unknown")}
    minors = capabilities.directory / "proc/driver/nvidia-caps/mig-minors"
    minors.write_text("config 1\n")
    found = troubles(vendor.discover())
    assert found[SMALL[0]] == (f"{minors} does not have gpu0/gi7/access", "Unknown")


def test_what_is_wrong_with_the_gpu_is_wrong_with_its_instances(
    start: Callable[..., VendorProcess], capabilities: Driver
) -> None:
    capabilities.more(*A_CUT[:2], *B_CUT)
    vendor = start(mig="single")
    vendor.discover()
    capabilities.say(A, action=1)
    found = vendor.discover()
    assert ids(found) == [SMALL[0], OTHER]
    assert found["parents"] == {A: {"cause": "the driver asks for a reset of the GPU", "failure": "NeedsReset"}}


def test_instances_of_a_gpu_that_is_lost_are_still_known(
    start: Callable[..., VendorProcess], capabilities: Driver
) -> None:
    capabilities.more(*A_CUT[:2], *B_CUT)
    vendor = start(mig="single")
    vendor.discover()
    capabilities.say(A, lost=True)
    found = vendor.discover()
    assert (ids(found), troubles(found)) == ([SMALL[0], OTHER], {})
    assert found["parents"] == {A: {"cause": "NVML: GPU is lost", "failure": "NeedsReset"}}
    capabilities.say(A, lost=False)
    assert vendor.discover()["parents"] == {}


def test_an_xid_of_an_instance_is_that_instances(start: Callable[..., VendorProcess], capabilities: Driver) -> None:
    for uuid in (A, B):
        capabilities.say(uuid, action=UNKNOWN)
    capabilities.more(*A_CUT)
    vendor = start(mig="mixed", migProfile="1g.18gb")
    whole = start(mig="none")
    vendor.discover()
    whole.discover()
    capabilities.xid(0, 94, instance=8)
    assert troubles(vendor.discover()) == {}, "it is that of an instance of another kind"
    capabilities.xid(0, 94, instance=7)
    found = vendor.discover()
    assert (troubles(found), found["parents"]) == ({SMALL[0]: ("XID 94", "Transient")}, {})
    assert troubles(whole.discover()) == {A: ("XID 94", "Transient")}
    capabilities.xid(0, 79)
    assert vendor.discover()["parents"][A]["failure"] == "NeedsReset"


def test_processes_are_told_of_the_instance_that_they_use(
    start: Callable[..., VendorProcess], capabilities: Driver
) -> None:
    capabilities.more(*A_CUT[:2], *B_CUT, f"process {OTHER} 77", "process 0 5")
    found = start(mig="single").discover()
    assert [device["out_of_band"] for device in found["devices"]] == ["", "process 77"]
