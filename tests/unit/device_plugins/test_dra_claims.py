"""Prepared claims on disk: what a crash leaves, what a broken file says, what a claim must look like."""

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rm_device_plugins import files
from rm_device_plugins.dra.allocation import ClaimError, results_of
from rm_device_plugins.dra.cdi import Request, Specs, digest, spec
from rm_device_plugins.dra.records import Held, Record, Records
from rm_device_plugins.vendor import DeviceNode, Mount

DRIVER = "npu.example.com"
UID = "11111111-0000-4000-8000-000000000001"
RECORD = Record(
    namespace="default",
    name="claim",
    uid=UID,
    devices=(Held("npu", "npu-0"), Held("watch", "npu-1", admin=True)),
    boot="b",
    attempt="a",
    cdi_ids=(("x=1", "x=2"), ()),
    cdi_digest="d",
)


def records(directory: Path) -> Records:
    made = Records(directory)
    made.prepare()
    return made


def test_whenever_it_is_killed_nothing_is_lost_and_nothing_left(tmp_path: Path) -> None:
    """Every system call of prepare and unprepare is the last one once; afterwards the kubelet asks again."""
    program = Path(__file__).with_name("dra_crashes.py")
    environment = {**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"}
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path)], capture_output=True, text=True, check=True, env=environment
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(at, each["step"]) for at, each in enumerate(found) if each["follow"] != [0, 0]] == [], done.stderr
    assert [each["ended"] for each in found] == [-9] * (len(found) - 1) + [0]
    steps = [each["step"] for each in found]
    assert steps.count("replace") == 3, "record, CDI file, record"
    assert steps.index("replace") < steps.index("hook"), "devices are reserved before the vendor hears of them"


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    kept = records(tmp_path / "claims")
    assert kept.get(UID) is None
    kept.put(RECORD)
    assert kept.get(UID) == RECORD
    assert list(kept.all()) == [RECORD]
    assert RECORD.prepared
    assert not replace(RECORD, cdi_digest="").prepared
    kept.remove(UID)
    kept.remove(UID)
    assert (kept.get(UID), kept.uids()) == (None, set())


@settings(deadline=None)
@given(data=st.data())
def test_a_byte_that_is_wrong_or_missing_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    kept = records(tmp_path_factory.mktemp("records") / "claims")
    kept.put(RECORD)
    (path,) = kept._directory.iterdir()
    content = path.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    cut = data.draw(st.booleans())
    changed = data.draw(st.integers(0, 255))
    path.write_bytes(content[:at] if cut else content[:at] + bytes([changed]) + content[at + 1 :])
    assert kept.get(UID) in ((RECORD,) if changed == content[at] and not cut else (None, RECORD))
    if kept.get(UID) is None:
        assert [path.suffix for path in kept._directory.iterdir()] == [".broken"]
        assert kept.uids() == {UID}, "its CDI file is not taken for one of no claim"
        kept.put(RECORD)
    assert kept.get(UID) == RECORD
    assert [path.suffix for path in kept._directory.iterdir()] == [".json"]


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"version": 1}', '{"version": 2, "claim": {}}'])
def test_a_file_that_is_no_record_is_put_aside(tmp_path: Path, content: str) -> None:
    kept = records(tmp_path / "claims")
    (tmp_path / "claims" / f"{UID}.json").write_text(content)
    assert list(kept.all()) == []
    kept.remove(UID)
    assert list((tmp_path / "claims").iterdir()) == []


def test_a_record_under_another_name_is_none(tmp_path: Path) -> None:
    kept = records(tmp_path / "claims")
    kept.put(RECORD)
    other = UID.replace("1", "2")
    (tmp_path / "claims" / f"{UID}.json").rename(tmp_path / "claims" / f"{other}.json")
    assert kept.get(other) is None


@pytest.mark.parametrize("uid", ["", ".", "..", "a/b", "../a", "a\n", "-a", "a" * 200])
def test_a_uid_is_no_path(tmp_path: Path, uid: str) -> None:
    with pytest.raises(ValueError, match="is no UID of a claim"):
        records(tmp_path / "claims").get(uid)


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    files.write(path, b"before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write(path, b"after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


async def test_the_lock_is_for_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = 0

    async def work() -> None:
        nonlocal inside
        async with files.locked(tmp_path / "lock"):
            inside += 1
            assert inside == 1
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(work() for _ in range(20)))
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.0)
    async with files.locked(tmp_path / "lock"):
        with pytest.raises(files.LockedError, match="held by another instance"):
            async with files.locked(tmp_path / "lock"):
                pass


NODE = DeviceNode("/dev/host0", "/dev/npu0", 10, 1)
COMMON = DeviceNode("/dev/control", "/dev/control", 10, 9, "rwm")


def devices(content: bytes) -> dict[str, Any]:
    parsed = json.loads(content)
    assert (parsed["cdiVersion"], parsed["kind"]) == ("0.5.0", f"{DRIVER}/device")
    return {each["name"]: each["containerEdits"] for each in parsed["devices"]}


def test_a_request_has_in_common_what_is_in_no_device() -> None:
    mount = Mount("/host", "/container", read_only=False)
    bare: tuple[DeviceNode, ...] = ()
    request = Request("a/b", (("x", (NODE,)), ("y", bare)), {"K": "v=w"}, (mount,), (COMMON,), ("vendor.com/gpu=1",))
    content, ids = spec(DRIVER, UID, [request])
    found = devices(content)
    assert found.keys() == {f"{UID}-a.b.x", f"{UID}-a.b"}
    assert found[f"{UID}-a.b.x"]["deviceNodes"][0] == {
        "path": "/dev/npu0", "hostPath": "/dev/host0", "type": "c", "major": 10, "minor": 1, "permissions": "rw",
    }  # fmt: skip
    common = found[f"{UID}-a.b"]
    assert [node["path"] for node in common["deviceNodes"]] == ["/dev/control"]
    assert common["env"] == ["K=v=w"]
    assert common["mounts"][0]["options"][0] == "rw"
    assert ids["a/b", "x"] == (f"{DRIVER}/device={UID}-a.b.x", f"{DRIVER}/device={UID}-a.b", "vendor.com/gpu=1")
    assert ids["a/b", "y"] == (), "a device without nodes changes nothing by itself"


def test_files_of_other_drivers_are_not_ours(tmp_path: Path) -> None:
    specs = Specs(tmp_path / "cdi", DRIVER)
    specs.prepare()
    content, _ = spec(DRIVER, UID, [Request("npu", (("x", (NODE,)),), {"K": "v"})])
    specs.write(UID, content)
    (tmp_path / "cdi" / f"other.{DRIVER}-device_{UID}.json").write_text("{}")
    assert specs.uids() == {UID}
    assert specs.has(UID, digest(content))
    assert not specs.has(UID, digest(b""))
    specs.remove(UID)
    specs.remove(UID)
    assert not specs.has(UID, digest(content))
    assert len(list((tmp_path / "cdi").iterdir())) == 1


def claim(*results: dict[str, Any], **more: Any) -> dict[str, Any]:
    metadata = {"namespace": "ns", "name": "c", "uid": UID}
    return {"metadata": metadata, "status": {"allocation": {"devices": {"results": list(results), **more}}}}


OURS = {"driver": DRIVER, "pool": "node", "request": "npu", "device": "a"}


def test_of_several_drivers_devices_ours_are_taken() -> None:
    theirs = {**OURS, "driver": "nic.example.com", "pool": "fabric"}
    config = [{"opaque": {"driver": "nic.example.com", "parameters": {}}, "source": "FromClaim"}]
    found = results_of(claim(theirs, OURS, {**OURS, "device": "b", "adminAccess": True}, config=config), DRIVER, "node")
    assert found == (Held("npu", "a"), Held("npu", "b", admin=True))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"metadata": {"namespace": "ns", "name": "c"}}, "the claim ns/c is not allocated"),
        ({"metadata": {"namespace": "ns", "name": "c"}, "status": {"allocation": None}}, "ns/c is not allocated"),
        (claim(), "has no device of npu.example.com"),
        (claim({**OURS, "driver": "x"}), "has no device of npu.example.com"),
        (claim({**OURS, "pool": "x"}), "devices of the pool 'x'; this node has the pool 'node'"),
        (claim(OURS, config=[{"opaque": {"driver": DRIVER}}]), "has parameters for npu.example.com, which takes none"),
    ],
)
def test_a_claim_that_is_not_for_us_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ClaimError, match=says):
        results_of(given, DRIVER, "node")
