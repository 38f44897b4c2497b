"""The module for FuriosaAI's NPUs: with the vendor's own library, which finds none here, and over a stand-in for it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vendor_process import VendorProcess, causes, make_node, troubles


def test_the_vendors_library_without_devices() -> None:
    with VendorProcess("furiosa", {}) as vendor:
        found = vendor.discover()
    assert (found.get("devices"), found.get("driver"), found.get("parents")) == ([], "", {}), found


def npu(tmp_path: Path, index: int, **state: Any) -> dict[str, Any]:
    info = {
        "uuid": f"A76AAD68-6855-40B1-9E86-D080852D1C8{index}", "index": index, "serial": f"RNGD000{index}",
        "name": "RNGD", "numa_node": index, "firmware_version": "1.8.2",
    }  # fmt: skip
    files = [str(tmp_path / f"dev/rngd/npu{index}pe0-7")]
    return {"info": info, "files": files, "alive": True, "watts": 41.5 + index, **state}


@contextmanager
def stand_in(tmp_path: Path, **state: Any) -> Iterator[VendorProcess]:
    file = tmp_path / "furiosa.json"
    file.write_text(json.dumps({"driver": "2026.1.2", **state}))
    package = Path(__file__).parent / "stand_ins" / "furiosa"
    with VendorProcess("furiosa", {}, PYTHONPATH=str(package), FURIOSA_STAND_IN=str(file)) as vendor:
        yield vendor


def test_devices_are_found(tmp_path: Path) -> None:
    for index in (0, 1):
        make_node(tmp_path / f"dev/rngd/npu{index}pe0-7")
    with stand_in(tmp_path, devices=[npu(tmp_path, 0), npu(tmp_path, 1, alive=False)]) as vendor:
        found = vendor.discover()
        assert list(vendor.power().values()) == [41.5, 42.5]
    assert (found["driver"], found["firmware"], found["product"]) == ("2026.1.2", "1.8.2", "RNGD")
    first, second = found["devices"]
    assert (first["serial"], first["index"], first["numa_nodes"]) == ("RNGD0000", 0, [0])
    assert first["nodes"][0]["container_path"] == str(tmp_path / "dev/rngd/npu0pe0-7")
    assert troubles(found) == {second["id"]: ("the driver says that it does not answer", "Unknown")}


def test_one_device_that_fails_does_not_take_the_others_with_it(tmp_path: Path) -> None:
    make_node(tmp_path / "dev/rngd/npu0pe0-7")
    broken = npu(tmp_path, 1, error="Device busy")
    make_node(tmp_path / "dev/rngd/npu1pe0-7")
    missing = npu(tmp_path, 2)
    with stand_in(tmp_path, devices=[npu(tmp_path, 0), broken, missing]) as vendor:
        assert list(causes(vendor.discover()).values()) == [
            "",
            "Device busy",
            f"{tmp_path}/dev/rngd/npu2pe0-7: No such file or directory",
        ]


def test_a_driver_that_is_not_loaded_is_asked_again(tmp_path: Path) -> None:
    with stand_in(tmp_path, init="driver not found", devices=[]) as vendor:
        assert "driver not found" in vendor.discover()["error"]
        (tmp_path / "furiosa.json").write_text(json.dumps({"driver": "1.0.0", "devices": []}))
        assert vendor.discover()["devices"] == []
