"""The module for NVIDIA's GPUs with NVIDIA's own Python bindings, over a stand-in for the driver's library."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from rm_device_plugins.config import ConfigError
from rm_device_plugins.vendors.nvidia import NvidiaVendor
from vendor_process import VendorProcess, causes, make_node

A, B = "GPU-aaaaaaaa-0000-0000-0000-000000000000", "GPU-bbbbbbbb-0000-0000-0000-000000000000"
UNKNOWN = -1


class Driver:
    """The state that the stand-in shows."""

    def __init__(self, directory: Path) -> None:
        self.file, self.xids = directory / "nvml", directory / "xids"
        self.gpus = {A: ["1650001", 0, "00000000:3B:00.0", 0, 0], B: ["-", 1, "00000000:D8:00.0", 0, 0]}
        self.say()
        self.xids.write_text("")

    def say(self, uuid: str = "", *, action: int | None = None, lost: bool = False, init: int = 0) -> None:
        if uuid:
            self.gpus[uuid][4] = int(lost)
            if action is not None:
                self.gpus[uuid][3] = action
        lines = [" ".join(map(str, [name, *values])) for name, values in self.gpus.items()]
        self.file.write_text("\n".join([f"580.95.05 {init}", *lines]) + "\n")

    def xid(self, index: int, number: int) -> None:
        with self.xids.open("a") as file:
            file.write(f"{index} {number}\n")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).parent / "stand_ins" / "nvml.c"
    subprocess.run(
        ["gcc", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(directory / "libnvidia-ml.so.1"), str(source)],
        check=True,
    )
    return directory


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        make_node(tmp_path / "dev" / name)
    for bus, node in (("0000:3b:00.0", "0"), ("0000:d8:00.0", "1")):
        (tmp_path / "sys/bus/pci/devices" / bus).mkdir(parents=True)
        (tmp_path / "sys/bus/pci/devices" / bus / "numa_node").write_text(f"{node}\n")
    return Driver(tmp_path)


@pytest.fixture
def start(tmp_path: Path, library: Path, driver: Driver) -> Iterator[Callable[..., VendorProcess]]:
    with ExitStack() as running:

        def start(**settings: object) -> VendorProcess:
            roots = {"devRoot": str(tmp_path / "dev"), "sysRoot": str(tmp_path / "sys")}
            environment = {
                "LD_LIBRARY_PATH": str(library), "NVML_STAND_IN": str(driver.file),
                "NVML_STAND_IN_XIDS": str(driver.xids),
            }  # fmt: skip
            return running.enter_context(VendorProcess("nvidia", {**roots, **settings}, **environment))

        yield start


def test_gpus_are_found(start: Callable[..., VendorProcess], tmp_path: Path) -> None:
    found = start().discover()
    assert found.get("driver") == "580.95.05", found
    assert found["product"] == "NVIDIA H200"
    first, second = found["devices"]
    assert (first["id"], first["index"], first["serial"], first["numa_nodes"]) == (A, 0, "1650001", [0])
    assert (second["id"], second["index"], second["serial"], second["numa_nodes"]) == (B, 1, B, [1])
    assert [node["container_path"] for node in second["nodes"]] == ["/dev/nvidia1", "/dev/nvidiactl", "/dev/nvidia-uvm"]
    assert second["nodes"][0]["host_path"] == str(tmp_path / "dev/nvidia1")
    assert causes(found) == {A: "", B: ""}


def test_the_driver_asks_for_a_reset_and_later_does_not(start: Callable[..., VendorProcess], driver: Driver) -> None:
    vendor = start()
    vendor.discover()
    driver.xid(1, 79)
    driver.say(B, action=1)
    assert causes(vendor.discover()) == {A: "", B: "the driver asks for a reset of the GPU after XID 79"}
    driver.say(B, action=0)
    assert causes(vendor.discover()) == {A: "", B: ""}


@pytest.mark.parametrize(
    ("xid", "settings", "cause"),
    [
        (31, {}, ""),
        (48, {}, "XID 48: the GPU has to be reset; restart this plugin afterwards"),
        (61, {}, "XID 61"),
        (61, {"probationSeconds": 0}, ""),
        (48, {"probationSeconds": 0}, "XID 48: the GPU has to be reset; restart this plugin afterwards"),
        (61, {"ignoredXids": ["61"]}, ""),
    ],
)
def test_drivers_that_tell_of_trouble_by_xids_only(
    start: Callable[..., VendorProcess], driver: Driver, xid: int, settings: dict[str, object], cause: str
) -> None:
    driver.say(A, action=UNKNOWN)
    driver.say(B, action=UNKNOWN)
    vendor = start(**settings)
    vendor.discover()
    driver.xid(0, xid)
    assert causes(vendor.discover()) == {A: cause, B: ""}


def test_an_xid_that_needs_a_reset_is_not_hidden_by_a_later_one(
    start: Callable[..., VendorProcess], driver: Driver
) -> None:
    driver.say(A, action=UNKNOWN)
    vendor = start()
    vendor.discover()
    driver.xid(0, 79)
    driver.xid(0, 61)
    assert causes(vendor.discover())[A].startswith("XID 79: ")


def test_a_gpu_that_is_lost_is_unhealthy_and_the_others_are_not(
    start: Callable[..., VendorProcess], driver: Driver
) -> None:
    vendor = start()
    vendor.discover()
    driver.say(A, lost=True)
    assert causes(vendor.discover()) == {A: "NVML: GPU is lost", B: ""}
    driver.say(A, lost=False)
    assert causes(vendor.discover()) == {A: "", B: ""}


def test_a_gpu_that_never_said_who_it_is_makes_the_list_incomplete(
    start: Callable[..., VendorProcess], driver: Driver
) -> None:
    driver.say(A, lost=True)
    assert "GPU 0 cannot be identified: GPU is lost" in start().discover()["error"]


def test_a_device_node_that_is_missing(start: Callable[..., VendorProcess], tmp_path: Path) -> None:
    (tmp_path / "dev/nvidia1").unlink()
    assert causes(start().discover()) == {A: "", B: f"{tmp_path}/dev/nvidia1: No such file or directory"}


def test_without_a_driver_it_says_what_to_do_and_tries_again(
    start: Callable[..., VendorProcess], driver: Driver
) -> None:
    driver.say(init=9)
    vendor = start()
    assert "NVML cannot be started: Driver Not Loaded. The plugin's pod needs" in vendor.discover()["error"]
    driver.say()
    assert causes(vendor.discover()) == {A: "", B: ""}


@pytest.mark.parametrize(
    ("inject", "envs", "cdi"),
    [
        ("envvar", {"NVIDIA_VISIBLE_DEVICES": f"{A},{B}"}, []),
        ("cdi", {}, [f"nvidia.com/gpu={A}", f"nvidia.com/gpu={B}"]),
        ("none", {}, []),
    ],
)
def test_allocation(start: Callable[..., VendorProcess], inject: str, envs: dict[str, str], cdi: list[str]) -> None:
    answer = start(inject=inject).allocate(A, B)
    assert (answer["envs"], answer["cdi_devices"]) == (envs, cdi)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"inject": "magic"}, "inject is 'magic'; it must be one of envvar, cdi, none"),
        ({"ignoredXids": ["x"]}, "ignoredXids must be numbers in quotes"),
        ({"probation": 3}, "unknown setting probation"),
    ],
)
def test_settings_that_are_wrong(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        NvidiaVendor(settings)
