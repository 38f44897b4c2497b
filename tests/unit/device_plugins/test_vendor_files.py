"""The modules that look at device files and sysfs alone: generic, and UPMEM's."""

from pathlib import Path

import pytest
from rm_device_plugins.config import ConfigError
from rm_device_plugins.vendor import Discovery
from rm_device_plugins.vendors.generic import GenericVendor
from rm_device_plugins.vendors.upmem import UpmemVendor
from vendor_process import make_node

# Generic


def test_each_path_that_matches_is_a_device(tmp_path: Path) -> None:
    for name in ("accel10", "accel2", "control"):
        make_node(tmp_path / "dev" / name)
    vendor = GenericVendor(
        {"match": [f"{tmp_path}/dev/accel*"], "nodes": [f"{tmp_path}/dev/control"], "product": "Acme A1"}
    )
    found = vendor._discover()
    assert {device.index for device in found.devices} == {2, 10}
    assert {device.product for device in found.devices} == {"Acme A1"}
    assert all(len(device.nodes) == 2 and not device.cause for device in found.devices)
    found.check()


async def test_none_at_all_is_no_failure(tmp_path: Path) -> None:
    assert await GenericVendor({"match": [f"{tmp_path}/none*"]}).discover() == Discovery((), product="generic")


def test_a_link_gives_the_id_and_the_node_behind_it_the_device(tmp_path: Path) -> None:
    node = make_node(tmp_path / "dev/video7")
    link = tmp_path / "dev/by-id/usb-Acme_0001"
    link.parent.mkdir()
    link.symlink_to(node)
    (device,) = GenericVendor({"match": [str(link), f"{tmp_path}/dev/by-id/*"]})._discover().devices
    assert device.serial == str(link).strip("/")
    assert (device.index, device.nodes[0].host_path, device.nodes[0].container_path) == (7, str(node), str(link))


def test_a_serial_is_the_id_wherever_the_device_turns_up(tmp_path: Path) -> None:
    def discover(number: int) -> str:
        node = make_node(tmp_path / f"dev/accel{number}")
        file = tmp_path / f"sys/accel{number}/serial"
        file.parent.mkdir(parents=True)
        file.write_text("SN 42/7\n")
        settings = {"match": [f"{tmp_path}/dev/accel*"], "serialFile": f"{tmp_path}/sys/{{name}}/serial"}
        (device,) = GenericVendor(settings)._discover().devices
        node.unlink()
        return device.id

    assert discover(0) == discover(5)


def test_health_and_numa_node_are_read(tmp_path: Path) -> None:
    for number, state in enumerate(("ok", "warm", "broken")):
        make_node(tmp_path / f"dev/accel{number}")
        (tmp_path / f"sys/accel{number}").mkdir(parents=True)
        (tmp_path / f"sys/accel{number}/state").write_text(state)
        (tmp_path / f"sys/accel{number}/numa").write_text("1" if number else "-1")
    found = GenericVendor(
        {
            "match": [f"{tmp_path}/dev/accel*"], "healthFile": f"{tmp_path}/sys/{{name}}/state",
            "healthy": ["ok", "warm"], "numaFile": f"{tmp_path}/sys/{{name}}/numa",
        }
    )._discover()  # fmt: skip
    assert [device.cause for device in found.devices] == ["", "", f"{tmp_path}/sys/accel2/state says 'broken'"]
    assert [device.numa_nodes for device in found.devices] == [(), (1,), (1,)]


def test_what_helps_is_what_the_configuration_says_of_the_files_content(tmp_path: Path) -> None:
    for number, state in enumerate(("ok", "warm", "hung", "burnt", "odd")):
        make_node(tmp_path / f"dev/accel{number}")
        (tmp_path / f"sys/accel{number}").mkdir(parents=True)
        (tmp_path / f"sys/accel{number}/state").write_text(state)
        (tmp_path / f"sys/accel{number}/fw").write_text("2.7\n")
    found = GenericVendor(
        {
            "match": [f"{tmp_path}/dev/accel*"], "healthFile": f"{tmp_path}/sys/{{name}}/state", "healthy": ["ok"],
            "transient": ["warm"], "needsReset": ["hung"], "dead": ["burnt"],
            "firmwareFile": f"{tmp_path}/sys/{{name}}/fw",
        }
    )._discover()  # fmt: skip
    helps = [device.failure.value for device in found.devices if device.cause]
    assert helps == ["Transient", "NeedsReset", "Dead", "Unknown"]
    assert (found.firmware, found.devices[0].firmware) == ("2.7", "2.7")


def test_what_is_no_device_node_is_unhealthy(tmp_path: Path) -> None:
    (tmp_path / "accel0").write_text("a file")
    (device,) = GenericVendor({"match": [f"{tmp_path}/accel*"]})._discover().devices
    assert device.cause == f"{tmp_path}/accel0 is no character device"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "the setting match is missing"),
        ({"match": []}, "match must name at least one pattern"),
        ({"match": ["dev/x"]}, "'dev/x' is no absolute path"),
        ({"match": ["/dev/x"], "nodes": ["y"]}, "'y' is no absolute path"),
        ({"match": ["/dev/x"], "healthFile": "/f"}, "belong together"),
        ({"match": ["/dev/x"], "dead": ["x"]}, "transient, needsReset and dead are contents of healthFile"),
        (
            {"match": ["/dev/x"], "healthFile": "/f", "healthy": ["ok"], "dead": ["x"], "transient": ["x"]},
            "'x' is said to mean two things",
        ),
    ],
)
def test_generic_settings_that_are_wrong(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        GenericVendor(settings)


# UPMEM


def rank(root: Path, number: int, module: str, place: int, numa: str | None = None) -> Path:
    directory = root / f"sys/class/dpu_rank/dpu_rank{number}"
    (directory / "device").mkdir(parents=True)
    values = {"serial_number": module, "rank_index": str(place), "is_owned": "0", "usage_count": "0", "channel_id": "1"}
    for name, value in values.items():
        (directory / name).write_text(f"{value}\n")
    if numa is not None:
        (directory / "device/numa_node").write_text(f"{numa}\n")
    return directory


def upmem(root: Path) -> UpmemVendor:
    return UpmemVendor({"sysRoot": str(root / "sys"), "devRoot": str(root / "dev")})


async def test_ranks_are_found(tmp_path: Path) -> None:
    for number in (0, 1, 10):
        make_node(tmp_path / f"dev/dpu_rank{number}")
    make_node(tmp_path / "dev/dax0.0")
    rank(tmp_path, 0, "D1", 0, "0")
    rank(tmp_path, 1, "D1", 1, "0")
    rank(tmp_path, 10, "D2", 0)
    version = tmp_path / "sys/module/dpu/version"
    version.parent.mkdir(parents=True)
    version.write_text("2025.1.0\n")
    found = await upmem(tmp_path).discover()
    assert found.driver == "2025.1.0"
    assert [(device.id, device.index, device.group) for device in found.devices] == [
        ("D1-0", 0, "D1"), ("D1-1", 1, "D1"), ("D2-0", 10, "D2"),
    ]  # fmt: skip
    assert [node.container_path for node in found.devices[0].nodes] == ["/dev/dpu_rank0", "/dev/dax0.0"]
    assert [device.numa_nodes for device in found.devices] == [(0,), (0,), ()]
    assert not any(device.cause for device in found.devices)
    found.check()


@pytest.mark.parametrize(
    ("owned", "count", "use"),
    [
        ("0", "0", ""),
        ("1", "1", "a program that owns the rank (usage count 1)"),
        ("1", "", "a program that owns the rank (usage count not known)"),
        ("", "", ""),
    ],
)
async def test_a_rank_in_use_is_well(tmp_path: Path, owned: str, count: str, use: str) -> None:
    make_node(tmp_path / "dev/dpu_rank0")
    directory = rank(tmp_path, 0, "D1", 0)
    (directory / "is_owned").write_text(f"{owned}\n")
    (directory / "usage_count").write_text(f"{count}\n")
    (device,) = (await upmem(tmp_path).discover()).devices
    assert (device.cause, device.out_of_band) == ("", use)


async def test_a_driver_that_does_not_tell_of_owners(tmp_path: Path) -> None:
    make_node(tmp_path / "dev/dpu_rank0")
    (rank(tmp_path, 0, "D1", 0) / "is_owned").unlink()
    (device,) = (await upmem(tmp_path).discover()).devices
    assert (device.cause, device.out_of_band) == ("", "")


async def test_a_rank_without_its_node_is_unhealthy_alone(tmp_path: Path) -> None:
    make_node(tmp_path / "dev/dpu_rank1")
    rank(tmp_path, 0, "D1", 0)
    rank(tmp_path, 1, "D1", 1)
    found = await upmem(tmp_path).discover()
    missing = f"{tmp_path}/dev/dpu_rank0: No such file or directory"
    assert [device.cause for device in found.devices] == [missing, ""]


async def test_a_node_without_such_memory(tmp_path: Path) -> None:
    assert (await upmem(tmp_path).discover()).devices == ()
